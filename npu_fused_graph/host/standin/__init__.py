"""What the stand-in packages in ``host/packages`` stand on: torch made to behave like torch with an NPU, on the CPU.

Only processes started by ``npu-fused-graph run`` get here: that command puts ``host/packages`` on PYTHONPATH.
"""
