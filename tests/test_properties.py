"""What must hold for any samples: symmetries, invariances, closed forms; shapes and values by hypothesis."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from helpers import F32, F64, assert_close, points, positive
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastmmd
from fastmmd.ops.arguments import KERNELS

KERNEL = st.sampled_from(KERNELS)
SIZE = st.integers(1, 40)
BACKEND = st.sampled_from(["reference", "auto"])


def bandwidths(kernel: str) -> tuple[tuple[float, ...], ...]:
    return () if kernel == "energy" else ((0.8, 1.6, 5.0),)


def pair(n: int, m: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    return points(n, dim, seed=seed), points(m, dim, seed=seed + 1, scale=1.5, shift=0.2)


def bound(x: Tensor, y: Tensor) -> float:
    """Twice the additive float32 bound: 3 kernels, or the largest distance for "energy"."""
    return 4e-7 / min(len(x), len(y)) * max(3.0, float(torch.cdist(x, y).max()))


@given(KERNEL, SIZE, SIZE, st.integers(1, 60), st.integers(0, 9), BACKEND)
def test_symmetry_and_permutations(kernel: str, n: int, m: int, dim: int, seed: int, name: str) -> None:
    x, y = pair(n, m, dim, seed)
    with fastmmd.backend(name):
        value = fastmmd.mmd2(x, y, *bandwidths(kernel), kernel=kernel)
        others = [
            fastmmd.mmd2(y, x, *bandwidths(kernel), kernel=kernel),
            fastmmd.mmd2(x.flip(0), y[torch.randperm(m)], *bandwidths(kernel), kernel=kernel),
            fastmmd.mmd2(x, y, *bandwidths(kernel), kernel=kernel, x_weights=torch.full((n,), 3.0)),
        ]
    assert value >= -bound(x, y)
    for other in others:
        assert_close(other, value.to(F64), atol=bound(x, y), sensitivity=1.0)


@given(KERNEL, SIZE, SIZE, st.integers(1, 60), st.sampled_from([64.0, -1024.0]), BACKEND)
def test_invariant_under_translation(kernel: str, n: int, m: int, dim: int, shift: float, name: str) -> None:
    """Points on a grid of 2^-10, so that the shifted ones are exact in float32: only differences may matter."""
    x, y = ((z * 1024).round() / 1024 for z in pair(n, m, dim, 3))
    with fastmmd.backend(name):
        value = fastmmd.mmd2(x, y, *bandwidths(kernel), kernel=kernel)
        moved = fastmmd.mmd2(x + shift, y + shift, *bandwidths(kernel), kernel=kernel)
    assert_close(moved, value.to(F64), atol=bound(x, y), sensitivity=1.0)


@given(KERNEL, st.integers(2, 40), st.integers(1, 20), BACKEND)
def test_zero_between_a_sample_and_itself(kernel: str, n: int, dim: int, name: str) -> None:
    x = points(n, dim)
    with fastmmd.backend(name):
        value = fastmmd.mmd2(x, x[torch.randperm(n)], *bandwidths(kernel), kernel=kernel)
        doubled = fastmmd.mmd2(x, torch.cat([x, x]), *bandwidths(kernel), kernel=kernel)
    assert abs(value) <= bound(x, x) and abs(doubled) <= bound(x, x)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 5), BACKEND)
def test_energy_distance_in_one_dimension(n: int, m: int, seed: int, name: str) -> None:
    """scipy's energy_distance is the square root, from the distribution functions."""
    from scipy import stats  # takes seconds

    x, y = pair(n, m, 1, seed)
    expected = stats.energy_distance(x[:, 0].double().cpu().numpy(), y[:, 0].double().cpu().numpy()) ** 2
    with fastmmd.backend(name):
        result = fastmmd.mmd2(x, y, kernel="energy")
    assert_close(result, torch.tensor(expected, dtype=F64), atol=bound(x, y), sensitivity=1.0)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("distance", [1e-12, 1e-6, 1e-3, 0.3, 2.0, 30.0])
@pytest.mark.parametrize("kernel", KERNELS)
def test_two_point_masses(backend: str, kernel: str, distance: float, dtype: torch.dtype) -> None:
    """All of x at one point, all of y at another: 2 (k(0) - k(distance)), to all digits however small."""
    s = 1.5
    x, y = torch.zeros(3, 2, dtype=dtype), torch.zeros(5, 2, dtype=dtype)
    y[:, 1] = distance
    r = y[0, 1].double() ** 2
    arguments, expected = {
        "gaussian": (((s,),), -torch.expm1(-r / (2 * s**2))),
        "laplacian": (((s,),), -torch.expm1(-r.sqrt() / s)),
        "imq": (((s,),), r / (s**2 + r)),
        "rational_quadratic": (((s,),), r / (2 * s**2 + r)),
        "energy": ((), r.sqrt()),
    }[kernel]
    assert_close(fastmmd.mmd2(x, y, *arguments, kernel=kernel), 2 * expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_unbiased_has_mean_zero_over_permutations(backend: str, kernel: str) -> None:
    """Over all splits of one pool the U-statistic averages to zero exactly; the V-statistic does not."""
    pool = points(6, 2, dtype=F64)
    splits = [[*chosen, *(i for i in range(6) if i not in chosen)] for chosen in combinations(range(6), 3)]
    x, y = pool[torch.tensor(splits)].split(3, dim=1)
    means = {
        estimator: fastmmd.mmd2(x, y, *bandwidths(kernel), kernel=kernel, estimator=estimator).mean()
        for estimator in ("biased", "unbiased")
    }
    assert abs(means["unbiased"]) < 1e-14 and means["biased"] > 1e-2


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_push_nothing_as_a_whole(backend: str, kernel: str) -> None:
    """Translation invariance, differentiated: the gradients in x and y sum to zero."""
    x, y = (z.double().requires_grad_() for z in pair(20, 31, 3, 0))
    gradients = torch.autograd.grad(fastmmd.mmd2(x, y, *bandwidths(kernel), kernel=kernel), [x, y])
    assert sum(g.sum(0) for g in gradients).abs().max() < 1e-14
    assert gradients[0].abs().max() > 1e-3


def test_weights_are_repetitions(backend: str) -> None:
    x, y = pair(5, 7, 3, 0)
    counts = torch.tensor([3, 1, 0, 2, 5])
    for arguments in ({"kernel": "energy"}, {"bandwidths": (1.0, 3.0)}):
        result = fastmmd.mmd2(x, y, x_weights=counts.float(), y_weights=positive(7), **arguments)
        repeated = fastmmd.mmd2(x.repeat_interleave(counts, 0), y, y_weights=positive(7), **arguments)
        assert_close(result, repeated.to(F64), rtol=4e-6)


def test_sum_of_kernels_is_the_sum_of_mmds(backend: str) -> None:
    x, y = pair(30, 40, 4, 0)
    for kernel in KERNELS[:4]:
        members = {1.0: 1.0, 2.0: 0.5, 7.0: 2.0}
        parts = sum(w * fastmmd.mmd2(x, y, (s,), kernel=kernel).double() for s, w in members.items())
        assert_close(fastmmd.mmd2(x, y, list(members), kernel=kernel, kernel_weights=list(members.values())), parts)


def test_wae_constant(backend: str) -> None:
    """imq with the WAE paper's C = 2 * dim * std^2 is the bandwidth C^(1/2)."""
    x, y = pair(9, 8, 4, 0)
    c = 2 * 4 * 1.5**2

    def k(a: Tensor, b: Tensor) -> Tensor:
        return (c / (c + torch.cdist(a.double(), b.double()).square())).mean()

    assert_close(fastmmd.mmd2(x, y, (c**0.5,), kernel="imq"), k(x, x) + k(y, y) - 2 * k(x, y))


def test_rational_quadratic_tends_to_the_gaussian(backend: str) -> None:
    x, y = pair(20, 25, 2, 0)
    limit = fastmmd.mmd2(x.double(), y.double(), (1.5,), kernel="rational_quadratic", alpha=1e7)
    assert_close(limit, fastmmd.mmd2(x.double(), y.double(), (1.5,)), rtol=1e-5)
    # alpha = 1 is imq with c = 2 s^2
    imq = fastmmd.mmd2(x, y, (1.5 * 2**0.5,), kernel="imq")
    assert_close(fastmmd.mmd2(x, y, (1.5,), kernel="rational_quadratic"), imq.to(F64))
