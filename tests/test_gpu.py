"""What only a GPU shows: CUDA graphs, streams, a second device, TF32 switched on by the caller.

pytest tests/test_gpu.py --device cuda --backends native,triton
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from helpers import F32, F64, points
from operator_cases import FUNCTIONS, arguments
from torch import Tensor

import fastmmd
from fastmmd.device_cache import constant

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
#: A test of labels makes them from the host's numbers, which no graph captures.
CAPTURED = [name for name in FUNCTIONS if "labels" not in name]


@pytest.fixture(autouse=True)
def on_gpu(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("runs with --device cuda")


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def step(function: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    value = function(*leaves)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]


def leaves_of(name: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    function, tensors = arguments(name)
    return function, [tensor.requires_grad_() for tensor in tensors]


def same(results: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(one.cpu(), other.cpu()) for one, other in zip(results, expected, strict=True))


@pytest.mark.parametrize("name", CAPTURED)
def test_graph(backend: str, name: str) -> None:
    """Captured and run on other points: as without a graph, also once the constants it read had to make room."""
    function, leaves = leaves_of(name)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(function, leaves)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(function, leaves)
    for value in range(1100):
        constant((value + 0.25,), leaves[0].device, F64)
    gc.collect()
    with torch.no_grad():
        for leaf in leaves:
            leaf.mul_(1.25)
    graph.replay()
    expected = step(function, leaves)
    torch.cuda.synchronize()
    assert same(results, expected) and all(result.isfinite().all() for result in results)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_stream_of_the_caller(backend: str, name: str) -> None:
    """Which is busy: whatever did not wait for it would read points that are not there yet."""
    function, leaves = leaves_of(name)
    expected = step(function, leaves)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        busy = torch.ones(4096, 4096)
        for _ in range(20):
            busy = (busy @ busy).clamp(-1, 1)
        late = [(leaf.detach() + 0 * busy[0, 0]).requires_grad_() for leaf in leaves]
        results = step(function, late)
    stream.synchronize()
    assert same(results, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", CAPTURED)
def test_second_device(backend: str, name: str) -> None:
    """While the first one is current."""
    function, leaves = leaves_of(name)
    expected = step(function, leaves)
    there = [leaf.detach().to("cuda:1").requires_grad_() for leaf in leaves]
    with torch.device("cuda:1"):
        results = step(function, there)
    assert torch.cuda.current_device() == 0 and {result.device.index for result in results} == {1}
    assert same(results, expected)


def test_tf32_is_left_alone(backend: str, tf32: None) -> None:
    """Products of float32 points keep float32's digits, and the caller keeps TF32."""
    x, y = points(300, 784, seed=1).requires_grad_(), points(200, 784, seed=2)
    value = fastmmd.mmd2(x, y, (28.0,))
    (gradient,) = torch.autograd.grad(value, x)
    density = fastmmd.parzen_log_likelihood(x.detach(), y, (0.5, 1.0))
    with fastmmd.backend("reference"):
        wide = x.detach().to(F64).requires_grad_()
        expected = fastmmd.mmd2(wide, y.to(F64), (28.0,))
        (slope,) = torch.autograd.grad(expected, wide)
        exact = fastmmd.parzen_log_likelihood(wide.detach(), y.to(F64), (0.5, 1.0))
    assert gradient.dtype == F32
    assert float((value - expected).abs()) <= 1e-6 * float(expected) + 2e-9
    assert float((gradient - slope).norm(dim=1).max()) <= 2e-6 * float(slope.norm(dim=1).max())
    assert float((density - exact).abs().max()) <= 0.005
    assert torch.get_float32_matmul_precision() == "high"


def test_constant_made_on_a_busy_stream() -> None:
    """Any other stream may read it at once, and whoever made it has not waited for its own stream."""
    device = torch.empty(0).device
    busy_stream, other = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(busy_stream):
        busy = torch.ones(4096, 4096)
        for _ in range(50):
            busy = (busy @ busy).clamp(-1, 1)
        made = constant((0.7123, 0.7124), device, F64)
        waited = busy_stream.query()
    with torch.cuda.stream(other):
        read = made.clone()
    other.synchronize()
    assert read.tolist() == [0.7123, 0.7124] and not waited
