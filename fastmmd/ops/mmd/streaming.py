"""MMD^2 of samples that do not fit memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ...backends import current
from ..arguments import (
    DEFAULT_BANDWIDTHS,
    Estimator,
    Floats,
    KernelName,
    check_estimator,
    check_int,
    check_points,
    kernel_arguments,
    numbers_in,
)
from .operators import flattened, mmd2_members
from .sources import Chunks, Source

CHUNKS = 8  # of a block: what streams past it is smaller, since each chunk meets itself at each block too
COPIES = 3  # of the block that a call may take: staged, and the chunks
ROW_BYTES = 64  # of a row besides: masses and sums
DEFAULT_MEMORY = 2**28


class StreamingMMD:
    """`mmd2` of samples that do not fit memory: exact, every pair of points, in memory that does not depend on N and M.

    A first pass counts the rows. In the second, block after block of the samples is held in memory while the chunks of
    both stream past it, so the sources are read (N + M) / block times, and every pair is met from both sides: twice the
    work of mmd2. Accuracy is that of mmd2, near convergence and for sorted samples too (docs/design.md, "Streaming").

        streaming = fastmmd.StreamingMMD(numpy.load("x.npy", mmap_mode="r"), y, (1.0, 2.0))
        for done, total in streaming.run():  # pairs; stop anywhere, and go on with another run()
            print(f"{done / total:.0%}")
        print(streaming.value())

    Args:
        x, y: [N, D] and [M, D]: a tensor, a NumPy array or memmap, or a function without arguments that returns an
            iterator of chunks [n, D] of any sizes (`lambda: loader`), tensors or arrays. It is called for the first
            chunk alone, for the first pass, and two or three times for each block; it must give the same rows in the
            same order each time. float16, bfloat16 and float32 are computed in float32, float64 in float64.
        bandwidths, kernel, estimator, kernel_weights, alpha: as in `mmd2`; tensors are read as numbers. Samples have no
            weights and no labels here.
        block: rows held in memory, rounded down to a multiple of 8 (at least 8).
        memory: instead of `block`, bytes that the calculation may take beside what the sources hold.
        device: where it is done; by default where x is.

    Raises:
        TypeError, ValueError: as `mmd2`; a source of another kind; both `block` and `memory`.
    """

    def __init__(
        self,
        x: Source,
        y: Source,
        bandwidths: Floats = DEFAULT_BANDWIDTHS,
        *,
        kernel: KernelName = "gaussian",
        estimator: Estimator = "biased",
        kernel_weights: Floats | None = None,
        alpha: float = 1.0,
        block: int | None = None,
        memory: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if block is not None and memory is not None:
            raise ValueError(f"block: got {block} beside memory={memory}, which decides it; leave one out")
        self._x, self._y = Chunks("x", x, 1024), Chunks("y", y, 1024)
        try:
            first = self._x.first.to(self._x.first.device if device is None else torch.device(device))
            usable = first.device.type != "meta"
        except (RuntimeError, TypeError, ValueError, AssertionError):
            usable = False
        if not usable:
            raise ValueError(f"device: got {device!r}, expected one of this machine, such as 'cpu' or 'cuda:0'")
        check_points(rank=2, x=first, y=self._y.first.to(first.device))
        self.device = first.device
        row = COPIES * self._x.dim * self._x.dtype.itemsize + ROW_BYTES
        rows = (
            check_int("memory", DEFAULT_MEMORY if memory is None else memory) // row
            if block is None
            else check_int("block", block)
        )
        self._x.size = self._y.size = max(1, rows // CHUNKS)
        self._unbiased = check_estimator(estimator)
        self._kernel = kernel_arguments(_numbers("bandwidths", bandwidths), kernel,
                                        _numbers("kernel_weights", kernel_weights), alpha, first)  # fmt: skip
        self._block = 0  # the next to be held
        self._sums = [0.0] * 3  # over ordered pairs of xx, yy, and xy with yx: see _pairs
        self._own = [0.0] * 2  # over all chunks of x and of y: rows times the mean of u within the chunk

    def __repr__(self) -> str:
        x = self._x
        return f"StreamingMMD(dim={x.dim}, {x.dtype}, kernel={self._kernel.family!r}, block={x.size * CHUNKS})"

    def run(self) -> Iterator[tuple[int, int]]:
        """Goes on from the last finished block and yields, after each chunk, the pairs done and those in all.

        Raises:
            ValueError: a source gives other rows than in the first pass, or the unbiased estimator a single one.
        """
        if not self._y.checksums:
            self._survey()
        yield self._done(), self._total()
        while self._block < self._blocks(self._x) + self._blocks(self._y):
            sums, done = [0.0] * 3, self._done()
            of_y, held = self._held()
            for source in (self._x, self._y):
                which = 2 if (source is self._y) != of_y else int(of_y)
                for chunk in source.read():
                    pairs = len(chunk) * len(held)
                    sums[which] += pairs * self._mean(chunk.to(self.device), held)
                    done += pairs
                    yield done, self._total()
            self._sums = [total + part for total, part in zip(self._sums, sums, strict=True)]
            self._block += 1

    def value(self) -> Tensor:
        """The squared MMD, 0-d in the compute dtype on the device, without gradient; runs what has not been run.

        Raises:
            ValueError: as `run`.
        """
        for _ in self.run():
            pass
        n, m = self._x.rows, self._y.rows
        xx, yy, xy = self._sums[0] / n**2, self._sums[1] / m**2, self._sums[2] / (n * m)
        value = -(xx + yy - xy) / 2
        if self._unbiased:  # a_x E_xx = E_xx + E_xx / (n - 1)
            for own, pairs, rows in zip(self._own, (xx, yy), (n, m), strict=True):
                value += (own / rows - pairs) / 2 / (rows - 1)
        return torch.tensor(value, dtype=self._x.dtype, device=self.device)

    def state_dict(self) -> dict[str, Any]:
        """What another process needs to go on from the last finished block, to the same bits: numbers and strings."""
        x, y, kernel = self._x, self._y, self._kernel
        return {
            "settings": {
                "kernel": kernel.family,
                "bandwidths": list(kernel.bandwidths),
                "kernel_weights": list(kernel.weights),
                "alpha": kernel.alpha,
                "estimator": "unbiased" if self._unbiased else "biased",
                "block": x.size * CHUNKS,
                "dim": x.dim,
                "dtype": str(x.dtype),
            },
            "rows": [x.rows, y.rows],
            "checksums": [list(x.checksums), list(y.checksums)],
            "own": list(self._own),
            "sums": list(self._sums),
            "blocks": self._block,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the state was taken; `run` compares the rows of the sources with those of then.

        Raises:
            ValueError: the state is of other settings or sizes, or no state.
        """
        try:
            for name, value in self.state_dict()["settings"].items():
                if state["settings"][name] != value:
                    raise ValueError(f"state: got {name} {state['settings'][name]!r}, expected {value!r} as here")
            for source, rows in zip((self._x, self._y), state["rows"], strict=True):
                if rows and not callable(source.source) and rows != len(source.source):
                    raise ValueError(
                        f"state: got one of {rows:,} rows of {source.name}, expected the {len(source.source):,} here"
                    )
            x_sums, y_sums = (list(map(int, numbers)) for numbers in state["checksums"])
            (x_rows, y_rows), own, sums = map(int, state["rows"]), _floats(state["own"], 2), _floats(state["sums"], 3)
            block = int(state["blocks"])
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"state: got {type(state).__name__} that is no state of StreamingMMD") from error
        self._x.checksums, self._x.rows, self._y.checksums, self._y.rows = x_sums, x_rows, y_sums, y_rows
        self._own, self._sums, self._block = own, sums, block

    def _survey(self) -> None:
        """The first pass: rows, checksums, and each chunk with itself, which the unbiased estimator needs."""
        for index, source in enumerate((self._x, self._y)):
            chunks = source.survey()
            self._own[index] = sum(len(chunk) * self._mean(chunk.to(self.device)) for chunk in chunks)
            if self._unbiased and source.rows < 2:
                source.checksums = []
                raise ValueError(f'{source.name}: got 1 point, expected at least 2 for estimator="unbiased"')

    def _mean(self, chunk: Tensor, held: Tensor | None = None) -> float:
        """E_cc, or E_cc - 2 E_ch beside the held block, in float64: means of u = k - k(0) over pairs.

        As of a fixed sample, so that nothing is rounded in all pairs alike.
        """
        s, w, numbers, family = flattened(self._kernel)
        y, options = None if held is None else held[None], [False, held is not None]
        return mmd2_members(
            chunk[None], y, None, None, s, w, None, numbers, family, options, [False] * 6, current()
        )[0].item()  # fmt: skip

    def _held(self) -> tuple[bool, Tensor]:
        """Whether the next block is of y, and its rows."""
        of_y = self._block >= self._blocks(self._x)
        source, number = (self._y, self._block - self._blocks(self._x)) if of_y else (self._x, self._block)
        first = number * CHUNKS
        rows = min(source.size * CHUNKS, source.rows - first * source.size)
        held, filled = torch.empty((rows, source.dim), dtype=source.dtype, device=self.device), 0
        for chunk in source.read(first, CHUNKS):
            held[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        return of_y, held

    def _blocks(self, source: Chunks) -> int:
        return -(-len(source.checksums) // CHUNKS)

    def _done(self) -> int:
        """Ordered pairs of the finished blocks with all points."""
        of_x = self._blocks(self._x)
        rows = self._x.size * CHUNKS
        x, y = min(self._block, of_x) * rows, max(0, self._block - of_x) * rows
        return (min(x, self._x.rows) + min(y, self._y.rows)) * (self._x.rows + self._y.rows)

    def _total(self) -> int:
        return (self._x.rows + self._y.rows) ** 2


def _numbers(name: str, values: Any) -> Any:
    """Numbers of a tensor, [S] or 0-d, as a list; anything else as it is."""
    numbers = numbers_in(name, values)
    return [numbers] if isinstance(values, Tensor) and isinstance(numbers, float) else numbers


def _floats(values: Any, count: int) -> list[float]:
    floats = [float(value) for value in values]
    if len(floats) != count:
        raise TypeError
    return floats
