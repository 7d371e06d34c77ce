"""What a device does when it captures: calls are recorded, not executed, and replayed in the memory they were given.

One recorder serves npugraph_ex, TorchAir's own capturing modes and ``torch.npu.graph``.
"""
