"""mmd2 forward+backward beside eager PyTorch over batch sizes and dimensions: where training uses it.

Every cell takes turns with eager, so that drift of the machine cancels in the ratio.
"""

from __future__ import annotations

import time

import peers
import pytest
import torch
from settings import DEVICE, SIZES, grid_bandwidths

import fastmmd

MOST_ROUNDS = 200


@pytest.mark.parametrize("dim", SIZES.grid_dims)
@pytest.mark.parametrize("n", SIZES.grid_n)
def test_grid(benchmark, interleave, n, dim):
    x, y = peers.two_samples(n, n, dim)
    bandwidths = grid_bandwidths(dim)

    def check(result):
        return peers.check_mmd2(result, x, y, bandwidths, "fastmmd")

    _measure(benchmark, interleave, peers.mmd2, x.clone(), y, check, {"batch": 1, "n": n, "dim": dim})


@pytest.mark.parametrize(("batch", "n", "dim"), SIZES.grid_batches)
def test_batches(benchmark, interleave, batch, n, dim):
    """Many small problems in one call; eager has batched matrix products."""
    generator = torch.Generator().manual_seed(0)
    x, y = (scale * torch.randn(batch, n, dim, generator=generator).to(DEVICE) for scale in (1.0, 1.1))

    def check(result):
        """Each member against float64."""
        exact = _value_and_gradient(batched_mmd2, x.double().requires_grad_(), y.double(), grid_bandwidths(dim))
        errors = [(mine.double() - right).abs() for mine, right in zip(result, exact, strict=True)]
        largest = exact[1].norm(dim=2).amax(1)
        assert (errors[0] <= 1e-6 * exact[0] + 2e-7 * 5 / n).all()
        assert (errors[1].norm(dim=2).amax(1) <= 2e-6 * largest).all()
        return {"gradient_error": (errors[1].norm(dim=2).amax(1) / largest).max().item()}

    _measure(benchmark, interleave, batched_mmd2, x.clone(), y, check, {"batch": batch, "n": n, "dim": dim})


def batched_mmd2(x, y, bandwidths):
    """peers.mmd2 of every member of a batch."""

    def mean(a, b):
        r = a.square().sum(-1, keepdim=True) + b.square().sum(-1)[..., None, :] - 2 * a @ b.mT
        return torch.stack([torch.exp(-r / (2 * s**2)).mean((-2, -1)) for s in bandwidths]).sum(0)

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def _value_and_gradient(mmd2, x, y, bandwidths):
    value = mmd2(x, y, bandwidths)
    return value.detach(), *torch.autograd.grad(value.sum(), x)


def _measure(benchmark, interleave, eager, x, y, check, sizes):
    bandwidths = grid_bandwidths(sizes["dim"])
    benchmark.group = "mmd2 forward+backward against eager PyTorch, five bandwidths"
    x.requires_grad_()
    with fastmmd.backend(peers.ours()[0]):
        benchmark.extra_info |= {"baseline": "fastmmd", **check(_value_and_gradient(fastmmd.mmd2, x, y, bandwidths))}

        def theirs():
            return _value_and_gradient(eager, x, y, bandwidths)

        def ours():
            return _value_and_gradient(fastmmd.mmd2, x, y, bandwidths)

        theirs()
        start = time.perf_counter()
        theirs(), ours()
        once = time.perf_counter() - start
        rounds = int(min(MOST_ROUNDS, max(5, SIZES.grid_seconds / once)))
        interleave(theirs, ours, rounds, {"operation": "grid", **sizes, "bandwidths": len(bandwidths)})
