"""Kills, signals, locks, full disks: work that survives goes on as if nothing had happened."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers import FULL, assert_same
from processes import Fault, run
from test_training import data, one_thread, tiny, trainer  # noqa: F401  fixtures, and what makes a trainer
from torch import Tensor

from fastmmd.checkpoint import load_checkpoint
from fastmmd.training import Dataset, UserError, experiments
from fastmmd.training.loop import TERMS, Trainer
from fastmmd.training.run import RunFolder

KILLS = 20 if FULL else 3  # of each kind of work
SEED = 20260
TIMES = ("seconds", "images_per_second", "regularizer_share")
# ruff: noqa: F811  fixtures are arguments here
TINY = ["model.hidden=[16]", "evaluation.samples=300", "training.health_every=2", "training.evaluate_every=2"]
TRAIN = ["train", "vae", "--data", "images.npy", "--run-dir", "run", "--device", "cpu", "--batch-size", 20]
TRAIN += ["--epochs", 4, *(word for setting in TINY for word in ("--set", setting))]
SAMPLE = ["sample", "run", "--count", 5_000, "--output", "samples.npy", "--device", "cpu", "--chain-steps", 2]
TABLE = ["table1.py", "--data", "images.npy", "--run-dir", "table", "--device", "cpu", "--seeds", 1, "--epochs", 2]
TABLE += ["--rows", "vae,mmd-ae" if FULL else "vae", "--samples", 300]


def tiny_recipes() -> None:
    """In the process of a program, whose recipes have no options."""
    load = experiments.load_recipe
    tiny = {"model.hidden": [16], "evaluation.samples": 200, "training.batch_size": 20}
    experiments.load_recipe = lambda recipe, data, over: load(recipe, data, tiny | dict(over))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sixty images of 16 pixels and a run of four epochs on them."""
    folder = tmp_path_factory.mktemp("trained") / "here"
    folder.mkdir()
    np.save(folder / "images.npy", np.random.default_rng(0).random((60, 4, 4)))
    ended = run(TRAIN, folder)
    assert ended.code == 0, ended.err
    return folder


# --- kills ---


def go_on_training(folder: Path) -> list[Any] | None:
    """What a user does after a kill, None: nothing is left to do."""
    if RunFolder(folder / "run").is_evaluated():
        return None
    return ["train", "--resume", "run"] if (folder / "run" / "config.toml").exists() else TRAIN


def go_on_evaluating(folder: Path) -> list[Any] | None:
    return ["evaluate", "run", "--samples", 500] if RunFolder(folder / "run").evaluations() < 2 else None


class Work(NamedTuple):
    """What is killed: the next command, and what it begins with, besides the images."""

    command: Callable[[Path], list[Any] | None]
    begins: bool = True  # with the trained run


WORKS = {
    "train": Work(go_on_training, begins=False),
    "evaluate": Work(go_on_evaluating),
    "sample": Work(lambda folder: SAMPLE),
    "program": Work(lambda folder: TABLE, begins=False),
}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def content(path: Path) -> Any:
    """Of a file, without the times that were measured."""
    if path.suffix == ".pt":
        return without_times(load_checkpoint(path))
    if path.suffix == ".jsonl":
        return without_times([json.loads(line) for line in path.read_text().splitlines()])
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.suffix == ".md":
        return re.sub(r"\d+ s on cpu \(.*|.*regularizer takes.*", "", path.read_text())
    return path.read_bytes()


def everything(folder: Path) -> dict[str, Any]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): content(path) for path in paths}


def begin(work: Work, trained: Path, folder: Path) -> Path:
    shutil.copytree(trained, folder, ignore=None if work.begins else shutil.ignore_patterns("run"))
    return folder


@pytest.mark.parametrize("name", WORKS)
def test_kill_at_any_moment(name: str, trained: Path, tmp_path: Path) -> None:
    """The same files, bit for bit but for measured times, as of work that nothing has interrupted."""
    work, chance = WORKS[name], random.Random(f"{SEED} {name}")
    folder = begin(work, trained, tmp_path / "here")
    ended = run(work.command(folder) or [], folder, prepare=tiny_recipes)
    assert ended.code == 0, ended.err
    expected, most, operations = everything(folder), ended.seconds, ended.operations
    assert operations > 4
    killed = 0
    while killed < KILLS:
        shutil.rmtree(folder)
        begin(work, trained, folder)  # of the same name, which the files tell
        while (command := work.command(folder)) is not None:
            fault = None
            if killed < KILLS:
                operation = chance.randint(1, operations) if chance.random() < 0.5 else None
                fault = Fault(signal.SIGKILL, None if operation else chance.uniform(0, most), operation)
            ended = run(command, folder, fault, tiny_recipes)
            print(f"{name}: {fault}: {ended.code}")
            if ended.code != -signal.SIGKILL:
                assert ended.code == 0, ended.err
                assert not [path for path in folder.rglob("*") if path.name == "lock" or path.suffix == ".tmp"]
                break
            killed += 1
        assert_same(everything(folder), expected)


@pytest.mark.parametrize("operation", [2, 4, 5])
def test_killed_before_its_first_checkpoint(operation: int, trained: Path, tmp_path: Path) -> None:
    """Holding an empty folder; before the first record; between the record and the checkpoint."""
    folder = begin(WORKS["train"], trained, tmp_path / "here")
    assert run(TRAIN, folder, Fault(signal.SIGKILL, operation=operation)).code == -signal.SIGKILL
    names = {path.name for path in (folder / "run").iterdir()} - {"checkpoint.pt.tmp", "config.toml.tmp"}
    assert names == {2: {"lock"}, 4: {"lock", "config.toml"}, 5: {"lock", "config.toml", "metrics.jsonl"}}[operation]
    ended = run(go_on_training(folder) or [], folder)
    assert ended.code == 0, ended.err
    for name in ("checkpoint.pt", "metrics.jsonl"):
        assert_same(content(folder / "run" / name), content(trained / "run" / name))


def test_samples_are_never_beside_the_record_of_others(trained: Path, tmp_path: Path) -> None:
    """Killed at every step of writing over earlier samples."""
    folder = begin(WORKS["sample"], trained, tmp_path / "here")
    words = ["sample", "run", "--count", 3, "--device", "cpu", "--output"]
    operations = run([*words, "0.npy"], folder).operations
    run([*words, "1.npy", "--seed", 1], folder)
    images = [np.load(folder / f"{seed}.npy") for seed in (0, 1)]
    found = set()
    for operation in range(1, operations + 1):
        for name in ("npy", "npy.json"):
            shutil.copy(folder / f"0.{name}", folder / f"samples.{name}")
        fault = Fault(signal.SIGKILL, operation=operation)
        assert run([*words, "samples.npy", "--seed", 1], folder, fault).code == -signal.SIGKILL
        if (folder / "samples.npy").exists():
            seed = json.loads((folder / "samples.npy.json").read_text())["seed"]
            assert np.array_equal(np.load(folder / "samples.npy"), images[seed])
            found.add(seed)
    assert found == {0, 1}
    assert run([*words, "samples.npy", "--seed", 1], folder).code == 0
    assert np.array_equal(np.load(folder / "samples.npy"), images[1]) and not list(folder.rglob("*.tmp"))


# --- signals ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["evaluate", "sample", "program"])
def test_signals_leave_nothing_half_written(name: str, number: int, trained: Path, tmp_path: Path) -> None:
    """In the middle of writing; each signal has its exit code, and what was whole before still is."""
    work = WORKS[name]
    folder = begin(work, trained, tmp_path / "here")
    before = everything(folder)
    operation = {"evaluate": 8, "sample": 3, "program": 12}[name]
    ended = run(work.command(folder) or [], folder, Fault(number, operation=operation), tiny_recipes)
    assert ended.code == 128 + number, ended.err
    lines = [line for line in ended.err.splitlines() if line and not line.startswith("warning: ")]
    assert len(lines) == 1 and re.search("stopped; resume with|stopped by SIG", lines[0]), ended.err
    names = {path.name for path in folder.rglob("*")}
    assert not [name for name in names if name == "lock" or name.endswith(".tmp")]
    assert ("samples.npy" in names) <= ("samples.npy.json" in names)
    after = everything(folder)
    assert {key: after[key] for key in before if not key.endswith((".png", ".md"))}.keys() <= before.keys()
    for key in ("run/checkpoint.pt", "run/metrics.jsonl") if work.begins else ():
        assert_same(after[key], before[key])


@pytest.mark.skipif(not FULL, reason="starts two processes more for each signal; part of make test-full")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_processes_of_jobs(number: int, trained: Path, tmp_path: Path) -> None:
    """Each saves what it trains; a third model, which waits for them, is not begun."""
    folder = begin(WORKS["program"], trained, tmp_path / "here")
    words = [*TABLE, "--jobs", 2, "--epochs", 100_000, "--rows", "vae,mmd-ae,aae"]
    saved = [folder / "table" / f"{name}-seed0" / "checkpoint.pt" for name in ("vae", "mmd-ae")]
    ended = run(words, folder, Fault(number), tiny_recipes, when=lambda: all(path.exists() for path in saved))
    assert ended.code == 128 + number and "stopped; resume with the same command" in ended.err, ended.err
    assert not [path for path in folder.rglob("*") if path.name == "lock" or path.suffix == ".tmp"]
    assert not (folder / "table" / "aae-seed0").exists()
    for path in saved:
        epochs = [record["epoch"] for record in RunFolder(path.parent).records() if "epoch" in record]
        assert load_checkpoint(path)["epoch"] == epochs[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_training_stopped_in_its_evaluation(number: int, trained: Path, tmp_path: Path) -> None:
    folder = begin(WORKS["train"], trained, tmp_path / "here")
    ended = run(TRAIN, folder, Fault(number, operation=19))  # a picture
    assert ended.code == 128 + number and "stopped in the final evaluation; resume with: fastmmd" in ended.err
    assert run(["train", "--resume", "run"], folder).code == 0
    assert_same(load_checkpoint(folder / "run" / "checkpoint.pt")["model"],
                load_checkpoint(trained / "run" / "checkpoint.pt")["model"])  # fmt: skip


# --- divergence ---


def diverging(made: Trainer, step: int, spoil: Callable[[dict[str, Tensor]], None]) -> None:
    """At the given step the model's terms, or the model, are spoiled."""
    take = made.model.training_step

    def training_step(batch: Tensor, optimizers: Any, labels: Any = None) -> Any:
        terms = {name: value.clone() for name, value in take(batch, optimizers).items()}
        if made.step + 1 == step:
            spoil(terms)
        return terms

    made.model.training_step = training_step


def refuses(made: Trainer, message: str) -> None:
    path = made.folder.checkpoint
    with pytest.raises(UserError, match=message):
        made.fit()
    if path.exists():  # loading accepts finite numbers alone
        assert message.endswith(f"of step {load_checkpoint(path)['step']}$")


HINT = r"; lower the learning rates or the weight of the regularizer \(--set model.KEY=VALUE in a new run, or .*\); "


@pytest.mark.parametrize("term", ["loss", "reconstruction", "regularizer"])
def test_divergence_names_the_step_and_the_term(term: str, data: Dataset, tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", tiny(), data)
    diverging(made, 5, lambda terms: terms[term].fill_(float("inf")))
    others = {name: f"{name} {'inf' if name == term else r'[0-9.e+-]+'}" for name in TERMS}
    terms = ", ".join(others.values())
    refuses(made, f"^the run diverged at step 5: {terms}{HINT}.*checkpoint.pt is from before, of step 3$")


def test_divergence_before_the_first_checkpoint(data: Dataset, tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", tiny(), data)
    diverging(made, 1, lambda terms: terms["loss"].fill_(float("nan")))
    refuses(made, f"^the run diverged at step 1: loss nan, .*{HINT}there is no checkpoint yet$")
    assert not made.folder.checkpoint.exists()


def test_a_stop_between_two_looks_saves_nothing_that_diverged(data: Dataset, tmp_path: Path) -> None:
    """As on a GPU, where the loop looks at the losses every 20 steps and where an epoch ends."""
    made = trainer(tmp_path / "run", tiny(), data)
    made.device = SimpleNamespace(type="another")  # type: ignore[assignment]

    def stop(terms: dict[str, Tensor]) -> None:
        terms["loss"].fill_(float("nan"))
        signal.raise_signal(signal.SIGTERM)

    diverging(made, 5, stop)
    refuses(made, f"^the run diverged between steps 4 and 5: loss nan, .*{HINT}.*checkpoint.pt is .* of step 3$")


@pytest.mark.parametrize("what", ["weight", "moment", "average"])
def test_a_last_step_that_diverges_is_not_saved(what: str, data: Dataset, tmp_path: Path) -> None:
    """Its loss is finite, its gradient was not, and no loss follows."""
    made = trainer(tmp_path / "run", tiny(epochs=2, training__average=0.5), data)

    def spoil(terms: dict[str, Tensor]) -> None:
        weight = next(made.model.parameters())
        moment = made.optimizers["autoencoder"].state[weight]["exp_avg_sq"]
        tensor = {"weight": weight, "moment": moment, "average": next(made.average.module.parameters())}[what]
        tensor.data[0] = float("inf")

    diverging(made, 6, spoil)
    where = {"weight": r"model\.", "moment": r"optimizers\.autoencoder\.state", "average": r"average\.module"}[what]
    refuses(made, f"^the run diverged at step 6: NaN or infinity in {where}.*of step 3$")
