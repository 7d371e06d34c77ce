"""TorchAir's compile cache without HCCL: a cached graph finds its communicators again when it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def refresh_groups_code(used_process_group: Mapping[str, tuple[Sequence[int], str]]) -> Any:
    """What a cached graph runs first, in place of TorchAir's own code, which asks the group's npu backend for a name.

    used_process_group: name in the graph -> (ranks, tag). The graph is stored with ``tag=..;rank_list=..`` in the
    names' place, which the engine resolves: here it is only made sure, before anything runs, that the groups exist.
    """
    from torch._inductor.utils import IndentedBuffer

    names = [f"tag={tag};rank_list={','.join(map(str, ranks))}" for ranks, tag in used_process_group.values()]
    code = IndentedBuffer()
    code.writelines(["from npu_fused_graph.comm import resolve", f"for name in {names!r}:", "    resolve(name)"])
    return code
