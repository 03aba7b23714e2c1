"""Ways to draw images from a model."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from torch import Tensor

from fastmmd.errors import UserError
from fastmmd.files import TEMPORARY, replacing, writing
from fastmmd.nn import Autoencoder, GenerativeModel, GenerativeNetwork
from fastmmd.nn.inputs import check_codes, check_data
from fastmmd.ops.arguments import check_int

CHUNK = 2_000  # images decoded at once; those of a block
SamplerName = Literal["prior", "posterior"]  # by which programs choose `prior_samples` and `posterior_samples`
SAMPLERS = get_args(SamplerName)


@dataclass(frozen=True)
class Sampler:
    """A named way to draw images: `draw(count, generator)` -> [count, data_dim].

    The name accompanies every number computed from the samples.
    """

    name: str
    draw: Callable[[int, torch.Generator], Tensor]
    device: torch.device

    def stream(self, count: int, seed: int = 0, chunk: int = CHUNK) -> Iterator[Tensor]:
        """Chunks with `count` samples in total, the same for the same seed and chunk size.

        Raises:
            ValueError: `count` or `chunk` is no positive int.
        """
        check_int("count", count)
        check_int("chunk", chunk)
        generator = torch.Generator(self.device).manual_seed(seed)
        for start in range(0, count, chunk):
            yield self.draw(min(chunk, count - start), generator)

    def blocks(self, count: int, seed: int, first: int, last: int) -> Iterator[Tensor]:
        """Blocks number first, ..., last - 1 of `count` samples in blocks of CHUNK (the last one may be smaller).

        Each has a generator of its own: it is the same whichever others are drawn, in whatever order or process.
        """
        # Of a seed the CPU's generator takes the low 32 bits; an odd factor keeps those of all blocks apart.
        base = int(np.random.SeedSequence(seed).generate_state(1)[0])
        for block in range(first, last):
            generator = torch.Generator(self.device).manual_seed((base + 0x9E3779B1 * block) % 2**32)
            yield self.draw(min(CHUNK, count - block * CHUNK), generator)

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """[count, data_dim] images."""
        return torch.cat(list(self.stream(count, seed)))


def with_codes(model: GenerativeModel) -> Autoencoder:
    """The model, which has codes.

    Raises:
        UserError: it has none: it is a generator alone.
    """
    if isinstance(model, GenerativeNetwork):
        raise UserError(
            f"model: got {type(model).__name__}, which has no codes, expected an autoencoder; draw from the prior, "
            "without chain steps"
        )
    return cast(Autoencoder, model)


def prior_samples(model: GenerativeModel) -> Sampler:
    """Decoded draws from the prior: the papers' sampler. Of a model without codes, the draws of its generator."""

    @torch.no_grad()
    def draw(count: int, generator: torch.Generator) -> Tensor:
        return model.sample(count, generator=generator)

    return Sampler("generator" if isinstance(model, GenerativeNetwork) else "prior", draw, _device(model))


def posterior_samples(model: Autoencoder, images: Tensor, what: str = "images") -> Sampler:
    """Decoded draws from the aggregated posterior q(z) = mean_i q(z | x_i): the actual distribution of codes.

    The difference from `prior_samples` shows how well the codes match the prior.

    Args:
        images: [N, data_dim] or [N, C, H, W] on the model's device; each draw encodes one of them, chosen uniformly,
            with replacement.
        what: names the images in the sampler's name. Reconstructed test images would be no fair samples.

    Raises:
        TypeError, ValueError: `images` is no data of the model, or empty; a decoder with classes.
    """
    model = with_codes(model)
    images = check_data(model, images, "images")
    if len(images) == 0:
        raise ValueError(f"images: got shape {list(images.shape)}, expected [N >= 1, data_dim]")
    _check_decoder(model)

    def draw(count: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(images), (count,), generator=generator, device=images.device)
        return _step(model, images[chosen], generator, corrupt=False).images

    return Sampler(f"aggregated posterior of {len(images):,} {what}", draw, _device(model))


class ChainState(NamedTuple):
    """One state of the Markov chain: codes [N, code_size] and the images [N, data_dim] decoded from them."""

    codes: Tensor
    images: Tensor


def chain(
    model: Autoencoder, codes: Tensor, steps: int, generator: torch.Generator | None = None, *, corrupt: bool = False
) -> Iterator[ChainState]:
    """The Markov chain z -> x -> z of Creswell, Arulkumaran and Bharath (2016), for many codes at once.

    z_0 is given, x_t = decode(z_t), z_{t+1} ~ q(z | x_t). Its codes tend to those on which the decoder was trained, so
    samples and interpolations may be corrected by a few steps.

    Args:
        model: runs in eval mode.
        codes: z_0, [N, code_size], on the model's device.
        steps: number of steps, at least 0.
        generator: of the draws from the posterior, on the model's device.
        corrupt: encode x_t with the noise of the denoising criterion, as in training: a chain of its own.

    Returns:
        An iterator over the states at t = 0, 1, ..., steps, each made when it is asked for; none is kept.

    Raises:
        TypeError, ValueError: naming the argument; `corrupt` for a model that was trained without noise; a decoder with
            classes.
    """
    model = with_codes(model)
    _check_steps(model, steps, corrupt)
    return _chain(model, check_codes(model, codes), steps, generator, corrupt)


@torch.no_grad()
def _chain(
    model: Autoencoder, codes: Tensor, steps: int, generator: torch.Generator | None, corrupt: bool
) -> Iterator[ChainState]:
    state = ChainState(codes, model.decode(codes))
    yield state
    for _ in range(steps):
        state = _step(model, state.images, generator, corrupt)
        yield state


def markov_chain(model: GenerativeModel, steps: int, start: Sampler | None = None, *, corrupt: bool = False) -> Sampler:
    """Draws of `start`, followed by `steps` rounds of encoding and decoding: see `chain`.

    Args:
        model: runs in eval mode.
        steps: at least 0.
        start: `prior_samples` by default.
        corrupt: encode with the noise of the denoising criterion.

    Raises:
        ValueError: naming the argument; `corrupt` for a model that was trained without noise; a decoder with classes;
            steps or `corrupt` for a model without codes.
    """
    first = prior_samples(model) if start is None else start
    if check_int("steps", steps, 0) == 0 and not corrupt:
        return first
    model = with_codes(model)
    _check_steps(model, steps, corrupt)
    if steps == 0:
        return first

    def draw(count: int, generator: torch.Generator) -> Tensor:
        images = check_data(model, first.draw(count, generator), f"draws of the {first.name}")
        for _ in range(steps):
            images = _step(model, images, generator, corrupt).images
        return images

    what = "corrupt-encode-decode" if corrupt else "encode-decode"
    return Sampler(f"{first.name}, {steps} {what} step{'s' if steps > 1 else ''}", draw, _device(model))


@torch.no_grad()
def _step(model: Autoencoder, images: Tensor, generator: torch.Generator | None, corrupt: bool) -> ChainState:
    seen = model.corrupt(images, generator=generator) if corrupt else images
    codes = posterior_codes(model, seen, generator)
    return ChainState(codes, model.decode(codes))


def _check_steps(model: Autoencoder, steps: int, corrupt: bool) -> None:
    if check_int("steps", steps, 0):
        _check_decoder(model)
    if corrupt and not model.denoising:
        raise ValueError("corrupt: got True for a model with denoising=0, expected one trained with noise")


def _check_decoder(model: Autoencoder) -> None:
    """Codes without labels can be decoded only by a decoder without classes."""
    if model.decoder_classes:
        raise UserError(
            f"the decoder has {model.decoder_classes} classes, and codes drawn from the posterior have no labels: "
            "decode them with model.decode(codes, labels), or draw from the prior"
        )


@torch.no_grad()
def posterior_codes(model: Autoencoder, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws from q(z | x), one per image: [B, data_dim] -> [B, code_size].

    For a deterministic posterior, the code itself.

    Over a data set these follow the aggregated posterior, which should match the prior.

    Raises:
        UserError: a model without codes.
    """
    model = with_codes(model)
    if model.posterior == "deterministic":
        return model.encode(images)
    return model.draw_codes(images, generator=generator)


@contextlib.contextmanager
def images_file(path: Path, shape: tuple[int, int], record: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """A float32 array of `shape` on disk that becomes the .npy file `path` once it is completely written.

    `path`.json is written with it: the record of the images' origin. Images without their own record are never there.

    Raises:
        UserError: the folder is missing or not writable, or the disk has no room for the array.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    beside = path.with_name(path.name + ".json")
    size = 4 * math.prod(shape)
    for place in (path, beside):
        if place.is_dir():
            raise UserError(f"cannot write {place}: {os.strerror(errno.EISDIR)}")
    try:
        with writing(path):
            # Or a mapped file on a full disk would end the process with a signal.
            if size > (free := shutil.disk_usage(path.parent).free):
                raise UserError(f"cannot write {path}: it takes {size / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free")
            images = np.lib.format.open_memmap(temporary, "w+", np.float32, shape=shape)
            if hasattr(os, "posix_fallocate"):
                with open(temporary, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        yield images
        with writing(path):
            images.flush()
            with replacing(beside) as file:
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()  # before what cannot be undone: the disk may be full
                path.unlink(missing_ok=True)  # earlier images, of which the record is another
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _device(model: GenerativeModel) -> torch.device:
    parameter: Tensor = next(model.parameters())
    return parameter.device
