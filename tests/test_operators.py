"""What every operator owes its callers: gradcheck, no silent second derivative, no gradient that is not needed,
autocast, matmul precision, determinism, linear memory. And the proof that `assert_close` can fail."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from helpers import F32, F64, INTERPRETED, assert_close, leaf, points, positive, value_and_gradients
from memory import measured
from operator_cases import FUNCTIONS, arguments, every_function
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fastmmd
from fastmmd import priors
from fastmmd.ops import parzen

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
    x, y, kernel = points(1, 6, 2), points(1, 5, 2, seed=1), ([1.0, 1.0, 1.0], "gaussian")
    for needs, wanted in (
        ([False] * 6, []),
        ([True] + [False] * 5, [(1, 6, 2)]),
        ([False, True, False, True, False, True], [(1, 5, 2), (1, 5), (1, 1)]),
    ):
        out = torch.ops.fastmmd.mmd2(x, y, *[None] * 5, *kernel, [False, False], needs, backend)
        assert out[0].shape == (1,)
        assert [tuple(t.shape) for t in out[1:] if t.numel()] == wanted


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
import sys, torch, fastmmd
from fastmmd.backends.reference import tiles
tiles.TILE_ELEMENTS //= 8
torch.set_num_threads(2)
def run(n):
    x, y = torch.randn(n, 2, requires_grad=True), torch.randn(n, 2)
    with fastmmd.backend(sys.argv[1]):
        fastmmd.mmd2(x, y, (1.0,)).backward()
        fastmmd.witness(y[:n // 2], x, y, (1.0,)).sum().backward()
        fastmmd.fourier_mean(x, fastmmd.FourierFeatures(2, n // 2)).sum().backward()
        fastmmd.parzen_log_likelihood(x, y[:n // 2], 1.0).sum().backward()
run(1000)
before = peak()
run(6000)
print(peak() - before)
"""


def test_memory_is_linear(backend: str) -> None:
    """A 6000 x 6000 float32 matrix would take 137 MiB, the smallest here 69 MiB; tiles take a few."""
    (grown,) = measured(MEMORY, backend)
    assert grown < 35


class Deterministic(TorchDispatchMode):
    """Refuses what raises on a GPU under torch.use_deterministic_algorithms(True), as torch documents it; `allowed`
    is what a GPU does not come to."""

    def __init__(self, allowed: str = "") -> None:
        super().__init__()
        self.allowed = allowed

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::")
        refused = {"median.dim", "nanmedian.dim", "kthvalue", "histc", "bincount", "put_"} - {self.allowed}
        assert name not in refused, name
        assert not (name.startswith("cumsum") and args[0].is_floating_point()), name
        return function(*args, **(kwargs or {}))


@every_function
def test_every_step_is_deterministic(backend: str, name: str) -> None:
    function, tensors = arguments(name)
    with Deterministic("nanmedian.dim" if name == "parzen" else ""):
        value_and_gradients(function, tensors)


def test_draws_are_deterministic() -> None:
    for prior in (priors.GaussianMixture(), priors.SwissRoll(), priors.Uniform(2), priors.Gaussian(2)):
        prior.sample(3)  # constants, once on the CPU
        with Deterministic():
            prior.sample(3)


@pytest.mark.parametrize("rows", [1, 2, 7, 8])
def test_deterministic_medians(rows: int) -> None:
    x = points(rows, 5)
    x[: rows // 2, 1] = x[0, 2] = x[:, 3] = math.nan
    with Deterministic():
        medians = parzen.medians(x)
    torch.testing.assert_close(medians, x.nanmedian(0).values, rtol=0, atol=0, equal_nan=True)


def test_deterministic_mode_refuses() -> None:
    with Deterministic(), pytest.raises(AssertionError, match=r"nanmedian\.dim"):
        torch.ones(3, 2).nanmedian(0)


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
