"""What all priors share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..device_cache import tracing
from ..ops.arguments import FLOATS, check_int
from ..ops.labels import check_labels, unknown_labels

Vector = Sequence[float] | Tensor
F64 = torch.float64


class Prior:
    """A distribution over codes of dimension `dim`; subclasses sample, and some have `kernel_means` (`EmbeddedPrior`).

    `num_classes` is the number of parts that labels choose from, 0 where a prior has no parts.
    """

    num_classes: int = 0

    def __init__(self, dim: int) -> None:
        self.dim = check_int("dim", dim)

    def sample(
        self,
        count: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Independent draws: [count, dim], float32 by default, from the given or the default generator.

        Args:
            labels: [count] int64 on the draws' device, the class of each draw. A draw comes from the part of the
                prior that its label selects, or from the whole prior for -1 and without labels, by the same random
                numbers. An invalid label raises on the CPU; elsewhere, where checking it would synchronize, its draw
                is NaN.

        Raises:
            ValueError, TypeError: labels for a prior without classes, or of another shape, dtype or device.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement sample()")

    def _known(self, z: Tensor, labels: Tensor) -> Tensor:
        """Checks the labels; z [N, D], NaN where one is no class and the device is not the CPU, where that raises."""
        if not self.num_classes:
            raise ValueError(
                f"labels: got some, but {type(self).__name__} has no classes; GaussianMixture and SwissRoll have"
            )
        check_labels(labels, z.shape[0], self.num_classes, z.device)
        return z.masked_fill(unknown_labels(labels, self.num_classes)[:, None], math.nan)


def check_prior(prior: object) -> None:
    """Something to draw from: a `Prior`, or an object with its `dim` and `sample`.

    Raises:
        TypeError: something else.
    """
    if not callable(getattr(prior, "sample", None)) or not isinstance(getattr(prior, "dim", None), int):
        raise TypeError(f"prior: got {type(prior).__name__}, expected a Prior such as fastmmd.priors.Gaussian(dim)")


def check_draws(count: int, generator: object, device: object, dtype: object) -> None:
    """What torch's generators would refuse with an error that names nothing.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if tracing():
        return
    check_int("count", count, 0)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: got {type(generator).__name__}, expected a torch.Generator")
    if dtype is not None and (not isinstance(dtype, torch.dtype) or dtype not in FLOATS):
        raise TypeError(f"dtype: got {dtype!r}, expected a floating one such as torch.float32")
    if device is not None:
        try:
            where = device if isinstance(device, torch.device) else torch.device(device)  # type: ignore[call-overload]
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f'device: got {device!r}, expected a torch.device or its name, "cpu" or "cuda:0"'
            ) from None
        if where.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device: got {device!r}, but torch sees no CUDA device; expected another, such as cpu")


def array(name: str, value: object) -> Tensor:
    """Real numbers in any nesting as a float64 tensor on the CPU, perhaps the given one.

    Raises:
        TypeError: something else, or a tensor without values.
    """
    try:
        unreal = isinstance(value, Tensor) and (value.is_nested or value.is_complex() or value.layout != torch.strided)
        if unreal or isinstance(value, bool):
            raise TypeError
        return torch.as_tensor(value, dtype=F64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name}: got {value!r}, expected a number or a sequence of them") from None


def vector(name: str, value: float | Vector, dim: int) -> Tensor:
    """A finite number or [D] of them as a new [D] float64 tensor on the CPU."""
    given = array(name, value)
    if given.ndim > 1 or (given.ndim == 1 and given.shape[0] != dim) or not bool(given.isfinite().all()):
        raise ValueError(f"{name}: got {value!r}, expected a finite number or {dim} of them")
    return given.expand(dim).clone()


def positive(name: str, numbers: Tensor) -> Tensor:
    """The numbers, all of them above 0."""
    if not bool((numbers > 0).all()):
        raise ValueError(f"{name}: got {numbers.tolist()}, expected positive numbers")
    return numbers
