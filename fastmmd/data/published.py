"""Published data sets: where their files lie on this machine, or are downloaded to."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastmmd.data.download import DownloadError, download
from fastmmd.errors import UserError


@dataclass(frozen=True)
class PublishedFile:
    """A file by its name here, the MD5 of its decompressed content, its addresses (none: it has to be there already)
    and the names that copies of it have."""

    name: str
    md5: str
    urls: tuple[str, ...]
    names: tuple[str, ...]

    def existing(self, folder: Path) -> Path | None:
        return next((folder / name for name in (*self.names, self.name) if (folder / name).is_file()), None)


def cache_folder() -> Path:
    """The user's cache folder for downloaded data (XDG_CACHE_HOME on Linux)."""
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local"
    elif sys.platform == "darwin":
        root = Path.home() / "Library/Caches"
    else:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "fastmmd"


def data_root(data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder where published data are looked for: `data_dir`, else FASTMMD_DATA, else the cache folder.

    Raises:
        UserError: `data_dir` does not exist.
    """
    if data_dir is not None and not Path(data_dir).expanduser().is_dir():
        raise UserError(f"data_dir: no such folder: {data_dir}")
    return Path(data_dir or os.environ.get("FASTMMD_DATA") or cache_folder()).expanduser()


def locate(
    name: str,
    files: Sequence[PublishedFile],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    folders: Sequence[str] = (),
    source: str = "",
    quiet: bool = False,
) -> list[Path]:
    """The paths of a data set's files, downloading those that are missing.

    Looked for in `data_root(data_dir)`: in a sub-folder named like the data set, in one of `folders`, or
    directly there.

    Args:
        source: where to get files that have no address.

    Raises:
        UserError: a file is not there and cannot be downloaded; says which files to put where.
    """
    root = data_root(data_dir)
    # Several data sets use the same file names, so a folder of its own goes before the common root.
    candidates = (root / name, *(root / folder for folder in folders), root)
    folder = next((one for one in candidates if any(file.existing(one) for file in files)), None)
    if folder is None:
        folder = root if data_dir is not None else root / name
    paths = []
    for file in files:
        path = file.existing(folder)
        if path is None:
            path = folder / file.name
            remedy = f"Put the files {', '.join((*one.names, one.name)[0] for one in files)} into {folder}"
            remedy += f"{source}, or name their folder with --data-dir or the variable FASTMMD_DATA"
            if not file.urls:
                raise UserError(f"{name}: there is no {path}. {remedy}")
            try:
                download(file.urls, path, file.md5, quiet=quiet)
            except DownloadError as error:
                raise UserError(f"{name} could not be downloaded ({error}). {remedy}") from error
        paths.append(path)
    return paths


def warn_of_others(name: str, folder: Path) -> None:
    """Warn, on behalf of the caller of `load_data`, that files are not the published ones."""
    warnings.warn(f"the files in {folder} are not the published {name}", stacklevel=4)
