"""Which dump a file is: by its content, since users rename, then what its name adds."""

from __future__ import annotations

import re
from pathlib import Path

from npu_fused_graph.inspector.dump import FileFacts

FORMATS = {
    "torchair pbtxt": 'TorchAir\'s graph, before or after its passes (graph_dump.type = "pbtxt")',
    "torchair txt": "TorchAir's graph as GE's own text (graph_dump.type = \"txt\")",
    "torchair py": 'TorchAir\'s calls of converters (graph_dump.type = "py"); its passes do not rewrite it',
    "torchair code": "the program of a compiled graph (TORCH_COMPILE_DEBUG, output_code.py)",
    "torchair tasks": "the tasks of a captured graph (TORCH_COMPILE_DEBUG, deadlock_check)",
    "fx": "an FX graph as Python text",
    "fx log": "FX graphs in a log (logger.setLevel(logging.DEBUG))",
    "fx summary": 'FX ops counted, and whether TorchAir converts them (fx_summary.type = "csv")',
    "ge proto": "a step of GE (DUMP_GE_GRAPH, ge_proto_*.txt)",
    "ge onnx": "a step of GE in ONNX's text (DUMP_GE_GRAPH, ge_onnx_*.pbtxt)",
    "ge readable": "a step of GE for people (DUMP_GRAPH_FORMAT with readable)",
    "air": "an exported graph, binary (dynamo_export)",
    "om": "a built model (atc)",
    "om json": "a built model as JSON (atc --mode=1)",
    "fusion result": "how often GE's passes matched (fusion_result.json)",
    "fusion config": "which passes are switched on (fusion_config.json, fusion_switch.cfg)",
}
"""Every format by name, and what writes it."""

_TORCHAIR = re.compile(r"dynamo_(original|optimized)_graph_(\d+)(?:_rank_(\d+))?(?:_pid_(\d+))?(?:_ts_(\d{14,20}))?")
_GE = re.compile(r"ge_(?:onnx|proto|readable)_(\d{5,})(?:_aclop)?_(?:(?:aclop_)?graph_(-?\d+)_)?(.+?)\.(?:pbtxt|txt)$")
_TASKS = re.compile(
    r"^(?:debug_output_)?graph_(\d+)_(?:id_\d+_rank_(\d+)_pid_(\d+)_ts_|timestamp)(\d{14,20})(?:_pid_(\d+))?"
)
_DEBUG = re.compile(r"^(\d{3})_aot_\w+?_((?:original|optimized)_ge_graph|graph\w*)\.")
_PROCESS = re.compile(r"pid_(\d+)_deviceid_(\d+)")
_LOG = re.compile(rb"^[ \t]*%\w+ : .*?\[(?:num_)?users=\d+\] = \w+\[target=", re.M)
_RANK = re.compile(r"rank_(\d+)")


def facts_of(path: Path) -> FileFacts:
    """What the name says, and the folders above it; everything may be missing."""
    facts = FileFacts()
    name = path.name
    if found := _TORCHAIR.search(name):
        facts.stage, facts.time = found[1], found[5] or ""
        facts.graph_id, facts.rank, facts.pid = int(found[2]), _number(found[3]), _number(found[4])
    elif found := _GE.search(name):
        facts.sequence, facts.graph_id, facts.stage = int(found[1]), _number(found[2]), found[3]
    elif found := _TASKS.search(name):
        facts.stage, facts.time, facts.graph_id = "captured", found[4], int(found[1])
        facts.rank, facts.pid = _number(found[2]), _number(found[3] or found[5])
    elif found := _DEBUG.search(name):
        facts.sequence, facts.stage = int(found[1]), found[2]
    for part in (name, *reversed(path.parts[:-1])):
        if facts.pid is None and (found := _PROCESS.search(part)):
            facts.pid, facts.device = int(found[1]), int(found[2])
        if facts.rank is None and (found := _RANK.search(part)):
            facts.rank = int(found[1])
    return facts


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def format_of(data: bytes, name: str) -> str:
    """The format of a file that begins with ``data``; "" for none of ours."""
    head = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if data[:4] in (b"IMOD", b"PICO"):
        return "om"
    if not head:
        return _by_name(name)
    if head[:1] in b"{[":
        return _json_format(data) or ("fx log" if _LOG.search(data) else "")
    lines = head.replace(b"\r\n", b"\n")
    if lines.startswith(b'graph("'):
        return "ge readable"
    if b"import" in lines and b"ge_apis as ge" in lines:
        return "torchair py"
    if b"AclGraphCacheInfo" in lines or b"torchair.core._backend import initialize_graph_engine" in lines:
        return "torchair code"
    if re.search(rb"^class [<\w]\w*>?(\(.*\))?:", lines, re.M):
        return "fx"
    if lines.startswith("目标函数,".encode()):
        return "fx summary"
    if re.match(rb"node\s*[{<]", lines):
        return "torchair pbtxt"
    if re.match(rb"(ir_version:|producer_name:)", lines) or b'\n    op_type: "' in lines:
        return "ge onnx"
    if re.match(rb"(\w+:[^\n]*\s*)*?graph\s*[{<]", lines):
        return "ge proto"
    if re.search(rb"^\s*op\s*[{<]", lines, re.M):
        return "torchair txt"
    if b"\0" not in head and _LOG.search(data):
        return "fx log"
    if b"\0" in head or data[:1] in (b"\x0a", b"\x12", b"\x18", b"\x3a"):
        return "air"
    return _by_name(name)


def _by_name(name: str) -> str:
    """Of a file that holds nothing, or nothing we know."""
    if name.startswith("dynamo_") and name.endswith((".pbtxt", ".txt", ".py")):
        return f"torchair {name.rpartition('.')[2]}"
    found = re.match(r"ge_(onnx|proto|readable)_", name)
    return f"ge {found[1]}" if found else "air" if name.endswith(".air") else ""


def _json_format(data: bytes) -> str:
    """By the keys that only one of the formats has."""
    if b'"session_and_graph_id' in data or b'"graph_fusion"' in data or b'"ub_fusion"' in data:
        return "fusion result"
    if b'"Switch"' in data[:65536]:
        return "fusion config"
    if b'"Task Type"' in data or (b'"ph"' in data and b'"Stream Id"' in data):
        return "torchair tasks"
    return "om json" if b'"graph"' in data else ""
