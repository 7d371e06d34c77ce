"""Stand-in for AscendSpeed, MindSpeed's former name; all else comes from an installed AscendSpeed."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
