"""What is generated for CANN's host side: the definitions register their SPEC, and the inference copies shapes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from npu_fused_graph.codegen import WITH_KERNEL, infer_shape, op_def
from npu_fused_graph.codegen.op_host import CONFIGS
from npu_fused_graph.ops import specs
from npu_fused_graph.spec import OpSpec

DOUBLE = Path(__file__).parent / "op_def_double"
SPECS = {spec.stem: spec for spec in specs()}


def registered(spec: OpSpec, folder: Path) -> list[str]:
    """What the generated definition tells CANN, line by line."""
    source = folder / "def.cpp"
    source.write_text(op_def(spec) + "int main() {}\n")
    subprocess.run(
        ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{DOUBLE}", str(source), "-o", str(folder / "def")],
        check=True,
    )
    return subprocess.run([str(folder / "def")], check=True, capture_output=True, text=True).stdout.splitlines()


def test_attention_to_ffn(tmp_path: Path) -> None:
    """CANN's own definition of the operator, by hand from its public sources: two columns of dtypes, Atlas A3 only."""
    int32 = "required int32 int32 2 2 contiguous"
    assert registered(SPECS["attention_to_ffn"], tmp_path) == [
        "op AttentionToFFN",
        "input x required float16 bfloat16 2 2 contiguous",
        f"input session_id {int32}",
        f"input micro_batch_id {int32}",
        f"input layer_id {int32}",
        f"input expert_ids {int32}",
        f"input expert_rank_table {int32}",
        "input scales optional float32 float32 2 2 contiguous",
        "input active_mask optional bool bool 2 2 contiguous",
        "attr group required String -",
        "attr world_size required Int -",
        "attr ffn_token_info_table_shape required ListInt -",
        "attr ffn_token_data_shape required ListInt -",
        "attr attn_token_info_table_shape required ListInt -",
        "attr moe_expert_num required Int -",
        "attr quant_mode optional Int 0",
        "attr sync_flag optional Int 0",
        "attr ffn_start_rank_id optional Int 0",
        "chip ascend910_93",
        "group group",
    ]


@pytest.mark.parametrize("stem", ["matmul_all_reduce_add_rms_norm", "ffn_to_attention"])
def test_definitions_register_their_spec(stem: str, tmp_path: Path) -> None:
    """Every tensor with one dtype a row, every attribute with its default."""
    spec = SPECS[stem]
    lines = registered(spec, tmp_path)
    assert lines[0] == f"op {spec.ge_type}"
    rows = len(spec.rows)
    for kind, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        found = [line.split() for line in lines if line.startswith(f"{kind} ")]
        assert [line[1] for line in found] == [t.name for t in tensors]
        for line, tensor in zip(found, tensors, strict=True):
            stated = [row.dtypes.get(tensor.name) for row in spec.rows]
            assert line[2] == tensor.kind and len(line[3 : 3 + rows]) == rows
            assert all(dtype in (None, got) for dtype, got in zip(stated, line[3 : 3 + rows], strict=True))
    attrs = [line.split(maxsplit=4) for line in lines if line.startswith("attr ")]
    assert [(a[1], a[2], a[3]) for a in attrs] == [
        (a.name, "required" if a.default is None else "optional", a.type) for a in spec.attrs
    ]
    assert [line for line in lines if line.startswith("chip ")] == [f"chip {CONFIGS[c]}" for c in spec.chips or CONFIGS]


def test_outputs_like_inputs_take_their_shapes() -> None:
    text = infer_shape(SPECS["matmul_all_reduce_add_rms_norm"])
    residual = [t.name for t in SPECS["matmul_all_reduce_add_rms_norm"].inputs].index("residual")
    assert text.count(f"context->GetInputShape({residual})") == 2
    assert f"context->SetOutputDataType(1, context->GetInputDataType({residual}));" in text


def test_what_has_a_kernel_is_an_operator() -> None:
    assert set(WITH_KERNEL) <= set(SPECS)
