"""The run folder: what a run was asked to do, what it recorded, what it learned."""

from __future__ import annotations

import importlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastmmd
from fastmmd.training.checkpoint import load_checkpoint
from fastmmd.training.config import Recipe, read_toml, recipe_from_dict, write_toml
from fastmmd.training.data import NAMES, Dataset, load_data
from fastmmd.training.errors import UserError


@dataclass(frozen=True)
class RunConfig:
    """Everything needed to repeat a run, but for the code itself."""

    recipe: Recipe
    data: str
    data_dim: int
    seed: int = 0
    device: str = "cpu"
    data_dir: str | None = None

    def load_data(self, *, quiet: bool = False) -> Dataset:
        """The run's data set.

        Raises:
            UserError: it is gone, or no longer of the run's size.
        """
        dataset = load_data(self.data, self.data_dir, quiet=quiet)
        if dataset.data_dim != self.data_dim:
            raise UserError(f"{self.data} has {dataset.data_dim} pixels per image, the run {self.data_dim}")
        return dataset

    def write(self, path: Path) -> None:
        run = {
            "recipe": self.recipe.name,
            "data": self.data,
            "data_dir": self.data_dir,
            "data_dim": self.data_dim,
            "seed": self.seed,
            "device": self.device,
        }
        write_toml(path, {"run": run, **self.recipe.to_dict(), "versions": versions()})

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        tables = read_toml(path)
        run = tables.get("run")
        if not isinstance(run, dict) or not {"data", "data_dim", "recipe"} <= set(run):
            raise UserError(f"{path}: no table [run] with recipe, data and data_dim")
        wanted = {name: tables.get(name, {}) for name in ("model", "training", "evaluation")}
        recipe = recipe_from_dict(str(run["recipe"]), wanted)
        device = str(run.get("device", "cpu"))
        return cls(recipe, run["data"], run["data_dim"], run.get("seed", 0), device, run.get("data_dir"))


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.metrics = path / "metrics.jsonl"
        self.checkpoint = path / "checkpoint.pt"
        self.report = path / "report.md"

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A new folder.

        Raises:
            UserError: it exists and is not empty, or cannot be made.
        """
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                remedy = f"go on with --resume {path}" if (path / "config.toml").exists() else "clear it"
                raise UserError(f"{path} exists and is not empty: {remedy}, or choose another --run-dir")
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the run folder {path}: {error.strerror}") from error
        return cls(path)

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """The folder of an earlier run.

        Raises:
            UserError: it is none.
        """
        if not (path / "config.toml").is_file():
            raise UserError(f"{path} is not a run folder: it has no config.toml")
        return cls(path)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with open(self.metrics, "a") as file:
            file.write(json.dumps(record) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that a resumed run will do again."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # the line in which a killed run was writing
                continue
            if record.get("step", 0) <= step:
                kept.append(line + "\n")
        self.metrics.write_text("".join(kept))

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        text = self.metrics.read_text() if self.metrics.exists() else ""
        return [json.loads(line) for line in text.splitlines()]


def default_run_dir(recipe: str, data: str) -> Path:
    """runs/RECIPE-DATA-TIMESTAMP."""
    name = data if data in NAMES else Path(data).stem
    return Path("runs") / f"{recipe}-{name}-{datetime.now():%Y%m%d-%H%M%S}"


def load_model(folder: RunFolder, config: RunConfig, device: torch.device) -> Any:
    """The trained model of a run, in eval mode: the averaged weights if the run averages them.

    Raises:
        UserError: there is no checkpoint, or it does not fit the recipe.
    """
    state = load_checkpoint(folder.checkpoint, device)
    model = config.recipe.build(config.data_dim).to(device)
    weights = state["model"]
    if state.get("average"):
        prefix = "module."
        weights = {k[len(prefix) :]: v for k, v in state["average"].items() if k.startswith(prefix)}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{folder.checkpoint} does not fit {folder.config}: {error}") from error
    return model.eval()


def choose_device(name: str) -> torch.device:
    """The device by name; "auto" is the GPU if there is one.

    Raises:
        UserError: no such device, or it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:  # torch raises RuntimeError, AssertionError and others here
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used: {reason} (allowed: auto, cpu, cuda:N)") from error
    return device


def versions() -> dict[str, str]:
    """What the run's numbers depend on, down to the instruction set of the compiled kernels."""
    native = {}
    if fastmmd.available_backends()["native"]["cpu"].available:
        module = importlib.import_module("fastmmd.backends.native")
        native = {name: str(value) for name, value in module.capability().items()}
    return {
        "fastmmd": fastmmd.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        **native,
    }
