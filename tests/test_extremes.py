"""Numbers near the ends of what a dtype holds: sigmas, distances, slopes, infinities."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from helpers import EMULATED, F32, F64, assert_close, points, value_and_gradients
from torch import Tensor

import fastmmd
from fastmmd.ops.arguments import KERNELS

# --- sigmas of Parzen windows ---


def in_units(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """The oracle for one sigma in units of it, where no square overflows or vanishes."""
    value = oracle.parzen_log_likelihood(x.to(F64) / sigma, y.to(F64) / sigma, (1.0,))[0]
    return value - x.shape[1] * math.log(sigma)


EXTREME = [  # sigma, size of the data
    (2e18, 1.0), (1e20, 1e19), (1e25, 1.0), (1e-20, 1e-20), (1e-30, 3e-30), (1e155, 1.0), (1e155, 1e155),
    (1e-155, 1e-155), (1e300, 1.0), (1e-300, 1e-300), (1e-6, 1.0), (1e-20, 1.0),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("dim", [1, 20])
def test_any_sigma(backend: str, dim: int, dtype: torch.dtype) -> None:
    """Whatever its size beside that of the dtype's numbers; padded columns, which are infinitely far, among others."""
    for sigma, size in EXTREME:
        if dtype == F32 and not 1e-37 < size < 1e37:
            continue
        x, y = (points(n, dim, dtype=F64, seed=n) * size for n in (3, 100))
        x, y = x.to(dtype), y.to(dtype)
        y[7] = x[0]  # a density that is large where sigma is small
        exact, wanted = value_and_gradients(lambda x, y: in_units(x, y, sigma), [x, y], F64)  # noqa: B023
        value, gradients = value_and_gradients(lambda x, y: fastmmd.parzen_log_likelihood(x, y, sigma), [x, y])  # noqa: B023
        streamed = fastmmd.ParzenEstimator(x, sigma).update(y[:40]).update(y[40:]).log_likelihood()
        for result in (value, streamed):
            assert_close(result[0], exact[0], rtol=1e-5 if dtype == F32 else 1e-11)
            lost = exact[1:] < -torch.finfo(dtype).max
            assert torch.equal(result[1:].isneginf(), lost), sigma
            others = exact[1:].masked_fill(lost, 0)
            assert_close(result[1:].masked_fill(lost, 0), others, rtol=1e-5 if dtype == F32 else 1e-11)
        tiny = torch.finfo(dtype).smallest_normal
        for gradient, want in zip(gradients, wanted, strict=True):
            assert gradient is not None and want is not None
            if tiny * 1e6 < want.abs().max() < 1 / tiny / 1e6:
                gradient, want = gradient.to(F64) * sigma, want * sigma  # noqa: PLW2901
                assert_close(gradient, want, rtol=1e-4 if dtype == F32 else 1e-10, rows=True)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("dim", [2, 20])
def test_sigmas_of_any_ratio(backend: str, dim: int, dtype: torch.dtype) -> None:
    """In one call, in a stream and in merged streams."""
    sigmas = (1e-30, 1.0, 1e30) if dtype == F32 else (1e-140, 1e-30, 1.0, 1e140)
    x, y = points(3, dim, dtype=dtype), points(60, dim, dtype=dtype, seed=1)
    x[0] = y[4]
    exact = torch.stack([in_units(x, y, sigma) for sigma in sigmas])
    first, second = (fastmmd.ParzenEstimator(x, sigmas).update(part) for part in (y[:20], y[20:]))
    for result in (fastmmd.parzen_log_likelihood(x, y, sigmas), first.merge(second).log_likelihood()):
        lost = exact < -torch.finfo(dtype).max
        assert torch.equal(result.isneginf(), lost)
        for row, want, gone in zip(result, exact, lost, strict=True):
            want, row = want.masked_fill(gone, 0), row.masked_fill(gone, 0)
            assert_close(row, want, rtol=2e-6 if dtype == F32 else 1e-12)


# --- kernels that are tiny between any two points ---


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("dim", [2, 20, 60])
@pytest.mark.parametrize("exponent", [20.0, 40.0])
def test_tiny_slopes_keep_their_digits(backend: str, exponent: float, dim: int, dtype: torch.dtype) -> None:
    """Gradients 1e-9 and 1e-18 times those of near points, which kappa'(0) must not swamp: of mmd2, of witness, and of
    a sample's own term alone beside a closed form."""
    x, y = points(20, dim, dtype=dtype), points(20, dim, seed=1, dtype=dtype)
    exact = x.to(F64), y.to(F64)
    r = oracle.squared_distances(exact[0], torch.cat(exact))
    s = (float(r[r > 0].min()) / (2 * exponent)) ** 0.5
    prior = fastmmd.priors.Gaussian(dim)

    def to_prior(x: Tensor, y: Tensor) -> Tensor:
        near_prior = torch.exp(-x.square().sum(1) / (2 * (1 + s**2))) * (s**2 / (1 + s**2)) ** (dim / 2)
        return oracle.gram(x, x, (s,)).mean() - 2 * near_prior.mean() + 0 * y.sum()

    cases = [
        (lambda x, y: fastmmd.mmd2(x, y, (s,)), lambda x, y: oracle.mmd2(x, y, (s,))),
        (lambda x, y: fastmmd.witness(x, y, y[:9] + 1, (s,)), lambda x, y: oracle.witness(x, y, y[:9] + 1, (s,))),
        (lambda x, y: fastmmd.mmd2_to_prior(x, prior, (s,)) + 0 * y.sum(), to_prior),
    ]
    # The exponent itself is rounded: docs/operators.md.
    rtol = 2e-6 + 1.5e-7 * exponent if dtype == F32 else 1e-12
    for ours, theirs in cases:
        _, (gradient, _) = value_and_gradients(ours, [x, y])
        _, (want, _) = value_and_gradients(theirs, [x, y], F64)
        assert gradient is not None and want is not None
        assert_close(gradient, want, rtol=rtol, rows=True)


# --- far points and infinite ones ---


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("kernel", KERNELS)
def test_far_points(backend: str, kernel: str, dtype: torch.dtype) -> None:
    """Bounded kernels vanish at any distance, overflow or not. Energy needs squared distances that the dtype holds and
    is never finite and wrong beyond."""
    bandwidths = () if kernel == "energy" else ((0.7, 2.0),)
    for far in (1e18, 1e20, 1e30) if dtype == F32 else (1e20, 1e150, 1e160):
        x, y = points(5, 2, dtype=dtype), points(6, 2, seed=1, dtype=dtype)
        x[0, 0] = far

        def ours(x: Tensor, y: Tensor) -> Tensor:
            return fastmmd.mmd2(x, y, *bandwidths, kernel=kernel)  # noqa: B023

        value, (gradient, _) = value_and_gradients(ours, [x, y])
        if kernel == "energy" and far > torch.finfo(dtype).max ** 0.5:
            assert not value.isfinite() or abs(float(value) / (0.08 * far) - 1) < 1e-5  # 2 / 5 - 2 (4 / 25)
            continue
        expected, (want, _) = value_and_gradients(
            lambda x, y: oracle.mmd2(x, y, *(bandwidths or ((1.0,),)), kernel), [x, y], F64  # noqa: B023
        )  # fmt: skip
        assert gradient is not None and want is not None
        assert_close(value, expected)
        assert_close(gradient, want, rows=True)


@pytest.mark.parametrize("dim", [2, 60])
@pytest.mark.parametrize("kernel", KERNELS)
def test_an_infinite_coordinate_gives_nan(backend: str, kernel: str, dim: int) -> None:
    """In mmd2, in the witness at that point and no other, and in all of the witness if it is a sample's."""
    bandwidths = () if kernel == "energy" else ((0.7, 2.0),)
    x, y = points(5, dim), points(6, dim, seed=1)
    x[3, 1] = -math.inf
    assert fastmmd.mmd2(x, y, *bandwidths, kernel=kernel).isnan()
    assert fastmmd.mmd2(y, x, *bandwidths, kernel=kernel).isnan()
    witness = fastmmd.witness(x, y, y[:4], *bandwidths, kernel=kernel)
    assert witness.isnan().tolist() == [False, False, False, True, False]
    assert fastmmd.witness(y, x, y, *bandwidths, kernel=kernel).isnan().all()
    assert fastmmd.witness(y, y, x, *bandwidths, kernel=kernel).isnan().all()


# --- scales ---


@pytest.mark.parametrize("exponent", [-12, 12] if EMULATED else [-12, -10, -6, 6, 10, 12])
def test_gradients_at_any_scale(backend: str, exponent: int) -> None:
    """Of wide bandwidths too, which fold into polynomials where the powers of these are numbers of float32."""
    scale = 10.0**exponent
    for n, m in ((1, 2),) if EMULATED else ((1, 2), (40, 30)):
        x, y = points(n, 2, scale=scale), points(m, 2, seed=1, scale=scale)
        for bandwidths in ((scale,), (2 * scale, 4 * scale, 8 * scale)):
            _, gradients = value_and_gradients(lambda x, y: fastmmd.mmd2(x, y, bandwidths), [x, y])  # noqa: B023
            _, wanted = value_and_gradients(lambda x, y: oracle.mmd2(x, y, bandwidths), [x, y], F64)  # noqa: B023
            for gradient, want in zip(gradients, wanted, strict=True):
                assert gradient is not None and want is not None
                assert_close(gradient, want, rtol=2e-5, rows=True)
