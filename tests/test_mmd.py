"""mmd2, witness and median_bandwidth against the dense float64 formula: values, every gradient, accuracy."""

from __future__ import annotations

import math
from functools import partial

import oracle
import pytest
import torch
from helpers import EMULATED, F32, F64, assert_close, leaf, points, positive, value_and_gradients
from torch import Tensor

import fastmmd
from fastmmd.ops.arguments import KERNELS

NAMES = ("x", "y", "x_weights", "y_weights", "bandwidths", "kernel_weights")
DIMS = (1, 3, 16, 17, 50)


def scales(dim: int) -> list[float]:
    """Three bandwidths around the data's scale, two of them a factor 2 apart."""
    return [c * math.sqrt(dim) for c in (0.7, 1.4, 3.0)]


def sample(n: int, m: int, dim: int, dtype: torch.dtype = F32, batch: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    y = points(*batch, m, dim, seed=2, dtype=dtype, scale=1.3, shift=0.3)
    return points(*batch, n, dim, seed=1, dtype=dtype), y


def check(
    x: Tensor,
    y: Tensor,
    bandwidths: list[float] | Tensor,
    kernel: str = "gaussian",
    estimator: str = "biased",
    kernel_weights: list[float] | Tensor | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    alpha: float = 1.0,
) -> None:
    """Value and every gradient within the bounds of docs/design.md."""
    s, w = (v if isinstance(v, Tensor) else None for v in (bandwidths, kernel_weights))
    floats = bandwidths if kernel != "energy" else [1.0]
    plain = {"kernel": kernel, "estimator": estimator, "alpha": alpha}

    def ours(x, y, xw, yw, s, w):
        arguments = () if kernel == "energy" else (floats if s is None else s,)
        weights = kernel_weights if w is None else w
        return fastmmd.mmd2(x, y, *arguments, kernel_weights=weights, x_weights=xw, y_weights=yw, **plain)

    def dense(x, y, xw, yw, s, w):
        weights = kernel_weights if w is None else w
        return oracle.mmd2(
            x, y, floats if s is None else s, kernel_weights=weights, x_weights=xw, y_weights=yw, **plain
        )

    tensors = (x, y, x_weights, y_weights, s, w)
    value, gradients = value_and_gradients(ours, tensors)
    expected, expected_gradients = value_and_gradients(dense, tensors, F64)
    compute = F64 if x.dtype == F64 else F32
    assert value.dtype == compute
    bound = value_bound(x, y, floats, kernel, kernel_weights, x_weights, y_weights, compute)
    assert_close(value, expected, rtol=0, atol=bound + (1e-6 if compute == F32 else 1e-12) * expected.detach().abs())
    for name, tensor, gradient, wanted in zip(NAMES, tensors, gradients, expected_gradients, strict=True):
        if tensor is None:
            continue
        assert gradient is not None and gradient.dtype == tensor.dtype, name
        half = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}.get(tensor.dtype, 0.0)  # the gradient's own rounding
        rtol = half + (2e-6 if compute == F32 else 1e-12)
        if name in ("x", "y"):
            assert_close(gradient.to(F64), wanted, rtol=rtol, rows=True, sensitivity=max(1e-3, 4 * half))
        elif name in ("x_weights", "y_weights"):
            # A row of u and its mean cancel: the error is that of the larger.
            size = expected.detach().abs().max() + largest(x, y, floats, kernel, kernel_weights)
            size = size / tensor.sum(-1).min()
            assert_close(gradient, wanted, rtol=rtol, atol=rtol * size, sensitivity=0.1)
        else:
            size = per_kernel_size(name, tensors, floats, kernel, estimator, kernel_weights, alpha)
            assert_close(gradient, wanted, rtol=rtol, atol=rtol * size, sensitivity=0.1)


def value_bound(x, y, floats, kernel, kernel_weights, x_weights, y_weights, dtype) -> Tensor:
    """The additive part, 2e-7 sum|w| / min(N, M). With sample weights 1 / N becomes sum w_i^2, and the weights, which
    are normalized in the compute dtype, add N independent roundings. "energy", which is not bounded, takes its largest
    distance in place of sum|w|."""
    wx, wy = oracle.normalized(x.to(F64), x_weights), oracle.normalized(y.to(F64), y_weights)
    share = torch.maximum(*torch.broadcast_tensors(wx.square().sum(-1), wy.square().sum(-1)))
    rounding = 0.0 if x_weights is None and y_weights is None else 2.0**-24 * share.sqrt()
    bound = 2e-7 * share + rounding if dtype == F32 else 1e-14
    return bound * largest(x, y, floats, kernel, kernel_weights)


def largest(x, y, floats, kernel, kernel_weights) -> float:
    """The largest |k - k(0)|."""
    weights = torch.as_tensor([1.0] * len(floats) if kernel_weights is None else kernel_weights, dtype=F64)
    r = oracle.squared_distances(x.to(F64), y.to(F64)).max() if kernel == "energy" else 1.0
    return float(weights.detach().abs().sum()) * math.sqrt(r)


def per_kernel_size(name, tensors, floats, kernel, estimator, kernel_weights, alpha) -> Tensor:
    """The gradient if the three means did not cancel: its size is what the terms' rounding is relative to."""
    index = NAMES.index(name)
    x, y, xw, yw, s, w = [None if t is None else leaf(t, F64) for t in tensors]
    spec = (floats if s is None else s, kernel, estimator, w if w is not None else kernel_weights, xw, yw, alpha)
    xx, yy, xy = oracle.means(x, y, *spec)
    return torch.autograd.grad((xx + yy + 2 * xy).sum(), [x, y, xw, yw, s, w][index])[0].abs()


@pytest.mark.parametrize("kernel", KERNELS)
def test_bandwidths_far_below_the_distances(backend: str, kernel: str) -> None:
    """Where products of many dimensions round, a point would be away from itself, and its kernel is steep there."""
    n, m = (70, 50) if EMULATED else (200, 150)
    check(points(n, 100, seed=1), points(m, 100, seed=2), [0.5, 3.0, 11.0, 40.0], kernel)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_float32(backend: str, kernel: str, dim: int, estimator: str) -> None:
    check(*sample(45, 37, dim), scales(dim), kernel, estimator)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("dim", [2, 17])
@pytest.mark.parametrize("kernel", KERNELS)
def test_everything_differentiable_at_once(backend: str, kernel: str, dim: int, dtype: torch.dtype) -> None:
    x, y = sample(23, 41, dim, dtype)
    check(
        x,
        y,
        [1.0] if kernel == "energy" else torch.tensor(scales(dim), dtype=dtype),
        kernel,
        "unbiased",
        positive(1 if kernel == "energy" else 3, dtype=dtype),
        positive(23, seed=3, dtype=dtype),
        positive(41, seed=4, dtype=dtype),
        alpha=0.7 if kernel == "rational_quadratic" else 1.0,
    )


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_weights_with_zeros(backend: str, kernel: str, estimator: str) -> None:
    x, y = sample(31, 19, 3)
    wx, wy = positive(31, seed=5), positive(19, seed=6)
    wx[::3], wy[1] = 0, 0
    check(x, y, scales(3), kernel, estimator, None, wx, wy)


def test_zero_weights_leave_points_out(backend: str) -> None:
    x, y = sample(30, 20, 3)
    w = torch.ones(30)
    w[20:] = 0
    assert_close(fastmmd.mmd2(x, y, x_weights=w), fastmmd.mmd2(x[:20], y))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1), (2, 3), (255, 257), (1029, 3)])
@pytest.mark.parametrize("kernel", ["gaussian", "laplacian"])
def test_sizes(backend: str, kernel: str, shape: tuple[int, int]) -> None:
    check(*sample(*shape, 5), scales(5), kernel)


@pytest.mark.parametrize("dim", [49, 200, 784])
@pytest.mark.parametrize("kernel", KERNELS)
def test_high_dimensions(backend: str, kernel: str, dim: int) -> None:
    check(*sample(33, 29, dim), scales(dim), kernel)


@pytest.mark.parametrize(
    "bandwidths", [(2.0, 5.0, 10.0, 20.0, 40.0, 80.0), (1.0,), (8.0, 4.0, 2.0, 1.0, 0.5), (1.0, 3.0, 1.0), (0.1, 100.0)]
)
@pytest.mark.parametrize("kernel", ["gaussian", "imq"])
def test_bandwidth_lists(backend: str, kernel: str, bandwidths: tuple[float, ...]) -> None:
    check(*sample(40, 50, 4), list(bandwidths), kernel, kernel_weights=[1.0 + 0.5 * i for i in range(len(bandwidths))])


def test_kernel_weights_of_both_signs(backend: str) -> None:
    check(*sample(40, 30, 2), [1.0, 2.0], kernel_weights=[1.0, -0.5])


@pytest.mark.parametrize("distance", [300.0, 1e5])
@pytest.mark.parametrize("kernel", KERNELS)
def test_far_outliers(backend: str, kernel: str, distance: float) -> None:
    x, y = sample(40, 30, 3)
    x[5] += distance
    check(x, y, scales(3), kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_duplicates(backend: str, kernel: str) -> None:
    x, y = sample(20, 24, 3)
    x[10:] = x[:10]
    y[:10] = x[:10]
    check(x, y, scales(3), kernel, "unbiased")


@pytest.mark.parametrize("kernel", KERNELS)
def test_identical_samples_give_zero(backend: str, kernel: str) -> None:
    x = points(33, 5).requires_grad_()
    arguments = () if kernel == "energy" else ((1.0, 2.0),)
    value = fastmmd.mmd2(x, x.detach().clone(), *arguments, kernel=kernel)
    (gradient,) = torch.autograd.grad(value, x)
    assert abs(value.item()) <= 4e-7 * 10 / 33
    assert gradient.abs().max() <= 1e-6
    same = points(1, 5).expand(6, 5)
    assert fastmmd.mmd2(same, same, *arguments, kernel=kernel).item() == 0


@pytest.mark.parametrize(
    ("x_batch", "y_batch"), [((3,), (3,)), ((2, 3), (3,)), ((3,), ()), ((2, 1), (1, 3)), ((1,), (1,))]
)
@pytest.mark.parametrize("kernel", ["gaussian", "energy"])
def test_leading_dimensions(backend: str, kernel: str, x_batch: tuple[int, ...], y_batch: tuple[int, ...]) -> None:
    x, y = points(*x_batch, 13, 4, seed=1), points(*y_batch, 17, 4, seed=2, scale=1.4)
    check(x, y, scales(4), kernel, x_weights=positive(13), y_weights=positive(*y_batch, 17))


@pytest.mark.parametrize("strided", ["bandwidths", "kernel_weights", "both"])
def test_strided_kernel_tensors(backend: str, strided: str) -> None:
    """A view of every other entry, and an expanded one."""
    x, y, s, w = points(9, 3), points(7, 3, seed=1), torch.tensor([0.5, 7.0, 2.0, 9.0]), torch.tensor([1.5])
    bandwidths = s[::2] if strided != "kernel_weights" else (0.5, 2.0)
    kernel_weights = w.expand(2) if strided != "bandwidths" else (1.5, 1.5)
    value = fastmmd.mmd2(x, y, bandwidths, kernel_weights=kernel_weights)
    assert_close(value, oracle.mmd2(x.to(F64), y.to(F64), [0.5, 2.0], kernel_weights=[1.5, 1.5]), rtol=1e-6)


@pytest.mark.parametrize("name", ["transposed", "strided", "expanded", "reversed batch", "offset"])
def test_views(backend: str, name: str) -> None:
    wide = points(2, 40, 10, seed=7)
    x = {
        "transposed": lambda: wide.mT,  # [2, 10, 40]
        "strided": lambda: wide[:, ::3, ::2],
        "expanded": lambda: wide[:1].expand(2, 40, 10),
        "reversed batch": lambda: wide.transpose(0, 1).contiguous().transpose(0, 1),
        "offset": lambda: wide.flatten()[3:].as_strided((2, 7, 5), (1, 50, 3)),
    }[name]()
    y = points(2, 9, x.shape[-1], seed=8, scale=1.3)
    bandwidths = scales(x.shape[-1])
    base = x.detach()
    gradients = [
        torch.autograd.grad(fastmmd.mmd2(view, y, bandwidths).sum(), view)[0]
        for view in (base.requires_grad_(), base.detach().contiguous().requires_grad_())
    ]
    assert torch.equal(*gradients)
    expected = oracle.mmd2(base.to(F64), y.to(F64), bandwidths)
    assert_close(fastmmd.mmd2(base, y, bandwidths), expected)


@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16, F32])
@pytest.mark.parametrize("y_dtype", [torch.bfloat16, torch.float16, F32])
def test_half_types_compute_in_float32(backend: str, x_dtype: torch.dtype, y_dtype: torch.dtype) -> None:
    check(points(21, 6, seed=1, dtype=x_dtype), points(18, 6, seed=2, dtype=y_dtype, scale=1.5), scales(6))


@pytest.mark.parametrize("n", [1, 2])
def test_float64_is_float64(backend: str, n: int) -> None:
    x, y = points(n, 3, dtype=F64), points(5, 3, seed=1, dtype=F64)
    assert_close(fastmmd.mmd2(x, y, (1.0,)), oracle.mmd2(x, y, (1.0,)), rtol=1e-14)


def test_the_expm1_form_keeps_the_digits(backend: str) -> None:
    """MMD^2 of about 7e-4 at N = 2000: 1e-6 where the textbook formula loses two or three more digits."""
    bandwidths = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)

    def textbook(x: Tensor, y: Tensor) -> float:
        def mean(a: Tensor, b: Tensor) -> Tensor:
            r = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
            return sum(torch.exp(-r / (2 * s**2)) for s in bandwidths).mean()

        return (mean(x, x) + mean(y, y) - 2 * mean(x, y)).item()

    lost = []
    for seed in range(1 if EMULATED else 2):
        x, y = points(2000, 8, seed=10 + seed), points(2000, 8, seed=20 + seed)
        expected = textbook(x.to(F64), y.to(F64))
        assert 3e-4 < expected < 3e-3
        assert abs(fastmmd.mmd2(x, y, bandwidths).item() - expected) <= 1e-6 * expected
        lost.append(abs(textbook(x, y) - expected) / expected)
    assert max(lost) > 1e-4


def test_small_differences_at_a_wide_bandwidth(backend: str) -> None:
    """k is within 1e-6 of 1 on all pairs: a formula with k in float32 would return noise."""
    x, y = points(200, 2, seed=1, scale=1e-2), points(220, 2, seed=2, scale=1e-2, shift=3e-2)
    check(x, y, [20.0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_nan_and_inf_propagate(backend: str, kernel: str) -> None:
    arguments = () if kernel == "energy" else ((1.0, 2.0),)
    for bad in (float("nan"), float("inf"), -float("inf")):
        x, y = sample(33, 20, 17)
        x[3, 4] = bad
        for value in (fastmmd.mmd2(x, y, *arguments, kernel=kernel), fastmmd.mmd2(y, x, *arguments, kernel=kernel)):
            assert not value.isfinite(), bad
    y[0] = float("nan")
    assert fastmmd.mmd2(points(40, 17), y, *arguments, kernel=kernel, estimator="unbiased").isnan()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dim", [1, 17])
def test_witness(backend: str, kernel: str, dim: int) -> None:
    x, y = sample(25, 31, dim)
    where = points(21, dim, seed=9)
    where[3], where[4] = x[2], y[5]
    tensors = (where, x, y, positive(25), positive(31, seed=4), torch.tensor(scales(dim)), positive(3, seed=5))
    if kernel == "energy":
        tensors = (*tensors[:5], None, None)

    def call(function, where, x, y, xw, yw, s, w):
        arguments = () if s is None else (s,)
        return function(where, x, y, *arguments, kernel=kernel, x_weights=xw, y_weights=yw, kernel_weights=w)

    dense = partial(oracle.witness, bandwidths=(1.0,)) if kernel == "energy" else oracle.witness
    value, gradients = value_and_gradients(partial(call, fastmmd.witness), tensors)
    expected, expected_gradients = value_and_gradients(partial(call, dense), tensors, F64)
    # The two means of the witness cancel, so errors are relative to the kernel's size: 3 kernels, or the distances.
    atol = 4e-7 * largest(where, x, [1.0] * 3, kernel, None)
    assert_close(value, expected, atol=atol, sensitivity=0.01)
    for index, (gradient, wanted) in enumerate(zip(gradients, expected_gradients, strict=True)):
        if gradient is not None:
            assert wanted is not None
            assert_close(gradient, wanted, rows=index < 3, atol=atol, rtol=4e-6, sensitivity=0.05)


def test_witness_means_give_the_mmd(backend: str) -> None:
    x, y = sample(30, 40, 3)
    values = fastmmd.witness(torch.cat([x, y]), x, y, (1.0, 2.0)).double()
    assert_close(values[:30].mean() - values[30:].mean(), fastmmd.mmd2(x, y, (1.0, 2.0)).double(), rtol=1e-5)
    assert fastmmd.witness(x[:1], x, y + 50, (1.0,)) > 0 > fastmmd.witness(y[:1] + 50, x, y + 50, (1.0,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, F32, F64])
@pytest.mark.parametrize("n", [2, 3, 4, 50, 1100])
def test_median_bandwidth(n: int, dtype: torch.dtype) -> None:
    x = points(n, 3, dtype=dtype)
    pairs = torch.pdist(x.to(F64)).square().sort().values
    middle = 0.5 * (pairs[(len(pairs) - 1) // 2] + pairs[len(pairs) // 2])
    assert_close(fastmmd.median_bandwidth(x), (middle / 2).sqrt())
    pooled = fastmmd.median_bandwidth(x[: n // 2], x[n // 2 :])
    assert torch.equal(pooled, fastmmd.median_bandwidth(x))


def test_median_bandwidth_of_special_inputs() -> None:
    sparse = torch.zeros(5, 2)
    sparse[0] = 1  # 6 of 10 pairs coincide
    with pytest.raises(ValueError, match="x: got points of which more than half of the pairs are at distance 0"):
        fastmmd.median_bandwidth(sparse)
    torch._dynamo.reset()
    assert torch.compile(fastmmd.median_bandwidth, backend="eager")(sparse).item() == 0
    assert fastmmd.median_bandwidth(sparse.unique(dim=0)).item() == pytest.approx(1)
    assert fastmmd.median_bandwidth(sparse[:3]).item() == pytest.approx(1)  # 2 of 3 pairs apart
    assert fastmmd.median_bandwidth(torch.tensor([[0.0], [math.nan], [1.0]])).isnan()
    assert not fastmmd.median_bandwidth(points(5, 2).requires_grad_()).requires_grad
    far = torch.tensor([[0.0], [1.0], [1e6]], dtype=F64)
    assert_close(fastmmd.median_bandwidth(far), torch.tensor(math.sqrt((1e6 - 1) ** 2 / 2), dtype=F64))
