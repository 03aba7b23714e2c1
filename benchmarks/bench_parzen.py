"""Parzen log-likelihood: ten sigmas beside the bare matrix product, and one sigma beside every peer."""

from __future__ import annotations

import peers
import pytest
import torch
from settings import DEVICE, SIGMAS, SIZES

import fastmmd

DIM = 784


def _images(points, samples):
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(count, DIM, generator=generator).to(DEVICE) for count in (points, samples))


def _check(result, points, samples, sigmas, peer):
    """In nats on 50 of the points: ours to 0.005, peers to 0.1."""
    some = slice(0, len(points), max(1, len(points) // 50))
    exact = peers.parzen_log_likelihood(points[some].double(), samples.double(), sigmas)
    error = (result[:, some].double() - exact).abs().max().item()
    assert error <= (0.1 if peer else 0.005), error
    return {"value_error": error}


@pytest.mark.parametrize("implementation", peers.candidates(peers.PARZEN, main=False))
def test_ten_sigmas(benchmark, interleave, implementation):
    n, m = SIZES.parzen
    benchmark.group = f"parzen_log_likelihood, {n} points, {m:,} samples, D={DIM}, ten sigmas"
    points, samples = _images(n, m)
    with peers.chosen(implementation, fastmmd.parzen_log_likelihood, peers.PARZEN) as parzen:
        errors = _check(parzen(points, samples, SIGMAS), points, samples, SIGMAS, implementation in peers.PARZEN)
        benchmark.extra_info |= {"baseline": "the bare matrix product", **errors}
        interleave(
            lambda: parzen(points, samples, SIGMAS),
            lambda: points @ samples.T,
            SIZES.parzen_rounds if implementation == peers.ours()[0] else 5,
            {"operation": "parzen", "dim": DIM, "n": n, "m": m, "sigmas": len(SIGMAS)},
        )


@pytest.mark.parametrize("implementation", peers.candidates(peers.DENSITY, main=False))
def test_one_sigma(benchmark, measure, implementation):
    n, m = SIZES.density
    sigmas = SIGMAS[2:3]
    benchmark.group = f"parzen_log_likelihood, {n} points, {m:,} samples, D={DIM}, one sigma"
    points, samples = _images(n, m)
    with peers.chosen(implementation, fastmmd.parzen_log_likelihood, peers.DENSITY) as parzen:
        measure(
            lambda: parzen(points, samples, sigmas),
            lambda result: _check(result, points, samples, sigmas, implementation in peers.DENSITY),
            {"operation": "parzen", "dim": DIM, "n": n, "m": m, "sigmas": 1},
            compiles=implementation in peers.COMPILES,
        )


@pytest.mark.parametrize("implementation", [peers.ours()[0], "eager"])
def test_backward(benchmark, measure, implementation):
    """Forward and backward in the points; eager keeps a matrix for each sigma."""
    n, m = SIZES.parzen_gradients
    benchmark.group = f"parzen_log_likelihood forward+backward in {n:,} points, {m:,} samples, D={DIM}, ten sigmas"
    points, samples = _images(n, m)
    points.requires_grad_()
    some = slice(0, n, max(1, n // 50))

    def check(result):
        chosen = points.detach()[some].double().requires_grad_()
        (exact,) = torch.autograd.grad(
            peers.parzen_log_likelihood(chosen, samples.double(), SIGMAS).sum(1) @ scale.double(), chosen
        )
        error = ((result[some].double() - exact).norm(dim=1) / exact.norm(dim=1)).max().item()
        assert error <= 1e-3, error
        return {"gradient_error": error}

    scale = 1 / torch.arange(1, len(SIGMAS) + 1, device=DEVICE)
    with peers.chosen(implementation, fastmmd.parzen_log_likelihood, peers.PARZEN) as parzen:
        measure(
            lambda: torch.autograd.grad(parzen(points, samples, SIGMAS).sum(1) @ scale, points)[0],
            check,
            {"operation": "parzen backward", "dim": DIM, "n": n, "m": m, "sigmas": len(SIGMAS)},
        )
