"""Starts a process and does not wait for it."""

import subprocess
import sys

child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(3600)"], stdout=subprocess.DEVNULL)
print(child.pid)
