"""Graph texts whatever the order of inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from npu_fused_graph.testing import assert_same_graph, in_order_of_use

ONE = """graph a
x = Data() {index=0} -> y:float16[2]
w = Data() {index=1} -> y:float16[3]
n = Add(x1=w:0, x2=x:0) -> y
graph b
x = Data() {index=0} -> y:int64[]
n = Neg(x=x:0)
"""
OTHER = """graph a
p = Data() {index=0} -> y:float16[3]
w = Data() {index=1} -> y:float16[2]
n = Add(x1=p:0, x2=w:0) -> y
graph b
q = Data() {index=0} -> y:int64[]
n = Neg(x=q:0)
"""


def test_the_order_of_inputs_and_their_names_do_not_count(tmp_path: Path) -> None:
    assert in_order_of_use(ONE) == in_order_of_use(OTHER) == in_order_of_use(in_order_of_use(ONE))
    assert in_order_of_use(ONE).splitlines()[1:4] == [
        "input_0 = Data() {index=0} -> y:float16[3]",
        "input_1 = Data() {index=1} -> y:float16[2]",
        "n = Add(x1=input_0:0, x2=input_1:0) -> y",
    ]
    (tmp_path / "golden").write_text(in_order_of_use(ONE))
    assert_same_graph(OTHER, tmp_path / "golden")


@pytest.mark.parametrize(
    ("old", "new"),
    [("x1=w:0, x2=x:0", "x1=x:0, x2=w:0"), ("float16[3]", "float16[4]"), ("x2=x:0", "x2=w:0"), ("Neg", "Abs")],
)
def test_all_else_counts(tmp_path: Path, old: str, new: str) -> None:
    (tmp_path / "golden").write_text(in_order_of_use(ONE))
    with pytest.raises(AssertionError, match="the graph changed"):
        assert_same_graph(ONE.replace(old, new), tmp_path / "golden")


def test_inputs_nobody_uses_are_kept() -> None:
    text = in_order_of_use("graph a\nb = Data() {index=0} -> y:int8[1]\na = Data() {index=1} -> y:bool[]\n")
    assert text == "graph a\ninput_0 = Data() {index=0} -> y:bool[]\ninput_1 = Data() {index=1} -> y:int8[1]\n"
