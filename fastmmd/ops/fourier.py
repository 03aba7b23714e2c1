"""Random Fourier features (Rahimi and Recht 2007) whose frequencies are made from a seed and never stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..backends import current, select
from ..backends.calls import (
    Features,
    FourierAscent,
    FourierDiscrepancy,
    FourierDiscrepancyBackward,
    FourierFrequencies,
    FourierFunction,
    FourierSum,
)
from .arguments import (
    batched,
    check_int,
    check_points,
    check_same,
    compute_dtype,
    normalized,
    positive_floats,
    reject_unknown,
    sample_weights,
)
from .device_cache import DeviceCache
from .registration import define, needs_grad, operators, reject_forward_mode

INT64_MAX = 2**63 - 1


@dataclass(frozen=True, init=False, eq=False)
class FourierFeatures:
    """A description of `count` random Fourier features of a sum of Gaussian kernels in `dim` dimensions.

    phi(x) = [cos(W x), sin(W x)], scaled so that phi(a) . phi(b) approximates sum_s w_s exp(-|a - b|^2 / (2 s^2)).
    W = G / bandwidth with standard normal G; several bandwidths share the count in equal consecutive parts. G is a
    pure function of (seed, feature index, dimension): Philox-4x32-10 and Box-Muller, the same in every backend to
    4e-6, made inside the kernels and never stored. Features start + 0 ... start + count - 1 are addressed.

    Args:
        dim: dimension D of the points.
        count: number of frequencies; the feature vector has 2 * count entries.
        bandwidths: a positive number or a sequence of S of them; count must be a multiple of S.
        weights: S non-negative numbers, ones by default.
        seed, start: ints in [0, 2^63) or 0-d int64 tensors (for captured CUDA graphs, unchecked).

    Raises:
        ValueError, TypeError: naming the argument.
    """

    dim: int
    count: int
    bandwidths: tuple[float, ...]
    weights: tuple[float, ...]
    seed: int | Tensor
    start: int | Tensor
    _keys: DeviceCache[Tensor] = field(repr=False)

    def __init__(
        self,
        dim: int,
        count: int,
        *,
        bandwidths: float | Sequence[float] = 1.0,
        weights: float | Sequence[float] | None = None,
        seed: int | Tensor = 0,
        start: int | Tensor = 0,
        **unknown: object,
    ) -> None:
        reject_unknown(unknown)
        dim, count = check_int("dim", dim), check_int("count", count)
        for name, key in (("seed", seed), ("start", start)):
            _check_key(name, key)
        scales = positive_floats("bandwidths", bandwidths)
        shares = positive_floats("weights", [1.0] * len(scales) if weights is None else weights, allow_zero=True)
        if len(shares) != len(scales):
            raise ValueError(f"weights: got {len(shares)}, expected {len(scales)}, one for each bandwidth")
        if count % len(scales):
            raise ValueError(f"count: got {count}, expected a multiple of the number of bandwidths, {len(scales)}")
        values = {"dim": dim, "count": count, "bandwidths": scales, "weights": shares, "seed": seed, "start": start}
        for name, value in (values | {"_keys": DeviceCache(self._make_key)}).items():
            object.__setattr__(self, name, value)

    def block(self, t: int | Tensor) -> FourierFeatures:
        """The t-th block of fresh features: the same description with start + t * count."""
        return FourierFeatures(
            self.dim,
            self.count,
            bandwidths=self.bandwidths,
            weights=self.weights,
            seed=self.seed,
            start=self.start + t * self.count,
        )

    def frequencies(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """W = G / bandwidth, materialized: [count, dim], float32 on the CPU by default."""
        key = self.key(torch.device("cpu" if device is None else device))
        dtype = torch.float32 if dtype is None else dtype
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype: got {dtype}, expected torch.float32 or torch.float64")
        return operators.fourier_frequencies(  # type: ignore[no-any-return]
            key, self.count, self.bandwidths, self.weights, self.dim, dtype, current()
        )

    def key(self, device: torch.device) -> Tensor:
        """[seed, start] as int64 on the device; kept, so that later calls copy nothing."""
        if isinstance(self.seed, Tensor) or isinstance(self.start, Tensor):
            return self._make_key(device)
        return self._keys.get(device)

    def _make_key(self, device: torch.device) -> Tensor:
        # full() fills on the device; tensor() would copy from the host, which a CUDA graph cannot capture
        parts = [
            part.to(device) if isinstance(part, Tensor) else torch.full((), part, dtype=torch.int64, device=device)
            for part in (self.seed, self.start)
        ]
        return torch.stack(parts)


def fourier_mean(x: Tensor, features: FourierFeatures, *, weights: Tensor | None = None) -> Tensor:
    """Mean feature vector of a sample, sum_i w_i phi(x_i), without an [N, count] matrix.

    |fourier_mean(x) - fourier_mean(y)|^2 estimates the biased mmd2(x, y) of the features' kernel.

    Args:
        x: [..., N, D] points, D = features.dim; float32 compute for half types, float64 for float64.
        features: the description; its scale is always that of its own count.
        weights: [..., N], normalized to sum 1 here; uniform by default.

    Returns:
        [..., 2 * count] tensor, cosines first. Differentiable once in x and weights; backward makes the frequencies
        again.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    _check_features(x, features)
    batch, n = x.shape[:-2], x.shape[-2]
    xb = batched(x, batch)
    w = sample_weights("weights", weights, "x", x)
    w = xb.new_full(xb.shape[:2], 1.0 / n) if w is None else normalized(w).reshape(-1, n)
    out = operators.fourier_sum(
        xb, w, features.key(x.device), features.count, features.bandwidths, features.weights, current()
    )
    return out.reshape(*batch, 2 * features.count)  # type: ignore[no-any-return]


def fourier_function(x: Tensor, coefficients: Tensor, features: FourierFeatures) -> Tensor:
    """The function f(x) = phi(x) . coefficients at each point (Rahimi and Recht 2008, random kitchen sinks).

    Args:
        x: [N, D] points, D = features.dim. coefficients: [2 * count], cosines first. features: the description.

    Returns:
        [N] tensor, differentiable once in x and coefficients.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    _check_features(x, features, rank=2)
    if not isinstance(coefficients, Tensor) or coefficients.shape != (2 * features.count,):
        found = list(coefficients.shape) if isinstance(coefficients, Tensor) else type(coefficients).__name__
        raise ValueError(f"coefficients: got {found}, expected a tensor of shape [{2 * features.count}], 2 * count")
    if not coefficients.is_floating_point():
        raise TypeError(f"coefficients: got dtype {coefficients.dtype}, expected a floating one")
    check_same(x=x, coefficients=coefficients)
    reject_forward_mode("coefficients", coefficients)
    dtype = compute_dtype(x)
    return operators.fourier_function(  # type: ignore[no-any-return]
        x.to(dtype)[None],
        coefficients.to(dtype)[None],
        features.key(x.device),
        features.count,
        features.bandwidths,
        features.weights,
        current(),
    )[0]


def fourier_discrepancy(codes: Tensor, draws: Tensor, alpha: Tensor, features: FourierFeatures) -> Tensor:
    """What the first-order adversary sees of codes beside draws: sum_k alpha_k |zeta_k|^2, see `nn.FourierAdversary`.

    CUDA: two launches, and one backward, or two where features are shared out between blocks: for thousands of codes,
    thousands of features, or more than 16 dimensions.

    Args:
        codes, draws: [M, D], [N, D] points, D = features.dim. alpha: [count]. features: the description.

    Returns:
        0-d tensor, differentiable once in codes and draws.
    """
    _check_clouds(codes, draws, alpha, features)
    dtype = compute_dtype(codes)
    needs = any(needs_grad(codes, draws))
    return operators.fourier_discrepancy(  # type: ignore[no-any-return]
        codes.to(dtype), draws.to(dtype), alpha.to(dtype), *_described(features, codes.device), needs
    )[0]


def fourier_ascent(
    alpha: Tensor, codes: Tensor, draws: Tensor, features: FourierFeatures, learning_rate: float
) -> None:
    """The first-order adversary's step: alpha moves in place by `learning_rate` towards |zeta_k|^2 over its mean.

    CUDA: two launches.

    Args: those of `fourier_discrepancy`.
    """
    _check_clouds(codes, draws, alpha, features)
    dtype = compute_dtype(codes)
    fits = alpha.dtype in (torch.float32, torch.float64) and alpha.is_contiguous()
    moved = alpha if fits else alpha.to(dtype, copy=True, memory_format=torch.contiguous_format)
    operators.fourier_ascent(
        moved, codes.to(dtype), draws.to(dtype), *_described(features, codes.device), learning_rate
    )
    if moved is not alpha:
        alpha.copy_(moved)


def _described(features: FourierFeatures, device: torch.device) -> tuple[Any, ...]:
    return features.key(device), features.count, features.bandwidths, features.weights, current()


def _check_clouds(codes: Tensor, draws: Tensor, alpha: Tensor, features: FourierFeatures) -> None:
    check_points(2, codes=codes, draws=draws)
    _check_features(codes, features)
    if alpha.shape != (features.count,):
        raise ValueError(f"alpha: got shape {list(alpha.shape)}, expected [{features.count}], one for each frequency")
    if alpha.device != codes.device:
        raise ValueError(f"alpha: got device {alpha.device}, expected {codes.device} as codes")


def _check_key(name: str, key: int | Tensor) -> None:
    if isinstance(key, Tensor):
        if key.ndim != 0 or key.dtype != torch.int64:
            raise ValueError(f"{name}: got a {key.dtype} tensor of shape {list(key.shape)}, expected a 0-d int64 one")
    else:
        check_int(name, key, 0, INT64_MAX)


def _check_features(x: Tensor, features: FourierFeatures, rank: int | None = None) -> None:
    check_points(rank, x=x)
    if not isinstance(features, FourierFeatures):
        raise TypeError(f"features: got {type(features).__name__}, expected fastmmd.FourierFeatures")
    if x.shape[-1] != features.dim:
        raise ValueError(f"x: got dimension {x.shape[-1]}, expected {features.dim} as features.dim")


def _features(key: Tensor, count: int, bandwidths: Sequence[float], weights: Sequence[float]) -> Features:
    return Features(key.contiguous(), count, tuple(bandwidths), tuple(weights))


def _sum(x: Tensor, weights: Tensor, *features: Any, backend: str) -> Tensor:
    call = FourierSum(x.contiguous(), weights.contiguous(), _features(*features))
    return select(backend, "fourier", x.device.type).fourier_sum(call)


def _function(
    x: Tensor, coefficients: Tensor, *features: Any, backend: str, value: bool = False, gradient: bool = False
) -> tuple[Tensor, Tensor]:
    call = FourierFunction(x.contiguous(), coefficients.contiguous(), _features(*features), value, gradient)
    return select(backend, "fourier", x.device.type).fourier_function(call)


def _fourier_sum(x: Tensor, weights: Tensor, *description: Any) -> Tensor:
    *features, backend = description
    return _sum(x, weights, *features, backend=backend)


def _fourier_sum_backward(grad: Tensor, x: Tensor, weights: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *features, backend, needs = rest
    f, df = _function(x, grad, *features, backend=backend, value=needs[1], gradient=needs[0])
    return (df.mul_(weights[..., None]) if needs[0] else df), f


def _fourier_function(x: Tensor, coefficients: Tensor, *description: Any) -> Tensor:
    *features, backend = description
    return _function(x, coefficients, *features, backend=backend, value=True)[0]


def _fourier_function_backward(grad: Tensor, x: Tensor, coefficients: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *features, backend, needs = rest
    gradients = [x.new_empty(0), x.new_empty(0)]
    if needs[0]:
        gradients[0] = _function(x, coefficients, *features, backend=backend, gradient=True)[1].mul_(grad[..., None])
    if needs[1]:
        gradients[1] = _sum(x, grad, *features, backend=backend)
    return gradients[0], gradients[1]


def _discrepancy(codes: Tensor, draws: Tensor, alpha: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *features, backend, needs_slopes = rest
    clouds = codes.contiguous(), draws.contiguous(), alpha.contiguous()
    call = FourierDiscrepancy(*clouds, _features(*features), needs_slopes)
    return select(backend, "fourier", codes.device.type).fourier_discrepancy(call)


def _discrepancy_backward(
    grad: Tensor, codes: Tensor, draws: Tensor, slopes: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    *features, backend, needs = rest
    clouds = codes.contiguous(), draws.contiguous(), slopes.contiguous()
    call = FourierDiscrepancyBackward(*clouds, _features(*features), grad.contiguous(), *needs)
    return select(backend, "fourier", codes.device.type).fourier_discrepancy_backward(call)


def _ascent(alpha: Tensor, codes: Tensor, draws: Tensor, *rest: Any) -> None:
    *features, backend, rate = rest
    torch.autograd.graph.increment_version(alpha)
    call = FourierAscent(codes.contiguous(), draws.contiguous(), alpha, _features(*features), rate)
    select(backend, "fourier", codes.device.type).fourier_ascent(call)


def _frequencies(
    key: Tensor,
    count: int,
    bandwidths: Sequence[float],
    weights: Sequence[float],
    dim: int,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    call = FourierFrequencies(_features(key, count, bandwidths, weights), dim, dtype)
    return select(backend, "fourier", key.device.type).fourier_frequencies(call)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.description = inputs[3:]


def _gradient(name: str) -> Any:
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:2])
        found = getattr(operators, name)(grad, *ctx.saved_tensors, *ctx.description, needs)
        return (*(g if need else None for g, need in zip(found, needs, strict=True)), None)  # None: the key

    return backward


def _setup_discrepancy(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    codes, draws, _, key, *description, _ = inputs
    ctx.save_for_backward(codes, draws, output[1], key)
    ctx.description = description


def _discrepancy_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    codes, draws, slopes, key = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:2])
    if ctx.needs_input_grad[2]:
        raise RuntimeError("alpha: fourier_discrepancy is differentiable in codes and draws only")
    if slopes.numel() == 0:
        raise RuntimeError("the forward pass did not compute what the gradient in an input needs")
    found = operators.fourier_discrepancy_backward(grad, codes, draws, slopes, key, *ctx.description, needs)
    return (*(g if need else None for g, need in zip(found, needs, strict=True)), None, None)  # None: alpha, the key


def _fake_gradients(grad: Tensor, x: Tensor, other: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    shapes = zip((x.shape, other.shape), rest[-1], strict=True)
    return tuple(x.new_empty(shape if need else (0,)) for shape, need in shapes)


FEATURES_SCHEMA = "Tensor key, int count, float[] bandwidths, float[] weights"
define(
    f"fourier_sum(Tensor x, Tensor sample_weights, {FEATURES_SCHEMA}, str backend) -> Tensor",
    _fourier_sum,
    lambda x, weights, key, count, *_: x.new_empty(x.shape[0], 2 * count),
    _setup,
    _gradient("fourier_sum_backward"),
)
define(
    f"fourier_function(Tensor x, Tensor coefficients, {FEATURES_SCHEMA}, str backend) -> Tensor",
    _fourier_function,
    lambda x, *_: x.new_empty(x.shape[:2]),
    _setup,
    _gradient("fourier_function_backward"),
)
for _name, _implementation, _other in (
    ("fourier_sum_backward", _fourier_sum_backward, "sample_weights"),
    ("fourier_function_backward", _fourier_function_backward, "coefficients"),
):
    define(
        f"{_name}(Tensor grad, Tensor x, Tensor {_other}, {FEATURES_SCHEMA}, str backend, bool[] needs) "
        "-> (Tensor, Tensor)",
        _implementation,
        _fake_gradients,
    )
define(
    f"fourier_discrepancy(Tensor codes, Tensor draws, Tensor alpha, {FEATURES_SCHEMA}, str backend, bool needs_slopes) "
    "-> (Tensor, Tensor)",
    _discrepancy,
    lambda codes, draws, alpha, key, count, *rest: (codes.new_empty(()), codes.new_empty(2 * count if rest[-1] else 0)),
    _setup_discrepancy,
    _discrepancy_gradients,
)
define(
    "fourier_discrepancy_backward(Tensor grad, Tensor codes, Tensor draws, Tensor slopes, "
    f"{FEATURES_SCHEMA}, str backend, bool[] needs) -> (Tensor, Tensor)",
    _discrepancy_backward,
    lambda grad, codes, draws, slopes, *rest: _fake_gradients(grad, codes, draws, *rest),
)
define(
    f"fourier_ascent(Tensor(a!) alpha, Tensor codes, Tensor draws, {FEATURES_SCHEMA}, str backend, float rate) -> ()",
    _ascent,
    lambda *_: None,
)
define(
    f"fourier_frequencies({FEATURES_SCHEMA}, int dim, ScalarType dtype, str backend) -> Tensor",
    _frequencies,
    lambda key, count, bandwidths, weights, dim, dtype, backend: key.new_empty((count, dim), dtype=dtype),
)
