"""One part; npu_fused_graph.selftest starts it."""

import sys

from npu_fused_graph.selftest.parts import main

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
