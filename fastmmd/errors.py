"""How a program ends early: errors that the user can fix (one line, exit code 2), and requests to stop."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

INSTALL = 'pip install "fastmmd[train]" (from a checkout: pip install ".[train]")'


class UserError(ValueError):
    """A user error; the message says what was given and what is allowed."""


class Interrupted(Exception):
    """The run was asked to stop by a signal; the message says where it stopped and how to resume."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


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
