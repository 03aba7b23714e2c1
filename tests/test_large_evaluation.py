"""Parzen evaluations in one pass over many samples: blocks, chunks, parts, sigmas, memory."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path

import pytest
import torch
from helpers import FULL, assert_same
from memory import measured
from torch import Tensor

import fastmmd
from fastmmd.evaluation import LargeEvaluation, Sampler, parzen_evaluation, pilot_sigmas
from fastmmd.evaluation.sampling import CHUNK

ROOT = Path(__file__).parents[1]
DIM = 40
SAMPLES = 23_000  # 12 blocks, the last one half as large


def curved(count: int, generator: torch.Generator) -> Tensor:
    """Draws near a surface of 2 dimensions in DIM."""
    z = torch.randn(count, 2, generator=generator)
    angles = torch.arange(1, DIM + 1) / 8
    return torch.sin(z[:, :1] * angles) / 2 + torch.cos(z[:, 1:] * angles) / 2


TOY = Sampler("surface", curved, torch.device("cpu"))


def images(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return curved(count, generator) + 0.1 * torch.randn(count, DIM, generator=generator)


VALIDATION, TEST = images(60, 1), images(90, 2)


@functools.cache
def grid() -> list[float]:
    return pilot_sigmas(TOY, VALIDATION, SAMPLES)


def finished(blocks: int, part: tuple[int, int] = (1, 1)) -> LargeEvaluation:
    evaluation = LargeEvaluation(TOY, VALIDATION, TEST, SAMPLES, grid(), part=part)
    while evaluation.remaining:
        evaluation.advance(blocks)
    return evaluation


def test_blocks_are_the_same_whichever_are_drawn() -> None:
    state = torch.get_rng_state()
    whole = list(TOY.blocks(SAMPLES, 3, 0, 12))
    assert [len(block) for block in whole] == [CHUNK] * 11 + [CHUNK // 2]
    assert_same(list(TOY.blocks(SAMPLES, 3, 5, 7)), whole[5:7])
    assert_same(list(TOY.blocks(10**7, 3, 4, 5)), whole[4:5])
    assert torch.equal(torch.get_rng_state(), state)
    firsts = [float(block[0, 0]) for seed in (3, 4) for block in TOY.blocks(4 * CHUNK, seed, 0, 4)]
    assert len(set(firsts)) == 8


def test_chunks_and_partitions_agree() -> None:
    whole = finished(blocks=12).result()
    samples = torch.cat(list(TOY.blocks(SAMPLES, 0, 0, 12)))
    expected = fastmmd.parzen_log_likelihood(TEST, samples, whole.sigma)
    assert whole.mean == pytest.approx(expected.double().mean().item(), abs=1e-4)
    assert whole.standard_error == pytest.approx(expected.std().item() / math.sqrt(90), rel=1e-4)
    assert (whole.samples, whole.sampler, whole.n_test) == (SAMPLES, "surface", 90)
    results = [finished(blocks).result() for blocks in (1, 5)]
    for count in (2, 3, 13):  # of 13 parts one is empty
        merged, *others = (finished(4, (number, count)) for number in range(1, count + 1))
        for other in others:
            merged.merge(other)
        assert merged.remaining == 0
        results.append(merged.result())
    for result in results:
        assert (result.sigma, result.samples) == (whole.sigma, SAMPLES)
        assert abs(result.mean - whole.mean) < 1e-4 and abs(result.validation_mean - whole.validation_mean) < 1e-4


def test_merging_does_not_depend_on_the_order() -> None:
    values = []
    for order in itertools.permutations(range(1, 4)):
        first, *others = (finished(4, (number, 3)) for number in order)
        for other in others:
            first.merge(other)
        state = first.state_dict()
        values.append(state["sums"].log())
    for value in values[1:]:
        assert (value - values[0]).abs().max() < 1e-12


def test_sigma_is_that_of_the_usual_protocol() -> None:
    large = finished(4).result()
    samples = torch.cat(list(TOY.blocks(SAMPLES, 0, 0, 12)))
    usual = parzen_evaluation(samples, VALIDATION, TEST, sigmas=(0.05, 0.1, 0.2, 0.4))
    assert abs(math.log(large.sigma / usual.sigma)) < 0.02
    assert usual.validation_mean - 0.01 * DIM / 8 < large.validation_mean <= usual.validation_mean + 1e-3


def test_pilots_expect_smaller_sigmas_of_more_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    best = finished(4).result().sigma
    monkeypatch.setattr("fastmmd.evaluation.large.PILOT", 4_000)  # a sixth of the samples: the rest is foreseen
    foreseen = pilot_sigmas(TOY, VALIDATION, SAMPLES)
    ratios = [b / a for a, b in itertools.pairwise(foreseen)]
    assert min(ratios) > 1.0199 and max(ratios) < 1.0201 and len(foreseen) < 40
    assert foreseen[0] < best < foreseen[-1]
    assert pilot_sigmas(TOY, VALIDATION, 4_000)[0] > foreseen[0] > pilot_sigmas(TOY, VALIDATION, 10**7)[0]
    # A grid to begin with that is far away.
    assert pilot_sigmas(TOY, VALIDATION, SAMPLES, sigmas=(3.0, 4.0)) == pytest.approx(foreseen, rel=0.05)


def test_best_sigma_on_the_edge_warns() -> None:
    evaluation = LargeEvaluation(TOY, VALIDATION, TEST, 4_000, (2.0, 3.0))
    evaluation.advance()
    with pytest.warns(UserWarning, match="is the edge of the grid 2..3"):
        evaluation.result()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test": TEST[:1]}, "validation, test: got 60 and 1"),
        ({"validation": VALIDATION[:0]}, "validation, test: got 0"),
        ({"samples": 0}, "samples: got 0"),
        ({"part": (3, 2)}, r"part: got \(3, 2\)"),
        ({"part": (1, 0)}, "part: got 0"),
    ],
)
def test_wrong_arguments(changed: dict[str, object], message: str) -> None:
    arguments = {"validation": VALIDATION, "test": TEST, "samples": 10, "sigmas": grid()} | changed
    with pytest.raises(ValueError, match=message):
        LargeEvaluation(TOY, **arguments)  # type: ignore[arg-type]


MEMORY = """
import sys
import torch
from fastmmd.evaluation import LargeEvaluation, Sampler

POINTS, STEPS = map(int, sys.argv[1:])
sampler = Sampler("uniform", lambda count, generator: torch.rand(count, 784, generator=generator), torch.device("cpu"))
points = torch.rand(POINTS, 784)
evaluation = LargeEvaluation(sampler, points[: POINTS // 10], points, 10**7, [0.1 * 1.02**k for k in range(41)])
for _ in range(5):
    evaluation.advance()
    evaluation.result()
before = peak()
for _ in range(STEPS):
    evaluation.advance()
    evaluation.result()
print(before, peak())
"""


def test_memory_is_constant() -> None:
    before, after = measured(MEMORY, *((10_000, 8) if FULL else (300, 10)))
    assert after - before < 100 and after < 1_000  # MiB; the samples of one update are 25
