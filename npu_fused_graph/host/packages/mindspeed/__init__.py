"""Stand-in for MindSpeed: its fused operators that this project has; all else comes from an installed MindSpeed."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
