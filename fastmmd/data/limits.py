"""What a file may ask for: a small one that expands to gigabytes is refused, and more images than memory holds."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from fastmmd.errors import UserError

FREE = 2**30  # bytes that any archive may expand to
RATIO = 100  # and this many times its own size; images compress by less, archives made to fill memory by 1,000


def check_expansion(path: Path, expanded: int) -> None:
    """A compressed file may expand to so many bytes.

    Raises:
        UserError: it may not.
    """
    size = path.stat().st_size
    if expanded > max(FREE, RATIO * size):
        raise UserError(
            f"{path}: {size:,} bytes that expand to {expanded:,} or more, as a file made to fill memory does; if it is "
            "right, store it uncompressed"
        )


def check_archive(path: Path) -> None:
    """The members of a zip file, if it is one (.npz, .pt), say that they expand to so many bytes.

    Raises:
        UserError: too many.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_expansion(path, sum(member.file_size for member in archive.infolist()))


def check_memory(name: str | Path, numbers: int) -> None:
    """The machine has memory for so many numbers in float32.

    Raises:
        UserError: it has not.
    """
    needed, present = 4 * numbers, memory()
    if needed > present:
        raise UserError(
            f"{name}: its images take {needed / 1e9:,.1f} GB as float32, this machine has {present / 1e9:,.1f} GB; use "
            "fewer or smaller ones"
        )


def memory() -> int:
    """Bytes of this machine's memory; where it does not say, as many as there are addresses."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**63
