"""Plots of results, by what their figures contain; nearest neighbors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Outline

import fastmmd
from fastmmd.evaluation import nearest_neighbors, plots, save_bars, save_curves, save_heatmap, save_panels

NAN = float("nan")


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were saved."""
    saved: list[Any] = []
    save = plots._save
    monkeypatch.setattr(plots, "_save", lambda figure, path: (saved.append(figure), save(figure, path)))
    return saved


def test_bars(tmp_path: Path, figure: list[Any]) -> None:
    references = {"b": 4.0, "c": 5.0, "real images": 2.5}
    save_bars(tmp_path / "x.png", "abc", [1.0, 3.0, NAN], [0.5, (1.0, 0.25), NAN], "title", "nats", references)
    (axis,) = figure[0].axes
    assert [bar.get_height() for bar in axis.patches[:2]] == [1.0, 3.0]
    (whiskers,) = axis.containers[1][2]  # of the error bars
    ends = [segment[:, 1].tolist() for segment in whiskers.get_segments()[:2]]
    assert ends == [[0.5, 1.5], [2.0, 3.25]]
    (marks,) = [part for part in axis.collections if part.get_label() == "reference"]
    assert marks.get_offsets().tolist() == [[1.0, 4.0], [2.0, 5.0]]  # a mark without a bar too
    assert [line.get_ydata()[0] for line in axis.lines if line.get_label() == "real images"] == [2.5]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a\n1", "b\n3", "c\n"]
    assert axis.get_title() == "title" and axis.get_ylabel() == "nats"
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="errors: got 1, expected one for each of 2 values"):
        save_bars(tmp_path / "y.png", "ab", [1.0, 2.0], [0.5])
    with pytest.raises(ValueError, match="names: got 3, expected one for each of 2 values"):
        save_bars(tmp_path / "y.png", "abc", [1.0, 2.0])


def test_curves(tmp_path: Path, figure: list[Any]) -> None:
    curves = {"one": ([1.0, NAN, 3.0], None), "two": ([3.0, 2.0, 1.0], [0.1, (0.2, 0.3), 0.1])}
    save_curves(tmp_path / "x.png", [100, 300, 900], curves, "batch", "nats", logx=True)
    (axis,) = figure[0].axes
    assert axis.get_xscale() == "log"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["100", "300", "900"]
    drawn = {part.get_label(): part for part in axis.containers}
    np.testing.assert_array_equal(drawn["one"][0].get_ydata().astype(float), [1.0, NAN, 3.0])
    middle = drawn["two"][2][0].get_segments()[1]
    np.testing.assert_allclose(middle, [[300, 1.8], [300, 2.3]])
    with pytest.raises(ValueError, match="curves: 'one' has 1 values, expected one for each of 2 x"):
        save_curves(tmp_path / "y.png", [1, 2], {"one": ([1.0], None)})


def test_heatmap_keeps_its_colors_for_what_did_not_fail(tmp_path: Path, figure: list[Any]) -> None:
    values = [[27.0, 28.0, 29.0], [28.0, NAN, -500.0]]
    save_heatmap(tmp_path / "x.png", values, ["r1", "r2"], ["c1", "c2", "c3"], "title", "rows", "columns")
    axis = figure[0].axes[0]
    (image,) = axis.images
    np.testing.assert_array_equal(image.get_array().filled(NAN), values)
    assert 20 < image.norm.vmin < 27 and image.norm.vmax == 29
    assert [text.get_text() for text in axis.texts] == ["27", "28", "29", "28", "-500"]  # the empty cell has none
    save_heatmap(tmp_path / "y.png", [[1.0, 1.0]], ["r"], ["c1", "c2"])
    save_heatmap(tmp_path / "y.png", [[326.952, 340.5]], ["r"], ["c1", "c2"])
    assert [text.get_text() for text in figure[2].axes[0].texts] == ["327.0", "340.5"]  # one number of decimals
    save_heatmap(tmp_path / "z.png", [[NAN]], ["r"], ["c"])
    with pytest.raises(ValueError, match=r"values: got shape \[2, 3\], expected \[3 rows, 2 columns\]"):
        save_heatmap(tmp_path / "y.png", values, ["a", "b", "c"], ["d", "e"])


def test_panels_share_the_frame_of_the_prior(tmp_path: Path, figure: list[Any]) -> None:
    prior = fastmmd.priors.Uniform(2, [-2.0, -1.0], [2.0, 1.0])
    codes = torch.tensor([[0.5, 0.5], [50.0, 0.0], [0.0, -60.0]])
    panels = [("prior", prior.sample(9), None), ("AAE", codes, torch.tensor([3, 1, 1]))]
    save_panels(tmp_path / "x.png", panels, "title", prior)
    left, right = figure[0].axes
    assert [axis.get_title() for axis in (left, right)] == ["prior", "AAE"]
    assert left.get_xlim() == right.get_xlim()
    assert left.get_xlim() == pytest.approx((-2.3, 2.3), abs=0.1)
    assert left.get_ylim() == pytest.approx((-2.3, 2.3), abs=0.1)
    assert [text.get_text() for text in right.texts] == ["2 outside"] and not left.texts
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["1", "3"]
    save_panels(tmp_path / "y.png", [("AAE", codes, None)])
    assert figure[1].axes[0].get_xlim()[1] > 50  # without a prior the codes set the frame
    with pytest.raises(ValueError, match=r"panels: codes of 'AAE' have shape \[3, 1\], expected \[N, 2\]"):
        save_panels(tmp_path / "z.png", [("AAE", codes[:, :1], None)])
    with pytest.raises(ValueError, match=r"prior: got one of dimension 3, expected 2"):
        save_panels(tmp_path / "z.png", panels, prior=fastmmd.priors.Gaussian(3))
    with pytest.raises(TypeError, match=r"prior: got Tensor, expected a Prior"):
        save_panels(tmp_path / "z.png", panels, prior=codes)  # type: ignore[arg-type]


def _outlines(figure: Any) -> list[list[Any]]:
    """Of each contour from the outer one on, its closed lines [N, 2]."""
    (contours,) = (drawn for drawn in figure.axes[0].collections if hasattr(drawn, "levels"))
    return [path.to_polygons(closed_only=False) for path in contours.get_paths()]


def test_contours_hold_their_shares_of_the_prior(tmp_path: Path, figure: list[Any]) -> None:
    """Of N(0, I): circles of radius sqrt(-2 ln(1 - share)), nowhere wavy."""
    prior = fastmmd.priors.Gaussian(2)
    save_panels(tmp_path / "x.png", [("AAE", prior.sample(9), None)], "title", prior)
    for share, (outline,) in zip((0.95, 0.5), _outlines(figure[0]), strict=True):
        radii = np.linalg.norm(outline, axis=1)
        assert radii == pytest.approx(np.sqrt(-2 * np.log(1 - share)), rel=0.05)
        assert radii.std() < 0.01 * radii.mean()


def test_contours_of_a_prior_without_a_closed_form(tmp_path: Path, figure: list[Any]) -> None:
    """They hold their shares of other draws from a swiss roll."""
    prior = fastmmd.priors.SwissRoll()
    draws = prior.sample(4_000, generator=torch.Generator().manual_seed(1))
    save_panels(tmp_path / "x.png", [("AAE", draws[:9], None)], "title", prior)
    for share, outlines in zip((0.95, 0.5), _outlines(figure[0]), strict=True):
        inside = sum(Outline(outline).contains_points(draws.numpy()).astype(int) for outline in outlines) % 2  # holes
        assert inside.mean() == pytest.approx(share, abs=0.04)


# --- nearest neighbors ---


@pytest.mark.parametrize(("points", "images"), [(5, 1), (1_500, 4_100), (3, 9_000)])
def test_nearest_neighbors_equal_a_search(points: int, images: int) -> None:
    generator = torch.Generator().manual_seed(points)
    a = torch.rand(points, 7, generator=generator, dtype=torch.float64) + 100
    b = torch.rand(images, 7, generator=generator, dtype=torch.float64) + 100
    neighbors = nearest_neighbors(a, b)
    distance, index = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert torch.equal(neighbors.indices, index)
    torch.testing.assert_close(neighbors.squared_distances, distance.square())


def test_a_copy_has_distance_zero() -> None:
    images = torch.rand(5_000, 64, generator=torch.Generator().manual_seed(0))
    chosen = torch.tensor([4_999, 0, 4_096, 17])
    neighbors = nearest_neighbors(images[chosen], images)
    assert torch.equal(neighbors.indices, chosen) and torch.equal(neighbors.squared_distances, torch.zeros(4))
    nothing = nearest_neighbors(images[:0], images)
    assert len(nothing.indices) == 0 and nothing.indices.dtype == torch.int64


def test_nearest_neighbors_of_half_precision() -> None:
    """In half precision itself these squares would be infinite."""
    images = (100 * torch.rand(300, 400, generator=torch.Generator().manual_seed(0))).half()
    neighbors = nearest_neighbors(images.flip(0), images)
    assert torch.equal(neighbors.indices, torch.arange(300).flip(0)) and neighbors.squared_distances.max() == 0


def test_nearest_neighbors_check_their_arguments() -> None:
    for points, images, message in (
        (torch.zeros(2, 3), torch.zeros(4, 5), "images: got dimension 5"),
        (torch.zeros(2, 3), torch.zeros(0, 3), "images: got none"),
        (torch.zeros(3), torch.zeros(4, 3), "points: got shape"),
        (torch.zeros(2, 3), torch.zeros(2, 3).int(), "images: got dtype"),
        (torch.zeros(2, 3), torch.zeros(2, 3).double(), "images: got dtype"),
        (torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, math.nan]]), "images: got NaN"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            nearest_neighbors(points, images)
    far = nearest_neighbors(torch.full((1, 2), math.nan), torch.zeros(3, 2))
    assert far.squared_distances.isnan().all()
