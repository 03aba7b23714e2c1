"""The Parzen protocol for very many samples: one pass over them, in parts that can be saved, continued and merged."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastmmd
from fastmmd.evaluation.parzen import SIGMAS, VALIDATION_POINTS, ParzenResult, best_sigma, flush_denormal
from fastmmd.evaluation.sampling import CHUNK, Sampler
from fastmmd.ops.arguments import check_int

BLOCKS = 4  # of the sampler at once: the kernel is fastest with several thousand samples
PILOT = 100_000  # samples of the greater pilot
SPACING = 1.02  # of the grid; a sigma off by 1% costs about 0.01^2 D nats: 0.08 at D = 784
MARGIN = 2  # steps of the grid beyond what the pilots expect
_STEEPEST = -1 / 5  # sigma falls as N^(-1 / (D + 4)) for a density in D dimensions


class LargeEvaluation:
    """A part of a Parzen evaluation: validation and test images in one pass over the samples, with a grid of sigmas.

    The samples are drawn in blocks that depend on the seed and their number only. So parts by several processes, merged
    in any order, have the samples of an evaluation in one part, and their sums up to rounding. Nothing that is kept
    grows with the number of samples. What the pass leaves is one distance per image and one sum per image and sigma.

    Args:
        sampler: draws [count, D]; of a model in eval mode.
        validation: [V, D]; its first 1,000 rows choose sigma.
        test: [T, D] with T >= 2.
        samples: of all parts together.
        sigmas: ascending; see `pilot_sigmas`.
        seed: of the samples.
        part: (k, n): the k-th of n parts, from 1.

    Raises:
        ValueError, TypeError: naming the argument.

    Example:
        >>> sigmas = pilot_sigmas(sampler, validation, 10_000_000)
        >>> evaluation = LargeEvaluation(sampler, validation, test, 10_000_000, sigmas)
        >>> while evaluation.remaining:
        ...     evaluation.advance()
        >>> evaluation.result()
    """

    def __init__(
        self,
        sampler: Sampler,
        validation: Tensor,
        test: Tensor,
        samples: int,
        sigmas: Sequence[float],
        *,
        seed: int = 0,
        part: tuple[int, int] = (1, 1),
    ) -> None:
        if len(validation) < 1 or len(test) < 2:
            got = f"{len(validation)} and {len(test)}"
            raise ValueError(f"validation, test: got {got} images, expected at least 1 and 2")
        number, parts = part
        check_int("part", parts)
        if not 1 <= number <= parts:
            raise ValueError(f"part: got {part}, expected (k, n) with 1 <= k <= n")
        self.sampler, self.samples, self.seed = sampler, check_int("samples", samples), seed
        validation = validation[:VALIDATION_POINTS]
        self.estimator = fastmmd.ParzenEstimator(torch.cat([validation, test]), sigmas)
        self._validation = len(validation)
        blocks = math.ceil(samples / CHUNK)
        self._next, self._last = blocks * (number - 1) // parts, blocks * number // parts
        self.total = min(self._last * CHUNK, samples) - self._next * CHUNK if self._last > self._next else 0

    @property
    def remaining(self) -> int:
        """Samples of this part that are still to be drawn; `total` is the number of all."""
        return self.total - self.estimator.count

    def advance(self, blocks: int = BLOCKS) -> None:
        """Draw the next blocks of samples, if any remain, and add them."""
        if not self.remaining:
            return
        last = min(self._next + blocks, self._last)
        with flush_denormal(self.sampler.device):
            chunk = torch.cat(list(self.sampler.blocks(self.samples, self.seed, self._next, last)))
            self.estimator.update(chunk)
        if chunk.is_cuda:
            torch.cuda.synchronize(chunk.device)  # or its caller would run ahead of what is done
        self._next = last

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` continues from: numbers and tensors."""
        return {"next": self._next, **self.estimator.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the same part of the same evaluation was when `state_dict` was called.

        Raises:
            ValueError: its images or sigmas differ.
        """
        self.estimator.load_state_dict(state)
        self._next = state["next"]

    def merge(self, other: LargeEvaluation) -> None:
        """Add another part, of which neither continues.

        Raises:
            ValueError: its images or sigmas differ.
        """
        self.estimator.merge(other.estimator)
        self.total += other.total

    def best(self) -> tuple[int, Tensor, Tensor]:
        """The index of the best sigma on the validation images, and log-likelihoods [S, V] and [S, T], float64."""
        likelihood = self.estimator.log_likelihood().double().cpu()
        validation, test = likelihood[:, : self._validation], likelihood[:, self._validation :]
        return int(validation.mean(1).nan_to_num(-math.inf).argmax()), validation, test

    def result(self) -> ParzenResult:
        """By the samples so far.

        Raises:
            ValueError: there is none.

        Warns:
            UserWarning: the best sigma lies on the edge of the grid.
        """
        best, validation, test = self.best()
        sigmas = self.estimator.sigmas
        if best in (0, len(sigmas) - 1):
            warnings.warn(
                f"the best sigma, {sigmas[best]:.3g}, is the edge of the grid {sigmas[0]:.3g}..{sigmas[-1]:.3g}: the "
                "likelihood at the best sigma of all is somewhat greater",
                stacklevel=2,
            )
        return ParzenResult(
            mean=test[best].mean().item(),
            standard_error=test[best].std().item() / math.sqrt(test.shape[1]),
            sigma=sigmas[best],
            samples=self.estimator.count,
            sampler=self.sampler.name,
            n_test=test.shape[1],
            validation_mean=validation[best].mean().item(),
        )


def pilot_sigmas(
    sampler: Sampler, validation: Tensor, samples: int, *, sigmas: Sequence[float] = SIGMAS, seed: int = 0
) -> list[float]:
    """Sigmas among which that of `samples` samples lies, 2% apart: powers of 1.02, ascending.

    Found by two pilots, of at most 100,000 samples and of a tenth of them. The best sigma falls with the number of
    samples, at first by a power law and then ever more slowly, down to the distance of real images from the set of
    all samples: the power law through the pilots is a lower bound, the greater pilot's sigma an upper one.

    Args:
        sampler, validation, seed: as of `LargeEvaluation`.
        sigmas: ascending grid to begin with; it is widened until the best one is inside.
    """
    greater = min(check_int("samples", samples), PILOT)
    lesser = max(greater // 10, 1)

    def choose(count: int) -> float:
        blocks = math.ceil(count / CHUNK)
        return _inside(lambda: sampler.blocks(count, seed, 0, blocks), validation, sigmas)

    with flush_denormal(sampler.device):
        first, second = choose(lesser), choose(greater)
    slope = math.log(second / first) / math.log(greater / lesser) if greater > lesser else 0.0
    low = math.log(second) + min(max(slope, _STEEPEST), 0.0) * math.log(samples / greater)
    step = math.log(SPACING)
    exponents = range(math.floor(low / step) - MARGIN, math.ceil(math.log(second) / step) + MARGIN + 1)
    return [float(f"{SPACING**exponent:.10g}") for exponent in exponents]  # the same on machines of another libm


def _inside(stream: Callable[[], Iterable[Tensor]], validation: Tensor, sigmas: Sequence[float]) -> float:
    """`best_sigma` of a grid that is widened until it is not the edge."""
    grid = list(sigmas)
    for _ in range(8):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sigma, mean = best_sigma(stream, validation, grid)
        if grid[0] < sigma < grid[-1] or not math.isfinite(mean):
            break
        grid = np.geomspace(grid[0] / 4, grid[-1] * 4, len(grid) + 6).tolist()
    return sigma
