"""Image data sets as tensors in memory: embedded digits, MNIST and Fashion-MNIST (IDX), arrays, folders."""

from __future__ import annotations

import gzip
import math
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmmd.data.download import DownloadError, download, md5_of_content, open_maybe_gzip
from fastmmd.data.folders import MEMORY, ImageFiles, image_files, memory_for_data
from fastmmd.data.limits import check_archive, check_expansion, check_memory
from fastmmd.errors import UserError, first_line, require

#: Name -> (mirrors, {file: MD5 of the decompressed file}).
IDX_SOURCES: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "mnist": (
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        {
            "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
            "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        },
    ),
    "fashion-mnist": (
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        {
            "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
            "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
            "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
        },
    ),
}
NAMES = ("digits", *IDX_SOURCES)
_TORCHVISION_FOLDERS = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}


@dataclass(frozen=True)
class Split:
    """Images [N, data_dim] float32 in [0, 1], one per row, and their labels [N] int64 if there are any."""

    images: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return self.images.shape[0]


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits of one image data set.

    `original` is true for the published files of MNIST and Fashion-MNIST: only these compare with papers.
    `train_files` are all training images where they do not fit memory; then `train` holds some of them.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    image_shape: tuple[int, ...]
    original: bool = False
    train_files: ImageFiles | None = None

    @property
    def data_dim(self) -> int:
        return self.train.images.shape[1]

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set with its images on `device` (labels stay on the host)."""
        moved: dict[str, Any] = {
            name: replace(split, images=split.images.to(device))
            for name, split in (("train", self.train), ("validation", self.validation), ("test", self.test))
        }
        if self.train_files is not None:
            moved["train_files"] = replace(self.train_files, device=torch.device(device))
        return replace(self, **moved)


def load_data(name: str = "digits", data_dir: str | os.PathLike[str] | None = None, *, quiet: bool = False) -> Dataset:
    """Load a data set.

    Args:
        name: "digits" (1,797 images of 8x8 that come with scikit-learn), "mnist", "fashion-mnist", or a path:
            an .npy/.npz/.pt array [N, ...] (uint8 0..255 or float 0..1; in an .npz or a dictionary: `images`
            and perhaps `labels`), or a folder of images of equal size (read as grayscale; sub-folders are
            labels). One that takes more than half of the memory, or than the bytes in the environment variable
            FASTMMD_DATA_MEMORY, stays on disk (`Dataset.train_files`), with a warning that says what is in memory.
        data_dir: where the IDX files of MNIST lie or go, plain or .gz; default: the environment variable
            FASTMMD_DATA, else the user's cache folder. Missing files are downloaded there.
        quiet: no progress bar.

    Raises:
        UserError: no such data set or file, or its content is not what the name promises.
    """
    if name == "digits":
        return _load_digits()
    if name in IDX_SOURCES:
        return _load_idx(name, data_dir, quiet)
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):  # of os.path: a name that no file can have is none
        return _load_folder(name, path)
    if os.path.isfile(path):
        return _split(name, *_read_array(path))
    allowed = f"{', '.join(NAMES)}, an .npy/.npz/.pt file, a folder of images"
    raise UserError(f"data: no such file or folder: {name} (allowed: {allowed})")


def cache_folder() -> Path:
    """The user's cache folder for downloaded data (XDG_CACHE_HOME on Linux)."""
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local"
    elif sys.platform == "darwin":
        root = Path.home() / "Library/Caches"
    else:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "fastmmd"


def _load_digits() -> Dataset:
    digits = require("sklearn.datasets").load_digits()
    images = torch.from_numpy(digits.data / 16.0).float()
    return _split("digits", images, torch.from_numpy(digits.target).long(), (8, 8), held_out=0.15)


def _parts(name: str, count: int, held_out: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of training, validation and test: these two the share `held_out` each (at most 5,000 and 10,000), by a fixed
    permutation."""
    if count < 30:
        raise UserError(f"{name}: {count} images are too few to split; at least 30 are needed")
    order = torch.from_numpy(np.random.RandomState(0).permutation(count))
    n_validation, n_test = min(int(count * held_out), 5_000), min(int(count * held_out), 10_000)
    n_train = count - n_validation - n_test
    train, validation, test = order.split([n_train, n_validation, n_test])
    return train, validation, test


def _split(name: str, images: Tensor, labels: Tensor | None, shape: tuple[int, ...], held_out: float = 0.1) -> Dataset:
    parts = _parts(name, images.shape[0], held_out)
    train, validation, test = (Split(images[part], None if labels is None else labels[part]) for part in parts)
    return Dataset(name, train, validation, test, shape)


def _load_idx(name: str, data_dir: str | os.PathLike[str] | None, quiet: bool) -> Dataset:
    paths = locate_idx(name, data_dir, quiet=quiet)
    original = True
    for file, path in paths.items():
        digest = md5_of_content(path)
        if digest == IDX_SOURCES[name][1][file]:
            continue
        for other, (_, files) in IDX_SOURCES.items():
            if digest == files[file]:
                raise UserError(f"{path} is a file of {other}, not of {name}")
        original = False
    if not original:
        warnings.warn(f"the files in {path.parent} are not the published {name}", stacklevel=3)
    train_images, train_labels, test_images, test_labels = (read_idx(path) for path in paths.values())
    for kind, images, labels in (("train", train_images, train_labels), ("t10k", test_images, test_labels)):
        if images.ndim != 3 or labels.ndim != 1 or images.shape[0] != labels.shape[0] or images.numel() == 0:
            shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
            raise UserError(f"{path.parent}: {kind} images [N, H, W] and labels [N] expected, got {shapes}")
    if train_images.shape[1:] != test_images.shape[1:] or len(train_images) < 10:
        shapes = f"{tuple(train_images.shape)} and {tuple(test_images.shape)}"
        raise UserError(f"{path.parent}: 10 or more training images and test images of one size expected, got {shapes}")
    count = train_images.shape[0]
    n_validation = 5_000 if count >= 10_000 else count // 10
    images = _scaled(train_images, name)
    labels = train_labels.long()
    return Dataset(
        name,
        Split(images[: count - n_validation], labels[: count - n_validation]),
        Split(images[count - n_validation :], labels[count - n_validation :]),
        Split(_scaled(test_images, name), test_labels.long()),
        tuple(train_images.shape[1:]),
        original,
    )


def locate_idx(name: str, data_dir: str | os.PathLike[str] | None = None, *, quiet: bool = False) -> dict[str, Path]:
    """The paths of a data set's four IDX files, downloading those that are missing.

    Looked for in `data_dir`, else FASTMMD_DATA, else the cache folder: directly there, in a sub-folder named
    like the data set, or in torchvision's layout.
    """
    if data_dir is not None and not Path(data_dir).expanduser().is_dir():
        raise UserError(f"data_dir: no such folder: {data_dir}")
    root = Path(data_dir or os.environ.get("FASTMMD_DATA") or cache_folder()).expanduser()
    mirrors, files = IDX_SOURCES[name]
    folders = (root / name, root / _TORCHVISION_FOLDERS[name], root)
    # Both data sets use the same file names, so a folder of its own goes before the common root.
    folder = next((f for f in folders if any(_existing(f, file) for file in files)), None)
    if folder is None:
        folder = root if data_dir is not None else root / name
    paths = {}
    for file, md5 in files.items():
        location = _existing(folder, file)
        if location is None:
            location = folder / f"{file}.gz"
            try:
                download([f"{mirror}{file}.gz" for mirror in mirrors], location, md5, quiet=quiet)
            except DownloadError as error:
                raise UserError(
                    f"{name} could not be downloaded ({error}). Put the files {', '.join(files)} (plain or "
                    f".gz) into {folder}, or name their folder with --data-dir or the variable FASTMMD_DATA"
                ) from error
        paths[file] = location
    return paths


def _existing(folder: Path, file: str) -> Path | None:
    # Some copies have a dot instead of the hyphen before "idx".
    names = (file, f"{file}.gz", file.replace("-idx", ".idx"), f"{file.replace('-idx', '.idx')}.gz")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """Read an IDX file of unsigned bytes, plain or gzip, as a uint8 tensor of the header's shape.

    Raises:
        UserError: not an IDX file of unsigned bytes, or shorter or longer than its header says.
    """
    path = Path(path)
    try:
        with open_maybe_gzip(path) as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != 0x08 or not 1 <= magic[3] <= 4:
                raise UserError(f"{path}: not an IDX file of unsigned bytes (it starts with {magic!r})")
            header = file.read(4 * magic[3])
            shape = struct.unpack(f">{magic[3]}I", header) if len(header) == 4 * magic[3] else ()
            expected = math.prod(shape)
            if isinstance(file, gzip.GzipFile):
                check_expansion(path, expected)
            check_memory(path, expected)
            content = file.read(expected + 1)  # the header may be small and what follows without end
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip file ({error}); delete it and fetch it again") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    if not shape or len(content) != expected:
        had = f"{len(content)}{' or more' if len(content) > expected else ''}"
        raise UserError(f"{path}: {had} bytes of data, the header says {expected} {shape}; fetch it again")
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(shape).copy())


def _read_array(path: Path) -> tuple[Tensor, Tensor | None, tuple[int, ...]]:
    suffix = path.suffix.lower()
    if suffix not in (".npy", ".npz", ".pt"):
        raise UserError(f"{path}: unknown kind of file (allowed: .npy, .npz, .pt, a folder of images)")
    try:
        content, labels = _arrays(path, suffix)
    except UserError:
        raise
    except Exception as error:  # the readers raise whatever the broken content leads them to
        raise UserError(
            f"{path}: cannot be read as {suffix} ({first_line(error)}); expected arrays of numbers alone, which is all "
            "that is read from a file that may be from anywhere"
        ) from error
    images = _tensor(path, content)
    if images.ndim < 2 or images.numel() == 0:
        raise UserError(f"{path}: an array [N, ...] of images expected, got shape {tuple(images.shape)}")
    check_memory(path, images.numel())
    if labels is not None:
        labels = _tensor(path, labels)
        if labels.shape != images.shape[:1] or labels.is_floating_point():
            came = f"{labels.dtype} {tuple(labels.shape)}"
            raise UserError(f"{path}: labels must be integers of shape [{images.shape[0]}], got {came}")
        labels = labels.long()
    return _scaled(images, str(path)), labels, _image_shape(tuple(images.shape[1:]))


def _arrays(path: Path, suffix: str) -> tuple[Any, Any]:
    """The images in a file, and its labels or None; nothing else in it is read, and nothing executed."""
    if suffix == ".npy":
        return np.load(path, allow_pickle=False), None
    check_archive(path)
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return _named(path, archive)
    content = torch.load(path, map_location="cpu", weights_only=True)
    return _named(path, content) if isinstance(content, dict) else (content, None)


def _named(path: Path, arrays: Mapping[str, Any]) -> tuple[Any, Any]:
    """`images` and `labels` of several arrays, or the only one."""
    if "images" not in arrays and len(arrays) != 1:
        names = ", ".join(sorted(map(str, arrays)))
        raise UserError(f"{path}: no array named 'images' among {names}")
    labels = arrays["labels"] if "labels" in arrays else None
    return arrays["images"] if "images" in arrays else arrays[next(iter(arrays))], labels


def _tensor(path: Path, array: object) -> Tensor:
    """A tensor of its own: no gradient, and the byte order of this machine, the only one that torch takes.

    Raises:
        UserError: no array of real numbers that are stored one by one.
    """
    if isinstance(array, np.ndarray) and array.dtype.kind in "buif" and array.dtype.itemsize <= 8:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    if isinstance(array, Tensor):
        plain = array.layout == torch.strided and array.device.type == "cpu" and not array.is_nested
        if plain and not array.is_quantized and not array.is_complex():
            return array.detach()
        raise UserError(f"{path}: a dense tensor of real numbers expected, got {array.dtype}, {array.layout}")
    if isinstance(array, np.ndarray):
        raise UserError(f"{path}: uint8 in 0..255 or float in 0..1 expected, got {array.dtype}")
    raise UserError(f"{path}: an array [N, ...] expected, got {type(array).__name__}")


def _load_folder(name: str, folder: Path) -> Dataset:
    """Images that would take more than `memory_for_data` stay on disk, but for some of each split."""
    files = image_files(folder)
    count, image_bytes = len(files), 4 * math.prod(files.image_shape)
    memory = memory_for_data()
    parts = _parts(name, count)
    if 2 * count * image_bytes <= memory:  # as read, and in splits
        images = files.read()
        return _split(name, images, files.labels, files.image_shape)
    most = max(1, int(memory / 8 / image_bytes))
    kept = [files.rows(part[:most]) for part in parts]
    sizes = ", ".join(f"{len(some):,} of {len(part):,}" for some, part in zip(kept, parts, strict=True))
    warnings.warn(
        f"{name}: {count:,} images of {image_bytes / 1e3:,.0f} kB are more than {memory / 1e9:.3g} GB of memory hold "
        f"({MEMORY}): training reads them from disk (training.workers); evaluation and samplers take {sizes} training, "
        "validation and test images",
        stacklevel=3,
    )
    train, validation, test = (Split(some.read(), some.labels) for some in kept)
    return Dataset(name, train, validation, test, files.image_shape, train_files=files.rows(parts[0]))


def _scaled(images: Tensor, name: str) -> Tensor:
    """[N, ...] -> [N, data_dim] float32 in [0, 1]."""
    rows = images.reshape(images.shape[0], -1)
    if rows.dtype == torch.uint8:
        return rows.float().div_(255)
    if not rows.is_floating_point():
        raise UserError(f"{name}: uint8 in 0..255 or float in 0..1 expected, got {rows.dtype}")
    rows = rows.float()
    low, high = rows.min().item(), rows.max().item()
    if not (low >= 0 and high <= 1):  # refuses NaN too
        raise UserError(f"{name}: float images must lie in 0..1, got values from {low:g} to {high:g}")
    return rows.contiguous()


def _image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """How to show one image: no axes of length one; a flat row of a square number of pixels as a square."""
    shape = tuple(size for size in shape if size > 1) or (1,)
    side = round(shape[0] ** 0.5)
    return (side, side) if len(shape) == 1 and side * side == shape[0] else shape
