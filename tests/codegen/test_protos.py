"""ge_op_protos/: the headers compile, read back to their SPECs, and are CANN's public IR field by field."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from npu_fused_graph.ir.reg_op import IrDef, read_ir_defs
from npu_fused_graph.ops import specs
from npu_fused_graph.spec import OpSpec

ROOT = Path(__file__).parents[2]
HALF = ("float16", "bfloat16")

Tensors = tuple[tuple[str, str, tuple[str, ...]], ...]
Attrs = tuple[tuple[str, str, str | None], ...]

_MM_INPUTS: Tensors = (
    ("x1", "required", (*HALF, "int8")),
    ("x2", "required", (*HALF, "int8", "int4")),
    ("bias", "optional", (*HALF, "int32")),
    ("residual", "required", HALF),
    ("gamma", "required", HALF),
    ("antiquant_scale", "optional", HALF),
    ("antiquant_offset", "optional", HALF),
    ("dequant_scale", "optional", (*HALF, "uint64")),
)
_MM_ATTRS: Attrs = (
    ("group", "String", None),
    ("reduce_op", "String", "sum"),
    ("is_trans_a", "Bool", "false"),
    ("is_trans_b", "Bool", "false"),
    ("comm_turn", "Int", "0"),
    ("antiquant_group_size", "Int", "0"),
    ("epsilon", "Float", "1e-06"),
)
_SEQUENCES: Tensors = tuple(
    (name, "optional", ("int64",))
    for name in ("prefix", "actual_seq_qlen", "actual_seq_kvlen", "q_start_idx", "kv_start_idx")
)


def _attention_attrs(limit: str) -> Attrs:
    return (
        ("scale_value", "Float", "1"), ("keep_prob", "Float", "1"), ("pre_tockens", "Int", limit),
        ("next_tockens", "Int", limit), ("head_num", "Int", None), ("input_layout", "String", None),
        ("inner_precise", "Int", "0"), ("sparse_mode", "Int", "0"), ("pse_type", "Int", "1"),
    )  # fmt: skip


CANN: dict[str, tuple[Tensors, Tensors, Attrs]] = {
    "AttentionToFFN": (
        (
            ("x", "required", HALF), ("session_id", "required", ("int32",)), ("micro_batch_id", "required", ("int32",)),
            ("layer_id", "required", ("int32",)), ("expert_ids", "required", ("int32",)),
            ("expert_rank_table", "required", ("int32",)), ("scales", "optional", ("float32",)),
            ("active_mask", "optional", ("bool",)),
        ),
        (),
        (
            ("group", "String", None), ("world_size", "Int", None), ("ffn_token_info_table_shape", "ListInt", None),
            ("ffn_token_data_shape", "ListInt", None), ("attn_token_info_table_shape", "ListInt", None),
            ("moe_expert_num", "Int", None), ("quant_mode", "Int", "0"), ("sync_flag", "Int", "0"),
            ("ffn_start_rank_id", "Int", "0"),
        ),
    ),
    "FFNToAttention": (
        (
            ("x", "required", HALF), ("session_ids", "required", ("int32",)),
            ("micro_batch_ids", "required", ("int32",)),
            ("token_ids", "required", ("int32",)), ("expert_offsets", "required", ("int32",)),
            ("actual_token_num", "required", ("int64",)), ("attn_rank_table", "optional", ("int32",)),
        ),
        (),
        (
            ("group", "String", None), ("world_size", "Int", None), ("token_info_table_shape", "ListInt", None),
            ("token_data_shape", "ListInt", None),
        ),
    ),
    "FfnWorkerScheduler": (
        (("schedule_context", "required", ("int8",)),),
        (("schedule_context", "output", ("int8",)),),
        (("sync_group_size", "Int", "1"), ("execute_mode", "Int", "0")),
    ),
    "AttentionWorkerScheduler": (
        (("schedule_context", "required", ("int8",)),), (("schedule_context", "output", ("int8",)),), ()
    ),
    "FfnWorkerBatching": (
        (("schedule_context", "required", ("int8",)),),
        (
            ("y", "output", ("int8", *HALF)), ("group_list", "output", ("int64",)),
            ("session_ids", "output", ("int32",)),
            ("micro_batch_ids", "output", ("int32",)), ("token_ids", "output", ("int32",)),
            ("expert_offsets", "output", ("int32",)), ("dynamic_scale", "output", ("float32",)),
            ("actual_token_num", "output", ("int64",)),
        ),
        (
            ("expert_num", "Int", None), ("max_out_shape", "ListInt", None), ("token_dtype", "Int", "0"),
            ("need_schedule", "Int", "0"), ("layer_num", "Int", "0"),
        ),
    ),
    "AttentionWorkerCombine": (
        (
            ("schedule_context", "required", ("int8",)), ("expert_scales", "required", ("float32",)),
            ("layer_id", "required", ("int32",)),
        ),
        (("y", "output", HALF), ("next_layer_id", "output", ("int32",))),
        (("hidden_size", "Int", "0"), ("token_dtype", "Int", "0"), ("need_schedule", "Int", "0")),
    ),
    "FlashAttentionScore": (
        (
            ("query", "required", HALF), ("key", "required", HALF), ("value", "required", HALF),
            ("real_shift", "optional", HALF), ("drop_mask", "optional", ("uint8",)), ("padding_mask", "optional", HALF),
            ("atten_mask", "optional", ("bool", "uint8")), *_SEQUENCES,
        ),
        (
            ("softmax_max", "output", ("float32",)), ("softmax_sum", "output", ("float32",)),
            ("softmax_out", "output", HALF), ("attention_out", "output", HALF),
        ),
        _attention_attrs("2147483647"),
    ),
    "FlashAttentionScoreGrad": (
        (
            ("query", "required", HALF), ("key", "required", HALF), ("value", "required", HALF),
            ("dy", "required", HALF), ("pse_shift", "optional", HALF), ("drop_mask", "optional", ("uint8",)),
            ("padding_mask", "optional", HALF), ("atten_mask", "optional", ("bool", "uint8")),
            ("softmax_max", "optional", ("float32",)), ("softmax_sum", "optional", ("float32",)),
            ("softmax_in", "optional", HALF), ("attention_in", "optional", HALF), *_SEQUENCES,
        ),
        (("dq", "output", HALF), ("dk", "output", HALF), ("dv", "output", HALF), ("dpse", "output", HALF)),
        _attention_attrs("65536"),
    ),
    "GroupedMatMulAllReduce": (
        (
            ("x", "dynamic", HALF), ("weight", "dynamic", HALF),
            ("bias", "dynamic", ("float16", "float32")), ("group_list", "optional", ("int64",)),
        ),
        (("y", "dynamic_output", HALF),),
        (("splitItem", "Int", "0"), ("group", "String", None), ("reduceOp", "String", "sum"), ("commTurn", "Int", "0")),
    ),
    "MatmulAllReduceAddRmsNorm": (
        _MM_INPUTS, (("y", "output", HALF), ("norm_out", "output", HALF)), _MM_ATTRS
    ),
    "InplaceMatmulAllReduceAddRmsNorm": (
        _MM_INPUTS, (("residual", "output", HALF), ("norm_out", "output", HALF)), _MM_ATTRS
    ),
    "TransQuantParamV2": (
        (("scale", "required", ("float32",)), ("offset", "optional", ("float32",))),
        (("y", "output", ("uint64",)),),
        (("round_mode", "Int", "0"),),
    ),
}  # fmt: skip
"""Inputs, outputs and attributes in order, as CANN 8.1's and the current public prototypes have them."""


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensors, Tensors, Attrs]]:
    """What the compiled headers say of themselves."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    folder = tmp_path_factory.mktemp("protos")
    headers = sorted((ROOT / "ge_op_protos").glob("*_proto.h"))
    assert [h.name for h in headers] == sorted(f"{spec.stem}_proto.h" for spec in specs())
    # twice each: the guards hold
    source = "".join(f'#include "{h.name}"\n' for h in [*headers, *headers]) + "int main() { return 0; }\n"
    (folder / "main.cpp").write_text(source)
    double = Path(__file__).parent / "reg_op_double"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{double}", f"-I{ROOT / 'ge_op_protos'}"]
    program = folder / "main"
    subprocess.run(["g++", *flags, "-o", str(program), str(folder / "main.cpp")], check=True, timeout=120)
    lines = subprocess.run([str(program)], check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    rows = [line.split("\t") for line in lines]
    return {op_type: _read([rest for first, *rest in rows if first == op_type]) for op_type in CANN}


def _read(rows: list[list[str]]) -> tuple[Tensors, Tensors, Attrs]:
    tensors = [(name, kind, tuple(dtypes)) for kind, name, *dtypes in rows if kind != "attr"]
    attrs = [(name, rest[0], rest[1] if len(rest) > 1 else None) for kind, name, *rest in rows if kind == "attr"]
    assert attrs.pop() == ("", "end", None)
    outputs = [t for t in tensors if "output" in t[1]]
    return tuple(t for t in tensors if t not in outputs), tuple(outputs), tuple(attrs)


@pytest.mark.parametrize("op_type", list(CANN))
def test_headers_are_canns_ir(op_type: str, compiled: dict[str, tuple[Tensors, Tensors, Attrs]]) -> None:
    assert compiled[op_type] == CANN[op_type]


@pytest.mark.parametrize("spec", specs(), ids=lambda s: s.stem)
def test_headers_read_back_to_the_spec(spec: OpSpec, compiled: dict[str, tuple[Tensors, Tensors, Attrs]]) -> None:
    inputs, outputs, attrs = compiled[spec.ge_type]
    assert [(n, k) for n, k, _ in inputs] == [(t.name, t.kind) for t in spec.inputs]
    assert [n for n, _, _ in outputs] == [t.name for t in spec.outputs]
    for name, _, dtypes in (*inputs, *outputs):
        assert set(dtypes) == {row.dtypes[name] for row in spec.rows}
    assert [(n, t, d is None) for n, t, d in attrs] == [(a.name, a.type, a.default is None) for a in spec.attrs]
    for (_, kind, text), attr in zip(attrs, spec.attrs, strict=True):
        if text is not None:
            read = {"Bool": lambda t: t == "true", "Int": int, "Float": float, "String": str}[kind](text)
            assert read == pytest.approx(attr.default) if kind == "Float" else read == attr.default


def test_every_operator_is_in_the_table() -> None:
    assert {spec.ge_type for spec in specs()} == set(CANN)


@pytest.mark.parametrize("ge_type", ["FlashAttentionScore", "FlashAttentionScoreGrad"])
def test_torchairs_own_text_of_attention(ge_type: str, torchair_folder: Path) -> None:
    """It is older: without pse_type, and with another default of inner_precise."""
    theirs = read_ir_defs(torchair_folder)[ge_type]
    (ours,) = (s.ir_def() for s in specs() if s.ge_type == ge_type)
    assert theirs.inputs == ours.inputs
    assert theirs.outputs == ours.outputs
    assert {a.name: (a.type, a.default) for a in ours.attrs if a.name not in ("inner_precise", "pse_type")} == {
        a.name: (a.type, a.default) for a in theirs.attrs if a.name != "inner_precise"
    }


def test_torchairs_own_text_of_the_packing_op(torchair_folder: Path) -> None:
    """TorchAir has a REG_OP text of this one; it gives int64 where CANN's header has uint64."""
    theirs: IrDef = read_ir_defs(torchair_folder)["TransQuantParamV2"]
    (spec,) = (s for s in specs() if s.ge_type == "TransQuantParamV2")
    ours = spec.ir_def()
    assert theirs.inputs == ours.inputs
    assert [(a.name, a.type) for a in theirs.attrs] == [(a.name, a.type) for a in ours.attrs]
    assert [o.name for o in theirs.outputs] == [o.name for o in ours.outputs]
