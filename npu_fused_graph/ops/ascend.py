"""What can only be known on the device, or about the process group: asked right before an operator runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import distributed_c10d as c10d

from npu_fused_graph.errors import UnsupportedDeviceError, argument_error
from npu_fused_graph.spec import OpSpec

_BASE_FORMATS = {0: "NCHW", 2: "ND", 30: "NCDHW"}
"""Formats (ACL numbers) whose memory is that of an ordinary tensor."""

_NATIVE_NAMESPACES = ("mindspeed", "npu")

_domains: set[tuple[str, tuple[int, ...]]] = set()


def check_device(spec: OpSpec, tensors: Iterable[tuple[str, Tensor]], chips: tuple[str, ...] | None = None) -> None:
    """A12, A40: the chip and the memory format of NPU tensors. Raises UnsupportedDeviceError, InvalidArgumentError.

    chips: that have what will run, where these are not the operator's own; () = all.
    """
    tensors = list(tensors)
    chips = spec.chips if chips is None else chips
    if chips and not (name := soc_name(tensors[0][1].device)).startswith(chips):
        check_soc(spec, name)
    for name, tensor in tensors:
        number = torch.ops.npu.get_npu_format(tensor)
        if number not in _BASE_FORMATS:
            raise argument_error(
                spec.stem, name, "a tensor in ND format", f"ACL format {number}",
                "Convert it with torch_npu.npu_format_cast(x, 2).",
            )  # fmt: skip


def soc_name(device: torch.device | None = None) -> str:
    """Name of the chip as torch_npu gives it, "" without torch_npu or where it stands for any chip."""
    npu: Any = getattr(torch, "npu", None)
    if npu is None or getattr(npu, "stands_for_any_chip", lambda: False)():
        return ""
    return str(npu.get_device_name(device))


def check_soc(spec: OpSpec, name: str) -> None:
    """A40. Raises UnsupportedDeviceError unless ``name`` is a chip the op exists on."""
    if not spec.runs_on(name):
        raise UnsupportedDeviceError(
            f"[{spec.stem}] device: expected {spec.chips_text}, got {name!r}. Keep the separate ops there."
        )


def check_group(spec: OpSpec, group: dist.ProcessGroup, stated: int | None = None) -> None:
    """A39 and A41: number of ranks; a warning for a second communication domain in this process.

    stated: the number the call names beside the group.
    """
    spec.check_group(group.group_name, group.size(), stated)
    if "Ascend910B" not in spec.chips:
        return
    domain = group.group_name, tuple(dist.get_process_group_ranks(group))
    if domain in _domains:
        return
    alive = {(g.group_name, tuple(dist.get_process_group_ranks(g))) for g in c10d._world.pg_map}
    _domains.intersection_update(alive)
    for other, _ in sorted(_domains):
        warnings.warn(
            f"[{spec.stem}] {spec.communicator}: expected one communication domain per process (Atlas A2), got "
            f"{other!r} and {domain[0]!r}. CANN documents no support for more; use one group for all fused operators.",
            stacklevel=2,
        )
    _domains.add(domain)


def hccl_name(group: dist.ProcessGroup, given: str) -> str:
    """What the device's own operators call ``group``; ``given`` for a group without HCCL."""
    for device in group._device_types:
        backend: Any = group._get_backend(device)
        if hasattr(backend, "get_hccl_comm_name"):
            return str(backend.get_hccl_comm_name(dist.get_rank()))
    return given


def has_kernels(names: Iterable[str]) -> bool:
    """Whether torch_npu has all of these operators, with kernels for the device."""
    packets = [getattr(torch.ops.npu, name, None) for name in names]
    key = torch._C.DispatchKey.PrivateUse1
    return all(packet is not None and packet.default.has_kernel_for_dispatch_key(key) for packet in packets)


def native_op(spec: OpSpec) -> Any:
    """The device's own implementation, an OpOverload of MindSpeed or torch_npu; None where there is none."""
    for namespace in _NATIVE_NAMESPACES:
        packet = getattr(getattr(torch.ops, namespace), spec.torch_name, None)
        if packet is not None and packet.default.has_kernel_for_dispatch_key(torch._C.DispatchKey.PrivateUse1):
            return packet.default
    return None
