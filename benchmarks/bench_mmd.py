"""mmd2, value and gradient: fastmmd against the textbook formula, eager and compiled."""

from __future__ import annotations

import peers
import pytest
import torch

import fastmmd

BANDWIDTHS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)


@pytest.mark.parametrize("n", [1000, 4096])
@pytest.mark.parametrize("implementation", ["native", "reference", "eager", "compiled"])
def test_mmd2_forward_backward(benchmark, implementation, n):
    benchmark.group = f"mmd2 forward+backward, D=6, six bandwidths, N=M={n}, float32"
    x, y = torch.randn(n, 6), 1.1 * torch.randn(n, 6)
    x.requires_grad_()
    ours = implementation in ("native", "reference")
    mmd2 = fastmmd.mmd2 if ours else peers.compiled(peers.mmd2) if implementation == "compiled" else peers.mmd2

    def value_and_gradient():
        value = mmd2(x, y, BANDWIDTHS)
        return value.detach(), *torch.autograd.grad(value, x)

    with fastmmd.backend("reference"):
        x64 = x.detach().double().requires_grad_()
        exact = fastmmd.mmd2(x64, y.double(), BANDWIDTHS)
        (exact_gradient,) = torch.autograd.grad(exact, x64)
    with fastmmd.backend(implementation if ours else "auto"):
        value, gradient = value_and_gradient()
        # The textbook formula in float32 is mostly rounding: held to what it can reach, ours to its contract.
        tolerance = 1e-5 if ours else 1e-2
        torch.testing.assert_close(value.double(), exact.detach(), rtol=tolerance, atol=0)
        error = (gradient.double() - exact_gradient).norm(dim=1).max()
        assert error <= tolerance * exact_gradient.norm(dim=1).max()
        benchmark(value_and_gradient)
