"""The one comparison of the test-suite, its tolerances, and the inputs that many tests share."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, multiprocessing

F32, F64 = torch.float32, torch.float64
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
FULL = os.environ.get("FASTMMD_TEST_FULL") == "1"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
#: Kernels of a GPU on the CPU, interpreted or under sanitizers: a test may do less with them unless all is asked for.
EMULATED = not FULL and (INTERPRETED or "FASTMMD_CUDA_ON_HOST" in os.environ)

# One relative tolerance per compute dtype. float32: the contract's bound for gradients, 2e-6, about 32 units of 2^-24;
# a distance, an exponential and a product each round a few times, and sums are float64. float64: the same operations
# at 2^-53 are 4e-15, but there the sums over up to 1e4 terms round as well, in the oracle too.
RTOL = {F32: 2e-6, F64: 1e-12}


def assert_close(
    actual: Tensor,
    expected: Tensor,
    *,
    rtol: float | None = None,
    atol: float | Tensor = 0.0,
    rows: bool = False,
    sensitivity: float = 1e-3,
) -> None:
    """|actual - expected| <= atol + rtol * largest |expected|, both finite, of one shape.

    A comparison that zeros, or the expectation times 1 + sensitivity, would also pass fails: it tests nothing.

    Args:
        rtol: RTOL of actual's dtype by default.
        rows: compare the norms of rows [..., N, D] with the largest row norm of each [N, D].
    """
    assert actual.shape == expected.shape, f"shape {list(actual.shape)}, expected {list(expected.shape)}"
    rtol = RTOL[actual.dtype] if rtol is None else rtol
    actual, expected = actual.detach().to(F64), expected.detach().to(actual.device, F64)
    atol = atol.to(actual.device) if isinstance(atol, Tensor) else atol
    assert expected.isfinite().all(), "the expectation is not finite"
    assert actual.isfinite().all(), f"{int((~actual.isfinite()).sum())} entries are not finite"
    error, size = actual - expected, expected
    if rows:
        error, size = error.norm(dim=-1), expected.norm(dim=-1)
        largest = size.amax(-1, keepdim=True)
    else:
        error, size = error.abs(), size.abs()
        largest = size.max()
    bound = atol + rtol * largest
    if bool((size > 0).any()):
        assert bool((sensitivity * size > bound).any()), (
            f"the tolerance {float(torch.as_tensor(bound).max()):.3g} would accept results wrong by a factor "
            f"{1 + sensitivity:g}; the expectation is at most {float(size.max()):.3g}"
        )
    excess = (error - bound).max()
    assert excess <= 0, f"largest error {float(error.max()):.3g}, {float((error / bound).max()):.3g} times the bound"


def points(*shape: int, seed: int = 0, dtype: torch.dtype = F32, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Reproducible normal points on the default device; drawn in float64 and rounded: dtypes hold the same points."""
    z = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64, device="cpu")
    return (shift + scale * z).to(torch.get_default_device(), dtype)


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = F32) -> Tensor:
    """Reproducible numbers in [0, 1), drawn in their dtype, on the default device."""
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype, device="cpu")
    return drawn.to(torch.get_default_device())


def positive(*shape: int, seed: int = 0, dtype: torch.dtype = F32) -> Tensor:
    """Reproducible weights in (0.2, 1.2), on the default device."""
    return (0.2 + uniform(*shape, seed=seed, dtype=F64)).to(dtype)


def leaf(tensor: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
    """A copy that gradients arrive in."""
    return None if tensor is None else tensor.detach().clone().to(dtype or tensor.dtype).requires_grad_()


def value_and_gradients(
    function: Callable[..., Tensor], tensors: Sequence[Tensor | None], dtype: torch.dtype | None = None, seed: int = 99
) -> tuple[Tensor, list[Tensor | None]]:
    """function(*leaves) and the gradients of a fixed random projection of it, None for tensors that are None."""
    leaves = [leaf(tensor, dtype) for tensor in tensors]
    out = function(*leaves)
    cotangent = positive(*out.shape, seed=seed).to(out.dtype)
    wanted = [tensor for tensor in leaves if tensor is not None]
    gradients = iter(torch.autograd.grad(out, wanted, cotangent))
    return out, [None if tensor is None else next(gradients) for tensor in leaves]


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """The same, bit for bit, through dictionaries and lists."""
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for number, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_same(left, right, f"{where}[{number}]")
    else:
        assert a == b, where


@contextmanager
def benchmark_modules(*names: str) -> Iterator[SimpleNamespace]:
    """Of the folder benchmarks; they set environment variables, which shall not reach other tests."""
    environment = dict(os.environ)
    sys.path.insert(0, str(BENCHMARKS))
    modules = {name: importlib.import_module(name) for name in names}
    os.environ.clear()
    os.environ.update(environment)
    yield SimpleNamespace(**modules)
    sys.path.remove(str(BENCHMARKS))


def of_ranks(replica: Callable[[int, str], None], count: int, folder: Path) -> list[Any]:
    """What each of so many processes leaves in FOLDER/RANK.pt, called as replica(rank, folder)."""
    multiprocessing.spawn(replica, (str(folder),), count)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]
