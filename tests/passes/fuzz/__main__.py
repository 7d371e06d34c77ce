"""``python -m tests.passes.fuzz``."""

import sys

from tests.passes.fuzz.cli import main

if __name__ == "__main__":
    sys.exit(main())
