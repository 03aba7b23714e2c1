"""The kernel families: the table of Python, that of the compiled code, and the formulas they stand for."""

from __future__ import annotations

import math
from dataclasses import asdict

import oracle
import pytest
import torch
from direct import Direct, native
from helpers import F32, F64

from fastmmd import _native
from fastmmd.kernels import FAMILIES, LIMITS, Family, Kernel

BANDWIDTHS = (1e-30, 0.03, 0.7, 1.0, 2.5, 80.0, 1e30)


def test_the_tables_have_the_same_families_and_limits() -> None:
    assert _native.family_names() == list(FAMILIES)
    for dtype, limits in LIMITS.items():
        assert _native.limits(dtype == F64) == asdict(limits)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_tables_have_the_same_facts(family: Family) -> None:
    facts = _native.family_facts(family.name, s=1.0, alpha=1.0, q=1.0)
    for name in ("bounded", "smooth", "takes_root", "has_bandwidths", "has_alpha", "squarings"):
        assert facts[name] == getattr(family, name), name


@pytest.mark.parametrize("q", [0.0, 1e-3, 0.5, 3.0, 40.0, 1e6])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_tables_have_the_same_formulas(family: Family, alpha: float, q: float) -> None:
    for s in (0.03, 0.7, 1.0, 80.0):
        facts = _native.family_facts(family.name, s=s, alpha=alpha, q=q)
        r = torch.tensor([q * s * s], dtype=F64)
        kappa = family.kappa(r, s, alpha, slope=True)
        steepness = {"gaussian": -0.5 / s**2, "laplacian": -0.5 / s, "imq": -1 / s**2, "energy": -0.5}
        steepness["rational_quadratic"] = steepness["gaussian"]
        assert facts["steepness"] == pytest.approx(steepness[family.name], rel=1e-15)
        if family.bounded:
            assert facts["value"] == pytest.approx(1 + float(kappa.u), rel=1e-13, abs=1e-15)
        else:
            assert facts["value"] == 1
        if family.smooth:
            assert kappa.slope is not None
            slope = float(kappa.slope) / steepness[family.name]
            assert facts["relative_slope"] == pytest.approx(slope, rel=1e-13, abs=1e-15)
        else:
            assert facts["relative_slope"] == 0


@pytest.mark.parametrize("s", BANDWIDTHS)
@pytest.mark.parametrize("alpha", [0.5, 2.5])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_rates_are_limited(family: Family, alpha: float, s: float) -> None:
    """What multiplies the argument, or is added to it, within what both dtypes hold."""
    exact = {
        "gaussian": -0.5 / s**2, "laplacian": -1 / s, "imq": s**2, "rational_quadratic": 0.5 / (alpha * s**2),
        "energy": 0.0,
    }[family.name]  # fmt: skip
    facts = _native.family_facts(family.name, s=s, alpha=alpha, q=0.0)
    for name, dtype in (("rate", F64), ("float_rate", F32)):
        most = LIMITS[dtype].divisor if family.name == "imq" else LIMITS[dtype].rate
        size = min(max(abs(exact), 1 / most if family.name == "imq" else 0), most)
        assert facts[name] == pytest.approx(math.copysign(size, exact), rel=1e-15)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_formulas_are_those_of_the_oracle(family: Family) -> None:
    r = torch.cat([torch.zeros(1, dtype=F64), torch.logspace(-6, 4, 200, dtype=F64)]).requires_grad_()
    s, alpha = torch.tensor(1.7, dtype=F64, requires_grad=True), 0.7 if family.has_alpha else 1.0
    kappa = family.kappa(r.detach(), 1.7, alpha, slope=True, bandwidth=True)
    expected = oracle.kappa(r, family.name, s, alpha)
    slope, by_s = torch.autograd.grad(expected.sum(), (r, s), allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(kappa.u, (expected - (1 if family.bounded else 0)).detach(), rtol=1e-12, atol=1e-15)
    assert kappa.slope is not None and kappa.bandwidth is not None
    first = 0 if family.smooth else 1
    torch.testing.assert_close(kappa.slope[first:], slope[first:], rtol=1e-12, atol=1e-300)
    torch.testing.assert_close(kappa.bandwidth[1:].sum(), by_s, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.has_bandwidths])
def test_any_bandwidth_gives_finite_numbers(name: str, dtype: torch.dtype) -> None:
    """Squares of bandwidths that overflow or vanish in the dtype: u is 0 at r = 0 and at least -1 elsewhere."""
    points = torch.tensor([[0.0], [0.0], [3.0], [1e3]], dtype=dtype)
    samples, weight, grad = points[:1], points.new_ones(1), points.new_ones(4)
    for power in (-70, -63, -40, 40, 62, 63) if dtype == F32 else (-900, -511, -500, -70, 70, 500, 511, 900):
        kernel, values = Kernel(name, (2.0**power,), (1.0,)), []
        for backend in (native, Direct("reference")):
            values.append(backend.witness(points, samples, weight, kernel))
            gradient = backend.witness_backward(grad, points, samples, weight, kernel, [True] + [False] * 4)[0]
            assert values[-1][:2].tolist() == [0, 0] and (values[-1] >= -1).all(), (backend.package, power)
            assert gradient.isfinite().all(), (backend.package, power)
        torch.testing.assert_close(values[0], values[-1], rtol=1e-5, atol=1e-30)
