"""What every operator owes PyTorch: opcheck, gradcheck, no silent second derivative, torch.compile, fake tensors,
autocast, matmul precision, linear memory, determinism. And the proof that `assert_close` can fail."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._inductor.config
from helpers import F32, F64, INTERPRETED, assert_close, leaf, points, positive, value_and_gradients
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import fastmmd
from fastmmd.ops.fourier import fourier_discrepancy

FEATURES = fastmmd.FourierFeatures(3, 6, bandwidths=(1.0, 2.0), seed=3)
PRIOR = fastmmd.priors.Gaussian(3, 1.5)
CLOUDS = [(7, 3), (5, 3)]
KERNEL_TENSORS = [(2,), (2,)]  # bandwidths, kernel weights


def labels(x_labels: list[int], y_labels: list[int]) -> dict[str, Any]:
    return {"x_labels": torch.tensor(x_labels), "y_labels": torch.tensor(y_labels), "class_weights": (0.3, 1.0, 0.7)}


# Public functions of tensors alone, and the shapes of the tensors; every one is differentiable in all of them.
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "mmd2": (lambda x, y, s, w, a, b: fastmmd.mmd2(x, y, s, kernel_weights=w, x_weights=a, y_weights=b),
             [*CLOUDS, *KERNEL_TENSORS, (7,), (5,)]),
    "mmd2 unbiased": (
        lambda x, y, s, w, a, b: fastmmd.mmd2(
            x, y, s, kernel="rational_quadratic", estimator="unbiased", kernel_weights=w, x_weights=a, y_weights=b),
        [*CLOUDS, *KERNEL_TENSORS, (7,), (5,)]),
    "mmd2 labels": (
        lambda x, y, s, w, a, b: fastmmd.mmd2(
            x, y, s, kernel_weights=w, x_weights=a, y_weights=b, unconditional_weight=0.5,
            **labels([0, 2, -1, 0, 2, 2, 0], [-1, 0, 0, 2, -1])),
        [*CLOUDS, *KERNEL_TENSORS, (7,), (5,)]),
    "mmd2 labels unbiased": (
        lambda x, y: fastmmd.mmd2(
            x, y, (1.0, 2.0), kernel="imq", estimator="unbiased", **labels([0, 2, 2, 0, 2, 2, 0], [2, 0, 0, 2, 0])),
        CLOUDS),
    "mmd2 energy": (lambda x, y: fastmmd.mmd2(x, y, kernel="energy"), [(2, 7, 3), (2, 5, 3)]),
    "mmd2 laplacian": (lambda x, y: fastmmd.mmd2(x, y, (1.0, 2.0), kernel="laplacian"), CLOUDS),
    "mmd2 imq": (lambda x, y: fastmmd.mmd2(x, y, (1.0, 2.0), kernel="imq"), CLOUDS),
    "mmd2_to_prior": (
        lambda x, s, w, a: fastmmd.mmd2_to_prior(x, PRIOR, s, kernel_weights=w, x_weights=a),
        [(7, 3), *KERNEL_TENSORS, (7,)]),
    "witness": (
        lambda p, x, y, s, w, a, b: fastmmd.witness(p, x, y, s, kernel_weights=w, x_weights=a, y_weights=b),
        [(4, 3), *CLOUDS, *KERNEL_TENSORS, (7,), (5,)]),
    "fourier_mean": (lambda x, w: fastmmd.fourier_mean(x, FEATURES, weights=w), [(2, 7, 3), (2, 7)]),
    "fourier_function": (lambda x, c: fastmmd.fourier_function(x, c, FEATURES), [(7, 3), (12,)]),
    "fourier_discrepancy": (
        lambda x, y: fourier_discrepancy(x, y, torch.linspace(0.5, 2.0, 6), FEATURES), CLOUDS),
    "parzen": (lambda x, y: fastmmd.parzen_log_likelihood(x, y, (0.5, 1.0)), CLOUDS),
}  # fmt: skip
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def arguments(name: str, dtype: torch.dtype = F32) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """Clouds are normal; bandwidths and weights positive."""
    function, shapes = FUNCTIONS[name]
    return function, [
        (points if shape[-1] == 3 or shape == (12,) else positive)(*shape, seed=i, dtype=dtype)
        for i, shape in enumerate(shapes)
    ]


# --- the comparison itself ---


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("rows", [False, True])
def test_assert_close_can_fail(dtype: torch.dtype, rows: bool) -> None:
    expected = points(5, 4, dtype=F64)
    good = expected.to(dtype)
    assert_close(good, expected, rows=rows)
    broken = good.clone()
    broken[2, 1] = math.nan
    perturbed = good.clone()
    perturbed[3, 2] += 1e-4
    wrong = [torch.zeros_like(good), broken, perturbed, good * 1.001, -good, good[:4], torch.full_like(good, math.inf)]
    for actual in wrong:
        with pytest.raises(AssertionError):
            assert_close(actual, expected, rows=rows)
    with pytest.raises(AssertionError, match="tolerance"):
        assert_close(good, expected, rows=rows, atol=10.0)
    with pytest.raises(AssertionError, match="expectation"):
        assert_close(good, broken.to(F64), rows=rows)


# --- derivatives ---


@every_function
def test_gradcheck(backend: str, name: str) -> None:
    function, tensors = arguments(name, F64)
    # Interpreted, all directions take minutes: one random direction.
    assert torch.autograd.gradcheck(function, [leaf(t) for t in tensors], fast_mode=INTERPRETED)


@every_function
def test_second_derivatives_raise(backend: str, name: str) -> None:
    """Every mixed second derivative raises: also beside a term that has one, and with inputs= given."""
    function, tensors = arguments(name, F64)
    leaves = [leaf(t) for t in tensors]
    for i, first in enumerate(leaves):
        value = function(*leaves).sum()
        (gradient,) = torch.autograd.grad(value, first, create_graph=True)
        penalty = gradient.square().sum()
        for j, second in enumerate(leaves):
            # A double-differentiable term beside it, as in a gradient penalty, must not hide the missing part.
            for total in (penalty, value + penalty + first.square().sum() * second.square().sum()):
                with pytest.raises(RuntimeError):
                    torch.autograd.grad(total, second, retain_graph=True, allow_unused=True)
                    pytest.fail(f"the derivative of gradient {i} in input {j} is silently zero")
        with pytest.raises(RuntimeError, match="second derivative"):
            (value + penalty).backward()


@every_function
def test_create_graph_alone_works(backend: str, name: str) -> None:
    function, tensors = arguments(name)
    leaves = [leaf(t) for t in tensors]
    plain = torch.autograd.grad(function(*leaves).sum(), leaves)
    graph = torch.autograd.grad(function(*leaves).sum(), leaves, create_graph=True)
    for a, b in zip(plain, graph, strict=True):
        assert torch.equal(a, b)


@every_function
def test_each_gradient_alone(backend: str, name: str) -> None:
    """What is not needed is not computed, and what is needed does not depend on it."""
    function, tensors = arguments(name)
    _, together = value_and_gradients(function, tensors)
    for i, expected in enumerate(together):
        alone = [t.clone().requires_grad_(i == j) for j, t in enumerate(tensors)]
        out = function(*alone)
        (gradient,) = torch.autograd.grad(out, alone[i], positive(*out.shape, seed=99))
        assert_close(gradient, expected, atol=1e-7, sensitivity=0.1)


@every_function
def test_without_grad_nothing_is_recorded_or_computed(backend: str, name: str) -> None:
    function, tensors = arguments(name)
    leaves = [leaf(t) for t in tensors]
    with torch.no_grad():
        silent = function(*leaves)
    assert not silent.requires_grad
    assert_close(silent, function(*leaves), atol=1e-7, sensitivity=0.1)
    with torch.inference_mode():
        assert torch.equal(function(*[t.detach() for t in tensors]), silent)


def test_gradients_not_needed_come_back_empty(backend: str) -> None:
    for flags, wanted in (
        ([False] * 6, []),
        ([True] + [False] * 5, [(1, 6, 2)]),
        ([False, True, False, True, False, True], [(1, 5, 2), (1, 5), (1, 1)]),
    ):
        out = torch.ops.fastmmd.mmd2(*mmd_arguments(flags, backend))
        assert out[0].shape == (1,)
        assert [tuple(t.shape) for t in out[1:] if t.numel()] == wanted


def mmd_arguments(needs: list[bool], backend: str, grad: bool = False) -> tuple:
    x, y = points(1, 6, 2).requires_grad_(grad), points(1, 5, 2, seed=1)
    return x, y, None, None, None, None, [1.0], [1.0], "gaussian", 1.0, False, needs, None, None, backend


# --- torch.library ---


def operator_cases(backend: str) -> dict[str, tuple]:
    """Arguments of every operator in torch.ops.fastmmd."""
    x, y, s, w = points(2, 7, 3), points(2, 5, 3, seed=1), positive(2), positive(2, seed=1)
    p, q, weights = x[0], y[0], positive(5)
    description = (torch.tensor([3, 4]), 6, [1.0, 2.0], [1.0, 0.5], backend)
    minimum, sums = torch.full((7,), math.inf), torch.zeros(2, 7, dtype=F64)
    kernel = (s, w, [], [], "imq", 1.0)

    def leaves(*tensors: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(leaf(t) for t in tensors)

    state = torch.ops.fastmmd.parzen_update(p, q, [0.5, 1.0], minimum, sums, backend)
    return {
        "mmd2": (
            *leaves(x, y, positive(2, 7), positive(2, 5), s, w),
            *kernel[2:],
            True,
            [True] * 6,
            None,
            None,
            backend,
        ),
        "witness": (*leaves(p, q, weights, s, w), *kernel[2:], backend),
        "witness_backward": (points(7), p, q, weights, *kernel, [True, False, True, True, False], backend),
        "fourier_sum": (*leaves(x, positive(2, 7)), *description),
        "fourier_sum_backward": (points(2, 12), x, positive(2, 7), *description, [True, True]),
        "fourier_function": (*leaves(x, points(2, 12)), *description),
        "fourier_function_backward": (points(2, 7), x, points(2, 12), *description, [True, False]),
        "fourier_discrepancy": (*leaves(p, q), positive(6), *description, True),
        "fourier_discrepancy_backward": (points(), p, q, points(12), *description, [True, True]),
        "fourier_ascent": (positive(6), p, q, *description, 0.3),
        "fourier_frequencies": (*description[:4], 3, F64, backend),
        "parzen_log_likelihood": (*leaves(p, q), [0.5, 1.0], backend),
        "parzen_update": (p, q, [0.5, 1.0], minimum, sums, backend),
        "parzen_backward": (points(2, 7), p, q, [0.5, 1.0], *state, [True, True], backend),
        "apply_gradient": (points(2), points(2, 7, 3), x, y, None, None, None, None, False),
    }


def operator_names() -> list[str]:
    return sorted(n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n.startswith("fastmmd::"))


@pytest.mark.parametrize("name", operator_names())
def test_opcheck(backend: str, name: str) -> None:
    cases = operator_cases(backend)
    assert set(cases) == set(operator_names())
    torch.library.opcheck(getattr(torch.ops.fastmmd, name).default, cases[name])


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["mmd2", "witness", "fourier_mean", "fourier_function", "parzen"])
def test_a_call_is_dispatched_once(name: str, grad: bool) -> None:
    """Counted, not timed: no second way through the dispatcher, nothing rebuilt from the schema."""
    function, tensors = arguments(name)
    tensors = [t.requires_grad_(grad) for t in tensors]
    function(*tensors)
    names: set[str] = set()
    sys.setprofile(lambda frame, event, _: names.add(frame.f_code.co_name))
    try:
        function(*tensors)
    finally:
        sys.setprofile(None)
    assert "check_points" in names
    assert not {"redispatch", "fill_defaults"} & names


@every_function
def test_other_kernels_are_dispatched_to(name: str) -> None:
    """What lies between autograd and the kernel still comes: here the key of lazily negated tensors."""
    function, tensors = arguments(name)
    negated = [torch._neg_view(-t) for t in tensors]
    assert all(t.is_neg() for t in negated)
    assert_close(function(*negated), function(*tensors), atol=1e-7, sensitivity=0.1)


@every_function
def test_an_undefined_gradient_stays_one(name: str) -> None:
    """A function after ours that returns no gradient: none reaches the inputs, as with torch's own operators."""

    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx, grad: Tensor) -> None:
            return None

    function, tensors = arguments(name)
    leaves = [leaf(t) for t in tensors]
    Stop.apply(function(*leaves)).sum().backward()
    assert all(t.grad is None for t in leaves)


@every_function
def test_batched_gradients(name: str) -> None:
    """is_grads_batched runs backward under vmap: the rows are those of separate backward passes."""
    function, tensors = arguments(name)
    leaves = [leaf(t) for t in tensors]
    out = function(*leaves)
    rows = points(3, *out.shape, seed=7)
    together = torch.autograd.grad(out, leaves, rows, is_grads_batched=True, retain_graph=True)
    for i, row in enumerate(rows):
        for a, b in zip(together, torch.autograd.grad(out, leaves, row, retain_graph=True), strict=True):
            assert_close(a[i], b, atol=1e-7, sensitivity=0.1)


@every_function
@pytest.mark.parametrize("batched", [False, True])
def test_backward_again_and_again(name: str, batched: bool) -> None:
    """The last pass may overwrite what the forward pass saved; none before it may."""
    function, tensors = arguments(name)
    leaves = [leaf(t) for t in tensors]
    out = function(*leaves)
    rows = points(*([3] if batched else []), *out.shape, seed=7)

    def backward(retain_graph: bool) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(out, leaves, rows, is_grads_batched=batched, retain_graph=retain_graph)

    first = backward(True)
    kept = [gradient.clone() for gradient in first]
    for found in (backward(True), backward(False), first):
        assert all(map(torch.equal, found, kept))


@every_function
def test_compile_in_one_graph(backend: str, name: str) -> None:
    """Value and gradients without a graph break, the same numbers as eager."""
    function, tensors = arguments(name)
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    value, gradients = value_and_gradients(compiled, tensors)
    expected, expected_gradients = value_and_gradients(function, tensors)
    assert_close(value, expected, atol=1e-7, sensitivity=0.1)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, wanted, atol=1e-7, sensitivity=0.1)


def test_compile_with_inductor() -> None:
    x, y = points(40, 3), points(30, 3, seed=1, shift=0.5)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return fastmmd.mmd2(x.tanh() * 2, y, (1.0, 2.0)) + x.square().mean()

    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):  # a cached graph may hold an older schema
        value, (gradient, _) = value_and_gradients(torch.compile(loss, fullgraph=True), [x, y])
    expected, (wanted, _) = value_and_gradients(loss, [x, y])
    assert_close(value, expected)
    assert_close(gradient, wanted, rows=True, rtol=1e-5)


def test_compile_median_bandwidth() -> None:
    x = points(30, 3)
    torch._dynamo.reset()
    compiled = torch.compile(fastmmd.median_bandwidth, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), fastmmd.median_bandwidth(x))


@every_function
def test_fake_tensors_have_the_real_shapes(backend: str, name: str) -> None:
    function, tensors = arguments(name)
    real, gradients = value_and_gradients(function, tensors)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(t).requires_grad_() for t in tensors]
        out = function(*fakes)
        assert (out.shape, out.dtype) == (real.shape, real.dtype)
        for fake, gradient in zip(torch.autograd.grad(out.sum(), fakes), gradients, strict=True):
            assert (fake.shape, fake.dtype) == (gradient.shape, gradient.dtype)


# --- settings of torch that must not matter ---


LARGE: dict[str, Callable[[], tuple[Callable[..., Tensor], list[Tensor]]]] = {
    "mmd2 large": lambda: (lambda x, y: fastmmd.mmd2(x, y, (1.0, 2.0, 3.0)), [points(700, 5), points(533, 5, seed=1)]),
    "mmd2 labels large": lambda: (
        lambda x, y: fastmmd.mmd2(
            x, y, (1.0, 2.0), x_labels=torch.arange(700) % 3, y_labels=torch.arange(533) % 3, class_weights=[0.5] * 3),
        [points(700, 5), points(533, 5, seed=1)]),
    "mmd2 64": lambda: (lambda x, y: fastmmd.mmd2(x, y, (8.0, 16.0)), [points(300, 64), points(333, 64, seed=1)]),
    "witness large": lambda: (
        lambda p, x, y: fastmmd.witness(p, x, y), [points(n, 5, seed=n) for n in (401, 300, 299)]),
    "fourier_mean large": lambda: (
        lambda x: fastmmd.fourier_mean(x, fastmmd.FourierFeatures(5, 500)), [points(900, 5)]),
    "fourier_function large": lambda: (
        lambda x, c: fastmmd.fourier_function(x, c, fastmmd.FourierFeatures(5, 500)), [points(900, 5), points(1000)]),
    "parzen large": lambda: (lambda x, y: fastmmd.parzen_log_likelihood(x, y, 0.5), [points(300, 20), points(500, 20)]),
}  # fmt: skip


@pytest.mark.parametrize("name", [*FUNCTIONS, *LARGE])
def test_settings_of_precision_change_nothing(backend: str, name: str) -> None:
    """bfloat16 autocast and the precision of float32 products: the same bits, dtypes included."""
    function, tensors = LARGE[name]() if name in LARGE else arguments(name)
    value, gradients = value_and_gradients(function, tensors)
    runs = []
    with torch.autocast("cpu", torch.bfloat16):
        runs.append(value_and_gradients(function, tensors))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        runs.append(value_and_gradients(function, tensors))
    finally:
        torch.set_float32_matmul_precision(before)
    for again, gradients_again in runs:
        for a, b in zip([value, *gradients], [again, *gradients_again], strict=True):
            assert torch.equal(a, b) and a.dtype == b.dtype


@pytest.mark.parametrize("name", LARGE)
def test_the_same_bits_run_after_run(backend: str, name: str) -> None:
    """Also at another number of threads, for our own loops; products by BLAS keep their bits at a fixed number."""
    function, tensors = LARGE[name]()
    runs = []
    own_loops = backend == "native" and name in ("mmd2 large", "mmd2 labels large", "witness large")
    for threads in (2, 2, 1) if own_loops else (2, 2):
        torch.set_num_threads(threads)
        value, gradients = value_and_gradients(function, tensors)
        runs.append([value, *gradients])
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


MEMORY = """
import resource, sys, torch, fastmmd
torch.set_num_threads(2)
def run(n):
    x, y = torch.randn(n, 2, requires_grad=True), torch.randn(n, 2)
    with fastmmd.backend(sys.argv[1]):
        fastmmd.mmd2(x, y, (1.0,)).backward()
        fastmmd.witness(y[:n // 2], x, y, (1.0,)).sum().backward()
        fastmmd.fourier_mean(x, fastmmd.FourierFeatures(2, n // 2)).sum().backward()
        fastmmd.parzen_log_likelihood(x, y[:n // 2], 1.0).sum().backward()
run(2000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(6000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_is_linear(backend: str) -> None:
    """A 6000 x 6000 float32 matrix would take 137 MiB, the smallest here 69 MiB; tiles take a few MiB."""
    done = subprocess.run([sys.executable, "-c", MEMORY, backend], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 40


def test_an_empty_batch_has_empty_gradients(backend: str) -> None:
    x = torch.zeros(0, 5, 3, requires_grad=True)
    features = fastmmd.FourierFeatures(3, 8)
    for value in (
        fastmmd.mmd2(x, points(4, 3)),
        fastmmd.mmd2_to_prior(x, fastmmd.priors.Gaussian(3)),
        fastmmd.fourier_mean(x, features).sum(-1),
    ):
        assert value.shape == (0,)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert gradient.shape == x.shape


@pytest.mark.parametrize("name", ["mmd2", "mmd2_to_prior", "witness", "fourier_mean", "fourier_function", "parzen"])
def test_forward_mode_raises(name: str) -> None:
    x, y, features = points(6, 3), points(5, 3, seed=1), fastmmd.FourierFeatures(3, 4)
    function = {
        "mmd2": lambda a: fastmmd.mmd2(a, y),
        "mmd2_to_prior": lambda a: fastmmd.mmd2_to_prior(a, fastmmd.priors.Gaussian(3)),
        "witness": lambda a: fastmmd.witness(y, y, a),
        "fourier_mean": lambda a: fastmmd.fourier_mean(a, features),
        "fourier_function": lambda a: fastmmd.fourier_function(a, torch.ones(8), features),
        "parzen": lambda a: fastmmd.parzen_log_likelihood(y, a, 1.0),
    }[name]
    with pytest.raises(RuntimeError, match="reverse mode only"):
        torch.func.jvp(function, (x,), (torch.ones_like(x),))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="reverse mode only"):
        function(forward_ad.make_dual(x, torch.ones_like(x)))


def test_activation_checkpointing(backend: str) -> None:
    x, y = points(6, 3).requires_grad_(), points(5, 3, seed=1)
    for function in (lambda a: fastmmd.mmd2(a, y), lambda a: fastmmd.mmd2_to_prior(a, fastmmd.priors.Gaussian(3))):
        (plain,) = torch.autograd.grad(function(x), x)
        (again,) = torch.autograd.grad(checkpoint(function, x, use_reentrant=False), x)
        assert torch.equal(plain, again)
