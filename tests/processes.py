"""Commands and programs in processes of their own, which tests kill, stop or starve."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

PROGRAMS = Path(__file__).parents[1] / "python"
# Processes are forked from one that has imported what takes seconds, and has run nothing.
FORKS = multiprocessing.get_context("forkserver")
SLOW_IMPORTS = ["fastmmd.training.commands", "fastmmd.training.experiments", "matplotlib.backends.backend_agg"]
SLOW_IMPORTS += ["matplotlib.figure", "sklearn.datasets", "tomli_w", "torch._dynamo"]  # the last one by any optimizer
FORKS.set_forkserver_preload([*SLOW_IMPORTS, "processes"])


class Ended(NamedTuple):
    """How a process ended (minus the number of the signal that killed it), what it printed, and how long it took."""

    code: int
    out: str
    err: str
    seconds: float
    operations: int  # on files, unless it was killed


@dataclass(frozen=True)
class Fault:
    """A signal, after some seconds or before the nth operation on a file in the working directory: open to write,
    rename, remove. With neither, when `run` is told."""

    signal: int
    seconds: float | None = None
    operation: int | None = None


def run(
    words: Sequence[object],
    folder: Path,
    fault: Fault | None = None,
    prepare: Callable[[], None] | None = None,
    when: Callable[[], bool] | None = None,
) -> Ended:
    """`fastmmd WORDS`, or the program in python/ that the first word names, with `folder` as working directory.

    Args:
        prepare: is called in the process before it begins.
        when: the fault's moment, where it has none.
    """
    out, err, operations = (folder.parent / f"{folder.name}-{name}" for name in ("out", "err", "operations"))
    begin = time.monotonic()
    process = FORKS.Process(target=_main, args=([*map(str, words)], folder, fault, prepare, (out, err, operations)))
    process.start()
    if fault is not None and fault.operation is None:
        process.join(fault.seconds or 0)
        while process.exitcode is None and when is not None and not when():
            time.sleep(0.02)
        if process.exitcode is None:
            os.kill(process.pid, fault.signal)
    process.join(120)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"{words} does not end")
    took = time.monotonic() - begin
    said = [path.read_text() if path.exists() else "" for path in (out, err, operations)]
    return Ended(process.exitcode, said[0], said[1], took, int(said[2] or 0))


def _main(
    words: list[str], folder: Path, fault: Fault | None, prepare: Callable[[], None] | None, said: Sequence[Path]
) -> None:
    import torch

    from fastmmd import cli
    from fastmmd.training import loop

    said[2].unlink(missing_ok=True)
    for number, path in ((1, said[0]), (2, said[1])):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which jobs in the background ignore
    torch.set_num_threads(1)
    loop.SECONDS_BETWEEN_CHECKPOINTS = 0.0  # a checkpoint at every epoch
    os.chdir(folder)
    count = _count_operations(folder, fault)
    if prepare is not None:
        prepare()
    try:
        if words[0].endswith(".py"):
            sys.argv = [str(PROGRAMS / words[0]), *words[1:]]
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            sys.argv = ["fastmmd", *words]
            cli.main()
    finally:
        said[2].write_text(str(count[0]))
        with suppress(OSError):
            sys.stdout.flush()


def _count_operations(folder: Path, fault: Fault | None) -> list[int]:
    """A counter, and the fault when it is due."""
    count = [0]
    inside = str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            counts = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        elif event in ("os.rename", "os.remove"):
            path, counts = arguments[0], True
        else:
            return
        if counts and isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(inside):
            count[0] += 1
            if fault is not None and count[0] == fault.operation:
                os.kill(os.getpid(), fault.signal)

    sys.addaudithook(hook)
    return count
