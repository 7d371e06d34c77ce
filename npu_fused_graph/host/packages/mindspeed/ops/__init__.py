"""Operators of this project under MindSpeed's names; other modules come from an installed MindSpeed."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
