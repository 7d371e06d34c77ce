"""Registration of ATB's operators."""


def _register_atb_extensions() -> None:
    """They are registered."""
