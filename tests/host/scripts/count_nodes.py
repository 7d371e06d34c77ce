"""Registered with `run --register`: each process writes the GE types of every graph it loads into FOLDER (see --)."""

import json
import os
from collections import Counter
from pathlib import Path

from npu_fused_graph.host.native import graph_listeners


def write(executable):
    types = Counter(node.type for node in executable.graph.nodes.values())
    with (Path(os.environ["NODES_FOLDER"]) / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(types) + "\n")


graph_listeners.append(write)
