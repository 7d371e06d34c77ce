"""Stand-in for torch_npu.dynamo: ``torch.compile(backend="npu")`` and TorchAir under its other name."""

from __future__ import annotations

import importlib
from typing import Any

from npu_fused_graph.host.standin import npugraph_ex_alias, torchair_alias
from npu_fused_graph.host.standin.refusal import refused

torchair_alias.install(__name__)
npugraph_ex_alias.install(__name__)

npugraphs = refused("the backend npugraphs", "it captures NPU streams. Use backend='npu'")


def _npugraph_ex_backend(gm: Any, example_inputs: Any, **options: Any) -> Any:
    """The backend named ``npugraph_ex``, with its default configuration and the options of torch.compile."""
    npugraph_ex = importlib.import_module("npugraph_ex")
    return npugraph_ex.get_npu_backend(compiler_config=npugraph_ex.CompilerConfig())(gm, example_inputs, **options)


def _npu_backend_entrypoint(gm: Any, example_inputs: Any, **options: Any) -> Any:
    """The backend named ``npu``: TorchAir's with its default configuration."""
    import torchair

    return torchair.get_npu_backend()(gm, example_inputs, **options)


def __getattr__(name: str) -> Any:
    if name == "_npugraph_ex_backend_entrypoint":
        # looked up before a model is traced, and tracing differs: its import lets Dynamo trace collectives in place
        importlib.import_module("npugraph_ex")
        return _npugraph_ex_backend
    if name in ("torchair", "npugraph_ex"):
        return importlib.import_module(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
