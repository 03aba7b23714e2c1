"""Parzen log-likelihood: closed forms, the dense formula, streaming, merging, extreme points."""

from __future__ import annotations

import math
import os
from itertools import pairwise

import numpy as np
import oracle
import pytest
import torch
from helpers import F32, F64, assert_close, points, uniform, value_and_gradients
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastmmd

SIGMAS = (0.1, 0.2, 0.5, 1.0)
SIZES = {"cuda.parzen": ("TILE",)}  # of tiles
NATS = 0.005  # docs/design.md: at most so much per point at D = 784, sigma 0.1 to 1, in float32


def images(n: int, dim: int = 784, seed: int = 0, modes: int = 10) -> Tensor:
    """Points in [0, 1] around a few templates, as images of digits are: near and far pairs."""
    generator = torch.Generator().manual_seed(seed)
    templates = uniform(modes, dim, seed=123) < 0.2
    noise = 0.1 * torch.randn(n, dim, generator=generator, device="cpu")
    chosen = torch.randint(modes, (n,), generator=generator, device="cpu").to(templates.device)
    return (templates[chosen] + noise.to(templates.device)).clamp(0, 1)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("dim", [1, 5, 64])
def test_one_sample_is_a_gaussian(backend: str, dim: int, dtype: torch.dtype) -> None:
    x, s = points(9, dim, dtype=dtype), points(1, dim, seed=1, dtype=dtype)
    result = fastmmd.parzen_log_likelihood(x, s, SIGMAS)
    assert result.shape == (4, 9)
    for row, sigma in zip(result, SIGMAS, strict=True):
        normal = torch.distributions.Normal(s.to(F64), sigma)
        expected = normal.log_prob(x.to(F64)).sum(1)
        # One distance in float32: relative 2^-24 per operation, so relative to the largest term.
        assert_close(row, expected, rtol=2e-6 if dtype == F32 else 1e-12)
        assert_close(row, fastmmd.parzen_log_likelihood(x, s, sigma), rtol=1e-6)


def test_every_sample_the_same_point(backend: str) -> None:
    x = points(1, 6).expand(5, 6)
    result = fastmmd.parzen_log_likelihood(x, x, 0.3)
    assert_close(result, torch.full((5,), -3 * math.log(2 * math.pi * 0.09), dtype=F64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, F32, F64])
@pytest.mark.parametrize(("m", "n", "dim"), [(1, 3, 1), (13, 37, 3), (33, 65, 17), (70, 129, 50), (257, 300, 2)])
def test_against_the_dense_formula(backend: str, m: int, n: int, dim: int, dtype: torch.dtype) -> None:
    x, y = points(m, dim, dtype=dtype), points(n, dim, seed=1, dtype=dtype, scale=1.2)
    sigmas = (0.3, 1.0, 4.0)
    value, gradients = value_and_gradients(lambda x, y: fastmmd.parzen_log_likelihood(x, y, sigmas), [x, y])
    expected, wanted = value_and_gradients(lambda x, y: oracle.parzen_log_likelihood(x, y, sigmas), [x, y], F64)
    compute = F64 if dtype == F64 else F32
    assert value.dtype == compute
    # An error e of a squared distance moves the result by e / (2 sigma^2); e is a few 2^-24 of the squared norms.
    r = float(oracle.squared_distances(x.to(F64), y.to(F64)).max())
    unit = 4 * 2.0**-24 if compute == F32 else 1e-13
    exponent = unit * r / (2 * 0.3**2)
    assert_close(value, expected, atol=exponent)
    # and the shares p_ij of the gradient by that factor.
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 0.0
    for gradient, want, tensor in zip(gradients, wanted, (x, y), strict=True):
        assert gradient is not None and want is not None and gradient.dtype == tensor.dtype
        rtol = rounding + 2 * exponent + (2e-6 if compute == F32 else 1e-12)
        assert_close(gradient.to(F64), want, rtol=rtol, rows=True, sensitivity=4 * rtol + 1e-3)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("dim", [3, 50])
def test_halving_sigmas(backend: str, dim: int, dtype: torch.dtype) -> None:
    """Where one sigma is half of another, exponentials may be fourth powers of others: twice in a row at most, so that
    errors of 2^-23 (2^-52) grow no more than to 4^2 of them; two chains, one longer, out of order."""
    sigmas = (3.0, *(0.05 * 2.0**i for i in range(11)), 1.5, 0.75, 0.7)
    x, y = points(70, dim, dtype=dtype), points(330, dim, seed=1, dtype=dtype)
    y[:70] = x + 0.02 * points(70, dim, seed=2, dtype=dtype)  # near neighbors, which the small sigmas see
    value, gradients = value_and_gradients(lambda x, y: fastmmd.parzen_log_likelihood(x, y, sigmas), [x, y])
    expected, wanted = value_and_gradients(lambda x, y: oracle.parzen_log_likelihood(x, y, sigmas), [x, y], F64)
    eps = torch.finfo(dtype).eps
    # Besides: four roundings of squared distances and norms of at most 150, over 2 sigma^2 of the smallest sigma.
    atol = 4**2 * eps + min(NATS, 4 * eps / 2 * (60 if dim == 3 else 300) / (2 * 0.05**2))
    assert_close(value, expected, atol=atol)
    for gradient, want in zip(gradients, wanted, strict=True):
        assert gradient is not None and want is not None
        assert_close(gradient, want, rtol=2 * atol, rows=True, sensitivity=8 * atol + 1e-3)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_sigmas_far_apart_in_one_call(backend: str, dtype: torch.dtype) -> None:
    """What a small sigma leaves out of a tile, a large one counts: each as in a call of its own."""
    x, y = points(40, 5, dtype=dtype), points(900, 5, seed=1, dtype=dtype)
    y[300:600] += 40
    sigmas = (0.01, 100.0, 0.3, 1e6)
    result = fastmmd.parzen_log_likelihood(x, y, sigmas)
    assert_close(result[1:], oracle.parzen_log_likelihood(x.to(F64), y.to(F64), sigmas)[1:])
    for row, sigma in zip(result, sigmas, strict=True):
        assert_close(row, fastmmd.parzen_log_likelihood(x, y, sigma))


def test_images_within_the_promised_nats(backend: str) -> None:
    x, y = images(150, seed=1), images(400, seed=2)
    expected = oracle.parzen_log_likelihood(x.to(F64), y.to(F64), SIGMAS)
    result = fastmmd.parzen_log_likelihood(x, y, SIGMAS)
    assert_close(result, expected, rtol=0, atol=NATS)
    # Uncentered data of the same distances: the offset must not cost digits.
    assert_close(fastmmd.parzen_log_likelihood(x + 7, y + 7, SIGMAS),
                 oracle.parzen_log_likelihood((x + 7).to(F64), (y + 7).to(F64), SIGMAS), rtol=0, atol=NATS)  # fmt: skip


def test_views(backend: str) -> None:
    x, y = points(4, 30).T, points(50, 8, seed=1)[::2, ::2]
    expected = oracle.parzen_log_likelihood(x.to(F64), y.to(F64), (0.7,))[0]
    assert_close(fastmmd.parzen_log_likelihood(x, y, 0.7), expected)


@pytest.mark.parametrize("distance", [40.0, 1e4])
def test_far_points_get_their_true_value(backend: str, distance: float) -> None:
    """Not log(density + eps), which would say -27 or -inf."""
    x, y = points(5, 4), points(20, 4, seed=1)
    x[2] += distance
    expected = oracle.parzen_log_likelihood(x.to(F64), y.to(F64), (0.1,))
    assert expected[0, 2] < -5e4
    result, (gradient, _) = value_and_gradients(lambda x, y: fastmmd.parzen_log_likelihood(x, y, (0.1,)), [x, y])
    assert_close(result, expected)
    assert gradient is not None and gradient.isfinite().all()


def test_sigmas_in_a_tensor_under_compile() -> None:
    """Their values are read between two graphs."""
    x, y, sigmas = points(5, 3), points(7, 3, seed=1), torch.tensor([0.5, 1.0])
    torch._dynamo.reset()
    compiled = torch.compile(lambda *t: fastmmd.parzen_log_likelihood(*t) * 2, backend="eager")
    assert torch.equal(compiled(x, y, sigmas), fastmmd.parzen_log_likelihood(x, y, sigmas) * 2)


def test_agrees_with_scikit_learn(backend: str) -> None:
    from sklearn.neighbors import KernelDensity  # takes seconds

    x, y = points(40, 3), points(150, 3, seed=1)
    for sigma in SIGMAS:
        # A leaf_size above the number of samples makes the tree search exact.
        density = KernelDensity(bandwidth=sigma, leaf_size=1000, rtol=0, atol=0).fit(y.double().cpu().numpy())
        expected = torch.from_numpy(density.score_samples(x.double().cpu().numpy()))
        assert_close(fastmmd.parzen_log_likelihood(x, y, sigma), expected, rtol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("dim", [3, 40])
def test_nan_and_inf_propagate(backend: str, dim: int, bad: float, streamed: bool) -> None:
    """NaN or inf anywhere makes every result that it concerns NaN."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        if not streamed:
            return fastmmd.parzen_log_likelihood(x, y, 1.0)
        return fastmmd.ParzenEstimator(x, 1.0).update(y[:3]).update(y[3:]).log_likelihood()

    x, y = points(7, dim), points(6, dim, seed=1)
    broken = y.clone()
    broken[4, 1] = bad
    assert run(x, broken).isnan().all()
    broken = x.clone()
    broken[2, 0] = bad
    assert run(broken, y)[2].isnan()


# --- streaming ---


@given(st.lists(st.integers(1, 199), max_size=5), st.sampled_from(["reference", "auto"]), st.booleans())
def test_partition_does_not_matter(cuts: list[int], name: str, merged: bool) -> None:
    x, y = images(20, dim=100, seed=1), images(200, dim=100, seed=2)
    edges = sorted({0, 200, *cuts})
    with fastmmd.backend(name):
        whole = fastmmd.parzen_log_likelihood(x, y, SIGMAS)
        estimator = fastmmd.ParzenEstimator(x, SIGMAS)
        for first, last in pairwise(edges):
            part = fastmmd.ParzenEstimator(x, SIGMAS) if merged else estimator
            assert part.update(y[first:last]) is part
            if merged:
                assert estimator.merge(part) is estimator
    assert estimator.count == 200
    assert_close(estimator.log_likelihood(), whole, rtol=0, atol=NATS)
    assert (estimator.log_likelihood() - whole).mean(1).abs().max() < 1e-4


def test_streaming_is_exact_in_float64(backend: str) -> None:
    x, y = points(9, 4, dtype=F64), points(70, 4, seed=1, dtype=F64)
    y[50:] += 30  # a tile that is far from everything must not disturb
    for order in (y, y.flip(0)):
        estimator = fastmmd.ParzenEstimator(x, (0.2, 1.0))
        for part in order.split(13):
            estimator.update(part)
        assert_close(estimator.log_likelihood(), oracle.parzen_log_likelihood(x, y, (0.2, 1.0)))
    scalar = fastmmd.ParzenEstimator(x, 0.2).update(y)
    assert scalar.log_likelihood().shape == (9,)


def test_merge_with_an_empty_or_different_estimator() -> None:
    x, y = points(5, 2), points(8, 2, seed=1)
    full, empty = fastmmd.ParzenEstimator(x, 0.5).update(y), fastmmd.ParzenEstimator(x, 0.5)
    expected = full.log_likelihood()
    assert torch.equal(full.merge(empty).log_likelihood(), expected)
    assert torch.equal(empty.merge(full).log_likelihood(), expected)
    with pytest.raises(ValueError, match="log_likelihood: no samples"):
        fastmmd.ParzenEstimator(x, 0.5).log_likelihood()
    for different in ((x + 1, 0.5), (x, 0.6), (x[:4], 0.5)):
        with pytest.raises(ValueError, match="other: its points or sigmas differ"):
            full.merge(fastmmd.ParzenEstimator(*different))


def test_state_of_an_estimator(backend: str) -> None:
    x, y = images(6, dim=30, seed=1), images(90, dim=30, seed=2)
    first = fastmmd.ParzenEstimator(x, SIGMAS).update(y[:40])
    second = fastmmd.ParzenEstimator(x, SIGMAS)
    state = first.state_dict()
    second.load_state_dict(state)
    first.update(y[40:])
    assert second.count == 40  # the state is a copy
    second.update(y[40:])
    assert torch.equal(first.log_likelihood(), second.log_likelihood())
    missing = {name: value for name, value in state.items() if name != "sums"}
    short = {**state, "minimum": state["minimum"][:5]}
    other = ((x[:5], SIGMAS), (x.flip(0), SIGMAS), (x + 1, SIGMAS), (x, (0.1, 0.2, 0.5, 1.1)), (x, 0.1))
    for arguments, wrong in (*(((x, SIGMAS), part) for part in (missing, short, {})), *((a, state) for a in other)):
        with pytest.raises(ValueError, match="state: its points or sigmas differ, or it is incomplete"):
            fastmmd.ParzenEstimator(*arguments).load_state_dict(wrong)


def test_estimator_keeps_nothing_of_its_arguments() -> None:
    x, y = points(5, 2).requires_grad_(), points(8, 2, seed=1)
    estimator = fastmmd.ParzenEstimator(x, 0.5).update(y)
    before = estimator.log_likelihood()
    with torch.no_grad():
        x.zero_()
    y.zero_()
    assert torch.equal(estimator.log_likelihood(), before) and not before.requires_grad


def test_the_density_integrates_to_one(backend: str) -> None:
    grid = torch.linspace(-12, 12, 4001, dtype=F64)[:, None]
    log_density = fastmmd.parzen_log_likelihood(grid, points(30, 1, dtype=F64), (0.3, 1.0))
    assert_close(torch.trapezoid(log_density.exp(), grid.squeeze(1)), torch.ones(2, dtype=F64), rtol=1e-9)


@pytest.mark.parametrize("bad", [1e4, math.nan, math.inf])
@pytest.mark.parametrize("dim", [3, 100])
def test_one_bad_point_leaves_the_others_alone(backend: str, dim: int, bad: float) -> None:
    x, y = points(40, dim), points(50, dim, seed=1)
    expected = fastmmd.parzen_log_likelihood(x.double(), y.double(), 0.3)
    x[7] = bad
    others = torch.arange(40) != 7
    for result in (
        fastmmd.parzen_log_likelihood(x, y, 0.3),
        fastmmd.ParzenEstimator(x, 0.3).update(y).log_likelihood(),
    ):
        assert (result.double() - expected)[others].abs().max() <= 0.005
        assert result[7].isnan() or result[7] < -1e7


def test_clusters_far_apart_keep_their_nats(backend: str) -> None:
    """|x|^2 + |s|^2 - 2 x . s cancels where the nearest sample is near and both are far from the center."""
    x, y = (uniform(40, 100, seed=seed, dtype=F64) for seed in (0, 1))
    x[20:] += 30
    y[20:] += 30
    exact = fastmmd.parzen_log_likelihood(x.float().double(), y.float().double(), (0.1, 0.3))
    result = fastmmd.parzen_log_likelihood(x.float(), y.float(), (0.1, 0.3))
    assert (result.double() - exact).abs().max() <= 0.005
    streamed = fastmmd.ParzenEstimator(x.float(), (0.1, 0.3)).update(y[:10].float()).update(y[10:].float())
    assert (streamed.log_likelihood().double() - exact).abs().max() <= 0.005


@pytest.mark.parametrize("dim", [3, 20])
@pytest.mark.parametrize("tile", [None, 64])
def test_many_samples(backend: str, dim: int, tile: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles and parts of them, with an odd rest; minima that fall in every one of them, and far tiles."""
    if tile:  # where a backend has large tiles
        for module, names in SIZES.items():
            for name in names:
                monkeypatch.setattr(f"fastmmd.backends.{module}.{name}", tile)
    for dtype, m, n in ((F32, 21, 1301), (F64, 5, 1203)):
        x, y = points(m, dim, dtype=dtype), points(n, dim, seed=1, dtype=dtype, scale=0.5)
        y *= torch.linspace(3, 1, n, dtype=dtype)[:, None]  # the nearest come last
        y[300:900] += 20
        sigmas = (0.3, 1.0, 2.0)
        value, gradients = value_and_gradients(lambda x, y: fastmmd.parzen_log_likelihood(x, y, sigmas), [x, y])  # noqa: B023
        expected, wanted = value_and_gradients(lambda x, y: oracle.parzen_log_likelihood(x, y, sigmas), [x, y], F64)  # noqa: B023
        # Rounding of norms of up to 20 sqrt(dim), some of it centered away, or of the distances alone.
        exponent = 2.0**-24 * (8 * 9 * dim + 400 * dim * (dim > 16)) / (2 * 0.3**2) if dtype == F32 else 1e-11
        assert_close(value, expected, atol=min(exponent, NATS))
        for gradient, want in zip(gradients, wanted, strict=True):
            assert gradient is not None and want is not None
            assert_close(gradient, want, rtol=2 * exponent, rows=True, sensitivity=8 * exponent + 1e-3)


@pytest.mark.parametrize("spread", [0.02, 1.0])
def test_near_pairs_far_from_the_center(backend: str, spread: float) -> None:
    """Products of them cancel; those of others beside them, in the same rows and columns, do not. Gradients too."""
    x, y = points(60, 100, scale=spread), points(90, 100, seed=1, scale=spread)
    x[40:] += 30
    y[50:] -= 30
    y[70:80] = x[40:50] + 0.02 * points(10, 100, seed=2)
    y[::7] = x[: len(y[::7])] + 0.02 * points(len(y[::7]), 100, seed=3)
    sigmas = (0.1, 0.5)
    value, gradients = value_and_gradients(lambda x, y: fastmmd.parzen_log_likelihood(x, y, sigmas), [x, y])
    expected, wanted = value_and_gradients(lambda x, y: oracle.parzen_log_likelihood(x, y, sigmas), [x, y], F64)
    near = expected[0] > -1e4  # of others float32 cannot hold 0.005 nats
    assert 40 <= near.sum() <= 60
    assert_close(value, expected)
    assert (value.double() - expected)[:, near].abs().max() <= NATS
    for gradient, want in zip(gradients, wanted, strict=True):
        assert gradient is not None and want is not None
        assert_close(gradient, want, rtol=2 * NATS, rows=True, sensitivity=0.1)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="makes its halves in Triton's interpreter")
def test_truncating_tensor_cores_keep_the_nats() -> None:
    """The Triton backend's products where tensor cores truncate each addend and sum to the 24 bits of the largest
    addend (no more than that is known of them), at the largest norms that it leaves to them."""
    from fastmmd.backends.triton.parzen import CANCELING
    from fastmmd.backends.triton.parzen.halves import halves_of

    def step(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
        addends = torch.cat([total[..., None], left[:, None] * right[None]], -1)
        unit = torch.exp2(addends.abs().amax(-1, keepdim=True).clamp(min=1e-30).log2().floor() - 23)
        total = ((addends / unit).trunc() * unit).sum(-1)
        unit = torch.exp2(total.abs().clamp(min=1e-30).log2().floor() - 23)
        return (total / unit).trunc() * unit

    sigma, limit = 0.1, 2 * CANCELING * 0.1**2
    for spread in (0.0, 0.5):  # every coordinate alike, or half of them 0: the sums grow steadily
        x, noise = (uniform(32, 784, seed=seed) for seed in range(2))
        x = (x >= spread) * (limit / 784 / (1 - spread)) ** 0.5 * 0.95
        y = x + 0.01 * noise
        (p, p_norms), (q, q_norms) = (halves_of(points, limit, 32, 32) for points in (x, y))
        assert p_norms.max() <= limit and q_norms.max() <= limit and p_norms.max() > 0.85 * limit
        products = torch.zeros(32, 32)
        for first in range(0, 784, 32):
            part = torch.zeros(32, 32, dtype=F64)
            for left, right in ((1, 0), (0, 1), (0, 0)):  # low . high, high . low, high . high
                for d in range(first, first + 32, 16):
                    part = step(part, p[:, left, d : d + 16].to(F64), q[:, right, d : d + 16].to(F64))
            products += part.float()
        scales = [halves.sum(1)[0].max() / points[0].max() for halves, points in ((p.float(), x), (q.float(), y))]
        scale = torch.exp2(torch.stack(scales).log2().round().sum())
        r = (p_norms[:, None] + q_norms[None]) - 2 * products / scale
        exact = oracle.squared_distances(x.to(F64), y.to(F64))
        errors = [torch.logsumexp(-distances.to(F64) / (2 * sigma**2), 1) for distances in (r, exact)]
        assert_close(errors[0], errors[1], rtol=0, atol=NATS, sensitivity=1)


def test_sigmas_in_a_tensor(backend: str) -> None:
    """Their values as numbers; a 0-d tensor is one number."""
    x, y = points(5, 3), points(9, 3, seed=1)
    for dtype in (torch.float16, F32, F64):
        sigmas = torch.tensor([0.5, 2.0, 0.25], dtype=dtype)
        result = fastmmd.parzen_log_likelihood(x, y, sigmas)
        assert torch.equal(result, fastmmd.parzen_log_likelihood(x, y, (0.5, 2.0, 0.25)))
        assert torch.equal(fastmmd.parzen_log_likelihood(x, y, sigmas[1]), result[1])
        assert torch.equal(fastmmd.ParzenEstimator(x, sigmas).update(y).log_likelihood(), result)
    for bad, error in (
        (torch.ones(2, 2), r"sigma: got a torch.float32 tensor of shape \[2, 2\], expected a floating one"),
        (torch.ones(2, dtype=torch.int64), "sigma: got a torch.int64 tensor"),
        (torch.ones(2, requires_grad=True), r"sigma: got a tensor that requires a gradient.*detach"),
        (torch.tensor([1.0, -1.0]), r"sigma: got \[1.0, -1.0\], expected positive finite numbers"),
        (torch.tensor(math.nan), "sigma: got .*nan.*, expected positive finite numbers"),
        (torch.ones(0), "sigma: got an empty sequence"),
    ):
        with pytest.raises(ValueError, match=error):
            fastmmd.parzen_log_likelihood(x, y, bad)


def test_sigma_may_be_a_numpy_number() -> None:
    x = points(5, 3)
    assert fastmmd.parzen_log_likelihood(x, x, np.float32(0.2)).shape == (5,)
    assert fastmmd.ParzenEstimator(x, np.int64(1)).update(x).log_likelihood().shape == (5,)
