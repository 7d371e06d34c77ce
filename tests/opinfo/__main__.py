"""``python -m tests.opinfo``."""

import sys

from tests.opinfo.cli import main

if __name__ == "__main__":
    sys.exit(main())
