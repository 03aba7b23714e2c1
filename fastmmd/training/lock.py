"""One process at a time in a run folder: the operating system's lock on a file, which ends with its process."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from fastmmd.errors import UserError
from fastmmd.files import writing

try:
    import fcntl
except ImportError:  # Windows, where there is no lock
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"  # in the folder
SWITCH = "FASTMMD_LOCK"  # "off": no locks, where a file system has none
_held: set[int] = set()  # file descriptors


@contextlib.contextmanager
def locked(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Hold a folder; FOLDER/lock says which process does. A dead one holds nothing, whatever it has left behind.

    Locks of another name hold what they stand for, each on its own.

    The lock is flock(2)'s, so it also keeps out the other hosts of a network file system whose server has locks.

    Raises:
        UserError: another process holds the folder (the message names it), the folder is not writable, or its file
            system has no locks.
    """
    if fcntl is None or os.environ.get(SWITCH) == "off":
        yield
        return
    path = folder / name
    with writing(path):
        file = _acquire(path)
    try:
        with writing(path):
            os.ftruncate(file, 0)  # the record of a process that is dead
            os.pwrite(file, json.dumps(_record()).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):  # or what is left is an empty lock that nobody holds
            path.unlink()  # before the lock ends: what is removed is ours
        _held.discard(file)
        os.close(file)


def require_unlocked(folder: Path) -> None:
    """Raises what `locked` would raise."""
    with locked(folder):
        pass


def _acquire(path: Path) -> int:
    """The descriptor of the locked file."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _flock(file, path)
            named = os.path.samestat(os.fstat(file), os.stat(path))
        except FileNotFoundError:
            named = False
        except BaseException:
            os.close(file)
            raise
        if named:
            _held.add(file)
            return file
        os.close(file)  # its holder has removed it in between: another process may have locked a new one


def _flock(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise UserError(f"{path.parent} is in use by {_holder(file)}: wait for its end, or stop it") from None
        raise UserError(
            f"the file system of {path.parent} has no locks ({error.strerror}): put the run elsewhere, or make sure "
            f"that no other process uses it and set {SWITCH}=off"
        ) from error


def _record() -> dict[str, str | int]:
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    return {"pid": os.getpid(), "host": platform.node(), "since": since, "command": shlex.join(sys.argv)}


def _holder(file: int) -> str:
    try:
        record = json.loads(os.pread(file, 1 << 16, 0))
        return "process {pid} on {host} since {since} ({command})".format(**record)
    except (ValueError, KeyError, TypeError, OSError):  # it is just writing who it is
        return "another process"


def _let_go() -> None:
    """A forked process keeps no lock that its parent holds: it could outlive it."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
