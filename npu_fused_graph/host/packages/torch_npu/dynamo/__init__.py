"""Stand-in for torch_npu.dynamo: ``torch.compile(backend="npu")`` and TorchAir under its other name."""

from __future__ import annotations

from typing import Any

from npu_fused_graph.host.standin import torchair_alias
from npu_fused_graph.host.standin.refusal import refused

torchair_alias.install(__name__)

npugraphs = refused("the backend npugraphs", "it captures NPU streams. Use backend='npu'")
npugraph_ex = refused("the backend npugraph_ex", "it captures NPU streams. Use backend='npu'")


def _npu_backend_entrypoint(gm: Any, example_inputs: Any, **options: Any) -> Any:
    """The backend named ``npu``: TorchAir's with its default configuration."""
    import torchair

    return torchair.get_npu_backend()(gm, example_inputs, **options)


def __getattr__(name: str) -> Any:
    if name == "torchair":
        import torchair

        return torchair
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
