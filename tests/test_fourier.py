"""Random Fourier features: Philox and normals, addressing, sums and functions against the dense formula."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from helpers import F32, F64, assert_close, points, positive, value_and_gradients
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastmmd
from fastmmd.backends.reference.fourier import philox

MAX32, MAX63 = 0xFFFFFFFF, 2**63 - 1


def made(features: fastmmd.FourierFeatures, dtype: torch.dtype = F32) -> Tensor:
    """W by the backend and on the device under test."""
    return features.frequencies(torch.get_default_device(), dtype)


def frequencies(features: fastmmd.FourierFeatures, dtype: torch.dtype = F64) -> Tensor:
    """W by the reference backend in float64, whose Philox is checked against the published vectors below."""
    with fastmmd.backend("reference"):
        return made(features, dtype)


def scale(features: fastmmd.FourierFeatures) -> Tensor:
    part = features.count // len(features.bandwidths)
    return torch.tensor(features.kernel_weights, dtype=F64).div(part).sqrt().repeat_interleave(part)


# --- the generator ---


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([MAX32] * 4, [MAX32] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter: list[int], key: list[int], expected: str) -> None:
    """Random123's kat_vectors, philox4x32 10."""
    words = philox([torch.tensor([[w]]) for w in counter], [torch.tensor(k) for k in key])
    assert " ".join(f"{int(w):08x}" for w in words) == expected


def python_normals(seed: int, feature: int, dim: int) -> list[float]:
    """G of one feature, in plain Python integers: an independent reading of docs/design.md."""
    out: list[float] = []
    for block in range((dim + 3) // 4):
        a, b, c, d = feature & MAX32, feature >> 32, block, 0
        k0, k1 = seed & MAX32, seed >> 32
        for _ in range(10):
            p, q = a * 0xD2511F53, c * 0xCD9E8D57
            a, b, c, d = (q >> 32) ^ b ^ k0, q & MAX32, (p >> 32) ^ d ^ k1, p & MAX32
            k0, k1 = (k0 + 0x9E3779B9) & MAX32, (k1 + 0xBB67AE85) & MAX32
        for first, second in ((a, b), (c, d)):
            radius = math.sqrt(-2 * math.log((2 * (first >> 9) + 1) * 2.0**-24))
            out += [radius * math.cos(2 * math.pi * second / 2**32), radius * math.sin(2 * math.pi * second / 2**32)]
    return out[:dim]


@pytest.mark.parametrize(
    ("seed", "start"), [(0, 0), (1, 2**32 - 2), (MAX63, 7), (2**32, 2**40), (123456789012345, MAX63 - 4)]
)
@pytest.mark.parametrize("dim", [1, 3, 4, 17])
def test_frequencies_follow_the_definition(backend: str, seed: int, start: int, dim: int) -> None:
    expected = torch.tensor([python_normals(seed, start + i, dim) for i in range(4)], dtype=F64)
    features = fastmmd.FourierFeatures(dim, 4, seed=seed, start=start)
    for dtype in (F32, F64):
        result = made(features, dtype)
        assert result.dtype == dtype and result.shape == (4, dim)
        assert_close(result, expected, rtol=0, atol=4e-6)


def test_normals_are_normal() -> None:
    g = frequencies(fastmmd.FourierFeatures(7, 20_000, seed=11))
    n = g.numel()
    # Five standard errors of each moment's estimate.
    assert abs(g.mean()) < 5 / math.sqrt(n)
    assert abs(g.var() - 1) < 5 * math.sqrt(2 / n)
    from scipy import stats  # takes seconds

    assert abs(stats.kurtosis(g.flatten().cpu().numpy())) < 5 * math.sqrt(24 / n)
    assert stats.kstest(g.flatten().cpu().numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(torch.cat([g[:-1].T, g[1:].T])) - torch.eye(14)
    assert correlation.abs().max() < 5 / math.sqrt(len(g))
    other = frequencies(fastmmd.FourierFeatures(7, 20_000, seed=12))
    assert abs((g * other).mean()) < 5 / math.sqrt(n)


def test_blocks_are_rows_of_a_longer_description(backend: str) -> None:
    long = fastmmd.FourierFeatures(5, 40, bandwidths=2.0, seed=9, start=3)
    whole = made(long)
    for t in range(4):
        short = fastmmd.FourierFeatures(5, 10, bandwidths=2.0, seed=9, start=3).block(t)
        assert short.start == 3 + 10 * t
        assert torch.equal(made(short), whole[10 * t : 10 * t + 10])
    assert not torch.equal(made(long.block(1)), whole)
    assert torch.equal(made(fastmmd.FourierFeatures(3, 40, bandwidths=2.0, seed=9, start=3)), whole[:, :3])


def test_seed_and_start_as_tensors(backend: str) -> None:
    number = fastmmd.FourierFeatures(3, 8, seed=5, start=2**33)
    tensor = fastmmd.FourierFeatures(3, 8, seed=torch.tensor(5), start=torch.tensor(2**33))
    x = points(10, 3)
    assert torch.equal(made(number), made(tensor))
    assert torch.equal(fastmmd.fourier_mean(x, number), fastmmd.fourier_mean(x, tensor))
    assert torch.equal(made(number.block(3)), made(tensor.block(torch.tensor(3))))


def test_several_bandwidths_share_the_count(backend: str) -> None:
    features = fastmmd.FourierFeatures(4, 30, bandwidths=(0.5, 2.0, 8.0), kernel_weights=(1.0, 0.0, 3.0), seed=2)
    g = made(fastmmd.FourierFeatures(4, 30, seed=2), F64)
    for part, s in enumerate(features.bandwidths):
        rows = slice(10 * part, 10 * part + 10)
        assert_close(made(features, F64)[rows], g[rows] / s, rtol=1e-7)
    mean = fastmmd.fourier_mean(points(9, 4), features).unflatten(0, (2, 3, 10))
    assert (mean[:, 1] == 0).all() and (mean[:, [0, 2]] != 0).all()


# --- sums and functions ---


def own(features: fastmmd.FourierFeatures, dtype: torch.dtype) -> Tensor:
    """W as the backend under test makes it, held to the definition above: here only what is built on it counts."""
    return made(features, dtype).to(F64)


def unit(x: Tensor, frequencies: Tensor, dtype: torch.dtype) -> float:
    """The bound 1e-6 (1 + |W x|) of a cosine or sine (docs/design.md); sums of them err independently, so a sum's
    error is taken as four times the root of the sum of squares."""
    return (1e-6 if dtype == F32 else 1e-13) * (1 + float((x.to(F64) @ frequencies.T).abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, F32, F64])
@pytest.mark.parametrize(("n", "dim", "count"), [(1, 1, 1), (37, 3, 24), (45, 17, 33), (130, 50, 257)])
def test_mean(backend: str, n: int, dim: int, count: int, dtype: torch.dtype) -> None:
    bandwidths = (1.0, 2.0, 4.0) if count % 3 == 0 else (2.0,)
    features = fastmmd.FourierFeatures(dim, count, bandwidths=bandwidths, seed=4, start=100)
    compute = F64 if dtype == F64 else F32
    x, w, phi = points(n, dim, dtype=dtype), positive(n, dtype=compute), scale(features)
    frequencies = own(features, compute)

    def dense(x: Tensor, w: Tensor) -> Tensor:
        return oracle.normalized(x, w) @ oracle.phi(x, frequencies, phi)

    value, gradients = value_and_gradients(lambda x, w: fastmmd.fourier_mean(x, features, weights=w), [x, w])
    expected, wanted = value_and_gradients(dense, [x, w], F64)
    error = unit(x, frequencies, compute)
    assert_close(value, expected, rtol=0, atol=error * float(phi.max()))
    # With a cotangent c of order one: sum_k c_k scale_k W_k (cosine or sine) / n.
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 0.0
    atol = 4 * error * float((phi[:, None] * frequencies).norm()) / n
    assert_close(gradients[0].to(F64), wanted[0], rtol=rounding + 2e-6, rows=True, atol=atol, sensitivity=0.02)
    if n > 1:
        assert_close(gradients[1], wanted[1], atol=4 * error * float(phi.norm() / w.sum()), sensitivity=0.02)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(("n", "dim", "count"), [(1, 1, 1), (37, 3, 24), (45, 17, 33), (130, 50, 257)])
def test_function(backend: str, n: int, dim: int, count: int, dtype: torch.dtype) -> None:
    features = fastmmd.FourierFeatures(dim, count, bandwidths=1.5, seed=4, start=100)
    x, c = points(n, dim, dtype=dtype), points(2 * count, seed=1, dtype=dtype)

    frequencies = own(features, dtype)

    def dense(x: Tensor, c: Tensor) -> Tensor:
        return oracle.phi(x, frequencies, scale(features)) @ c

    value, gradients = value_and_gradients(lambda x, c: fastmmd.fourier_function(x, c, features), [x, c])
    expected, wanted = value_and_gradients(dense, [x, c], F64)
    error, phi = unit(x, frequencies, dtype), scale(features).repeat(2)
    assert_close(value, expected, atol=4 * error * float((phi * c).norm()), sensitivity=0.02)
    atol = 4 * error * float((phi * c)[:, None].mul(frequencies.repeat(2, 1)).norm())
    assert_close(gradients[0], wanted[0], rows=True, atol=atol, sensitivity=0.02)
    assert_close(gradients[1], wanted[1], atol=4 * error * float(phi.max()) * math.sqrt(n), sensitivity=0.02)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(
    ("batch", "n", "dim", "count"),
    [(140, 3, dim, 40) for dim in (1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 17)] + [(70, 7, 6, 200), (1, 700, 3, 480)],
)
def test_every_dimension_of_few(backend: str, batch: int, n: int, dim: int, count: int, dtype: torch.dtype) -> None:
    """The CUDA kernels are chosen by the dimension, and by how much there is to share out."""
    batch = batch if backend == "native" else 1
    features = fastmmd.FourierFeatures(dim, count, bandwidths=(1.0, 3.0), seed=1)
    x, w = points(batch, n, dim, dtype=dtype), positive(batch, n, dtype=dtype)
    frequencies, phi = own(features, dtype), scale(features)
    error = unit(x.flatten(0, 1), frequencies, dtype)

    def dense(x: Tensor, w: Tensor) -> Tensor:
        return torch.einsum("bn,bnk->bk", oracle.normalized(x, w), oracle.phi(x, frequencies, phi))

    result, gradients = value_and_gradients(lambda x, w: fastmmd.fourier_mean(x, features, weights=w), [x, w])
    expected, wanted = value_and_gradients(dense, [x, w], F64)
    assert_close(result, expected, rtol=0, atol=error * float(phi.max()))
    # With a cotangent c of order one: w_i sum_k c_k scale_k W_k (cosine or sine).
    largest = float((w / w.sum(1, keepdim=True)).max())
    assert_close(
        gradients[0].flatten(0, 1), wanted[0].flatten(0, 1), rows=True, sensitivity=0.02,
        atol=4 * error * largest * float((phi[:, None] * frequencies).norm()),
    )  # fmt: skip
    assert_close(gradients[1], wanted[1], atol=4 * error * float(phi.norm() / w.sum(1).min()), sensitivity=0.02)


@pytest.mark.parametrize("batch", [(3,), (2, 2), (1,)])
def test_leading_dimensions_and_views(backend: str, batch: tuple[int, ...]) -> None:
    features = fastmmd.FourierFeatures(4, 10, seed=1)
    x, w = points(*batch, 4, 22).mT[..., ::2, :], positive(*batch, 11)
    result = fastmmd.fourier_mean(x, features, weights=w)
    assert result.shape == (*batch, 20)
    for one, points_, weights in zip(result.flatten(0, -2), x.flatten(0, -3), w.flatten(0, -2), strict=True):
        assert_close(one, fastmmd.fourier_mean(points_.contiguous(), features, weights=weights), atol=1e-6)
    shared = fastmmd.fourier_mean(x, features, weights=w.flatten(0, -2)[0])
    assert_close(shared.flatten(0, -2)[0], result.flatten(0, -2)[0])


def test_weights_with_zeros_leave_points_out(backend: str) -> None:
    x, w = points(20, 3), torch.ones(20)
    w[13:] = 0
    features = fastmmd.FourierFeatures(3, 16)
    assert_close(fastmmd.fourier_mean(x, features, weights=w), fastmmd.fourier_mean(x[:13], features), atol=2e-7)


def test_large_arguments(backend: str) -> None:
    """|W x| of 1e4: the angle's own rounding, 1e-6 (1 + |W x|), and no more."""
    features = fastmmd.FourierFeatures(3, 64, bandwidths=0.01, seed=8)
    x = points(5, 3, scale=30.0)
    angle = x.to(F64) @ frequencies(features).T
    assert 5e3 < angle.abs().max() < 5e4
    # Against the backend's own float32 frequencies: what 4e-6 in G would do at this range is not the question here.
    made = x.to(F64) @ own(features, F32).T
    bound = 1e-6 * (1 + (x.abs().to(F64) @ frequencies(features).abs().T)) + (made - angle).abs()
    for i in range(5):
        result = fastmmd.fourier_mean(x[i : i + 1], features).unflatten(0, (2, -1)) * 8
        expected = torch.stack([angle[i].cos(), angle[i].sin()])
        assert_close(result, expected, rtol=0, atol=bound[i], sensitivity=0.2)


@pytest.mark.parametrize("reach", [1.0, 1e4, 1e7, 1e9, 1e30])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_any_finite_argument_gives_a_cosine_and_its_sine(backend: str, reach: float, dtype: torch.dtype) -> None:
    """In one dimension W x is one product, so that sum and function see the same angle, however large."""
    count, atol = 40, 1e-6 if dtype == F32 else 1e-14
    features = fastmmd.FourierFeatures(1, count, seed=3)
    x = points(6, 1, scale=reach, dtype=dtype)
    unit = torch.stack([fastmmd.fourier_mean(one[None], features) for one in x]) * math.sqrt(count)
    cosine, sine = unit.unflatten(1, (2, count)).unbind(1)
    assert_close(cosine.square() + sine.square(), torch.ones(6, count), rtol=0, atol=2 * atol)
    if reach <= 1e4:  # floats beyond 2^24 are whole turns where angles are counted in half turns
        assert cosine.std() > 0.3 and sine.std() > 0.3
    for k in (0, 17, 39):
        only = torch.zeros(2 * count, dtype=dtype)
        only[k] = math.sqrt(count)
        assert_close(fastmmd.fourier_function(x, only, features), cosine[:, k], rtol=0, atol=2 * atol, sensitivity=0.01)


def test_independent_of_the_count_beside_it(backend: str) -> None:
    """Features do not depend on how many are made at once: no tile edge shows."""
    x = points(50, 6)
    many = fastmmd.fourier_mean(x, fastmmd.FourierFeatures(6, 600, seed=1)).unflatten(0, (2, -1)) * math.sqrt(600)
    for start, count in ((0, 1), (17, 66), (255, 2), (590, 10)):
        few = fastmmd.fourier_mean(x, fastmmd.FourierFeatures(6, count, seed=1, start=start))
        assert_close(few.unflatten(0, (2, -1)) * math.sqrt(count), many[:, start : start + count], rtol=0, atol=1e-6)


@pytest.mark.parametrize("bandwidths", [(1.0,), (1.0, 3.0)])
def test_converges_to_the_mmd(bandwidths: tuple[float, ...]) -> None:
    """|mean phi(x) - mean phi(y)|^2 has mean mmd2 and a standard deviation that falls as 1 / sqrt(count)."""
    x, y = points(60, 3, seed=1), points(50, 3, seed=2, shift=0.7)
    exact = fastmmd.mmd2(x, y, bandwidths).item()
    errors = {}
    for count in (64, 1024):
        features = fastmmd.FourierFeatures(3, count, bandwidths=bandwidths, seed=6)
        estimates = [
            (fastmmd.fourier_mean(x, block) - fastmmd.fourier_mean(y, block)).square().sum().item()
            for block in (features.block(t) for t in range(40))
        ]
        values = torch.tensor(estimates, dtype=F64)
        assert abs(values.mean() - exact) < 5 * values.std() / math.sqrt(40)
        errors[count] = values.std().item()
    # The ratio of two standard deviations from 40 draws each: 1/4 within a factor of 1.7 (four standard errors).
    assert 0.25 / 1.7 < errors[1024] / errors[64] < 0.25 * 1.7


def test_frequencies_agree_between_backends(backend: str) -> None:
    features = fastmmd.FourierFeatures(9, 5000, seed=77)
    assert_close(made(features), frequencies(features), rtol=0, atol=4e-6)
    assert_close(made(features, F64), frequencies(features), rtol=0, atol=4e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_inf_propagate(backend: str, bad: float) -> None:
    features = fastmmd.FourierFeatures(3, 10)
    x = points(12, 3)
    x[4, 1] = bad
    assert fastmmd.fourier_mean(x, features).isnan().all()
    f = fastmmd.fourier_function(x, torch.ones(20), features)
    assert f[4].isnan() and f.isnan().sum() == 1


def test_a_description_first_used_in_inference_or_fake_mode_still_trains(backend: str) -> None:
    features = fastmmd.FourierFeatures(3, 8)
    x = points(5, 3)
    with FakeTensorMode() as mode:
        assert fastmmd.fourier_mean(mode.from_tensor(x), features).shape == (16,)
    with torch.inference_mode():
        expected = fastmmd.fourier_mean(x, features)
    leaf = x.clone().requires_grad_()
    result = fastmmd.fourier_mean(leaf, features)
    result.sum().backward()
    assert torch.equal(result, expected) and leaf.grad is not None


def test_a_description_does_not_change() -> None:
    features = fastmmd.FourierFeatures(3, 8, bandwidths=(1.0, 2.0), kernel_weights=(0.5, 2.0), seed=3, start=4)
    shown = "FourierFeatures(dim=3, count=8, bandwidths=(1.0, 2.0), kernel_weights=(0.5, 2.0), seed=3, start=4)"
    assert repr(features) == shown
    for name in ("dim", "count", "bandwidths", "kernel_weights", "seed", "start"):
        with pytest.raises(AttributeError):
            setattr(features, name, getattr(features, name))
    same = fastmmd.FourierFeatures(3, 8, bandwidths=(1.0, 2.0), kernel_weights=(0.5, 2.0), seed=3, start=4)
    assert features != same and len({features, same}) == 2
    with pytest.raises(TypeError, match="unexpected keyword argument 'weights'"):
        fastmmd.FourierFeatures(3, 8, weights=1.0)  # type: ignore[call-arg]


@pytest.mark.parametrize("dim", [2, 20])
def test_features_far_from_the_origin(backend: str, dim: int) -> None:
    """As exact as the docstring says: off by the rounding of W x, which centering takes away."""
    features = fastmmd.FourierFeatures(dim, 32, bandwidths=(0.5,), seed=3)
    x, y = points(60, dim, shift=5e3), points(50, dim, seed=1, shift=5e3)
    offset = x.norm(dim=1).max().item() / 0.5
    difference = [fastmmd.fourier_mean(p, features) for p in (x, y)]
    for mean, p in zip(difference, (x, y), strict=True):
        exact = oracle.phi(p.to(F64), frequencies(features), scale(features)).mean(0)
        assert_close(mean, exact, rtol=0, atol=4e-7 * offset * float(scale(features)[0]), sensitivity=1)
    center = x.mean(0)
    alpha = points(32).abs()
    exact = fastmmd.fourier_discrepancy(x.to(F64), y.to(F64), alpha.to(F64), features)
    centered = fastmmd.fourier_discrepancy(x - center, y - center, alpha, features)
    assert_close(centered, exact, rtol=1e-4, sensitivity=1e-2)
