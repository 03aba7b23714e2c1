"""Random Fourier features: fastmmd makes the frequencies in the kernel, the peers get them stored."""

from __future__ import annotations

from functools import cache

import peers
import pytest
import torch
from settings import DEVICE, SIZES

import fastmmd

DIM = 6
N, COUNT = SIZES.fourier
FEATURES = fastmmd.FourierFeatures(DIM, COUNT, seed=1)


@cache
def _problem():
    """Points [N, DIM], 2 * COUNT numbers, and what both functions are in float64, with their gradients."""
    generator = torch.Generator().manual_seed(0)
    x, vector = (torch.randn(*shape, generator=generator).to(DEVICE) for shape in ((N, DIM), (2 * COUNT,)))
    frequencies = FEATURES.frequencies(device=DEVICE, dtype=torch.float64)
    x64 = x.double().requires_grad_()
    mean = _mean_and_gradient(peers.fourier_mean, x64, vector, frequencies)
    function = _function_and_gradient(peers.fourier_function, x64, vector, frequencies)
    return x.requires_grad_(), vector, mean, function


def _mean_and_gradient(fourier_mean, x, cotangent, features):
    mean = fourier_mean(x, features)
    return mean.detach(), *torch.autograd.grad(mean @ cotangent.to(mean), x)


def _function_and_gradient(fourier_function, x, coefficients, features):
    value = fourier_function(x, coefficients.to(x), features)
    return value.detach(), *torch.autograd.grad(value.sum(), x)


def _check(result, exact, gradient, peer):
    """Values to 1e-6 (|phi| <= 1), gradients to 1e-5 of the largest row; peers ten times wider."""
    factor = 10 if peer else 1
    value_error = (result[0].double() - exact).abs().max().item()
    gradient_error = ((result[1].double() - gradient).norm(dim=1).max() / gradient.norm(dim=1).max()).item()
    assert value_error <= factor * 1e-6 * max(1.0, exact.abs().max().item()), value_error
    assert gradient_error <= factor * 1e-5, gradient_error
    return {"value_error": value_error, "gradient_error": gradient_error}


@pytest.mark.parametrize("implementation", peers.candidates(peers.FOURIER_MEAN))
def test_fourier_mean(benchmark, measure, implementation):
    benchmark.group = f"fourier_mean forward+backward, D={DIM}, N={N}, count={COUNT}"
    x, cotangent, exact, _ = _problem()
    peer = implementation in peers.FOURIER_MEAN
    argument = FEATURES.frequencies(device=DEVICE) if peer else FEATURES
    with peers.chosen(implementation, fastmmd.fourier_mean, peers.FOURIER_MEAN) as fourier_mean:
        measure(
            lambda: _mean_and_gradient(fourier_mean, x, cotangent, argument),
            lambda result: _check(result, *exact, peer),
            {"operation": "fourier_mean", "dim": DIM, "n": N, "count": COUNT},
            compiles=implementation in peers.COMPILES,
        )


@pytest.mark.parametrize("implementation", peers.candidates(peers.FOURIER_FUNCTION, main=False))
def test_fourier_function(benchmark, measure, implementation):
    benchmark.group = f"fourier_function forward+backward, D={DIM}, N={N}, count={COUNT}"
    x, coefficients, _, exact = _problem()
    peer = implementation in peers.FOURIER_FUNCTION
    argument = FEATURES.frequencies(device=DEVICE) if peer else FEATURES
    with peers.chosen(implementation, fastmmd.fourier_function, peers.FOURIER_FUNCTION) as fourier_function:
        measure(
            lambda: _function_and_gradient(fourier_function, x, coefficients, argument),
            lambda result: _check(result, *exact, peer),
            {"operation": "fourier_function", "dim": DIM, "n": N, "count": COUNT},
            compiles=implementation in peers.COMPILES,
        )
