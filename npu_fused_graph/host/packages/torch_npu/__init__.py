"""Stand-in for torch_npu in processes of ``npu-fused-graph run``: the same names, on the CPU."""


def _autoload() -> None:
    """What ``import torch`` calls; importing this package was all there is to do."""


# Above: when torch_npu is imported before torch, torch's autoload asks the half-imported package for it.

import sys  # noqa: E402
from enum import IntEnum  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402

from npu_fused_graph.host.standin import process, state  # noqa: E402

if not state.only_captures:
    process.require_names()

from npu_fused_graph.host.standin import device, hccl, operators  # noqa: E402
from npu_fused_graph.host.standin.formats import (  # noqa: E402, F401
    empty_with_format,
    empty_with_swapped_memory,
    get_npu_format,
    get_storage_size,
    npu_format_cast,
    npu_format_cast_,
)
from torch_npu.version import __version__  # noqa: E402, F401

__npu_fused_graph_stand_in__ = True


class Format(IntEnum):
    """Memory formats by ACL's numbers. Tensors here have one, ND."""

    UNDEFINED = -1
    NCHW = 0
    NHWC = 1
    ND = 2
    NC1HWC0 = 3
    FRACTAL_Z = 4
    NC1HWC0_C04 = 12
    HWCN = 16
    NDHWC = 27
    FRACTAL_NZ = 29
    NCDHW = 30
    NDC1HWC0 = 32
    FRACTAL_Z_3D = 33


# numbers of the types torch does not have, as npu operators take them
int4 = 285
hifloat8 = 290
float8_e5m2 = 291
float8_e4m3fn = 292
float8_e8m0fnu = 293
float4_e2m1fn_x2 = 296
float4_e1m2fn_x2 = 297

from torch_npu import npu  # noqa: E402

if not state.only_captures:
    device.install(npu)
    hccl.install()
    process.begin()

    from torch_npu import atb, contrib, distributed, dynamo, profiler  # noqa: F401

    operators.install()
    from torch_npu import _afd  # noqa: F401

    process.register()
else:
    torch.npu = npu  # type: ignore[attr-defined]

from torch_npu import _C, utils  # noqa: E402, F401


def erase_stream(tensor: torch.Tensor, stream: Any) -> None:
    """Memory here waits for no stream."""


def __getattr__(name: str) -> Any:
    """npu_* operators, from torch.ops.npu."""
    return operators.python_function(sys.modules[__name__], name)
