"""StreamingMMD against the dense formula: sources, odd sizes, near convergence, going on, changed sources, memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from helpers import EMULATED, F32, F64, FULL, assert_close, points
from memory import measured
from test_mmd import sample, scales, value_bound
from torch import Tensor

import fastmmd
from fastmmd import StreamingMMD
from fastmmd.ops.arguments import KERNELS


def in_chunks(rows: Tensor, *sizes: int) -> Callable[[], Iterator[Tensor]]:
    """A source of chunks of these sizes in turn, an empty one first; all of them are views of one buffer."""

    def chunks() -> Iterator[Tensor]:
        buffer = torch.empty(max(sizes), rows.shape[1], dtype=rows.dtype)
        yield buffer[:0]
        start = number = 0
        while start < len(rows):
            part = rows[start : start + sizes[number % len(sizes)]]
            start, number = start + len(part), number + 1
            buffer.fill_(torch.nan)
            yield buffer[: len(part)].copy_(part)

    return chunks


def check(
    x: Tensor, y: Tensor, bandwidths: list[float], block: int, kernel: str = "gaussian", **options: object
) -> None:
    """Within the bounds of docs/design.md, which are those of mmd2."""
    arguments = () if kernel == "energy" else (bandwidths,)
    value = StreamingMMD(x, y, *arguments, kernel=kernel, block=block, **options).value()
    expected = oracle.mmd2(x.to(F64), y.to(F64), bandwidths, kernel, **options)
    assert value.dtype == x.dtype and value.device == x.device
    floats, weights = [1.0] if kernel == "energy" else bandwidths, options.get("kernel_weights")
    bound = value_bound(x, y, floats, kernel, weights, None, None, x.dtype)
    assert_close(value, expected, rtol=0, atol=bound + (1e-6 if x.dtype == F32 else 1e-12) * expected.abs())


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_is_mmd2(backend: str, kernel: str, estimator: str, dtype: torch.dtype) -> None:
    """The last chunks and blocks are incomplete."""
    check(*sample(83, 70, 5, dtype), scales(5), 24, kernel, estimator=estimator)


@pytest.mark.parametrize("block", [1, 17, 40, 1000])
def test_blocks_of_any_size(backend: str, block: int) -> None:
    options = {"kernel": "rational_quadratic", "alpha": 0.7, "kernel_weights": [1.0, 2.0, -0.3]}
    check(*sample(19, 41, 3), scales(3), block, **options)


@pytest.mark.parametrize(("estimator", "dim"), [("biased", 3), ("unbiased", 30)])
def test_near_convergence_of_sorted_samples(backend: str, estimator: str, dim: int) -> None:
    """Blocks far apart in samples of one distribution: large terms, whose rounding must cancel between the calls."""
    n = 300 if EMULATED else 900
    x, y = points(n, dim, seed=1), points(n + n // 10, dim, seed=2)
    for rows in (x, y):
        rows += 6 * torch.linspace(0, 1, len(rows)).mul(5).floor()[:, None] / 5
    check(x, y, scales(dim), n // 4, estimator=estimator)


@pytest.mark.skipif(not FULL, reason="make test-full: a minute")
def test_near_convergence_of_many_points() -> None:
    x, y = points(40_000, 24, seed=1), points(44_000, 24, seed=2)
    for rows in (x, y):
        rows += 6 * torch.linspace(0, 1, len(rows)).mul(5).floor()[:, None] / 5
    value, expected = (
        StreamingMMD(x.to(dtype), y.to(dtype), scales(24), estimator="unbiased", block=8000).value()
        for dtype in (F32, F64)
    )
    assert_close(value, expected, rtol=1e-6, atol=2e-7 * 3 / len(x))


def test_sources(backend: str, tmp_path: Path) -> None:
    """A tensor, an array, a memmap and chunks of uneven sizes are the same, to the last bit."""
    x, y = sample(90, 77, 4)
    np.save(tmp_path / "x.npy", x.numpy())
    memmap = np.load(tmp_path / "x.npy", mmap_mode="r")
    expected = StreamingMMD(x, y, scales(4), block=32).value()
    swapped = y.numpy().astype(">f4")
    for left, right in (
        (memmap, y.numpy()),
        (in_chunks(x, 7, 1, 50), in_chunks(y, 100)),
        (lambda: iter(np.array_split(memmap, 4)), swapped),
        (x.expand(2, 90, 4)[1], y.T.contiguous().T),
    ):
        assert torch.equal(StreamingMMD(left, right, scales(4), block=32).value(), expected)


def test_half_types_and_tensors_of_bandwidths(backend: str) -> None:
    x, y = sample(30, 20, 3)
    value = StreamingMMD(
        x.bfloat16(), y.half().numpy(), torch.tensor(1.5), kernel_weights=torch.tensor([2.0]), block=16
    )
    expected = fastmmd.mmd2(x.bfloat16(), y.half(), (1.5,), kernel_weights=(2.0,))
    assert_close(value.value(), expected, rtol=1e-6, atol=2e-8)


def test_nan_propagates() -> None:
    x, y = sample(30, 20, 3)
    x[7, 1] = torch.nan
    assert StreamingMMD(x, y, block=8).value().isnan()


def test_progress() -> None:
    x, y = sample(90, 77, 4)
    steps = list(StreamingMMD(x, y, block=32).run())
    assert steps[0] == (0, 167**2) and steps[-1] == (167**2, 167**2)
    assert all(before[0] < after[0] for before, after in zip(steps, steps[1:], strict=False))


@pytest.mark.parametrize("stop", range(0, 300, 23))
def test_goes_on_where_it_stopped(stop: int) -> None:
    """At any step, in the same object and in another one, to the same bits."""
    x, y = sample(90, 77, 4)
    expected = StreamingMMD(x, y, scales(4), estimator="unbiased", block=32).value()
    first = StreamingMMD(in_chunks(x, 13), y, scales(4), estimator="unbiased", block=32)
    run = first.run()
    for _ in range(stop):
        next(run, None)
    state = json.loads(json.dumps(first.state_dict()))
    assert (state["blocks"] > 0) == (stop > 45)
    second = StreamingMMD(x, in_chunks(y, 11), scales(4), estimator="unbiased", block=32)
    second.load_state_dict(state)
    left = sum(1 for _ in second.run())
    assert torch.equal(second.value(), expected)
    assert torch.equal(first.value(), expected)
    if stop == 276:
        assert left < 30  # what was done is not done again


def other(state: dict, **changes: object) -> dict:
    return {**state, **changes}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y: StreamingMMD(x, y, (1.0, 3.0), block=16), r"got bandwidths \[1.0, 2.0\], expected \[1.0, 3.0\]"),
        (lambda x, y: StreamingMMD(x, y, (1.0, 2.0), block=24), "got block 16, expected 24"),
        (lambda x, y: StreamingMMD(x, y, (1.0, 2.0), kernel="imq", block=16), "got kernel 'gaussian', expected 'imq'"),
        (lambda x, y: StreamingMMD(x, y, (1.0, 2.0), estimator="unbiased", block=16), "got estimator 'biased'"),
        (lambda x, y: StreamingMMD(x.double(), y.double(), (1.0, 2.0), block=16), "got dtype 'torch.float32'"),
        (lambda x, y: StreamingMMD(x[:, :2], y[:, :2], (1.0, 2.0), block=16), "got dim 3, expected 2"),
        (lambda x, y: StreamingMMD(x, y[:-1], (1.0, 2.0), block=16), "one of 30 rows of y, expected the 29 here"),
    ],
)
def test_a_state_of_other_settings_is_refused(make: Callable[..., StreamingMMD], message: str) -> None:
    x, y = sample(40, 30, 3)
    first = StreamingMMD(x, y, (1.0, 2.0), block=16)
    first.value()
    with pytest.raises(ValueError, match=message):
        make(x, y).load_state_dict(first.state_dict())
    for broken in ({}, other(first.state_dict(), sums=[1.0]), other(first.state_dict(), rows=None)):
        with pytest.raises(ValueError, match="no state of StreamingMMD"):
            StreamingMMD(x, y, (1.0, 2.0), block=16).load_state_dict(broken)


def changes_after(calls: int, before: Tensor, after: Tensor) -> Callable[[], Iterator[Tensor]]:
    count = 0

    def chunks() -> Iterator[Tensor]:
        nonlocal count
        count += 1
        return iter((before if count <= calls else after).split(13))

    return chunks


@pytest.mark.parametrize("calls", [2, 3, 4])
@pytest.mark.parametrize(
    ("change", "row"),
    [
        (lambda y: torch.cat([y, y[:1]]), 64),
        (lambda y: torch.cat([y[:-1], y[-1:] + 1e-6]), 64),
        (lambda y: y[:-1], 64),
        (lambda y: y[:64], 64),
        (lambda y: y[:0], 0),
        (lambda y: y.flip(0), 0),
    ],
)
def test_a_source_that_changes_raises(change: Callable[[Tensor], Tensor], row: int, calls: int) -> None:
    """Second calls are the first pass; rows 64 on are the last chunk, 8 a chunk."""
    x, y = sample(40, 70, 3)
    streaming = StreamingMMD(x, changes_after(calls, y, change(y)), block=64)
    with pytest.raises(ValueError, match=f"y: got other rows from row {row} on than in the first pass"):
        streaming.value()


def test_a_state_of_other_rows_raises() -> None:
    x, y = sample(40, 30, 3)
    first = StreamingMMD(x, y, block=16)
    run = first.run()
    for _ in range(30):
        next(run)
    second = StreamingMMD(x, y + 1, block=16)
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="y: got other rows"):
        second.value()


X = points(6, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: StreamingMMD([1.0], X), TypeError, "x: got list, expected a tensor or a NumPy array"),
        (lambda: StreamingMMD(X, iter([X])), TypeError, "y: got list_iterator, expected a tensor"),
        (lambda: StreamingMMD(lambda: 3, X), TypeError, "x: got a function that returns int, expected an iterator"),
        (lambda: StreamingMMD(lambda: [[1.0]], X), TypeError, "x: got list, expected a torch.Tensor"),
        (lambda: StreamingMMD(lambda: [X, X[:, :2]], X).value(), ValueError, r"x: got a chunk \[6, 2\]"),
        (lambda: StreamingMMD(lambda: [X, X.double()], X).value(), ValueError, "x: got a chunk .* of torch.float64"),
        (lambda: StreamingMMD(lambda: [], X), ValueError, "x: got a source without rows"),
        (lambda: StreamingMMD(X, X[:0]), ValueError, r"y: got shape \[0, 3\]"),
        (lambda: StreamingMMD(X[0], X), ValueError, r"x: got shape \[3\], expected \[N, D\]"),
        (lambda: StreamingMMD(X, X[:, :2]), ValueError, "y: got dimension 2"),
        (lambda: StreamingMMD(X, X.double()), TypeError, "y: got dtype torch.float64 beside x"),
        (lambda: StreamingMMD(X, np.ones((4, 3), np.uint8)), TypeError, "y: got dtype uint8, expected float16"),
        (lambda: StreamingMMD(X, X.clone().requires_grad_()), ValueError, "y: got a tensor that requires a gradient"),
        (lambda: StreamingMMD(X, X, torch.ones(1, requires_grad=True)), ValueError, "bandwidths: got a tensor that"),
        (lambda: StreamingMMD(X, X, (-1.0,)), ValueError, "bandwidths: got"),
        (lambda: StreamingMMD(X, X, kernel="cubic"), ValueError, "kernel: got 'cubic'"),
        (lambda: StreamingMMD(X, X, estimator="best"), ValueError, "estimator: got 'best'"),
        (lambda: StreamingMMD(X, X[:1], estimator="unbiased").value(), ValueError, "y: got 1 point, expected at least"),
        (lambda: StreamingMMD(X, X, block=0), ValueError, "block: got 0"),
        (lambda: StreamingMMD(X, X, memory=1.5), ValueError, "memory: got 1.5"),
        (lambda: StreamingMMD(X, X, block=8, memory=100), ValueError, "block: got 8 beside memory=100"),
    ],
)  # fmt: skip
def test_errors(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


MEMORY = """
import sys
import numpy as np
import fastmmd
base = np.random.default_rng(0).random((100, 4096), dtype=np.float32)
def rows(count, shift):
    return lambda: (base + np.float32(shift + i / 10) for i in range(count))
def run(count):
    fastmmd.StreamingMMD(rows(count, 0.0), rows(count, 0.5), (50.0, 100.0), memory=2**23).value()
    return peak()
before = run(1)
print(run(int(sys.argv[1])) - before)
"""


def test_memory_does_not_grow() -> None:
    """26 MB of samples within the 8 MB that were allowed, and what the allocator keeps of them."""
    (grown,) = measured(MEMORY, 8)
    assert grown < 18
