"""How the cost of mmd2 forward+backward grows with points, dimensions, bandwidths and threads; default backend."""

from __future__ import annotations

import peers
import pytest
import torch
from settings import SIX, SIZES, THREADS, wide_bandwidth

import fastmmd

DOUBLING = tuple(0.5 * 2**i for i in range(10))  # each the square root of the next: one exponential
UNRELATED = tuple(0.5 * 1.7**i for i in range(10))  # one exponential each


@pytest.mark.parametrize("n", SIZES.scaling_n)
def test_points(benchmark, measure, n):
    _measure(benchmark, measure, "N", n, n, 6, SIX)


@pytest.mark.parametrize("dim", SIZES.dims)
def test_dimensions(benchmark, measure, dim):
    _measure(benchmark, measure, "D", dim, SIZES.scaling_at, dim, wide_bandwidth(dim))


@pytest.mark.parametrize("count", SIZES.counts)
@pytest.mark.parametrize("ladder", ["doubling", "unrelated"])
def test_bandwidths(benchmark, measure, count, ladder):
    bandwidths = (DOUBLING if ladder == "doubling" else UNRELATED)[:count]
    _measure(benchmark, measure, f"{ladder} bandwidths", count, SIZES.scaling_at, 6, bandwidths)


@pytest.mark.parametrize("threads", sorted({2**i for i in range(8) if 2**i <= THREADS} | {THREADS}))
def test_threads(benchmark, measure, threads):
    torch.set_num_threads(threads)
    try:
        _measure(benchmark, measure, "threads", threads, SIZES.scaling_at, 6, SIX)
    finally:
        torch.set_num_threads(THREADS)


def _measure(benchmark, measure, what, amount, n, dim, bandwidths):
    at = {"N": "D=6, six bandwidths", "D": f"N=M={n}, one bandwidth", "threads": f"N=M={n}, D=6, six bandwidths"}
    benchmark.group = f"mmd2 forward+backward against {what}, {at.get(what, f'N=M={n}, D=6')}"
    x, y = peers.two_samples(n, n, dim)
    x = x.clone().requires_grad_()
    measure(
        lambda: peers.value_and_gradient(fastmmd.mmd2, x, y, bandwidths),
        lambda result: peers.check_mmd2(result, x, y, bandwidths, "fastmmd"),
        {"operation": "scaling", "against": what, "amount": amount, "n": n, "dim": dim, "bandwidths": len(bandwidths)},
    )
