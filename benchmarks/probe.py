"""One implementation of mmd2 forward+backward in a process of its own: its time, and by how much the process grows.

    python benchmarks/probe.py '{"implementation": "eager", "n": 4096, "m": 4096, "dim": 6, "bandwidths": [2, 5]}'

prints one line of JSON. `run` starts it and tells how it ended.
"""

from __future__ import annotations

import ctypes
import json
import resource
import signal
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from settings import DEVICE, SIZES

OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "MemoryError", "CUDA out of memory")


def run(**case: Any) -> dict[str, Any]:
    """The case with "seconds" and "megabytes", or with "died" and why."""
    command = [sys.executable, __file__, json.dumps(case)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode == 0:
        return case | json.loads(process.stdout.splitlines()[-1])
    if process.returncode == -signal.SIGALRM:
        return case | {"died": f"over {SIZES.time_limit:.0f} s"}
    if any(words in process.stderr for words in OUT_OF_MEMORY):
        return case | {"died": f"over {SIZES.memory_limit >> 30} GB"}
    raise RuntimeError(f"{command}: exit status {process.returncode}\n{process.stderr[-2000:]}")


def median_run(times: int, **case: Any) -> dict[str, Any]:
    """The medians of so many processes, whose heaps fragment differently; the last one where one died."""
    rows = []
    for _ in range(times):
        rows.append(run(**case))
        if "died" in rows[-1]:
            return rows[-1]
    return rows[-1] | {key: statistics.median(row[key] for row in rows) for key in ("seconds", "megabytes")}


def main() -> None:
    case = json.loads(sys.argv[1])
    import peers
    import torch

    import fastmmd

    bandwidths = tuple(case["bandwidths"])
    x, y = peers.two_samples(case["n"], case["m"], case["dim"])
    x = x.clone().requires_grad_()
    with peers.chosen(case["implementation"], fastmmd.mmd2, peers.MMD2) as mmd2:

        def call() -> None:
            peers.value_and_gradient(mmd2, x, y, bandwidths)
            if DEVICE != "cpu":
                torch.cuda.synchronize()

        _limit_memory()
        if not peers.warm_up(case["implementation"], mmd2, case["dim"], bandwidths):
            call()
        before = _reset_peak()
        signal.setitimer(signal.ITIMER_REAL, SIZES.time_limit)  # ends this process, in native code too
        seconds = []
        while not seconds or (sum(seconds) < SIZES.row_seconds / 4 and len(seconds) < 100):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if len(seconds) == 1:
                megabytes = (_peak() - before) / 1e6
    print(json.dumps({"seconds": statistics.median(seconds), "rounds": len(seconds), "megabytes": megabytes}))


def _limit_memory() -> None:
    """So that what does not fit ends with an error here, and does not take the machine along."""
    if DEVICE == "cpu":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + SIZES.memory_limit,) * 2)


def _reset_peak() -> int:
    """Forget earlier peaks, of compilers for example; bytes in use now."""
    import torch

    if DEVICE != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # where it is not allowed the peak contains the warm-up
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """The highest resident size so far, in bytes."""
    import torch

    if DEVICE != "cpu":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # unlike ru_maxrss it can be reset, and does not start at the size of the parent process
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
