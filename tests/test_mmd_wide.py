"""mmd2 by differences in many dimensions: several panels and slabs, members of batches, points that fill vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from helpers import F32, F64, points, positive, value_and_gradients
from test_mmd import check, sample, scales
from test_mmd_products import PLACES, placed
from torch import Tensor

import fastmmd
from fastmmd.backends.cpu import mmd
from fastmmd.ops.arguments import KERNELS


@pytest.fixture(autouse=True)
def _by_differences(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(mmd, "PRODUCT_DIMS", 10**9)
    with fastmmd.backend("native"):
        yield


@pytest.mark.parametrize("dim", [31, 64, 130, 529, 2048])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_dimensions_around_chunks_and_slabs(dtype: torch.dtype, dim: int) -> None:
    check(*sample(20, 37, dim, dtype), scales(dim))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(256, 256), (257, 30), (30, 300), (530, 270)])
def test_panels(shape: tuple[int, int], weighted: bool) -> None:
    """Up to 256 points half of the pairs serve both sides; beyond, every panel of rows meets all columns."""
    n, m = shape
    weights = (positive(n, seed=3), positive(m, seed=4)) if weighted else (None, None)
    check(*sample(n, m, 40), scales(40), x_weights=weights[0], y_weights=weights[1])


@pytest.mark.parametrize("kernel", KERNELS)
def test_everything_differentiable_in_several_panels(kernel: str) -> None:
    bandwidths = [1.0] if kernel == "energy" else torch.tensor(scales(24), dtype=F64)
    x, y = sample(270, 300, 24, F64)
    check(x, y, bandwidths, kernel, "unbiased", x_weights=positive(270, dtype=F64), y_weights=positive(300, dtype=F64))


@pytest.mark.parametrize("name", PLACES)
def test_where_products_would_cancel(name: str) -> None:
    check(placed(name, 120, 96, 1), placed(name, 100, 96, 2), [0.5 * math.sqrt(96), math.sqrt(96)])


def gradients(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    value, both = value_and_gradients(lambda x, y: fastmmd.mmd2(x, y, (8.0, 16.0)), (x, y))
    assert both[0] is not None and both[1] is not None
    return value.detach(), both[0], both[1]


def test_members_are_as_they_are_alone() -> None:
    """Side by side where there are more of them than threads, else one after another."""
    threads = torch.get_num_threads()
    x, y = points(5, 40, 100, seed=1), points(5, 33, 100, seed=2, scale=1.2)
    try:
        torch.set_num_threads(2)
        value, *both = gradients(x, y)
        torch.set_num_threads(8)
        again = gradients(x, y)
        assert all(torch.equal(a, b) for a, b in zip((value, *both), again, strict=True))
    finally:
        torch.set_num_threads(threads)
    for b in range(5):
        assert torch.equal(gradients(x[b], y[b])[0], value[b])


@pytest.mark.parametrize("dim", [25, 40, 49])
def test_same_bits_whatever_memory_holds(dim: int) -> None:
    """How a call is computed depends on its sizes alone, not on what a freed buffer left where it keeps them."""
    x, y = points(2, 16, dim, seed=1), points(2, 9, dim, seed=2)
    expected = gradients(x, y)
    for size in range(16, 3000, 100):
        left = [torch.full((size,), fill, dtype=torch.int64) for fill in (0, 1 << 40, -1)]
        del left
        assert all(map(torch.equal, gradients(x, y), expected))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dim", [64, 65])
def test_what_is_not_finite_propagates(dim: int, bad: float) -> None:
    """Points of 64 dimensions serve as they are, those of 65 are copied."""
    x, y = points(40, dim, seed=1), points(30, dim, seed=2)
    x[7, 5] = bad
    value, of_x, of_y = gradients(x, y)
    assert value.isnan()
    assert of_x.isnan().any(1).all()
    assert of_y.isnan().any(1).all()
    x[7, 5] = 3e19
    value, of_x, of_y = gradients(x, y)
    assert value.isfinite()
    assert of_y.isfinite().all()
