"""Why a site is not fused: one class per reason. docs/fusion_refusals.md is this catalogue."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Node

from npu_fused_graph.passes.location import source_line

CATALOGUE: dict[str, type[Refusal]] = {}
"""Every class by its reason."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a site is not fused.

    reason: stable key, the class's name in snake case. is_legal: only a setting keeps the site from being fused. text:
    what was found. cure: what to change. node: the FX node it was found at. source: its "file:line" in the user's
    model, "" if unknown.
    """

    text: str
    cure: str = ""
    node: str = ""
    source: str = ""
    reason: ClassVar[str] = ""
    is_legal: ClassVar[bool] = False
    usual_cure: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        cls.reason = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        CATALOGUE[cls.reason] = cls

    def __post_init__(self) -> None:
        if not self.cure:
            object.__setattr__(self, "cure", self.usual_cure)

    @classmethod
    def at(cls, node: Node, text: str, cure: str = "") -> Refusal:
        return cls(text, cure, node.name, source_line(node))


class Refused(Exception):
    """Raised while a site is matched."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


# -- the collective -------------------------------------------------------------------------------------------


class OutsideEveryGraph(Refusal):
    """The collective runs eagerly: async_op=True, a graph break, a function torch.compile does not see, TorchScript."""

    usual_cure = "Remove what keeps it out of the graph; torch.compile(..., fullgraph=True) makes that an error."


class GraphBreak(Refusal):
    """A graph break lies between the matmul, the collective, the add and the norm: they are in different graphs."""

    usual_cure = "Remove the graph break; torch.compile(..., fullgraph=True) makes it an error."


class NestedGraph(Refusal):
    """The collective is in a branch, loop or grad mode of its own: a graph in the graph, which passes leave alone."""

    usual_cure = "Take it out of the branch, or set the grad mode around the whole model."


class EagerCollective(Refusal):
    """The graph has the eager collective, with a process group object, as make_fx or allow_in_graph leave it."""

    usual_cure = "Let torch.compile trace the call itself, or call torch.distributed._functional_collectives."


class ReduceOp(Refusal):
    """The collective computes a mean, a maximum, ...: the fused op only adds."""

    usual_cure = "Reduce with SUM; divide by the group's size afterwards, or in the weight."


class Coalesced(Refusal):
    """One collective reduces several tensors; the fused op has one."""

    usual_cure = "Reduce the row-parallel layer's result by itself."


class SequenceParallel(Refusal):
    """The sum is scattered, and not gathered at once along the same dim: the residual stream stays sharded."""

    usual_cure = "Keep sequence parallelism (MatmulReduceScatter is its operator), or use an all-reduce."


class ScatterDim(Refusal):
    """The sum is scattered along another dim than the first: pieces of rows, or of every sequence, are moved around."""

    usual_cure = "Scatter and gather along dim 0 (a transpose puts that dim first), or use an all-reduce."


class ResultUsedElsewhere(Refusal):
    """Somebody else reads the reduced result; the fused op returns only the sum and its norm."""

    usual_cure = "Let only the residual add read the reduced result; other readers can use the sum."


class UnknownGroup(Refusal):
    """The collective names a group this process does not have."""

    usual_cure = "Create the group on this rank before compiling."


class GroupSize(Refusal):
    """The op does not run on so many ranks."""

    usual_cure = "Use a tensor-parallel size of 1, 2, 4 or 8 (2, 4 or 8 for groups of matmuls)."


class SecondGroup(Refusal):
    """Sites before this one use another group; Atlas A2 has one communication domain for fused operators."""

    usual_cure = "Use one tensor-parallel group for all row-parallel layers."


# -- the matmul -----------------------------------------------------------------------------------------------


class NoMatmul(Refusal):
    """What is reduced is not the result of a matmul with a 2-D weight."""

    usual_cure = "Reduce the output of the row-parallel linear itself; give a bias to the linear."


class ScaledMatmul(Refusal):
    """addmm with alpha or beta."""

    usual_cure = "Fold the factors into weight and bias."


class MatmulResultUsedElsewhere(Refusal):
    """Somebody else reads the partial sum; the fused op does not return it."""

    usual_cure = "Use only the reduced result."


class Quantisation(Refusal):
    """The quantised matmul does what the fused op cannot: scales per token, output quantisation, ..."""

    usual_cure = "Use static scales: bfloat16 ones, or words of npu_trans_quant_param for float16."


class BiasShape(Refusal):
    """The bias of the matmul is not one vector of n elements."""

    usual_cure = "Use a bias of shape (n,)."


class WeightLayout(Refusal):
    """The weight is neither contiguous nor the transpose of a contiguous matrix."""

    usual_cure = "Store it contiguously."


# -- the residual add -----------------------------------------------------------------------------------------


class NoResidualAdd(Refusal):
    """No residual is added to the reduced result."""

    usual_cure = "Nothing to fuse here, or add the residual next."


class NormBeforeAdd(Refusal):
    """A post-norm block: the reduced result is normalised before the residual is added."""

    usual_cure = "The fused op adds first; post-norm models keep the separate ops."


class ScaledBeforeAdd(Refusal):
    """A multiplier, gate or layer scale stands between the collective and the residual add, or the add has an alpha."""

    usual_cure = "Fold the multiplier into the weight of the linear."


class TrainingDropout(Refusal):
    """A dropout that is not in eval mode stands between the matmul and the residual add."""

    usual_cure = "Call model.eval() before it is compiled."


class ResidualIsANumber(Refusal):
    """A number is added, not a tensor."""

    usual_cure = "Add a residual tensor."


class ResidualIsTheResult(Refusal):
    """The reduced result is added to itself."""

    usual_cure = "Add another tensor."


class ResidualBroadcast(Refusal):
    """The residual is broadcast, or has another shape than the result (a chunk of it in sequence parallelism)."""

    usual_cure = "Add a residual of the full shape; a bias belongs into the linear."


class SumOfReduces(Refusal):
    """Two reduced results are added (parallel attention and MLP, shared and routed experts)."""

    usual_cure = "Add the partial sums, then reduce once: half the traffic."


# -- a group of matmuls ---------------------------------------------------------------------------------------


class Deprecated(Refusal):
    """CANN marks GroupedMatMulAllReduce as deprecated, so matmuls are grouped only where it is asked for."""

    is_legal = True
    usual_cure = "Pass grouped=True."


class SingleReduce(Refusal):
    """No other matmul + all-reduce of the same group and dtype is independent of this one and next to it."""

    usual_cure = "Nothing to group."


class CriticalPath(Refusal):
    """A matmul reads this result before the next all-reduce is there (a chain of layers): grouping would delay it."""

    usual_cure = "Compute what is independent first, or keep the separate ops."


class WeightStoredTransposed(Refusal):
    """The weight is the transpose of a stored (n, k); the grouped op reads (k, n) only."""

    usual_cure = "Store the weight as a contiguous (k, n) and multiply by it with matmul."


class GroupSizesOnDevice(Refusal):
    """How many rows each group has is a result of the routing, known on the device only; the op wants constants."""

    usual_cure = "Keep the grouped matmul and its one all-reduce."


class EmptyGroup(Refusal):
    """A matmul has no rows; the op takes such groups, but CANN's built-in tiling divides by their size."""

    usual_cure = "Leave out what has no rows, or keep the separate ops."


class UnequalWidths(Refusal):
    """Results that are joined have different widths."""

    usual_cure = "Reduce them separately."


class TooManyGroups(Refusal):
    """The op takes 64 groups."""

    usual_cure = "Join fewer matmuls in one tensor."


class TooManyColumns(Refusal):
    """The op takes matrices of at most 65535 columns."""

    usual_cure = "Keep the separate ops."


# -- the norm -------------------------------------------------------------------------------------------------


class NoRmsNorm(Refusal):
    """No RMSNorm over the last dim, in a spelling that is known, reads the sum."""

    usual_cure = "Nothing to fuse, or spell the norm as in docs/fusion.md."


class HalfStatistics(Refusal):
    """The norm squares and averages in float16 or bfloat16; the fused op does so in float32."""

    usual_cure = "Convert the sum to float32 before it is squared: x.float().pow(2).mean(-1, keepdim=True)."


class LayerNorm(Refusal):
    """LayerNorm subtracts the mean; the fused op computes RMSNorm only."""

    usual_cure = "Keep the separate ops."


class NormWithBeta(Refusal):
    """The norm adds a bias of its own."""

    usual_cure = "Use a norm without bias."


class NormWithoutWeight(Refusal):
    """The norm has no weight."""

    usual_cure = "Give it a weight of ones."


class QuantisedNorm(Refusal):
    """The norm quantises its result; the fused op returns float16 or bfloat16."""

    usual_cure = "Quantise the norm's result with an op of its own."


class NormInternalsUsed(Refusal):
    """Something inside the norm is read outside it, as in a training graph."""

    usual_cure = "Compile for inference, under torch.no_grad(); let each norm compute its own values."


class EpsilonIsATensor(Refusal):
    """Epsilon is a buffer, a parameter, computed, or an input of the graph; in a GE graph it is an attribute."""

    usual_cure = "Keep it as a Python number, and compile with dynamic=False: else that is an input, too."


class EpsilonRange(Refusal):
    """The op takes an epsilon between 0 and 1."""

    usual_cure = "Use an epsilon in (0, 1)."


class LastDimSplit(Refusal):
    """The sum is reshaped so that the norm runs over something else than a row."""

    usual_cure = "Keep n as the last dim."


# -- tensors --------------------------------------------------------------------------------------------------


class Dtype(Refusal):
    """The matmul's result is neither float16 nor bfloat16."""

    usual_cure = "Run the model in float16 or bfloat16."


class MixedDtypes(Refusal):
    """The op's tensors have one dtype."""

    usual_cure = "Use one dtype."


class NotContiguous(Refusal):
    """An operand, or the sum, is not contiguous."""

    usual_cure = "Call .contiguous() on it."


class DynamicShape(Refusal):
    """Dynamic sizes in an activation that is neither 2-D nor 3-D throughout."""

    usual_cure = "Compile with dynamic=False, or use 2-D or 3-D activations."


# -- the surroundings -----------------------------------------------------------------------------------------


class CollectiveInBetween(Refusal):
    """Another collective runs between the all-reduce and the add: fusing would reorder them."""

    usual_cure = "Add the residual before the next collective."


class ComputedLate(Refusal):
    """An operand is computed from the sum, or by an operator that must not move."""

    usual_cure = "Compute it before the residual add."


class MutationInBetween(Refusal):
    """Something is written in place between the matmul and what it is fused with."""

    usual_cure = "Functionalise the graph first (torch.compile does), or write afterwards."


class OtherStream(Refusal):
    """A stream scope or an event lies between the matmul and what it is fused with."""

    usual_cure = "Keep the whole block on one stream."


class Overlapped(Refusal):
    """Other matmuls run between the all-reduce and its wait, on purpose it seems."""

    usual_cure = "Wait for the result at once, or keep the hand-made overlap."


# -- dispatch --------------------------------------------------------------------------------------------------


class NoWindowPlan(Refusal):
    """Tokens are dispatched to experts by collectives: there is no plan of windows and FFN ranks of their own."""

    usual_cure = "Keep it, or split attention and FFN ranks with npu_fused_graph.afd (docs/attention_and_ffn.md)."


# -- attention -------------------------------------------------------------------------------------------------


class AttentionShape(Refusal):
    """query, key and value do not have the shape of attention over heads, or not one shape."""

    usual_cure = "Repeat shared heads of key and value; attention over one sequence has as many keys as queries."


class UnequalLengths(Refusal):
    """There are more keys than queries, as in decoding and cross attention; the op takes equal lengths."""

    usual_cure = "Keep it: npu_incre_flash_attention and npu_fused_infer_attention_score decode."


class HeadDim(Refusal):
    """The op takes a head_dim that is a multiple of 16 of at most 128."""

    usual_cure = "Keep the separate ops, or pad the heads."


class SequenceLength(Refusal):
    """The op takes sequence lengths that are multiples of 256."""

    usual_cure = "Pad prompts to a multiple of 256."


class ScaleIsATensor(Refusal):
    """Scores are multiplied by a tensor, a learnt temperature; in a GE graph the scale is an attribute."""

    usual_cure = "Use a Python number, or multiply the query by the tensor."


class ScoreFunction(Refusal):
    """Something else than a scale, a bias or a mask stands between the product and the softmax."""

    usual_cure = "Keep the separate ops; the op computes softmax(scale * Q K^T + bias, masked)."


class SoftmaxAxis(Refusal):
    """The softmax does not run over the keys, along the last axis."""

    usual_cure = "Keep the separate ops."


class AttentionWeightsUsed(Refusal):
    """The weights are read or changed by something else than the product with the values; the op does not have them."""

    usual_cure = "Do not ask for attention weights (output_attentions=False)."


class AttentionDropout(Refusal):
    """A dropout with p > 0 acts on the weights; the op would draw other pairs."""

    usual_cure = "Call model.eval(), set attention_dropout to 0, or call ascend_flash_attention."


class RowMayBeHidden(Refusal):
    """A query may see no key. The model's finite mask gives it the mean of the values, or something of the rounding's
    making; the op gives it 0 or the softmax of what was hidden."""

    usual_cure = "Call scaled_dot_product_attention, which gives 0, or hide with -inf."


class BiasDtype(Refusal):
    """The bias has more digits than query, whose dtype the op's bias has."""

    usual_cure = "Compute it in query's dtype, if that is enough."


class BiasGradient(Refusal):
    """The bias needs a gradient, which the op does not have."""

    usual_cure = "Detach it, or train with the separate ops."


class InATransform(Refusal):
    """The attention is inside torch.vmap or torch.func.grad, whose tensors are wrapped."""

    usual_cure = "Compile the function with the batch as an axis, and differentiate it from outside."


class FewScores(Refusal):
    """Too few queries over all heads to keep the cores of a chip busy."""

    is_legal = True
    usual_cure = "Pass min_rows=0 to fuse whatever is legal."


class NotACall(Refusal):
    """Attention is written out, and only calls of scaled_dot_product_attention are to be fused."""

    is_legal = True
    usual_cure = 'Pass attention="all".'


# -- settings and machine -------------------------------------------------------------------------------------


class Numerics(Refusal):
    """Fusing would change more roundings than the setting allows."""

    usual_cure = 'Pass a larger class: numerics="one_ulp" or "any".'


class MinRows(Refusal):
    """Too few rows to gain anything: the kernel cannot overlap computing and sending."""

    is_legal = True
    usual_cure = "Pass min_rows=0 to fuse whatever is legal."


class SymbolicRows(Refusal):
    """The number of rows is symbolic and may be too small to gain anything: one graph serves all sizes."""

    is_legal = True
    usual_cure = "Compile prefill with dynamic=False, or pass min_rows=0 to fuse whatever is legal."


class DeterministicMode(Refusal):
    """Deterministic algorithms are requested, and the order of the fused reduction is not fixed."""

    usual_cure = "Call torch.use_deterministic_algorithms(False)."


class GeTypeNotRegistered(Refusal):
    """The installed CANN does not know the GE op type."""

    usual_cure = "Install a CANN that has it, or register the custom op package."


class GeIrDiffers(Refusal):
    """The installed CANN has another prototype of the GE op type."""

    usual_cure = "Install a CANN with the same prototype."


class Soc(Refusal):
    """CANN has the op for another chip only."""

    usual_cure = "Keep the separate ops on this chip."


class NoEagerKernel(Refusal):
    """TorchAir's mode runs ops one by one, and no package here brings a kernel for this one."""

    usual_cure = "Use mode 'max-autotune', or import mindspeed.ops first."


OF_THE_MACHINE = (GeTypeNotRegistered, GeIrDiffers, Soc, NoEagerKernel)
"""What keeps an operator from being used at all."""
