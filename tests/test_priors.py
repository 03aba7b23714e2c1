"""Priors: moments, determinism, dtype, errors."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from helpers import F32, F64, assert_close, points, positive, value_and_gradients
from memory import measured
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastmmd import mmd2_to_prior
from fastmmd.priors import Gaussian, GaussianMixture, Prior, SwissRoll, Uniform, mixture

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


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


def test_labels_choose_the_component() -> None:
    n = 20_000
    labels = torch.arange(2 * n) % 2  # in equal shares, whatever the weights
    z = MIXTURE.sample(2 * n, labels=labels, generator=torch.Generator().manual_seed(1), dtype=F64)
    for i, covariance in enumerate((COVARIANCE, torch.eye(3))):
        part, variance = z[labels == i], covariance.to(F64).diagonal()
        assert ((part.mean(0) - (MEAN + OFFSETS[i])).abs() < 5 * (variance / n).sqrt()).all()
        error = 5 * (2 * torch.outer(variance, variance) / n).sqrt()
        assert ((torch.cov(part.T) - covariance).abs() < error).all()
    assert (MIXTURE.num_classes, GaussianMixture().num_classes) == (2, 10)
    one = GaussianMixture((1.0,), [[5.0]], [[[1.0]]])
    assert torch.equal(*(one.sample(3, labels=torch.full((3,), i), generator=generator(1)) for i in (0, -1)))


@pytest.mark.parametrize("num_classes", [10, 4])
def test_labels_choose_the_part_of_the_roll(num_classes: int) -> None:
    roll = SwissRoll(radius=5.0, std=1e-6, num_classes=num_classes)
    assert roll.num_classes == num_classes and SwissRoll().num_classes == 10
    labels = torch.arange(2000 * num_classes) % num_classes
    share = roll.sample(len(labels), labels=labels, dtype=F64).norm(dim=1).square() / 25 * num_classes - labels
    assert (-1e-3 < share).all() and (share < 1 + 1e-3).all()
    for i in range(num_classes):  # uniform within each part
        assert abs(share[labels == i].mean() - 0.5) < 5 / math.sqrt(12 * 2000)


def test_a_margin_keeps_the_classes_of_the_roll_apart() -> None:
    """Draws with labels only: the others are those of a roll without a margin."""
    roll, whole = SwissRoll(radius=5.0, std=1e-6, num_classes=4, margin=0.2), SwissRoll(radius=5.0, std=1e-6)
    labels = torch.arange(8_000) % 4
    share = roll.sample(len(labels), labels=labels, dtype=F64).norm(dim=1).square() / 25 * 4 - labels
    assert 0.1 - 1e-3 < share.min() < 0.11 and 0.89 < share.max() < 0.9 + 1e-3
    assert abs(share.mean() - 0.5) < 5 / math.sqrt(12 * 8000)
    assert torch.equal(*(one.sample(50, generator=generator(1)) for one in (roll, whole)))
    unlabeled = torch.full((50,), -1)
    assert torch.equal(*(roll.sample(50, labels=some, generator=generator(1)) for some in (None, unlabeled)))


@pytest.mark.parametrize("prior", [MIXTURE, GaussianMixture(), SwissRoll()])
def test_draws_without_a_label_stay_the_same(prior: Prior) -> None:
    plain = prior.sample(40, generator=generator(5))
    unlabeled = torch.full((40,), -1)
    assert torch.equal(prior.sample(40, labels=unlabeled, generator=generator(5)), plain)
    some = unlabeled.clone()
    some[:20] = 1
    mixed = prior.sample(40, labels=some, generator=generator(5))
    assert torch.equal(mixed[20:], plain[20:]) and not torch.equal(mixed[:20], plain[:20])
    assert torch.equal(mixed[:20], prior.sample(40, labels=torch.ones_like(some), generator=generator(5))[:20])
    assert prior.sample(4, labels=some[:4], dtype=torch.bfloat16).dtype == torch.bfloat16
    assert prior.sample(0, labels=some[:0]).shape == (0, prior.dim)


def test_the_order_of_random_numbers() -> None:
    """Seeds give the same draws from one version to the next."""
    g, parts = generator(2), MIXTURE.components()
    z, u = torch.randn(30, 3, generator=g, dtype=F64), torch.rand(30, generator=g, dtype=F64)
    chosen = (u >= 0.25).long()
    assert parts.eigenvectors is not None and 0 < chosen.sum() < 30
    expected = torch.einsum("nij,nj->ni", parts.eigenvectors[chosen], parts.eigenvalues.sqrt()[chosen] * z)
    result = MIXTURE.sample(30, generator=generator(2), dtype=F64)
    torch.testing.assert_close(result, parts.means[chosen] + expected)
    g = generator(2)
    u, noise = torch.rand(30, generator=g, dtype=F64), torch.randn(30, 2, generator=g, dtype=F64)
    t = 3 * math.pi * u.sqrt()
    expected = (3 * u.sqrt() * torch.stack([t.cos(), t.sin()])).T + 0.1 * noise
    torch.testing.assert_close(SwissRoll().sample(30, generator=generator(2), dtype=F64), expected)


@pytest.mark.parametrize("prior", [GaussianMixture(), SwissRoll()])
def test_labels_that_cannot_be_read_give_nan(prior: Prior) -> None:
    """As on a GPU: where values are not looked at, a label that is no class spoils its own draw only."""
    labels = torch.tensor([0, 10, 9, -2, -1])
    with torch.no_grad():
        z = torch.compile(lambda chosen: prior.sample(5, labels=chosen), backend="eager", fullgraph=True)(labels)
    assert z.isnan().all(1).tolist() == [False, True, False, True, False] and z[::2].isfinite().all()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert prior.sample(5, labels=torch.zeros(5, dtype=torch.int64)).shape == (5, 2)


@pytest.mark.parametrize(
    ("prior", "labels", "error", "message"),
    [
        (Gaussian(2), torch.zeros(3, dtype=torch.int64), ValueError, "Gaussian has no classes; GaussianMixture and"),
        (Uniform(2), torch.zeros(3, dtype=torch.int64), ValueError, "Uniform has no classes.*SwissRoll"),
        (SwissRoll(), torch.zeros(3), TypeError, r"labels: got torch.float32, expected an int64 tensor of shape \[3\]"),
        (SwissRoll(), [0, 1, 2], TypeError, "labels: got list"),
        (GaussianMixture(), torch.zeros(4, dtype=torch.int64), ValueError, r"got shape \[4\], expected \[3\]"),
        (GaussianMixture(), torch.zeros(3, 1, dtype=torch.int64), ValueError, r"got shape \[3, 1\]"),
        (GaussianMixture(), torch.zeros(3, dtype=torch.int64, device="meta"), ValueError, "got device meta"),
        (GaussianMixture(), torch.tensor([0, 10, 3]), ValueError, "got 10, expected a class from 0 to 9, or -1"),
        (SwissRoll(num_classes=3), torch.tensor([0, -2, 3]), ValueError, "labels: got -2, .* from 0 to 2"),
    ],
)
def test_label_errors(prior: Prior, labels: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prior.sample(3, labels=labels)


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
        (lambda: SwissRoll(num_classes=0), "num_classes: got 0"),
        (lambda: SwissRoll(margin=1.0), "margin: got 1.0"),
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


# --- mixtures of many components ---


def many(count: int, dim: int) -> GaussianMixture:
    factors = points(count, dim, dim, seed=3, dtype=F64, scale=0.5 / math.sqrt(dim))
    covariances = factors @ factors.mT + 0.1 * torch.eye(dim, dtype=F64)
    return GaussianMixture(positive(count, seed=4), points(count, dim, seed=5, dtype=F64), covariances)


@pytest.mark.parametrize("size", [4, 7])
def test_pairs_of_components_in_tiles(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Value and gradients of the closed form are those of all pairs at once, compiled too."""
    whole = many(7, 3)
    monkeypatch.setattr(mixture, "TILE", (3 * size) ** 2)
    tiled = many(7, 3)
    assert len(whole.components().tiles()) == {4: 3, 7: 1}[size]
    x = points(9, 3, dtype=F64)
    tensors = [x, torch.tensor([0.5, 2.0], dtype=F64), torch.tensor([1.0, 0.3], dtype=F64)]
    results = [
        value_and_gradients(lambda x, s, w, prior=prior: mmd2_to_prior(x, prior, s, kernel_weights=w), tensors)
        for prior in (tiled, whole)
    ]
    (value, gradients), (expected, expected_gradients) = results
    assert_close(value, expected)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, wanted)
    assert_close(mmd2_to_prior(x, tiled, (0.5, 2.0), kernel_weights=(1.0, 0.3)), expected)
    compiled = torch.compile(lambda x: mmd2_to_prior(x, tiled, (0.5, 2.0)), backend="eager", fullgraph=True)
    assert_close(compiled(x), mmd2_to_prior(x, whole, (0.5, 2.0)))


def test_draws_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = many(5, 3)
    expected = prior.sample(50, generator=generator(1))
    monkeypatch.setattr(mixture, "TILE", 9 * 7)  # seven draws at a time
    assert_close(prior.sample(50, generator=generator(1)), expected)
    assert prior.sample(0).shape == (0, 3)


MEMORY = """
import torch
from fastmmd import mmd2_to_prior
from fastmmd.priors import GaussianMixture, mixture
torch.set_num_threads(1)
dim = 64
def run(count, tile, draws):
    covariances = torch.diag_embed(1 + torch.rand(count, dim, dtype=torch.float64))
    GaussianMixture(None, torch.randn(count, dim), covariances).sample(draws)
    mixture.TILE = tile
    some = GaussianMixture(None, torch.randn(count // 5, dim), covariances[:count // 5])
    mmd2_to_prior(torch.randn(20, dim), some, (1.0, 8.0))
    bandwidths = torch.tensor([1.0, 8.0], requires_grad=True)
    mmd2_to_prior(torch.randn(20, dim), some, bandwidths).backward()
    mixture.TILE = 2**22
run(10, 2**12, 100)
before = peak()
run(300, 2**18, 20_000)
print(peak() - before)
"""


def test_memory_of_many_components() -> None:
    """The axes of all pairs of 300 components would take 2.9 GB, of 60 118 MB; of 20,000 draws 330 MB; here 70."""
    (grown,) = measured(MEMORY)
    assert grown < 110
