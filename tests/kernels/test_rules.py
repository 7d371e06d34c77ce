"""What the simulator forbids: each kernel of entries/wrong.cpp runs without its fault, and is stopped with it."""

from __future__ import annotations

import re
import signal
import struct
from collections.abc import Iterator

import pytest
import torch

from npu_fused_graph.errors import KernelError
from npu_fused_graph.sim.launch import READ, WRITE, Argument, RankLaunch, output
from tests.kernels.built import ENTRIES, entry

RULES = [
    "Muls: V reads byte 0 of local memory, which MTE2 writes. A flag of MTE2_V is missing [Sync1]",
    "DataCopy: MTE3 reads byte 512 of local memory, which V writes. A flag of V_MTE3 is missing [Sync1]",
    "DataCopy: MTE2 writes byte 0 of local memory, which V reads. A flag of V_MTE2 is missing [Sync2]",
    "Muls: V reads byte 512 of local memory, which an earlier instruction of this pipe writes. PipeBarrier<PIPE_V> is "
    "missing [Sync1]",
    "GetValue: S reads byte 512 of local memory, which V writes. A flag of V_S is missing [Sync1]",
    "DataCopy: MTE3 reads byte 512 of local memory, which S writes. A flag of S_MTE3 is missing [Sync1]",
    "Muls: V reads byte 0 of local memory, which MTE2 writes. A flag of MTE2_V is missing [Sync1]",
    "WaitFlag: V_MTE2 0: nobody has set this flag. The pipe waits for ever [Sync3]",
    "SetFlag: V_MTE3 0 is set already, at line #, and nobody has waited for it [Sync4]",
    "SetFlag: nobody waits for MTE3_V 0: the next kernel finds it set [Sync3]",
    "SetFlag: V_MTE3: event id 6 is the framework's. Take one from AllocEventID or FetchEventID [Sync4]",
    "Add: reads byte 1024 of local memory, which nobody has written [Read2]",
    "Duplicate: writes bytes 0 to 544 of a tensor of 512 [Write2]",
    "Muls: the target begins at byte 528: expected a multiple of 32 [Align]",
    "DataCopy: count: expected a multiple of 32 bytes, got 48. DataCopyPad takes any [Align]",
    "DataCopy: reads bytes 32 to 288 of x, which has 256 [Global]",
    "DataCopy: writes x, which is an input [Global]",
    "DataCopy: reads byte 0 of y, which nobody has written [Read2]",
    "InitBuffer: expected 1 to 185856 bytes, what is left of 187392 bytes of local memory, got 186000 [Capacity]",
    "end of the kernel: a tensor of a queue was not freed (FreeTensor is missing) [Leak]",
    "AllocTensor: all 1 blocks of the queue are in use: FreeTensor is missing, or InitBuffer needs a larger num "
    "[Alloc]",
    "Muls: reads a tensor that was freed [Read1]",
    "DeQue: the queue is empty: EnQue is missing [Buffer2]",
    "DataCopy: reads a tensor that is in its queue: between EnQue and DeQue it is nobody's [Buffer1]",
    "FreeTensor: the tensor was freed before [Free]",
    "EnQue: the tensor is not of this queue [Buffer0]",
    "expected a parameter of 8 bits, got 257. The hardware cuts it off [Parameter]",
    "Muls: mask: expected 1 to 64 lanes, got 0 [Mask]",
    "Muls: the target and src overlap, but do not begin at the same byte [Overlap]",
    "end of the kernel: atomic addition is still on. SetAtomicNone is missing: the next kernel would add [Atomic]",
    "Cast: these types do not convert with this rounding mode (0) [Round]",
    "Compare: count: expected a multiple of 256 bytes, got 128. The rest would not be compared [Compare]",
    "ReduceSum: the work tensor has 16 bytes: expected at least 32 [Work]",
    "DataCopy: MTE3 writes byte 0 of y, which core 0's MTE3 writes (line #). Nothing orders them: SyncAll, or a flag "
    "that is set behind the data, is missing [Sync2]",
    "deadlock: every core waits [Deadlock]\n"
    "  rank 0, core 0: wrong.cpp:# SyncAll, waits for SyncAll, 1 of 2 cores are there\n"
    "  1 of 2 cores have ended",
    "GetValue: reads x through a line of the data cache that may be of an earlier kernel. DataCacheCleanAndInvalid is "
    "missing [Cache]",
    "GetValue: reads byte 0 of w from the data cache, but it has been written since. DataCacheCleanAndInvalid is "
    "missing [Cache]",
    "end of the kernel: bytes that SetValue wrote to global memory are only in the data cache. "
    "DataCacheCleanAndInvalid is missing [Cache]",
    "DataCopyPad: blockLen: expected at most 2097151 bytes, whole elements of 4, got 255 [Parameter]",
    "Muls: reads byte 1044 of local memory, which nobody has written [Read2]",
    "DataCopy: MTE3 writes byte 0 of y, which this core's MTE3 writes (line #). PipeBarrier<PIPE_MTE3> is missing "
    "[Sync2]",
    "DataCopy: MTE2 reads byte 0 of y, which this core's MTE3 writes (line #). A flag of MTE3_MTE2 is missing [Sync1]",
    "Cast: int32 to half takes its scale from SetDeqScale, which has not been called [Round]",
    "AllocEventID: V_MTE2: all 8 event ids are taken [Sync4]",
    "the kernel used a pointer to memory that is not there (behind a tensor's end, or null), after this call [Global]",
    "EnQue: the queue holds 1 tensors already, its depth [Buffer2]",
    "DataCopyPad: leftPadding, rightPadding: expected at most 32 bytes each, got 36 and 0 [Parameter]",
    "DataCopy: adds to byte 0 of z, which nobody has written [Read2]",
    "DataCopy: MTE2 reads byte 0 of y, which core 1's MTE3 writes (line #). Nothing orders them: SyncAll, or a flag "
    "that is set behind the data, is missing [Sync1]",
    "end of the kernel: this core has set flag 0 1 times and waited for it 0 times: the next kernel finds it set "
    "[Sync3]",
    "CrossCoreSetFlag: expected a flag of 0 to 10, got 11. The others are SyncAll's and the framework's [Sync4]",
    "CrossCoreSetFlag: flag 1 is set 16 times and nobody has waited: its counter holds 15 [Sync4]",
    "deadlock: every core waits [Deadlock]\n"
    "  rank 0, core 0: wrong.cpp:# CrossCoreWaitFlag, waits for flag 2 of all cores\n"
    "  1 of 2 cores have ended",
    "SetFlag: V_MTE3 0 is set already, at line #, and nobody has waited for it [Sync4]",
    "DataCacheCleanAndInvalid: S writes byte 0 of w, which core 1's S writes (line #). Nothing orders them: SyncAll, "
    "or a flag that is set behind the data, is missing [Sync2]",
    "DataCopy: MTE3 adds to byte 0 of y, which core 0's MTE3 writes (line #). Nothing orders them: SyncAll, or a flag "
    "that is set behind the data, is missing [Sync2]",
    "DataCopy: MTE2 reads byte 0 of y, which core 1's MTE3 adds (line #). Nothing orders them: SyncAll, or a flag that "
    "is set behind the data, is missing [Sync1]",
    "DataCopy: memory adds numbers of another type: SetAtomicAdd names it [Atomic]",
    "ReduceMax: the work tensor has 28 bytes: expected at least 32 [Work]",
    "WholeReduceMax: the target begins at byte 1028: expected a multiple of 8 [Align]",
    "GetValue: a scalar of 4 bytes at byte 514, which is no multiple of 4 [Align]",
    "Duplicate: writes bytes 0 to 288 of a tensor of 256 [Write2]",
    "SyncAll: SyncAll<false> waits for cube cores, and this launch has none: it hangs [Launch]",
    "Max: a repeat reads, through src0, what another one writes [Overlap]",
    "WholeReduceSum: repeat 1 writes over what repeat 2 reads [Overlap]",
    "Muls: mask: expected 0 as the second word of 64 lanes [Mask]",
    "DataCopy: writes a tensor that was freed [Read1]",
    "SetFlag: MTE1_M: a vector core has no such pipe [Unit]",
    "ReleaseEventID: V_MTE3: event id 0 is given back while its flag is set [Sync4]",
    "endless: rank 0, core 0 has made more than 20000 calls [Endless]\n"
    "  rank 0, core 0: wrong.cpp:# GetValue\n"
    "  0 of 1 cores have ended",
    "interrupted [Interrupted]\n  rank 0, core 0: wrong.cpp:# DataCopy\n  0 of 1 cores have ended",
    "end of the kernel: event id 0 of V_MTE2 was not given back: ReleaseEventID is missing [Leak]",
]
"""What is said of each case, by number, behind where it is said. #: a line of the source."""

TWO_CORES = {33, 34, 47, 48, 52, 54, 55, 56}
ORDER_ONLY = {0, 1, 4, 6}
"""Without the clocks these run in program order, and the numbers are right: only another order of the pipes shows it.

One pipe's instructions stay in order there, and what the scalar unit writes is there at once: a missing barrier (3) and
a missing S_MTE3 (5) are the clocks' to find.
"""

SOURCE = (ENTRIES / "wrong.cpp").read_text().splitlines()


def launch(number: int, is_wrong: bool, *, seed: int = 0, is_deferred: bool = False, has_clocks: bool = True) -> bool:
    """Whether y is right, if no rule was broken."""
    x = torch.arange(64, dtype=torch.float32)
    y, z, w = torch.empty(64), torch.empty(64), torch.zeros(64)
    arguments = [Argument("x", x), output("y", y), output("z", z), Argument("w", w, READ | WRITE)]
    entry("wrong").launch(
        [RankLaunch(arguments, 1 + (number in TWO_CORES), struct.pack("Q", number), int(is_wrong))],
        seed=seed, is_deferred=is_deferred, has_clocks=has_clocks, most_calls=20_000,
    )  # fmt: skip
    return torch.equal(y, 2 * x)


def line(number: int) -> int | None:
    """Where case ``number`` is marked; what is in one of the lab's own functions has that function's line."""
    for at, text in enumerate(SOURCE, 1):
        mark = re.search(rf"// case {number}(?:, in (\w+))?$", text)
        if mark:
            if not mark[1]:
                return at
            begin = next(i for i, other in enumerate(SOURCE) if f"void {mark[1]}()" in other)
            call = {"Double": "Muls", "Store": "SetFlag" if number == 8 else "DataCopy"}[mark[1]]
            return 1 + next(i for i in range(begin, len(SOURCE)) if call in SOURCE[i])
    return None


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Also where whoever started the tests has SIGINT ignored, as nohup does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_what_is_to_go_on_is_not_interrupted() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert launch(70, is_wrong=True)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("number", range(len(RULES)))
def test_a_broken_rule_stops_the_kernel(number: int) -> None:
    assert launch(number, is_wrong=False)
    with pytest.raises((KernelError, KeyboardInterrupt)) as caught:
        launch(number, is_wrong=True)
    said, where = str(caught.value), line(number)
    assert said.startswith("[wrong] ")
    assert isinstance(caught.value, KeyboardInterrupt) == ("[Interrupted]" in said)
    assert re.sub(
        r"(line |wrong.cpp:)\d+( SyncAll| CrossCoreWaitFlag| GetValue| DataCopy|\)|,)", r"\1#\2", said
    ).endswith(RULES[number])
    if where is not None and "Deadlock" not in said:
        assert f"wrong.cpp:{where}" in said


@pytest.mark.parametrize("number", sorted(ORDER_ONLY | {3, 5}))
def test_a_missing_flag_does_not_show_in_program_order(number: int) -> None:
    assert launch(number, is_wrong=True, has_clocks=False)


@pytest.mark.parametrize("number", sorted(ORDER_ONLY))
def test_a_missing_flag_shows_in_another_order(number: int) -> None:
    """The second checker by itself: without the clocks, in 200 random orders of the pipes."""
    right = [launch(number, is_wrong=True, seed=seed, is_deferred=True, has_clocks=False) for seed in range(200)]
    assert not all(right)


@pytest.mark.parametrize("seed", range(3))
def test_right_kernels_are_right_in_every_order(seed: int) -> None:
    assert all(launch(number, is_wrong=False, seed=seed, is_deferred=True) for number in range(len(RULES)))


def test_every_case_has_its_rule() -> None:
    cases = {int(number) for number in re.findall(r"^\s+case (\d+):", "\n".join(SOURCE), re.M)}
    assert cases == set(range(len(RULES)))
