"""mmd2 with labels against the dense float64 formula: values, every gradient, what labels may be, time and memory."""

from __future__ import annotations

import itertools

import oracle
import pytest
import torch
from helpers import EMULATED, F32, F64, assert_close, leaf, points, positive, value_and_gradients
from memory import measured
from test_mmd import NAMES, largest, sample, scales, value_bound
from torch import Tensor

import fastmmd
from fastmmd.ops.arguments import KERNELS

PI = (0.3, 0.0, 1.5, 0.7)  # as given: no sum of 1


def labels(count: int, classes: tuple[int, ...] = (-1, 0, 2, 2, 2, 3), seed: int = 0, least: int = 2) -> Tensor:
    """Each class `least` times or more, in no order; class 1 has no points on either side."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.tensor(classes, device="cpu")[
        torch.randint(len(classes), (count,), generator=generator, device="cpu")
    ]
    every = torch.tensor([c for c in sorted(set(classes)) for _ in range(least)], device="cpu")
    drawn[: len(every)] = every
    order = torch.randperm(count, generator=generator, device="cpu")
    return drawn[order].to(torch.get_default_device())


def check(
    x: Tensor,
    y: Tensor,
    x_labels: Tensor,
    y_labels: Tensor,
    bandwidths: list[float] | Tensor,
    kernel: str = "gaussian",
    estimator: str = "biased",
    kernel_weights: Tensor | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    alpha: float = 1.0,
    unconditional_weight: float = 0.0,
    pi: tuple[float, ...] = PI,
    absent: str = "raise",
) -> None:
    """Value and every gradient: each term within its own bound of docs/design.md, times its weight."""
    s = bandwidths if isinstance(bandwidths, Tensor) else None
    floats = [1.0] if kernel == "energy" else bandwidths
    least = 0 if absent == "raise" else 2 if estimator == "unbiased" else 1
    parts = list(oracle.class_parts(x_labels, y_labels, pi, unconditional_weight, least))
    tensors = (x, y, x_weights, y_weights, s, kernel_weights)

    def ours(x, y, xw, yw, s, w):
        arguments = () if kernel == "energy" else (floats if s is None else s,)
        return fastmmd.mmd2(
            x, y, *arguments, kernel=kernel, estimator=estimator, kernel_weights=w, x_weights=xw, y_weights=yw,
            alpha=alpha, x_labels=x_labels, y_labels=y_labels, class_weights=pi,
            unconditional_weight=unconditional_weight, absent=absent,
        )  # fmt: skip

    def dense(x, y, xw, yw, s, w, cross=-2.0, parts=parts):
        spec = (floats if s is None else s, kernel, estimator, w, alpha)
        return oracle.mmd2_by_class(x, y, parts, *spec, x_weights=xw, y_weights=yw, cross=cross)

    value, gradients = value_and_gradients(ours, tensors)
    expected, wanted = value_and_gradients(dense, tensors, F64)
    _, apart = value_and_gradients(lambda *leaves: dense(*leaves, cross=2.0), tensors, F64)  # nothing cancels
    terms = [
        value_and_gradients(lambda *leaves, part=part: dense(*leaves, parts=[part]), tensors, F64) for part in parts
    ]
    dtype = F64 if x.dtype == F64 else F32
    relative, rtol = (1e-6, 2e-6) if dtype == F32 else (1e-12, 1e-12)

    def bound(weight, in_x, in_y):
        weights = (None if w is None else w[rows] for w, rows in ((x_weights, in_x), (y_weights, in_y)))
        return weight * value_bound(x[in_x], y[in_y], floats, kernel, kernel_weights, *weights, dtype)

    assert value.dtype == dtype and value.shape == ()
    additive = sum(bound(*part) for part in parts)
    assert_close(value, expected, rtol=0, atol=additive + sum(relative * term.detach().abs() for term, _ in terms))
    for index, (name, tensor, gradient) in enumerate(zip(NAMES, tensors, gradients, strict=True)):
        if tensor is None:
            continue
        assert gradient is not None and gradient.dtype == tensor.dtype, name
        each = [of_term[index] for _, of_term in terms]
        if index < 2:
            rows = sum(gradient.norm(dim=1).max() * (gradient.norm(dim=1) > 0) for gradient in each)
            assert_close(gradient, wanted[index], rtol=0, atol=rtol * rows, rows=True)
        elif index < 4:  # a row of u and its mean cancel: the error is that of the larger
            size = sum(w * largest(x, y, floats, kernel, kernel_weights) for w, *_ in parts)
            atol = rtol * (size + float(expected.detach().abs())) / min(tensor[part[index - 1]].sum() for part in parts)
            assert_close(gradient, wanted[index], rtol=rtol, atol=atol, sensitivity=0.1)
        else:
            assert_close(gradient, wanted[index], rtol=rtol, atol=rtol * apart[index].abs(), sensitivity=0.1)


@pytest.mark.parametrize(("estimator", "unconditional_weight"), [("biased", 0.0), ("unbiased", 0.6)])
@pytest.mark.parametrize("dim", [3, 17, 50])
@pytest.mark.parametrize("kernel", KERNELS)
def test_float32(backend: str, kernel: str, dim: int, estimator: str, unconditional_weight: float) -> None:
    classes = (-1, 0, 2, 2, 2, 3) if unconditional_weight else (0, 2, 2, 2, 3)
    x, y = sample(61, 45, dim)
    each = labels(61, classes, 1), labels(45, classes, 2)
    check(x, y, *each, scales(dim), kernel, estimator, unconditional_weight=unconditional_weight)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_everything_differentiable_at_once(backend: str, kernel: str, estimator: str, dtype: torch.dtype) -> None:
    x, y = sample(53, 71, 5, dtype)
    check(
        x,
        y,
        labels(53, seed=1),
        labels(71, seed=2),
        [1.0] if kernel == "energy" else torch.tensor(scales(5), dtype=dtype),
        kernel,
        estimator,
        positive(1 if kernel == "energy" else 3, dtype=dtype),
        positive(53, seed=3, dtype=dtype),
        positive(71, seed=4, dtype=dtype),
        alpha=0.7 if kernel == "rational_quadratic" else 1.0,
        unconditional_weight=0.4,
    )


def test_classes_of_very_different_sizes(backend: str) -> None:
    """From one point to more than a tile of every backend; far apart, so that a row of another class would show."""
    sizes = ((1, 700), (0, 0), (530, 3), (17, 16), (1, 1), (64, 257))
    x_labels, y_labels = (torch.arange(6).repeat_interleave(torch.tensor(s)) for s in zip(*sizes, strict=True))
    x, y = sample(len(x_labels), len(y_labels), 4)
    x += 5 * x_labels[:, None]
    y += 5 * y_labels[:, None]
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0), device="cpu").to(y.device)
    check(x, y[order], x_labels, y_labels[order], scales(4), pi=(0.2, 1.0, 0.3, 0.1, 0.5, 0.4))


def test_float16_computes_in_float32(backend: str) -> None:
    x, y, x_labels, y_labels = *sample(40, 30, 3), labels(40, (0, 1)), labels(30, (0, 1))
    named = {"x_labels": x_labels, "y_labels": y_labels, "class_weights": (0.5, 0.5)}
    half, full = (fastmmd.mmd2(x.half(), y.half().to(t), (1.0,), **named) for t in (torch.float16, F32))
    assert half.dtype == F32 and torch.equal(half, full)


def test_one_class_is_mmd2(backend: str) -> None:
    x, y = sample(130, 90, 6)
    weights, count = {"x_weights": positive(130), "y_weights": positive(90, seed=1)}, torch.tensor([2.0, 3.0])

    def labeled(*tensors: Tensor) -> Tensor:
        zeros = [torch.zeros(n, dtype=torch.int64) for n in (130, 90)]
        return fastmmd.mmd2(*tensors, **weights, x_labels=zeros[0], y_labels=zeros[1], class_weights=[1])

    result, expected = (
        value_and_gradients(function, (x, y, count))
        for function in (labeled, lambda *tensors: fastmmd.mmd2(*tensors, **weights))
    )
    assert torch.equal(result[0], expected[0])
    assert all(map(torch.equal, result[1], expected[1]))


def test_the_order_of_the_points_changes_nothing(backend: str) -> None:
    x, y, x_labels, y_labels = *sample(80, 60, 3), labels(80, seed=1), labels(60, seed=2)
    generator = torch.Generator().manual_seed(5)
    order = torch.randperm(80, generator=generator, device="cpu").to(x.device)

    def run(x: Tensor, x_labels: Tensor) -> tuple[Tensor, Tensor]:
        points = leaf(x)
        value = fastmmd.mmd2(
            points, y, scales(3), x_labels=x_labels, y_labels=y_labels, class_weights=PI, unconditional_weight=1
        )
        return value, torch.autograd.grad(value, points)[0]

    value, gradient = run(x, x_labels)
    moved, moved_gradient = run(x[order], x_labels[order])
    assert_close(moved, value, rtol=1e-6)
    assert_close(moved_gradient, gradient[order], rows=True)


def test_the_same_bits_run_after_run(backend: str) -> None:
    n, m = (900, 700) if backend == "native" and not EMULATED else (300, 200)  # there enough for two threads
    x, y, x_labels, y_labels = *sample(n, m, 5), labels(n, seed=1), labels(m, seed=2)
    runs = []
    for threads in (2, 2, 1):
        torch.set_num_threads(threads if backend == "native" else 2)
        value, gradients = value_and_gradients(
            lambda x, y, s: fastmmd.mmd2(
                x, y, s, x_labels=x_labels, y_labels=y_labels, class_weights=PI, unconditional_weight=0.5
            ),
            (x, y, torch.tensor([1.0, 2.0])),
        )
        runs.append([value, *gradients])
    for again in runs[1:]:
        assert all(map(torch.equal, runs[0], again))


# --- what labels may be ---


def call(x_labels, y_labels, **options) -> Tensor:
    as_tensors = [torch.tensor(labels) if isinstance(labels, list) else labels for labels in (x_labels, y_labels)]
    options = {"class_weights": [0.5, 0.5], **options}
    return fastmmd.mmd2(points(4, 2), points(3, 2, seed=1), x_labels=as_tensors[0], y_labels=as_tensors[1], **options)


@pytest.mark.parametrize(
    ("x_labels", "y_labels", "options", "error", "message"),
    [
        ([0, 1, 0, 1], None, {}, ValueError, "y_labels: got None beside x_labels; expected labels for both"),
        (None, [0, 1, 0], {}, ValueError, "x_labels: got None beside y_labels"),
        (None, None, {}, ValueError, "class_weights: got one without labels; pass x_labels and y_labels"),
        (None, None, {"class_weights": None, "unconditional_weight": 1.0}, ValueError, "unconditional_weight: got one"),
        ([0, 1, 0, 1], [0, 1, 0], {"class_weights": None}, ValueError, r"class_weights: got None .* \[1 / 10\] \* 10"),
        ([0, 1, 0, 1], [0, 1, 0], {"class_weights": [0.5, -1]}, ValueError, "class_weights: got"),
        ([0, 1, 0, 1], [0, 1, 0], {"class_weights": []}, ValueError, "class_weights: got an empty sequence"),
        ([0, 1, 0, 1], [0, 1, 0], {"class_weights": torch.ones(2)}, TypeError, "class_weights: got tensor"),
        ([0, 1, 0, 1], [0, 1, 0], {"unconditional_weight": -1.0}, ValueError, "unconditional_weight: got -1.0"),
        ([0, 1, 0], [0, 1, 0], {}, ValueError, r"x_labels: got shape \[3\], expected \[4\]"),
        ([0, 1, 0, 1], [[0, 1, 0]], {}, ValueError, r"y_labels: got shape \[1, 3\], expected \[3\]"),
        ([0.0, 1, 0, 1], [0, 1, 0], {}, TypeError, "x_labels: got torch.float32, expected an int64 tensor"),
        ([0, 1, 0, 1], "010", {}, TypeError, "y_labels: got str"),
        ([0, 1, 2, 1], [0, 1, 0], {}, ValueError, "x_labels: got 2, expected a class from 0 to 1, or -1"),
        ([0, 1, 0, 1], [0, 1, -2], {}, ValueError, "y_labels: got -2"),
        ([0, 1, 0, 1], [0, 0, 0], {}, ValueError, "y_labels: got no point of class 1, of which x has 2"),
        ([1, 1, 1, 1], [0, 1, 1], {}, ValueError, "x_labels: got no point of class 0, of which y has 1"),
        ([0, 1, 0, 1], [0, 1, 0], {"estimator": "unbiased"}, ValueError, "y_labels: got one point of class 1, .* 2"),
        ([0, 1, 0, 1], [0, 1, 0], {"absent": "drop"}, ValueError, 'absent: got \'drop\', expected "raise" or "skip"'),
        (
            [0, 1, 0, 1],
            [0, 1, 0],
            {"x_weights": torch.tensor([1.0, 0, 1, 0])},
            ValueError,
            "x_weights: got weights that sum to 0 in class 1",
        ),
    ],
)
def test_errors(x_labels, y_labels, options, error, message) -> None:
    with pytest.raises(error, match=message):
        call(x_labels, y_labels, **options)


def test_labels_are_for_samples_without_leading_dimensions() -> None:
    zeros = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"x: got shape \[2, 4, 3\], expected \[N, D\] beside labels"):
        fastmmd.mmd2(points(2, 4, 3), points(4, 3), x_labels=zeros, y_labels=zeros, class_weights=[1.0])
    with pytest.raises(ValueError, match="y_labels: got device meta, expected cpu"):
        fastmmd.mmd2(points(4, 3), points(4, 3), x_labels=zeros, y_labels=zeros.to("meta"), class_weights=[1.0])


def test_no_labeled_point_at_all(backend: str) -> None:
    """Only the unconditional term is left; and it alone where the class weights are zeros."""
    x, y = sample(9, 8, 2)
    none = {"x_labels": torch.full((9,), -1), "y_labels": torch.full((8,), -1)}
    zero = {"x_labels": torch.zeros(9, dtype=torch.int64), "y_labels": torch.zeros(8, dtype=torch.int64)}
    for named, pi in ((none, [1.0, 1.0]), (zero, [0.0])):
        result = fastmmd.mmd2(x, y, **named, class_weights=pi, unconditional_weight=0.5)
        assert_close(result, 0.5 * fastmmd.mmd2(x, y))


UNREADABLE = {
    "biased": [
        ([0, 1, 2, 1], [0, 1, 0]),  # no class
        ([0, 1, 0, 1], [0, 1, -2]),
        ([0, 1, 0, 1], [0, 0, 0]),  # a side without points
        ([1, 1, 1, 1], [0, 1, 1]),
    ],
    "unbiased": [([0, 1, 0, 1], [0, 1, 0]), ([0, 1, 1, 1], [0, 0, 1])],  # one point on a side
}


@pytest.mark.parametrize("estimator", UNREADABLE)
@pytest.mark.parametrize("weighted", [False, True])
def test_labels_that_cannot_be_read_give_nan(backend: str, estimator: str, weighted: bool) -> None:
    """As on a GPU: where values are not looked at, what would be an error is NaN, and what would not be is not."""
    x, y = points(4, 2), points(3, 2, seed=1)
    weights = {"x_weights": positive(4), "y_weights": positive(3, seed=1)} if weighted else {}

    def run(a: Tensor, b: Tensor) -> Tensor:
        return fastmmd.mmd2(x, y, estimator=estimator, x_labels=a, y_labels=b, class_weights=[0.5, 0.5], **weights)

    torch._dynamo.reset()
    compiled = torch.compile(run, backend="eager", fullgraph=True)
    for x_labels, y_labels in UNREADABLE[estimator]:
        assert compiled(torch.tensor(x_labels), torch.tensor(y_labels)).isnan(), (x_labels, y_labels)
    if estimator == "biased":
        good = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 1])
        assert_close(compiled(*good), run(*good))


# --- the operator ---


def operator(
    backend: str, x_offsets: list[int], y_offsets: list[int], n: int = 12, m: int = 10, unbiased: bool = False
):
    tensors = points(1, n, 3), points(1, m, 3, seed=1), positive(1, n), positive(1, m, seed=1), positive(2), positive(2)
    offsets = torch.tensor([x_offsets, y_offsets])
    return torch.ops.fastmmd.mmd2(*tensors, offsets, [1.0], "imq", [unbiased, False], [True] * 6, backend)


def test_members_of_the_operator(backend: str) -> None:
    """Empty on one side: NaN; on both: 0; one point of "unbiased": NaN; the others as alone, rows behind them 0."""
    value, g_x, g_y, g_xw, g_yw, g_s, g_w = operator(backend, [0, 4, 4, 4, 7, 9], [0, 0, 3, 3, 7, 9])
    assert value.isnan().tolist() == [True, True, False, False, False]
    assert value[2] == 0 and not g_s[2].any() and not g_w[2].any()
    x, y, xw, yw = points(1, 12, 3), points(1, 10, 3, seed=1), positive(1, 12), positive(1, 10, seed=1)
    for member, rows, columns in ((3, slice(4, 7), slice(3, 7)), (4, slice(7, 9), slice(7, 9))):
        alone = torch.ops.fastmmd.mmd2(
            x[:, rows], y[:, columns], xw[:, rows], yw[:, columns], positive(2), positive(2), None, [1.0], "imq",
            [False, False], [True] * 6, backend,
        )  # fmt: skip
        for whole, part in ((value[member, None], 0), (g_s[member, None], 5), (g_w[member, None], 6)):
            assert_close(whole, alone[part])
        for whole, part in ((g_x[:, rows], 1), (g_y[:, columns], 2), (g_xw[:, rows], 3), (g_yw[:, columns], 4)):
            assert_close(whole, alone[part], rtol=4e-6, sensitivity=0.1)
    for gradient, behind in ((g_x, 9), (g_y, 9), (g_xw, 9), (g_yw, 9)):
        assert not gradient[:, behind:].any() and gradient[:, behind - 1].any()
    value, *_ = operator(backend, [0, 1, 6], [0, 5, 10], unbiased=True)
    assert value.isnan().tolist() == [True, False]


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(backend: str, grad: bool) -> None:
    tensors = [
        t.requires_grad_(grad)
        for t in (points(1, 9, 3), points(1, 8, 3, seed=1), positive(1, 9), positive(1, 8), positive(2), positive(2))
    ]
    offsets = torch.tensor([[0, 3, 3, 8], [0, 4, 4, 6]])
    arguments = (*tensors, offsets, [1.0], "gaussian", [True, False], [grad] * 6, backend)
    torch.library.opcheck(torch.ops.fastmmd.mmd2.default, arguments)


def test_gradients_not_needed_come_back_empty(backend: str) -> None:
    x, y, offsets = points(1, 6, 2), points(1, 5, 2, seed=1), torch.tensor([[0, 2, 5]] * 2)
    for needs in itertools.product([False, True], repeat=3):
        flags = [*needs, False, needs[0], False]
        tensors = (x, y, positive(1, 6), None, None, None, offsets)
        out = torch.ops.fastmmd.mmd2(*tensors, [1.0, 1.0, 1.0], "gaussian", [False, False], flags, backend)
        shapes = [(1, 6, 2), (1, 5, 2), (1, 6), None, (2, 1), None]
        assert out[0].shape == (2,)
        for gradient, shape, need in zip(out[1:], shapes, flags, strict=True):
            assert gradient.shape == (shape if need else (0,))


# --- time and memory ---

MEMORY = """
import sys, torch, fastmmd
from fastmmd.backends.reference import tiles
tiles.TILE_ELEMENTS //= 8
torch.set_num_threads(2)
def run(n, classes):
    x, y, labels = torch.randn(n, 6, requires_grad=True), torch.randn(n, 6), torch.arange(n) % classes
    with fastmmd.backend(sys.argv[1]):
        fastmmd.mmd2(x, y, (1.0,), x_labels=labels, y_labels=labels, class_weights=[0.1] * classes).backward()
run(1000, 10)
before = peak()
run(6_000, 2)
run(6_000, 300)
print(peak() - before)
"""


def test_memory_is_linear(backend: str) -> None:
    """A float32 matrix for two classes would take 34 MiB each, one [300, N, D] for three hundred 41 MiB."""
    (grown,) = measured(MEMORY, backend)
    assert grown < 25
