"""The classifier of real images: how well it does, its file, its seed, its errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastmmd.data import Split
from fastmmd.evaluation import Classifier, train_classifier
from fastmmd.training import Dataset, UserError, load_data


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits")


def part(dataset: Dataset, count: int) -> Dataset:
    """The data set with so many training images."""
    train = Split(dataset.train.images[:count], dataset.train.labels[:count])  # type: ignore[index]
    return replace(dataset, train=train)


def same(first: Classifier, second: Classifier) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_classifier_learns_the_digits(digits: Dataset) -> None:
    torch.set_num_threads(1)
    before = torch.get_rng_state()
    classifier = train_classifier(digits, epochs=8)
    assert torch.equal(torch.get_rng_state(), before) and not classifier.training
    assert classifier.accuracy(digits.test) >= 0.93
    probabilities = classifier.probabilities(digits.test.images)
    assert probabilities.shape == (len(digits.test), 10) and not probabilities.requires_grad
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(digits.test)))
    features = classifier.features(digits.test.images)
    assert features.shape == (len(digits.test), 128) and features.min() == 0  # behind a ReLU
    torch.testing.assert_close(classifier.layers[-1](features).softmax(1), probabilities)
    share = (classifier.predict(digits.test.images) == digits.test.labels).double().mean().item()
    assert share == pytest.approx(classifier.accuracy(digits.test))


def test_classifier_follows_its_seed(digits: Dataset) -> None:
    few = part(digits, 200)
    first, again = train_classifier(few, epochs=1, seed=3), train_classifier(few, epochs=1, seed=3)
    assert same(first, again) and not same(first, train_classifier(few, epochs=1, seed=4))


def test_classifier_is_kept_in_a_file(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few, path = part(digits, 200), tmp_path / "classifier.pt"
    first = train_classifier(few, path, epochs=1)
    other = train_classifier(few, path, epochs=1, seed=1)  # other settings: trained again, and kept
    assert not same(first, other)
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "fit", None)
        loaded = train_classifier(few, path, epochs=1, seed=1)
    assert same(loaded, other) and not loaded.training
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="not a usable checkpoint"):
        train_classifier(few, path, epochs=1)


def test_classifier_names_what_is_wrong(digits: Dataset) -> None:
    unlabeled = replace(digits, train=replace(digits.train, labels=None))
    with pytest.raises(UserError, match="labels: got none, expected a data set with labels"):
        train_classifier(unlabeled)
    with pytest.raises(UserError, match=r"image_shape: got \(64,\), expected \(height, width\)"):
        train_classifier(replace(digits, image_shape=(64,)))
    with pytest.raises(UserError, match=r"image_shape: got \(3, 8\)"):
        Classifier((3, 8), 10)
