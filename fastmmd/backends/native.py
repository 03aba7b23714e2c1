"""The compiled C++ kernels: loads the module on first use and passes addresses and sizes.

torch is imported before the module, so that the module finds torch's OpenMP runtime loaded and shares it.
Matrix products are torch's; csrc holds what is fused around them.

A forked process has none of OpenMP's threads and waits for ever on entering it, so from the import of this module on
a forked child computes on one thread, torch's own operations included (torch.set_num_threads(1), as in the workers of
a DataLoader).
"""

# Wheels of torch before about 2.10 carry libgomp under a name of their own (libgomp-<hash>.so.1). There the module
# loads the system's libgomp.so.1 beside it: two pools of threads, which take turns, and two to keep out of a fork.

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .specs import FeatureSpec, KernelSpec

PARZEN_DIRECT_DIMS = 16  # up to here distances by differences cost less than a matrix product
PARZEN_ROWS, PARZEN_COLUMNS = 1024, 1024  # products large enough for BLAS, small enough for the cache
PARZEN_LARGEST_EXPONENT = 9000  # |x|^2 / (2 sigma^2); four roundings of 2^-24 of it are 0.002
REINSTALL = (
    "install a C++17 compiler with OpenMP and Python's headers (Debian, Ubuntu: apt install g++ python3-dev) and "
    "reinstall: pip install --force-reinstall --no-deps . in a checkout, else "
    "pip install --force-reinstall --no-deps --no-binary fastmmd fastmmd"
)
LIBGOMP = "install GCC's OpenMP runtime (Debian, Ubuntu: apt install libgomp1; others: libgomp)"

_forked = False


def _after_fork() -> None:
    """Keep the child out of OpenMP: our loops, and the torch operations around them, which would hang as well."""
    global _forked
    _forked = True
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@cache
def _library() -> Any:
    """The compiled module.

    Raises:
        ImportError: it is missing or cannot be loaded.
        ValueError: FASTMMD_CPU_CAPABILITY names what cannot run here.
    """
    module = importlib.import_module("fastmmd._native")
    module.capability()  # chooses the instruction set
    return module


def unavailable(device_type: str) -> str | None:
    """Why the native kernels cannot run on this device type and what to do; None where they can."""
    if device_type != "cpu":
        return 'the native kernels of this version are for CPU tensors; use backend("auto") or move the tensors'
    if importlib.util.find_spec("fastmmd._native") is None:
        return f"fastmmd was installed without its native code; {REINSTALL}"
    try:
        _library()
    except ImportError as error:
        remedy = LIBGOMP if "libgomp" in str(error) else REINSTALL
        return f"its native code cannot be loaded ({error}); {remedy}"
    return None


def unsupported(operation: str, dtype: torch.dtype, device_type: str) -> str | None:
    """Why a call in this compute dtype cannot run; None where it can."""
    if dtype not in (torch.float32, torch.float64):
        return f"native {operation} computes in float32 or float64, not in {dtype}; convert the tensors"
    return unavailable(device_type)


def capability() -> dict[str, str | int]:
    """The instruction set that runs, the threads it gets and what was built."""
    library = _library()
    return {"capability": library.capability(), "threads": _threads(), "build": library.build_summary}


def mmd2(
    x: Tensor,
    y: Tensor | None,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    kernel: KernelSpec,
    unbiased: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Value [B] in float64 and six gradients; see `specs.Backend.mmd2`."""
    batch, n, dim = x.shape
    m = 0 if y is None else y.shape[1]
    count = len(kernel.bandwidths)
    has_y = y is not None
    value = x.new_empty(batch, dtype=torch.float64)
    grads = (
        x.new_empty((batch, n, dim) if needs[0] else 0),
        x.new_empty((batch, m, dim) if needs[1] and has_y else 0),
        x.new_empty((batch, n) if needs[2] else 0),
        x.new_empty((batch, m) if needs[3] and has_y else 0),
        x.new_empty((batch, count) if needs[4] else 0),
        x.new_empty((batch, count) if needs[5] else 0),
    )
    _library().mmd2(
        _is_double(x), _threads(), batch, n, m, dim, x.data_ptr(), _address(y), _address(x_weights),
        _address(y_weights), *_kernel(kernel), unbiased, value.data_ptr(), *map(_address, grads),
    )  # fmt: skip
    return (value, *grads)


def witness(points: Tensor, samples: Tensor, weights: Tensor, kernel: KernelSpec) -> Tensor:
    """sum_j weights_j u(points_i, samples_j): [P]."""
    value = points.new_empty(len(points))
    _witness(points, samples, weights, kernel, value.data_ptr(), 0, (0, 0, 0, 0, 0))
    return value


def witness_backward(
    grad: Tensor,
    points: Tensor,
    samples: Tensor,
    weights: Tensor,
    kernel: KernelSpec,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of grad . witness in points, samples, weights, bandwidths and kernel weights."""
    count = len(kernel.bandwidths)
    shapes = (points.shape, samples.shape, weights.shape, (count,), (count,))
    grads = tuple(points.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True))
    _witness(points, samples, weights, kernel, 0, grad.data_ptr(), tuple(map(_address, grads)))
    return grads


def _witness(
    points: Tensor,
    samples: Tensor,
    weights: Tensor,
    kernel: KernelSpec,
    value: int,
    grad: int,
    grads: tuple[int, ...],
) -> None:
    _library().witness(
        _is_double(points), _threads(), len(points), *samples.shape, points.data_ptr(), samples.data_ptr(),
        weights.data_ptr(), *_kernel(kernel), value, grad, *grads,
    )  # fmt: skip


def fourier_sum(x: Tensor, weights: Tensor, features: FeatureSpec) -> Tensor:
    """sum_i w_i phi(x_i): [B, 2 * count]."""
    out = x.new_empty((len(x), 2 * features.count))
    _library().fourier_sum(
        _is_double(x),
        _threads(),
        *x.shape,
        x.data_ptr(),
        weights.data_ptr(),
        *_features(features),
        out.data_ptr(),
    )
    return out


def fourier_function(
    x: Tensor, coefficients: Tensor, features: FeatureSpec, needs_value: bool, needs_grad: bool
) -> tuple[Tensor, Tensor]:
    """phi(x_i) . c: value [B, N] and gradient in x [B, N, D]."""
    value = x.new_empty(x.shape[:2] if needs_value else (0,))
    grad = x.new_empty(x.shape if needs_grad else (0,))
    _library().fourier_function(
        _is_double(x), _threads(), *x.shape, x.data_ptr(), coefficients.data_ptr(), *_features(features),
        _address(value), _address(grad),
    )  # fmt: skip
    return value, grad


def fourier_frequencies(features: FeatureSpec, dim: int, dtype: torch.dtype) -> Tensor:
    """W = G / bandwidth: [count, dim]."""
    out = torch.empty((features.count, dim), dtype=dtype)
    _library().fourier_frequencies(_is_double(out), _threads(), dim, *_features(features), out.data_ptr())
    return out


def parzen_update(points: Tensor, samples: Tensor, sigmas: Sequence[float], minimum: Tensor, sums: Tensor) -> None:
    """Add samples to minimum [M] and sums [S, M], in place."""
    if points.shape[1] <= PARZEN_DIRECT_DIMS:
        _parzen_direct(points, samples, sigmas, minimum, sums, None, points.new_empty(0), points.new_empty(0))
        return
    if _cancels(points, samples, sigmas):
        wide = minimum.double()
        parzen_update(points.double(), samples.double(), sigmas, wide, sums)
        minimum.copy_(wide)
        for s, sigma in enumerate(sigmas):  # the sums are relative to the minimum as it was rounded
            sums[s] *= torch.exp((minimum.double() - wide) * (0.5 / sigma**2))
        return
    for _ in _parzen_tiles(points, samples, sigmas, minimum, sums, None):
        pass


def parzen_backward(
    grad: Tensor,
    points: Tensor,
    samples: Tensor,
    sigmas: Sequence[float],
    minimum: Tensor,
    sums: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of sum grad (log sums - minimum / (2 sigma^2)) in points [M, D] and samples [N, D]."""
    if _cancels(points, samples, sigmas):
        wide = (grad.double(), points.double(), samples.double(), sigmas, minimum.double(), sums, needs)
        g_points, g_samples = parzen_backward(*wide)
        return g_points.to(points.dtype), g_samples.to(points.dtype)
    direct = points.shape[1] <= PARZEN_DIRECT_DIMS
    new = torch.empty_like if direct else torch.zeros_like
    g_points = new(points) if needs[0] else points.new_empty(0)
    g_samples = new(samples) if needs[1] else points.new_empty(0)
    if direct:
        _parzen_direct(points, samples, sigmas, minimum, sums, grad, g_points, g_samples)
        return g_points, g_samples
    row_sums, column_sums = points.new_zeros(len(points)), points.new_zeros(len(samples))
    for i, j, p, q, c in _parzen_tiles(points, samples, sigmas, minimum, sums, grad):
        if needs[0]:
            g_points[i] += (c @ q)[: i.stop - i.start]
            row_sums[i] += c.sum(1)[: i.stop - i.start]
        if needs[1]:
            g_samples[j] += (c.T @ p)[: j.stop - j.start]
            column_sums[j] += c.sum(0)[: j.stop - j.start]
    if needs[0]:
        g_points.addcmul_(points, row_sums[:, None], value=-1)
    if needs[1]:
        g_samples.addcmul_(samples, column_sums[:, None], value=-1)
    return g_points, g_samples


def _cancels(points: Tensor, samples: Tensor, sigmas: Sequence[float]) -> bool:
    """Whether |x|^2 + |s|^2 - 2 x . s in float32 would lose more than about 0.002 nats: then it takes float64."""
    if points.dtype != torch.float32 or points.shape[1] <= PARZEN_DIRECT_DIMS:
        return False
    norms = [torch.linalg.vector_norm(part, dim=1).max().item() for part in (points, samples) if len(part)]
    largest = max(norms, default=0.0)
    return bool(largest**2 / (2 * min(sigmas) ** 2) > PARZEN_LARGEST_EXPONENT)


def _parzen_direct(
    points: Tensor,
    samples: Tensor,
    sigmas: Sequence[float],
    minimum: Tensor,
    sums: Tensor,
    grad: Tensor | None,
    g_points: Tensor,
    g_samples: Tensor,
) -> None:
    _library().parzen_direct(
        _is_double(points), _threads(), len(points), *samples.shape, points.data_ptr(), samples.data_ptr(),
        sigmas, minimum.data_ptr(), sums.data_ptr(), _address(grad), _address(g_points), _address(g_samples),
    )  # fmt: skip


def _parzen_tiles(
    points: Tensor,
    samples: Tensor,
    sigmas: Sequence[float],
    minimum: Tensor,
    sums: Tensor,
    grad: Tensor | None,
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """Products tile by tile, each an identical call on zero-padded blocks, and the fused step on them.

    Yields the rows and columns of the tile, their padded blocks [rows, D] and [columns, D], and the tile as
    the fused step leaves it: coefficients where grad is given.
    """
    library, threads, m = _library(), _threads(), len(points)
    rows, columns = _tile_size(m, PARZEN_ROWS), _tile_size(len(samples), PARZEN_COLUMNS)
    products = points.new_empty((rows, columns))
    size = points.element_size()
    blocks = [(i, p, _squared_norms(p)) for i, p in _blocks(points, rows)]
    with _full_precision():
        for j, q in _blocks(samples, columns):
            q_norms = _squared_norms(q)
            for i, p, p_norms in blocks:
                torch.mm(p, q.T, out=products)
                library.parzen_tile(
                    _is_double(points), threads, i.stop - i.start, j.stop - j.start, columns,
                    products.data_ptr(), p_norms.data_ptr(), q_norms.data_ptr(), sigmas, m,
                    minimum.data_ptr() + i.start * size, sums.data_ptr() + i.start * sums.element_size(),
                    0 if grad is None else grad.data_ptr() + i.start * size,
                )  # fmt: skip
                yield i, j, p, q, products


def _tile_size(count: int, most: int) -> int:
    return min(most, max(16, -(-count // 16) * 16))


def _blocks(points: Tensor, size: int) -> Iterator[tuple[slice, Tensor]]:
    """Consecutive blocks of `size` rows; the last one is filled up with zeros."""
    for first in range(0, len(points), size):
        rows = slice(first, min(first + size, len(points)))
        block = points[rows]
        if len(block) < size:
            block = torch.cat([block, block.new_zeros((size - len(block), block.shape[1]))])
        yield rows, block


def _squared_norms(points: Tensor) -> Tensor:
    """[N]; NaN for a point with an infinity, which would be far from everything and so disappear."""
    norms: Tensor = torch.linalg.vector_norm(points, dim=1, dtype=torch.float64)
    return norms.square_().to(points.dtype).masked_fill_(~points.isfinite().all(1), torch.nan)


# torch 2.9 and later have a setting of their own for CPU products; earlier ones have one for every device.
_MATMUL: Any = getattr(torch.backends.mkldnn, "matmul", None)
_precision_lock = threading.Lock()
_precision_users = 0
_precision_saved = ""


def _exchange_precision(precision: str | None) -> str:
    """Set the process's precision of float32 products (None: full) and return the one before."""
    if _MATMUL is None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision or "highest")
        return before
    before = str(_MATMUL.fp32_precision)
    _MATMUL.fp32_precision = precision or "ieee"
    return before


@contextmanager
def _full_precision() -> Iterator[None]:
    """float32 products in IEEE float32, whatever autocast and the user's matmul precision say.

    The first thread to enter saves the user's choice and the last to leave restores it.
    """
    global _precision_users, _precision_saved
    with _precision_lock:
        if _precision_users == 0:
            _precision_saved = _exchange_precision(None)
        _precision_users += 1
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        with _precision_lock:
            _precision_users -= 1
            if _precision_users == 0:
                _exchange_precision(_precision_saved)


def _is_double(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float64


def _threads() -> int:
    return 1 if _forked else torch.get_num_threads()


def _address(tensor: Tensor | None) -> int:
    """0 for what is absent or not needed."""
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def _kernel(kernel: KernelSpec) -> tuple[str, Sequence[float], Sequence[float], float]:
    return kernel.name, _numbers(kernel.bandwidths), _numbers(kernel.weights), kernel.alpha


def _features(features: FeatureSpec) -> tuple[int, int, Sequence[float], Sequence[float]]:
    return features.key.data_ptr(), features.count, features.bandwidths, features.weights


def _numbers(values: tuple[float, ...] | Tensor) -> Sequence[float]:
    """As floats: on the CPU reading a tensor waits for nothing."""
    return values.tolist() if isinstance(values, Tensor) else values
