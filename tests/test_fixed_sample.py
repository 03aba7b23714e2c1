"""mmd2 and witness with a `FixedSample` in place of y: as with y itself, without y's own pairs."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from helpers import EMULATED, F32, F64, assert_close, points, positive, value_and_gradients
from test_mmd import largest, sample, scales, value_bound
from torch import Tensor

import fastmmd
from fastmmd.backends.cpu import mmd as cpu_mmd
from fastmmd.ops.arguments import KERNELS


def check(
    x: Tensor,
    y: Tensor,
    bandwidths: list[float],
    kernel: str = "gaussian",
    estimator: str = "biased",
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    **options: object,
) -> None:
    """Value and gradients within the bounds of docs/design.md, which are those of mmd2(x, y)."""
    arguments = () if kernel == "energy" else (bandwidths,)
    fixed = fastmmd.FixedSample(y, *arguments, kernel=kernel, y_weights=y_weights, **options)

    def ours(x: Tensor, x_weights: Tensor | None) -> Tensor:
        return fastmmd.mmd2(x, fixed, estimator=estimator, x_weights=x_weights)

    def dense(x: Tensor, x_weights: Tensor | None) -> Tensor:
        weights = {"x_weights": x_weights, "y_weights": None if y_weights is None else y_weights.to(F64)}
        return oracle.mmd2(x, y.to(F64), bandwidths, kernel, estimator, **weights, **options)

    value, gradients = value_and_gradients(ours, (x, x_weights))
    expected, wanted = value_and_gradients(dense, (x, x_weights), F64)
    compute = F64 if x.dtype == F64 else F32
    rtol = 2e-6 if compute == F32 else 1e-12
    assert value.dtype == compute
    floats = [1.0] if kernel == "energy" else bandwidths
    bound = value_bound(x, y, floats, kernel, options.get("kernel_weights"), x_weights, y_weights, compute)
    assert_close(value, expected, rtol=0, atol=bound + rtol / 2 * expected.detach().abs())
    assert gradients[0] is not None and wanted[0] is not None
    assert_close(gradients[0], wanted[0], rtol=rtol, rows=True)
    if x_weights is not None:  # a row of u and its mean cancel: the error is that of the larger
        assert gradients[1] is not None and wanted[1] is not None
        size = expected.detach().abs().max() + largest(x, y, floats, kernel, options.get("kernel_weights"))
        assert_close(gradients[1], wanted[1], rtol=rtol, atol=rtol * size / x_weights.sum(-1).min(), sensitivity=0.1)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("dim", [3, 17, 50])
@pytest.mark.parametrize("kernel", KERNELS)
def test_is_mmd2(backend: str, kernel: str, dim: int, estimator: str, dtype: torch.dtype) -> None:
    x, y = sample(41, 70, dim, dtype)
    check(x, y, scales(dim), kernel, estimator)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_weights_and_leading_dimensions(backend: str, estimator: str, batch: tuple[int, ...]) -> None:
    x, y = points(3, *batch, 23, 4, seed=1), points(*batch, 31, 4, seed=2, scale=1.3, shift=0.3)
    options = {"kernel": "rational_quadratic", "alpha": 0.7, "kernel_weights": [1.0, 2.0, -0.3]}
    weights = {"x_weights": positive(3, *batch, 23), "y_weights": positive(*batch, 31, seed=4)}
    check(x, y, scales(4), estimator=estimator, **options, **weights)


@pytest.mark.parametrize("n", [1, 300])
@pytest.mark.parametrize("bandwidths", [[4.0, 5.5, 7.0], [0.4, 0.8, 1.6, 3.2, 6.4]])
def test_near_convergence(backend: str, bandwidths: list[float], n: int) -> None:
    """y's own term comes from another call: what the two calls round in all pairs alike would not cancel."""
    count = 300 if EMULATED else 1000
    x, y = points(n, 6, seed=1), points(count, 6, seed=2)
    check(x, y, bandwidths)


@pytest.fixture
def products_of_few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """The native backend takes matrix products for the samples below, but for x of 3 points."""
    monkeypatch.setattr(cpu_mmd, "PRODUCT_POINTS", 0)


def test_near_convergence_in_many_dimensions(backend: str, products_of_few_points: None) -> None:
    n = 100 if EMULATED else 300
    check(points(n, 70, seed=1), points(n + 100, 70, seed=2), scales(70))


def test_products_of_some_and_differences_of_few(backend: str, products_of_few_points: None) -> None:
    """A batch, weights, and x whose gradient alone or whose weights' gradient alone is wanted."""
    n = 60 if EMULATED else 300
    x, y = points(n, 70, seed=1), points(n + 10, 70, seed=2, scale=1.1)
    weights = {"x_weights": positive(len(x)), "y_weights": positive(len(y), seed=4)}
    check(x, y, scales(70), estimator="unbiased", **weights)
    check(x[:3], y, scales(70), **weights | {"x_weights": positive(3)})
    fixed = fastmmd.FixedSample(y, scales(70))
    both = value_and_gradients(lambda x, w: fastmmd.mmd2(x, fixed, x_weights=w), (x, weights["x_weights"]))
    alone = value_and_gradients(lambda w: fastmmd.mmd2(x, fixed, x_weights=w), (weights["x_weights"],))
    assert_close(alone[0], both[0], rtol=1e-6)
    assert_close(alone[1][0], both[1][1], rtol=4e-6, sensitivity=0.1)


def test_outliers_of_both_samples(backend: str) -> None:
    x, y = sample(40, 50, 3)
    x[3] += 300
    y[5] -= 1e4
    check(x, y, scales(3))


@pytest.mark.parametrize("kernel", ["gaussian", "energy"])
def test_witness(backend: str, kernel: str) -> None:
    where, (x, y) = points(9, 3, seed=9), sample(20, 30, 3)
    arguments = () if kernel == "energy" else (scales(3),)
    named = {"kernel": kernel, "y_weights": positive(30)}
    fixed = fastmmd.FixedSample(y, *arguments, **named)
    result = value_and_gradients(lambda p, x: fastmmd.witness(p, x, fixed), (where, x))
    expected = value_and_gradients(lambda p, x: fastmmd.witness(p, x, y, *arguments, **named), (where, x))
    assert torch.equal(result[0], expected[0])
    assert all(map(torch.equal, result[1], expected[1]))


def test_holds_a_copy_and_constants(backend: str) -> None:
    x, y = sample(12, 15, 3)
    s, w, given = torch.tensor(1.5), torch.tensor([2.0]), positive(15)
    kept = [tensor.clone() for tensor in (y, s, w, given)]
    fixed = fastmmd.FixedSample(y, s, kernel_weights=w, y_weights=given)
    before = fastmmd.mmd2(x, fixed)
    for tensor in (y, s, w, given):
        tensor.mul_(3)
    assert torch.equal(fastmmd.mmd2(x, fixed), before)
    expected = oracle.mmd2(x.to(F64), kept[0].to(F64), [1.5], kernel_weights=[2.0], y_weights=kept[3].to(F64))
    assert_close(before, expected, rtol=2e-6, atol=1e-7)


def test_half_types_and_inference_mode(backend: str) -> None:
    x, y = sample(12, 15, 3)
    with torch.inference_mode():
        fixed = fastmmd.FixedSample(y.bfloat16(), (1.0, 2.0))
    value, _ = value_and_gradients(lambda x: fastmmd.mmd2(x, fixed), (x.half(),))
    assert_close(value, fastmmd.mmd2(x.half(), y.bfloat16(), (1.0, 2.0)), rtol=1e-6, atol=2e-8)


def test_compiled_and_transformed(backend: str) -> None:
    x, y = sample(12, 15, 3)
    fixed = fastmmd.FixedSample(y, (1.0, 2.0))

    def run(x: Tensor) -> Tensor:
        return fastmmd.mmd2(x, fixed) + fastmmd.witness(x, x, fixed).sum()

    torch._dynamo.reset()
    result = value_and_gradients(torch.compile(run, backend="aot_eager", fullgraph=True), (x,))
    expected = value_and_gradients(run, (x,))
    assert_close(result[0], expected[0])
    assert_close(result[1][0], expected[1][0], rows=True)
    cotangent = positive(seed=99)
    assert_close(torch.func.grad(run)(x) * cotangent, expected[1][0], rows=True)


def test_gradcheck(backend: str) -> None:
    x, y = sample(7, 5, 3, F64)
    fixed = fastmmd.FixedSample(y, (1.0, 2.0), y_weights=positive(5, dtype=F64))
    leaves = x.requires_grad_(), positive(7, dtype=F64).requires_grad_()
    for estimator in ("biased", "unbiased"):
        assert torch.autograd.gradcheck(
            lambda x, w, estimator=estimator: fastmmd.mmd2(x, fixed, estimator=estimator, x_weights=w), leaves
        )


def test_pairs_of_y_are_not_summed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in the reference backend: rows times columns of each sum."""
    from fastmmd.backends.reference import mmd

    pairs = []
    original = mmd.sum_rows

    def counted(call):
        pairs.append((call.rows.points.shape[1], call.columns.points.shape[1]))
        return original(call)

    monkeypatch.setattr(mmd, "sum_rows", counted)
    x, y = sample(4, 90, 3)
    with fastmmd.backend("reference"):
        fixed = fastmmd.FixedSample(y)
        assert pairs == [(90, 90)]
        fastmmd.mmd2(x.requires_grad_(), fixed, x_weights=positive(4).requires_grad_()).backward()
    assert sorted(pairs[1:]) == [(4, 4), (4, 90)]


X, Y = points(6, 3), points(5, 3, seed=1)
FIXED = fastmmd.FixedSample(Y, (1.0, 2.0))
LABELS = torch.zeros(6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fastmmd.mmd2(X, FIXED, (1.0,)), ValueError, r"bandwidths: got \(1.0,\) beside a FixedSample, which"),
        (lambda: fastmmd.mmd2(X, FIXED, torch.ones(2)), ValueError, r"bandwidths: got a tensor of shape \[2\]"),
        (lambda: fastmmd.mmd2(X, FIXED, kernel="imq"), ValueError, "kernel: got 'imq' beside a FixedSample"),
        (lambda: fastmmd.mmd2(X, FIXED, y_weights=torch.ones(5)), ValueError, "y_weights: got a tensor of shape"),
        (lambda: fastmmd.mmd2(X, FIXED, alpha=2.0), ValueError, "alpha: got 2.0 beside"),
        (lambda: fastmmd.mmd2(X, FIXED, x_labels=LABELS), ValueError, "x_labels: .* takes no classes"),
        (lambda: fastmmd.mmd2(X, FIXED, class_weights=[1.0]), ValueError, r"class_weights: got \[1.0\] beside"),
        (lambda: fastmmd.witness(X, X, FIXED, (1.0,)), ValueError, "bandwidths: got"),
        (lambda: fastmmd.mmd2(X.double(), FIXED), TypeError, "y: got dtype torch.float32 .*float64 mixes only"),
        (lambda: fastmmd.mmd2(X[:, :2], FIXED), ValueError, "y: got dimension 3"),
        (lambda: fastmmd.mmd2(FIXED, X), TypeError, "x: got FixedSample, expected a torch.Tensor"),
        (lambda: fastmmd.mmd2(X, fastmmd.FixedSample(Y[:1]), estimator="unbiased"), ValueError, "y: got 1 point"),
        (lambda: fastmmd.FixedSample(Y.clone().requires_grad_()), ValueError, r"y: got a tensor .* y.detach\(\)"),
        (lambda: fastmmd.FixedSample(Y, torch.ones(1, requires_grad=True)), ValueError, "bandwidths: got a"),
        (lambda: fastmmd.FixedSample(Y, (-1.0,)), ValueError, "bandwidths: got"),
        (lambda: fastmmd.FixedSample([1.0]), TypeError, "y: got list"),
        (lambda: fastmmd.FixedSample(Y, y_weights=torch.zeros(5)), ValueError, "y_weights: got weights that sum to 0"),
    ],
)  # fmt: skip
def test_errors(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
    assert math.isfinite(fastmmd.mmd2(X, FIXED))
