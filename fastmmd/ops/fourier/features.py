"""The description of random Fourier features, and how it travels through the operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...backends import current, select
from ...backends.calls import Features, FourierFrequencies
from ...device_cache import DeviceCache
from ..arguments import INT64_MAX, check_int, check_points, numbers_in, positive_floats, reject_unsupported
from ..dispatch import define


class FourierFeatures:
    """A description of `count` random Fourier features of a sum of Gaussian kernels in `dim` dimensions.

    phi(x) = [cos(W x), sin(W x)], scaled so that phi(a) . phi(b) approximates sum_s w_s exp(-|a - b|^2 / (2 s^2)).
    W = G / bandwidth with standard normal G; several bandwidths share the count in equal consecutive parts. G is a
    pure function of (seed, feature index, dimension): Philox-4x32-10 and Box-Muller, the same in every backend to
    4e-6, made inside the kernels and never stored. The description covers features start to start + count - 1.

    A description does not change; two of them are equal if they are the same object.

    Args:
        dim: dimension D of the points.
        count: number of frequencies; the feature vector has 2 * count entries.
        bandwidths: a positive number or a sequence of S of them, standard deviations of the kernels; count must be a
            multiple of S. A variance v is the bandwidth v**0.5, and exp(-gamma r) has the bandwidth (0.5 / gamma)**0.5.
        kernel_weights: S non-negative numbers, ones by default.
            Both may be tensors, 0-d or [S], such as that of `median_bandwidth`. Only their values are taken, here and
            once, which waits for a device that is not the CPU; they have no gradient, and a compiler that traces this
            has no values.
        seed, start: ints in [0, 2^63) or 0-d int64 tensors (for captured CUDA graphs, unchecked).

    Raises:
        ValueError, TypeError: naming the argument.
    """

    def __init__(
        self,
        dim: int,
        count: int,
        *,
        bandwidths: float | Sequence[float] | Tensor = 1.0,
        kernel_weights: float | Sequence[float] | Tensor | None = None,
        seed: int | Tensor = 0,
        start: int | Tensor = 0,
    ) -> None:
        self._dim, self._count = check_int("dim", dim), check_int("count", count)
        self._seed, self._start = _checked_key("seed", seed), _checked_key("start", start)
        self._bandwidths = scales = positive_floats("bandwidths", numbers_in("bandwidths", bandwidths))
        shares = [1.0] * len(scales) if kernel_weights is None else numbers_in("kernel_weights", kernel_weights)
        self._kernel_weights = positive_floats("kernel_weights", shares, allow_zero=True)
        if len(self._kernel_weights) != len(scales):
            raise ValueError(
                f"kernel_weights: got {len(self._kernel_weights)}, expected {len(scales)}, one for each bandwidth"
            )
        if self._count % len(scales):
            raise ValueError(f"count: got {count}, expected a multiple of the number of bandwidths, {len(scales)}")
        self._keys = DeviceCache(self._make_key)

    @property
    def dim(self) -> int:
        """Dimension D of the points."""
        return self._dim

    @property
    def count(self) -> int:
        """Number of frequencies."""
        return self._count

    @property
    def bandwidths(self) -> tuple[float, ...]:
        """The S bandwidths."""
        return self._bandwidths

    @property
    def kernel_weights(self) -> tuple[float, ...]:
        """The weights of the S kernels."""
        return self._kernel_weights

    @property
    def seed(self) -> int | Tensor:
        """The seed of the frequencies."""
        return self._seed

    @property
    def start(self) -> int | Tensor:
        """The index of the first feature."""
        return self._start

    def __repr__(self) -> str:
        names = ("dim", "count", "bandwidths", "kernel_weights", "seed", "start")
        return f"FourierFeatures({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def block(self, t: int | Tensor) -> FourierFeatures:
        """The t-th block of fresh features: the same description with start + t * count."""
        step = _checked_key("t", t, -INT64_MAX)
        return FourierFeatures(
            self.dim,
            self.count,
            bandwidths=self.bandwidths,
            kernel_weights=self.kernel_weights,
            seed=self.seed,
            start=self.start + step * self.count,
        )

    def frequencies(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """W = G / bandwidth, materialized: [count, dim], float32 on the CPU by default."""
        dtype = torch.float32 if dtype is None else dtype
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype: got {dtype}, expected torch.float32 or torch.float64")
        flat = flattened(self, torch.device("cpu" if device is None else device))
        return fourier_frequencies(*flat, self.dim, dtype, current())

    def key(self, device: torch.device) -> Tensor:
        """[seed, start] as int64 on the device; kept, so that later calls copy nothing."""
        if isinstance(self.seed, Tensor) or isinstance(self.start, Tensor):
            return self._make_key(device)
        return self._keys.get(device)

    def _make_key(self, device: torch.device) -> Tensor:
        # full() fills on the device; tensor() would copy from the host, which a CUDA graph cannot capture
        for name, part in (("seed", self.seed), ("start", self.start)):
            if isinstance(part, Tensor) and part.device.type == "meta" and device.type != "meta":
                raise ValueError(f"{name}: got a tensor on meta, which has no value; expected one on {device}")
        parts = [
            part.to(device) if isinstance(part, Tensor) else torch.full((), part, dtype=torch.int64, device=device)
            for part in (self.seed, self.start)
        ]
        return torch.stack(parts)


FlatFeatures = tuple[Tensor, int, tuple[float, ...], tuple[float, ...]]


def flattened(features: FourierFeatures, device: torch.device) -> FlatFeatures:
    """The description as arguments of an operator: key, count, bandwidths, kernel_weights; `restored` there."""
    return features.key(device), features.count, features.bandwidths, features.kernel_weights


def restored(key: Tensor, count: int, bandwidths: Sequence[float], kernel_weights: Sequence[float]) -> Features:
    """What a backend gets of the features that were `flattened`."""
    return Features(key.contiguous(), count, tuple(bandwidths), tuple(kernel_weights))


def check_features(
    features: FourierFeatures, rank: int | None = None, *, empty: bool = False, **points: Tensor
) -> None:
    """Points [..., N, D] (or of exactly `rank` dimensions) of the features' dimension; empty: N may be 0."""
    check_points(rank, empty=empty, **points)
    if not isinstance(features, FourierFeatures):
        raise TypeError(f"features: got {type(features).__name__}, expected fastmmd.FourierFeatures")
    for name, tensor in points.items():
        if tensor.shape[-1] != features.dim:
            raise ValueError(f"{name}: got dimension {tensor.shape[-1]}, expected {features.dim} as features.dim")


def empty_gradients(first: Tensor, second: Tensor, needs: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """What the fake kernel of a backward operator returns; empty where not needed."""
    return first.new_empty(first.shape if needs[0] else 0), second.new_empty(second.shape if needs[1] else 0)


def _checked_key(name: str, key: int | Tensor, least: int = 0) -> int | Tensor:
    if not isinstance(key, Tensor):
        return check_int(name, key, least, INT64_MAX)
    reject_unsupported(name, key)
    if key.ndim != 0 or key.dtype != torch.int64:
        raise ValueError(f"{name}: got a {key.dtype} tensor of shape {list(key.shape)}, expected a 0-d int64 one")
    return key


def _fourier_frequencies(
    key: Tensor,
    count: int,
    bandwidths: Sequence[float],
    kernel_weights: Sequence[float],
    dim: int,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    call = FourierFrequencies(restored(key, count, bandwidths, kernel_weights), dim, dtype)
    return select(backend, "fourier", key.device).fourier_frequencies(call)


fourier_frequencies = define(
    _fourier_frequencies,
    lambda key, count, bandwidths, kernel_weights, dim, dtype, backend: key.new_empty((count, dim), dtype=dtype),
)
