"""Files that are whole or not there, whatever interrupts: a kill, a crash, a full disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fastmmd.errors import UserError

TEMPORARY = ".tmp"  # the suffix of a file that is not whole: one left by a kill is replaced by the next run


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the name `path` when the block ends.

    Its content reaches the disk before the name does, so that `path` always holds a whole file, the earlier or this.

    Raises:
        UserError: the folder is missing or not writable, or the disk is full; the earlier file is intact.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    with writing(path, "; the one from before is intact" if path.is_file() else ""):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if os.name == "posix":  # the new name too must reach the disk
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def write_text(path: Path, text: str) -> None:
    """`path` with this text; see `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def writing(path: Path, comfort: str = "") -> Iterator[None]:
    """Turns errors of the operating system into a `UserError` that names `path`."""
    try:
        yield
    except Exception as error:
        reason: BaseException | None = error
        while reason is not None and not isinstance(reason, OSError):  # torch.save raises a RuntimeError over it
            reason = reason.__context__
        if reason is None or isinstance(error, UserError):
            raise
        raise UserError(f"cannot write {path}: {reason.strerror or reason}{comfort}") from error
