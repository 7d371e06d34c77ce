"""Real dumps beside this checkout, where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2].parent / "shared" / "samples"

SAMPLES = {
    "asc_opc_build.txt": "ge proto",
    "asc_opc_build_1.txt": "ge proto",
    "ge_proto_00015_OptimizeQuantGraph_FeGraphFusionAfter.txt": "ge proto",
    "ge_proto_00026_afterUBMatch.txt": "ge proto",
    "ge_proto_fused_op_conv2d_sigmoid.txt": "ge proto",
    "ge_readable_doc_transformer.txt": "ge readable",
    "msit_analyze_test.om.json": "om json",
    "root_model.om": "om",
    "m0.air": "air",
    "dynamo_original_graph_1_rank_0_pid_14115_ts_20261120235336625865.pbtxt": "torchair pbtxt",
    "dynamo_optimized_graph_1_rank_0_pid_14115_ts_20261120235336677144.pbtxt": "torchair pbtxt",
    "dynamo_optimized_graph_1_rank_0_pid_14125_ts_20261120235346441029.txt": "torchair txt",
    "dynamo_optimized_graph_1_rank_0_pid_14277_ts_20261120235356212451.py": "torchair py",
}
"""Name -> format."""


def sample(name: str) -> Path:
    """The file; the test is skipped where the samples are not there."""
    for path in (FOLDER / name, FOLDER / "generated" / name):
        if path.is_file():
            return path
    pytest.skip(f"{name} is not beside this checkout")
