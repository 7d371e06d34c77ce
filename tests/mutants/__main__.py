"""``python -m tests.mutants``."""

import signal
import sys

from tests.mutants.cli import main

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
