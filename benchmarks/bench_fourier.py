"""fourier_mean, value and gradient: fastmmd against stored frequencies and an [N, count] matrix."""

from __future__ import annotations

import peers
import pytest
import torch

import fastmmd


@pytest.mark.parametrize("implementation", ["native", "reference", "eager"])
def test_fourier_mean_forward_backward(benchmark, implementation):
    n, count = 4096, 1024
    benchmark.group = f"fourier_mean forward+backward, D=6, N={n}, count={count}, float32"
    x = torch.randn(n, 6, requires_grad=True)
    features = fastmmd.FourierFeatures(6, count, seed=1)
    frequencies = features.frequencies()
    weights = torch.randn(2 * count)

    def value_and_gradient():
        mean = peers.fourier_mean(x, frequencies) if implementation == "eager" else fastmmd.fourier_mean(x, features)
        return mean.detach(), *torch.autograd.grad(mean @ weights, x)

    with fastmmd.backend("auto" if implementation == "eager" else implementation):
        mean, gradient = value_and_gradient()
        exact = peers.fourier_mean(x.detach().double(), features.frequencies(dtype=torch.float64))
        torch.testing.assert_close(mean.double(), exact, rtol=0, atol=1e-6)
        assert gradient.isfinite().all()
        benchmark(value_and_gradient)
