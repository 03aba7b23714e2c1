"""A classifier of real images, which says what the images of a model show."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmmd.checkpoint import load_checkpoint, load_weights, save_checkpoint
from fastmmd.data import Dataset, Split
from fastmmd.errors import UserError
from fastmmd.nn.inputs import in_eval_mode

CHUNK = 2_000  # images classified at once
BATCH = 100


class Classifier(nn.Module):
    """A small convolutional network: two layers of 3x3 filters with pooling, one fully connected layer.

    Args:
        image_shape: (height, width), each at least 4, or (channels, height, width).
        num_classes: C.

    Raises:
        UserError: images of another shape.
    """

    def __init__(self, image_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        if len(image_shape) not in (2, 3) or min(image_shape[-2:]) < 4:
            what = "(height, width), each at least 4, or (channels, height, width)"
            raise UserError(f"image_shape: got {tuple(image_shape)}, expected {what}")
        self.image_shape = tuple(image_shape)
        self.channels = image_shape[0] if len(image_shape) == 3 else 1
        height, width = (size // 4 for size in image_shape[-2:])
        self.layers = nn.Sequential(
            *(nn.Conv2d(self.channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(0.25), nn.Linear(32 * height * width, 128), nn.ReLU()),
            *(nn.Dropout(0.5), nn.Linear(128, num_classes)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """[B, data_dim] in [0, 1] -> logits [B, C]."""
        return self.layers(self._planes(images))  # type: ignore[no-any-return]

    def _planes(self, images: Tensor) -> Tensor:
        planes: Tensor = images.unflatten(1, (self.channels, *self.image_shape[-2:]))
        return planes

    @torch.no_grad()
    @in_eval_mode
    def probabilities(self, images: Tensor) -> Tensor:
        """[N, data_dim] in [0, 1] -> the probability of each class, [N, C]; in eval mode."""
        return torch.cat([self(part).softmax(1) for part in images.split(CHUNK)])

    @torch.no_grad()
    @in_eval_mode
    def features(self, images: Tensor) -> Tensor:
        """[N, data_dim] in [0, 1] -> what the last layer sees of each, [N, 128]; in eval mode."""
        return torch.cat([self.layers[:-1](self._planes(part)) for part in images.split(CHUNK)])

    def predict(self, images: Tensor) -> Tensor:
        """[N, data_dim] -> the most probable class of each, [N] int64."""
        return self.probabilities(images).argmax(1)

    def accuracy(self, split: Split) -> float:
        """The share of a split's images that are given their label.

        Raises:
            UserError: the split has no labels.
        """
        return (self.predict(split.images).cpu() == _labels(split)).double().mean().item()

    @classmethod
    def fit(cls, split: Split, image_shape: Sequence[int], num_classes: int, *, epochs: int, seed: int = 0) -> Self:
        """Trained on a split: Adam with one cycle of learning rates, cross-entropy; the same for the same seed."""
        device = split.images.device
        with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
            torch.manual_seed(seed)
            model = cls(image_shape, num_classes).to(device)
            labels = _labels(split).to(device)
            optimizer = torch.optim.Adam(model.parameters())
            batches = -(-len(split) // BATCH)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, epochs * batches)
            for _ in range(epochs):
                for rows in torch.randperm(len(split)).to(device).split(BATCH):
                    loss = F.cross_entropy(model(split.images[rows]), labels[rows])
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                    schedule.step()
        return model.eval()


def train_classifier(
    dataset: Dataset, path: str | os.PathLike[str] | None = None, *, epochs: int | None = None, seed: int = 0
) -> Classifier:
    """A classifier trained on a data set's training images and labels, in eval mode.

    Args:
        dataset: with labels from 0 on, and images, gray or color.
        path: a file that keeps the classifier; one of the same data and settings there is loaded instead.
        epochs: default: about 600 steps or 3 epochs, whichever is more (MNIST: 3 epochs, 99% of the test images).
        seed: of the weights and the order of the images.

    Raises:
        UserError: no labels, images of another shape, or a damaged file.
    """
    labels = _labels(dataset.train)
    count = int(labels.max()) + 1
    epochs = max(3, 600 * BATCH // len(dataset.train)) if epochs is None else epochs
    settings: dict[str, Any] = {"data": dataset.name, "images": len(labels), "epochs": epochs, "seed": seed}
    settings |= {"image_shape": list(dataset.image_shape), "num_classes": count}
    file = None if path is None else Path(path)
    if file is not None and file.exists():
        state = load_checkpoint(file, dataset.train.images.device)
        if state.get("settings") == settings:
            model = Classifier(dataset.image_shape, count).to(dataset.train.images.device)
            try:
                load_weights(model, state["model"])
            except ValueError as error:
                raise UserError(f"{file} does not fit its settings: {error}") from error
            return model.eval()
    model = Classifier.fit(dataset.train, dataset.image_shape, count, epochs=epochs, seed=seed)
    if file is not None:
        save_checkpoint(file, {"model": model.state_dict(), "settings": settings})
    return model


def _labels(split: Split) -> Tensor:
    if split.labels is None:
        raise UserError("labels: got none, expected a data set with labels")
    return split.labels
