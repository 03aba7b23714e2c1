"""Random Fourier features: fastmmd makes the frequencies in the kernel, the peers get them stored."""

from __future__ import annotations

import peers
import pytest
import torch
from settings import DEVICE, SIZES

import fastmmd

DIM = 6
N, COUNT = SIZES.fourier


def _features():
    features = fastmmd.FourierFeatures(DIM, COUNT, seed=1)
    return features, features.frequencies(device=DEVICE), features.frequencies(device=DEVICE, dtype=torch.float64)


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
    features, frequencies, exact_frequencies = _features()
    x = torch.randn(N, DIM, device=DEVICE, requires_grad=True)
    cotangent = torch.randn(2 * COUNT, device=DEVICE)
    peer = implementation in peers.FOURIER_MEAN
    argument = frequencies if peer else features

    def run(fourier_mean, x, argument):
        mean = fourier_mean(x, argument)
        return mean.detach(), *torch.autograd.grad(mean @ cotangent.to(mean), x)

    exact = run(peers.fourier_mean, x.detach().double().requires_grad_(), exact_frequencies)
    with peers.chosen(implementation, fastmmd.fourier_mean, peers.FOURIER_MEAN) as fourier_mean:
        measure(
            lambda: run(fourier_mean, x, argument),
            lambda result: _check(result, *exact, peer),
            {"operation": "fourier_mean", "dim": DIM, "n": N, "count": COUNT},
            compiles=implementation in peers.COMPILES,
        )


@pytest.mark.parametrize("implementation", peers.candidates(peers.FOURIER_FUNCTION, main=False))
def test_fourier_function(benchmark, measure, implementation):
    benchmark.group = f"fourier_function forward+backward, D={DIM}, N={N}, count={COUNT}"
    features, frequencies, exact_frequencies = _features()
    x = torch.randn(N, DIM, device=DEVICE, requires_grad=True)
    coefficients = torch.randn(2 * COUNT, device=DEVICE)
    peer = implementation in peers.FOURIER_FUNCTION
    argument = frequencies if peer else features

    def run(fourier_function, x, argument):
        value = fourier_function(x, coefficients.to(x), argument)
        return value.detach(), *torch.autograd.grad(value.sum(), x)

    exact = run(peers.fourier_function, x.detach().double().requires_grad_(), exact_frequencies)
    with peers.chosen(implementation, fastmmd.fourier_function, peers.FOURIER_FUNCTION) as fourier_function:
        measure(
            lambda: run(fourier_function, x, argument),
            lambda result: _check(result, *exact, peer),
            {"operation": "fourier_function", "dim": DIM, "n": N, "count": COUNT},
            compiles=implementation in peers.COMPILES,
        )
