"""Precision and recall, density and coverage: against the dense formulas, and where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import points
from scipy.spatial.distance import cdist
from torch import Tensor

from fastmmd.evaluation import density_coverage, manifold, neighbors, precision_recall


def dense(real: Tensor, samples: Tensor, k: int) -> tuple[float, float, float, float]:
    """All four, from whole matrices of distances."""
    a, b = real.double().numpy(), samples.double().numpy()
    real_radius = np.sort(cdist(a, a), axis=1)[:, k]  # the first distance is that of a point to itself
    sample_radius = np.sort(cdist(b, b), axis=1)[:, k]
    between = cdist(a, b)
    in_real = between <= real_radius[:, None]
    in_samples = between <= sample_radius[None]
    return in_real.any(0).mean(), in_samples.any(1).mean(), in_real.sum(0).mean() / k, in_real.any(1).mean()


def both(real: Tensor, samples: Tensor, k: int) -> tuple[float, ...]:
    return (*precision_recall(real, samples, k), *density_coverage(real, samples, k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "columns"), [(1_024, 4_096), (7, 30)])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_dense_formulas(k: int, rows: int, columns: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far from the origin too, and for any tiles."""
    monkeypatch.setattr(neighbors, "ROWS", rows)
    monkeypatch.setattr(neighbors, "COLUMNS", columns)
    real, samples = points(60, 3, dtype=dtype) + 100, 0.8 * points(45, 3, seed=1, dtype=dtype) + 100.3
    found = both(real, samples, k)
    assert found == pytest.approx(dense(real, samples, k), abs=1e-12)
    assert any(0.1 < value < 0.95 for value in found)


def test_identical_sets() -> None:
    """Every ball contains its center and its k nearest neighbors, the last of them on its border."""
    x = points(200, 4)
    assert both(x, x.clone(), 3) == pytest.approx((1, 1, 4 / 3, 1), abs=1e-12)


def test_disjoint_sets() -> None:
    assert both(points(50, 4), points(50, 4, seed=1) + 100, 3) == (0, 0, 0, 0)


def test_mode_collapse() -> None:
    """Copies of one real image are precise; one real image is recalled, and only the balls around it are covered."""
    real = points(100, 4)
    copies = real[:1].expand(100, -1)
    precision, recall, density, coverage = both(real, copies, 3)
    holding = int((torch.cdist(real, real).sort(1).values[:, 3] >= (real - real[0]).norm(dim=1)).sum())
    assert 1 < holding < 20
    assert (precision, recall) == (1, 0.01)
    assert density == pytest.approx(holding / 3) and coverage == holding / 100


def test_one_of_two_clusters() -> None:
    """All samples are good, as dense as the real images of their cluster, and half of the real images are left out."""
    first, second = points(200, 2), points(200, 2, seed=1) + 50
    precision, recall, density, coverage = both(torch.cat([first, second]), points(400, 2, seed=2), 3)
    assert precision > 0.9 and recall == pytest.approx(0.5, abs=0.05) and coverage == pytest.approx(0.5, abs=0.05)
    assert density == pytest.approx(1, abs=0.15)


def test_samples_of_the_same_distribution() -> None:
    """The expected density is 1, the coverage 1 - C(N - 1, k) / C(2 N - 1, k) for N points each, near 1 - 2^-k."""
    density, coverage = density_coverage(points(2_000, 2), points(2_000, 2, seed=1))
    assert density == pytest.approx(1, abs=0.05)
    expected = 1 - np.prod([(1_999 - i) / (3_999 - i) for i in range(5)])
    assert coverage == pytest.approx(expected, abs=0.02)


def test_an_outlier_among_the_real_points() -> None:
    """Its ball takes in far samples: precision counts them as good, density hardly."""
    real = torch.cat([points(200, 2), torch.tensor([[60.0, 0.0]])])
    far = points(100, 2, seed=1) + torch.tensor([30.0, 0.0])
    assert precision_recall(real, far).precision == 1
    assert density_coverage(real, far).density == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("real", "samples", "k", "message"),
    [
        (points(5, 2), points(5, 3), 3, "samples: got dimension 3"),
        (points(5), points(5, 1), 3, r"real: got shape \[5\], expected \[N, D\]"),
        (points(3, 2), points(5, 2), 3, "real: got 3 points, expected more than k = 3"),
        (points(5, 2), points(3, 2), 3, "samples: got 3 points"),
        (points(5, 2), points(5, 2), 0, "k: got 0"),
        (points(5, 2) * torch.nan, points(5, 2), 3, "real: got NaN or infinity"),
        (points(5, 2), points(5, 2).index_fill(0, torch.tensor(1), torch.inf), 3, "samples: got NaN or infinity"),
        (points(5, 2), points(5, 2).int(), 3, r"samples: got dtype torch.int32"),
    ],
)
def test_errors(real: Tensor, samples: Tensor, k: int, message: str) -> None:
    for function in (precision_recall, density_coverage):
        with pytest.raises((TypeError, ValueError), match=message):
            function(real, samples, k)


def test_memory_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    tiles = neighbors.distance_tiles

    def watched(*arguments: Tensor) -> object:
        nonlocal largest
        for tile in tiles(*arguments):
            largest = max(largest, tile.squared.numel())
            yield tile

    monkeypatch.setattr(manifold, "distance_tiles", watched)
    both(points(3_000, 2), points(5_000, 2, seed=1), 3)
    assert largest == neighbors.ROWS * neighbors.COLUMNS
