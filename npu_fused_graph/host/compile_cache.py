"""TorchAir's compile cache: a cached graph finds its communicators, without HCCL, and its modules when it is loaded."""

from __future__ import annotations

import functools
import importlib
import re
import sys
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


def guard_module_names() -> None:
    """Store modules by name: TorchAir imports those Dynamo gave one kind of name, and another kind holds an address.

    Where a function returned an OrderedDict, as the outputs of transformers are, the next process failed.
    """
    cache: Any = importlib.import_module("torchair.inference._cache_compiler")
    original = cache.CompiledModel.save

    @functools.wraps(original)
    def save(self: Any, *args: Any, **kwargs: Any) -> Any:
        code = self.compiled_fn
        if code is not None:
            self.compiled_fn = code.replace(co_names=_by_name(code.co_names))
        return original(self, *args, **kwargs)

    cache.CompiledModel.save = save


def _by_name(names: Sequence[str]) -> tuple[str, ...]:
    """``___module_<last part>_<address>_c<compilation>`` becomes ``__import_<module>``, which TorchAir imports."""
    modules = {id(module): name for name, module in list(sys.modules.items())}
    found = []
    for name in names:
        match = re.fullmatch(r"___module_\w+_(\d+)_c\w+", name)
        module = modules.get(int(match[1])) if match else None
        found.append(name if module is None else f"__import_{module.replace('.', '_dot_')}")
    return tuple(found)
