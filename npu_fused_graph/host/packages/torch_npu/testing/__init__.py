"""Stand-in for torch_npu.testing: what tests of operators import from it."""
