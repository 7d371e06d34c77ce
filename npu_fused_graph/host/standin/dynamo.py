"""What Dynamo has to know of torch.npu: its streams and events, and how a graph shows which stream is current."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence
from typing import Any

import torch

from npu_fused_graph.host.capture import streams

_MODULE = "torch._dynamo"


def install() -> None:
    """Tell Dynamo once it is imported, which takes seconds and is not needed by most scripts."""
    if _MODULE in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport(importlib.abc.MetaPathFinder):
    """Registers behind the import of one module."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            run(module)
            _register()

        loader.exec_module = exec_module
        return spec


def _register() -> None:
    module: Any = importlib.import_module("torch._dynamo.device_interface")
    npu: Any = sys.modules["torch_npu.npu"]

    class NpuInterface(module.DeviceInterface):  # type: ignore[misc]
        """The device npu, as far as tracing asks."""

        device = npu.device
        Event = streams.Event
        Stream = streams.Stream
        Worker = module.DeviceInterface.Worker
        current_device = staticmethod(npu.current_device)
        set_device = staticmethod(npu.set_device)
        device_count = staticmethod(npu.device_count)
        is_available = staticmethod(npu.is_available)
        stream = staticmethod(streams.stream)
        current_stream = staticmethod(streams.current_stream)
        set_stream = staticmethod(streams.set_stream)
        synchronize = staticmethod(npu.synchronize)
        get_device_properties = staticmethod(npu.get_device_properties)
        get_compute_capability = staticmethod(lambda device=None: "")
        exchange_device = staticmethod(lambda index: index)
        maybe_exchange_device = staticmethod(lambda index: index)
        is_bf16_supported = staticmethod(npu.is_bf16_supported)

    module.register_interface_for_device("npu", NpuInterface)
    _show_streams()


def _show_streams() -> None:
    """Let a graph carry ``set_stream`` where a model enters and leaves a stream, which npugraph_ex looks for.

    And let a model make streams and events while it is traced.
    """
    from torch._dynamo import trace_rules
    from torch._dynamo.variables.builder import wrap_fx_proxy_cls
    from torch._dynamo.variables.streams import StreamContextVariable, StreamVariable
    from torch._dynamo.variables.torch import TorchInGraphFunctionVariable
    from torch._dynamo.variables.user_defined import UserDefinedClassVariable

    UserDefinedClassVariable._in_graph_classes().update((streams.Stream, streams.Event))
    in_graph = (streams.stream, streams.current_stream, streams.set_stream)
    names = [f"{function.__module__}.{function.__name__}" for function in in_graph]
    trace_rules.torch_name_rule_map.append(dict.fromkeys(names, TorchInGraphFunctionVariable))
    trace_rules.clear_lru_cache()

    class Entered(StreamContextVariable):
        """``with torch.npu.stream(s)`` in a traced function."""

        def __init__(self, stream: Any, before: Any, **kwargs: Any) -> None:
            self.before = before
            super().__init__(stream, **kwargs)

        def enter(self, tx: Any, *args: Any) -> Any:
            _set_stream(tx, self.get_stream())
            return super().enter(tx, *args)

        def exit(self, tx: Any, *args: Any) -> Any:
            result = super().exit(tx, *args)
            _set_stream(tx, self.before)
            return result

    def handle(self: Any, tx: Any, stream: Any) -> Any:
        current = tx.output.create_proxy("call_function", streams.current_stream, (None,), {})
        return Entered(stream, wrap_fx_proxy_cls(StreamVariable, tx, current))

    handlers: Any = TorchInGraphFunctionVariable._get_handlers()
    handlers[streams.stream] = handle
    if torch.accelerator.current_stream in handlers:
        handlers[streams.current_stream] = handlers[torch.accelerator.current_stream]


def _set_stream(tx: Any, stream: Any) -> None:
    tx.output.create_proxy("call_function", streams.set_stream, (stream.as_proxy(),), {})
