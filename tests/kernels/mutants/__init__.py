"""Faults put into the kernels, one at a time, mechanically, at every place: what of them the simulator's tests notice."""
