"""MMD to a prior in closed form against quadrature, Monte Carlo, and equivalent priors."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import oracle
import pytest
import torch
from helpers import F32, F64, assert_close, leaf, points, positive, value_and_gradients
from torch import Tensor

import fastmmd
from fastmmd.priors import Gaussian, GaussianMixture, Prior, SwissRoll, Uniform

BANDWIDTHS = (0.7, 2.0)
COVARIANCE = torch.tensor([[1.5, 0.6], [0.6, 0.8]], dtype=F64)


def mixture(dim: int) -> GaussianMixture:
    factors = points(3, dim, dim, seed=5, dtype=F64, scale=0.4)
    covariances = factors @ factors.mT + 0.2 * torch.eye(dim, dtype=F64)
    return GaussianMixture((1.0, 2.0, 0.5), points(3, dim, seed=6, dtype=F64), covariances)


PRIORS: dict[str, Prior] = {
    "1-D gaussian": Gaussian(1, 1.3, [0.4]),
    "1-D mixture": mixture(1),
    "1-D box": Uniform(1, -0.5, 2.0),
    "scalar std": Gaussian(2, 1.7),
    "vector std": Gaussian(2, [0.5, 2.0], mean=[1.0, -0.3]),
    "covariance": Gaussian(2, mean=[0.2, 0.1], covariance=COVARIANCE),
    "mixture": mixture(2),
    "box": Uniform(2, [-1.0, 0.5], [2.0, 1.0]),
    "8-D": Gaussian(8, torch.linspace(0.5, 2, 8)),
    "8-D mixture": mixture(8),
    "8-D box": Uniform(8, -1.5, 2.0),
}
every_prior = pytest.mark.parametrize("name", PRIORS)
small_prior = pytest.mark.parametrize("name", [name for name, prior in PRIORS.items() if prior.dim <= 2])


def gaussians(prior: Prior) -> tuple[Tensor, Tensor, Tensor]:
    """Shares, means and covariances as they were given, not from the prior's own decomposition."""
    if isinstance(prior, GaussianMixture):
        factors = points(3, prior.dim, prior.dim, seed=5, dtype=F64, scale=0.4)
        covariances = factors @ factors.mT + 0.2 * torch.eye(prior.dim, dtype=F64)
        return torch.tensor([1.0, 2.0, 0.5], dtype=F64) / 3.5, points(3, prior.dim, seed=6, dtype=F64), covariances
    assert isinstance(prior, Gaussian)
    covariance = COVARIANCE if prior is PRIORS["covariance"] else prior.std.square().diag()
    return torch.ones(1, dtype=F64), prior.mean[None], covariance[None]


def quadrature(prior: Prior) -> tuple[Tensor, Tensor]:
    """Nodes [P, D] and weights [P] of the prior's measure: Gauss-Legendre in boxes, trapezoid for Gaussians."""
    if isinstance(prior, Uniform):
        node, weight = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(24))
        axes = [lo + (hi - lo) * (node + 1) / 2 for lo, hi in zip(prior.low, prior.high, strict=True)]
        w = torch.cartesian_prod(*[weight] * prior.dim).reshape(-1, prior.dim).prod(1)
        return torch.cartesian_prod(*axes).reshape(-1, prior.dim), w / w.sum()
    shares, means, covariances = gaussians(prior)
    std = covariances.diagonal(dim1=1, dim2=2).sqrt()
    # The trapezoid rule errs by exp(-2 pi^2 / 0.7^2) for a Gaussian (times a kernel) whose width is step / 0.7.
    narrow = torch.linalg.eigvalsh(covariances).amin(1).reciprocal().add(1 / BANDWIDTHS[0] ** 2).rsqrt().min().item()
    axes = [torch.arange(lo, hi, 0.7 * narrow, dtype=F64)
            for lo, hi in zip((means - 6.5 * std).amin(0), (means + 6.5 * std).amax(0), strict=True)]  # fmt: skip
    z = torch.cartesian_prod(*axes).reshape(-1, prior.dim)
    parts = [torch.distributions.MultivariateNormal(m, c) for m, c in zip(means, covariances, strict=True)]
    w = sum(share * part.log_prob(z).exp() for share, part in zip(shares, parts, strict=True))
    return z, w / w.sum()


@cache
def integrated(name: str, weighted: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """Points, their weights, and MMD^2 between them and the prior: one integral for all backends."""
    prior = PRIORS[name]
    z, w = quadrature(prior)
    x = points(15, prior.dim, dtype=F64, scale=1.4)
    wx = positive(15, dtype=F64) if weighted else None
    return x, wx, oracle.mmd2(x, z, BANDWIDTHS, kernel_weights=(1.0, 0.5), x_weights=wx, y_weights=w)


@small_prior
@pytest.mark.parametrize("weighted", [False, True])
def test_quadrature(backend: str, name: str, weighted: bool) -> None:
    x, wx, expected = integrated(name, weighted)
    value = fastmmd.mmd2_to_prior(x, PRIORS[name], BANDWIDTHS, kernel_weights=(1.0, 0.5), x_weights=wx)
    assert_close(value, expected, rtol=1e-8)  # 6.5 standard deviations leave 1e-10 outside


@every_prior
def test_monte_carlo(backend: str, name: str) -> None:
    """The closed form is the mean over prior samples of the unbiased estimate, within four standard errors."""
    prior = PRIORS[name]
    x = points(20, prior.dim, dtype=F64, shift=0.5)
    generator = torch.Generator().manual_seed(1)
    draws = [prior.sample(200, generator=generator, dtype=F64) for _ in range(50)]
    estimates = torch.stack([fastmmd.mmd2(x, y, BANDWIDTHS, estimator="unbiased") for y in draws])
    exact = fastmmd.mmd2_to_prior(x, prior, BANDWIDTHS, estimator="unbiased")
    error = estimates.std() / math.sqrt(50)
    assert error < 0.05 * exact.abs() + 5e-3
    assert abs(estimates.mean() - exact) < 4 * error


def test_estimator_concerns_the_points_only(backend: str) -> None:
    """The two estimators differ by their self-terms."""
    prior, x, w = PRIORS["vector std"], points(11, 2, dtype=F64), positive(11, dtype=F64)
    biased, unbiased = (
        (
            fastmmd.mmd2_to_prior(x, prior, BANDWIDTHS, estimator=estimator, x_weights=w),
            oracle.means(x, x, BANDWIDTHS, "gaussian", estimator, None, w, None, 1.0)[0],
        )
        for estimator in ("biased", "unbiased")
    )
    assert_close(unbiased[0] - biased[0], unbiased[1] - biased[1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Gaussian(2, 1.7), Gaussian(2, [1.7, 1.7], mean=[0.0, 0.0])),
        (PRIORS["vector std"], Gaussian(2, mean=[1.0, -0.3], covariance=torch.diag(torch.tensor([0.25, 4.0])))),
        (PRIORS["covariance"], GaussianMixture(None, [[0.2, 0.1]], COVARIANCE[None])),
        (PRIORS["covariance"], GaussianMixture((0.3, 0.7), [[0.2, 0.1]] * 2, COVARIANCE.expand(2, 2, 2))),
    ],
)
def test_equivalent_priors(backend: str, one: Prior, other: Prior) -> None:
    x = points(12, 2, dtype=F64)
    values = [value_and_gradients(lambda x, p=p: fastmmd.mmd2_to_prior(x, p, BANDWIDTHS), [x]) for p in (one, other)]
    assert_close(values[0][0], values[1][0])
    assert_close(values[0][1][0], values[1][1][0], rows=True)


@every_prior
def test_gradcheck(backend: str, name: str) -> None:
    prior = PRIORS[name]
    inputs = (
        leaf(points(5, prior.dim, dtype=F64, scale=1.5)),
        leaf(positive(2, dtype=F64)),
        leaf(positive(2, seed=1, dtype=F64)),
        leaf(positive(5, seed=2, dtype=F64)),
    )

    def value(x: Tensor, s: Tensor, w: Tensor, xw: Tensor) -> Tensor:
        return fastmmd.mmd2_to_prior(x, prior, s, kernel_weights=w, x_weights=xw, estimator="unbiased")

    assert torch.autograd.gradcheck(value, inputs)


@every_prior
def test_float32(backend: str, name: str) -> None:
    prior = PRIORS[name]
    x = points(300, prior.dim, scale=1.2)

    def value(x: Tensor) -> Tensor:
        return fastmmd.mmd2_to_prior(x, prior, BANDWIDTHS)

    result, (gradient,) = value_and_gradients(value, [x])
    expected, (wanted,) = value_and_gradients(value, [x], F64)
    assert result.dtype == F32
    # The bound of mmd2 and the rounding of the result's parts to float32: the self-term is at most sum|w| = 2.
    assert_close(result, expected, rtol=1e-6, atol=2e-7 * 2 / 300 + 2.0**-24 * 2)
    assert_close(gradient, wanted, rows=True, rtol=4e-6)


def test_wide_kernels_keep_their_digits(backend: str) -> None:
    """k within 1e-6 of 1 everywhere: constants cancel before float64 would lose them."""
    prior, x = Gaussian(2, 0.1), points(500, 2, dtype=F64, scale=0.1)
    result = fastmmd.mmd2_to_prior(x, prior, (100.0,))
    # Taylor: k - 1 ~ -r / (2 s^2), so MMD^2 ~ |mean x - 0|^2 / s^2 to relative order (0.1 / s)^2.
    assert_close(result, x.mean(0).square().sum() / 1e4, rtol=1e-4, sensitivity=1e-2)


@every_prior
def test_far_codes(backend: str, name: str) -> None:
    """At distance 1e5: the value of a point without neighbors, no NaN, no gradient."""
    prior = PRIORS[name]
    x = points(10, prior.dim)
    x[3] = 1e5

    def value(x: Tensor) -> Tensor:
        return fastmmd.mmd2_to_prior(x, prior, BANDWIDTHS)

    result, (gradient,) = value_and_gradients(value, [x])
    expected, (wanted,) = value_and_gradients(value, [x], F64)
    assert_close(result, expected, rtol=4e-6)
    assert gradient is not None and gradient.isfinite().all()
    assert wanted is not None and wanted[3].abs().max() < 1e-9


def test_leading_dimensions_and_half_types(backend: str) -> None:
    prior = PRIORS["covariance"]
    x, w = points(2, 3, 9, 2, dtype=torch.bfloat16), positive(3, 9)
    result, (gradient, _) = value_and_gradients(
        lambda x, w: fastmmd.mmd2_to_prior(x, prior, BANDWIDTHS, x_weights=w), [x, w]
    )
    assert result.shape == (2, 3) and result.dtype == F32 and gradient.dtype == torch.bfloat16
    for i in range(2):
        for j in range(3):
            alone = fastmmd.mmd2_to_prior(x[i, j].double(), prior, BANDWIDTHS, x_weights=w[j].double())
            assert_close(result[i, j], alone, rtol=1e-6, atol=2e-7)


def test_priors_without_a_closed_form_name_the_alternative() -> None:
    class Custom(Prior):
        pass

    for prior in (SwissRoll(), Custom(2), torch.distributions.Normal(0, 1), None):
        with pytest.raises(TypeError, match=r"prior: got .*mmd2\(x, prior.sample\(count\)\)"):
            fastmmd.mmd2_to_prior(points(4, 2), prior)
    with pytest.raises(ValueError, match="prior: got dimension 3, expected 2"):
        fastmmd.mmd2_to_prior(points(4, 2), Gaussian(3))


@pytest.mark.parametrize("bandwidths", [(0.5, 1.0, 2.0, 4.0), (0.7, 1.3, 2.9, 6.1)])
def test_float32_value_near_convergence(backend: str, bandwidths: tuple[float, ...]) -> None:
    """The three terms are rounded once, after they have canceled."""
    prior = Gaussian(4)
    x = prior.sample(2000, generator=torch.Generator().manual_seed(0))
    exact = fastmmd.mmd2_to_prior(x.double(), prior, bandwidths)
    error = fastmmd.mmd2_to_prior(x, prior, bandwidths).double() - exact
    assert abs(error) <= 1e-6 * exact + 2e-7 * len(bandwidths) / len(x)


class PointMass:
    """A prior of a user: all mass at one point. What `mmd2_to_prior` asks of it is `EmbeddedPrior`."""

    def __init__(self, point: Tensor) -> None:
        self.point, self.dim = point, len(point)

    def kernel_means(
        self, bandwidths: tuple[float, ...] | Tensor, kernel_weights: tuple[float, ...] | Tensor, device: torch.device
    ) -> PointMass:
        self.kernels = list(zip(bandwidths, kernel_weights, strict=True))
        return self

    own = torch.zeros((), dtype=F64)

    def cross(self, x: Tensor) -> Tensor:
        r = (x - self.point).square().sum(1)
        return sum((w * torch.expm1(-0.5 * r / s**2) for s, w in self.kernels), start=torch.zeros(len(x), dtype=F64))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_prior_of_ones_own(backend: str, as_tensor: bool) -> None:
    x, point = points(9, 3, dtype=F64), points(3, seed=1, dtype=F64)
    bandwidths = torch.tensor(BANDWIDTHS, dtype=F64) if as_tensor else BANDWIDTHS
    result = fastmmd.mmd2_to_prior(x, PointMass(point), bandwidths, kernel_weights=(1.0, 0.5))
    assert_close(result, oracle.mmd2(x, point[None], BANDWIDTHS, kernel_weights=(1.0, 0.5)))
