"""Runs pytest in forks of a process that has imported what takes long: python tests/mutants/warm.py SECONDS MODULES

Each line of the standard input is a run, in JSON: the arguments of pytest, and the file for what it prints. Its exit
status is printed, negative if a signal ended it: SIGALRM after so many seconds. A hundred runs, each of a few tests,
would spend most of their time on imports.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys


def run(arguments: list[str], output: str, seconds: int) -> int:
    """The exit status of pytest."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.alarm(seconds)
    sink = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(sink, stream)
    status = 3  # pytest's, of an internal error
    try:
        status = int(importlib.import_module("pytest").main(arguments))
        sys.stdout.flush()
    finally:
        os._exit(status)


def main() -> None:
    for name in sys.argv[2:]:
        importlib.import_module(name)
    for line in sys.stdin:
        arguments, output = json.loads(line)
        print(run(arguments, output, int(sys.argv[1])), flush=True)


if __name__ == "__main__":
    main()
