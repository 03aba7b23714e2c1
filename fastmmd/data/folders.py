"""Folders of images: read into memory, or file by file where they do not fit."""

from __future__ import annotations

import os
import signal
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from fastmmd.data.images import DataSettings, read_image
from fastmmd.data.limits import memory
from fastmmd.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm")
MEMORY = "FASTMMD_DATA_MEMORY"


@dataclass(frozen=True)
class ImageFiles(TorchDataset[Tensor]):
    """Images [N, data_dim] of equal size that stay on disk: the rows of a tensor for training, one batch at a time."""

    paths: tuple[Path, ...]
    image_shape: tuple[int, ...]
    labels: Tensor | None = None  # [N] int64
    device: torch.device = torch.device("cpu")  # where `batches` puts them
    settings: DataSettings = DataSettings()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """[data_dim] float32 in [0, 1] on the CPU.

        Raises:
            UserError: the file is no image, or of another size.
        """
        path = self.paths[index]
        image, first = read_image(path, self.settings), self.image_shape
        if image.shape[-2:] != first[-2:]:
            sizes = [f"{width}x{height}" for height, width in (image.shape[-2:], first[-2:])]
            raise UserError(
                f"{path} is {sizes[0]}, the first image is {sizes[1]}: images must have equal sizes, or data.size and "
                "data.fit say which"
            )
        if image.shape != first:
            raise UserError(f"{path} has color, the first image has none: set data.color to 'gray' or 'color'")
        return image.reshape(-1)

    def rows(self, rows: Tensor) -> ImageFiles:
        """Some of them."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, paths=tuple(self.paths[row] for row in rows), labels=labels)

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


def image_files(folder: Path, settings: DataSettings | None = None) -> ImageFiles:
    """All images of a folder; the sub-folders are labels where all images are in one.

    The first one says what the settings leave open: whether the images have color, and their size.

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
    settings = settings or DataSettings()
    first = read_image(paths[0], settings)
    if first.ndim == 3:
        settings = replace(settings, color="color")
    if settings.fit is not None:
        settings = replace(settings, size=first.shape[-1])
    return ImageFiles(tuple(paths), tuple(first.shape), labels, settings=settings)


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


def _leave_interrupts_to_the_parent(_: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the parent finishes its step with what workers give it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
