"""Attention on CPU tensors and its gradient, without a matrix of all scores: what operators and engine compute with.

Tensors are (B, N, S, D) views of any strides; key and value may have fewer heads, each of which serves as many
neighbouring query heads.

    X[i, j] = scale * (Q K^T)[i, j] + A[i, j],  -inf where hidden
    P = exp(X - lse),  lse[i] = ln sum_j exp(X[i, j])
    O[i] = sum_j M[i, j] / p * P[i, j] V[j]       (M = 1 where dropout keeps a pair, which it does with probability p)

A query that sees no key has O = 0 and lse = -inf, and no part in any gradient.
"""

from npu_fused_graph.flash.backward import backward as backward
from npu_fused_graph.flash.dropout import Keep as Keep
from npu_fused_graph.flash.dropout import PackedKeep as PackedKeep
from npu_fused_graph.flash.dropout import SeededKeep as SeededKeep
from npu_fused_graph.flash.dropout import generator_of as generator_of
from npu_fused_graph.flash.forward import forward as forward
from npu_fused_graph.flash.forward import row_statistics as row_statistics
from npu_fused_graph.flash.hidden import Band as Band
from npu_fused_graph.flash.hidden import Hidden as Hidden
from npu_fused_graph.flash.scores import Scores as Scores
