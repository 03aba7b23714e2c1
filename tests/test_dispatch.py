"""What every operator owes PyTorch's dispatcher: opcheck, one dispatch a call, other kernels between, undefined and
batched gradients, torch.compile, fake tensors, torch.func, modes."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import Mock

import pytest
import torch
from helpers import F64, FULL, assert_close, leaf, points, positive, value_and_gradients
from operator_cases import arguments, every_function
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import fastmmd
from fastmmd.ops import dispatch


def operator_cases(backend: str) -> dict[str, tuple]:
    """Arguments of every operator in torch.ops.fastmmd."""
    x, y, s, w = points(2, 7, 3), points(2, 5, 3, seed=1), positive(2), positive(2, seed=1)
    p, q, weights = x[0], y[0], positive(5)
    features = (torch.tensor([3, 4]), 6, [1.0, 2.0], [1.0, 0.5])
    minimum, sums = torch.full((7,), math.inf, dtype=F64), torch.zeros(2, 7, dtype=F64)
    kernel = (s, w, [1.0], "imq")

    def leaves(*tensors: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(leaf(t) for t in tensors)

    state = torch.ops.fastmmd.parzen_update(p, q, minimum, sums, [0.5, 1.0], backend)
    return {
        "mmd2": (
            *leaves(x, y, positive(2, 7), positive(2, 5), s, w),
            None,
            *kernel[2:],
            [True, False],
            [True] * 6,
            backend,
        ),
        "witness": (*leaves(p, q, weights, s, w), *kernel[2:], backend),
        "witness_backward": (points(7), p, q, weights, *kernel, [True, False, True, True, False], backend),
        "fourier_sum": (*leaves(x, positive(2, 7)), *features, backend),
        "fourier_sum_backward": (points(2, 12), x, positive(2, 7), *features, [True, True], backend),
        "fourier_function": (*leaves(x, points(2, 12)), *features, backend),
        "fourier_function_backward": (points(2, 7), x, points(2, 12), *features, [True, False], backend),
        "fourier_discrepancy": (*leaves(p, q), positive(6), *features, True, backend),
        "fourier_discrepancy_backward": (points(), p, q, points(12), *features, [True, True], backend),
        "fourier_ascent": (positive(6), p, q, *features, 0.3, backend),
        "fourier_frequencies": (*features, 3, F64, backend),
        "parzen_log_likelihood": (*leaves(p, q), [0.5, 1.0], backend),
        "parzen_update": (p, q, minimum, sums, [0.5, 1.0], backend),
        "parzen_backward": (points(2, 7), p, q, *state, [0.5, 1.0], [True, True], backend),
        "apply_gradient": (points(2), points(2, 7, 3), x, y, None, None, None, None, False),
    }


def operator_names() -> list[str]:
    return sorted(n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n.startswith("fastmmd::"))


@pytest.mark.parametrize("name", operator_names())
def test_opcheck(backend: str, name: str) -> None:
    """fastmmd::NAME, and fastmmd::_NAME, its kernel, which is only called below autograd. What surrounds the kernels,
    autograd and tracing, is the same for every backend: without all tests the reference is held to its schemas alone.
    """
    cases = operator_cases(backend)
    assert set(operator_names()) == set(cases) | {f"_{case}" for case in cases}
    arguments = cases[name.removeprefix("_")]
    if name.startswith("_"):
        arguments = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
    checks = ["test_schema", "test_faketensor"]
    if backend != "reference" or FULL:
        checks += ["test_autograd_registration", "test_aot_dispatch_dynamic"]
    torch.library.opcheck(getattr(torch.ops.fastmmd, name).default, arguments, test_utils=checks)


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may not be the current one. Every operator and every backward pass is an implementation of `define`."""
    current = []

    @contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        current.append(chosen)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    run = dispatch.prepared(lambda first, *others: (*current, *others))
    assert run(Mock(device=torch.device("cuda:1")), 5) == (torch.device("cuda:1"), 5)
    assert not current
    assert run(torch.ones(1), 5) == (5,)


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
    for result in (backward(True), backward(False), first):
        assert all(map(torch.equal, result, kept))


@every_function
def test_compile_in_one_graph(name: str) -> None:
    """Value and gradients without a graph break, the same numbers as eager. To the graph a backend is a string."""
    function, tensors = arguments(name)
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    value, gradients = value_and_gradients(compiled, tensors)
    expected, expected_gradients = value_and_gradients(function, tensors)
    assert_close(value, expected, atol=1e-7, sensitivity=0.1)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, wanted, atol=1e-7, sensitivity=0.1)


@pytest.mark.skipif(" " in torch.__file__, reason="torch links C++ with itself only where its path has no space")
def test_compile_with_inductor() -> None:
    x, y = points(40, 3), points(30, 3, seed=1, shift=0.5)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return fastmmd.mmd2(x.tanh() * 2, y, (1.0, 2.0)) + x.square().mean()

    from torch._inductor import config  # takes seconds

    torch._dynamo.reset()
    # A cached graph may hold an older schema; more processes take longer to start than one to compile.
    with config.patch(force_disable_caches=True, compile_threads=1):
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


# --- torch.func, tracing and modes ---


@every_function
def test_reverse_mode_transforms(backend: str, name: str) -> None:
    """grad, vjp and jacrev give the gradients of backward(), in all arguments at once."""
    function, tensors = arguments(name)
    every = tuple(range(len(tensors)))
    out, gradients = value_and_gradients(function, tensors)
    cotangent = positive(*out.shape, seed=99)
    transformed = {
        "grad": torch.func.grad(lambda *t: (cotangent * function(*t)).sum(), every)(*tensors),
        "vjp": torch.func.vjp(function, *tensors)[1](cotangent),
        "jacrev": tuple(
            torch.tensordot(cotangent, jacobian, cotangent.ndim)
            for jacobian in torch.func.jacrev(function, every)(*tensors)
        ),
    }
    for result in transformed.values():
        for gradient, expected in zip(result, gradients, strict=True):
            assert_close(gradient, expected, atol=1e-7, sensitivity=0.1)


@every_function
def test_vmap_and_gradients_under_it(name: str) -> None:
    """Slices one by one: the same as a loop."""
    function, (first, *rest) = arguments(name)
    stack = torch.stack([first, first * 1.5])

    def scalar(x: Tensor) -> Tensor:
        return function(x, *rest).sum()

    result = torch.func.vmap(torch.func.grad_and_value(scalar))(stack)
    for i, x in enumerate(stack):
        for whole, alone in zip(result, torch.func.grad_and_value(scalar)(x), strict=True):
            assert_close(whole[i], alone, atol=1e-7, sensitivity=0.1)


@every_function
def test_second_derivatives_of_transforms_raise(name: str) -> None:
    function, (first, *rest) = arguments(name, F64)

    def scalar(x: Tensor) -> Tensor:
        return function(x, *rest).sum()

    with pytest.raises(RuntimeError, match="second derivative"):
        torch.func.grad(lambda x: torch.func.grad(scalar)(x).square().sum())(first)
    with pytest.raises(RuntimeError, match="reverse mode only"):
        torch.func.hessian(scalar)(first)


def test_functional_call() -> None:
    """Parameters of a module as arguments: the loss of an encoder's codes, differentiated by torch.func."""
    encoder, x, y = torch.nn.Linear(4, 3), points(7, 4), points(5, 3, seed=1)
    parameters = dict(encoder.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return fastmmd.mmd2(torch.func.functional_call(encoder, parameters, (x,)), y, (1.0, 2.0))

    gradients = torch.func.grad(loss)(parameters)
    loss(parameters).backward()
    for key, parameter in parameters.items():
        assert parameter.grad is not None
        assert_close(gradients[key], parameter.grad, atol=1e-7, sensitivity=0.1)


class Recorder(TorchDispatchMode):
    """The names of the operators that a mode sees."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.names.append(function.name())
        return function(*arguments, **(named or {}))


@every_function
def test_modes_and_traces_meet_the_operator(name: str) -> None:
    """Not what is inside it: neither in eager calls nor in their gradients."""
    function, tensors = arguments(name)
    graph = make_fx(torch.func.grad(lambda *t: function(*t).sum()))(*tensors).graph
    traced = {str(node.target).removesuffix(".default") for node in graph.nodes if "fastmmd" in str(node.target)}
    assert traced and all(target.startswith("fastmmd._") for target in traced)
    with Recorder() as recorder:
        leaves = [leaf(t) for t in tensors]
        torch.autograd.grad(function(*leaves).sum(), leaves)
    assert {n.replace("::", ".") for n in recorder.names if "fastmmd" in n} <= traced | {"fastmmd._apply_gradient"}
    assert any("fastmmd" in n for n in recorder.names)


def test_the_profiler_names_the_operator() -> None:
    x, y = points(6, 3).requires_grad_(), points(5, 3, seed=1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        fastmmd.mmd2(x, y)
    assert "fastmmd::_mmd2" in {event.key for event in profile.key_averages()}


def test_a_description_first_used_inside_a_transform(backend: str) -> None:
    """What is kept per device outlives the transform in which it was made."""
    features, prior, x = fastmmd.FourierFeatures(3, 8), fastmmd.priors.Gaussian(3), points(5, 3)

    def loss(x: Tensor) -> Tensor:
        return fastmmd.fourier_mean(x, features).sum() + fastmmd.mmd2_to_prior(x, prior)

    inside = torch.func.vmap(torch.func.grad(loss))(x[None])[0]
    leaf_ = leaf(x)
    loss(leaf_).backward()
    assert_close(inside, leaf_.grad, atol=1e-7, sensitivity=0.1)
    assert_close(torch.func.grad(loss)(x), leaf_.grad, atol=1e-7, sensitivity=0.1)
