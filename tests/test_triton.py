"""What holds for the Triton backend alone: tuning changes no result, and nothing is read on the host."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from helpers import F32, F64, INTERPRETED, leaf, points, positive
from test_mmd import check
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import GridExecutor

import fastmmd
from fastmmd import device_cache
from fastmmd.backends import current, select
from fastmmd.backends.calls import Mmd2, Mmd2Inputs, Sample
from fastmmd.backends.triton.launch import FUSED, TUNED_PAIRS, tuned
from fastmmd.kernels import Kernel
from fastmmd.ops.fourier import fourier_ascent, fourier_discrepancy
from fastmmd.ops.mmd.operators import mmd2_members


@pytest.fixture(autouse=True)
def runs(device: torch.device) -> None:
    if not INTERPRETED and device.type == "cpu":
        pytest.skip("needs the interpreter, TRITON_INTERPRET=1, or a GPU, --device cuda")


def mmd2(dim: int, dtype: torch.dtype = F32) -> list[Tensor]:
    x = leaf(points(150, dim, seed=1, dtype=dtype))
    value = fastmmd.mmd2(x, points(170, dim, seed=2, dtype=dtype))
    return [value.detach(), torch.autograd.grad(value, x)[0]]


OFFSETS = torch.tensor([[0, 40, 40, 145], [0, 30, 30, 165]], device="cpu")


def segments(dim: int) -> list[Tensor]:
    """mmd2 of classes, one of them empty, and of points of none: the operator, since on the CPU mmd2 reads labels."""
    x, w = leaf(points(1, 150, dim, seed=1)), leaf(positive(1, 150, seed=3))
    needs = [True, False, True, False, False, False]
    tensors = (x, points(1, 170, dim, seed=2), w, None, None, None, OFFSETS.to(x.device))
    value, *_ = mmd2_members(*tensors, [1.0, 1.0, 3.0, 1.0, 1.0], "gaussian", [False, False], needs, current())
    return [value.detach(), *torch.autograd.grad(value.sum(), (x, w))]


def fourier(dim: int) -> list[Tensor]:
    x, features, alpha = leaf(points(150, dim, seed=1)), fastmmd.FourierFeatures(dim, 130), torch.ones(130)
    mean = fastmmd.fourier_mean(x, features)
    delta = fourier_discrepancy(x, points(150, dim, seed=2), alpha, features)
    gradients = [torch.autograd.grad(value, x)[0] for value in (mean[::3].sum(), delta)]
    fourier_ascent(alpha, x.detach(), points(150, dim, seed=3), features, 0.1)
    return [mean.detach(), delta.detach(), *gradients, alpha]


def parzen(dim: int, dtype: torch.dtype = F32) -> list[Tensor]:
    x = leaf(points(150, dim, seed=1, dtype=dtype))
    value = fastmmd.parzen_log_likelihood(x, points(170, dim, seed=2, dtype=dtype), (0.5, 1.0))
    return [value.detach(), torch.autograd.grad(value.sum(), x)[0]]


CALLS = [
    pytest.param(call, dim, id=f"{call.__name__}-{dim}")
    for call in (mmd2, segments, fourier, parzen)
    for dim in (3, 70)
]


TUNED = {3: (mmd2, segments, fourier), 70: (mmd2, parzen)}


@pytest.mark.parametrize(("call", "dim"), CALLS)
def test_tuning_changes_no_result(call: Callable[[int], list[Tensor]], dim: int, monkeypatch: Any) -> None:
    """Every kernel in the last of its configurations gives what it gives in the first, to the bit."""
    several = []

    def last(kernel: Any, pairs: int, *choices: dict[str, int]) -> tuple[Any, dict[str, Any]]:
        several.append(len(choices) > 1)
        return kernel, choices[-1] | FUSED

    with fastmmd.backend("triton"):
        first = call(dim)
        for module in ("mmd.sums", "fourier", "parzen"):
            monkeypatch.setattr(import_module(f"fastmmd.backends.triton.{module}"), "tuned", last)
        again = call(dim)
    assert any(several) == (call in TUNED[dim])
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("dim", [3, 20])
def test_segments_that_have_no_value(dim: int, unbiased: bool) -> None:
    check_segments_that_have_no_value("triton", dim, unbiased)


def check_segments_that_have_no_value(backend: str, dim: int, unbiased: bool) -> None:
    """Without points on one side, or with one where two are needed: NaN, and so its points' gradients. Without points
    on both sides: 0. The others, and points of none, know nothing of it."""
    x, y = points(1, 40, dim, seed=1), points(1, 43, dim, seed=2)
    sizes = [(0, 4), (5, 0), (0, 0), (1, 3), (6, 1), (20, 30)]
    offsets = [torch.tensor([0, *counts]).cumsum(0) for counts in zip(*sizes, strict=True)]
    kernel = Kernel("gaussian", (1.0, 3.0), (1.0, 1.0))
    mmd2 = select(backend, "mmd", x.device).mmd2
    every = Mmd2Inputs(*[True] * 6)
    samples = Sample(x, positive(1, 40), offsets[0]), Sample(y, None, offsets[1])
    value, gradients = mmd2(Mmd2(*samples, kernel, unbiased, every))
    one = Sample(x[:, 12:32], positive(1, 40)[:, 12:32]), Sample(y[:, 8:38])
    last, others = mmd2(Mmd2(*one, kernel, unbiased, every))
    alone = unbiased
    assert value.isnan().tolist() == [True, True, False, alone, alone, False]
    assert value[2] == 0 and value[5] == pytest.approx(float(last), rel=1e-6)
    for gradient, other, at in zip(gradients, others, (slice(12, 32), slice(8, 38)) * 2 + (5, 5), strict=True):
        of_last = gradient[0, at] if gradient.shape[0] == 1 else gradient[at]
        torch.testing.assert_close(of_last, other[0], rtol=1e-5, atol=1e-6)
        if gradient.shape[0] > 1:
            assert (gradient[2] == 0).all() and gradient[:2].isnan().all()
        elif at.stop == 32:
            assert gradient[0, :5].isnan().all() and (gradient[0, 32:] == 0).all()
            assert bool(gradient[0, 5:12].isnan().all()) == alone == bool(gradient[0, 5:12].isnan().any())
    assert gradients[1][0, :4].isnan().all() and (gradients[3][0, 38:] == 0).all()


def test_few_pairs_are_not_tuned() -> None:
    choices = {"BLOCK_I": 8}, {"BLOCK_I": 4}
    assert tuned("kernel", TUNED_PAIRS - 1, *choices) == ("kernel", choices[0] | FUSED)


@pytest.mark.parametrize(("outlier", "dtype", "expected"), [(0, F32, 1), (1000, F32, 0), (0, F64, 0)])
def test_wide_bandwidths_fold(outlier: float, dtype: torch.dtype, expected: int, monkeypatch: Any) -> None:
    """Into a series, where no pair is too far apart for it and float32 needs no more digits."""
    folded = []

    def recorded(*arguments: Any, **options: Any) -> Any:
        made = plan(*arguments, **options)
        folded.append(int(made.terms[0, -1]))
        return made

    mmd = import_module("fastmmd.backends.triton.mmd.sums")
    plan = mmd.plan
    monkeypatch.setattr(mmd, "plan", recorded)
    x, y = points(60, 3, seed=1, dtype=dtype), points(50, 3, seed=2, dtype=dtype)
    x[7] += outlier
    with fastmmd.backend("triton"):
        check(x, y, [1.0, 5.0, 10.0, 23.0, 40.0])
    assert set(folded) == {expected}


class Operations(TorchDispatchMode):
    """Counts what torch does beside allocations, and beside what the interpreter does for a launch."""

    ALLOCATIONS = ("empty", "new_empty", "new_zeros", "set_", "copy_")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.count += function.overloadpacket.__name__ not in self.ALLOCATIONS
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(("case", "most"), [("plain", 14), ("every gradient", 60), ("segments", 25)])
def test_few_torch_operations_around_launches(case: str, most: int) -> None:
    """They set the speed for few points."""
    x, y = points(1, 40, 3, seed=1), points(1, 43, 3, seed=2)
    weights: list[torch.Tensor | None] = [positive(1, 40), positive(1, 43)]
    offsets: list[torch.Tensor | None] = [torch.tensor([0, 10, 30, 40]), torch.tensor([0, 13, 20, 43])]
    if case != "segments":
        offsets = [None, None]
    if case != "every gradient":
        weights = [None, None]
    samples = [Sample(*given) for given in zip((x, y), weights, offsets, strict=True)]
    needs = Mmd2Inputs(True, *[case == "every gradient"] * 5)
    call = Mmd2(samples[0], samples[1], Kernel("gaussian", (1.0, 2.0), (1.0, 1.0)), False, needs)
    mmd2 = select("triton", "mmd", x.device).mmd2
    mmd2(call)  # constants
    with Operations() as operations:
        mmd2(call)
    assert 0 < operations.count <= most


class NothingRead(TorchDispatchMode):
    """Fails where a tensor's value decides what the host does, or numbers of the host become a tensor: there it waits
    for the device."""

    READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "_unique", "masked_select", "lift_fresh")

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        assert function.overloadpacket.__name__ not in self.READS, function
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(("call", "dim"), CALLS)
def test_nothing_is_read_on_the_host(call: Callable[[int], list[Tensor]], dim: int) -> None:
    with fastmmd.backend("triton"), NothingRead():
        call(dim)
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            points(1, 1).sum().item()
        with pytest.raises(AssertionError, match="lift_fresh"):
            torch.tensor([1.0])


@pytest.mark.parametrize("dim", [3, 20])
def test_no_size_and_no_bandwidth_copies_from_the_host(dim: int) -> None:
    """Of those that no earlier call has had."""
    with fastmmd.backend("triton"), NothingRead():
        for n in (7, 8):
            x, s = leaf(points(n, dim)), (0.1 * n + 0.037, 1.3, 2.6)
            fastmmd.mmd2(x, points(n + 2, dim), s).backward()
            fastmmd.witness(x, points(n, dim), points(4, dim), s).sum().backward()
            fastmmd.fourier_mean(x, fastmmd.FourierFeatures(dim, 20, bandwidths=s[:2], seed=n)).sum().backward()
            fastmmd.parzen_log_likelihood(x, points(n, dim), s).sum().backward()


def test_a_captured_graph_changes_no_result(monkeypatch: Any) -> None:
    """As far as a machine without a GPU shows: constants are made anew, or taken from those that are kept."""
    with fastmmd.backend("triton"):
        expected = [call(3) for call in (mmd2, fourier, parzen)]
        monkeypatch.setattr(device_cache, "capturing", lambda device: True)
        monkeypatch.setattr(device_cache, "_of_graphs", set())
        for _ in range(2):
            got = [call(3) for call in (mmd2, fourier, parzen)]
            device_cache._numbers.cache_clear()
    assert all(torch.equal(*pair) for a, b in zip(got, expected, strict=True) for pair in zip(a, b, strict=True))


@pytest.mark.skipif(not INTERPRETED, reason="the grids are those of the interpreter")
def test_more_members_than_the_further_axes_of_a_grid_hold(monkeypatch: Any) -> None:
    """Which is 65,535; of the grids alone, since so many programs would take an hour here."""
    grids = []

    def record(self: Any, *arguments: Any, **options: Any) -> None:
        named = dict(zip(self.arg_names, arguments, strict=False)) | options
        grid = self.grid(named) if callable(self.grid) else self.grid
        grids.append((self.fn.__name__, *grid))

    monkeypatch.setattr(GridExecutor, "__call__", record)
    members = 70_000
    with fastmmd.backend("triton"):
        for dim in (2, 20):
            x, y = leaf(torch.zeros(members, 2, dim)), torch.zeros(members, 1, dim)
            fastmmd.mmd2(x, y, torch.ones(2, requires_grad=True)).sum().backward()
            fastmmd.fourier_mean(x, fastmmd.FourierFeatures(dim, 6)).sum().backward()
    names = {name for name, *_ in grids}
    assert {"statistics_kernel", "plan_kernel", "small_kernel", "large_kernel", "finish_kernel"} <= names
    assert {"sum_kernel", "function_kernel"} <= names
    for name, first, *others in grids:
        assert first >= members, name
        assert max(others, default=1) <= 65_535, name
