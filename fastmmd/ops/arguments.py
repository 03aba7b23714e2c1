"""Checks and promotion of the arguments that the operators share."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Real
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..device_cache import tracing
from ..kernels import FAMILIES, Kernel

KernelName = Literal["gaussian", "laplacian", "imq", "rational_quadratic", "energy"]
Estimator = Literal["biased", "unbiased"]
KERNELS = tuple(FAMILIES)
DEFAULT_BANDWIDTHS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INT64_MAX = 2**63 - 1

Floats = Sequence[float] | Tensor


def check_points(rank: int | None = None, *, empty: bool = False, **tensors: Tensor) -> None:
    """Point sets: floating tensors [..., N, D] (or exactly `rank` dimensions), of one D, on one device.

    Args:
        empty: N may be 0.
    """
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: got {type(tensor).__name__}, expected a torch.Tensor")
        reject_unsupported(name, tensor)
        if tensor.dtype not in FLOATS:
            raise TypeError(
                f"{name}: got dtype {tensor.dtype}, expected float16, bfloat16, float32 or float64; "
                f"convert with {name}.float()"
            )
        shape = tensor.shape
        if len(shape) < 2 or (rank is not None and len(shape) != rank):
            wanted = "[..., N, D]" if rank is None else "[N, D]"
            raise ValueError(f"{name}: got shape {list(shape)}, expected {wanted}")
        if (shape[-2] == 0 and not empty) or shape[-1] == 0:
            raise ValueError(f"{name}: got shape {list(shape)}, expected at least one point of one dimension")
        if shape[-1] != first.shape[-1]:
            raise ValueError(
                f"{name}: got dimension {shape[-1]} (shape {list(shape)}), "
                f"expected {first.shape[-1]} as in {first_name} (shape {list(first.shape)})"
            )
    check_same(**tensors)


def check_same(**tensors: Tensor) -> None:
    """One device; float64 only with float64."""
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.device != first.device:
            raise ValueError(f"{name}: got device {tensor.device}, expected {first.device} as {first_name}")
        if (tensor.dtype == torch.float64) != (first.dtype == torch.float64):
            raise TypeError(
                f"{name}: got dtype {tensor.dtype} beside {first_name} of {first.dtype}; float64 mixes only with "
                "float64: convert one of them"
            )


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def batched(tensor: Tensor, batch: Sequence[int]) -> Tensor:
    """[..., N, D] -> [B, N, D] in the compute dtype, with as few views as it takes: autograd records each."""
    dtype = compute_dtype(tensor)
    points = tensor if tensor.dtype == dtype else tensor.to(dtype)  # to() costs a microsecond where it does nothing
    if not batch:
        return points[None]
    tail = points.shape[-2:]
    if points.shape[:-2] != batch:
        points = points.expand(*batch, *tail)
    return points if len(batch) == 1 else points.reshape(-1, *tail)


def sample_weights(
    name: str,
    weights: Tensor | None,
    points_name: str,
    points: Tensor,
    batch: Sequence[int] | None = None,
    *,
    zero: bool = False,
) -> Tensor | None:
    """Weights [..., N], leading dimensions that broadcast to `batch`, as [*batch, N] in the compute dtype.

    Args:
        zero: their sum may be 0.

    Raises:
        TypeError, ValueError: weights of another type or shape, or, where values are read, of sum 0.
    """
    if weights is None:
        return None
    batch, n = tuple(points.shape[:-2] if batch is None else batch), points.shape[-2]
    if not isinstance(weights, Tensor) or weights.dtype not in FLOATS:
        given = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"{name}: got {given}, expected a floating tensor of shape {[*batch, n]}")
    reject_unsupported(name, weights)
    shape = tuple(weights.shape)
    lead = shape[:-1]
    tail = batch[len(batch) - len(lead) :] if len(lead) <= len(batch) else None
    if not shape or shape[-1] != n or tail is None or any(a not in (1, b) for a, b in zip(lead, tail, strict=True)):
        raise ValueError(
            f"{name}: got shape {list(shape)}, expected {[*batch, n]}, a weight for each point of {points_name}"
        )
    check_same(**{points_name: points, name: weights})
    if not zero and 0.0 in known_values(weights.detach().sum(-1, dtype=torch.float64).flatten()):
        raise ValueError(
            f"{name}: got weights that sum to 0 and cannot be normalized; expected another sum, such as that of "
            "numbers >= 0 that are not all 0"
        )
    return weights.to(compute_dtype(points)).expand(*batch, n)


def normalized(weights: Tensor) -> Tensor:
    """Weights [..., N] with sum 1."""
    return weights / weights.sum(-1, keepdim=True)


def values_are_read(device: torch.device) -> bool:
    """Whether values may decide an error: not where reading them waits for the device, nor where a compiler traces."""
    return device.type == "cpu" and not tracing()


def known_values(values: tuple[float, ...] | Tensor) -> Sequence[float]:
    """Numbers for a check: those of a tensor [S] where `values_are_read`, else none."""
    if not isinstance(values, Tensor):
        return values
    try:
        return values.tolist() if values_are_read(values.device) else ()
    except RuntimeError:  # of a batch of torch.vmap
        return ()


def check_estimator(estimator: str, **samples: Tensor) -> bool:
    """True for "unbiased", which needs two points in each sample."""
    if not isinstance(estimator, str) or estimator not in ("biased", "unbiased"):
        raise ValueError(f'estimator: got {estimator!r}, expected "biased" or "unbiased"')
    for name, sample in samples.items():
        if estimator == "unbiased" and sample.shape[-2] < 2:
            raise ValueError(f'{name}: got {sample.shape[-2]} point, expected at least 2 for estimator="unbiased"')
    return estimator == "unbiased"


def kernel_arguments(
    bandwidths: Floats, kernel: str, kernel_weights: Floats | None, alpha: float, points: Tensor
) -> Kernel:
    """The sum of kernels that the arguments of a public function describe, tensors in the points' compute dtype."""
    check_choice("kernel", kernel, KERNELS)
    alpha = check_number("alpha", alpha)
    family = FAMILIES[kernel]
    if alpha != 1 and not family.has_alpha:
        having = " and ".join(f'"{name}"' for name in KERNELS if FAMILIES[name].has_alpha)
        raise ValueError(f"alpha: got {alpha!r} for kernel={kernel!r}; only {having} has it")
    if not family.has_bandwidths:
        if not isinstance(bandwidths, tuple) or bandwidths != DEFAULT_BANDWIDTHS:
            raise ValueError(f'bandwidths: the "{kernel}" kernel has none; leave the argument out')
        bandwidths = (1.0,)
    scales = _floats("bandwidths", bandwidths, points)
    known = known_values(scales)
    if any(not 0 < s < math.inf for s in known):
        raise ValueError(f"bandwidths: got {list(known)}, expected positive finite numbers (standard deviations)")
    count = len(scales)
    if kernel_weights is None:
        return Kernel(kernel, scales, (1.0,) * count, alpha)
    weights = _floats("kernel_weights", kernel_weights, points)
    known = known_values(weights)
    if any(not math.isfinite(w) for w in known):
        raise ValueError(f"kernel_weights: got {list(known)}, expected finite numbers")
    if len(weights) != count:
        raise ValueError(f"kernel_weights: got {len(weights)}, expected {count}, one for each bandwidth")
    return Kernel(kernel, scales, weights, alpha)


def numbers_in(
    name: str, values: float | Sequence[float] | Tensor, *, breaks_graph: bool = False
) -> float | Sequence[float]:
    """The values of a tensor, 0-d or [S], read where it is; numbers as they are.

    Args:
        breaks_graph: while a compiler traces, values are read between two graphs.

    Raises:
        ValueError: a tensor of another type or shape, one that needs a gradient, or any while a compiler traces.
    """
    if not isinstance(values, Tensor):
        return values
    reject_unsupported(name, values)
    if values.dtype not in FLOATS or values.ndim > 1:
        raise ValueError(
            f"{name}: got a {values.dtype} tensor of shape {list(values.shape)}, expected a floating one, 0-d or [S], "
            "or numbers"
        )
    if values.requires_grad:
        raise ValueError(f"{name}: got a tensor that requires a gradient, which has none here; pass {name}.detach()")
    if (tracing() and not breaks_graph) or values.device.type == "meta":
        raise ValueError(f"{name}: got a tensor whose values cannot be read while a compiler traces; pass numbers")
    numbers: float | list[float] = values.tolist()
    return numbers


def positive_floats(name: str, values: float | Sequence[float], allow_zero: bool = False) -> tuple[float, ...]:
    """A number or a sequence of numbers as a tuple of positive finite floats."""
    numbers = float_tuple(name, [values] if isinstance(values, Real) else values)
    if any(not (0 < v < math.inf or (allow_zero and v == 0)) for v in numbers):
        raise ValueError(f"{name}: got {list(numbers)}, expected positive finite numbers")
    return numbers


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """`value` is one of the names, those of a `Literal`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(choices)}")


def check_int(name: str, value: object, least: int = 1, most: int | None = None) -> int:
    """An integer from `least` to `most`, NumPy's too, as an int; never beyond what torch takes, 64 bits."""
    try:
        number = None if isinstance(value, (bool, Tensor)) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if most is None and number is not None and number > INT64_MAX:
        most = INT64_MAX
    if number is None or number < least or (most is not None and number > most):
        wanted = {1: "a positive int", 0: "an int >= 0"}.get(least, f"an int >= {least}")
        raise ValueError(f"{name}: got {value!r}, expected {wanted}" + ("" if most is None else f" up to {most}"))
    return number


def check_number(name: str, value: object, *, zero: bool = False, below: float = math.inf) -> float:
    """A number above 0 (or from 0 on) and below `below`."""
    number = _finite(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not (0 < number < below or (zero and number == 0)):
        wanted = "a number >= 0" if zero else "a positive number"
        limit = f" below {below:g}" if below < math.inf else ""
        raise ValueError(f"{name}: got {value!r}, expected {wanted}{limit}")
    return number


def reject_unsupported(name: str, tensor: Tensor) -> None:
    """What the operators would refuse with an error that names nothing, or drop without a word.

    Raises:
        TypeError: a nested tensor, or one that is not strided.
        RuntimeError: under torch.jit.trace, or a tensor that carries a forward-mode tangent.
    """
    if tensor.is_nested:
        raise TypeError(
            f"{name}: got a nested tensor, expected a strided one; pad it, {name}.to_padded_tensor(0.0), with weight 0 "
            "for the points that this adds, or call the function for each part"
        )
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: got layout {tensor.layout}, expected torch.strided; convert with {name}.to_dense()")
    if not torch.compiler.is_compiling() and torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        raise RuntimeError(
            f"{name}: torch.jit.trace cannot record the operators of fastmmd; use torch.compile or torch.export"
        )
    reject_forward_mode(name, tensor)


def reject_forward_mode(name: str, tensor: Tensor) -> None:
    """The operators would drop a forward-mode derivative without a word: refuse it.

    Raises:
        RuntimeError: the tensor carries a tangent.
    """
    if not torch.compiler.is_compiling() and forward_ad.unpack_dual(tensor).tangent is not None:
        raise RuntimeError(
            f"{name}: carries a forward-mode tangent, and the operators of fastmmd differentiate in reverse mode only: "
            "use backward(), torch.autograd.grad, torch.func.grad or torch.func.vjp"
        )


def _floats(name: str, values: Floats, points: Tensor) -> tuple[float, ...] | Tensor:
    if isinstance(values, Tensor):
        reject_unsupported(name, values)
        if values.ndim > 1 or values.numel() == 0 or values.dtype not in FLOATS:
            raise ValueError(
                f"{name}: got a {values.dtype} tensor of shape {list(values.shape)}, expected a floating one, [S] or "
                "0-d"
            )
        if values.device != points.device:
            raise ValueError(f"{name}: got device {values.device}, expected {points.device} as the points")
        return values.to(compute_dtype(points)).reshape(-1)
    return float_tuple(name, values)


def float_tuple(name: str, values: object) -> tuple[float, ...]:
    """A sequence of one or more numbers as floats."""
    scalar = getattr(values, "ndim", 1) == 0  # such as an array of NumPy, which claims to be iterable
    # In order, and none of them a number by accident: of a set any order, of a dictionary the keys, of bytes ints.
    unordered = isinstance(values, str | bytes | bytearray | Set | Mapping | Tensor)
    if unordered or scalar or not isinstance(values, Iterable):
        raise TypeError(f"{name}: got {values!r}, expected a sequence of numbers such as (1.0, 2.0)")
    floats = tuple(value if type(value) is float else _float(name, value) for value in values)
    if not floats:
        raise ValueError(f"{name}: got an empty sequence, expected at least one number")
    return floats


def _float(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {value!r}, expected a number")
    return _finite(value)


def _finite(value: Real) -> float:
    """As a float, an integer beyond all of them too."""
    try:
        return float(value)
    except OverflowError:
        return math.inf
