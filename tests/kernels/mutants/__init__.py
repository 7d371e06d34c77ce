"""Faults put into the kernels, one at a time, mechanically, at every place; and how many are noticed."""
