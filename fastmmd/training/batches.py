"""Batches of a fresh permutation of the rows in every epoch: gathered on the device, or from files by a loader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmmd.data import Dataset, ImageFiles
from fastmmd.errors import UserError
from fastmmd.nn.base import Model
from fastmmd.ops.shards import Shards
from fastmmd.training.balanced import BalancedRows
from fastmmd.training.run import RunConfig


class Batch(NamedTuple):
    """Images [B, data_dim] and their labels [B] int64, None where training takes none."""

    images: Tensor
    labels: Tensor | None


class Batches:
    """Repeated passes over images [N, data_dim], and labels [N] if any, resumable in the middle of a pass.

    Images are in memory, or files that `workers` processes read ahead (0: none), in the same order.

    A last incomplete batch is left out: the permutation decides which images those are. It is drawn on the CPU, so
    the order is the same on every device and a run may be resumed on another one. With `shards` a batch is that part of
    it which falls to this process. `balanced` adds labeled images to every batch.
    """

    def __init__(
        self,
        images: Tensor | ImageFiles,
        batch_size: int,
        seed: int,
        labels: Tensor | None = None,
        workers: int = 0,
        shards: Shards | None = None,
        balanced: BalancedRows | None = None,
    ) -> None:
        self.images, self.labels, self.workers, self.balanced = images, labels, workers, balanced
        self.batch_size = min(batch_size, len(images))
        self.rows = self.batch_size + (0 if balanced is None else balanced.count)  # of a batch
        count, self._rank = (1, 0) if shards is None else (shards.count, shards.rank)
        if self.rows % count:
            name = "training.batch_size" if balanced is None else "training.batch_size + training.labeled_batch"
            raise UserError(
                f"{name}: got {self.rows}, expected a multiple of the {count} processes, which share every batch"
            )
        self._share = self.rows // count
        self.position = 0  # batches done in this epoch
        self.epochs = 0  # done
        self._generator = torch.Generator().manual_seed(seed)
        self._epoch_state = self._generator.get_state()

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.images) // self.batch_size

    def epoch(self) -> Iterator[Batch]:
        """The remaining batches of this epoch."""
        self._epoch_state = self._generator.get_state()
        order = torch.randperm(len(self.images), generator=self._generator)
        begin = self.epochs * len(self)
        parts = [
            self._part(rows, begin + position)
            for position, rows in enumerate(order.split(self.batch_size)[: len(self)])
            if position >= self.position
        ]
        for rows, images in zip(parts, self._gathered(parts), strict=True):
            self.position += 1
            yield Batch(images, None if self.labels is None else self.labels[rows.to(self.labels.device)])
        self.position = 0
        self.epochs += 1
        self._epoch_state = self._generator.get_state()

    def _part(self, rows: Tensor, step: int) -> Tensor:
        """Those of a batch that fall to this process."""
        if self.balanced is not None:
            rows = torch.cat([rows, self.balanced.at(step)])
        return rows[self._rank * self._share :][: self._share]

    def _gathered(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        if isinstance(self.images, ImageFiles):
            return self.images.batches(batches, self.workers)
        images = self.images
        return (images[rows.to(images.device)] for rows in batches)

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self._epoch_state,
            "position": self.position,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "labeled_batch": self.rows - self.batch_size,
            "rows": len(self.images),
        }

    def _is_state(self, state: object) -> bool:
        """Whether it is of the kinds that `state_dict` returns."""
        if not isinstance(state, dict):
            return False
        generator, names = state.get("generator"), ("epochs", "batch_size", "labeled_batch", "rows")
        numbers = [state.get("position"), *(state.get(name, 0) for name in names)]
        if not isinstance(generator, Tensor) or any(type(number) is not int or number < 0 for number in numbers):
            return False
        try:
            torch.Generator().set_state(generator.cpu())
        except (RuntimeError, TypeError):
            return False
        return True

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken; one of an earlier version says nothing about sizes.

        Raises:
            UserError: it is damaged; the batches were of another size, or of more or fewer images: the order of the
                images, the length of an epoch and the schedule would be others in the middle of a run.
        """
        if not self._is_state(state):
            raise UserError("the checkpoint's position in the data is damaged; start a new run with another --run-dir")
        sizes = {"batch_size": (self.batch_size, self.batch_size), "labeled_batch": (self.rows - self.batch_size, 0)}
        for name, (size, former) in sizes.items():
            if (before := state.get(name, former)) != size:
                raise UserError(
                    f"training.{name} of a run cannot change: the checkpoint has {before}, the settings {size}; set it "
                    "back, or start a new run"
                )
        if (rows := state.get("rows", len(self.images))) != len(self.images):
            raise UserError(
                f"the data of a run cannot change: the checkpoint has {rows:,} training images, the data "
                f"{len(self.images):,}; give the data that it began with, or start a new run"
            )
        self._epoch_state = state["generator"].cpu()
        self._generator.set_state(self._epoch_state)
        self.position, self.epochs = state["position"], state.get("epochs", 0)


def training_batches(
    model: Model, dataset: Dataset, config: RunConfig, device: torch.device, shards: Shards | None
) -> Batches:
    """Those of a run, the part of a process of a group.

    Raises:
        UserError: the labels are not those that the model needs, or sizes do not fit.
    """
    training, labels = config.recipe.training, training_labels(model, dataset, config, device)
    images, balanced = dataset.train_files or dataset.train.images, balanced_rows(labels, model, config)
    return Batches(images, training.batch_size, config.seed, labels, training.workers, shards, balanced)


def training_labels(model: Model, dataset: Dataset, config: RunConfig, device: torch.device) -> Tensor | None:
    """Labels [N] int64 of the training images on the device, -1 for those treated as unlabeled.

    Raises:
        UserError: the model takes no labels, needs some, or the data set has none that fit.
    """
    labeled = config.recipe.training.labeled
    classes = model.decoder_classes or model.regularizer.num_classes
    if labeled == 0 or classes == 0:
        if labeled:
            raise UserError('training.labeled is for a model with classes: set model.labels="regularizer"')
        if classes:
            raise UserError("the model has classes: set training.labeled to a number of labeled images, -1: all")
        return None
    labels = (dataset.train_files or dataset.train).labels
    if labels is None:
        raise UserError(f"{config.data} has no labels; training.labeled needs some")
    if (most := int(labels.max())) >= classes:
        raise UserError(f"{config.data} has labels up to {most}, the model takes {classes} classes")
    if labeled > len(labels):
        raise UserError(f"training.labeled must be at most {len(labels)}, the training images, got {labeled}")
    if labeled > 0:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(config.seed))
        labels = labels.index_fill(0, order[labeled:], -1)
    return labels.to(device)


def balanced_rows(labels: Tensor | None, model: Model, config: RunConfig) -> BalancedRows | None:
    """What `training.labeled_batch` adds to every batch of images with these labels [N]; None: nothing.

    Raises:
        UserError: there are no labels; see `BalancedRows`.
    """
    count = config.recipe.training.labeled_batch
    if count == 0:
        return None
    if labels is None:
        raise UserError("training.labeled_batch is for labeled images: set training.labeled and model.labels")
    return BalancedRows(labels, count, model.decoder_classes or model.regularizer.num_classes, config.seed)
