"""mmd2 with labels where a class is absent from a sample, or points have none, against the dense float64 formula."""

from __future__ import annotations

import pytest
import torch
from helpers import positive, value_and_gradients
from test_labels import check, labels
from test_mmd import sample, scales
from torch import Tensor

import fastmmd


@pytest.mark.parametrize("unconditional_weight", [0.0, 0.6])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", ["gaussian", "energy"])
def test_absent_classes_are_skipped(backend: str, kernel: str, estimator: str, unconditional_weight: float) -> None:
    """In x alone, in y alone, in neither, a point on one side; the weights of the others as given, and unlabeled points
    left out of all but the unconditional term."""
    x_labels = torch.tensor([0] * 7 + [1] * 5 + [3] * 6 + [4] + [-1] * 4)
    y_labels = torch.tensor([0] * 4 + [2] * 5 + [3] * 6 + [4] * 3 + [-1] * 2)
    x, y = sample(len(x_labels), len(y_labels), 3)
    s = [1.0] if kernel == "energy" else torch.tensor(scales(3))
    check(
        x, y, x_labels.flip(0), y_labels, s, kernel, estimator, positive(1 if kernel == "energy" else 3),
        positive(len(x), seed=3), positive(len(y), seed=4), pi=(0.3, 0.9, 1.1, 0.7, 0.4, 0.2),
        unconditional_weight=unconditional_weight, absent="skip",
    )  # fmt: skip


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_absent_classes_are_skipped_under_compile(backend: str, estimator: str) -> None:
    x, y = sample(9, 8, 2)

    def run(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return fastmmd.mmd2(
            x, y, scales(2), estimator=estimator, x_labels=a, y_labels=b, class_weights=[0.5, 0.2, 1.0], absent="skip"
        )

    torch._dynamo.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    given = torch.tensor([0, 0, 1, 1, 1, 2, 0, -1, -1])
    for other in ([0, 0, 0, 0, 0, 1, -1, 0], [1, 1, 2, 2, 2, 2, 2, -1], [2] * 8, [0, 1, 2, 0, 1, 2, 0, 1]):
        labels = torch.tensor(other)
        (value, (gradient,)), (expected, (wanted,)) = (
            value_and_gradients(lambda x, f=f, b=labels: f(x, given, b), (x,)) for f in (compiled, run)
        )
        assert gradient is not None and wanted is not None
        assert torch.equal(value, expected) and torch.equal(gradient, wanted) and value.isfinite()


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_no_class_is_left(backend: str, estimator: str) -> None:
    """Exactly 0, with gradients of exactly 0."""
    x, y = sample(5, 4, 2)
    labels = {"x_labels": torch.zeros(5, dtype=torch.int64), "y_labels": torch.ones(4, dtype=torch.int64)}
    value, gradients = value_and_gradients(
        lambda *leaves: fastmmd.mmd2(
            *leaves[:3], x_weights=leaves[3], estimator=estimator, class_weights=[1.0, 2.0], absent="skip", **labels
        ),
        (x, y, torch.tensor([1.0, 2.0]), positive(5)),
    )
    assert value == 0 and all(gradient is not None and not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_a_batch_of_one_point(backend: str, estimator: str) -> None:
    """Of a class that the other sample has: for "unbiased" a class with a single point is skipped."""
    x, y = sample(1, 8, 2)
    named = {"x_labels": torch.tensor([1]), "y_labels": torch.tensor([0, 1, 1, 2, 2, -1, 0, 1]), "absent": "skip"}
    value = fastmmd.mmd2(x, y, scales(2), estimator=estimator, class_weights=[1.0, 0.5, 1.0], **named)
    of_class = y[named["y_labels"] == 1]
    assert torch.equal(value, 0.5 * fastmmd.mmd2(x, of_class, scales(2)) if estimator == "biased" else torch.zeros(()))
    if estimator == "unbiased":
        with pytest.raises(ValueError, match="x: got 1 point, expected at least 2"):
            fastmmd.mmd2(x, y, estimator=estimator, class_weights=[1.0] * 3, unconditional_weight=1.0, **named)


def test_unlabeled_points_are_left_out(backend: str) -> None:
    """Without an unconditional term they count nowhere, as -1 in a batch of source and target points does."""
    x, y, every = *sample(40, 30, 3), ((0, 1, -1), (0, 1, -1))
    x_labels, y_labels = labels(40, every[0], seed=1), labels(30, every[1], seed=2)
    check(x, y, x_labels, y_labels, scales(3), pi=(0.5, 0.7))
    named = {"class_weights": (0.5, 0.7)}
    value = fastmmd.mmd2(x, y, scales(3), x_labels=x_labels, y_labels=y_labels, **named)
    kept = x_labels >= 0, y_labels >= 0
    alone = fastmmd.mmd2(
        x[kept[0]], y[kept[1]], scales(3), x_labels=x_labels[kept[0]], y_labels=y_labels[kept[1]], **named
    )
    assert torch.equal(value, alone)
