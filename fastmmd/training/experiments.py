"""Experiments: programs that train several models and compare them, in one folder with a run folder for each model.

    def main() -> None:
        with Experiment.start("priors", arguments(__doc__).parse_args()) as experiment:
            model = experiment.train("AAE mixture", "aae", {"model.prior": "mixture", "model.code_size": 2})
            ...
            experiment.write_report("...")

Interrupted work loses nothing: the same command with the same --run-dir loads the finished runs and resumes
the interrupted one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastmmd.checkpoint import load_checkpoint
from fastmmd.data import NAMES, Dataset, load_data
from fastmmd.errors import Interrupted, UserError, interruptible
from fastmmd.evaluation.codes import CodeStatistics
from fastmmd.evaluation.parzen import ParzenResult
from fastmmd.files import write_text, writing
from fastmmd.nn.base import Model
from fastmmd.training.config import Recipe, data_settings, dotted, load_recipe
from fastmmd.training.lock import locked
from fastmmd.training.loop import Trainer
from fastmmd.training.report import evaluate_run
from fastmmd.training.run import RunConfig, RunFolder, choose_device, hardware, load_model, versions


class Spec(NamedTuple):
    """One model to train: its name in the experiment, a recipe, overrides (dotted keys), a seed."""

    name: str
    recipe: str
    overrides: Mapping[str, Any] = {}
    seed: int | None = None  # None: the experiment's


@dataclass(frozen=True)
class Run:
    """A trained model in eval mode and what its run folder records.

    Attributes:
        seconds: of training, without evaluation.
        parzen, codes: of the test split, None where the run was not evaluated; `codes` also of a model without codes.
    """

    spec: Spec
    seed: int
    config: RunConfig
    folder: Path
    model: Model
    epochs: int
    seconds: float
    parzen: ParzenResult | None
    codes: CodeStatistics | None


@dataclass(frozen=True)
class Experiment:
    """A folder with the runs, pictures, records and the report of one program."""

    title: str
    options: argparse.Namespace
    data: Dataset  # on `device`, labels on the host
    folder: Path
    device: torch.device

    @classmethod
    @contextlib.contextmanager
    def start(cls, title: str, options: argparse.Namespace) -> Iterator[Experiment]:
        """Load the data, make the folder and hold it; user errors and interruptions end the program with one line.

        Args:
            title: of the report; in lower case with hyphens it begins the folder's name.
            options: of a parser from `arguments`.
        """
        folder = options.run_dir
        if folder is None:
            stamp = time.strftime("%Y%m%d-%H%M%S")
            folder = Path("runs") / f"{slug(title)}-{slug(Path(options.data).stem)}-{stamp}"
        try:
            with interruptible():
                device = choose_device(options.device)
                settings = data_settings(dotted(options.set))
                data = load_data(options.data, options.data_dir, **asdict(settings)).to(device)
                with writing(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                with locked(folder):
                    yield cls(title, options, data, folder, device)
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            raise SystemExit(2) from None
        except (Interrupted, KeyboardInterrupt) as stop:
            print(f"stopped; resume with the same command and --run-dir {shlex.quote(str(folder))}", file=sys.stderr)
            raise SystemExit(getattr(stop, "exit_code", 130)) from None
        print(f"pictures and report: {folder}")

    @property
    def is_digits(self) -> bool:
        """Whether this is the small data set that comes with scikit-learn."""
        return self.data.name == "digits"

    def train(
        self, name: str, recipe: str, overrides: Mapping[str, Any] | None = None, *, seed: int | None = None
    ) -> Model:
        """The trained model in eval mode; see `run`."""
        return self.run(name, recipe, overrides, seed=seed, evaluate=False).model

    def run(
        self,
        name: str,
        recipe: str,
        overrides: Mapping[str, Any] | None = None,
        *,
        seed: int | None = None,
        evaluate: bool = True,
    ) -> Run:
        """Train a model in its own run folder, or load it if it is already trained.

        Args:
            name: of the model in this experiment.
            recipe: see `load_recipe`; --epochs overrides its number of epochs.
            overrides: dotted keys and values that override the recipe.
            seed: of weights, batches and samples; default: the experiment's.
            evaluate: by the Parzen protocol, with the run's own pictures and report, as `fastmmd train` does.

        Raises:
            UserError: the folder holds a run of this name with other settings.
            Interrupted: by a signal; the run is saved.
        """
        return self.run_all([Spec(name, recipe, overrides or {}, seed)], evaluate=evaluate)[0]

    def run_all(self, specs: Sequence[Spec], *, evaluate: bool = True) -> list[Run]:
        """`run` for many models; with --jobs N > 1, N at a time, each in its own process with one thread."""
        planned = [(spec, *self._plan(spec)) for spec in specs]
        quiet = not sys.stderr.isatty() or self.options.jobs > 1
        open_ones = [
            (spec.name, config, folder)
            for spec, config, folder in planned
            if not _is_complete(config, folder, evaluate)
        ]
        finish = partial(_finish, evaluate=evaluate, quiet=quiet)
        if self.options.jobs > 1 and len(open_ones) > 1:
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(self.options.jobs, spawn, _start_worker) as pool:
                try:
                    for line in pool.map(partial(_finish_in_worker, finish), *zip(*open_ones, strict=True)):
                        print(line, flush=True)
                except (KeyboardInterrupt, Interrupted):
                    for worker in multiprocessing.active_children():
                        worker.terminate()  # what trains is saved first
                    pool.shutdown(cancel_futures=True)
                    raise
        else:
            for one in open_ones:
                print(finish(*one, data=self.data), flush=True)
        return [self._load(*one) for one in planned]

    def write_report(self, text: str) -> None:
        """report.md: the title, how it was made, and `text`."""
        made = self._made()
        head = (
            f"# {self.title}\n\nData: {self.data.name}. Seed {self.options.seed}. Hardware: {made['hardware']}. "
            f"Date: {made['date']}. Command: `{made['command']}`.\n\n"
        )
        write_text(self.folder / "report.md", head + text.rstrip() + "\n")

    def write_record(self, name: str, results: Mapping[str, Any]) -> None:
        """NAME.json: the results, with command, date, hardware and versions."""
        write_text(self.folder / f"{name}.json", json.dumps({**self._made(), **results}, indent=1) + "\n")

    def _made(self) -> dict[str, Any]:
        words = [Path(word).name if word.endswith(".py") else word for word in sys.argv]
        for option in ("--data-dir", "--run-dir"):  # where they lie on this machine means nothing elsewhere
            if option in words[:-1]:
                words[words.index(option) + 1] = "DIR"
        known = versions()
        return {
            "command": f"python python/{shlex.join(words)}",
            "date": date.today().isoformat(),
            "hardware": hardware(self.device),
            "versions": {name: known[name] for name in ("fastmmd", "python", "torch", "numpy")},
        }

    def _plan(self, spec: Spec) -> tuple[RunConfig, RunFolder]:
        options = self.options
        chosen = dotted(options.set)
        overrides = {**spec.overrides, **chosen}
        if options.epochs is not None:
            overrides["training.epochs"] = options.epochs
        recipe = load_recipe(spec.recipe, options.data, overrides)
        recipe = replace(recipe, data=data_settings(chosen))  # as the data of all models were read
        seed = options.seed if spec.seed is None else spec.seed
        config = RunConfig.resolved(recipe, options.data, self.data, seed, self.device, options.data_dir)
        return config, RunFolder(self.folder / f"{slug(spec.name)}-seed{seed}")

    def _load(self, spec: Spec, config: RunConfig, folder: RunFolder) -> Run:
        records = folder.records()
        last = [record for record in records if "epoch" in record][-1]
        evaluations = [record for record in records if record.get("kind") == "evaluation"]
        evaluation = evaluations[-1] if evaluations else None
        return Run(
            spec=spec,
            seed=config.seed,
            config=config,
            folder=folder.path,
            model=load_model(folder, config, self.device),
            epochs=last["epoch"],
            seconds=last["seconds"],
            parzen=None if evaluation is None else _made_of(ParzenResult, evaluation),
            codes=None if not (evaluation and evaluation["codes"]) else _made_of(CodeStatistics, evaluation["codes"]),
        )


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all experiments share: a program's docstring is its help."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="digits", help=f"{', '.join(NAMES)}, an array or a folder")
    parser.add_argument("--data-dir", help="folder of the files of published data")
    parser.add_argument("--epochs", type=int, help="epochs of every model; default: the recipes'")
    what = "override the recipe of every model, or how a folder of images is read"
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help=what)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-dir", type=Path, help="default: runs/PROGRAM-DATA-TIMESTAMP; an existing one is resumed")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--jobs", type=int, default=1, help="models trained at once, one CPU thread each")
    return parser


def numbers(text: str) -> list[float]:
    """The value of an option that is a list, separated by commas: "1,2.5" -> [1.0, 2.5]."""
    return [float(word) for word in text.split(",")]


def first_order(recipe: Recipe) -> dict[str, Any]:
    """What gives the recipe ds-aae the adversary of its paper, whose features stay: it takes twice the weight."""
    weight = recipe.model.keywords()["regularizer_weight"]
    return {"model.mode": "first_order", "model.regularizer_weight": 2 * weight}


def slug(name: str) -> str:
    """Words as a part of a file's name: "AAE, 2-D" -> "aae-2-d"."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _is_complete(config: RunConfig, folder: RunFolder, evaluate: bool) -> bool:
    """Whether the run is complete.

    Raises:
        UserError: it is a run with other settings.
    """
    if not folder.config.exists():
        return False
    existing = RunConfig.read(folder.config)
    if _settings(existing) != _settings(config):
        raise UserError(f"{folder.path} holds a run with other settings: choose another --run-dir")
    if not folder.checkpoint.exists() or (evaluate and not folder.is_evaluated()):
        return False
    # Not by the metrics: a run may have been killed between the record of its last epoch and the checkpoint.
    return bool(load_checkpoint(folder.checkpoint).get("epoch") == config.recipe.training.epochs)


def _settings(config: RunConfig) -> str:
    """What a run depends on; settings unknown to the version that wrote it have their defaults."""
    return json.dumps([config.recipe.to_dict(), config.data, config.data_dim, config.seed], sort_keys=True)


def _finish(
    name: str, config: RunConfig, folder: RunFolder, evaluate: bool, quiet: bool, data: Dataset | None = None
) -> str:
    """Train and evaluate the rest of a run; returns a line with the result."""
    data = config.load_data(quiet=True) if data is None else data
    trainer = Trainer(config, data, folder, quiet=quiet)
    with writing(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    with locked(folder.path):
        if folder.config.exists():
            trainer.resume()
        else:
            config.write(folder.config)
        trainer.fit()
        line = f"{name}, seed {config.seed}: {trainer.epoch} epochs, {trainer.seconds:.0f} s"
        if evaluate:
            result = evaluate_run(folder, config, trainer.dataset, trainer.evaluated_model.eval())
            line += f", test log-likelihood {result.parzen}"
    return line


def _start_worker() -> None:
    """A process of --jobs. Ctrl-C reaches it too, but is left to the parent, which sends SIGTERM."""
    torch.set_num_threads(1)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


_asked_to_stop: list[Interrupted] = []  # in a worker


def _finish_in_worker(finish: Callable[..., str], *one: object) -> str:
    """After a request to stop, nothing more of what already waits for this worker."""
    if _asked_to_stop:
        raise _asked_to_stop[0]
    try:
        return finish(*one)
    except Interrupted as stop:
        _asked_to_stop.append(stop)
        raise


def _made_of(kind: Any, record: Mapping[str, Any]) -> Any:
    """A result restored from its record; what the version that made it did not know has its default."""
    values = {field.name: record[field.name] for field in fields(kind) if field.name in record}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
