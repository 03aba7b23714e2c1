"""The Parzen-window protocol of the AAE, MMD-AE and DS-AAE papers.

A Gaussian window of width sigma around each of 10,000 samples; sigma chosen on the validation split, the
mean log-likelihood reported on the test split (Goodfellow et al. 2014, section 5; Makhzani et al. 2015).
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

import fastmmd
from fastmmd.evaluation.sampling import CHUNK, Sampler, prior_samples
from fastmmd.nn import GenerativeModel
from fastmmd.nn.inputs import eval_mode

SIGMAS = tuple(float(sigma) for sigma in np.logspace(-1, 0, 10))
VALIDATION_POINTS = 1_000
#: What samples come from: a model (its prior), a sampler, a function (count, generator) -> [count, D], or samples.
Source = GenerativeModel | Sampler | Callable[[int, torch.Generator], Tensor] | Tensor
_REFINED = 11  # sigmas per refinement; two of them place sigma within 1% of the best


@dataclass(frozen=True)
class ParzenResult:
    """Log-likelihood of a test set in nats per image, and how it was computed.

    Attributes:
        mean, standard_error: over the test images; standard_error is std / sqrt(n_test).
        sigma: width of the window, chosen on the validation split.
        samples: number of samples that carry the windows.
        sampler: how they were drawn.
        n_test: number of test images.
        validation_mean: the mean on the validation images that chose sigma.
    """

    mean: float
    standard_error: float
    sigma: float
    samples: int
    sampler: str
    n_test: int
    validation_mean: float

    def __str__(self) -> str:
        return (
            f"{self.mean:.1f} +- {self.standard_error:.1f} nats (sigma {self.sigma:.3f}, {self.samples:,} "
            f"samples from the {self.sampler}, {self.n_test:,} test images)"
        )


def parzen_evaluation(
    model_or_sampler: Source,
    validation: Tensor,
    test: Tensor,
    samples: int = 10_000,
    *,
    sigmas: Sequence[float] = SIGMAS,
    seed: int = 0,
) -> ParzenResult:
    """Estimate the test log-likelihood of a model by the papers' protocol.

    Args:
        model_or_sampler: a model (an autoencoder sampled from its prior, in eval mode), a `Sampler`, a function
            (count, generator) -> [count, D], or the samples themselves [N, D].
        validation: [V, D]; its first 1,000 rows choose sigma.
        test: [T, D] with T >= 2, touched once.
        samples: how many samples to draw (all of them if samples are given).
        sigmas: ascending grid to begin with; sigma is refined between the neighbors of its best value.
        seed: of the samples.

    Raises:
        ValueError: an empty split, fewer than two test points, mismatched dimensions, no samples, a bad grid.

    Warns:
        UserWarning: the best sigma lies on the edge of the grid.
    """
    if validation.ndim != 2 or test.ndim != 2 or validation.shape[1] != test.shape[1] or len(validation) == 0:
        shapes = f"{tuple(validation.shape)} and {tuple(test.shape)}"
        raise ValueError(f"validation [V, D] and test [T, D] must be matrices with the same D, got {shapes}")
    if len(test) < 2:
        raise ValueError(f"test must have at least 2 rows for a standard error, got {len(test)}")
    name, count, stream = _source(model_or_sampler, samples, seed, test.device)
    with _evaluating(model_or_sampler), flush_denormal(test.device):
        sigma, validation_mean = best_sigma(stream, validation, sigmas)
        likelihood = _log_likelihood(stream(), test, [sigma])[0]
    return ParzenResult(
        mean=likelihood.mean().item(),
        standard_error=likelihood.std().item() / math.sqrt(len(test)),
        sigma=sigma,
        samples=count,
        sampler=name,
        n_test=len(test),
        validation_mean=validation_mean,
    )


def choose_sigma(
    model_or_sampler: Source,
    validation: Tensor,
    samples: int = 10_000,
    *,
    sigmas: Sequence[float] = SIGMAS,
    seed: int = 0,
) -> tuple[float, float]:
    """Sigma of the highest mean log-likelihood on `validation`, and that mean: see `parzen_evaluation`."""
    _, _, stream = _source(model_or_sampler, samples, seed, validation.device)
    with _evaluating(model_or_sampler), flush_denormal(validation.device):
        return best_sigma(stream, validation, sigmas)


def best_sigma(
    stream: Callable[[], Iterable[Tensor]], validation: Tensor, sigmas: Sequence[float]
) -> tuple[float, float]:
    """Sigma, and the mean log-likelihood of validation images [V, D], from samples that `stream` gives at each call."""
    grid = [float(sigma) for sigma in sigmas]
    if len(grid) < 2 or any(b <= a for a, b in zip(grid, grid[1:], strict=False)) or grid[0] <= 0:
        raise ValueError(f"sigmas must be at least two ascending positive numbers, got {grid}")
    points = validation[:VALIDATION_POINTS]
    for round_ in range(3):
        means = _log_likelihood(stream(), points, grid).mean(1)
        best = int(means.nan_to_num(-math.inf).argmax())
        if round_ == 0 and best in (0, len(grid) - 1):
            warnings.warn(
                f"the best sigma, {grid[best]:.3g}, is the edge of the grid {grid[0]:.3g}..{grid[-1]:.3g}: "
                "widen the grid (evaluation.sigma_low, evaluation.sigma_high)",
                stacklevel=3,
            )
        if round_ < 2:
            low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
            grid = np.geomspace(low, high, _REFINED).tolist()
    return grid[best], means[best].item()


def _log_likelihood(samples: Iterable[Tensor], points: Tensor, sigmas: Sequence[float]) -> Tensor:
    """[S, M] float64, on the host."""
    estimator = fastmmd.ParzenEstimator(points, sigmas)
    for chunk in samples:
        estimator.update(chunk)
    return estimator.log_likelihood().detach().double().cpu()


def _source(
    source: Source, samples: int, seed: int, device: torch.device
) -> tuple[str, int, Callable[[], Iterable[Tensor]]]:
    """Name and number of the samples, and a function that streams the same samples at each call."""
    if isinstance(source, Tensor):
        if source.ndim != 2 or len(source) == 0:
            raise ValueError(f"samples must be a matrix [N, D], got {tuple(source.shape)}")
        return "given samples", len(source), lambda: source.split(CHUNK)
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if isinstance(source, torch.nn.Module):
        sampler = prior_samples(cast(GenerativeModel, source))
    elif isinstance(source, Sampler):
        sampler = source
    elif callable(source):
        sampler = Sampler(getattr(source, "__name__", "given function"), source, device)
    else:
        came = type(source).__name__
        raise TypeError(f"a model, a Sampler, a function or samples [N, D] expected, got {came}")
    return sampler.name, samples, lambda: sampler.stream(samples, seed)


def _evaluating(source: Source) -> AbstractContextManager[None]:
    """A model in eval mode for the time being."""
    return eval_mode(source) if isinstance(source, torch.nn.Module) else contextlib.nullcontext()


@contextlib.contextmanager
def flush_denormal(device: torch.device) -> Iterator[None]:
    """Treat denormal numbers as zero: far samples give millions of them, each slow on a CPU."""
    before = (torch.tensor(1e-40) * 1).item() == 0
    change = device.type == "cpu" and not before and torch.set_flush_denormal(True)
    try:
        yield
    finally:
        if change:
            torch.set_flush_denormal(False)
