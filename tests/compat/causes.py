"""What fails where, and why: everything else that fails is unexplained, and its cell does not count as tested."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cell:
    """torch: (2, 10). generation: of TorchAir. python: (3, 11)."""

    torch: tuple[int, int]
    generation: str
    python: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Cause:
    """text: what torch or TorchAir does otherwise there. tests: matches ids that fail by it. where: in which cells."""

    text: str
    tests: str
    where: Callable[[Cell], bool]


def _to(minor: int) -> Callable[[Cell], bool]:
    """Up to torch 2.minor."""
    return lambda cell: cell.torch <= (2, minor)


def _is_d(cell: Cell) -> bool:
    return cell.generation == "D"


CAUSES: tuple[Cause, ...] = (
    Cause(
        "gloo writes lines of its own to standard output, between those of a script.",
        r"test_run::test_(a_killed_launcher|a_killed_rank|ctrl_c)",
        _to(10),
    ),
    Cause(
        "torch warns that wait_tensor has no autograd kernel, which tests make an error of; the verdict is the same.",
        r"test_verdicts::test_row\[training_graph\]",
        _to(10),
    ),
    Cause(
        "Defects T2 and T3 of DTensor inputs are another torch's: their tests find no defect to guard against.",
        r"test_defects::test_t[23]_stock",
        _to(12),
    ),
    Cause(
        "torch's own shape function of bincount says int64 for weights: refused instead of a wrong number.",
        r"test_aten::test_results_as_large_as_the_values_say\[bincount",
        _to(12),
    ),
    Cause(
        "Dynamo fails on aten._assert_scalar of a number.",
        r"test_aten::test_scalar_assertions_vanish",
        _to(12),
    ),
    Cause(
        "bucketize of a number recurses without end in torch's own shape function.",
        r"test_aten::test_values\[aten\.index_put\.default-last to",
        _to(10),
    ),
    Cause(
        "torch takes ldexp apart before our converter sees it; the numbers are the same.",
        r"test_aten::test_values\[aten\.index_put\.default-row mask",
        _to(10),
    ),
    Cause(
        "TorchAir has no uint64 between GE and torch: uint64 words as a graph's input are refused, int64 words work.",
        r"test_matmul_all_reduce_add_rms_norm::test_(in_place_one_node|one_node)\S*\[[57]\]",
        _is_d,
    ),
    Cause(
        "TorchAir has no converter of view.dtype, which signbit is made of.",
        r"test_aten::test_values\[aten\.isnan\.default-ints",
        _is_d,
    ),
    Cause(
        "forward_ad uses torch.jit.script, of which torch warns itself, and tests make errors of warnings.",
        r"test_no_forward_gradient",
        lambda cell: cell.torch >= (2, 14),
    ),
    Cause(
        "npu-fused-graph run needs device guards in Python (torch._C._acc), which torch has from 2.10 on: refused.",
        r"test_npu_operators::|test_run::test_(forked_ranks_after|strict_does_not|torchairs_defects)",
        _to(9),
    ),
    Cause(
        "Dynamo captures results as large as values say only with config.capture_dynamic_output_shape_ops.",
        r"test_aten::test_(numbers_only|results_as_large)|test_t15_our_converter",
        _to(9),
    ),
    Cause(
        "AOTAutograd copies what a graph saves another number of times: the same nodes, other Identity ones.",
        r"test_flash_attention::test_golden_text",
        _to(9),
    ),
    Cause(
        "torch's own shape function of true_divide says int64; no graph of torch 2.9 contains it but this test's.",
        r"test_aten::test_true_division\[Tensor\]",
        _to(9),
    ),
    Cause(
        "The CPU has no float16 gradient of smooth_l1 there, and torch takes mish_backward apart itself.",
        r"test_aten::test_values\[aten\.(_scaled_dot_product_flash_attention_for_cpu|nll_loss_forward)",
        _to(9),
    ),
    Cause(
        "torch has no fallback for gradients on PrivateUse1, and the stand-in installation's operators bring none.",
        r"test_device_mode\.Test(Attention|Complete)",
        _to(9),
    ),
    Cause(
        "torch warns that Python 3.13.0 is slow, and this test makes errors of all warnings, in processes of its own.",
        r"test_t2_t3_our_backend_compiles_dtensors",
        lambda cell: cell.python == (3, 13),
    ),
    Cause(
        "TorchAir has no handlers of signals to take away.",
        r"test_defects::test_signals_are_the_users",
        _is_d,
    ),
)


def cause_of(test: str, cell: Cell) -> str | None:
    """The known cause of a failure; None if there is none."""
    for cause in CAUSES:
        if cause.where(cell) and re.search(cause.tests, test):
            return cause.text
    return None
