"""Evaluations by very many samples: parts in the run folder, saved as they grow, continued and merged."""

from __future__ import annotations

import hashlib
import math
import re
import shlex
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fastmmd.checkpoint import load_state, save_checkpoint
from fastmmd.data import Dataset
from fastmmd.errors import Interrupted, UserError
from fastmmd.evaluation.large import LargeEvaluation, pilot_sigmas
from fastmmd.evaluation.parzen import VALIDATION_POINTS
from fastmmd.evaluation.sampling import CHUNK, Sampler, markov_chain
from fastmmd.files import writing
from fastmmd.nn import GenerativeModel
from fastmmd.training.lock import locked
from fastmmd.training.loop import stop_requests
from fastmmd.training.progress import TrainingProgress, join
from fastmmd.training.report import sigma_grid
from fastmmd.training.run import RunConfig, RunFolder

LARGE = 100_000  # more samples than this are taken in one pass that is saved
SECONDS_BETWEEN_SAVES = 20.0
_FOLDER = re.compile(r"evaluation-(\d+)(?:-chain-(\d+))?")
_PART = re.compile(r"part-(\d+)-of-(\d+)\.pt")

Part = tuple[int, int]


def parse_part(text: str) -> Part:
    """K/N as numbers: (3, 8) of "3/8".

    Raises:
        UserError: it is not K/N with 1 <= K <= N.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    number, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= parts:
        raise UserError(f"--part takes K/N with 1 <= K <= N, such as 3/8, got {text!r}")
    return number, parts


@dataclass(frozen=True)
class LargeRun:
    """The evaluation of a run by `samples` samples; its parts are RUN/evaluation-SAMPLES/part-K-of-N.pt.

    Each holds what it depends on: recipe, checkpoint, data, number and seed of the samples, sampler, sigmas.
    """

    folder: RunFolder
    config: RunConfig
    dataset: Dataset
    model: GenerativeModel
    samples: int
    chain_steps: int = 0

    @property
    def path(self) -> Path:
        chain = f"-chain-{self.chain_steps}" if self.chain_steps else ""
        return self.folder.path / f"evaluation-{self.samples}{chain}"

    @cached_property
    def sampler(self) -> Sampler:
        return markov_chain(self.model, self.chain_steps)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What all parts have in common, besides the sigmas."""
        images = (self.dataset.validation.images[:VALIDATION_POINTS], self.dataset.test.images)
        checksum = 0
        for split in images:
            checksum = zlib.crc32(split.cpu().contiguous().numpy().tobytes(), checksum)
        return {
            "recipe": self.config.recipe.name,
            "checkpoint": hashlib.sha256(self.folder.checkpoint.read_bytes()).hexdigest()[:16],
            "data": f"{checksum:08x}",
            "samples": self.samples,
            "seed": self.config.seed,
            "sampler": self.sampler.name,
            "block": CHUNK,
        }

    def file(self, part: Part) -> Path:
        return self.path / f"part-{part[0]}-of-{part[1]}.pt"

    def parts(self) -> list[Part]:
        """The parts on disk, finished or not, in order."""
        names = [_PART.fullmatch(file.name) for file in self.path.glob("part-*.pt")]
        return sorted((int(match[1]), int(match[2])) for match in names if match)

    def command(self, part: Part, *, resume: bool = True) -> str:
        """The command that begins or continues a part."""
        words = ["fastmmd", "evaluate", self.folder.path, "--samples", self.samples]
        words += ["--chain-steps", self.chain_steps] if self.chain_steps else []
        words += ["--part", f"{part[0]}/{part[1]}"] if part[1] > 1 else []
        if self.config.data_dir != RunConfig.read(self.folder.config).data_dir:
            words += ["--data-dir", self.config.data_dir]
        return shlex.join(map(str, words + (["--resume"] if resume else [])))

    def require_parts_of(self, total: int) -> None:
        """The parts that are here are of so many.

        Raises:
            UserError: there are parts of another number of parts.
        """
        if others := [part for part in self.parts() if part[1] != total]:
            raise UserError(
                f"{self.file(others[0])} is one of {others[0][1]} parts, not of {total}: continue with as many "
                f"processes, or remove {self.path}"
            )

    def sigmas(self, *, quiet: bool = False) -> list[float]:
        """Those of the parts that are here, or those that fewer samples suggest."""
        if parts := self.parts():
            return list(self._read(parts[0])["sigmas"])
        if not quiet:
            print("looking for sigma with fewer samples", flush=True)
        grid = sigma_grid(self.config.recipe.evaluation)
        validation = self.dataset.validation.images
        return pilot_sigmas(self.sampler, validation, self.samples, sigmas=grid, seed=self.config.seed)

    def measure(
        self,
        part: Part = (1, 1),
        sigmas: list[float] | None = None,
        *,
        resume: bool = False,
        quiet: bool = False,
    ) -> LargeEvaluation:
        """Take all samples of a part; what an earlier process has saved of it is continued.

        Raises:
            UserError: it has been begun and `resume` is False; another process is at it; a file is damaged, of another
                evaluation, or cannot be written.
            Interrupted: by SIGINT or SIGTERM, after the samples at hand are added and saved.
        """
        file = self.file(part)
        if file.exists() and not resume:
            raise UserError(f"{file} holds a part of this evaluation: go on with --resume, or remove the file")
        label = f"part {part[0]}/{part[1]}" if part[1] > 1 else "evaluation"
        with writing(self.path):
            self.path.mkdir(exist_ok=True)
        with locked(self.path, f"{file.name}.lock"), stop_requests() as requested:
            evaluation = self._begin(part, sigmas, quiet)
            begin, before = time.perf_counter(), evaluation.estimator.count
            saved = -math.inf
            with TrainingProgress(evaluation.total, quiet=quiet) as progress:
                progress.step(before, label)
                while evaluation.remaining and not requested:
                    evaluation.advance()
                    now = time.perf_counter()
                    rate = (evaluation.estimator.count - before) / (now - begin)
                    progress.step(evaluation.estimator.count, label, {"samples/s": f"{rate:,.0f}"})
                    if now - saved >= SECONDS_BETWEEN_SAVES:
                        saved = now
                        self._save(evaluation, part)
                        if not progress.interactive:
                            progress.line(f"{label}  {join(_figures(evaluation, rate))}")
            self._save(evaluation, part)
            if requested:
                done = f"{evaluation.estimator.count:,} of {evaluation.total:,} samples"
                raise Interrupted(f"stopped after {done}; continue with: {self.command(part)}", requested[0])
        return evaluation

    def merge(self) -> LargeEvaluation:
        """All parts as one.

        Raises:
            UserError: a part is missing, unfinished, damaged, or of another evaluation.
        """
        parts = self.parts()
        if len({total for _, total in parts}) > 1:
            names = ", ".join(self.file(part).name for part in parts)
            raise UserError(f"{self.path} holds parts of several partitions ({names}): remove those of all but one")
        total = parts[0][1] if parts else 1
        if missing := [part for part in ((number, total) for number in range(1, total + 1)) if part not in parts]:
            numbers = ", ".join(str(number) for number, _ in missing)
            example = self.command(missing[0], resume=False)
            raise UserError(f"{self.path} has no part {numbers} of {total}; make it with: {example}, or copy it there")
        merged: LargeEvaluation | None = None
        for part in parts:
            evaluation = self._load(part, None if merged is None else list(merged.estimator.sigmas))
            if evaluation.remaining:
                done = f"{evaluation.estimator.count:,} of {evaluation.total:,}"
                raise UserError(f"{self.file(part)} has {done} samples; continue it with: {self.command(part)}")
            if merged is None:
                merged = evaluation
            else:
                merged.merge(evaluation)
        assert merged is not None
        return merged

    def _begin(self, part: Part, sigmas: list[float] | None, quiet: bool) -> LargeEvaluation:
        """A part as it was saved, or a new one."""
        if part in self.parts():
            return self._load(part)
        return self._new(part, sigmas or self.sigmas(quiet=quiet))

    def _new(self, part: Part, sigmas: list[float]) -> LargeEvaluation:
        images = (self.dataset.validation.images, self.dataset.test.images)
        return LargeEvaluation(self.sampler, *images, self.samples, sigmas, seed=self.config.seed, part=part)

    def _save(self, evaluation: LargeEvaluation, part: Part) -> None:
        state = {"evaluation": self.identity, "part": list(part), **evaluation.state_dict()}
        save_checkpoint(self.file(part), state)

    def _load(self, part: Part, sigmas: list[float] | None = None) -> LargeEvaluation:
        state = self._read(part, {} if sigmas is None else {"sigmas": sigmas})
        try:
            evaluation = self._new(part, state["sigmas"])
            evaluation.load_state_dict(state)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.file(part)} is damaged ({error}): remove it") from error
        return evaluation

    def _read(self, part: Part, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The content of a part's file, which must be of this evaluation, with what `more` says besides."""
        file = self.file(part)
        state = load_state(file, "evaluation")
        expected = {**self.identity, "part": list(part), **(more or {})}
        found = {**state["evaluation"], "part": state.get("part"), "sigmas": state.get("sigmas")}
        for name, value in expected.items():
            if found.get(name) != value:
                raise UserError(
                    f"{file} is of another evaluation: {name} is {_short(found.get(name))} there, "
                    f"{_short(value)} here; remove it"
                )
        return state


def find_evaluation(folder: RunFolder, samples: int | None, chain_steps: int | None) -> tuple[int, int]:
    """Number of samples and chain steps of the run's only evaluation in parts that fits what is given.

    Raises:
        UserError: there is none, or several.
    """
    names = [_FOLDER.fullmatch(path.name) for path in sorted(folder.path.glob("evaluation-*")) if path.is_dir()]
    found = [(match[0], int(match[1]), int(match[2] or 0)) for match in names if match]
    fitting = [one for one in found if samples in (None, one[1]) and chain_steps in (None, one[2])]
    if len(fitting) != 1:
        here = ", ".join(name for name, _, _ in found) or "none"
        raise UserError(
            f"merge needs one evaluation in parts, {folder.path} has: {here}; choose by --samples and --chain-steps, "
            "or make parts with fastmmd evaluate --part"
        )
    return fitting[0][1:]


def _figures(evaluation: LargeEvaluation, rate: float) -> dict[str, str]:
    """What a line of progress says."""
    best, validation, _ = evaluation.best()
    count = evaluation.estimator.count
    return {
        f"{count / evaluation.total:.0%} of {evaluation.total:,} samples,": f"{rate:,.0f}/s",
        "left": _duration(evaluation.remaining / rate),
        "validation LL": f"{validation[best].mean().item():.1f}",
        "sigma": f"{evaluation.estimator.sigmas[best]:.4f}",
    }


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _short(value: Any) -> str:
    """A value in an error message."""
    if isinstance(value, list) and len(value) > 2:
        return f"{len(value)} values from {value[0]:.4g} to {value[-1]:.4g}"
    return str(value)
