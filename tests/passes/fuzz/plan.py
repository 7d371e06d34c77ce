"""What a random program consists of: plain data, drawn from a seed, that a shrinker can make smaller."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal

from tests.passes.fuzz.faults import FAULTS
from tests.passes.fuzz.linears import LINEARS, REDUCES
from tests.passes.fuzz.norms import LEGAL_NORMS, NORMS

Capture = Literal["aot", "plain"]

EDGES = ("x", "product", "reduced", "residual", "sum", "norm")
NOOPS = (
    "view_same", "flat_and_back", "unsqueeze_squeeze", "clone", "detach", "cast", "dropout", "contiguous", "alias",
)  # fmt: skip
READERS = (
    "twice",
    "relu",
    "view",
    "wide",
    "second_norm",
    "norm_twice",
    "norm_flat",
    "between",
    "late_residual",
    "late_gamma",
)
RESIDUALS = ("input", "scaled", "sum_of_two", "part_of_input", "part_of_other", "previous_sum", "previous_norm")
XS = ("input", "previous_norm", "previous_activation")
SCHEDULES = ("apart", "hoisted_product", "late_norms", "first_between", "nested")
EXTRAS = ("norm", "reduce", "reduce_max", "gather", "elementwise", "dead_code", "matmul")


@dataclass(frozen=True, slots=True)
class SitePlan:
    """One site. Names are keys of the tables.

    bias: "none", "linear", "divided" by the number of ranks, or "after" the reduce. reshapes: the shapes of the
    product, of the add and of the norm, each "same", "flat" or "lifted". noops: (edge, change) pairs
    that change nothing. readers: further readers of the sum and of the norm, and other code that changes nothing.
    fault: the one thing that makes the site illegal, "" = none. dice: chooses among equal spellings.
    """

    linear: str = "linear"
    reduce: str = "functional"
    norm: str = "llama"
    bias: str = "none"
    epsilon: float = 1e-6
    residual_first: bool = True
    returns_sum: bool = True
    k: int = 8
    x: str = "input"
    residual: str = "input"
    shares_weight: bool = False
    reshapes: tuple[str, str, str] = ("same", "same", "same")
    noops: tuple[tuple[str, str], ...] = ()
    readers: tuple[str, ...] = ()
    fault: str = ""
    dice: int = 0


@dataclass(frozen=True, slots=True)
class ProgramPlan:
    """A function with consecutive sites. schedules: how site i and i + 1 lie to each other, one per pair.

    extras: (position, what) of unrelated code; position i is in front of site i. deterministic: whether deterministic
    algorithms are requested while the pass runs. in_place: whether residuals that nobody else reads may be overwritten.
    """

    seed: int
    capture: Capture = "aot"
    dtype: str = "float16"
    ranks: int = 2
    lead: tuple[int, ...] = (2, 3)
    n: int = 16
    sites: tuple[SitePlan, ...] = (SitePlan(),)
    schedules: tuple[str, ...] = ()
    extras: tuple[tuple[int, str], ...] = ()
    deterministic: bool = False
    in_place: bool = False


LEADS: tuple[tuple[int, ...], ...] = ((6,), (8,), (2, 3), (1, 5), (8, 2), (4, 1), (2, 2, 2), (1, 3, 2))


def draw(seed: int) -> ProgramPlan:
    """The program of a seed."""
    rng = random.Random(seed)
    capture: Capture = "plain" if rng.random() < 0.48 else "aot"
    dtype = "float32" if rng.random() < 0.02 else rng.choice(("float16", "bfloat16"))
    ranks = 3 if rng.random() < 0.02 else rng.choice((1, 2, 2, 4, 4, 8))
    lead = rng.choice(LEADS)
    plan = ProgramPlan(seed, capture, dtype, ranks, lead, n=rng.choice((8, 16, 16, 24)))
    uses_vllm = rng.random() < 0.08
    count = rng.choices((1, 2, 3, 4), (4, 4, 2, 1))[0]
    sites = tuple(_draw_site(rng, plan, i, uses_vllm) for i in range(count))
    # what takes part in choosing the group wherever it stands
    if any(site.fault == "fused_between" or site.reduce == "base" for site in sites):
        sites = tuple(replace(site, fault="") if site.fault == "second_group" else site for site in sites)
    schedules = tuple(_draw_schedule(rng, sites[i], sites[i + 1]) for i in range(count - 1))
    schedules = tuple(s if i == 0 or schedules[i - 1] == "apart" else "apart" for i, s in enumerate(schedules))
    extras = tuple((rng.randint(0, count), rng.choice(EXTRAS)) for _ in range(rng.choice((0, 0, 1, 2))))
    deterministic, in_place = rng.random() < 0.01, rng.random() < 0.5
    return replace(
        plan, sites=sites, schedules=schedules, extras=extras, deterministic=deterministic, in_place=in_place
    )


def _draw_site(rng: random.Random, plan: ProgramPlan, index: int, uses_vllm: bool) -> SitePlan:
    linears = [
        name
        for name, linear in LINEARS.items()
        if (linear.max_lead >= len(plan.lead) >= linear.min_lead)
        and (plan.dtype != "float32" or linear.scenario == "float")
        and (linear.is_vllm <= uses_vllm)
        and plan.capture in linear.captures
    ]
    name = rng.choice(linears)
    if rng.random() < 0.25:
        name = "linear"
    linear = LINEARS[name]
    norm = rng.choice(LEGAL_NORMS)
    x = rng.choice(("input", "input", *XS)) if index else "input"
    if linear.scenario == "full":
        x = "input"
    site = SitePlan(
        linear=name,
        reduce=_draw_reduce(rng, plan, name, uses_vllm),
        norm=norm,
        bias=_draw_bias(rng, name),
        epsilon=_draw_epsilon(rng),
        residual_first=rng.random() < 0.5,
        returns_sum=rng.random() < 0.6,
        k=linear.k or (plan.n if x != "input" else rng.choice((8, 16, 32))),
        x=x if linear.k in (0, plan.n) else "input",
        residual=rng.choice(("input", *RESIDUALS)) if index else rng.choice(RESIDUALS[:5]),
        shares_weight=rng.random() < 0.2,
        dice=rng.randrange(1 << 16),
    )
    if rng.random() < 0.35:
        fitting = [name for name, fault in FAULTS.items() if fault.applies(site, plan, index)]
        if plan.dtype == "float32":
            fitting = [name for name in fitting if "quantisation" not in FAULTS[name].reasons]
        fault = rng.choice(fitting)
        site = replace(site, fault=fault)
        if FAULTS[fault].site is not None:
            site = replace(site, **FAULTS[fault].site(site))
    if site.fault not in ("", "second_group") and rng.random() < 0.5:
        return site
    return _draw_changes(rng, site, plan)


def _draw_changes(rng: random.Random, site: SitePlan, plan: ProgramPlan) -> SitePlan:
    """Changes that mean nothing. A fault may not be combined with those that would hide it."""
    noops = tuple((rng.choice(EDGES), rng.choice(NOOPS)) for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3))))
    noops = tuple((edge, noop) for edge, noop in noops if allows(site, edge, noop))
    reshapes: list[str] = [rng.choice(("same", "same", "same", "flat", "lifted")) for _ in range(3)]
    if len(plan.lead) == 1:
        reshapes = ["same" if r == "flat" else r for r in reshapes]
    if LINEARS[site.linear].includes_reduce or site.reduce == "scatter_and_gather":
        reshapes[0] = "same"
    readers: tuple[str, ...] = ()
    if rng.random() < 0.5:
        readers = tuple(sorted({rng.choice(READERS) for _ in range(rng.choice((1, 1, 2)))}))
    if site.fault:
        fault = FAULTS[site.fault]
        reshapes = ["same"] * 3
        readers = tuple(r for r in readers if r in ("twice", "relu", "norm_twice") and fault.keeps_readers)
        noops = tuple((edge, noop) for edge, noop in noops if edge in fault.free_edges)
    if NORMS[site.norm].adds:
        readers = tuple(r for r in readers if r not in ("second_norm", "late_gamma"))
    return replace(site, noops=noops, reshapes=tuple(reshapes), readers=readers)  # type: ignore[arg-type]


def allows(site: SitePlan, edge: str, noop: str) -> bool:
    linear = LINEARS[site.linear]
    if edge == "x" and linear.scenario == "full":
        return noop not in ("cast", "dropout")
    return not (edge == "product" and linear.includes_reduce)


def _draw_reduce(rng: random.Random, plan: ProgramPlan, linear: str, uses_vllm: bool) -> str:
    if LINEARS[linear].includes_reduce:
        return "base"
    if uses_vllm:
        return "vllm"
    fitting: list[str] = []
    for name, reduce in REDUCES.items():
        is_known = plan.capture in reduce.captures
        scatters = name != "scatter_and_gather" or (plan.lead[0] % plan.ranks == 0 and plan.ranks > 1)
        if is_known and scatters and name != "vllm":
            fitting.append(name)
    return rng.choice(fitting)


def _draw_bias(rng: random.Random, linear: str) -> str:
    kinds = ["none", "none", "after"]
    if LINEARS[linear].needs_bias:
        kinds = ["linear"]
    elif LINEARS[linear].takes_bias:
        kinds += ["linear"] * 3
    if LINEARS[linear].scenario == "float" and LINEARS[linear].takes_bias:
        kinds += ["divided"]
    return rng.choice(kinds)


def _draw_epsilon(rng: random.Random) -> float:
    if rng.random() < 0.3:
        return float(f"{10 ** rng.uniform(-8, -0.4):.3g}")
    return rng.choice((1e-12, 1e-6, 1e-5, 1e-5, 1e-3, 0.1, 0.5))


def _draw_schedule(rng: random.Random, first: SitePlan, second: SitePlan) -> str:
    """Interleaving needs sites that do not use each other's results."""
    if rng.random() < 0.6:
        return "apart"
    is_independent = second.x == "input" and not second.residual.startswith("previous")
    return rng.choice(SCHEDULES) if is_independent else "apart"
