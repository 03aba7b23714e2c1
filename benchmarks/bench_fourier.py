"""fourier_mean, value and gradient: fastmmd against stored frequencies and an [N, count] matrix."""

from __future__ import annotations

import peers
import pytest
import torch

import fastmmd

N, DIM, COUNT = 4096, 6, 1024


@pytest.mark.parametrize("implementation", ["native", "reference", "eager", "compiled"])
def test_fourier_mean_forward_backward(benchmark, implementation):
    benchmark.group = f"fourier_mean forward+backward, D={DIM}, N={N}, count={COUNT}, float32"
    features = fastmmd.FourierFeatures(DIM, COUNT, seed=1)
    x = torch.randn(N, DIM, requires_grad=True)
    cotangent = torch.randn(2 * COUNT)
    ours = implementation in ("native", "reference")
    peer = peers.compiled(peers.fourier_mean) if implementation == "compiled" else peers.fourier_mean

    def mean_and_gradient(x, frequencies):
        mean = fastmmd.fourier_mean(x, features) if ours else peer(x, frequencies)
        return mean.detach(), *torch.autograd.grad(mean @ cotangent.to(mean), x)

    x64 = x.detach().double().requires_grad_()
    exact = peers.fourier_mean(x64, features.frequencies(dtype=torch.float64))
    (exact_gradient,) = torch.autograd.grad(exact @ cotangent.double(), x64)
    frequencies = features.frequencies()
    with fastmmd.backend(implementation if ours else "auto"):
        mean, gradient = mean_and_gradient(x, frequencies)
        torch.testing.assert_close(mean.double(), exact.detach(), rtol=0, atol=1e-6)
        error = (gradient.double() - exact_gradient).norm(dim=1).max()
        assert error <= 1e-5 * exact_gradient.norm(dim=1).max()
        benchmark(mean_and_gradient, x, frequencies)
