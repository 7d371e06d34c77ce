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

TORCH_NPUS_PARTS = """
parts = torch.library.Library("npu", "FRAGMENT")
parts.define(
    "npu_mm_all_reduce_base(Tensor x1, Tensor x2, str hcom, *, str reduce_op='sum', Tensor? bias=None, "
    "Tensor? antiquant_scale=None, Tensor? antiquant_offset=None, Tensor? x3=None, Tensor? dequant_scale=None, "
    "Tensor? pertoken_scale=None, int antiquant_group_size=0, int comm_turn=0) -> Tensor"
)
parts.define("npu_add_rms_norm(Tensor x1, Tensor x2, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor, Tensor)")
parts_called = []


def base(x1, x2, hcom, **options):
    parts_called.append(hcom)
    return x1 @ x2


def add_rms_norm(x1, x2, gamma, epsilon=1e-06):
    total = x1 + x2
    wide = total.float()
    rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return (wide * rstd).to(total.dtype) * gamma, rstd, total


for key in ("PrivateUse1", "CPU"):
    parts.impl("npu_mm_all_reduce_base", base, key)
    parts.impl("npu_add_rms_norm", add_rms_norm, key)
said["gaps with parts"] = {stem: gap[0] for stem, gap in converters.gaps("reduce-overhead").items()}
said["target with parts"] = converters.lowered_to("reduce-overhead").get(op.SPEC.stem)
said["eager"]["parts"] = [same(on_npu(functional, x, w, r, g, "0"), wanted), parts_called]
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

SCHEMA = (
    "npu_fusion_attention_v2(Tensor query, Tensor key, Tensor value, int head_num, str input_layout, *, "
    "Tensor? pse=None, Tensor? padding_mask=None, Tensor? atten_mask=None, Tensor? query_rope=None, "
    "Tensor? key_rope=None, float scale=1., float keep_prob=1., int pre_tokens=2147483647, "
    "int next_tokens=2147483647, int inner_precise=0, int[]? prefix=None, int[]? actual_seq_qlen=None, "
    "int[]? actual_seq_kvlen=None, int sparse_mode=0, bool gen_mask_parallel=True, bool sync=False, int pse_type=1, "
    "int[]? q_start_idx=None, int[]? kv_start_idx=None) -> (Tensor, Tensor, Tensor, Tensor, int, int, int)"
)
"""op-plugin's, without what newer versions have behind."""

ATTENTION = '''
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

torch.utils.rename_privateuse1_backend("npu")
sys.modules["torch.npu"] = torch.npu
torch.npu._lazy_init = lambda: None
calls = []
attention = nfg.ascend_flash_attention


class OnNpu(torch.Tensor):
    """A CPU tensor that says it is on an NPU."""

    @staticmethod
    def __new__(cls, inner):
        self = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device="npu:0"
        )
        self.inner = inner
        return self

    def contiguous(self):
        """torch's own asks for the guard of a device it is not built for."""
        return OnNpu(self.inner.contiguous())

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = pytree.tree_map_only(OnNpu, lambda x: x.inner, (args, kwargs or {}))
        if func.namespace == "npu":
            defaults = {a.name: a.default_value for a in func._schema.arguments if a.kwarg_only}
            calls.append((args, defaults | kwargs))
            zeros = torch.zeros(1)
            return cls(args[2].clone()), zeros, zeros, zeros, 0, 0, 0
        return pytree.tree_map_only(torch.Tensor, cls, func(*args, **kwargs))


class Factories(TorchDispatchMode):
    """What is made on an NPU is such a tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if getattr(kwargs.get("device"), "type", "") != "npu":
            return func(*args, **kwargs)
        return OnNpu(func(*args, **kwargs | {"device": "cpu"}))


def told(*args, **kwargs):
    """What torch_npu's operator is called with."""
    args = pytree.tree_map_only(torch.Tensor, OnNpu, args)
    with Factories():
        result = attention(*args, **kwargs)
    assert result.device.type == "npu"
    (given, named), = calls
    calls.clear()
    mask, pse = named["atten_mask"], named["pse"]
    unused = {"gen_mask_parallel": True, "sync": False, "sparse_mode": 0}
    del named["atten_mask"], named["pse"]
    shown = {k: v for k, v in named.items() if v is not None and unused.get(k) != v}
    shown["heads and layout"] = given[3:]
    if mask is not None:
        # torch_npu's mask has a row per query
        rows = mask[2, :6].tolist(), mask[9].sum().item()
        shown["mask"] = [str(mask.dtype), list(mask.shape), mask.is_contiguous(), *rows]
    return shown | {"pse": None if pse is None else [list(pse.shape), pse[0, :, 0, 3].tolist()]}


q = torch.zeros(1, 2, 256, 16).half()
bits = torch.zeros(2 * 256 * 256 // 8, dtype=torch.uint8)
causal = torch.ones(256, 256).tril(-1).half()  # by key
row = torch.arange(256.0).half()
said["old"] = error_of(told, q, q, q)
library = torch.library.Library("npu", "FRAGMENT")
library.define(SCHEMA)
said["plain"] = told(q, q, q, None, None, 0.5, 2.0, 2)
said["causal"] = told(q, q, q, causal, None, None, 0.088, 2, 0, 1.0, 65536, 1, 0, -1)
said["window"] = told(q, q, q, causal * 0, head_num=2, pre_tokens=2, next_tokens=3, keep_prob=0.9)
bsh = q.transpose(1, 2).flatten(2)
said["alibi"] = told(bsh, bsh, bsh, None, row.expand(1, 1, 1, 256), head_num=2, io_layout="BSH")
said["alibi 3-D"] = told(q, q, q, None, torch.stack([row, row + 1])[None], head_num=2)
said["bits"] = error_of(told, q, q, q, None, None, bits, 1.0, 2, 0, 0.5, 9, 1)
said["checked first"] = [error_of(told, q, q, q, causal[:8], head_num=2), len(calls)]
'''

SAME = """
def same(results, wanted):
    return all(torch.allclose(a, b, atol=1e-2) for a, b in zip(results, wanted))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, torchair_folder: Path) -> Any:
    """One process: without MindSpeed's operator first, then with it."""
    site = tmp_path_factory.mktemp("device") / "site"
    parts = EAGER, SAME, EXISTING_PIPELINE, WITHOUT_MINDSPEED, TORCH_NPUS_PARTS, MINDSPEED, WITH_MINDSPEED, ATTENTION
    facts = run(site, torchair_folder, "".join(parts).replace("SCHEMA", repr(SCHEMA)))
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

    def test_where_torch_npu_has_both_halves_they_are_called(self, said: Any) -> None:
        """Without MindSpeed: matmul + all-reduce and add + norm, which are no slower than what was fused."""
        assert "matmul_all_reduce_add_rms_norm" not in said["gaps with parts"]
        assert said["target with parts"] == "MatmulAllReduce + AddRmsNorm"
        assert said["eager"]["parts"] == [True, ["0"]]

    def test_eager_calls_go_through_decompose(self, said: Any) -> None:
        eager = said["eager"]
        assert eager["decompose"]
        assert eager["in place"]
        assert eager["bad"].startswith("[matmul_all_reduce_add_rms_norm] comm_turn: expected 0 (automatic), got 3")

    def test_eager_calls_go_through_mindspeeds_own_operator(self, said: Any) -> None:
        assert said["eager"]["native"] == [True, True, ["0"]]
        assert said["eager"]["checked first"]
        assert said["group"] == "HCCL's name of 0"


NO_LIMIT = 2**31 - 1


@pytest.mark.xdist_group("device_mode")
class TestAttention:
    """Eager calls of ascend_flash_attention are torch_npu's own operator's."""

    def test_without_a_mask_nothing_is_limited(self, said: Any) -> None:
        assert said["plain"] == {
            "scale": 1.0, "keep_prob": 1.0, "pre_tokens": NO_LIMIT, "next_tokens": NO_LIMIT, "inner_precise": 0,
            "pse_type": 1, "pse": None, "heads and layout": [2, "BNSD"],
        }  # fmt: skip

    def test_a_mask_is_bool_by_query_and_limits_do_not_count_the_query_itself(self, said: Any) -> None:
        found = said["causal"]
        assert found.pop("mask") == ["torch.bool", [256, 256], True, [False] * 3 + [True] * 3, 246]
        assert found == {
            "scale": 0.088, "keep_prob": 1.0, "pre_tokens": 65535, "next_tokens": 0, "inner_precise": 2,
            "pse_type": 1, "pse": None, "heads and layout": [2, "BNSD"],
        }  # fmt: skip

    def test_limits_are_written_into_the_mask(self, said: Any) -> None:
        """The device looks at them by whole tiles. Query 2 sees 1 to 4, query 9 sees 8 to 11."""
        found = said["window"]
        assert found["mask"][3:] == [[True, False, False, False, False, True], 256 - 4]
        assert (found["pre_tokens"], found["next_tokens"], found["keep_prob"]) == (1, 2, 0.9)

    def test_alibi_stands_for_every_head_and_is_added_after_scaling(self, said: Any) -> None:
        found = said["alibi"]
        assert found["pse"] == [[1, 2, 1, 256], [3.0, 3.0]]
        assert (found["pse_type"], found["heads and layout"]) == (0, [2, "BSH"])
        assert said["alibi 3-D"]["pse"] == [[1, 2, 1, 256], [3.0, 4.0]]

    def test_what_it_cannot_do_is_refused(self, said: Any) -> None:
        expected = "[flash_attention_score] device: expected"
        lacking = f"{expected} a torch_npu with npu_fusion_attention_v2, got none. Update torch_npu"
        assert said["old"].startswith(lacking)
        assert said["bits"].startswith(f"{expected} no drop_mask in an eager call, got one. Leave it out")
        text, calls = said["checked first"]
        assert text.startswith("[flash_attention_score] atten_mask: expected shape")
        assert calls == 0


# -- where something is missing --------------------------------------------------------------------------------

UNAVAILABLE = {
    "type not registered": (
        {"missing": (TYPE, "MatmulAllReduce")},
        "ge_type_not_registered",
        f"[matmul_all_reduce_add_rms_norm] the installed CANN does not know the GE op type {TYPE}. Install a CANN",
    ),
    "other prototype": (
        {"renamed": {"residual": "x3"}, "missing": ("AddRmsNorm",)},
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
