"""Recipes: which model, how it is trained and measured. TOML files in `recipes/`, or the user's own."""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from fastmmd.data import DataSettings
from fastmmd.errors import UserError, first_line, require, unknown
from fastmmd.files import write_text
from fastmmd.nn import MODELS
from fastmmd.nn.base import Model
from fastmmd.nn.settings import FixedPriorSettings, ModelSettings

Schedule = Literal["constant", "cosine"]
FORMER_NAMES = {("training", "labelled"): "labeled"}  # in recipes and runs made before


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Attributes:
        epochs: passes over the training split.
        batch_size: images per step; a last incomplete batch of an epoch is left out.
        schedule: "constant", or "cosine": the learning rates fall to 0 over the run's steps, in a model with several
            phases over the steps of each.
        warmup: share of those steps in which the learning rates first rise linearly from 0; 0: none. Not to be confused
            with `model.warmup_steps`, in which DS-AAE trains without reconstruction.
        regularizer_growth: factor by which model.regularizer_weight grows over the run's steps, geometrically: the
            decoder learns first where codes belong, then they fill the prior, while the learning rate falls.
        labeled: number of training images whose labels are used, chosen by the seed; the others count as unlabeled;
            -1: all. For a model with classes (model.labels), which needs some.
        labeled_batch: labeled images that join every batch, as many of each class; 0: none. Where few of the images
            are labeled, a batch has too few of a class to show how wide its codes are.
        average: decay of the exponential moving average of the weights, which evaluation and sampling use
            in their place; 0: none.
        evaluate_every: epochs between two Parzen estimates on the validation split; 0: at the end only.
        threads: CPU threads of the training steps; 0: torch's choice. One is fastest for small networks: two that
            wait for each other on a busy machine can be thirty times slower.
        workers: processes that read images ahead where they do not fit memory; 0: the training process reads them. The
            batches are the same for any number.
        health_every: steps between two checks of the codes and the kernel; 0: never. On a GPU a check waits for the
            device, so it is made at the next step where the loop reads its losses anyway (every 20 steps and at the
            end of an epoch).
    """

    epochs: int = 50
    batch_size: int = 1000
    schedule: Schedule = "constant"
    warmup: float = 0.0
    regularizer_growth: float = 1.0
    labeled: int = 0
    labeled_batch: int = 0
    average: float = 0.0
    evaluate_every: int = 5
    health_every: int = 200
    threads: int = 0
    workers: int = 2

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 1),
            ("batch_size", 2),
            ("labeled", -1),
            ("labeled_batch", 0),
            ("evaluate_every", 0),
            ("health_every", 0),
            ("threads", 0),
            ("workers", 0),
        ):
            _check_whole(f"training.{name}", getattr(self, name), least)
        if self.schedule not in get_args(Schedule):
            raise unknown("training.schedule", str(self.schedule), get_args(Schedule))
        for name, what in (("warmup", "a share"), ("average", "a decay")):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < 1:
                raise UserError(f"training.{name} must be {what} in 0 <= {name} < 1, got {value!r}")
        growth = self.regularizer_growth
        if type(growth) not in (int, float) or not 0 < growth < float("inf"):
            raise UserError(f"training.regularizer_growth must be a positive factor, got {growth!r}")

    def rate_factor(self, phase: float) -> float:
        """What the learning rates are multiplied by where the share `phase` of the phase's steps is done."""
        rise = min(1.0, phase / self.warmup) if self.warmup else 1.0
        return rise * (0.5 * (1 + math.cos(math.pi * phase)) if self.schedule == "cosine" else 1.0)


@dataclass(frozen=True)
class Evaluation:
    """How a model is measured: number of samples and the grid of Parzen bandwidths to begin with."""

    samples: int = 10_000
    sigma_low: float = 0.1
    sigma_high: float = 1.0
    sigma_count: int = 10

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("sigma_count", 2)):
            _check_whole(f"evaluation.{name}", getattr(self, name), least)
        low, high = self.sigma_low, self.sigma_high
        numbers = type(low) in (int, float) and type(high) in (int, float)
        if not (numbers and 0 < low < high < float("inf")):
            raise UserError(f"evaluation: 0 < sigma_low < sigma_high expected, got {low!r} and {high!r}")
        if self.sigma_count > 10_000:
            raise UserError(f"evaluation.sigma_count must be at most 10000, got {self.sigma_count!r}")


@dataclass(frozen=True)
class Recipe:
    """A model by the name of its class, its settings, how it is trained and measured, and how its images are read."""

    name: str
    kind: str
    model: ModelSettings
    training: Training
    evaluation: Evaluation
    data: DataSettings = DataSettings()

    def for_images(self, image_shape: Sequence[int]) -> Recipe:
        """The same recipe for images of this shape, which convolutional networks and shifts have to know.

        A shape that the recipe has stays, and so does its default for square gray images.
        """
        model, gray_square = self.model, len(image_shape) == 2 and len(set(image_shape)) == 1
        if not isinstance(model, FixedPriorSettings) or model.image_shape:
            return self
        if model.network != "convolutional" and not model.shift:
            return self
        if gray_square or len(image_shape) < 2:
            return self
        return replace(self, model=replace(model, image_shape=tuple(image_shape)))

    def __post_init__(self) -> None:
        if self.training.regularizer_growth != 1 and not hasattr(self.model, "regularizer_weight"):
            raise UserError(f"training.regularizer_growth must be 1 for {self.kind}, whose regularizer has no weight")

    def build(self, data_dim: int) -> Model:
        """The model of this recipe for images of `data_dim` numbers.

        Raises:
            UserError: settings that do not fit together, or the images.
        """
        with _named_settings(self.model):
            return MODELS[self.kind](data_dim, **self.model.keywords())

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": {"kind": self.kind, **self.model.keywords()},
            "data": asdict(self.data),
            "training": asdict(self.training),
            "evaluation": asdict(self.evaluation),
        }


@contextmanager
def _named_settings(settings: ModelSettings | None = None) -> Iterator[None]:
    """What goes wrong in a model as an error of the user that names the settings.

    Raises:
        UserError: for any error that settings can lead to.
    """
    try:
        yield
    except ValueError as error:  # the model's own checks: they name the setting
        raise UserError(f"model: {error}") from error
    except (TypeError, RuntimeError, ArithmeticError) as error:  # those of torch, which knows no settings
        hint = "" if settings is None else f" (not the defaults: {_changed(settings)})"
        raise UserError(f"model: {first_line(error)}{hint}") from error


def _changed(settings: ModelSettings) -> str:
    """The settings that are not the defaults."""
    defaults = asdict(type(settings)())
    return ", ".join(
        f"model.{name} = {list(value) if isinstance(value, tuple) else value!r}"
        for name, value in asdict(settings).items()
        if value != defaults[name]
    )


def recipe_names() -> list[str]:
    """The recipes shipped with the package."""
    folder = resources.files("fastmmd.training") / "recipes"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def load_recipe(
    recipe: str, data: str = "", overrides: Sequence[str] | Mapping[str, Any] = (), *, batch_size: int | None = None
) -> Recipe:
    """Read a recipe by name or path.

    A recipe has the tables [model], [data], [training], [evaluation], and may have tables for one data set, such as
    [digits.training], which override them. `overrides` come last.

    Args:
        recipe: a name of `recipe_names()`, or the path of a TOML file.
        data: the data set's name.
        overrides: `"table.key=value"` with a TOML value, or a mapping of dotted keys to values.
        batch_size: images per step, with what `for_batch` changes for them. The override `training.batch_size` changes
            that number only.

    Raises:
        UserError: no such recipe, table or key, or a value that is not allowed.
    """
    if recipe in recipe_names():
        path: Any = resources.files("fastmmd.training") / "recipes" / f"{recipe}.toml"
    elif recipe.endswith(".toml") or os.sep in recipe:
        path = Path(os.path.expanduser(recipe))
    else:
        raise unknown("recipe", recipe, recipe_names())
    tables = _parsed(path, f"recipe {recipe}")
    run = tables.pop("run", None)  # a run's config.toml is a recipe too
    tables.pop("versions", None)
    name = str(run.get("recipe", recipe)) if isinstance(run, dict) else Path(recipe).stem
    if batch_size is not None:
        overrides = for_batch(recipe_from_dict(name, tables, data), batch_size) | dotted(overrides)
    return recipe_from_dict(name, tables, data, overrides)


def for_batch(recipe: Recipe, batch_size: int) -> dict[str, Any]:
    """Overrides, by dotted keys, that turn a recipe into the one for another batch size.

    For batches larger than the recipe's, which means fewer steps in an epoch, Muon descends encoder and decoder, all
    learning rates grow with the fourth root of the batch and rise over the first tenth of the run, which takes the
    place of DS-AAE's steps of the regularizer alone. Found by experiment: benchmarks/NOTES.md. For smaller batches,
    and for models without codes, nothing else changes.

    Raises:
        UserError: no batch size.
    """
    _check_whole("training.batch_size", batch_size, 2)
    own, growth = recipe.model.keywords(), batch_size / recipe.training.batch_size
    changed: dict[str, Any] = {"training.batch_size": batch_size}
    if growth > 1 and "optimizer" in own:
        changed |= {"training.warmup": max(0.1, recipe.training.warmup), "model.optimizer": "muon"}
        for name, value in own.items():
            if name.endswith("learning_rate") and type(value) in (int, float):  # the model refuses anything else
                changed[f"model.{name}"] = value * growth**0.25
        if "warmup_steps" in own:
            changed["model.warmup_steps"] = 0
    return changed


def recipe_from_dict(
    name: str, tables: Mapping[str, Any], data: str = "", overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Recipe:
    """A recipe from parsed tables; see `load_recipe`."""
    model = tables.get("model", {})
    if not isinstance(model, Mapping):
        raise UserError(f"model must be a table of a recipe, got {model!r}")
    model = dict(model)
    kind = str(model.pop("kind", None))
    if kind not in MODELS:
        raise unknown(f"model.kind in recipe {name}:", kind, MODELS)
    settings = MODELS[kind].Settings
    tables_of = {"model": settings, "data": DataSettings, "training": Training, "evaluation": Evaluation}
    allowed = {table: [field.name for field in fields(made_of)] for table, made_of in tables_of.items()}
    layers: list[Mapping[str, Any]] = [{**tables, "model": model}]
    specific = layers[0].get(data) if data not in allowed else None
    layers += [specific] if isinstance(specific, Mapping) else []
    layers += [_nested(overrides)]
    merged: dict[str, dict[str, Any]] = {table: {} for table in allowed}
    for layer in layers:
        for table, values in layer.items():
            if table in allowed and isinstance(values, Mapping):
                for given, value in values.items():
                    key = FORMER_NAMES.get((table, given), str(given))
                    if key not in allowed[table]:
                        raise _unknown_key(table, key, allowed[table], kind)
                    merged[table][key] = value
            elif table in allowed:
                raise UserError(f"{table} must be a table of a recipe, got {values!r}")
            elif layer is not layers[0] or not isinstance(values, Mapping) or not set(values) <= set(allowed):
                dotted = [f"{owner}.{key}" for owner, keys in allowed.items() for key in keys]
                inner = next(iter(values), "") if isinstance(values, Mapping) else ""
                raise unknown("key", f"{table}.{inner}".rstrip("."), dotted)
    with _named_settings():
        made = settings(**merged["model"])
    training, evaluation = Training(**merged["training"]), Evaluation(**merged["evaluation"])
    return Recipe(name, kind, made, training, evaluation, DataSettings(**merged["data"]))


def _unknown_key(table: str, key: str, allowed: Sequence[str], kind: str = "") -> UserError:
    """The error for a key that a table has not; that of a model of this kind, other kinds may have."""
    has = [name for name, made in MODELS.items() if key in {field.name for field in fields(made.Settings)}]
    if table != "model" or not has:
        return unknown("key", f"{table}.{key}", (f"{table}.{name}" for name in allowed))
    return UserError(f"unknown key 'model.{key}': of {', '.join(has)}, not of {kind}, which has {', '.join(allowed)}")


def with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    """The same recipe with another number of epochs."""
    return replace(recipe, training=replace(recipe.training, epochs=epochs))


def write_toml(path: Path, tables: Mapping[str, Any]) -> None:
    """Write tables as TOML, without values of None, which TOML cannot represent."""
    write_text(path, require("tomli_w").dumps(_without_none(tables)))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UserError: it is missing or not TOML.
    """
    return _parsed(path, str(path))


def _parsed(path: Any, what: str) -> dict[str, Any]:
    """The tables of a TOML file, a path or a resource; errors begin with `what` it is."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise UserError(f"{what}: nested too deeply; a recipe has tables of numbers, words and lists") from error
    except (OSError, ValueError) as error:  # no file, no UTF-8, no TOML, a number of thousands of digits
        raise UserError(f"{what}: {getattr(error, 'strerror', None) or error}") from error


def _check_whole(name: str, value: object, least: int, most: int = 10**12) -> None:
    """A whole number in a range.

    Raises:
        UserError: something else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} must be a whole number >= {least}, got {value!r}")
    if value > most:
        raise UserError(f"{name} must be a whole number up to {most}, got one of {len(str(value))} digits")


T = TypeVar("T")


def _without_none(value: T) -> T:
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}  # type: ignore
    return value


def _nested(overrides: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in dotted(overrides).items():
        table, _, name = key.partition(".")
        nested.setdefault(table, {})[name] = value
    return nested


def data_settings(overrides: Mapping[str, Any]) -> DataSettings:
    """The settings of the table [data] among overrides, by dotted keys.

    Raises:
        UserError: an unknown key, or a value that is not allowed.
    """
    given, allowed = _nested(overrides).get("data", {}), [field.name for field in fields(DataSettings)]
    for key in given:
        if key not in allowed:
            raise _unknown_key("data", key, allowed)
    return DataSettings(**given)


def dotted(overrides: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys and values, also of texts `"table.key=value"` with TOML values."""
    return dict(overrides if isinstance(overrides, Mapping) else map(_parse_override, overrides))


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not key or not value:
        raise UserError(f"--set takes table.key=value, got {text!r}")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        if not value.replace("-", "").replace("_", "").isalnum():
            raise UserError(f"--set {key}: {value!r} is no TOML value (a number, true, [list])") from None
        return key, value  # a bare word is a string: a shell has taken its quotes away
