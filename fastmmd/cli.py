"""The command `fastmmd`: its process, exit codes and error lines. The commands are in `fastmmd.training.commands`."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from typing import NoReturn

from fastmmd.errors import INSTALL, Interrupted, UserError, interruptible

_EXTRA = {"typer": "typer", "rich": "rich", "tomli_w": "tomli-w", "sklearn": "scikit-learn", "PIL": "pillow"}
_EXTRA |= {"matplotlib": "matplotlib"}


def main() -> NoReturn:
    """The command: user errors end with one line and exit code 2."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    if missing := [package for module, package in _EXTRA.items() if importlib.util.find_spec(module) is None]:
        _without_extra(missing)
    import typer

    from fastmmd.training.commands import app, held

    try:
        with interruptible(), held:
            code = app(prog_name="fastmmd", standalone_mode=False)
    except UserError as error:
        _fail(" ".join(str(error).split()))
    except Interrupted as stop:
        _fail(str(stop), stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message() or "see fastmmd --help"
        if message.startswith("Usage"):  # no command at all: the whole help
            print(message, file=sys.stderr)
            raise SystemExit(2) from None
        _fail(message)  # a mistake in the command line itself
    raise SystemExit(code if isinstance(code, int) else 0)


def _without_extra(missing: list[str]) -> NoReturn:
    """`info` works without them: it helps to repair an installation."""
    message = f"the programs need {', '.join(missing)}: {INSTALL}"
    if sys.argv[1:] != ["info"]:
        _fail(message)
    from fastmmd.training.run import print_info

    print_info()
    print(message)
    raise SystemExit(0)


def _fail(message: str, code: int = 2) -> NoReturn:
    rank = os.environ.get("RANK")  # of torchrun, whose processes may fail for different reasons
    print(f"fastmmd{f' (process {rank})' if rank else ''}: {message}", file=sys.stderr)
    raise SystemExit(code)
