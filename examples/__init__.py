"""Examples, numbered from the simplest on. Each is a program; the first lines say how to run it."""
