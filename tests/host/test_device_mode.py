"""Device mode against a stand-in installation: the installed TorchAir is used as it is, CANN's gaps are refused.

What can be seen without an NPU: which package is loaded, what is registered, which nodes are emitted, which
implementation an eager call takes. The graphs run on our engine, tensors are on the CPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from npu_fused_graph.ops import specs
from tests.host.installed import make_site
from tests.processes import run_code

TYPE = "MatmulAllReduceAddRmsNorm"

PRELUDE = '''
import json, sys
from unittest import mock
import torch, torch_npu, torchair
import torch.distributed as dist

modules = {k: v for k, v in sys.modules.items() if k.partition(".")[0] in ("torchair", "torch_npu")}
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
import npu_fused_graph as nfg
from npu_fused_graph import comm, converters
from npu_fused_graph.ops import ascend
from npu_fused_graph.comm.threads import LocalGroup
from npu_fused_graph.host import mode, native
from npu_fused_graph.ops import matmul_all_reduce_add_rms_norm as op

graphs = []
native.graph_listeners.append(lambda executable: graphs.append([n.type for n in executable.graph.nodes.values()]))
generator = torch.Generator().manual_seed(0)
x, w, r, g = (torch.randn(s, generator=generator).half() for s in ((4, 8), (8, 16), (1, 4, 16), (16,)))
config = torchair.CompilerConfig()
config.experimental_config.pattern_fusion_pass = False  # TorchAir's own patterns need all of torch.ops.npu
said = {}


def compiled(model, backend, *inputs):
    torch._dynamo.reset()
    with torch.no_grad():
        return torch.compile(model, backend=backend, dynamic=False, fullgraph=True)(*inputs)


def error_of(fn, *args, **kwargs):
    try:
        fn(*args, **kwargs)
    except Exception as error:
        return str(error)
    return ""


def block(x, r):
    """Llama's: matmul, all-reduce, add, norm."""
    product = x @ w
    dist.all_reduce(product)
    y = product + r
    wide = y.float()
    return g * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(y.dtype), y
'''

EPILOGUE = """
assert all(sys.modules[name] is module for name, module in modules.items()), "something was replaced"
print(json.dumps(said))
"""

MINDSPEED = """
library = torch.library.Library("mindspeed", "DEF")
library.define(op.SPEC.torch_schema().replace("(Tensor y, Tensor norm_out)", "(Tensor, Tensor)"))
calls = []


def native_kernel(x1, x2, residual, gamma, hcom, **kwargs):
    calls.append(hcom)
    return residual + 1, residual + 2


def meta(x1, x2, residual, *args, **kwargs):
    return torch.empty_like(residual), torch.empty_like(residual)


for key in ("PrivateUse1", "CPU"):  # this stand-in's tensors are CPU tensors
    library.impl(op.SPEC.torch_name, native_kernel, key)
library.impl(op.SPEC.torch_name, meta, "Meta")
"""


EAGER = '''
nfg.npu_trans_quant_param  # registers


def on_npu(overload, *args, **kwargs):
    """The implementation an NPU tensor would reach."""
    return overload.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1), *args, **kwargs)


functional = torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm.default
in_place = torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm_in_place.unaliased
'''


def run(site: Path, torchair: Path, code: str, **options: Any) -> Any:
    output = run_code(PRELUDE + code + EPILOGUE, env=make_site(site, torchair, **options))
    return json.loads(output.splitlines()[-1])


# -- where CANN has all that is needed -------------------------------------------------------------------------

EXISTING_PIPELINE = """
converters.register_all()
said["mode"], said["file"] = mode(), torchair.__file__
said["loaded"] = nfg.load_torchair() is torchair
theirs = torchair.get_npu_backend(compiler_config=config)
decomposed = op.decompose(x, w, r, g, comm.communicator("0"))


def in_their_pipeline(operator):
    results = compiled(lambda x, r: operator(x, w, r, g, "0"), theirs, x, r)
    return [same(results, decomposed), graphs.pop()]


said["ours"] = in_their_pipeline(nfg.npu_mm_all_reduce_add_rms_norm)
"""

WITHOUT_MINDSPEED = """
said["gaps without"] = {stem: gap[0] for stem, gap in converters.gaps("reduce-overhead").items()}

backend = nfg.get_npu_backend(compiler_config=config, min_rows=0)
results = compiled(block, backend, x, r)
said["fusion"] = {
    "equal": same(results, block(x, r)),
    "graph": graphs.pop(),
    "sites": [s.as_dict() for s in nfg.explain(block, x, r, min_rows=0).sites],
}

wanted = op.reference(x, w, r, g, LocalGroup(1).ranks[0])
residual = r.clone()
norm_out = on_npu(in_place, x, w, residual, g, "0")
said["eager"] = {
    "decompose": same(on_npu(functional, x, w, r, g, "0"), wanted),
    "in place": same((residual, norm_out), wanted),
    "bad": error_of(on_npu, functional, x, w, r, g, "0", comm_turn=3),
}
"""

WITH_MINDSPEED = """
said["gaps with"] = {stem: gap[0] for stem, gap in converters.gaps("reduce-overhead").items()}
said["gaps of graph mode"] = converters.gaps()

results = on_npu(functional, x, w, r, g, "0")
said["eager"] |= {
    "native": [torch.equal(results[0], r + 1), torch.equal(results[1], r + 2), calls],
    "checked first": error_of(on_npu, functional, x, w[:4], r, g, "0") != "" and len(calls) == 1,
}
with mock.patch.object(ascend, "hccl_name", lambda group, given: f"HCCL's name of {given}"):
    on_npu(functional, x, w, r, g, "0")
said["group"] = calls.pop()

converters.register_all()
mindspeed = torch.ops.mindspeed.npu_mm_all_reduce_add_rms_norm
said["mindspeed"] = in_their_pipeline(mindspeed)
said["bad"] = error_of(compiled, lambda x, r: mindspeed(x, w, r, g, "0", comm_turn=3), theirs, x, r)
"""

SAME = """
def same(results, wanted):
    return all(torch.allclose(a, b, atol=1e-2) for a, b in zip(results, wanted))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, torchair_folder: Path) -> Any:
    """One process: without MindSpeed's operator first, then with it."""
    site = tmp_path_factory.mktemp("device") / "site"
    facts = run(
        site, torchair_folder, EAGER + SAME + EXISTING_PIPELINE + WITHOUT_MINDSPEED + MINDSPEED + WITH_MINDSPEED
    )
    return facts | {"site": site}


@pytest.mark.xdist_group("device_mode")
class TestComplete:
    def test_the_installed_torchair_is_used(self, said: Any) -> None:
        assert said["mode"] == "device"
        assert said["file"] == str(said["site"] / "torchair" / "__init__.py")
        assert said["loaded"]

    def test_register_all_adds_converters_to_an_existing_pipeline(self, said: Any) -> None:
        """TorchAir's own backend, before ours was ever asked for: our operator, and MindSpeed's once it is there."""
        for name in ("ours", "mindspeed"):
            is_equal, types = said[name]
            assert is_equal, name
            assert types.count(TYPE) == 1, name
        text = "[matmul_all_reduce_add_rms_norm] comm_turn: expected 0 (automatic), got 3"
        assert text in said["bad"], "MindSpeed's operator is checked by our converter"

    def test_fusion(self, said: Any) -> None:
        fusion = said["fusion"]
        assert fusion["equal"]
        assert TYPE in fusion["graph"]
        assert [s["fused"] for s in fusion["sites"]] == [True]

    def test_modes_that_run_op_by_op_need_a_kernel(self, said: Any) -> None:
        """TorchAir's reduce-overhead mode makes no GE graph: fusing pays only where MindSpeed brings a kernel."""
        assert said["gaps without"]["matmul_all_reduce_add_rms_norm"] == "no_eager_kernel"
        assert "matmul_all_reduce_add_rms_norm" not in said["gaps with"]
        family = {spec.stem for spec in specs() if spec.chips == ("Ascend910_93",)}
        assert set(said["gaps of graph mode"]) == family, "which Atlas A3 has, not this chip"

    def test_eager_calls_go_through_decompose(self, said: Any) -> None:
        eager = said["eager"]
        assert eager["decompose"]
        assert eager["in place"]
        assert eager["bad"].startswith("[matmul_all_reduce_add_rms_norm] comm_turn: expected 0 (automatic), got 3")

    def test_eager_calls_go_through_mindspeeds_own_operator(self, said: Any) -> None:
        assert said["eager"]["native"] == [True, True, ["0"]]
        assert said["eager"]["checked first"]
        assert said["group"] == "HCCL's name of 0"


# -- where something is missing --------------------------------------------------------------------------------

UNAVAILABLE = {
    "type not registered": (
        {"missing": (TYPE,)},
        "ge_type_not_registered",
        f"[matmul_all_reduce_add_rms_norm] the installed CANN does not know the GE op type {TYPE}. Install a CANN",
    ),
    "other prototype": (
        {"renamed": {"residual": "x3"}},
        "ge_ir_differs",
        f"[matmul_all_reduce_add_rms_norm] the installed CANN's {TYPE} has the inputs ['x1', 'x2', 'bias', 'x3'",
    ),
    "other chip": (
        {"soc": "Ascend910_9382"},
        "soc",
        "[matmul_all_reduce_add_rms_norm] device: expected Ascend910Bx (Atlas A2), got 'Ascend910_9382'",
    ),
}


@pytest.mark.parametrize(
    "name",
    ["other prototype", *(pytest.param(n, marks=pytest.mark.slow) for n in UNAVAILABLE if n != "other prototype")],
)
def test_what_cann_does_not_have_is_refused_and_the_model_still_compiles(
    name: str, tmp_path: Path, torchair_folder: Path
) -> None:
    options, reason, text = UNAVAILABLE[name]
    code = """
backend = nfg.get_npu_backend(compiler_config=config, min_rows=0)
results = compiled(block, backend, x, r)
said["equal"] = [torch.allclose(a, b, atol=1e-2) for a, b in zip(results, block(x, r))]
said["graphs"] = graphs
said["sites"] = [s.as_dict() for s in nfg.explain(block, x, r, min_rows=0).sites]
said["error"] = error_of(compiled, lambda x, r: nfg.npu_mm_all_reduce_add_rms_norm(x, w, r, g, "0"), backend, x, r)
said["eager error"] = error_of(on_npu, functional, x, w, r, g, "0")
"""
    said = run(tmp_path / "site", torchair_folder, EAGER + code, **options)
    assert said["equal"] == [True, True]
    assert TYPE not in said["graphs"][0]
    assert "HcomAllReduce" in said["graphs"][0]
    (found,) = said["sites"]
    assert (found["fused"], found["reason"]) == (False, reason)
    assert found["cure"]
    assert text in said["error"], said["error"]
    assert said["eager error"].startswith(text) if name == "other chip" else said["eager error"] == ""
