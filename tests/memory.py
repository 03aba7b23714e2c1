"""How much memory a script takes at most, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

# ru_maxrss would start at the size of the process that started this one, and so hide what is smaller.
PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return int(status.read().split("VmHWM:")[1].split()[0]) / 1024
"""


def measured(script: str, *arguments: object) -> list[float]:
    """The numbers that `script` prints; `peak()` is there for it, the highest resident size so far in MiB.

    Args:
        arguments: sys.argv[1:] of the script.
    """
    command = [sys.executable, "-W", "ignore", "-c", PEAK + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [float(number) for number in done.stdout.split()]
