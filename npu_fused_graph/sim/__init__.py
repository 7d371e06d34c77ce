"""Kernels on the simulator: built with g++ on first use, launched on CPU tensors. Figures are simulated."""
