"""What holds for the CUDA kernels alone: no result depends on the order in which threads and blocks run, nothing is
read on the host, all specialized dimensions and the way by products meet the bounds."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest
import torch
from helpers import F32, F64, FULL, leaf, points, positive
from test_mmd import check
from test_triton import CALLS, NothingRead, check_segments_that_have_no_value
from torch import Tensor

import fastmmd
from fastmmd.backends.cuda import library, mmd

ON_HOST = "FASTMMD_CUDA_ON_HOST" in os.environ


@pytest.fixture(autouse=True)
def _on_cuda(backend: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs on the CUDA kernels, and takes products for few points too."""
    if backend != "native" or (request.config.getoption("--device") == "cpu" and not ON_HOST):
        pytest.skip("needs the CUDA kernels, on a GPU or from make cuda-on-host")
    monkeypatch.setattr(mmd, "DIRECT_WORK", 0)


def all_gradients(dim: int) -> list[Tensor]:
    """mmd2 with everything differentiable, witness with its gradients."""
    x, y = leaf(points(75, dim, seed=1)), leaf(points(90, dim, seed=2))
    wx, s = leaf(positive(75, seed=3)), leaf(torch.linspace(0.7, 9.0, 3))
    value = fastmmd.mmd2(x, y, s, x_weights=wx, estimator="unbiased")
    there = fastmmd.witness(points(40, dim, seed=4), x, y, s)
    return [value.detach(), there.detach(), *torch.autograd.grad(value + there.square().sum(), (x, y, wx, s))]


CALLS = [*CALLS, *(pytest.param(all_gradients, dim, id=f"all_gradients-{dim}") for dim in (3, 20, 70))]


@pytest.mark.skipif(not ON_HOST, reason="a launch on a GPU is too short to tell")
def test_other_threads_run_during_a_launch(backend: str) -> None:
    """Which on the host lasts as long as the kernel does."""
    x, y = points(600, 3, seed=1), points(600, 3, seed=2)

    def call() -> None:
        with fastmmd.backend(backend):
            fastmmd.mmd2(x, y)

    worker, start, turns = threading.Thread(target=call), time.perf_counter(), 0
    worker.start()
    while worker.is_alive():
        time.sleep(0.002)
        turns += 1
    took = time.perf_counter() - start
    assert took > 0.1, "too short to tell"
    assert turns > 20 * took, "the launch kept the interpreter's lock"


@pytest.mark.parametrize(("call", "dim"), CALLS)
def test_order_of_threads_changes_no_bit(
    call: Callable[[int], list[Tensor]], dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A barrier that is missing would let a thread read what another has not written yet, or has overwritten."""
    first = call(dim)
    monkeypatch.setenv("FASTMMD_HOST_ORDER", "reversed")
    assert all(torch.equal(*pair) for pair in zip(first, call(dim), strict=True))


@pytest.mark.parametrize(("call", "dim"), CALLS)
def test_nothing_is_read_on_the_host(call: Callable[[int], list[Tensor]], dim: int) -> None:
    with NothingRead():
        call(dim)


@pytest.mark.parametrize("dim", range(1, 18) if FULL else [*range(1, 7), 17])
@pytest.mark.parametrize("needs", [(True, False), (False, False)])
def test_every_specialized_dimension(dim: int, needs: tuple[bool, bool]) -> None:
    """With odd rests of rows and columns, and both signs of far and near bandwidths."""
    x, y = points(261, dim, seed=1), points(131, dim, seed=2, shift=0.2)
    bandwidths = [0.3 * dim**0.5, 3.0 * dim**0.5, 5.0 * dim**0.5, 12.0 * dim**0.5]
    check(x, y, bandwidths)
    value = fastmmd.mmd2(x.clone().requires_grad_(needs[0]), y, bandwidths)
    exact = fastmmd.mmd2(x.to(F64), y.to(F64), bandwidths)
    torch.testing.assert_close(value.to(F64), exact, rtol=1e-6, atol=2e-7 * 4 / 131)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", ["gaussian", "imq", "rational_quadratic"])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_products(kernel: str, estimator: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several tiles with an odd rest, with every gradient."""
    monkeypatch.setattr(mmd, "TILE", 48)
    x, y = points(150, 60, seed=1, dtype=dtype), points(70, 60, seed=2, dtype=dtype, shift=0.1)
    scales, weights = torch.tensor([4.0, 8.0, 20.0], dtype=dtype), torch.tensor([1.0, 0.5, 2.0], dtype=dtype)
    x_weights, y_weights = positive(150, seed=3, dtype=dtype), positive(70, seed=4, dtype=dtype)
    check(x, y, scales, kernel, estimator, weights, x_weights, y_weights)
    check(x.view(2, 75, 60), y.view(2, 35, 60), [4.0, 8.0, 20.0], kernel, estimator)
    value = fastmmd.mmd2(x, y, [4.0, 8.0, 20.0], kernel=kernel, estimator=estimator)  # half of the tiles
    exact = fastmmd.mmd2(x.to(F64), y.to(F64), [4.0, 8.0, 20.0], kernel=kernel, estimator=estimator)
    torch.testing.assert_close(value.to(F64), exact, rtol=1e-6, atol=2e-7 * 3 / 70)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("dim", [3, 20])
def test_segments_that_have_no_value(dim: int, unbiased: bool) -> None:
    check_segments_that_have_no_value("native", dim, unbiased)


def test_many_bandwidths() -> None:
    """They travel with a launch, up to 128 of them."""
    x, y = points(40, 3, seed=1), points(50, 3, seed=2)
    bandwidths = [0.5 * 1.03**k for k in range(129)]
    check(x, y, bandwidths[:128])
    with pytest.raises(ValueError, match="bandwidths: got 129, the CUDA kernels take at most 128"):
        fastmmd.mmd2(x, y, bandwidths)


@pytest.mark.parametrize(("dtype", "size"), [(F32, 1e-17), (F64, 1e-100)])
def test_tiny_bandwidths_of_imq(dtype: torch.dtype, size: float) -> None:
    """The constant s^2 is clamped where its reciprocal is no normal number, which is further down in double."""
    x, y = points(40, 3, seed=1, dtype=dtype) * size, points(50, 3, seed=2, dtype=dtype) * size
    bandwidths = [size, 3 * size]
    value = fastmmd.mmd2(x, y, bandwidths, kernel="imq")
    exact = fastmmd.mmd2(x / size, y / size, [1.0, 3.0], kernel="imq")
    torch.testing.assert_close(value, exact, rtol=1e-4 if dtype == F32 else 1e-10, atol=0)


def test_tasks_are_filled_by_field_name() -> None:
    """A field that is missing, unknown or of another type is an error that names it."""
    module = library.load()
    fields = {"is_double": False, "count": 8, "dim": 3, "points": 256, "norms": 256}
    module.ParzenNorms(**fields)
    names = "is_double count dim points norms"
    with pytest.raises(TypeError, match=f"ParzenNorms: expected the fields {names}; got count$"):
        module.ParzenNorms(count=8)
    with pytest.raises(TypeError, match=f"ParzenNorms: expected the fields {names}; got {names} seed$"):
        module.ParzenNorms(**fields, seed=1)
    with pytest.raises(TypeError, match="got is_double count dim points norm$"):
        module.ParzenNorms(**{"norm" if name == "norms" else name: value for name, value in fields.items()})
    with pytest.raises(TypeError, match="incompatible"):
        module.ParzenNorms(*fields.values())
    with pytest.raises(TypeError, match=r"ParzenNorms.count: got 'eight'"):
        module.ParzenNorms(**fields | {"count": "eight"})
    with pytest.raises(TypeError, match=r"ParzenNorms.is_double: got 1: expected a bool"):
        module.ParzenNorms(**fields | {"is_double": 1})


FEATURES = {"key": 256, "count": 8, "bandwidths": (1.0, 2.0), "kernel_weights": (1.0, 1.0)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "expected the fields key count bandwidths kernel_weights; got key .* seed$"),
        ({"bandwidths": (1.0,) * 129}, r"Features.bandwidths: got .*: expected at most 128 numbers"),
        ({"bandwidths": "wide"}, r"Features.bandwidths: got 'wide'"),
        ({"kernel_weights": (1.0,)}, "kernel_weights: expected one for each bandwidth"),
        ({"count": 9}, "count: expected a multiple of the number of bandwidths"),
    ],
)
def test_nested_fields(changed: dict[str, object], message: str) -> None:
    """The same holds for what a task nests."""
    task = {"is_double": False, "dim": 3, "out": 256}
    library.load().FourierFrequencies(**task, features=FEATURES)
    with pytest.raises(TypeError, match=f"FourierFrequencies.features: got .*{message}"):
        library.load().FourierFrequencies(**task, features=FEATURES | changed)
