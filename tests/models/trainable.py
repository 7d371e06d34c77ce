"""A two-layer language model whose parts are chosen by name, and losses over its logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 24
WIDTH = 32
HEADS = 4
TOKENS = 6
IGNORE = -100

EPS = 1e-5


def _rms_rsqrt(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS))


def _rms_in_float32(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    return weight * wide.to(x.dtype)


def _rms_sqrt(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS) * weight


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (WIDTH,), weight, EPS)


RMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rms rsqrt": _rms_rsqrt, "rms float32": _rms_in_float32, "rms sqrt": _rms_sqrt, "F.rms_norm": _rms_norm
}  # fmt: skip

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "relu": F.relu,
}


class Norm(nn.Module):
    """name: a key of RMS, "layer norm" or "layer norm, no bias"."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.bias = nn.Parameter(torch.randn(WIDTH) / 4) if name == "layer norm" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.name in RMS:
            return RMS[self.name](x, self.weight)
        return F.layer_norm(x, (WIDTH,), self.weight, self.bias, EPS)


class Attention(nn.Module):
    """Causal, of matmuls, a mask and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, _ = x.shape
        heads = self.qkv(x).view(rows, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        scores = q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(1)
        weights = torch.softmax(scores.masked_fill(hidden, torch.finfo(scores.dtype).min), -1)
        y: Tensor = self.out((weights @ v).transpose(1, 2).reshape(rows, tokens, WIDTH))
        return y


class Layer(nn.Module):
    """activation: a key of ACTIVATIONS, or "swiglu"."""

    def __init__(self, norm: str, activation: str, attends: bool) -> None:
        super().__init__()
        self.activation = activation
        self.attention_norm = Norm(norm) if attends else None
        self.attention = Attention() if attends else None
        self.norm = Norm(norm)
        self.up = nn.Linear(WIDTH, 2 * WIDTH * (2 if activation == "swiglu" else 1))
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        if self.attention is not None and self.attention_norm is not None:
            x = x + self.dropout(self.attention(self.attention_norm(x)))
        hidden = self.up(self.norm(x))
        if self.activation == "swiglu":
            gate, value = hidden.chunk(2, -1)
            hidden = F.silu(gate) * value
        else:
            hidden = ACTIVATIONS[self.activation](hidden)
        return x + self.dropout(self.down(hidden))


class Decoder(nn.Module):
    """Logits (rows, tokens, vocabulary) of token ids (rows, tokens). is_tied: the head is the embedding."""

    def __init__(self, norm: str, activation: str, *, is_tied: bool = False, attends: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer(norm, activation, attends) for _ in range(2))
        self.norm = Norm(norm)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if is_tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x)) / 4
        return logits


def batch(rows: int = 3, seed: int = 7) -> tuple[Tensor, Tensor]:
    """(tokens, targets), two of which are to be ignored."""
    tokens = torch.randint(0, VOCABULARY, (rows, TOKENS + 1), generator=torch.Generator().manual_seed(seed))
    targets = tokens[:, 1:].clone()
    targets[0, 1] = targets[-1, 3] = IGNORE
    return tokens[:, :-1].contiguous(), targets


def _one_hot(logits: Tensor, targets: Tensor) -> Tensor:
    return F.one_hot(targets.clamp(min=0), VOCABULARY).to(logits.dtype)


def _class_weights(logits: Tensor) -> Tensor:
    return torch.linspace(0.5, 1.5, VOCABULARY, dtype=logits.dtype)


def _weighted(each: Tensor) -> Tensor:
    """A scalar of losses that are not reduced, each with another gradient."""
    return (each * torch.linspace(0.5, 1.5, each.numel(), dtype=each.dtype).view_as(each)).mean()


Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, Loss] = {
    "cross_entropy": lambda x, t: F.cross_entropy(x.flatten(0, 1), t.flatten()),
    "cross_entropy sum": lambda x, t: F.cross_entropy(x.flatten(0, 1), t.flatten(), reduction="sum") / 16,
    "cross_entropy none": lambda x, t: _weighted(F.cross_entropy(x.flatten(0, 1), t.flatten(), reduction="none")),
    "cross_entropy smoothing": lambda x, t: F.cross_entropy(x.flatten(0, 1), t.flatten(), label_smoothing=0.1),
    "cross_entropy weight": lambda x, t: F.cross_entropy(
        x.flatten(0, 1), t.flatten(), _class_weights(x), label_smoothing=0.1
    ),
    "cross_entropy ignore 3": lambda x, t: F.cross_entropy(x.flatten(0, 1), t.flatten().clamp(min=3), ignore_index=3),
    "cross_entropy classes second": lambda x, t: F.cross_entropy(x.transpose(1, 2), t),
    "cross_entropy probabilities": lambda x, t: F.cross_entropy(
        x.flatten(0, 1), (_one_hot(x, t).flatten(0, 1) + 0.1).softmax(-1)
    ),
    "nll_loss": lambda x, t: F.nll_loss(x.flatten(0, 1).log_softmax(-1), t.flatten(), _class_weights(x)),
    "nll_loss sum": lambda x, t: F.nll_loss(x.flatten(0, 1).log_softmax(-1), t.flatten(), reduction="sum") / 16,
    "log_softmax": lambda x, t: -(x.log_softmax(-1) * _one_hot(x, t)).sum(-1).mean(),
    "mse": lambda x, t: F.mse_loss(x, _one_hot(x, t)),
    "mse none": lambda x, t: _weighted(F.mse_loss(x, _one_hot(x, t), reduction="none")),
    "l1": lambda x, t: F.l1_loss(x, _one_hot(x, t)),
    "smooth_l1": lambda x, t: F.smooth_l1_loss(x, _one_hot(x, t), beta=0.3),
    "huber": lambda x, t: F.huber_loss(x, _one_hot(x, t), delta=0.3),
    "bce with logits": lambda x, t: F.binary_cross_entropy_with_logits(
        x, _one_hot(x, t), _class_weights(x), pos_weight=1 + _class_weights(x)
    ),
    "bce": lambda x, t: F.binary_cross_entropy(x.sigmoid(), _one_hot(x, t)),
    "kl_div": lambda x, t: F.kl_div(x.log_softmax(-1), (_one_hot(x, t) + 0.1).softmax(-1), reduction="batchmean"),
    "soft_margin": lambda x, t: F.soft_margin_loss(x, 2 * _one_hot(x, t) - 1),
}
