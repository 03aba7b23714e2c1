"""The compiled mmd2 and witness: wide bandwidths folded into polynomials, half tiles, both gradients of a tile."""

from __future__ import annotations

import oracle
import pytest
import torch
from direct import native
from helpers import F32, F64, assert_close, points

from fastmmd.kernels import Kernel

PAPERS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)
POINTS_ONLY = [True, True, False, False, False, False]


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("reach", [1e-8, 0.3, 11.0, 1e4])  # from all folded to none
@pytest.mark.parametrize("weights", [(1.0,) * 6, (1.0, -3.0, 0.5, 2.0, -1.0, 4.0)])
def test_value_and_slope_of_single_pairs(dtype: torch.dtype, reach: float, weights: tuple[float, ...]) -> None:
    """Against the formula, relative to what each distance alone allows, from zero to the farthest."""
    distance = torch.cat([torch.zeros(1), torch.logspace(-3, 0, 499)]).to(dtype) * reach
    p, origin, one = distance[:, None], torch.zeros(1, 1, dtype=dtype), torch.ones(1, dtype=dtype)
    spec = Kernel("gaussian", PAPERS, weights)
    value = native.witness(p, origin, one, spec).to(F64)
    gradient = native.witness_backward(torch.ones(500, dtype=dtype), p, origin, one, spec, [True] + [False] * 4)[0]

    s, w = torch.tensor(PAPERS, dtype=F64), torch.tensor(weights, dtype=F64)
    exponent = -(distance.to(F64).square()[:, None]) / (2 * s**2)
    eps = torch.finfo(dtype).eps
    u = w * torch.expm1(exponent)
    far = torch.exp(-distance.to(F64).square().mean() / (2 * s**2)) < 0.5  # these add k, and k(0) afterwards
    assert ((value - u.sum(1)).abs() <= 8 * eps * (u.abs().sum(1) + w[far].abs().sum())).all()
    slope = w * torch.exp(exponent) / s**2 * distance.to(F64)[:, None]
    bound = 8 * eps * (w.abs() / s**2).sum() * distance.to(F64)  # what is shifted or folded is exact at r = 0
    assert ((gradient[:, 0].to(F64) + slope.sum(1)).abs() <= bound).all()
    assert value[0] == 0 and value[-1] != 0


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "m"), [(256, 1), (1, 300), (257, 33), (16, 272), (530, 513)])
def test_self_terms_wider_than_the_cross_term(n: int, m: int, weighted: bool, dtype: torch.dtype) -> None:
    """The farthest pair may lie within one sample; blocks and tiles end anywhere."""
    x, y = points(1, n, 3, dtype=dtype), points(1, m, 3, seed=1, dtype=dtype, scale=0.01)
    wx = points(1, n, seed=2, dtype=dtype).square() if weighted else None
    value, g_x, g_y, *_ = native.mmd2(x, y, wx, None, Kernel("gaussian", PAPERS, (1.0,) * 6), False, POINTS_ONLY)
    x64, y64 = x.to(F64).requires_grad_(), y.to(F64).requires_grad_()
    expected = oracle.mmd2(x64, y64, PAPERS, x_weights=None if wx is None else wx.to(F64))
    expected.sum().backward()
    assert x64.grad is not None and y64.grad is not None
    assert_close(value, expected, rtol=1e-6 if dtype == F32 else 1e-12)
    assert_close(g_x.to(dtype), x64.grad, rows=True)
    assert_close(g_y.to(dtype), y64.grad, rows=True)


@pytest.mark.parametrize("needs", [(0,), (1,), (0, 1), (2,), (3,), (0, 3), (1, 2), (4,), (0, 4, 5), (0, 1, 2, 3, 4, 5)])
def test_any_set_of_gradients_is_the_same_gradients(needs: tuple[int, ...]) -> None:
    """Half tiles, whole ones and sums per bandwidth are different paths to one result."""
    x, y = points(2, 290, 4, dtype=F64), points(2, 275, 4, seed=1, dtype=F64)
    wx, wy = points(2, 290, seed=2, dtype=F64).square(), points(2, 275, seed=3, dtype=F64).square()
    spec = Kernel("gaussian", (0.5, 1.0, 4.0), (1.0, 2.0, -0.5))
    for unbiased in (False, True):
        value, *every = native.mmd2(x, y, wx, wy, spec, unbiased, [True] * 6)
        some_value, *some = native.mmd2(x, y, wx, wy, spec, unbiased, [i in needs for i in range(6)])
        assert_close(some_value, value)
        for i, (got, expected) in enumerate(zip(some, every, strict=True)):
            if i in needs:
                assert_close(got, expected)
            else:
                assert got.numel() == 0


@pytest.mark.parametrize("rates", [(0.5,), (4.0, 1.0, 0.25), (0.71875, 0.3125, 0.1015625), (0.0625, 0.01171875)])
def test_the_self_term_alone_has_no_error_that_all_pairs_share(rates: tuple[float, ...]) -> None:
    """Beside a closed form nothing would cancel it: at most 2^-29, a thirty-second of one rounding."""
    spec = Kernel("gaussian", tuple((0.5 / rate) ** 0.5 for rate in rates), (1.0,) * len(rates))
    x = points(1, 4000, 4)
    wide, narrow = (native.mmd2(x.to(t), None, None, None, spec, False, [False] * 6)[0] for t in (F64, F32))
    assert (narrow - wide).abs() <= 2**-29 * len(rates)
    assert wide < -0.05
