"""The training loop behind `fastmmd train`."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import random
import shlex
import signal
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from types import FrameType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastmmd.checkpoint import load_checkpoint, random_states, save_checkpoint, set_random_states
from fastmmd.data import Dataset, Split
from fastmmd.errors import Interrupted, UserError
from fastmmd.evaluation.parzen import choose_sigma
from fastmmd.nn.base import Model
from fastmmd.training.batches import Batch, Batches
from fastmmd.training.health import HealthMonitor
from fastmmd.training.progress import TrainingProgress, join
from fastmmd.training.report import sigma_grid
from fastmmd.training.run import RunConfig, RunFolder
from fastmmd.training.timing import RegularizerTimer

SECONDS_BETWEEN_CHECKPOINTS = 20.0
THREADS_PER_CPU = 4  # some thousands of threads crash the process
STEPS_BETWEEN_FIGURES = 20  # reading a loss waits for the device; the end of an epoch reads them too
TERMS = ("loss", "reconstruction", "regularizer")


class Trainer:
    """One run: model, optimizers, averaged weights, data, and where in the run they stand.

    Everything that decides the next step is in the checkpoint, so a resumed run repeats an uninterrupted one
    bit for bit on the same machine and thread count.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, folder: RunFolder, *, quiet: bool = False) -> None:
        self.config = config
        self.folder = folder
        self.quiet = quiet
        self.device = torch.device(config.device)
        self.dataset = dataset.to(self.device)
        training = config.recipe.training
        # Here and not in the recipe: a run of a larger machine can be evaluated on a smaller one.
        if training.threads > (most := THREADS_PER_CPU * (os.cpu_count() or 1)):
            raise UserError(f"training.threads must be at most {most} on this machine, got {training.threads}")
        _seed_everything(config.seed)
        self.model = config.recipe.build(dataset.data_dim).to(self.device)
        self.optimizers: dict[str, torch.optim.Optimizer] = self.model.configure_optimizers()
        self._rates = {
            name: [group["lr"] for group in optimizer.param_groups] for name, optimizer in self.optimizers.items()
        }
        self.average = AveragedModel(self.model) if training.average else None
        labels = self._training_labels()
        self._checksum = _checksum(dataset.train)
        self.batches = Batches(self.dataset.train.images, training.batch_size, config.seed, labels)
        self.timer = RegularizerTimer(self.model.regularizer, self.device)
        self.health = HealthMonitor(self.model, config.seed)
        self.step = 0
        self.epoch = 0
        self.seconds = 0.0  # of training, without evaluation
        self._sums = {name: torch.zeros((), device=self.device) for name in TERMS}
        self._last_save = -math.inf
        self._last_record: dict[str, Any] = {}  # of an epoch, for the progress bar

    @property
    def total_steps(self) -> int:
        return self.config.recipe.training.epochs * len(self.batches)

    @property
    def evaluated_model(self) -> Model:
        """The averaged model if there is one."""
        return self.model if self.average is None else cast(Model, self.average.module)

    def fit(self) -> None:
        """Train up to the recipe's number of epochs.

        Raises:
            Interrupted: by SIGINT or SIGTERM, after the step or the epoch's evaluation is finished and saved.
            UserError: the loss is no longer finite.
        """
        training = self.config.recipe.training
        self.model.train()
        with (
            _threads(training.threads),
            stop_requests() as requested,
            TrainingProgress(self.total_steps, quiet=self.quiet) as progress,
        ):
            while self.epoch < training.epochs and not requested:
                self._train_epoch(progress, requested)
        if requested:
            self.save()
            remedy = f"fastmmd train --resume {shlex.quote(str(self.folder.path))}"
            raise Interrupted(f"stopped after step {self.step}; resume with: {remedy}", requested[0])

    def evaluate(self) -> dict[str, float]:
        """Parzen log-likelihood of the validation images that choose sigma; the test split is not touched."""
        settings = self.config.recipe.evaluation
        with warnings.catch_warnings():  # the final evaluation repeats this on the finished model
            warnings.simplefilter("ignore")
            sigma, mean = choose_sigma(
                self.evaluated_model,
                self.dataset.validation.images,
                settings.samples,
                sigmas=sigma_grid(settings),
                seed=self.config.seed,
            )
        return {"validation_log_likelihood": mean, "sigma": sigma}

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "average": None if self.average is None else self.average.state_dict(),
            "batches": self.batches.state_dict(),
            "data": self._checksum,
            "random": random_states(self.device),
            "sums": self._sums,
            "warned": self.health.warned,
            "step": self.step,
            "epoch": self.epoch,
            "seconds": self.seconds,
        }
        save_checkpoint(self.folder.checkpoint, state)
        self._last_save = time.monotonic()

    def resume(self) -> None:
        """Continue from the run folder's checkpoint.

        Raises:
            UserError: it is missing, damaged or does not fit, the batch size or the data are others, or nothing is
                left to do.
        """
        state = load_checkpoint(self.folder.checkpoint, self.device)
        try:
            self.model.load_state_dict(state["model"])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.batches.load_state_dict(state["batches"])
            if state.get("data", self._checksum) != self._checksum:  # an earlier version saved none
                raise UserError(
                    f"the data of a run cannot change: {self.config.data} holds other images or labels than when the "
                    "run began, though as many; give the same data, or start a new run"
                )
            self._sums = {name: state["sums"][name] for name in TERMS}
            self.health.warned = list(state["warned"])
            self.step, self.epoch, self.seconds = state["step"], state["epoch"], state["seconds"]
        except UserError:
            raise
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"{self.folder.checkpoint} does not fit {self.folder.config}: {error}") from error
        # A run that was stopped in its final evaluation is not complete: fit() returns at once, the report is missing.
        epochs = self.config.recipe.training.epochs
        if self.epoch > epochs or (self.epoch == epochs and self.folder.is_evaluated()):
            raise UserError(
                f"{self.folder.path} is complete ({self.epoch} epochs): train on with --epochs N, N > {self.epoch}, "
                f"or measure it again with fastmmd evaluate {shlex.quote(str(self.folder.path))}"
            )
        self.folder.forget_after(self.step)
        set_random_states(state["random"], self.device)

    def _training_labels(self) -> Tensor | None:
        """Labels [N] int64 of the training images on the device, -1 for those treated as unlabeled.

        Raises:
            UserError: the model takes no labels, needs some, or the data set has none that fit.
        """
        labeled = self.config.recipe.training.labeled
        classes = self.model.decoder_classes or self.model.regularizer.num_classes
        if labeled == 0 or classes == 0:
            if labeled:
                raise UserError('training.labeled is for a model with classes: set model.labels="regularizer"')
            if classes:
                raise UserError("the model has classes: set training.labeled to a number of labeled images, -1: all")
            return None
        labels = self.dataset.train.labels
        if labels is None:
            raise UserError(f"{self.config.data} has no labels; training.labeled needs some")
        if (most := int(labels.max())) >= classes:
            raise UserError(f"{self.config.data} has labels up to {most}, the model takes {classes} classes")
        if labeled > len(labels):
            raise UserError(f"training.labeled must be at most {len(labels)}, the training images, got {labeled}")
        if labeled > 0:
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.config.seed))
            labels = labels.index_fill(0, order[labeled:], -1)
        return labels.to(self.device)

    def _train_epoch(self, progress: TrainingProgress, requested: list[int]) -> None:
        """The rest of an epoch, its evaluation and its record; after a stop request only the current step."""
        begin = time.perf_counter()
        for batch in self.batches.epoch():
            self._train_step(batch, progress)
            if requested:
                self.seconds += time.perf_counter() - begin
                return
        self.epoch += 1
        record = self._close_epoch(time.perf_counter() - begin)
        evaluated = self._is_time_to_evaluate()
        if evaluated:
            record.update(self.evaluate())
        self.folder.append(record)
        self._last_record |= record
        progress.line(f"epoch {self.epoch}  {join(_figures(record))}", always=evaluated)
        since = time.monotonic() - self._last_save
        if self.epoch == self.config.recipe.training.epochs or since > SECONDS_BETWEEN_CHECKPOINTS:
            self.save()

    def _train_step(self, batch: Batch, progress: TrainingProgress) -> None:
        training = self.config.recipe.training
        self._set_learning_rates()
        with self.timer.step(self.step):
            terms = self.model.training_step(batch.images, self.optimizers, batch.labels)
        self.step += 1
        if self.average is not None:
            # Early on the average must forget the untrained weights quickly.
            decay = min(training.average, (1 + self.step) / (10 + self.step))
            self.average.multi_avg_fn = get_ema_multi_avg_fn(decay)
            self.average.update_parameters(self.model)
        for name in TERMS:
            self._sums[name] += terms[name]
        figures = None
        position = self.batches.position
        if self.step % STEPS_BETWEEN_FIGURES == 0 or position == len(self.batches):
            self._require_finite(self._sums["loss"])
            figures = _figures({**self._last_record, **self._means(position)})
            # The loop waits for the device here anyway, so a check of the codes that has become due is made here.
            last = max((self.step - 1) // STEPS_BETWEEN_FIGURES * STEPS_BETWEEN_FIGURES, self.step - position)
            if (every := training.health_every) and self.step // every > last // every:
                for message in self.health.check(batch.images, self.step):
                    progress.line(f"warning: {message}")
                    self.folder.append({"step": self.step, "warning": message})
        progress.step(self.step, f"epoch {self.epoch + 1}/{training.epochs}", figures)

    def _set_learning_rates(self) -> None:
        self.model.progress = self.step / self.total_steps
        factor = 1.0
        if self.config.recipe.training.schedule == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * self.model.phase_progress))
        for name, optimizer in self.optimizers.items():
            for group, rate in zip(optimizer.param_groups, self._rates[name], strict=True):
                group["lr"] = rate * factor

    def _means(self, batches: int) -> dict[str, float]:
        return {name: value.item() / batches for name, value in self._sums.items()}

    def _close_epoch(self, seconds: float) -> dict[str, Any]:
        self.seconds += seconds
        record: dict[str, Any] = {"epoch": self.epoch, "step": self.step, **self._means(len(self.batches))}
        record["seconds"] = self.seconds
        record["images_per_second"] = self.step * self.batches.batch_size / self.seconds
        record["regularizer_share"] = self.timer.share
        for value in self._sums.values():
            value.zero_()
        return record

    def _is_time_to_evaluate(self) -> bool:
        training = self.config.recipe.training
        every = training.evaluate_every
        return self.epoch == training.epochs or (every > 0 and self.epoch % every == 0)

    def _require_finite(self, loss: Tensor) -> None:
        if not math.isfinite(loss.item()):
            raise UserError(
                f"the loss is {loss.item()} at step {self.step}: lower the learning rates or the weight of "
                f"the regularizer (--set model.KEY=VALUE); {self.folder.checkpoint} is from before"
            )


def _figures(record: dict[str, Any]) -> dict[str, str]:
    """A record as the progress line shows it."""
    figures = {name: f"{record[name]:.4g}" for name in TERMS}
    if "validation_log_likelihood" in record:
        figures["validation LL"] = f"{record['validation_log_likelihood']:.1f}"
    if "images_per_second" in record:
        figures["images/s"] = f"{record['images_per_second']:,.0f}"
    if record.get("regularizer_share") is not None:
        figures["regularizer's share"] = f"{record['regularizer_share']:.0%}"
    return figures


def _checksum(split: Split) -> int:
    """Of images and labels, bit by bit."""
    parts = (split.images,) if split.labels is None else (split.images, split.labels)
    return functools.reduce(lambda sum_, part: zlib.crc32(part.cpu().contiguous().numpy(), sum_), parts, 0)


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run torch with `count` CPU threads; 0: leave the number as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that receives the number of the first SIGINT or SIGTERM; a second one takes effect immediately."""
    requested: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in numbers}

    def request(number: int, _frame: FrameType | None) -> None:
        requested.append(number)
        for other in numbers:
            signal.signal(other, previous[other])

    for number in numbers:
        signal.signal(number, request)
    try:
        yield requested
    finally:
        for number in numbers:
            signal.signal(number, previous[number])
