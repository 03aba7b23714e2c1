"""The training loop behind `fastmmd train`."""

from __future__ import annotations

import contextlib
import math
import os
import random
import shlex
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType
from typing import Any, cast

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastmmd
from fastmmd.checkpoint import (
    load_checkpoint,
    load_optimizer,
    load_weights,
    not_finite,
    random_states,
    save_checkpoint,
    set_random_states,
)
from fastmmd.data import Dataset
from fastmmd.errors import Interrupted, UserError
from fastmmd.evaluation.parzen import choose_sigma
from fastmmd.nn.base import Model
from fastmmd.nn.spread import one_generator
from fastmmd.training.batches import Batch, training_batches
from fastmmd.training.health import HealthMonitor
from fastmmd.training.processes import Processes
from fastmmd.training.progress import TrainingProgress, join
from fastmmd.training.report import sigma_grid
from fastmmd.training.run import RunConfig, RunFolder, other_data
from fastmmd.training.schedules import Schedules
from fastmmd.training.terms import TERMS, Terms
from fastmmd.training.timing import RegularizerTimer

SECONDS_BETWEEN_CHECKPOINTS = 20.0
THREADS_PER_CPU = 4  # some thousands of threads crash the process
STEPS_BETWEEN_FIGURES = 20  # reading a loss waits for a GPU; the end of an epoch reads them too
ALONE = Processes()


class Trainer:
    """One run: model, optimizers, averaged weights, data, and where in the run they stand.

    Everything that decides the next step is in the checkpoint, so a resumed run repeats an uninterrupted one
    bit for bit on the same machine and thread count.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        folder: RunFolder,
        *,
        quiet: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        self.config = config
        self.folder = folder
        self.processes = processes
        self.quiet = quiet or not processes.leads
        self.device = torch.device(config.device)
        self.dataset = dataset.to(self.device)
        training = config.recipe.training
        # Here and not in the recipe: a run of a larger machine can be evaluated on a smaller one.
        if training.threads > (most := THREADS_PER_CPU * (os.cpu_count() or 1)):
            raise UserError(f"training.threads must be at most {most} on this machine, got {training.threads}")
        _seed_everything(config.seed)
        self.model = config.recipe.build(dataset.data_dim).to(self.device)
        self.model.standardize_to(self.dataset.train.images)
        self._checksum = dataset.checksum()
        programs = f"fastmmd {fastmmd.__version__}, torch {torch.__version__}"
        processes.wait()  # for one that has read its data from farther away
        processes.agree(f"{replace(config, device='')}, data {self._checksum}, {programs}")
        self.model.synchronize(processes.shards)
        self.optimizers: dict[str, torch.optim.Optimizer] = self.model.configure_optimizers()
        self.schedules = Schedules(self.model, self.optimizers, training)
        self.average = AveragedModel(self.model) if training.average else None
        self.batches = training_batches(self.model, self.dataset, config, self.device, processes.shards)
        self.timer = RegularizerTimer(self.model.regularizer, self.device)
        self.health = HealthMonitor(self.model, config.seed)
        self.step, self.epoch = 0, 0
        self.seconds = 0.0  # of training, without evaluation
        self.terms = Terms(self.device, processes)
        self.checked = 0  # the last step whose losses were looked at
        self.saved: int | None = None  # the step of the checkpoint
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
            UserError: the loss is no longer finite, or the checkpoint cannot be written.
        """
        training = self.config.recipe.training
        self.model.train()
        with (
            _threads(training.threads),
            stop_requests() as requested,
            TrainingProgress(self.total_steps, quiet=self.quiet) as progress,
        ):
            while self.epoch < training.epochs and not self._stopped(requested):
                self._train_epoch(progress, requested)
        if self._stopped(requested):
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
        """Write the checkpoint.

        Raises:
            UserError: losses or weights are not finite, or it cannot be written; the previous one stays.
        """
        state = {
            "model": self.model.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "average": None if self.average is None else self.average.state_dict(),
            "batches": self.batches.state_dict(),
            "data": self._checksum,
            "random": random_states(self.device),
            "sums": self.terms.state_dict(),
            "warned": self.health.warned,
            "step": self.step,
            "epoch": self.epoch,
            "seconds": self.seconds,
        }
        self._require_finite()
        if name := not_finite(state):  # the loss was finite, the gradient was not
            raise _diverged(self, f"NaN or infinity in {name}")
        if self.processes.leads:
            save_checkpoint(self.folder.checkpoint, state)
        self._last_save, self.saved = time.monotonic(), self.step

    def resume(self) -> None:
        """Continue from the run folder's checkpoint; a run that was stopped before its first one begins again.

        Raises:
            UserError: it is missing, damaged or does not fit, the batch size or the data are others, or nothing is
                left to do.
        """
        # The first epoch is saved as soon as it is recorded: where there are more, the checkpoint was lost.
        epochs = sum("epoch" in record for record in self.folder.records())
        if epochs <= 1 and not self.folder.checkpoint.exists():
            self._forget_after(0)
            return
        state = load_checkpoint(self.folder.checkpoint, self.device)
        try:
            load_weights(self.model, state["model"])
            for name, optimizer in self.optimizers.items():
                load_optimizer(optimizer, state["optimizers"][name])
            if self.average is not None:
                load_weights(self.average, state["average"])
            self.batches.load_state_dict(state["batches"])
            if other_data(state, self._checksum):
                raise UserError(
                    f"the data of a run cannot change: {self.config.data} holds other images or labels than when the "
                    "run began, though as many; give the same data, or start a new run"
                )
            self.terms.load_state_dict(state["sums"])
            self.health.warned = list(state["warned"])
            self.step, self.epoch, self.seconds = int(state["step"]), int(state["epoch"]), float(state["seconds"])
            set_random_states(state["random"], self.device)
        except UserError:
            raise
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise UserError(f"{self.folder.checkpoint} does not fit {self.folder.config}: {reason}") from error
        self.checked = self.saved = self.step
        # A run that was stopped in its final evaluation is not complete: fit() returns at once, the report is missing.
        epochs = self.config.recipe.training.epochs
        if self.epoch > epochs or (self.epoch == epochs and self.folder.is_evaluated()):
            raise UserError(
                f"{self.folder.path} is complete ({self.epoch} epochs): train on with --epochs N, N > {self.epoch}, "
                f"or measure it again with fastmmd evaluate {shlex.quote(str(self.folder.path))}"
            )
        self._forget_after(self.step)

    def _forget_after(self, step: int) -> None:
        self.processes.any(0)  # all have read what is there
        if self.processes.leads:
            self.folder.forget_after(step)

    def _train_epoch(self, progress: TrainingProgress, requested: list[int]) -> None:
        """The rest of an epoch, its evaluation and its record; after a stop request only the current step."""
        begin = time.perf_counter()
        for batch in self.batches.epoch():
            self._train_step(batch, progress)
            if self._stopped(requested):
                self.seconds += time.perf_counter() - begin
                return
        self.epoch += 1
        record = self._close_epoch(time.perf_counter() - begin)
        training = self.config.recipe.training
        last, every = self.epoch == training.epochs, training.evaluate_every
        evaluated = last or (every > 0 and self.epoch % every == 0)
        if evaluated:
            record.update(self.evaluate())
        self._append(record)
        self._last_record |= record
        progress.line(f"epoch {self.epoch}  {join(_figures(record))}", always=evaluated)
        since = time.monotonic() - self._last_save
        if last or self.processes.any(int(since > SECONDS_BETWEEN_CHECKPOINTS)):
            self.save()

    def _stopped(self, requested: list[int]) -> bool:
        """Whether a process has been asked to stop: then all have."""
        number = self.processes.any(requested[0] if requested else 0)
        if number and not requested:
            requested.append(number)
        return number > 0

    def _append(self, record: dict[str, Any]) -> None:
        if self.processes.leads:
            self.folder.append(record)

    def _train_step(self, batch: Batch, progress: TrainingProgress) -> None:
        training = self.config.recipe.training
        self.model.progress = self.step / self.total_steps
        self.schedules.advance()
        with self.timer.step(self.step), one_generator(self.model.shards):
            terms = self.model.training_step(batch.images, self.optimizers, batch.labels)
        self.step += 1
        if self.average is not None:
            # Early on the average must forget the untrained weights quickly.
            decay = min(training.average, (1 + self.step) / (10 + self.step))
            self.average.multi_avg_fn = get_ema_multi_avg_fn(decay)
            self.average.update_parameters(self.model)
        self.terms.add(terms)
        figures = None
        position = self.batches.position
        look = self.step % STEPS_BETWEEN_FIGURES == 0 or position == len(self.batches)
        if look or self.device.type == "cpu":  # where nothing waits
            self._require_finite()
        if look:
            figures = _figures({**self._last_record, **self.terms.means(position)})
            # The loop waits for the device here anyway, so a check of the codes that has become due is made here.
            last = max((self.step - 1) // STEPS_BETWEEN_FIGURES * STEPS_BETWEEN_FIGURES, self.step - position)
            if (every := training.health_every) and self.step // every > last // every:
                for message in self.health.check(batch.images, self.step):
                    progress.line(f"warning: {message}")
                    self._append({"step": self.step, "warning": message})
        progress.step(self.step, f"epoch {self.epoch + 1}/{training.epochs}", figures)

    def _close_epoch(self, seconds: float) -> dict[str, Any]:
        self.seconds += seconds
        record: dict[str, Any] = {"epoch": self.epoch, "step": self.step, **self.terms.means(len(self.batches))}
        record["seconds"] = self.seconds
        record["images_per_second"] = self.step * self.batches.rows / self.seconds
        record["regularizer_share"] = self.timer.share
        self.terms.clear()
        return record

    def _require_finite(self) -> None:
        """Of the losses since the last call."""
        means = self.terms.means(max(self.batches.position, 1))
        if not all(map(math.isfinite, means.values())):
            raise _diverged(self, ", ".join(f"{name} {value:.4g}" for name, value in means.items()))
        self.checked = self.step


def _diverged(trainer: Trainer, what: str) -> UserError:
    first = min(trainer.checked + 1, trainer.step)
    when = f"at step {trainer.step}" if first == trainer.step else f"between steps {first} and {trainer.step}"
    kept = "there is no checkpoint yet"
    if trainer.saved is not None:
        kept = f"{trainer.folder.checkpoint} is from before, of step {trainer.saved}"
    hint = "lower the learning rates or the weight of the regularizer (--set model.KEY=VALUE in a new run, or "
    hint += "config.toml before --resume)"
    return UserError(f"the run diverged {when}: {what}; {hint}; {kept}")


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
