"""Data sets of folders of images: the user's, and CelebA."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fastmmd.data.folders import MEMORY, ImageFiles, image_files, memory_for_data
from fastmmd.data.images import DataSettings
from fastmmd.data.published import data_root
from fastmmd.data.splits import Dataset, Split, random_parts
from fastmmd.errors import UserError

CELEBA_FOLDER, CELEBA_PARTITION = "img_align_celeba", "list_eval_partition.txt"
CELEBA_SIZE = 64


def load_folder(name: str, folder: Path, settings: DataSettings) -> Dataset:
    """The images of a folder, split at random; see `load_data`."""
    files = image_files(folder, settings)
    return _loaded(name, files, random_parts(name, len(files)))


def load_celeba(name: str, data_dir: str | os.PathLike[str] | None, settings: DataSettings) -> Dataset:
    """The aligned faces of CelebA (Liu et al. 2015), 202,599 of 178x218: by default their middle, resized to 64x64.

    Split as `list_eval_partition.txt` beside the folder says, or at random where there is none.
    """
    root = data_root(data_dir)
    candidates = (root / name / CELEBA_FOLDER, root / CELEBA_FOLDER, root)
    folder = next((one for one in candidates if one.name == CELEBA_FOLDER and one.is_dir()), None)
    if folder is None:
        raise UserError(
            f"{name}: there is no folder {CELEBA_FOLDER} in {root}. Unpack {CELEBA_FOLDER}.zip there (from "
            "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html), or name its folder with --data-dir or the variable "
            "FASTMMD_DATA"
        )
    settings = replace(settings, size=settings.size or CELEBA_SIZE, fit=settings.fit or "crop")
    files = replace(image_files(folder, settings), labels=None)
    partition = folder.parent / CELEBA_PARTITION
    parts = _official(partition, files) if partition.is_file() else random_parts(name, len(files))
    return _loaded(name, files, parts)


def _official(partition: Path, files: ImageFiles) -> list[Tensor]:
    """Rows of training, validation and test by a file of lines such as "000001.jpg 0".

    Raises:
        UserError: it is no such file, does not list an image, or a split is empty.
    """
    try:
        lines = [line.split() for line in partition.read_text(encoding="utf-8").splitlines() if line.strip()]
        split_of = {file: ("0", "1", "2").index(number) for file, number in lines}
        found = torch.tensor([split_of[path.name] for path in files.paths])
    except KeyError as error:
        raise UserError(f"{partition}: does not list the image {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{partition}: lines such as '000001.jpg 0' expected, with 0, 1 or 2 ({error})") from error
    parts = [(found == number).nonzero()[:, 0] for number in range(3)]
    if not all(map(len, parts)):
        raise UserError(
            f"{partition}: {' / '.join(str(len(part)) for part in parts)} of the images are for training, "
            "validation and test; each needs some"
        )
    return parts


def _loaded(name: str, files: ImageFiles, parts: Sequence[Tensor]) -> Dataset:
    """Images that would take more than `memory_for_data` stay on disk, but for some of each split."""
    count, image_bytes = len(files), 4 * math.prod(files.image_shape)
    memory = memory_for_data()
    if 2 * count * image_bytes <= memory:  # as read, and in splits
        images = files.read()
        train, validation, test = (
            Split(images[part], None if files.labels is None else files.labels[part]) for part in parts
        )
        return Dataset(name, train, validation, test, files.image_shape)
    most = max(1, int(memory / 8 / image_bytes))
    kept = [files.rows(part[:most]) for part in parts]
    sizes = ", ".join(f"{len(some):,} of {len(part):,}" for some, part in zip(kept, parts, strict=True))
    warnings.warn(
        f"{name}: {count:,} images of {image_bytes / 1e3:,.0f} kB are more than {memory / 1e9:.3g} GB of memory hold "
        f"({MEMORY}): training reads them from disk (training.workers); evaluation and samplers take {sizes} training, "
        "validation and test images",
        stacklevel=4,
    )
    train, validation, test = (Split(some.read(), some.labels) for some in kept)
    return Dataset(name, train, validation, test, files.image_shape, train_files=files.rows(parts[0]))
