"""Download of one file: mirrors, resumption of what broke off, checksum of the decompressed content."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from fastmmd.data.limits import check_expansion
from fastmmd.errors import UserError

try:  # Windows has no flock; there, two programs should not download the same file at once.
    import fcntl
except ImportError:  # pragma: no cover
    fcntl = None  # type: ignore[assignment]

ATTEMPTS = 4  # per mirror, each resuming where the one before stopped
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 16
_NETWORK_ERRORS = (OSError, http.client.HTTPException)  # urllib's errors are OSErrors


class DownloadError(UserError):
    """No mirror gave the file."""


def md5_of_content(path: Path) -> str:
    """MD5 of a file's content, decompressed if the file is gzip (by its first two bytes, not its name).

    Raises:
        UserError: the gzip stream is cut off or damaged, or expands beyond reason; the file cannot be read.
    """
    digest, count = hashlib.md5(usedforsecurity=False), 0
    try:
        with open_maybe_gzip(path) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                count += len(chunk)
                check_expansion(path, count)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); delete it and fetch it again") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    return digest.hexdigest()


def open_maybe_gzip(path: Path) -> gzip.GzipFile | BufferedReader:
    """Open a file for reading, through gzip if it is compressed."""
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if compressed else open(path, "rb")


def download(urls: Sequence[str], destination: Path, md5: str, *, quiet: bool = False) -> None:
    """Fetch one file from the first mirror that gives it, whole and with the right content.

    An interrupted transfer is kept next to the destination as `NAME.part` and is resumed with an HTTP range
    request, by this call or a later one. The destination appears only when it is complete and verified.

    Args:
        urls: the mirrors, in order of preference.
        destination: the file to write; its folder is created.
        md5: checksum of the content, decompressed if the file is gzip.
        quiet: no progress bar.

    Raises:
        DownloadError: every mirror failed; the message gives each one's reason.
    """
    part = destination.with_name(destination.name + ".part")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        file = open(part, "ab")  # noqa: SIM115
    except OSError as error:
        raise DownloadError(f"cannot write {part}: {error.strerror}") from error
    with file:
        if fcntl is not None:  # a second program waits here, and finds the finished file
            fcntl.flock(file, fcntl.LOCK_EX)
        if destination.exists():
            part.unlink(missing_ok=True)  # opened, and so made, after the other program had moved its own
            return
        if not part.exists():  # the other program gave up and removed it
            return download(urls, destination, md5, quiet=quiet)
        reasons = []
        for url in urls:
            try:
                _fetch_verified(url, file, part, md5, quiet)
            except _NETWORK_ERRORS as error:
                reasons.append(f"{url}: {_reason(error)}")
            except UserError as error:
                reasons.append(f"{url}: {error}")
            else:
                part.replace(destination)
                return
        if file.seek(0, 2) == 0:
            part.unlink()
    raise DownloadError("; ".join(reasons))


def _fetch_verified(url: str, file: IO[bytes], part: Path, md5: str, quiet: bool) -> None:
    """Fetch into `file` and verify; what another mirror or an older version left gets one fresh start."""
    for _ in range(2):
        resumed = file.seek(0, 2) > 0
        _fetch(url, file, quiet)
        try:
            digest = md5_of_content(part)
        except UserError:
            digest = "a damaged gzip file"
        if digest == md5:
            return
        file.truncate(0)
        if not resumed:
            break
    raise UserError(f"wrong content (MD5 {digest}, expected {md5})")


def _fetch(url: str, file: IO[bytes], quiet: bool) -> None:
    """Append the bytes of `url` that `file` lacks, with several attempts."""
    for attempt in range(ATTEMPTS):
        try:
            _transfer(url, file, quiet)
            return
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt == ATTEMPTS - 1:
                raise
        except _NETWORK_ERRORS as error:
            # An unreachable host will not come back within seconds; a broken transfer may.
            if isinstance(error, urllib.error.URLError) or attempt == ATTEMPTS - 1:
                raise
        time.sleep(0.2 * 2**attempt)


def _transfer(url: str, file: IO[bytes], quiet: bool) -> None:
    have = file.seek(0, 2)
    request = urllib.request.Request(url, headers={"User-Agent": "fastmmd", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if have and error.code == 416:  # nothing is missing: the checksum decides whether that is true
            return
        raise
    with response:
        if have and response.status != 206:  # this server knows no ranges
            file.truncate(0)
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with _progress_bar(url.rpartition("/")[2], have, total, quiet) as advance:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                advance(len(chunk))
        file.flush()
        if total is not None and file.tell() < total:
            raise http.client.IncompleteRead(b"", total - file.tell())


@contextlib.contextmanager
def _progress_bar(name: str, have: int, total: int | None, quiet: bool) -> Iterator[Any]:
    try:
        from rich import progress
    except ModuleNotFoundError:
        quiet = True
    if quiet:
        yield lambda count: None
        return
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
    )
    from rich.console import Console

    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total, completed=have)
        yield lambda count: bar.advance(task, count)


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    if isinstance(error, http.client.IncompleteRead):
        return "the connection broke off"
    return str(error) or type(error).__name__
