"""Of torch_npu: the release whose TorchAir is used."""

from npu_fused_graph.host.paths import imitated_version

__all__ = ["__version__", "git_version"]

__version__ = imitated_version()
git_version = "Unknown"
