"""Converters of aten ops."""


def register() -> None:
    """to be filled"""
