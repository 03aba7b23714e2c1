"""Calls that are right in strange forms: layouts, dtypes, sizes, scales. Beside the dense float64 formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import oracle
import torch
from helpers import F32, F64, assert_close, points, positive, value_and_gradients
from hypothesis import strategies as st
from torch import Tensor

import fastmmd
from fastmmd.ops.arguments import FLOATS, KERNELS

FAR = 40_009  # elements between neighbors


def _strided(x: Tensor, *steps: int) -> Tensor:
    return torch.zeros([n * step for n, step in zip(x.shape, steps, strict=True)], dtype=x.dtype)[
        tuple(slice(None, None, step) for step in steps)
    ].copy_(x)


#: Views [N, D] that hold the numbers given, or others.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT,
    "every second": lambda x: _strided(x, 2, 2),
    "far apart": lambda x: torch.as_strided(torch.zeros(len(x) * FAR, dtype=x.dtype), x.shape, (FAR, 1)).copy_(x),
    "columns far apart": lambda x: torch.as_strided(
        torch.zeros(x.shape[1] * FAR + len(x), dtype=x.dtype), x.shape, (1, FAR)
    ).copy_(x),
    "one row": lambda x: x[:1].expand(x.shape),
    "one column": lambda x: x[:, :1].expand(x.shape),
    "one number": lambda x: x[0, 0].expand(x.shape),
    "overlapping": lambda x: torch.as_strided(x.flatten(), x.shape, (1, 1)),
    "an offset": lambda x: torch.cat([x[:1], x])[1:],
    "negated": lambda x: -x if x.dtype not in (F32, F64) else torch.complex(x, -x).conj().imag,
    "a parameter": lambda x: torch.nn.Parameter(x),
    "inference": lambda x: _inference(x),
}


@torch.inference_mode()
def _inference(x: Tensor) -> Tensor:
    return x.clone()


LAYOUT = st.sampled_from(sorted(LAYOUTS))
SIZE = st.one_of(st.integers(1, 5), st.sampled_from([31, 32, 33, 100]))
DIM = st.one_of(st.integers(1, 5), st.sampled_from([16, 17, 63, 130]))
#: Of the points; bandwidths go with them.
SCALE = st.sampled_from([1.0, 1.0, 1e-3, 1e3, 1e-12, 1e12, 1e-17, 1e17])
DTYPE = st.sampled_from(FLOATS)


def cloud(draw: Any, n: int, dim: int, dtype: torch.dtype, seed: int, scale: float) -> Tensor:
    half = dtype in (torch.float16, torch.bfloat16)
    made = points(n, dim, seed=seed, dtype=dtype, scale=1.0 if half else scale)
    return LAYOUTS[draw(LAYOUT)](made)


def exact(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.detach().to(F64) for tensor in tensors]


def compare(result: Tensor, expected: Tensor, atol: float, rtol: float) -> None:
    """Of one shape, in the compute dtype, and near."""
    assert result.dtype == (F64 if rtol < 1e-10 else F32), result.dtype
    assert_close(result, expected, atol=atol, rtol=rtol, sensitivity=math.inf)


def case(draw: Any) -> str:
    """Draws a call, makes it, compares; returns what was called."""
    return draw(st.sampled_from([mmd, witness, fixed, fourier, adversary, parzen, to_prior, median]))(draw)


def _sizes(draw: Any) -> tuple[int, int, int, torch.dtype, float]:
    dtype = draw(DTYPE)
    scale = draw(SCALE)
    return draw(SIZE), draw(SIZE), draw(DIM), dtype, 1.0 if dtype in (torch.float16, torch.bfloat16) else scale


def _kernel(draw: Any, scale: float, dim: int) -> dict[str, Any]:
    # Quotients count float32 distances up to 1e15 (docs/operators.md).
    kernel = draw(st.sampled_from([k for k in KERNELS if scale < 1e15 or k not in ("imq", "rational_quadratic")]))
    if kernel == "energy":
        return {"kernel": kernel}
    count = draw(st.sampled_from([1, 2, 3, 7]))
    bandwidths = [scale * dim**0.5 * draw(st.sampled_from([0.3, 1.0, 2.0, 4.0])) for _ in range(count)]
    alpha = draw(st.sampled_from([0.5, 1.0, 3.0])) if kernel == "rational_quadratic" else 1.0
    weights = [0.5 + i for i in range(count)] if draw(st.booleans()) else None
    return {"bandwidths": bandwidths, "kernel": kernel, "alpha": alpha, "kernel_weights": weights}


def _weights(draw: Any, n: int, dtype: torch.dtype) -> Tensor | None:
    if not draw(st.booleans()):
        return None
    w = positive(n, seed=n, dtype=dtype)
    return torch.stack([w, w], 1)[:, 0] if draw(st.booleans()) else w


def _bound(dtype: torch.dtype, kernel: dict[str, Any], x: Tensor, y: Tensor) -> tuple[float, float]:
    """What rounding leaves of a sum of kernels: absolute, of the size of the kernel, and relative."""
    eps = 1e-13 if dtype == F64 else 4e-6
    weights = kernel.get("kernel_weights") or [1.0] * len(kernel.get("bandwidths", [0]))
    size = sum(weights)
    if kernel["kernel"] == "energy":
        size = float(torch.cat(exact(x, y)).norm(dim=1).max())
    return eps * size, eps


def mmd(draw: Any) -> str:
    n, m, dim, dtype, scale = _sizes(draw)
    x, y = cloud(draw, n, dim, dtype, 0, scale), cloud(draw, m, dim, dtype, 1, scale)
    kernel = _kernel(draw, scale, dim)
    estimator = draw(st.sampled_from(["biased", "unbiased"])) if min(n, m) > 1 else "biased"
    wx, wy = _weights(draw, n, dtype), _weights(draw, m, dtype)
    options = {**kernel, "estimator": estimator, "x_weights": wx, "y_weights": wy}
    given = f"mmd2 {n} {m} {dim} {dtype} {scale} {x.stride()} {y.stride()} {options}"
    result = fastmmd.mmd2(x, y, **options)
    ex, ey, ewx, ewy = exact(x, y, wx, wy)
    expected = oracle.mmd2(ex, ey, **{**options, "x_weights": ewx, "y_weights": ewy})
    atol, rtol = _bound(dtype, kernel, x, y)
    assert result.shape == (), given
    compare(result, expected, atol, rtol)
    if scale > 1e-16 and draw(st.booleans()):  # below, slopes have a bound (docs/operators.md)
        exactly = {**options, "x_weights": ewx, "y_weights": ewy}
        _gradients(lambda a, b: fastmmd.mmd2(a, b, **options), lambda a, b: oracle.mmd2(a, b, **exactly), x, y, kernel)
    return given


def _gradients(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], x: Tensor, y: Tensor, kernel: dict[str, Any]
) -> None:
    """Within a small part of a slope; coinciding points, where kernels have a kink, are no matter of rounding."""
    x, y = (z.detach().clone() for z in (x, y))
    _, got = value_and_gradients(ours, [x, y])
    _, want = value_and_gradients(theirs, [x, y], F64)
    widths = kernel.get("bandwidths", [1.0])
    size = 30.0 * sum(kernel.get("kernel_weights") or [1.0] * len(widths)) / min(widths)
    eps = {F64: 1e-12, F32: 1e-5}.get(x.dtype, 1e-2)
    for gradient, wanted, given in zip(got, want, (x, y), strict=True):
        assert gradient is not None and wanted is not None
        assert gradient.shape == given.shape and gradient.dtype == given.dtype
        assert_close(gradient, wanted, atol=eps * size, rtol=eps, rows=True, sensitivity=math.inf)


def witness(draw: Any) -> str:
    n, m, dim, dtype, scale = _sizes(draw)
    p, x, y = (cloud(draw, k, dim, dtype, seed, scale) for k, seed in ((draw(SIZE), 2), (n, 0), (m, 1)))
    kernel = _kernel(draw, scale, dim)
    result = fastmmd.witness(p, x, y, **kernel)
    kernel.setdefault("bandwidths", (1.0,))
    expected = oracle.witness(*exact(p, x, y), **kernel)
    atol, rtol = _bound(dtype, kernel, torch.cat([p, x]), y)
    compare(result, expected, atol, rtol)
    return f"witness {len(p)} {n} {m} {dim} {dtype} {kernel}"


def fixed(draw: Any) -> str:
    n, m, dim, dtype, scale = _sizes(draw)
    x, y = cloud(draw, n, dim, dtype, 0, scale), cloud(draw, m, dim, dtype, 1, scale)
    kernel = _kernel(draw, scale, dim)
    result = fastmmd.mmd2(x, fastmmd.FixedSample(y.detach(), **kernel))
    compare(result, oracle.mmd2(*exact(x, y), **kernel), *_bound(dtype, kernel, x, y))
    return f"FixedSample {n} {m} {dim} {dtype} {kernel}"


def _features(draw: Any, dim: int, scale: float) -> tuple[fastmmd.FourierFeatures, Tensor, Tensor]:
    count, bandwidths = draw(st.sampled_from([(2, (1.0,)), (6, (1.0, 2.0)), (66, (0.5, 1.0, 3.0))]))
    bandwidths = tuple(scale * dim**0.5 * s for s in bandwidths)
    made = fastmmd.FourierFeatures(dim, count, bandwidths=bandwidths, seed=draw(st.sampled_from([0, 7, 2**62])))
    size = torch.tensor([(len(bandwidths) / count) ** 0.5] * count, dtype=F64)
    return made, made.frequencies(dtype=F64), size


def fourier(draw: Any) -> str:
    n, _, dim, dtype, scale = _sizes(draw)
    x, (features, frequencies, size) = cloud(draw, n, dim, dtype, 0, scale), _features(draw, dim, scale)
    weights = _weights(draw, n, dtype)
    phi, eps = oracle.phi(exact(x)[0], frequencies, size), 1e-12 if dtype == F64 else 1e-4
    expected = (oracle.normalized(*exact(x, weights))[:, None] * phi).sum(0)
    compare(fastmmd.fourier_mean(x, features, weights=weights), expected, eps, eps / 1e3)
    coefficients = points(2 * features.count, dtype=dtype if dtype == F64 else F32)
    values = fastmmd.fourier_function(x, coefficients, features)
    compare(values, phi @ coefficients.double(), eps * 2 * features.count**0.5, eps / 1e3)
    return f"fourier {n} {dim} {dtype} {scale} {x.stride()}"


def adversary(draw: Any) -> str:
    n, m, dim, dtype, scale = _sizes(draw)
    codes, draws = cloud(draw, n, dim, dtype, 0, scale), cloud(draw, m, dim, dtype, 1, scale)
    features, frequencies, size = _features(draw, dim, scale)
    alpha = positive(features.count, dtype=dtype)
    zeta = [oracle.phi(z, frequencies, size).mean(0) for z in exact(draws, codes)]
    squared = (zeta[0] - zeta[1]).square().unflatten(0, (2, -1)).sum(0)
    eps = 1e-12 if dtype == F64 else 1e-4
    delta = fastmmd.fourier_discrepancy(codes, draws, alpha, features)
    compare(delta, alpha.double() @ squared, eps * float(size[0]), eps / 1e3)
    if float(squared.mean()) > 1e-3:
        expected = 0.5 * alpha.double() + 0.5 * squared / squared.mean()
        fastmmd.fourier_ascent(alpha, codes.detach(), draws.detach(), features, 0.5)
        eps = {F64: 1e-10, F32: 1e-2}.get(dtype, 3e-2)
        assert_close(alpha.double(), expected, atol=eps, rtol=eps, sensitivity=math.inf)
    return f"adversary {n} {m} {dim} {dtype} {scale}"


def parzen(draw: Any) -> str:
    n, m, dim, dtype, scale = _sizes(draw)
    x, y = cloud(draw, n, dim, dtype, 0, scale), cloud(draw, m, dim, dtype, 1, scale)
    sigmas = [scale * draw(st.sampled_from([0.3, 1.0, 5.0])) for _ in range(draw(st.integers(1, 3)))]
    expected = oracle.parzen_log_likelihood(*exact(x, y), sigmas)
    eps = 1e-11 if dtype == F64 else 1e-4
    compare(fastmmd.parzen_log_likelihood(x, y, sigmas), expected, eps, eps / 10)
    half = draw(st.integers(0, m))
    streamed = fastmmd.ParzenEstimator(x, sigmas)
    for part in (y[:half], y[half:]):
        if len(part):
            streamed.update(part)
    compare(streamed.log_likelihood(), expected, eps, eps / 10)
    return f"parzen {n} {m} {dim} {dtype} {sigmas} {x.stride()}"


def to_prior(draw: Any) -> str:
    """Beside `mmd2` against many draws it would be noise: beside the formula for a standard Gaussian."""
    n, _, dim, dtype, _ = _sizes(draw)
    x, s = cloud(draw, n, dim, dtype, 0, 1.0), dim**0.5 * draw(st.sampled_from([0.5, 1.0, 4.0]))
    result = fastmmd.mmd2_to_prior(x, fastmmd.priors.Gaussian(dim), (s,))
    (z,) = exact(x)
    cross = torch.exp(-z.square().sum(1) / (2 * (1 + s**2))) * (s**2 / (1 + s**2)) ** (dim / 2)
    own = (s**2 / (2 + s**2)) ** (dim / 2)
    eps = 1e-13 if dtype == F64 else 4e-6
    compare(result, oracle.gram(z, z, (s,)).mean() - 2 * cross.mean() + own, eps, eps)
    return f"mmd2_to_prior {n} {dim} {dtype} {s}"


def median(draw: Any) -> str:
    n, m, dim, dtype, scale = _sizes(draw)
    z = torch.cat([cloud(draw, n, dim, dtype, 0, scale), cloud(draw, m, dim, dtype, 1, scale)])
    r = oracle.squared_distances(*exact(z, z))[tuple(torch.triu_indices(len(z), len(z), 1))].sort().values
    middle = (r[(len(r) - 1) // 2] + r[len(r) // 2]) / 2
    if middle == 0:
        return "median of coinciding points"
    eps = 1e-12 if dtype == F64 else 4e-6
    compare(fastmmd.median_bandwidth(z), (middle / 2).sqrt(), 0.0, eps)
    return f"median {n} {m} {dim} {dtype} {scale}"
