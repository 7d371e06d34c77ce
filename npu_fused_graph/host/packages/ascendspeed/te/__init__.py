"""AscendSpeed's operators that came with sources of their own; other modules come from an installed AscendSpeed."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
