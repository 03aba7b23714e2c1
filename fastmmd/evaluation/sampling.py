"""Ways to draw images from an autoencoder."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmmd.training.errors import UserError

CHUNK = 2_000  # images decoded at once


@dataclass(frozen=True)
class Sampler:
    """A named way to draw images: `draw(count, generator)` -> [count, data_dim].

    The name stands beside every figure that is computed from the samples.
    """

    name: str
    draw: Callable[[int, torch.Generator], Tensor]
    device: torch.device

    def stream(self, count: int, seed: int = 0, chunk: int = CHUNK) -> Iterator[Tensor]:
        """Chunks of together `count` samples, the same ones for the same seed and chunk size."""
        generator = torch.Generator(self.device).manual_seed(seed)
        for start in range(0, count, chunk):
            yield self.draw(min(chunk, count - start), generator)

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """[count, data_dim] images."""
        return torch.cat(list(self.stream(count, seed)))


def prior_samples(model: Any) -> Sampler:
    """Decoded draws from the prior: the papers' sampler. The model must be in eval mode."""

    @torch.no_grad()
    def draw(count: int, generator: torch.Generator) -> Tensor:
        return model.sample(count, generator=generator)  # type: ignore[no-any-return]

    return Sampler("prior", draw, _device(model))


def markov_chain(model: Any, steps: int) -> Sampler:
    """Decoded draws from the prior, followed by `steps` rounds of encoding and decoding.

    Raises:
        ValueError: `steps` is negative.
    """
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    if steps == 0:
        return prior_samples(model)

    @torch.no_grad()
    def draw(count: int, generator: torch.Generator) -> Tensor:
        images: Tensor = model.sample(count, generator=generator)
        for _ in range(steps):
            images = model.decode(model.encode(images))
        return images

    return Sampler(f"prior, {steps} encode-decode step{'s' if steps > 1 else ''}", draw, _device(model))


@torch.no_grad()
def posterior_codes(model: Any, images: Tensor, generator: torch.Generator) -> Tensor:
    """Draws from q(z | x), one per image: [B, data_dim] -> [B, code_size]; the code itself if it is certain.

    Over a data set these follow the aggregated posterior, which is what shall match the prior.
    """
    if model.posterior == "deterministic":
        return model.encode(images)  # type: ignore[no-any-return]
    return model.draw_codes(images, generator=generator)  # type: ignore[no-any-return]


@torch.no_grad()
def interpolate(model: Any, first: Tensor, second: Tensor, count: int) -> Tensor:
    """Decode `count` codes on the straight line between the codes of two images.

    Args:
        first, second: [data_dim].
        count: at least 2; the ends are the reconstructions of the two images.

    Returns:
        [count, data_dim].
    """
    if count < 2:
        raise ValueError(f"count must be at least 2, got {count}")
    ends = model.encode(torch.stack([first, second]))
    return model.decode(torch.lerp(ends[0], ends[1], _weights(count, ends)))  # type: ignore[no-any-return]


@contextlib.contextmanager
def images_file(path: Path, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """A float32 array of `shape` on the disk that becomes the .npy file `path` when all of it is written.

    Raises:
        UserError: the folder is missing or not writable, or the disk has no room for the array.
    """
    temporary = path.with_name(path.name + ".tmp")
    size = 4 * math.prod(shape)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # Or a mapped file on a full disk would end the process with a signal.
        if size > (free := shutil.disk_usage(path.parent).free):
            raise UserError(f"cannot write {path}: it takes {size / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free")
        images = np.lib.format.open_memmap(temporary, "w+", np.float32, shape=shape)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield images
        images.flush()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _weights(count: int, like: Tensor) -> Tensor:
    return torch.linspace(0, 1, count, device=like.device, dtype=like.dtype).unsqueeze(1)


def _device(model: Any) -> torch.device:
    parameter: Tensor = next(model.parameters())
    return parameter.device
