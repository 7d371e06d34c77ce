"""Host mode: the real TorchAir on a machine without CANN.

``load_torchair()`` is the one entry: it returns the installed TorchAir where CANN and torch_npu work (device mode),
else the TorchAir package unpacked from the torch_npu wheel, with its native modules replaced by our engine.
"""

from npu_fused_graph.host.load import Mode, load_torchair, mode

__all__ = ["Mode", "load_torchair", "mode"]
