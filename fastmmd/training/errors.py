"""Errors that the user can mend: the programs print them as one line and exit with code 2."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class UserError(ValueError):
    """A mistake in what the user asked for; the message says what came and what is allowed."""


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
        raise UserError(f'the package "{package}" is missing: pip install "fastmmd[train]"') from error


def unknown(what: str, name: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest ones that do."""
    allowed = sorted(allowed)
    near = get_close_matches(name, allowed, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"allowed: {', '.join(allowed)}"
    return UserError(f"unknown {what} {name!r}: {hint}")
