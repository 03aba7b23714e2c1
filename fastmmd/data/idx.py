"""MNIST and Fashion-MNIST, in IDX files."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastmmd.data.arrays import scaled
from fastmmd.data.download import md5_of_content, open_maybe_gzip
from fastmmd.data.limits import check_expansion, check_memory
from fastmmd.data.published import PublishedFile, locate, warn_of_others
from fastmmd.data.splits import Dataset, Split, hold_out_last
from fastmmd.errors import UserError

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
_TORCHVISION_FOLDERS = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}


def load_idx(name: str, data_dir: str | os.PathLike[str] | None = None, *, quiet: bool = False) -> Dataset:
    """A data set of `IDX_SOURCES`; see `load_data`."""
    sums = IDX_SOURCES[name][1]
    paths = locate(name, _files(name), data_dir, folders=[_TORCHVISION_FOLDERS[name]], quiet=quiet)
    original = True
    for file, path in zip(sums, paths, strict=True):
        digest = md5_of_content(path)
        if digest == sums[file]:
            continue
        for other, (_, files) in IDX_SOURCES.items():
            if digest == files[file]:
                raise UserError(f"{path} is a file of {other}, not of {name}")
        original = False
    folder = paths[0].parent
    if not original:
        warn_of_others(name, folder)
    train_images, train_labels, test_images, test_labels = (read_idx(path) for path in paths)
    for kind, images, labels in (("train", train_images, train_labels), ("t10k", test_images, test_labels)):
        if images.ndim != 3 or labels.ndim != 1 or images.shape[0] != labels.shape[0] or images.numel() == 0:
            shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
            raise UserError(f"{folder}: {kind} images [N, H, W] and labels [N] expected, got {shapes}")
    if train_images.shape[1:] != test_images.shape[1:] or len(train_images) < 10:
        shapes = f"{tuple(train_images.shape)} and {tuple(test_images.shape)}"
        raise UserError(f"{folder}: 10 or more training images and test images of one size expected, got {shapes}")
    train, test = (
        Split(scaled(train_images, name), train_labels.long()),
        Split(scaled(test_images, name), test_labels.long()),
    )
    return hold_out_last(name, train, test, tuple(train_images.shape[1:]), original)


def _files(name: str) -> list[PublishedFile]:
    mirrors, sums = IDX_SOURCES[name]
    files = []
    for file, md5 in sums.items():
        dotted = file.replace("-idx", ".idx")  # as some copies are named
        urls = tuple(f"{mirror}{file}.gz" for mirror in mirrors)
        files.append(PublishedFile(f"{file}.gz", md5, urls, (file, f"{file}.gz", dotted, f"{dotted}.gz")))
    return files


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
