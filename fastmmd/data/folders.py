"""Folders of images: read into memory, or file by file where they do not fit."""

from __future__ import annotations

import os
import signal
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from fastmmd.data.limits import check_memory, memory
from fastmmd.errors import UserError, first_line, require

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm")
MEMORY = "FASTMMD_DATA_MEMORY"


@dataclass(frozen=True)
class ImageFiles(TorchDataset[Tensor]):
    """Images [N, data_dim] of equal size that stay on disk: the rows of a tensor for training, one batch at a time."""

    paths: tuple[Path, ...]
    image_shape: tuple[int, ...]
    labels: Tensor | None = None  # [N] int64
    device: torch.device = torch.device("cpu")  # where `batches` puts them

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """[data_dim] float32 in [0, 1] on the CPU.

        Raises:
            UserError: the file is no image, or of another size.
        """
        image = read_image(self.paths[index])
        if image.shape != self.image_shape:
            sizes = [f"{width}x{height}" for height, width in (image.shape, self.image_shape)]
            raise UserError(
                f"{self.paths[index]} is {sizes[0]}, the first image is {sizes[1]}: images must have equal sizes"
            )
        return torch.from_numpy(image.reshape(-1))

    def rows(self, rows: Tensor) -> ImageFiles:
        """Some of them."""
        labels = None if self.labels is None else self.labels[rows]
        return ImageFiles(tuple(self.paths[row] for row in rows), self.image_shape, labels, self.device)

    def read(self) -> Tensor:
        """All of them: [N, data_dim]."""
        return torch.stack([self[index] for index in range(len(self))])

    def batches(self, rows: Sequence[Tensor], workers: int) -> Iterator[Tensor]:
        """The images [B, data_dim] of each tensor of rows, in order, read ahead by that many processes; 0: by this one.

        Raises:
            UserError: as an image of `images[index]`.
        """
        loader = DataLoader(
            self,
            batch_sampler=[batch.tolist() for batch in rows],
            num_workers=workers,
            collate_fn=torch.stack,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_leave_interrupts_to_the_parent,
            generator=torch.Generator(),  # or it would draw from the one that training draws from
        )
        try:
            for images in loader:
                yield images.to(self.device, non_blocking=True)
        except UserError as error:  # one of a worker comes with its traceback
            raise UserError(str(error).strip().rpartition("UserError: ")[2]) from None

    def checksum(self) -> str:
        """Of names, sizes and labels of the files, not of their content."""
        parts = [f"{path.name} {path.stat().st_size}" for path in self.paths]
        parts += [] if self.labels is None else [str(self.labels.tolist())]
        return f"{zlib.crc32(os.linesep.join(parts).encode()):08x}"


def image_files(folder: Path) -> ImageFiles:
    """All images of a folder; the sub-folders are labels where all images are in one.

    Raises:
        UserError: there are none, or the first one cannot be read.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise UserError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder")
    classes = {parent: label for label, parent in enumerate(sorted({path.parent for path in paths}))}
    labels = None
    if len(classes) > 1 and folder not in classes:
        labels = torch.tensor([classes[path.parent] for path in paths])
    return ImageFiles(tuple(paths), read_image(paths[0]).shape, labels)


def read_image(path: Path) -> np.ndarray:
    """[H, W] float32 in [0, 1].

    Raises:
        UserError: the file is no image, or the range of its pixels is unknown.
    """
    pillow = require("PIL.Image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(path) as picture:  # its size; pixels are read below
                check_memory(path, picture.width * picture.height)
                return _grayscale(picture, path)
    except UserError:
        raise
    except Exception as error:  # its readers raise whatever the broken content leads them to
        raise UserError(f"{path}: cannot be read as an image ({first_line(error)})") from error


def memory_for_data() -> float:
    """Bytes that a folder of images may take: of the variable FASTMMD_DATA_MEMORY, by default half of the memory.

    Raises:
        UserError: the variable is no number.
    """
    given = os.environ.get(MEMORY)
    if given is not None:
        if not given.isdecimal() or int(given) == 0:
            raise UserError(f"{MEMORY}: a number of bytes expected, got {given!r}")
        return int(given)
    return memory() / 2


def _grayscale(picture: Any, path: Path) -> np.ndarray:
    """[H, W] float32 in [0, 1] of an opened image."""
    if (frames := getattr(picture, "n_frames", 1)) > 1 and picture.format != "MPO":  # of a camera, with a preview
        raise UserError(f"{path}: {frames} frames in one file; save each as an image of its own")
    if "transparency" in picture.info or "A" in picture.getbands():
        alpha = picture.convert("RGBA").getchannel("A").getextrema()
        if alpha != (255, 255):  # what lies behind is not said, and colors of transparent pixels mean nothing
            raise UserError(f"{path}: has transparent pixels; save it without, on the background that it shall have")
        picture = picture.convert("RGBA").convert("RGB")
    if picture.mode.startswith("I;16"):  # convert("L") would cut its values off at 255
        return np.asarray(picture).astype(np.float32) / np.float32(65535)
    if picture.mode in ("I", "F"):
        remedy = "save it with 8 bits, as a 16-bit PNG, or all images as an .npy of floats in 0..1"
        raise UserError(f"{path}: the range of its pixels (mode {picture.mode}) is unknown: {remedy}")
    return np.asarray(picture.convert("L")) / np.float32(255)


def _leave_interrupts_to_the_parent(_: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the parent finishes its step with what workers give it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
