"""TorchAir's compile cache in the next process: what a stored graph refers to is found again."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

import npu_fused_graph as nfg


class Named(nn.Module):
    """A step that returns its result with a name, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def step(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict(y=self.linear(x))


def test_modules_are_stored_by_name(tmp_path: Path) -> None:
    torchair = nfg.load_torchair()
    from torchair.inference._cache_compiler import CompiledModel

    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    layer, x = Named(), torch.ones(2, 4)
    torch._dynamo.reset()
    cached = torchair.inference.cache_compile(
        layer.step, config=torchair.CompilerConfig(), dynamic=False, cache_dir=str(folder)
    )
    with torch.no_grad():
        assert torch.equal(cached(x)["y"], layer.linear(x))
        (stored,) = folder.rglob("compiled_module")
        model = CompiledModel.load(str(stored))
        assert [name for name in model.compiled_fn.co_names if "collections" in name] == ["__import_collections"]
        own = {name: value for name, value in globals().items() if not name.startswith("__")}  # without Dynamo's
        loaded = model.rebase(layer, own, func=layer.step)
        assert torch.equal(loaded(x)["y"], layer.linear(x))
