"""AscendSpeed's entry point of requirement 003."""

from pkgutil import extend_path

from npu_fused_graph.host.standin.ascendspeed import ascend_flash_attention

__all__ = ["ascend_flash_attention"]

__path__ = extend_path(__path__, __name__)
