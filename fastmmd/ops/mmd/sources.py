"""Samples that do not fit memory, as chunks of rows: tensors, NumPy arrays and memmaps, functions that yield chunks."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arguments import check_points, compute_dtype, reject_unsupported

Source = Tensor | np.ndarray[Any, Any] | Callable[[], Iterable[Any]]


class Chunks:
    """A source [N, D] as chunks of `size` rows in the compute dtype, the last one shorter, the same at every pass.

    The first whole pass, `survey`, counts the rows and keeps a checksum of each chunk; every later one compares.

    Raises:
        TypeError, ValueError: the source is of another kind, type or shape, or has no row.
    """

    def __init__(self, name: str, source: Source, size: int) -> None:
        if not (isinstance(source, (Tensor, np.ndarray)) or callable(source)):
            raise TypeError(
                f"{name}: got {type(source).__name__}, expected a tensor or a NumPy array [N, D], or a function "
                "without arguments that returns an iterator of chunks [n, D], a new one at each call"
            )
        self.name, self.source, self.size = name, source, size
        self.rows = 0
        self.checksums: list[int] = []  # of the chunks, once they are known
        self._like: Tensor | None = None
        first = next(self._parts(0), None)
        if first is None:
            raise ValueError(f"{name}: got a source without rows, expected at least one point")
        self.first = self._like = first[:1].clone()

    @property
    def dim(self) -> int:
        """D."""
        return self.first.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return compute_dtype(self.first)

    def survey(self) -> Iterator[Tensor]:
        """The first pass."""
        rows, checksums = 0, []
        for chunk in self._regrouped(0):
            rows += len(chunk)
            checksums.append(_checksum(chunk))
            yield chunk
        self.rows, self.checksums = rows, checksums

    def read(self, first: int = 0, count: int | None = None) -> Iterator[Tensor]:
        """`count` chunks from number `first` on, by default all that follow.

        Raises:
            ValueError: they are not those of the first pass.
        """
        expected = self.checksums[first:] if count is None else self.checksums[first : first + count]
        number = 0
        for chunk in islice(self._regrouped(first), None if count is None else len(expected)):
            if number == len(expected) or _checksum(chunk) != expected[number]:
                raise self._changed(first + number)
            yield chunk
            number += 1
        if number < len(expected):
            raise self._changed(first + number)

    def _changed(self, number: int) -> ValueError:
        return ValueError(
            f"{self.name}: got other rows from row {number * self.size:,} on than in the first pass; expected a source "
            "that gives the same rows in the same order each time, without shuffling and fresh noise"
        )

    def _regrouped(self, first: int) -> Iterator[Tensor]:
        """Chunks of `size` rows, in memory of their own: a function may yield views of one buffer."""
        chunk, filled = torch.empty(0), 0
        for part in self._parts(first * self.size):
            while len(part):
                if filled == 0:
                    chunk = part.new_empty((self.size, self.dim), dtype=self.dtype)
                take = min(len(part), self.size - filled)
                chunk[filled : filled + take] = part[:take]
                part, filled = part[take:], filled + take
                if filled == self.size:
                    yield chunk
                    filled = 0
        if filled:
            yield chunk[:filled]

    def _parts(self, skip: int) -> Iterator[Tensor]:
        """What the source gives after `skip` rows, checked."""
        if callable(self.source):
            parts = self.source()
            if not isinstance(parts, Iterable):
                raise TypeError(
                    f"{self.name}: got a function that returns {type(parts).__name__}, expected an iterator"
                )
            for part in parts:
                if not self._has_rows(part):
                    self._checked(part)  # for its error
                if len(part) > skip:
                    yield self._checked(part[skip:])
                skip = max(0, skip - len(part))
        elif not self._has_rows(self.source) or len(self.source) == 0:
            self._checked(self.source)
        else:
            for start in range(skip, len(self.source), self.size):
                yield self._checked(self.source[start : start + self.size])

    def _has_rows(self, part: Any) -> bool:
        """Whether it can be cut by rows."""
        if isinstance(part, Tensor):
            reject_unsupported(self.name, part)
            if part.device.type == "meta":
                raise ValueError(f"{self.name}: got a tensor on the device meta, which has no values")
        return isinstance(part, (Tensor, np.ndarray)) and part.ndim == 2

    def _checked(self, part: Any) -> Tensor:
        if isinstance(part, np.ndarray):
            if part.dtype.kind != "f" or part.dtype.itemsize > 8:
                raise TypeError(
                    f"{self.name}: got dtype {part.dtype}, expected float16, float32 or float64; convert it, "
                    f"of a memmap chunk by chunk: lambda: (part.astype('float32') for part in parts)"
                )
            # A copy, in the byte order of this machine: torch takes no other, and warns of memory that is read-only.
            part = torch.from_numpy(np.array(part, dtype=part.dtype.newbyteorder("=")))
        check_points(rank=2, **{self.name: part})
        tensor: Tensor = part
        if tensor.requires_grad:
            raise ValueError(
                f"{self.name}: got a tensor that requires a gradient, which there is none of; pass {self.name}.detach()"
            )
        like = tensor if self._like is None else self._like
        if (tensor.shape[1], tensor.dtype, tensor.device) != (like.shape[1], like.dtype, like.device):
            raise ValueError(
                f"{self.name}: got a chunk {list(tensor.shape)} of {tensor.dtype} on {tensor.device}, expected "
                f"[n, {like.shape[1]}] of {like.dtype} on {like.device} as the first one"
            )
        return tensor


def _checksum(chunk: Tensor) -> int:
    return zlib.crc32(chunk.cpu().numpy().data)
