"""What every operator owes PyTorch's dispatcher: opcheck, one dispatch a call, other kernels between, undefined and
batched gradients, torch.compile, fake tensors."""

from __future__ import annotations

import math
import sys

import pytest
import torch
import torch._inductor.config
from helpers import F64, assert_close, leaf, points, positive, value_and_gradients
from operator_cases import arguments, every_function
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastmmd


def operator_cases(backend: str) -> dict[str, tuple]:
    """Arguments of every operator in torch.ops.fastmmd."""
    x, y, s, w = points(2, 7, 3), points(2, 5, 3, seed=1), positive(2), positive(2, seed=1)
    p, q, weights = x[0], y[0], positive(5)
    features = (torch.tensor([3, 4]), 6, [1.0, 2.0], [1.0, 0.5])
    minimum, sums = torch.full((7,), math.inf), torch.zeros(2, 7, dtype=F64)
    kernel = (s, w, [1.0], "imq")

    def leaves(*tensors: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(leaf(t) for t in tensors)

    state = torch.ops.fastmmd.parzen_update(p, q, minimum, sums, [0.5, 1.0], backend)
    return {
        "mmd2": (
            *leaves(x, y, positive(2, 7), positive(2, 5), s, w),
            None,
            *kernel[2:],
            True,
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
    """fastmmd::NAME, and fastmmd::_NAME, its kernel, which is only called below autograd."""
    cases = operator_cases(backend)
    assert set(operator_names()) == set(cases) | {f"_{case}" for case in cases}
    arguments = cases[name.removeprefix("_")]
    if name.startswith("_"):
        arguments = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
    torch.library.opcheck(getattr(torch.ops.fastmmd, name).default, arguments)


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
