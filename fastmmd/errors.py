"""How a program ends early: errors that the user can fix (one line, exit code 2), and requests to stop."""

from __future__ import annotations

import contextlib
import importlib
import signal
import threading
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

INSTALL = 'pip install "fastmmd[train]" (from a checkout: pip install ".[train]")'


class UserError(ValueError):
    """A user error; the message says what was given and what is allowed."""


class Interrupted(BaseException):
    """A signal asked to stop; the message says where that was and how to resume. No error, as KeyboardInterrupt."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, signal_number)  # both: it is pickled on its way from a worker process
        self.signal_number, self.exit_code = signal_number, 128 + signal_number

    def __str__(self) -> str:
        return str(self.args[0])


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Interrupted`, so that nothing half-written is left; not where they are ignored."""

    def interrupt(number: int, _frame: object) -> None:
        raise Interrupted(f"stopped by {signal.Signals(number).name}", number)

    usual: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    main = threading.current_thread() is threading.main_thread()
    ours = [number for number, handler in usual.items() if main and signal.getsignal(number) == handler]
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, usual[number])


def require(module: str) -> Any:
    """Import a module of the `train` extra.

    Raises:
        UserError: the package is not installed.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise UserError(f'the package "{package}" is missing: {INSTALL}') from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its beginning; its class name if the message is empty."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 300 else f"{line[:300]}..."  # some quote what they could not read


def unknown(what: str, name: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest ones that do."""
    allowed = sorted(allowed)
    near = get_close_matches(name, allowed, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"allowed: {', '.join(allowed)}"
    return UserError(f"unknown {what} {name!r}: {hint}")
