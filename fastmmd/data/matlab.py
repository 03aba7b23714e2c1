"""Data sets in MATLAB files: the Olivetti faces and the house numbers of SVHN."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmmd.data.arrays import scaled
from fastmmd.data.download import md5_of_content
from fastmmd.data.matfile import read_matlab
from fastmmd.data.published import PublishedFile, locate, warn_of_others
from fastmmd.data.splits import Dataset, Split, hold_out_last
from fastmmd.errors import UserError

#: The MD5s are those that torchvision checks.
SVHN_FILES = tuple(
    PublishedFile(name, md5, (f"http://ufldl.stanford.edu/housenumbers/{name}",), ())
    for name, md5 in (
        ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
        ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
    )
)
OLIVETTI_FILE = PublishedFile("olivettifaces.mat", "", (), ())
#: Of the faces [4096, 400] as bytes, column by column: MATLAB writes the same array as different files.
OLIVETTI_MD5 = "c789a708157faad538517a418579ad21"
OLIVETTI_SOURCE = " (from cs.nyu.edu/~roweis/data, or https://ndownloader.figshare.com/files/5976027)"
PERSONS, IMAGES_OF_A_PERSON, SIDE = (30, 4, 6), 10, 64


def load_olivetti(name: str, data_dir: str | os.PathLike[str] | None = None, *, quiet: bool = False) -> Dataset:
    """400 faces of 64x64, ten of each of 40 persons, who are the labels: the first 30 persons are for training, the
    next four for validation, the last six for the test."""
    (path,) = locate(name, [OLIVETTI_FILE], data_dir, source=OLIVETTI_SOURCE, quiet=quiet)
    faces = _bytes(path, read_matlab(path, ("faces",))["faces"])
    count = sum(PERSONS) * IMAGES_OF_A_PERSON
    if faces.shape != (SIDE**2, count):
        raise UserError(f"{path}: faces of shape [{SIDE**2}, {count}] expected, got {list(faces.shape)}")
    columns = np.ascontiguousarray(faces.T)
    original = hashlib.md5(columns.tobytes(), usedforsecurity=False).hexdigest() == OLIVETTI_MD5
    if not original:
        warn_of_others(name, path.parent)
    pictures = columns.reshape(count, SIDE, SIDE).swapaxes(1, 2)  # each is stored column by column
    images, labels = scaled(torch.from_numpy(pictures), name), torch.arange(count) // IMAGES_OF_A_PERSON
    sizes = [persons * IMAGES_OF_A_PERSON for persons in PERSONS]
    train, validation, test = map(Split, images.split(sizes), labels.split(sizes))
    return Dataset(name, train, validation, test, (SIDE, SIDE), original)


def load_svhn(name: str, data_dir: str | os.PathLike[str] | None = None, *, quiet: bool = False) -> Dataset:
    """73,257 and 26,032 house numbers of 32x32 pixels in color, and the digit in the middle of each."""
    paths = locate(name, SVHN_FILES, data_dir, folders=["SVHN"], quiet=quiet)
    original = all(md5_of_content(path) == file.md5 for path, file in zip(paths, SVHN_FILES, strict=True))
    if not original:
        warn_of_others(name, paths[0].parent)
    (train, shape), (test, test_shape) = (_svhn_split(path) for path in paths)
    if shape != test_shape or len(train) < 10:
        raise UserError(
            f"{paths[0].parent}: 10 or more training images and test images of one size expected, got {len(train)} of "
            f"shape {shape} and {test_shape}"
        )
    return hold_out_last(name, train, test, shape, original)


def _svhn_split(path: Path) -> tuple[Split, tuple[int, ...]]:
    arrays = read_matlab(path, ("X", "y"))
    images, labels = _bytes(path, arrays["X"]), arrays["y"].reshape(-1)
    if images.ndim != 4 or images.shape[2] != 3 or images.size == 0 or labels.shape != images.shape[3:]:
        shapes = f"{list(images.shape)} and {list(arrays['y'].shape)}"
        raise UserError(f"{path}: images X [H, W, 3, N] and labels y [N, 1] expected, got {shapes}")
    if not np.isin(labels, np.arange(11)).all():
        raise UserError(f"{path}: labels y from 1 to 10, which is the digit 0, expected")
    pictures = torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1)))
    digits = torch.from_numpy(labels.astype(np.int64) % 10)
    return Split(scaled(pictures, str(path)), digits), tuple(pictures.shape[1:])


def _bytes(path: Path, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array of whole numbers in 0..255 as uint8, whatever MATLAB stored them as.

    Raises:
        UserError: there are others.
    """
    if array.dtype != np.uint8:
        with np.errstate(invalid="ignore"):
            narrow = array.astype(np.uint8)
        if not np.array_equal(narrow, array):
            raise UserError(f"{path}: bytes in 0..255 expected, got other numbers ({array.dtype})")
        return narrow
    return array
