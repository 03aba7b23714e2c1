"""Priors: moments, determinism, dtype, errors."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from helpers import F32, F64
from torch import Tensor

from fastmmd.priors import Gaussian, GaussianMixture, Prior, SwissRoll, Uniform

# Three dimensions: eigenvectors of a 2 x 2 matrix may come out symmetric, which would hide a transposed rotation.
COVARIANCE = torch.tensor([[2.0, 0.7, 0.1], [0.7, 0.5, -0.2], [0.1, -0.2, 1.0]])
MIXTURE = GaussianMixture((1.0, 3.0), [[0.0, 1.0, 1.0], [2.0, -1.0, 1.0]], torch.stack([COVARIANCE, torch.eye(3)]))
MEAN = torch.tensor([1.5, -0.5, 1.0], dtype=F64)
OFFSETS = torch.tensor([[-1.5, 1.5, 0.0], [0.5, -0.5, 0.0]], dtype=F64)  # of the components' means from the mixture's
BETWEEN = 0.25 * torch.outer(OFFSETS[0], OFFSETS[0]) + 0.75 * torch.outer(OFFSETS[1], OFFSETS[1])

CASES: list[tuple[Prior, Tensor, Tensor]] = [
    (Gaussian(3), torch.zeros(3), torch.eye(3)),
    (Gaussian(2, 5.0, [1.0, 2.0]), torch.tensor([1.0, 2.0]), 25 * torch.eye(2)),
    (Gaussian(2, [0.5, 2.0]), torch.zeros(2), torch.diag(torch.tensor([0.25, 4.0]))),
    (Gaussian(3, mean=[3.0, 0.0, 1.0], covariance=COVARIANCE), torch.tensor([3.0, 0.0, 1.0]), COVARIANCE),
    (MIXTURE, MEAN, 0.25 * COVARIANCE + 0.75 * torch.eye(3) + BETWEEN),
    (Uniform(2, -1.0, [1.0, 3.0]), torch.tensor([0.0, 1.0]), torch.diag(torch.tensor([4.0, 16.0]) / 12)),
]
PRIORS = [*(case[0] for case in CASES), GaussianMixture(), SwissRoll()]


@pytest.mark.parametrize(("prior", "mean", "covariance"), CASES)
def test_moments(prior: Prior, mean: Tensor, covariance: Tensor) -> None:
    n = 40_000
    z = prior.sample(n, generator=torch.Generator().manual_seed(1), dtype=F64)
    variance = covariance.to(F64).diagonal()
    assert ((z.mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all()
    # Five standard errors of a covariance of Gaussians; the mixture's and the box's are no larger.
    error = 5 * (2 * torch.outer(variance, variance) / n).sqrt()
    assert ((torch.cov(z.T) - covariance).abs() < error).all()


def test_gaussian_directions_follow_the_covariance() -> None:
    """Whitened draws are standard normal: no eigenvector is transposed."""
    z = Gaussian(3, covariance=COVARIANCE).sample(20_000, generator=torch.Generator().manual_seed(1), dtype=F64)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(COVARIANCE.to(F64)), z.T, upper=False)
    assert (torch.cov(white) - torch.eye(3)).abs().max() < 5 * math.sqrt(2 / 20_000)


def test_ring_of_ten() -> None:
    z = GaussianMixture().sample(20_000, generator=torch.Generator().manual_seed(1))
    angle = torch.atan2(z[:, 1], z[:, 0]) / (2 * math.pi / 10)
    nearest = angle.round()
    assert torch.bincount((nearest % 10).long(), minlength=10).min() > 1700  # 2000 expected, standard deviation 42
    rotate = nearest * (2 * math.pi / 10)
    outward = z[:, 0] * rotate.cos() + z[:, 1] * rotate.sin()
    across = -z[:, 0] * rotate.sin() + z[:, 1] * rotate.cos()
    assert abs(outward.mean() - 4) < 0.05 and abs(outward.std() - 1) < 0.05
    assert abs(across.mean()) < 0.02 and abs(across.std() - 0.2) < 0.03


def test_swiss_roll() -> None:
    roll = SwissRoll(turns=2.0, radius=5.0, std=0.01)
    z = roll.sample(20_000, generator=torch.Generator().manual_seed(1), dtype=F64)
    radius = z.norm(dim=1)
    assert 4.9 < radius.max() < 5.1
    # On the curve radius = 5 t / t_max: the angle is the parameter t, up to whole turns and noise.
    outer = radius > 1
    t = radius[outer] / 5 * 4 * math.pi
    difference = torch.atan2(z[outer, 1], z[outer, 0]) - t
    assert (difference.cos() - 1).abs().max() < 0.02
    # t = t_max sqrt(u): the radius squared is uniform.
    assert abs((radius.square() / 25).mean() - 0.5) < 5 / math.sqrt(12 * 20_000) + 1e-4


def test_uniform_stays_in_its_box() -> None:
    z = Uniform(2, [-1.0, 2.0], [0.0, 2.5]).sample(1000)
    assert (z >= torch.tensor([-1.0, 2.0])).all() and (z <= torch.tensor([0.0, 2.5])).all()
    assert (z.amax(0) - z.amin(0) > 0.97 * torch.tensor([1.0, 0.5])).all()


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: type(prior).__name__)
def test_reproducible_by_generator(prior: Prior) -> None:
    first, again, other = (prior.sample(50, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (50, prior.dim) and first.dtype == F32
    torch.manual_seed(3)
    default = prior.sample(5)
    torch.manual_seed(3)
    assert torch.equal(prior.sample(5), default) and not torch.equal(prior.sample(5), default)
    for dtype in (F64, torch.bfloat16):
        assert prior.sample(4, dtype=dtype).dtype == dtype
    assert prior.sample(0).shape == (0, prior.dim)
    assert prior.sample(3, device="cpu").device.type == "cpu"
    assert len(prior.sample(200, dtype=F64).unique(dim=0)) == 200


def test_arguments_are_copied() -> None:
    std = torch.ones(2)
    prior = Gaussian(2, std)
    std.mul_(7)
    assert torch.equal(prior.std, torch.ones(2, dtype=F64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(0), "dim: got 0"),
        (lambda: Gaussian(2.0), "dim: got 2.0"),  # type: ignore[arg-type]
        (lambda: Gaussian(True), "dim: got True"),
        (lambda: Gaussian(2, 0.0), "std: got"),
        (lambda: Gaussian(2, -1.0), "std: got"),
        (lambda: Gaussian(2, math.nan), "std: got nan"),
        (lambda: Gaussian(2, [1.0, 1.0, 1.0]), "std: got .* expected a finite number or 2"),
        (lambda: Gaussian(2, mean=[1.0]), "mean: got"),
        (lambda: Gaussian(2, covariance=torch.tensor([[1.0, 2.0], [0.0, 1.0]])), "covariance: .*symmetric"),
        (lambda: Gaussian(2, covariance=torch.eye(3)), "covariance: got shape"),
        (lambda: Gaussian(2, covariance=torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "covariance: .*positive definite"),
        (lambda: GaussianMixture(means=[[0.0]]), "means: give means and covariances together"),
        (lambda: GaussianMixture(None, [0.0, 1.0], torch.ones(2, 1, 1)), r"means: got shape \[2\]"),
        (lambda: GaussianMixture(None, [[0.0], [1.0]], torch.ones(1, 1, 1)), "covariances: got shape"),
        (lambda: GaussianMixture((1.0,), [[0.0], [1.0]], torch.ones(2, 1, 1)), "weights: .*2 of them|weights: got"),
        (lambda: GaussianMixture((1.0, -1.0), [[0.0], [1.0]], torch.ones(2, 1, 1)), "weights: got"),
        (lambda: GaussianMixture((1.0, 1.0), [[0.0], [1.0]], -torch.ones(2, 1, 1)), "covariances: got eigenvalues"),
        (lambda: Uniform(2, 1.0, 1.0), "low: got .* less than high"),
        (lambda: Uniform(2, 0.0, [1.0, -1.0]), "low: got"),
        (lambda: Uniform(2, [0.0] * 3, 1.0), "low: got"),
        (lambda: SwissRoll(turns=0.0), "turns: got 0.0"),
        (lambda: SwissRoll(std=math.inf), "std: got inf"),
    ],
)
def test_errors(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_subclasses_must_sample() -> None:
    with pytest.raises(NotImplementedError, match="must implement sample"):
        type("Custom", (Prior,), {})(2).sample(1)


@pytest.mark.parametrize("prior", [Gaussian(2), GaussianMixture(), Uniform(2), SwissRoll()])
def test_pickled_priors_draw_the_same(prior: Prior) -> None:
    again = pickle.loads(pickle.dumps(prior))
    draws = [p.sample(5, generator=torch.Generator().manual_seed(0)) for p in (prior, again, copy.deepcopy(prior))]
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], draws[2])
