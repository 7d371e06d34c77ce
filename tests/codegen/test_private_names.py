"""The list of private names is read from the source."""

from __future__ import annotations

import json

import pytest

from npu_fused_graph.codegen.private_names import private_names

FILE, RUN = "npu_fused_graph/a.py", "npu_fused_graph/host/standin/a.py"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch\ntorch._a.b()", ["torch._a.b"]),
        ("import torch\ntorch.a.b", []),
        ("import torch\nclass A(torch._a.B): pass", ["torch._a.B"]),
        ("from torch._a import b, c as d\nd.e", ["torch._a.b", "torch._a.c.e"]),
        ("from torch.a import _b as b\n@b.c\ndef f(x: b.d): ...", ["torch.a._b.c", "torch.a._b.d"]),
        ("from torch.fx.experimental.a import b", ["torch.fx.experimental.a.b"]),
        ("import torch\ntorch.__version__", []),
        ("def f():\n    import torch\n    def g():\n        return lambda: torch._a", ["torch._a"]),
        ("def f():\n    import torch as t\ndef g(t):\n    t._a", []),
        ("m = import_module('torchair.a')\nm.b = m.c", ["torchair.a.b", "torchair.a.c"]),
        ("m: Any = importlib.import_module('torchair.a')\ngetattr(m, 'b')", ["torchair.a"]),
        ("importlib.import_module('torchair.a._b')", ["torchair.a._b"]),
        ("import torchair.core._torchair", []),
        ("from .torch import _a\nimport numpy\nnumpy._b", []),
    ],
)
def test_names(source: str, names: list[str]) -> None:
    assert json.loads(private_names({FILE: source})) == {"always": names, "run": [], "npugraph_ex": []}


def test_what_only_run_needs() -> None:
    here = "import torch\ntorch._a\ntorch._b\nimport torchair._c"
    found = json.loads(private_names({FILE: "import torch\ntorch._a", RUN: here}))
    assert found == {"always": ["torch._a", "torchair._c"], "run": ["torch._b"], "npugraph_ex": []}


def test_packages_that_are_alike_and_npugraph_ex() -> None:
    here = "m = import_module(f'{package}.a')\nm._b\nimport_module(f'{package}.{x}')\nimport_module('npugraph_ex.c')"
    found = json.loads(private_names({RUN: here}))
    assert found == {"always": ["torchair.a._b"], "run": [], "npugraph_ex": ["npugraph_ex.a._b", "npugraph_ex.c"]}
