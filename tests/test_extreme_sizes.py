"""One point and a million, one dimension and 20,000, one bandwidth and 256, of a millionth and of a million."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from helpers import F32, F64, FULL, assert_close, points, value_and_gradients

import fastmmd
from fastmmd.ops.arguments import KERNELS


@pytest.mark.parametrize("kernel", KERNELS[:4])
@pytest.mark.parametrize("dim", [1, 20_000])
def test_few_points_of_one_dimension_and_of_many(backend: str, dim: int, kernel: str) -> None:
    """Beside 1 and 256 bandwidths; two single points among the samples."""
    scale = dim**0.5
    for n, m in ((1, 1), (1, 3), (5, 2)):
        x, y = points(n, dim), points(m, dim, seed=1, shift=0.5)
        for bandwidths in ((scale,), [scale * 1.02**i for i in range(-128, 128)]):
            value, gradients = value_and_gradients(
                lambda x, y: fastmmd.mmd2(x, y, bandwidths, kernel=kernel), [x, y]  # noqa: B023
            )  # fmt: skip
            exact, wanted = value_and_gradients(
                lambda x, y: oracle.mmd2(x, y, bandwidths, kernel), [x, y], F64  # noqa: B023
            )  # fmt: skip
            assert_close(value, exact, rtol=4e-6)
            for gradient, want in zip(gradients, wanted, strict=True):
                assert gradient is not None and want is not None
                assert_close(gradient, want, rtol=2e-5, rows=True)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("kernel", KERNELS[:4])
def test_bandwidths_from_a_millionth_to_a_million(backend: str, kernel: str, dtype: torch.dtype) -> None:
    """Each alone, beside data of its size and of size 1, and all in one call."""
    every = tuple(10.0**exponent for exponent in range(-6, 7, 2))
    for bandwidths, scale in [*(((s,), size) for s in every for size in (s, 1.0)), (every, 1.0), (every, 1e3)]:
        x, y = points(9, 3, dtype=dtype, scale=scale), points(7, 3, dtype=dtype, seed=1, scale=scale)
        y[3] = x[4]  # near pairs matter where the bandwidth is small
        exact = oracle.mmd2(x.to(F64), y.to(F64), bandwidths, kernel)
        # k - k(0) is what the library sums; the oracle's k has rounded away what is below 1e-16 of it.
        noise = 1e-15 * len(bandwidths)
        assert_close(fastmmd.mmd2(x, y, bandwidths, kernel=kernel), exact, rtol=4e-6 if dtype == F32 else 1e-12,
                     atol=noise, sensitivity=math.inf)  # fmt: skip
        witness = fastmmd.witness(x, x, y, bandwidths, kernel=kernel)
        wanted = oracle.witness(*(z.to(F64) for z in (x, x, y)), bandwidths, kernel)
        rounding = (4e-7 if dtype == F32 else 1e-15) * len(bandwidths)
        assert_close(witness, wanted, rtol=4e-6 if dtype == F32 else 1e-12, atol=rounding, sensitivity=math.inf)


def test_ten_points_and_a_million() -> None:
    """Of a thousand places, a thousand at each, so that these tell the answer."""
    x, places = points(10, 2, shift=0.3), points(1000, 2, seed=1)
    y = places.repeat(1000, 1)[torch.randperm(1_000_000)]
    wanted = oracle.witness(x.to(F64), x.to(F64), places.to(F64), (0.5, 2.0))
    assert_close(fastmmd.witness(x, x, y, (0.5, 2.0)), wanted, rtol=4e-6)
    density = oracle.parzen_log_likelihood(x.to(F64), places.to(F64), (0.5,))[0]
    assert_close(fastmmd.parzen_log_likelihood(x, y, 0.5), density, rtol=2e-6)
    features = fastmmd.FourierFeatures(2, 16)
    means = oracle.phi(places.to(F64), features.frequencies(dtype=F64), torch.full((16,), 0.25, dtype=F64)).mean(0)
    assert_close(fastmmd.fourier_mean(y, features), means, atol=1e-6)


@pytest.mark.skipif(not FULL, reason="FASTMMD_TEST_FULL=1 runs it: half a million million pairs, minutes")
@pytest.mark.timeout(3600)
def test_distance_of_ten_points_from_a_million() -> None:
    x, places = points(10, 2, shift=0.3), points(1000, 2, seed=1)
    y = places.repeat(1000, 1)[torch.randperm(1_000_000)]
    value, (gradient,) = value_and_gradients(lambda x: fastmmd.mmd2(x, y, (0.5, 2.0)), [x])
    exact, (want,) = value_and_gradients(lambda x: oracle.mmd2(x, places.to(F64), (0.5, 2.0)), [x], F64)
    assert gradient is not None and want is not None
    assert_close(value, exact, rtol=4e-6)
    assert_close(gradient, want, rtol=2e-5, rows=True)
