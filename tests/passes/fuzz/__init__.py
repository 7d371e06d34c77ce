"""A fuzzer for the fusion pass: random programs whose verdict is known by construction.

    python -m tests.passes.fuzz --graphs 5000 --seed 0 --jobs 2

plan.py draws a program, write.py and its tables (linears.py, norms.py, faults.py) write it as Python text together with
what must become of each of its collectives, capture.py makes the FX graph, variants.py changes the graph further,
check.py fuses it and compares verdicts, numbers, layouts and signatures, shrink.py makes a failing program small.

Nothing here looks at the matcher: from npu_fused_graph.passes only fuse_all, FusionOptions and the records are used.
The numbers come from tests.passes.lockstep.
"""
