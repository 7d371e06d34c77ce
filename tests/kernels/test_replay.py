"""Recorded dispatches executed again: by the kernel, all ranks in one launch, against what another program says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from npu_fused_graph.ops.attention_to_ffn import SPEC
from tests.kernels.dispatch_case import kernel
from tests.ops.dispatch_model import Plan, Window, call_of, dispatch, fresh, plan_of
from tests.processes import free_port, run_command, run_python
from tests.scripts import script

OP = SPEC.stem


def _outputs(plan: Plan, call: dict[str, Any], windows: dict[int, Window]) -> dict[str, torch.Tensor]:
    """What arrived, taken from the model's windows."""
    is_quantised = call["quant_mode"] == 2
    session, micro_batch = int(call["session_id"]), int(call["micro_batch_id"])
    mask = call["active_mask"]
    active = plan.tokens if mask is None else int(mask.sum())
    size = plan.hidden * (1 if is_quantised else 2)
    targets = torch.empty(active, plan.slots, dtype=torch.int32)
    values = torch.empty(active, plan.slots, size, dtype=torch.uint8)
    factors = torch.empty(active, plan.slots, 4, dtype=torch.uint8)
    for t in range(active):
        for j in range(plan.slots):
            expert = int(call["expert_ids"][0, t, j]) if j < plan.k else plan.experts + j - plan.k
            target = plan.rows[expert][session % len(plan.rows[expert])][0]
            place = ((session * plan.micro_batches + micro_batch) * plan.tokens + t) * plan.slots + j
            at = plan.data_at + place * plan.record * (1 if is_quantised else 2)
            behind = at + (plan.hidden + 31) // 32 * 32
            targets[t, j] = target
            values[t, j] = torch.from_numpy(windows[target][at : at + size].copy())
            factors[t, j] = torch.from_numpy(windows[target][behind : behind + 4].copy())
    found = {"targets": targets, "values": values.view(torch.int8 if is_quantised else call["x"].dtype)}
    return found | ({"factors": factors.view(torch.float32)[..., 0]} if is_quantised else {})


def _write(
    folder: Path, *, is_quantised: bool, has_scales: bool = False, is_async: bool = False, is_masked: bool = False
) -> Plan:
    """A record of one turn of two attention ranks, as another program would write it."""
    generator = numpy.random.default_rng(5)
    plan = plan_of(generator, sessions=2, ffn=2, is_quantised=is_quantised, tokens=5, start=1)
    windows = fresh(plan, generator, is_quantised=is_quantised)
    for session, r in enumerate(plan.attention_ranks):
        call = call_of(
            plan, generator, session, dtype=torch.bfloat16, is_quantised=is_quantised, has_scales=has_scales,
            is_async=is_async, is_masked=is_masked,
        )  # fmt: skip
        dispatch(windows, plan, r, call)
        outputs = _outputs(plan, call, windows)
        inputs = {t.name: call[t.name] for t in SPEC.inputs}
        place = folder / f"rank_{10 + r}" / f"00000_{OP}"
        place.parent.mkdir(parents=True)
        save_file({name: x for name, x in inputs.items() if x is not None}, f"{place}.inputs.safetensors")
        save_file(outputs, f"{place}.outputs.safetensors")
        facts = {
            "format": 1, "op": OP, "ge_type": SPEC.ge_type, "node": "", "rank": 10 + r,
            "group": {"name": "7", "ranks": [10, 11, 12, 13], "turn": 0},
            "attrs": {a.name: call.get(a.name, "a_name_of_hccl") for a in SPEC.attrs},
            "inputs": {
                name: None if x is None else {
                    "dtype": str(x.dtype).removeprefix("torch."), "shape": list(x.shape), "is_transposed": False
                }
                for name, x in inputs.items()
            },
            "outputs": list(outputs),
        }  # fmt: skip
        place.with_suffix(".json").write_text(json.dumps(facts))
    (folder / "run.json").write_text("{}")
    return plan


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    kernel(torch.bfloat16)


def _replay(folder: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    code, out, err = run_command("replay", "--json", "--kernels", "sim", *options, str(folder))
    return code, json.loads(out) if out else {}, err


@pytest.mark.parametrize("form", [(False,), (True, True, True, True)])
def test_every_implementation(form: tuple[bool, ...], tmp_path: Path) -> None:
    _write(tmp_path, **dict(zip(("is_quantised", "has_scales", "is_async", "is_masked"), form, strict=False)))
    code, facts, err = _replay(tmp_path, "--method", "reference", "--method", "engine")
    assert code == 0, err
    (call,) = facts["calls"]
    assert call["ranks"] == [10, 13], "FFN ranks, 1 and 2 of the group, call nothing"
    assert [(c["method"], c["max_error"], c["is_close"]) for c in call["comparisons"]] == [
        (name, 0, True) for name in ("reference", "engine", "kernel")
    ]


@pytest.mark.parametrize("name", ["targets", "values", "factors"])
def test_another_number(name: str, tmp_path: Path) -> None:
    _write(tmp_path, is_quantised=True)
    path = tmp_path / "rank_13" / f"00000_{OP}.outputs.safetensors"
    outputs = load_file(path)
    outputs[name][-1, -1] += 1
    save_file(outputs, path)
    code, facts, _ = _replay(tmp_path, "--method", "reference")
    assert code == 1
    assert [(c["method"], c["is_close"]) for c in facts["calls"][0]["comparisons"]] == [
        ("reference", False), ("kernel", False),
    ]  # fmt: skip


def test_fewer_ranks_than_send(tmp_path: Path) -> None:
    _write(tmp_path, is_quantised=False)
    (tmp_path / "rank_13" / f"00000_{OP}.json").unlink()
    code, facts, _ = _replay(tmp_path)
    assert code == 1
    assert (facts["calls"][0]["missing"], facts["calls"][0]["comparisons"]) == ([13], [])


def _change(folder: Path, **attrs: Any) -> None:
    path = folder / "rank_13" / f"00000_{OP}.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"attrs": facts["attrs"] | attrs}))


def test_ranks_with_other_tables(tmp_path: Path) -> None:
    plan = _write(tmp_path, is_quantised=False)
    shape = plan.shapes["ffn_token_data_shape"]
    _change(tmp_path, ffn_token_data_shape=[*shape[:-1], shape[-1] + 16])
    code, _, err = _replay(tmp_path)
    assert code == 1
    line = err.splitlines()[-1]
    assert line.startswith(f"[replay] {tmp_path}") and "expected ffn_token_data_shape" in line
    assert line.endswith("Record both ranks in one run.")


def test_ranks_with_other_types(tmp_path: Path) -> None:
    _write(tmp_path, is_quantised=False)
    path = tmp_path / "rank_13" / f"00000_{OP}.inputs.safetensors"
    inputs = load_file(path)
    save_file(inputs | {"x": inputs["x"].half()}, path)
    code, _, err = _replay(tmp_path)
    assert code == 1
    wanted = f"[{OP}] x: expected one dtype on all ranks of a launch, got bfloat16 and float16."
    assert err.splitlines()[-1] == wanted


def test_two_ranks_in_one_place(tmp_path: Path) -> None:
    """Only a launch of all ranks together can see it."""
    _write(tmp_path, is_quantised=False)
    path = tmp_path / "rank_13" / f"00000_{OP}.inputs.safetensors"
    other = load_file(tmp_path / "rank_10" / f"00000_{OP}.inputs.safetensors")
    save_file(load_file(path) | {name: other[name] for name in ("session_id", "micro_batch_id")}, path)
    code, _, err = _replay(tmp_path)
    assert code == 1
    assert "[Sync2]" in err.splitlines()[-1], err


@pytest.mark.slow
def test_what_run_records(tmp_path: Path) -> None:
    """A script in torch_npu's own words, whose FFN rank takes what it is sent while the sender's record is made."""
    command = ("run", "--json", "--record", str(tmp_path / "calls"), script("afd_loop.py"), str(free_port()), "graph")
    found = run_python("-m", "npu_fused_graph.commands.cli", *command)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stderr.splitlines()[-1])["recorded"] == 2, "what the other operators do is not kept"
    for step in range(2):
        outputs = load_file(tmp_path / "calls" / "rank_1" / f"0000{step}_{OP}.outputs.safetensors")
        rows = torch.tensor([1.0 + step, 10.0 + step]).half()[:, None, None].expand(2, 2, 1024)
        assert torch.equal(outputs["values"], rows), "two tokens, to a routed expert and the shared one"
        assert outputs["targets"].tolist() == [[0, 0], [0, 0]]
    code, facts, err = _replay(tmp_path / "calls")
    assert code == 0, err
    assert [[c["method"] for c in call["comparisons"]] for call in facts["calls"]] == [["kernel"]] * 2
