"""Walks through code space, the parts of a prior, and their picture."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from fastmmd.evaluation import component_walks, percentile_grid, percentile_walks, prior_parts, roll_walk, save_walks
from fastmmd.priors import Gaussian, GaussianMixture, SwissRoll, Uniform

F64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- walks ---


def test_percentile_grid_has_equal_probability() -> None:
    prior = Gaussian(3, std=(1.0, 2.0, 3.0), mean=(0.0, 1.0, 5.0))
    grid = percentile_grid(prior, 4, dims=(0, 1))
    assert grid.shape == (4, 4, 3) and grid.dtype == torch.float32
    assert torch.equal(grid[..., 2], torch.full((4, 4), 5.0))
    assert torch.equal(grid[0, :, 0], grid[3, :, 0]) and (grid[0, :, 0].diff() > 0).all()
    assert torch.equal(grid[:, 0, 1], grid[:, 3, 1]) and (grid[:, 0, 1].diff() < 0).all()  # up as in a plot
    levels = torch.distributions.Normal(1.0, 2.0).cdf(grid[:, 0, 1])
    torch.testing.assert_close(levels, torch.tensor([0.875, 0.625, 0.375, 0.125]))


def test_percentiles_of_other_priors() -> None:
    box = percentile_grid(Uniform(2, (0.0, 10.0), (1.0, 20.0)), 2)
    torch.testing.assert_close(box, torch.tensor([[[0.25, 17.5], [0.75, 17.5]], [[0.25, 12.5], [0.75, 12.5]]]))
    turned = Gaussian(2, covariance=((2.0, 1.0), (1.0, 2.0)))  # variances 1 and 3 along the diagonals
    walks = percentile_walks(turned, 99).double()
    for walk, direction, std in ((walks[0], (1, -1), 1.0), (walks[1], (1, 1), 3**0.5)):
        along = (walk @ torch.tensor(direction, dtype=F64)).abs() / 2**0.5
        assert along.max().item() == pytest.approx(std * 2.5723, rel=1e-3)  # the normal quantile at 98.5 / 99
        torch.testing.assert_close(along.square(), walk.square().sum(1), atol=1e-6, rtol=1e-5)


def test_percentile_walks_move_one_dimension() -> None:
    walks = percentile_walks(Gaussian(4, std=2.0), 5)
    assert walks.shape == (4, 5, 4)
    for dim in range(4):
        others = [other for other in range(4) if other != dim]
        assert (walks[dim, :, dim].diff() > 0).all() and torch.count_nonzero(walks[dim][:, others]) == 0


def test_component_walks_go_outwards_along_the_ring() -> None:
    walks = component_walks(GaussianMixture(), 8)
    assert walks.shape == (10, 8, 2)
    radius = walks.norm(dim=-1)
    assert (radius.diff(dim=1) > 0).all()
    reach = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(7.5 / 8))  # std 1 along the radius
    torch.testing.assert_close(radius[:, [0, -1]], torch.stack([4 - reach, 4 + reach]).expand(10, 2))
    angle = torch.arange(10) * (2 * math.pi / 10)
    directions = torch.stack([angle.cos(), angle.sin()], 1)
    torch.testing.assert_close(walks, radius[..., None] * directions[:, None], atol=1e-5, rtol=1e-5)


def test_component_walk_of_a_single_gaussian() -> None:
    (walk,) = component_walks(Gaussian(3, std=(1.0, 5.0, 2.0)), 3)
    assert torch.count_nonzero(walk[:, [0, 2]]) == 0 and (walk[:, 1].diff() > 0).all()


def test_roll_walk_lies_on_the_roll() -> None:
    prior = SwissRoll(std=1e-6)
    walk = roll_walk(prior, 2_000)
    draws = prior.sample(500, generator=seeded())
    assert torch.cdist(draws, walk).amin(1).max() < 0.05 and (walk.norm(dim=1).diff() > 0).all()
    # Equal probability: as many draws between two neighbors of a coarse walk as between any other two.
    radius = roll_walk(prior, 4).norm(dim=1)
    share = torch.bucketize(prior.sample(20_000, generator=seeded()).norm(dim=1), radius).bincount(minlength=5) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.125, 0.25, 0.25, 0.25, 0.125]), atol=0.015, rtol=0)


def test_walks_refuse_what_they_cannot_walk() -> None:
    with pytest.raises(TypeError, match="prior: got SwissRoll, expected Gaussian or Uniform"):
        percentile_grid(SwissRoll())
    with pytest.raises(TypeError, match="prior: got Uniform, expected GaussianMixture"):
        component_walks(Uniform(2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="prior: got Gaussian, expected SwissRoll"):
        roll_walk(Gaussian(2))  # type: ignore[arg-type]
    for dims in ((0, 0), (0, 2), (-1, 0)):
        with pytest.raises(ValueError, match="dims: got"):
            percentile_grid(Gaussian(2), dims=dims)
    with pytest.raises(ValueError, match="count: got 0"):
        roll_walk(SwissRoll(), 0)


# --- parts of the prior ---


def test_parts_of_a_mixture_are_its_components() -> None:
    prior, labels = GaussianMixture(), torch.randint(10, (5_000,), generator=seeded())
    draws = prior.sample(len(labels), labels=labels, generator=seeded())
    parts = prior_parts(prior, draws)
    assert parts.dtype == torch.int64 and (parts == labels).double().mean() > 0.99  # they hardly overlap
    walks = component_walks(prior, 8)
    assert torch.equal(prior_parts(prior, walks.flatten(0, 1)), torch.arange(10).repeat_interleave(8))


def test_parts_are_the_largest_responsibilities() -> None:
    """Covariances and weights decide, not only the distance to the means."""
    means = ((0.0, 0.0), (3.0, 0.0), (0.0, 3.0))
    covariances = (((4.0, 1.0), (1.0, 1.0)), ((0.2, 0.1), (0.1, 0.3)), ((1.0, -0.8), (-0.8, 1.0)))
    prior = GaussianMixture((0.6, 0.1, 0.3), means, covariances)
    points = 3 * torch.randn(500, 2, generator=seeded())
    densities = [
        torch.distributions.MultivariateNormal(torch.tensor(mean), torch.tensor(covariance)).log_prob(points)
        for mean, covariance in zip(means, covariances, strict=True)
    ]
    parts = (torch.stack(densities, 1) + torch.tensor((0.6, 0.1, 0.3)).log()).argmax(1)
    assert torch.equal(prior_parts(prior, points), parts)
    assert (parts != torch.cdist(points, torch.tensor(means)).argmin(1)).double().mean() > 0.1


def test_parts_of_the_roll_follow_it() -> None:
    prior = SwissRoll()
    walk = roll_walk(prior, 70)
    assert torch.equal(prior_parts(prior, walk), torch.arange(10).repeat_interleave(7))
    labels = torch.randint(10, (5_000,), generator=seeded())
    draws = prior.sample(len(labels), labels=labels, generator=seeded())
    assert (prior_parts(prior, draws) == labels).double().mean() > 0.9  # noise crosses the borders between parts
    assert torch.equal(prior_parts(SwissRoll(num_classes=2), walk), torch.arange(2).repeat_interleave(35))


def test_parts_need_a_prior_with_parts() -> None:
    with pytest.raises(TypeError, match="prior: got Gaussian, expected GaussianMixture or SwissRoll"):
        prior_parts(Gaussian(2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"codes: got shape \[3, 4\], expected \[N, 2\]"):
        prior_parts(SwissRoll(), torch.zeros(3, 4))


@pytest.mark.parametrize("shape", [(10, 8), (1, 40), (12, 3)])
def test_walks_figure(tmp_path: Path, shape: tuple[int, int]) -> None:
    draws = GaussianMixture().sample(200, generator=seeded())
    save_walks(tmp_path / "x.png", torch.randn(*shape, 2), draws, torch.rand(*shape, 16), (4, 4), "title")
    assert (tmp_path / "x.png").stat().st_size > 8_000
