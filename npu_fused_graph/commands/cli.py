"""The console script ``npu-fused-graph``. Rooms are imported on demand: ``--help`` is instant."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npu_fused_graph.errors import DumpError, InvalidArgumentError, NpuFusedGraphError
from npu_fused_graph.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    0 = fine, 1 = it says what is wrong, 2 = wrong usage, 3 = a dump cannot be read, 130 = interrupted.
    """
    try:
        try:
            arguments = _parser().parse_args(argv)
            code: int = arguments.run(arguments)
            return code
        finally:
            sys.stdout.flush()  # here, where a reader that left is still an exception to catch
    except NpuFusedGraphError as error:
        print(error, file=sys.stderr)
        return 3 if isinstance(error, DumpError) else 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; nothing more to say
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


@dataclass(frozen=True, slots=True)
class Command:
    """name: one or two words. text: for --help. run: returns the exit code. arguments: flags or a place, and what
    argparse's add_argument takes with them; --json comes by itself.
    """

    name: str
    text: str
    run: Callable[[argparse.Namespace], int]
    arguments: Sequence[tuple[tuple[str, ...], Mapping[str, Any]]] = ()


def _argument(*names: str, **options: Any) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    return names, options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="npu-fused-graph", description="Fused operators for Ascend NPU graph mode.")
    parser.add_argument("--version", action="version", version=__version__)
    places = {"": parser.add_subparsers(required=True, metavar="command")}
    for command in COMMANDS:
        group, _, name = command.name.rpartition(" ")
        if group not in places:
            inner = places[""].add_parser(group, help=GROUPS[group])
            places[group] = inner.add_subparsers(required=True, metavar="command")
        own = places[group].add_parser(
            name, help=command.text, description=command.text[0].upper() + command.text[1:] + "."
        )
        own.add_argument("--json", action="store_true", help="print JSON")
        for names, options in command.arguments:
            own.add_argument(*names, **options)
        own.set_defaults(run=command.run)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return number


def _print(arguments: argparse.Namespace, facts: Any, text: str) -> None:
    print(json.dumps(facts, indent=2) if arguments.json else text)


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _demo(arguments: argparse.Namespace) -> int:
    from npu_fused_graph.commands.demo import format_facts, run_demo

    if not arguments.json:
        print("two compilations on each rank, about 10 s ...", file=sys.stderr, flush=True)
    facts = run_demo(ranks=arguments.ranks, layers=arguments.layers, output=arguments.output)
    _print(arguments, facts, format_facts(facts))
    return 0 if facts["fused"] == facts["legal"] else 1


def _run(arguments: argparse.Namespace) -> int:
    from npu_fused_graph.host.run import run_script
    from npu_fused_graph.host.run_report import format_report
    from npu_fused_graph.host.standin.state import RunOptions

    options = RunOptions(
        arguments.devices, arguments.soc, arguments.seed, arguments.record, arguments.stock, arguments.strict,
        arguments.survey, tuple(arguments.register),
    )  # fmt: skip
    report = run_script(arguments.script, is_module=arguments.module, options=options)
    # standard output is the script's
    print(json.dumps(report.as_dict()) if arguments.json else format_report(report), file=sys.stderr)
    return report.exit_code or int(arguments.strict and not report.is_clean)


def _replay(arguments: argparse.Namespace) -> int:
    from npu_fused_graph.host.replay import KERNEL, METHODS, format_replay, replay

    kernel = [KERNEL] if arguments.kernels else []
    methods = [*(arguments.method or ([] if kernel else METHODS)), *kernel]
    calls = []
    for call in replay(arguments.folder, methods, log=_progress):
        calls.append(call)
        if not arguments.json:
            print(format_replay(call), flush=True)
    close = sum(call.is_close for call in calls)
    facts = {"calls": [c.as_dict() for c in calls], "agree": close, "count": len(calls)}
    _print(arguments, facts, f"{close} of {len(calls)} calls agree")
    return 0 if close == len(calls) else 1


def _doctor(arguments: argparse.Namespace) -> int:
    from npu_fused_graph.commands.doctor import diagnose, format_diagnosis

    diagnosis = diagnose()
    _print(arguments, diagnosis, format_diagnosis(diagnosis))
    return 0 if diagnosis["ok"] else 1


def _selftest(arguments: argparse.Namespace) -> int:
    from npu_fused_graph.commands.doctor import diagnose
    from npu_fused_graph.selftest import PARTS, selftest

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the parts, too
    report = selftest(
        diagnose(), device=arguments.device, parts=arguments.part or PARTS, output=arguments.output, log=_progress
    )
    _print(arguments, report.as_dict(), str(report))
    return int(bool(report.bad))


def _ops(arguments: argparse.Namespace) -> int:
    if arguments.engine:
        from npu_fused_graph.engine import registered_types

        types = sorted(registered_types())
        _print(arguments, {"count": len(types), "types": types}, "\n".join([*types, f"{len(types)} GE op types"]))
        return 0
    from npu_fused_graph.ops import specs

    rows = [{"stem": s.stem, "ge_type": s.ge_type, "schema": s.torch_schema(), "source": s.source} for s in specs()]
    _print(arguments, rows, "\n".join(f"{r['ge_type']}\n  {r['schema']}\n  source: {r['source']}" for r in rows))
    return 0


def _host_install(arguments: argparse.Namespace) -> int:
    from npu_fused_graph.host.install import install

    folder = install(arguments.wheel, version=arguments.torch_npu, force=arguments.force, log=_progress)
    _print(arguments, {"folder": str(folder)}, str(folder))
    return 0


def _kernel_trace(arguments: argparse.Namespace) -> int:
    from npu_fused_graph.commands.kernel import format_trace, trace

    facts = trace(
        arguments.output, tokens=arguments.tokens, hidden=arguments.hidden, top_k=arguments.top_k,
        experts=arguments.experts, shared=arguments.shared, ffn_ranks=arguments.ffn_ranks,
        is_quantised=arguments.quantised, chip=arguments.chip, log=_progress,
    )  # fmt: skip
    _print(arguments, facts, format_trace(facts))
    return 0


def _on_a_dump(name: str) -> Callable[[argparse.Namespace], int]:
    """A command of commands/inspect.py."""

    def run(arguments: argparse.Namespace) -> int:
        from npu_fused_graph.commands import inspect

        try:
            code: int = getattr(inspect, name)(arguments, _progress)
        except InvalidArgumentError as error:  # 1 would be a finding
            print(error, file=sys.stderr)
            return 2
        return code

    return run


_DUMP = _argument("dump", type=Path, metavar="DUMP", help="of TorchAir or GE: pbtxt, txt, .air, .om, JSON; .gz, too")

GROUPS = {"host": "set up host mode", "kernel": "AscendC kernels on the simulator"}
"""First words of commands that have two."""

COMMANDS = (
    Command(
        "demo", "compile a tensor-parallel decoder on two CPU ranks and check it", _demo,
        [
            _argument("--ranks", type=int, default=2, choices=(1, 2, 4, 8), help="gloo ranks (default 2)"),
            _argument("--layers", type=_positive, default=4, help="decoder layers (default 4)"),
            _argument("--output", type=Path, help="folder for the graph dump (default: a new temporary one)"),
        ],
    ),
    Command(
        "run", "run a script written for NPUs on this machine", _run,
        [
            _argument("-m", dest="module", action="store_true", help="the script is a module's name"),
            _argument("--seed", type=int, help="makes torch's random numbers repeatable, rank by rank"),
            _argument("--record", metavar="DIR", help="store inputs and outputs of every call of a fused operator"),
            _argument(
                "--strict", action="store_true",
                help="fail on an eager fallback or a failed child, too; overwrite what replays of captured graphs may",
            ),
            _argument(
                "--survey", action="store_true",
                help="go on where an operator is missing, with zeros of the right shapes, and list what is missing",
            ),
            _argument(
                "--stock", action="store_true", help="leave TorchAir's defects as they are, and name their graphs"
            ),
            _argument(
                "--register", metavar="FILE", action="append", default=[],
                help="a Python file every process runs first: it calls register_kernel (repeatable)",
            ),
            _argument("--devices", type=_positive, default=16, help="NPUs the machine claims to have (default 16)"),
            _argument("--soc", default="", help="chip the machine claims to have; operators it lacks are refused"),
            _argument(
                "script", nargs=argparse.REMAINDER,
                help="script.py, script.sh or a program such as torchrun, and its arguments",
            ),
        ],
    ),
    Command(
        "replay", "execute recorded calls again and compare", _replay,
        [
            _argument("folder", type=Path, metavar="DIR", help="what `run --record DIR` wrote"),
            _argument(
                "--method", action="append", choices=("reference", "decompose", "float64", "engine"),
                help="only this implementation (repeatable; default: all four)",
            ),
            _argument(
                "--kernels", choices=("sim",),
                help="by its AscendC kernel on the simulator, all ranks in one launch; and by what --method names",
            ),
        ],
    ),
    Command(
        "inspect", "what is in a graph dump; its ops that fit; one op in full", _on_a_dump("inspect"),
        [
            _DUMP,
            _argument("--type", default="", metavar="GLOB", help="list ops of these types"),
            _argument("--name", default="", metavar="GLOB", help="list ops of these names"),
            _argument("--stream", type=int, help="list ops of this stream"),
            _argument("--group", default="", metavar="GLOB", help="list collectives of these groups"),
            _argument("--dtype", default="", help="list ops with an output of this dtype, such as float16"),
            _argument("--limit", type=_positive, default=50, help="ops listed at most (default 50; --json lists all)"),
            _argument("--node", default="", metavar="NAME", help="this op in full"),
            _argument("--hops", type=int, default=0, help="and what lies up to so many edges around it"),
            _argument("--fold", action="store_true", help="layers that repeat once, and beside them those that differ"),
            _argument("--full", action="store_true", help="count, with --fold compare, outputs of large dumps, too"),
        ],
    ),
    Command("fused", "the fused ops of a graph dump, and what they were made of", _on_a_dump("fused"), [_DUMP]),
    Command(
        "why", "which sites of a graph dump are not fused, and the rule that each breaks", _on_a_dump("why"),
        [
            _DUMP,
            _argument("--min-rows", type=int, metavar="N", help="as in get_npu_backend; 0: whatever is legal"),
            _argument(
                "--numerics", default="same_rounding", choices=("same_rounding", "one_ulp", "any"),
                help="as in get_npu_backend (default same_rounding)",
            ),
            _argument(
                "--explain", type=Path, metavar="FILE",
                help="what the package said while compiling (default: fusion_sites_*.json of the same process)",
            ),
            _argument("--switches", type=Path, metavar="FILE", help="GE's fusion_config.json or fusion_switch.cfg"),
        ],
    ),
    Command(
        "diff", "what differs between two graph dumps, names aside", _on_a_dump("diff"),
        [_DUMP, _argument("other", type=Path, metavar="OTHER", help="the dump it is compared with")],
    ),
    Command(
        "memory", "how much memory the graph of a dump needs", _on_a_dump("memory"),
        [_DUMP, _argument("--top", type=_positive, default=10, help="tensors named at the peak (default 10)")],
    ),
    Command(
        "ranks", "whether all ranks issue the same collectives in the same order", _on_a_dump("ranks"),
        [_argument("dumps", type=Path, nargs="+", metavar="DUMP", help="a folder with all ranks' dumps, or the files")],
    ),
    Command(
        "check", "assert something about a graph dump: exit code 1 where it does not hold", _on_a_dump("check"),
        [
            _DUMP,
            _argument(
                "--expect", action="append", default=[], metavar="TYPE=N",
                help="so many ops of a type; also TYPE>=N, TYPE<=N (repeatable)",
            ),
            _argument("--memory-below", type=_positive, metavar="BYTES", help="what the graph may need"),
        ],
    ),
    Command(
        "report", "one HTML page of all that can be said of a graph dump; it needs no network", _on_a_dump("report"),
        [
            _DUMP,
            _argument("-o", "--output", type=Path, default=Path("report.html"), help="(default report.html)"),
            _argument("--against", type=Path, metavar="DUMP", help="another dump it is compared with"),
            _argument("--ranks", type=Path, nargs="+", default=[], metavar="DIR", help="all ranks' dumps"),
            _argument("--explain", type=Path, metavar="FILE", help="as for why"),
            _argument("--title", default="", help="(default: the file's name)"),
            _argument("--reproducible", action="store_true", help="no date: the same dumps give the same bytes"),
            _argument("--anonymous", action="store_true", help="no names, groups, paths and lines of the model"),
            _argument("--max-mb", type=float, default=25.0, metavar="MB", help="size of the page (default 25)"),
        ],
    ),
    Command("doctor", "versions, mode, what is missing and how to get it", _doctor),
    Command(
        "selftest", "every operator, converter and example against its reference, here; one report to send", _selftest,
        [
            _argument("--device", choices=("cpu", "npu"), default="cpu", help="npu: a machine with CANN (default cpu)"),
            _argument(
                "--part", action="append", choices=("capabilities", "operators", "converters", "examples", "times"),
                help="only this part (repeatable; default: all)",
            ),
            _argument(
                "-o", "--output", type=Path, default=Path("selftest"), metavar="DIR",
                help="folder for selftest.json and selftest.txt (default selftest)",
            ),
        ],
    ),
    Command(
        "ops", "the operator table", _ops,
        [_argument("--engine", action="store_true", help="GE op types the CPU engine executes")],
    ),
    Command(
        "kernel trace", "launch AttentionToFFN in the simulator and draw what each pipe of a core does", _kernel_trace,
        [
            _argument("--tokens", type=_positive, default=128, help="BS, tokens of the attention rank (default 128)"),
            _argument("--hidden", type=_positive, default=7168, help="H, elements of a token (default 7168)"),
            _argument("--top-k", type=_positive, default=8, help="K, experts of a token (default 8)"),
            _argument("--experts", type=_positive, default=64, help="routed experts (default 64)"),
            _argument("--shared", type=int, choices=range(5), default=1, help="shared experts (default 1)"),
            _argument("--ffn-ranks", type=_positive, default=4, help="ranks that hold experts (default 4)"),
            _argument("--quantised", action="store_true", help="quant_mode 2: int8 with a scale per token"),
            _argument("--chip", default="Ascend910_9391", help="chip it is tiled for (default Ascend910_9391)"),
            _argument(
                "-o", "--output", type=Path, default=Path("trace.html"),
                help="an HTML page; with the ending .json a trace that Perfetto opens (default trace.html)",
            ),
        ],
    ),
    Command(
        "host install", "fetch and unpack TorchAir once", _host_install,
        [
            _argument("--wheel", type=Path, help="a torch_npu wheel on disk, instead of downloading one"),
            _argument(
                "--torch-npu", metavar="VERSION",
                help="whose TorchAir this Python environment uses from now on (at first 2.13.0)",
            ),
            _argument("--force", action="store_true", help="unpack again"),
        ],
    ),
)  # fmt: skip
"""Every command, as --help lists them."""


if __name__ == "__main__":
    sys.exit(main())
