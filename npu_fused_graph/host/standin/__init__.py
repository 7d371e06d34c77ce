"""What the stand-in packages in ``host/site`` stand on: torch made to behave like torch with an NPU, on the CPU.

Only processes started by ``npu-fused-graph run`` get here: that command puts ``host/site`` on PYTHONPATH.
"""
