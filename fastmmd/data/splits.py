"""A data set: three disjoint splits of images, and how they come about."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmmd.data.folders import ImageFiles
from fastmmd.errors import UserError


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

    `image_shape` is (H, W) for gray images and (C, H, W), C = 3, for color: a row of `images` holds red, then green,
    then blue. (Rows that are no images have another shape: that of an array's row.)
    `original` is true for the published files of MNIST, Fashion-MNIST, SVHN and the Olivetti faces: only these compare
    with papers.
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

    def checksum(self) -> int | str:
        """Of the training images and their labels, bit by bit; of images in files, see `ImageFiles.checksum`."""
        if self.train_files is not None:
            return self.train_files.checksum()
        checksum = 0
        for part in (self.train.images, self.train.labels):
            checksum = checksum if part is None else zlib.crc32(part.cpu().contiguous().numpy().data, checksum)
        return checksum

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set with its images on `device` (labels stay on the host)."""
        moved: dict[str, Any] = {
            name: replace(split, images=split.images.to(device))
            for name, split in (("train", self.train), ("validation", self.validation), ("test", self.test))
        }
        if self.train_files is not None:
            moved["train_files"] = replace(self.train_files, device=torch.device(device))
        return replace(self, **moved)


def random_parts(name: str, count: int, held_out: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of training, validation and test: these two the share `held_out` each (at most 5,000 and 10,000), by a fixed
    permutation.

    Raises:
        UserError: there are fewer than 30.
    """
    if count < 30:
        raise UserError(f"{name}: {count} images are too few to split; at least 30 are needed")
    order = torch.from_numpy(np.random.RandomState(0).permutation(count))
    n_validation, n_test = min(int(count * held_out), 5_000), min(int(count * held_out), 10_000)
    n_train = count - n_validation - n_test
    train, validation, test = order.split([n_train, n_validation, n_test])
    return train, validation, test


def split_at_random(
    name: str, images: Tensor, labels: Tensor | None, shape: tuple[int, ...], held_out: float = 0.1
) -> Dataset:
    """A data set by `random_parts` of images [N, data_dim]."""
    parts = random_parts(name, images.shape[0], held_out)
    train, validation, test = (Split(images[part], None if labels is None else labels[part]) for part in parts)
    return Dataset(name, train, validation, test, shape)


def hold_out_last(name: str, train: Split, test: Split, shape: tuple[int, ...], original: bool) -> Dataset:
    """A data set with a published test split; validation are the last 5,000 training images, a tenth of fewer than
    10,000."""
    kept = len(train) - (5_000 if len(train) >= 10_000 else len(train) // 10)
    first, last = (
        Split(train.images[rows], None if train.labels is None else train.labels[rows])
        for rows in (slice(None, kept), slice(kept, None))
    )
    return Dataset(name, first, last, test, shape, original)
