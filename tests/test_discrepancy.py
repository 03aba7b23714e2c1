"""The first-order adversary's discrepancy, its gradients and its step, against dense formulas."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from helpers import F32, F64, assert_close, points, positive, value_and_gradients
from test_fourier import own, scale, unit
from torch import Tensor

import fastmmd
from fastmmd import fourier_ascent, fourier_discrepancy


@pytest.mark.parametrize("dtype", [torch.bfloat16, F32, F64])
@pytest.mark.parametrize(
    ("n", "m", "dim", "count"), [(1, 1, 1, 2), (40, 40, 6, 48), (300, 45, 3, 96), (30, 50, 19, 64), (5, 4, 2, 2000)]
)
def test_discrepancy(backend: str, n: int, m: int, dim: int, count: int, dtype: torch.dtype) -> None:
    """delta, its gradients and a step of alpha, up to the error of zeta, 1e-6 (1 + |W x|) for every feature."""
    count = count if backend == "native" else min(count, 96)  # whose kernels are chosen by it
    features = fastmmd.FourierFeatures(dim, count, bandwidths=(2.0, 4.0), kernel_weights=(0.5, 0.3), seed=4, start=7)
    compute = F64 if dtype == F64 else F32
    codes, draws = points(n, dim, dtype=dtype), points(m, dim, seed=1, shift=1.5, dtype=compute)
    alpha, frequencies, phi = positive(count, dtype=compute), own(features, compute), scale(features)

    def zeta(codes: Tensor, draws: Tensor) -> Tensor:
        means = [oracle.phi(z, frequencies, phi).mean(0) for z in (draws, codes)]
        return (means[0] - means[1]).view(2, count)

    def dense(codes: Tensor, draws: Tensor) -> Tensor:
        return (alpha.to(F64) * zeta(codes, draws).square()).sum()

    def result(codes: Tensor, draws: Tensor) -> Tensor:
        return fourier_discrepancy(codes, draws, alpha, features)

    value, gradients = value_and_gradients(result, [codes, draws])
    expected, wanted = value_and_gradients(dense, [codes, draws], F64)
    error = 2 * unit(torch.cat([codes.to(compute), draws]), frequencies, compute)
    size = (alpha.to(F64) * phi).repeat(2)
    slopes = zeta(codes.to(F64), draws.to(F64)).flatten() * alpha.to(F64).repeat(2)
    assert value.dtype == compute and value.shape == ()
    atol = 4 * error * float((slopes * phi.repeat(2)).norm()) + error**2 * float((size * phi.repeat(2)).sum())
    assert_close(value, expected, atol=atol, sensitivity=0.02)
    for gradient, other, points_, count_ in zip(gradients, wanted, (codes, draws), (n, m), strict=True):
        assert gradient.dtype == points_.dtype
        rounding = 2.0**-8 if points_.dtype == torch.bfloat16 else 0.0
        of_zeta = (size * phi.repeat(2))[:, None] * frequencies.repeat(2, 1)
        of_phi = (slopes * phi.repeat(2))[:, None] * frequencies.repeat(2, 1)
        atol = 8 * error * float(of_zeta.norm() + of_phi.norm()) / count_
        assert_close(gradient.to(F64), other, rtol=rounding + 2e-6, rows=True, atol=atol, sensitivity=0.05)

    squares = zeta(codes.to(F64), draws.to(F64)).square().sum(0)
    moved = 0.7 * alpha.to(F64) + 0.3 * squares / squares.mean()
    version = alpha._version
    fourier_ascent(alpha, codes, draws, features, 0.3)
    assert alpha._version > version
    largest = float((squares.sqrt() * phi).max() / squares.mean())
    assert_close(alpha, moved, rtol=2e-5 if compute == F32 else 1e-12, atol=8 * error * largest, sensitivity=0.05)


def test_discrepancy_of_one_sample_is_zero_and_alpha_stays_finite(backend: str) -> None:
    features, x, alpha = fastmmd.FourierFeatures(3, 8, bandwidths=(1.0, 2.0)), points(20, 3), torch.ones(8)
    x.requires_grad_()
    value = fourier_discrepancy(x, x.detach(), alpha, features)
    (gradient,) = torch.autograd.grad(value, x)
    assert value == 0 and (gradient == 0).all()
    fourier_ascent(alpha, x.detach(), x.detach(), features, 0.25)
    assert (alpha == 0.75).all()


def test_ascent_of_any_alpha(backend: str) -> None:
    """Half types, float64 beside float32 and strided memory move as float32 does."""
    features, codes, draws = fastmmd.FourierFeatures(2, 6), points(9, 2), points(9, 2, seed=1, shift=1.0)
    expected = torch.ones(6)
    fourier_ascent(expected, codes, draws, features, 0.8)
    for alpha in (torch.ones(6, dtype=F64), torch.ones(6, dtype=torch.bfloat16), torch.ones(6, 2)[:, 1]):
        fourier_ascent(alpha, codes, draws, features, 0.8)
        assert_close(alpha, expected, rtol=2.0**-8 if alpha.dtype == torch.bfloat16 else 1e-6, sensitivity=0.02)


def test_discrepancy_errors(backend: str) -> None:
    features, x = fastmmd.FourierFeatures(2, 6), points(9, 2)
    for arguments, message in (
        ((x, points(9, 3), torch.ones(6)), "draws: got dimension 3"),
        ((points(9, 3), points(9, 3), torch.ones(6)), "codes: got dimension 3, expected 2 as features.dim"),
        ((x, x, torch.ones(12)), r"alpha: got shape \[12\], expected \[6\]"),
    ):
        with pytest.raises(ValueError, match=message):
            fourier_discrepancy(*arguments, features)
        with pytest.raises(ValueError, match=message):
            fourier_ascent(arguments[2], *arguments[:2], features, 0.5)
    value = fourier_discrepancy(x.clone().requires_grad_(), x, torch.ones(6, requires_grad=True), features)
    with pytest.raises(RuntimeError, match="alpha: .* differentiable in codes and draws only"):
        value.backward()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_inf_reach_the_discrepancy(backend: str, bad: float) -> None:
    features, x, alpha = fastmmd.FourierFeatures(2, 6), points(9, 2), torch.ones(6)
    y = x.clone()
    y[3, 1] = bad
    assert fourier_discrepancy(x, y, alpha, features).isnan() and fourier_discrepancy(y, x, alpha, features).isnan()
    fourier_ascent(alpha, y, x, features, 0.5)
    assert alpha.isnan().all()
