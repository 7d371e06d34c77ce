"""Kernels by family. A kernel is a function whose signature is the op's IR; see ``engine.registry``."""
