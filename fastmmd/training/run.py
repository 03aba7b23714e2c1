"""The run folder: what a run was asked to do, what it recorded, what it learned."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import fastmmd
from fastmmd.backends import cuda_build, native_build
from fastmmd.checkpoint import load_checkpoint, load_weights
from fastmmd.data import EMBEDDED, NAMES, Dataset, load_data
from fastmmd.errors import UserError, first_line
from fastmmd.files import TEMPORARY, write_text, writing
from fastmmd.nn.base import Model
from fastmmd.nn.networks import resolve_precision
from fastmmd.training.config import Recipe, read_toml, recipe_from_dict, recipe_names, write_toml
from fastmmd.training.lock import LOCK, require_unlocked


@dataclass(frozen=True)
class RunConfig:
    """Everything needed to repeat a run, except the code itself."""

    recipe: Recipe
    data: str
    data_dim: int
    seed: int = 0
    device: str = "cpu"
    data_dir: str | None = None

    @classmethod
    def resolved(
        cls, recipe: Recipe, data: str, dataset: Dataset, seed: int, device: torch.device, data_dir: str | None = None
    ) -> RunConfig:
        """The configuration of a run, with the precision that its device gets.

        Args:
            data: the data set's name, or the path of an array or a folder.
            data_dir: of the files of published data, as given; the run folder keeps where they were found.

        Raises:
            UserError: settings that do not fit together, or the images.
        """
        recipe = recipe.for_images(dataset.image_shape)
        recipe.build(dataset.data_dim)  # what it refuses is refused here, before the first run of many
        settings = replace(recipe.model, precision=resolve_precision(recipe.model.precision, device.type))
        published = data in NAMES and data not in EMBEDDED
        kept = absolute(data_dir or (os.environ.get("FASTMMD_DATA") if published else None) or None)
        name = data if data in NAMES else str(absolute(data))
        return cls(replace(recipe, model=settings), name, dataset.data_dim, seed, str(device), kept)

    def load_data(self, *, quiet: bool = False) -> Dataset:
        """The run's data set.

        Raises:
            UserError: it is gone, or no longer of the run's size.
        """
        dataset = load_data(self.data, self.data_dir, quiet=quiet, **asdict(self.recipe.data))
        if dataset.data_dim != self.data_dim:
            raise UserError(f"{self.data} has {dataset.data_dim} numbers per image, the run {self.data_dim}")
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
        for key in ("data", "data_dir"):
            if not isinstance(run.get(key, ""), str):
                raise UserError(f"{path}: run.{key} must be a string, got {run[key]!r}")
        for key in ("data_dim", "seed"):
            if type(run.get(key, 0)) is not int or not 0 <= run.get(key, 0) < 2**32:
                raise UserError(f"{path}: run.{key} must be a whole number from 0 to 2^32 - 1, got {run[key]!r}")
        wanted = {name: tables.get(name, {}) for name in ("model", "data", "training", "evaluation")}
        if "data" not in tables and os.path.isdir(run["data"]):
            wanted["data"] = {"color": "gray"}  # as folders were read when runs had no such table
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
            if path.exists() and not (path.is_dir() and all(map(_is_debris, path.iterdir()))):
                remedy = "clear it"
                if (path / "config.toml").exists():
                    remedy = f"continue it with --resume {shlex.quote(str(path))}"
                    require_unlocked(path)
                raise UserError(f"{path} exists and is not empty: {remedy}, or choose another --run-dir")
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the run folder {path}: {error.strerror}") from error
        return cls(path)

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """The folder of an earlier run.

        Raises:
            UserError: it is not a run folder.
        """
        if not (path / "config.toml").is_file():
            raise UserError(f"{path} is not a run folder: it has no config.toml")
        return cls(path)

    def require_writable(self) -> None:
        """Fail now rather than after hours of work.

        Raises:
            UserError: no file can be made in the folder, or one that is rewritten is read-only.
        """
        try:
            with tempfile.TemporaryFile(dir=self.path):
                pass
            for path in (self.config, self.metrics, self.report, *self.path.glob("*.png")):
                if path.exists():
                    path.open("ab").close()
        except OSError as error:
            reason = f"{error.strerror}: {error.filename or self.path}"
            raise UserError(f"cannot write into the run folder ({reason}): make it writable or copy it") from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl.

        Raises:
            UserError: it cannot be written.
        """
        with writing(self.metrics), open(self.metrics, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a killed run's last line: the new one must not continue it
                    file.write(b"\n")
            file.write(json.dumps(record).encode() + b"\n")

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that a resumed run repeats."""
        if not self.metrics.exists():
            return
        kept = [line + "\n" for line, record in self._lines() if _is_up_to(step, record)]
        write_text(self.metrics, "".join(kept))

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without what is no record, such as an unfinished one left by a killed run."""
        return [record for _, record in self._lines()]

    def evaluations(self) -> int:
        """How often the run's test split was evaluated."""
        return sum(map(_is_evaluation, self.records()))

    def is_evaluated(self) -> bool:
        """Whether an evaluation follows the last epoch."""
        records = [record for record in self.records() if "epoch" in record or _is_evaluation(record)]
        return bool(records) and _is_evaluation(records[-1])

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The complete lines of metrics.jsonl and their parsed records."""
        text = self.metrics.read_text(encoding="utf-8", errors="replace") if self.metrics.exists() else ""
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):  # the line in which a killed run was writing
                continue
            if isinstance(record, dict):
                yield line, record


def _is_debris(path: Path) -> bool:
    """Whether a run that was killed before it began may have left it."""
    return path.name == LOCK or path.suffix == TEMPORARY


def absolute(path: str | None) -> str | None:
    """The absolute path, as a run folder stores it."""
    return None if path is None else str(Path(path).expanduser().resolve())


def is_number(value: object) -> bool:
    """Whether a record has a number there."""
    return type(value) in (int, float)


def _is_up_to(step: int, record: Mapping[str, Any]) -> bool:
    made = record.get("step", 0)
    return is_number(made) and made <= step


def _is_evaluation(record: Mapping[str, Any]) -> bool:
    return record.get("kind") == "evaluation"


def default_run_dir(recipe: str, data: str) -> Path:
    """runs/RECIPE-DATA-TIMESTAMP."""
    name = data if data in NAMES else Path(data).stem
    return Path("runs") / f"{recipe}-{name}-{datetime.now():%Y%m%d-%H%M%S}"


def load_model(folder: RunFolder, config: RunConfig, device: torch.device) -> Model:
    """The trained model of a run, in eval mode: the averaged weights if the run averages them.

    Raises:
        UserError: there is no checkpoint, or it does not fit the recipe.
    """
    return _model_of(load_checkpoint(folder.checkpoint, device), folder, config, device)


def _model_of(state: Mapping[str, Any], folder: RunFolder, config: RunConfig, device: torch.device) -> Model:
    model = config.recipe.build(config.data_dim).to(device)
    weights = state["model"]
    try:
        if state.get("average"):
            prefix = "module."
            weights = {k[len(prefix) :]: v for k, v in state["average"].items() if k.startswith(prefix)}
        load_weights(model, weights)
    except (ValueError, AttributeError) as error:
        raise UserError(f"{folder.checkpoint} does not fit {folder.config}: {error}") from error
    return model.eval()


def other_data(state: Mapping[str, Any], checksum: int | str) -> bool:
    """Whether a checkpoint is of a run on other training images or labels, as far as it says.

    One of an earlier version says nothing, and images in files have another kind of checksum than images in memory.
    """
    before = state.get("data")
    return type(before) is type(checksum) and before != checksum


class Trained(NamedTuple):
    """A trained run as its evaluation needs it: data and model on the device, the model in eval mode."""

    folder: RunFolder
    config: RunConfig
    dataset: Dataset
    model: Model


def load_trained(folder: RunFolder, data_dir: str | None, device: str) -> Trained:
    """A run that can be evaluated; a warning says that its data are no longer those that it was trained on.

    Args:
        data_dir: of the files of published data; None: the run's.
        device: see `choose_device`.

    Raises:
        UserError: it has no checkpoint, or its data are gone.
    """
    config = RunConfig.read(folder.config)
    config = replace(config, data_dir=absolute(data_dir) or config.data_dir)
    where = choose_device(device)
    state = load_checkpoint(folder.checkpoint, where)
    model, dataset = _model_of(state, folder, config, where), config.load_data()
    if other_data(state, dataset.checksum()):
        warnings.warn(
            f"{folder.path} was trained on other images or labels than {config.data} holds now, or on the same in "
            "another order (arrays [N, H, W, 3] were once read as they are, not by planes)",
            stacklevel=2,
        )
    return Trained(folder, config, dataset.to(where), model)


def choose_device(name: str) -> torch.device:
    """The device by name; "auto" is the GPU if there is one.

    Raises:
        UserError: no such device, it is not there, or its kernels refuse their environment.
    """
    try:
        native_build()
    except ImportError:  # the reference kernels serve in their place
        pass
    except ValueError as error:
        raise UserError(str(error)) from error
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:  # torch raises RuntimeError, AssertionError and others here
        raise UserError(f"device {name!r} cannot be used: {first_line(error)} (allowed: auto, cpu, cuda:N)") from error
    return device


def versions() -> dict[str, str]:
    """What the run's numbers depend on, down to the instruction set of the compiled kernels."""
    try:
        compiled = {name: str(value) for name, value in native_build().items()}
    except (ImportError, ValueError):  # fastmmd.available_backends() says why
        compiled = {}
    return {
        "fastmmd": fastmmd.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        **compiled,
    }


def hardware(device: torch.device | str = "cpu") -> str:
    """The processor by name, its cores and the instruction set that our kernels use on it; or the GPU."""
    if torch.device(device).type != "cpu":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {versions().get('capability', 'no compiled kernels')}"


def gpu_versions() -> dict[str, str]:
    """The driver, the CUDA of torch and the build of our CUDA kernels, of which there are: a driver runs no newer
    CUDA."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found = {"torch CUDA": torch.version.cuda, "CUDA build": cuda_build(), "driver": None}
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(query, check=True, capture_output=True, text=True, timeout=20).stdout.split()
        found["driver"] = said[0] if said else None
    return {name: value for name, value in found.items() if value is not None}


def print_info() -> None:
    """Versions, the native backend's build, which backends work here, the recipes. Needs no package of the extra."""
    for name, version in (versions() | gpu_versions()).items():
        print(f"{name:12} {version}")
    print("backends")
    for name, devices in fastmmd.available_backends().items():
        for device, status in devices.items():
            print(f"  {name:10} {device:5} {'available' if status.available else status.reason}")
    print(f"recipes      {', '.join(recipe_names())}")
