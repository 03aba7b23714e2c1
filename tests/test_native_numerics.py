"""The numerics of the native code: elementary functions, frequencies, the bandwidth ladder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import oracle
import pytest
import torch
from direct import native
from helpers import F32, F64, assert_close, points
from torch import Tensor

from fastmmd import _native
from fastmmd.backends.calls import Features
from fastmmd.kernels import Kernel

# --- elementary functions


def apply(name: str, x: Tensor) -> Tensor:
    out = torch.full_like(x, float("nan"))
    _native.elementwise(name, x.dtype == F64, x.numel(), x.data_ptr(), out.data_ptr())
    return out


RANGES: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {  # over sign * 10^[low, high]
    "exp": (torch.exp, -8, np.log10(87)),
    "exp2": (torch.exp2, -8, np.log10(126)),
    "expm1": (torch.expm1, -8, np.log10(87)),
    "log": (torch.log, -37, 38),
    "log1p": (torch.log1p, -9, 38),
}


@pytest.mark.parametrize("name", RANGES)
def test_elementary_function_float32(name: str) -> None:
    function, low, high = RANGES[name]
    x = torch.logspace(low, high, 100_003, dtype=F64).to(F32) * (-1 if name.startswith("exp") else 1)
    expected = function(x.to(F64))
    ulp = torch.from_numpy(np.spacing(expected.abs().to(F32).numpy())).to(F64)
    assert ((apply(name, x).to(F64) - expected).abs() / ulp).max() <= 1.5


@pytest.mark.parametrize("name", RANGES)
def test_elementary_function_float64(name: str) -> None:
    """The C library is within one unit in the last place, so together at most three."""
    function, low, high = RANGES[name]
    x = torch.logspace(low, high, 100_003, dtype=F64) * (-1 if name.startswith("exp") else 1)
    expected = function(x)
    ulp = torch.from_numpy(np.spacing(expected.abs().numpy()))
    assert ((apply(name, x) - expected).abs() / ulp).max() <= 3


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("reach", [0.5, 1e4, 2.0**24, 1e30])
def test_sine_and_cosine_of_half_turns(dtype: torch.dtype, reach: float) -> None:
    """Four units of 2^-24 (2^-53): the polynomial (0.9), its last rounding (0.5), those of -4.93 z + 1 (1) and of z."""
    unit = torch.finfo(dtype).eps / 2
    t = ((torch.rand(50_000, dtype=F64, generator=torch.Generator().manual_seed(1)) * 2 - 1) * reach).to(dtype)
    t[:5] = torch.tensor([0.0, -0.5, 0.5, 1.0, -1.5])
    n = (t / 2).round()
    rest = (t - 2 * n).to(F64)  # exact, as -1 <= rest <= 1
    slack = 2 * torch.finfo(F64).eps  # pi * rest and the C library
    for name, function in (("sinpi", torch.sin), ("cospi", torch.cos)):
        expected = function(torch.pi * rest)
        assert_close(apply(name, t), expected, rtol=0, atol=4 * unit + slack, sensitivity=1e-5)
    assert apply("cospi", t[:1]) == 1 and apply("sinpi", t[:1]) == 0


@pytest.mark.parametrize("dtype", [F32, F64])
def test_phase_of_a_cosine_and_a_sine(dtype: torch.dtype) -> None:
    """Their errors of four units move it by 4 sqrt(2) / pi units; its own: polynomial 0.2, quotient 0.5, rounding 1."""
    unit = torch.finfo(dtype).eps / 2
    t = torch.cat([torch.linspace(-0.9999, 0.9999, 10_001), torch.tensor([0.0, -0.5, 0.25, -0.75, 1.0])]).to(dtype)
    assert_close(apply("phase", t), t.to(F64), rtol=0, atol=4 * unit, sensitivity=1e-5)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_elementary_functions_at_extremes(dtype: torch.dtype) -> None:
    inf = float("inf")
    x = torch.tensor([0.0, -1e5, -inf, float("nan")], dtype=dtype)
    torch.testing.assert_close(apply("exp", x), torch.exp(x), equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(apply("expm1", x), torch.expm1(x), equal_nan=True, rtol=0, atol=0)
    for name in ("sinpi", "cospi", "phase"):
        assert apply(name, torch.tensor([inf, -inf, float("nan")], dtype=dtype)).isnan().all()
    assert apply("log1p", torch.tensor([float("nan")], dtype=dtype)).isnan().all()


@pytest.mark.parametrize("name", ["gaussian", "laplacian", "imq", "rational_quadratic"])
def test_far_points_make_no_nan(name: str) -> None:
    """Squared distances that overflow float32; energy is left out, its value overflows with them."""
    spec = Kernel(name, (0.7, 2.0), (1.0, 1.0))
    x, y = points(1, 40, 3), points(1, 30, 3, seed=1)
    x[0, 0] = 3e19
    for out in native.mmd2(x, y, None, None, spec, False, [True] * 6):
        assert not out.isnan().any()


def test_nan_propagates() -> None:
    spec = Kernel("gaussian", (1.0,), (1.0,))
    x, y = points(1, 40, 3), points(1, 30, 3, seed=1)
    x[0, 7, 1] = float("nan")
    value, g_x, g_y, *_ = native.mmd2(x, y, None, None, spec, False, [True, True, False, False, False, False])
    assert value.isnan().all() and g_x[0, 7].isnan().any() and g_y.isnan().any()
    for dim in (3, 40):
        minimum, sums = torch.full((9,), float("inf"), dtype=F64), torch.zeros(1, 9, dtype=F64)
        samples = points(50, dim)
        samples[11, 2] = float("nan")
        native.parzen_update(points(9, dim, seed=1), samples, (1.0,), minimum, sums)
        assert sums.isnan().all()


@pytest.mark.parametrize("bad", [float("inf"), -float("inf")])
@pytest.mark.parametrize("dim", [3, 40])
def test_infinities_become_nan(dim: int, bad: float) -> None:
    """In the results they touch and in no others, although the kernels vanish far away."""
    x, samples, w, g = points(9, dim, seed=1), points(50, dim), torch.ones(50), torch.ones(9)
    spec = Kernel("gaussian", (1.0,), (1.0,))
    broken_x, broken_samples = x.clone(), samples.clone()
    broken_x[4, 2], broken_samples[11, 1] = bad, bad
    for p, q, touched in ((broken_x, samples, [4]), (x, broken_samples, list(range(9)))):
        expected = torch.zeros(9, dtype=torch.bool)
        expected[touched] = True
        minimum, sums = torch.full((9,), float("inf"), dtype=F64), torch.zeros(1, 9, dtype=F64)
        native.parzen_update(p, q, (1.0,), minimum, sums)
        assert torch.equal(sums[0].isnan(), expected)
        g_points, g_samples = native.parzen_backward(torch.ones(1, 9), p, q, (1.0,), minimum, sums, [True, True])
        assert torch.equal(g_points.isnan().any(1), expected) and g_samples.isnan().any(1).all()
        assert torch.equal(native.witness(p, q, w, spec).isnan(), expected)
        assert native.witness_backward(g, p, q, w, spec, [False, False, True, False, False])[2].isnan().any()
        assert native.mmd2(p[None], q[None], None, None, spec, False, [False] * 6)[0].isnan().all()


@pytest.mark.parametrize("name", ["gaussian", "laplacian", "imq", "rational_quadratic"])
@pytest.mark.parametrize(("dtype", "smallest"), [(F32, 1e-44), (F64, 1e-320)])
def test_tiny_bandwidths_make_no_nan(name: str, dtype: torch.dtype, smallest: float) -> None:
    """Every pair but the identical ones is infinitely far."""
    x, y = points(1, 20, 3, dtype=dtype), points(1, 30, 3, seed=1, dtype=dtype)
    x[0, 1] = x[0, 0]
    for s in (3e-20, 1e-20, 1e-30, 1e-38, smallest):
        spec = Kernel(name, (s, 1.0), (1.0, 1.0))
        outputs = native.mmd2(x, y, None, None, spec, False, [True] * 6)
        for out in outputs:
            assert not out.isnan().any(), s
        one = native.mmd2(x, y, None, None, Kernel(name, (1.0,), (1.0,)), False, [False] * 6)[0]
        assert_close(outputs[0] - one, torch.tensor([22 / 400 + 1 / 30], dtype=F64), rtol=1e-5)


# --- sums of many equal terms, whose rounding does not average out


@pytest.mark.parametrize("name", ["energy", "gaussian"])
@pytest.mark.parametrize("dim", [784, 4096])
def test_distances_in_many_equal_dimensions(name: str, dim: int) -> None:
    spec = Kernel(name, (0.1 * dim**0.5 if name == "gaussian" else 1.0,), (1.0,))
    x, y = torch.zeros(3, dim), torch.full((70, dim), 0.1)
    actual, expected = (native.witness(x.to(t), y.to(t), torch.ones(70, dtype=t), spec) for t in (F32, F64))
    assert_close(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("n", [100, 3843, 50_000])
def test_fourier_features_of_equal_points(n: int) -> None:
    spec = Features(torch.tensor([1, 0]), 64, (1.0,), (1.0,))
    mean = native.fourier_sum(torch.zeros(1, n, 3), torch.full((1, n), 1 / n), spec)[0, :64]
    assert_close(mean * 8, torch.ones(64), rtol=5e-7)


def test_kernel_weight_gradients_are_summed_in_double() -> None:
    """u of the energy kernel in one dimension is the distance, exactly."""
    spec, grad = Kernel("energy", (1.0,), (1.0,)), torch.ones(100)
    for distance in points(20, seed=3).abs():
        y = torch.full((256, 1), float(distance))
        gradient = native.witness_backward(
            grad, torch.zeros(100, 1), y, torch.ones(256), spec, [False, False, False, False, True]
        )[4]
        assert_close(gradient, -25_600 * distance.to(F64)[None], rtol=1.5e-7)


# --- Philox


def philox(counter: list[int], key: list[int]) -> list[int]:
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (p1 >> 32) ^ b ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ d ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [a, b, c, d]


def test_philox_in_the_test_gives_the_published_vectors() -> None:
    """Random123, kat_vectors: philox4x32 10."""
    assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    counter, key = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]
    assert philox(counter, key) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize(("dtype", "atol"), [(F32, 4e-6), (F64, 1e-14)])
@pytest.mark.parametrize("start", [0, 2**32 - 20, 2**63 - 20, -1])
def test_frequencies_are_philox_and_box_muller(dtype: torch.dtype, atol: float, start: int) -> None:
    seed, count, dim = -0x123456789ABCDEF, 40, 7
    spec = Features(torch.tensor([seed, start]), count, (0.5,), (1.0,))
    expected = torch.empty(count, dim, dtype=F64)
    for k in range(count):
        index = (start + k) % 2**64
        for d in range(dim):
            counter = [index & 0xFFFFFFFF, index >> 32, d // 4, 0]
            words = philox(counter, [seed % 2**32, (seed % 2**64) >> 32])[d % 4 // 2 * 2 :]
            radius = np.sqrt(-2 * np.log((2 * (words[0] >> 9) + 1) * 2.0**-24))
            angle = 2 * np.pi * words[1] * 2.0**-32
            expected[k, d] = radius * (np.sin(angle) if d % 2 else np.cos(angle)) / 0.5
    assert_close(native.fourier_frequencies(spec, dim, dtype), expected, rtol=0, atol=2 * atol)


# --- the bandwidth ladder


@pytest.mark.parametrize("dtype", [F32, F64])
def test_ladder_keeps_relative_accuracy(dtype: torch.dtype) -> None:
    """Eleven bandwidths from one exponential: gradients per bandwidth, from k alone, against autograd."""
    bandwidths = tuple(0.0625 * 2**i for i in range(11))
    x = points(1, 2, 3, scale=0.5, dtype=dtype)
    s = torch.tensor(bandwidths, dtype=F64, requires_grad=True)
    oracle.gram(x[0, :1].to(F64), x[0, 1:].to(F64), s).sum().backward()
    spec = Kernel("gaussian", bandwidths[::-1], (1.0,) * 11)
    one = torch.ones(1, dtype=dtype)
    grads = native.witness_backward(one, x[0, :1], x[0, 1:], one, spec, [False, False, False, True, True])
    r = float((x[0, 0].to(F64) - x[0, 1].to(F64)).square().sum())
    for got, wanted, u, width in zip(grads[3].flip(0), s.grad, grads[4].flip(0), bandwidths, strict=True):
        bound = 30 * (1 + r / (2 * width**2)) * torch.finfo(dtype).eps / 2
        assert_close(got, wanted, rtol=bound, sensitivity=0.1)
        assert_close(u, torch.tensor(np.expm1(-r / (2 * width**2)), dtype=F64), rtol=bound, sensitivity=0.1)
