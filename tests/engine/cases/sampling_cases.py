"""Samples for the grid samplers, three-dimensional pooling and counting."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from tests.engine.op_case import Make, OpCase

HALF_TO_DOUBLE = ("float32", "float16", "float64")


def _place(coordinate: Tensor, size: int, padding: str, corners: bool) -> Tensor:
    """Positions in pixels of grid coordinates in [-1, 1], mapped to the inside as ``padding`` says."""
    place = (coordinate + 1) / 2 * (size - 1) if corners else ((coordinate + 1) * size - 1) / 2
    low, span = (0.0, size - 1.0) if corners else (-0.5, float(size))
    if padding == "reflection":
        turn = torch.remainder(place - low, 2 * span)
        place = low + torch.minimum(turn, 2 * span - turn)
    return place if padding == "zeros" else place.clamp(0, size - 1)


def sampled(x: Tensor, grid: Tensor, mode: str = "bilinear", padding: str = "zeros", corners: bool = False) -> Tensor:
    """The weighted sum over all pixels: a tent of width 1 around each place, or the nearest one."""
    sizes = x.shape[2:]
    axes = [
        _place(grid[..., len(sizes) - 1 - axis].double(), size, padding, corners) for axis, size in enumerate(sizes)
    ]
    result = torch.zeros(*x.shape[:2], *grid.shape[1:-1], dtype=torch.float64)
    for pixel in itertools.product(*map(range, sizes)):
        weight = torch.ones(grid.shape[:-1], dtype=torch.float64)
        for place, at in zip(axes, pixel, strict=True):
            weight = weight * ((place.round() == at) if mode == "nearest" else (1 - (place - at).abs()).clamp(min=0))
        result += x[(..., *pixel)].double().reshape(*x.shape[:2], *[1] * len(sizes)) * weight.unsqueeze(1)
    return result


def _plane(m: Make) -> dict[str, Tensor]:
    return {"x": m(2, 3, 4, 5), "grid": m(2, 3, 2, 2, low=-1.3, high=1.3)}


def _space(m: Make) -> dict[str, Tensor]:
    return {"x": m(1, 2, 3, 4, 2), "grid": m(1, 2, 3, 2, 3, low=-1.3, high=1.3)}


def _largest(x: Tensor, size: int, step: int) -> list[Tensor]:
    windows = x.unfold(2, size, step).unfold(3, size, step).unfold(4, size, step)
    places = torch.arange(x.shape[2:].numel()).reshape(x.shape[2:])
    places = places.unfold(0, size, step).unfold(1, size, step).unfold(2, size, step).flatten(-3)
    best = windows.flatten(-3).max(-1)
    return [best.values, places.expand(*best.values.shape, -1).gather(-1, best.indices.unsqueeze(-1)).squeeze(-1)]


CASES = [
    *(
        OpCase(
            "GridSampler2D",
            _plane,
            lambda x, grid, mode=mode, padding=padding, corners=corners: sampled(x, grid, mode, padding, corners),
            {"interpolation_mode": mode, "padding_mode": padding, "align_corners": corners},
            dtypes=("float32",) if mode == "nearest" else HALF_TO_DOUBLE,
            name=f"{mode} {padding} {corners}",
        )
        for mode in ("bilinear", "nearest")
        for padding in ("zeros", "border", "reflection")
        for corners in (False, True)
    ),
    OpCase(
        "GridSampler2D",
        lambda m: {"x": m(1, 1, 2, 2).fill_(1.5), "grid": m(1, 1, 2, 2, low=-0.2, high=0.2)},
        lambda x, grid: torch.full((1, 1, 1, 2), 1.5, dtype=torch.float64),
        {"interpolation_mode": "bicubic", "padding_mode": "border", "align_corners": True},
        name="bicubic",
    ),
    OpCase("GridSampler3D", _space, lambda x, grid: sampled(x, grid), dtypes=HALF_TO_DOUBLE),
    OpCase(
        "GridSampler3D",
        _space,
        lambda x, grid: sampled(x, grid, "nearest", "border", True),
        {"interpolation_mode": "nearest", "padding_mode": "border", "align_corners": True},
        dtypes=("float32",),
        name="nearest",
    ),
    OpCase(
        "MaxPool3DWithArgmaxV2",
        lambda m: {"x": m(2, 2, 5, 5, 5)},
        lambda x: _largest(x, 3, 2),
        {"ksize": [3, 3, 3], "strides": [2, 2, 2], "pads": [0, 0, 0], "dtype": 9},
        outputs=("y", "argmax"),
    ),
    OpCase(
        "Bincount",
        lambda m: {"array": torch.tensor([1, 3, 1, 9], dtype=torch.int32), "size": torch.tensor(5, dtype=torch.int32),
                   "weights": torch.zeros(0, dtype=torch.int64)},
        lambda array, size, weights: torch.tensor([0, 2, 0, 1, 0]),
        outputs=("bins",),
        dtypes=("int64",),
        name="ones",
    ),
    OpCase(
        "Bincount",
        lambda m: {"array": torch.tensor([1, 3, 1], dtype=torch.int32), "size": torch.tensor(4, dtype=torch.int32),
                   "weights": m(3)},
        lambda array, size, weights: torch.stack(
            [torch.zeros_like(weights[0]), weights[0] + weights[2], torch.zeros_like(weights[0]), weights[1]]
        ),
        outputs=("bins",),
        dtypes=("float32", "int32", "int64", "float64"),
    ),
]  # fmt: skip
