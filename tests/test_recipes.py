"""Recipes: they are what they say, and mistakes in them are named."""

from __future__ import annotations

import runpy
import sys
import tomllib
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from fastmmd.nn import MODELS
from fastmmd.nn.settings import VAESettings
from fastmmd.training import UserError, load_recipe, recipe_names
from fastmmd.training.run import RunConfig

SCRIPTS = sorted((Path(__file__).parents[1] / "python").glob("*_mnist.py"))


#: Settings that stand in a recipe only where they are not the default.
RARELY_SET = {"prior", "optimizer", "labels", "num_classes", "network", "channels", "reconstruction", "output"}
RARELY_SET |= {"beta1", "standardize", "shape_bandwidths", "shape_weight", "shift", "prior_margin"}


@pytest.mark.parametrize("name", ["ds-aae", "mmd-ae", "aae", "vae", "gmmn-ae", "gan", "gmmn"])
def test_tuned_recipes_are_the_constructors_defaults(name: str) -> None:
    recipe = load_recipe(name)
    defaults = MODELS[recipe.kind].Settings()
    assert recipe.model == defaults
    assert recipe.build(784).settings() == MODELS[recipe.kind](784).settings()
    written = tomllib.loads((resources.files("fastmmd.training") / "recipes" / f"{name}.toml").read_text())["model"]
    names = {field.name for field in fields(defaults) if getattr(defaults, field.name) is not None}  # TOML has no None
    assert set(written) == {"kind", *names} - RARELY_SET


@pytest.mark.parametrize("name", ["ds-aae", "mmd-ae", "aae"])
def test_paper_recipes_are_the_papers_settings(name: str) -> None:
    recipe = load_recipe(f"{name}-paper")
    expected = MODELS[name].paper(784).settings()
    assert recipe.build(784).settings() == expected
    assert recipe.training.epochs == 1000 and recipe.training.batch_size == (100 if name == "aae" else 1000)


def test_every_recipe_serves_every_data_set() -> None:
    assert recipe_names() == [
        "aae",
        "aae-conv",
        "aae-conv-paper",
        "aae-faces",
        "aae-paper",
        "ds-aae",
        "ds-aae-paper",
        "gan",
        "gmmn",
        "gmmn-ae",
        "mmd-ae",
        "mmd-ae-paper",
        "vae",
        "vae-conv-paper",
    ]
    for name in recipe_names():
        for data_name, dim in (("digits", 64), ("mnist", 784), ("/some/path", 16)):
            recipe = load_recipe(name, data_name)
            assert recipe.build(dim).data_dim == dim
    patches = load_recipe("aae-conv", "patches").for_images((3, 32, 32))
    assert patches.build(3_072).data_dim == 3_072 and patches.training.batch_size == 64  # 250 are nine steps an epoch


def test_overrides_and_tables_of_one_data_set(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = '[model]\nkind = "vae"\ncode_size = 3\n[training]\nepochs = 7\n[digits.training]\nepochs = 9\n'
    path.write_text(text)
    assert load_recipe(str(path), "digits").training.epochs == 9
    assert load_recipe(str(path), "mnist").training.epochs == 7
    recipe = load_recipe(str(path), "digits", ["model.hidden=[5, 4]", "training.epochs=2", "training.schedule=cosine"])
    assert (recipe.name, recipe.kind, recipe.training.epochs) == ("mine", "vae", 2)
    assert recipe.model == VAESettings(code_size=3, hidden=[5, 4]) and recipe.model.hidden == (5, 4)
    assert recipe.training.schedule == "cosine"


@pytest.mark.parametrize("name", ["aae", "aae-paper", "mmd-ae", "ds-aae", "gmmn-ae"])
@pytest.mark.parametrize("growth", [0.5, 1, 4, 16, 64])
def test_recipes_for_another_batch_size(name: str, growth: float) -> None:
    own = load_recipe(name, "mnist")
    batch = int(own.training.batch_size * growth)
    before, after = own.to_dict(), load_recipe(name, "mnist", batch_size=batch).to_dict()
    expected = {table: dict(settings) for table, settings in before.items()}
    expected["training"]["batch_size"] = batch
    if growth > 1:
        expected["training"]["warmup"] = 0.1
        expected["model"]["optimizer"] = "muon"
        factor = {4: 2**0.5, 16: 2, 64: 8**0.5}[growth]
        for key in ("learning_rate", "adversary_learning_rate", "generator_learning_rate", "prior_learning_rate"):
            if key in before["model"]:
                expected["model"][key] = pytest.approx(factor * before["model"][key])
        if name == "ds-aae":
            expected["model"]["warmup_steps"] = 0
    assert after == expected


def test_explicit_settings_win_over_those_for_a_batch_size() -> None:
    made = load_recipe("aae", "", ["model.learning_rate=0.5", "training.warmup=0.0"], batch_size=4_000)
    assert (made.model.learning_rate, made.training.warmup) == (0.5, 0.0)
    assert made.model.adversary_learning_rate == pytest.approx(2e-3) and made.model.optimizer == "muon"
    digits = load_recipe("aae", "digits", batch_size=1_600)  # the recipe's for this data set: 100
    assert digits.model.learning_rate == pytest.approx(2e-3)
    with pytest.raises(UserError, match=r"training.batch_size must be a whole number >= 2, got -4"):
        load_recipe("aae", batch_size=-4)
    alone = load_recipe("aae", "", {"training.batch_size": 4_000})
    assert alone.model == load_recipe("aae").model


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("dsaae", [], "unknown recipe 'dsaae': did you mean ds-aae"),
        ("no/such.toml", [], "no/such.toml: No such file"),
        ("vae", ["model.code=3"], "unknown key 'model.code': did you mean model.code_size"),
        ("gan", ["model.code_size=3"], "unknown key 'model.code_size': of .*vae.*, not of gan, which has .*noise_size"),
        ("vae", ["training.learning_rate=1"], "unknown key 'training.learning_rate'"),
        ("vae", ["trainig.epochs=1"], "unknown key 'trainig.epochs': did you mean training.epochs"),
        ("vae", ["epochs=1"], "unknown key 'epochs'"),
        ("vae", ["model.kind='aae'"], "unknown key 'model.kind'"),
        ("vae", ["training.epochs"], "takes table.key=value"),
        ("vae", ["training.epochs=[1"], "no TOML value"),
        ("vae", ["training.epochs=0"], "training.epochs must be a whole number >= 1, got 0"),
        ("vae", ["training.epochs=2.5"], "got 2.5"),
        ("vae", ["training.batch_size=true"], "got True"),
        ("vae", ["training.schedule=cosin"], "did you mean cosine"),
        ("vae", ["training.average=1"], "0 <= average < 1"),
        ("vae", ["training.warmup=1"], "training.warmup must be a share in 0 <= warmup < 1, got 1"),
        ("vae", ["training.warmup=true"], "got True"),
        ("vae", ["training.regularizer_growth=0"], "training.regularizer_growth must be a positive factor, got 0"),
        ("gmmn-ae", ["training.regularizer_growth=2"], "must be 1 for gmmn-ae, whose regularizer has no weight"),
        ("vae", ["evaluation.sigma_low=2"], "0 < sigma_low < sigma_high"),
        ("vae", ["evaluation.samples=0"], "evaluation.samples"),
    ],
)
def test_mistakes_in_recipes(recipe: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(recipe, "digits", overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nkind = 3", "unknown model.kind"),
        ('[model]\nkind = ["aae"]', "unknown model.kind"),
        ("[training]\nepochs = 3", "unknown model.kind"),
        ("[model", "recipe"),
        ('model = "vae"', "must be a table"),
        ('[model]\nkind = "vae"\n[other]\nx = 1', "unknown key 'other.x'"),
        ('[model]\nkind = "vae"\n[digits.other]\nx = 1', "unknown key 'digits.other'"),
    ],
)
def test_mistakes_in_recipe_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_recipe(str(tmp_path / "mine.toml"))


def test_bad_model_settings_name_the_argument() -> None:
    with pytest.raises(UserError, match="model: learning_rate: got -1.0"):
        load_recipe("vae", "", {"model.learning_rate": -1.0}).build(10)


@pytest.mark.parametrize(
    ("name", "value"), [("hidden", [-5]), ("hidden", 64), ("learning_rate", "abc"), ("code_size", 1.5)]
)
def test_settings_that_only_torch_refuses_are_named(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"^model: .*{name}"):
        load_recipe("vae", "", {f"model.{name}": value}).build(10)


@pytest.mark.parametrize("error", [RuntimeError("negative\nC++ stack"), TypeError("what"), ZeroDivisionError()])
def test_errors_from_inside_a_model_name_the_settings(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the model's own checks let through."""

    class Failing:
        def __init__(self, data_dim: int, **options: Any) -> None:
            raise error

    recipe = replace(load_recipe("vae"), model=VAESettings(hidden=[5], code_size=8))
    monkeypatch.setitem(MODELS, "vae", Failing)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"\(not the defaults: model.hidden = \[5\]\)$") as caught:
        recipe.build(10)
    assert "stack" not in str(caught.value)


@pytest.mark.parametrize("name", ["ds-aae", "mmd-ae", "aae"])
def test_posterior_and_denoising_from_the_command_line(name: str) -> None:
    overrides = ["model.posterior=implicit", "model.noise_size=3", "model.denoising=0.5"]
    model = load_recipe(f"{name}-paper", "digits", overrides).build(64)
    assert (model.posterior, model.noise_size, model.denoising) == ("implicit", 3, 0.5)
    assert model.encoder.hidden[0].in_features == 67
    assert load_recipe("vae", "digits", ["model.denoising=0.5"]).build(64).denoising == 0.5
    for recipe, override, message in (
        ("vae", "model.posterior=implicit", "model: posterior: got 'implicit'; KL needs the moments"),
        (name, "model.posterior=implict", "model: posterior: got 'implict', expected one of"),
        (name, "model.denoising=-1", "model: denoising: got -1, expected a number >= 0"),
        (name, "model.noise_size=3", "model: noise_size: got 3 with posterior='deterministic'"),
    ):
        with pytest.raises(UserError, match=message):
            load_recipe(recipe, "", [override]).build(64)


def test_config_of_a_run_repeats_it(tmp_path: Path) -> None:
    recipe = load_recipe("ds-aae", "digits", ["training.average=0.9", "model.posterior=implicit"])
    config = RunConfig(recipe, "digits", 64, seed=5, device="cpu", data_dir="/data")
    config.write(tmp_path / "config.toml")
    assert RunConfig.read(tmp_path / "config.toml") == config
    assert load_recipe(str(tmp_path / "config.toml")) == recipe


def test_data_of_another_shape_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", np.zeros((40, 5)))
    config = RunConfig(load_recipe("vae"), str(tmp_path / "mine.npy"), data_dim=4)
    with pytest.raises(UserError, match="has 5 numbers per image, the run 4"):
        config.load_data()


# --- the scripts in python/ ---


def test_there_is_a_script_for_every_model() -> None:
    assert [path.name for path in SCRIPTS] == ["aae_mnist.py", "ds_aae_mnist.py", "mmd_ae_mnist.py"]
    for path in SCRIPTS:
        assert len(path.read_text().splitlines()) <= 100


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts(script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--epochs", "1"])
    runpy.run_path(str(script), run_name="__main__")
    out = capsys.readouterr().out
    last = out.splitlines()[-1]  # by the protocol of `fastmmd evaluate`, and in its words
    assert "epoch 1" in out and last.startswith("test log-likelihood: ")
    assert last.endswith("10,000 samples from the prior, 269 test images)")
    assert -200 < float(last.split()[2]) < 40


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_end_in_one_line(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--data", "nix"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert str(stop.value).startswith("error: data: no such file or folder: nix") and "\n" not in str(stop.value)


def test_settings_of_numpy_integers_are_ints() -> None:
    """TOML, which holds a run's settings, knows no others."""
    five = np.int64(5)
    for kind, options in {"ds-aae": {"features": np.int64(20)}, "gmmn-ae": {"noise_size": five, "draws": five}}.items():
        settings = MODELS[kind](16, hidden=(five,), code_size=five, **options).settings()
        whole = [number for value in settings.values() for number in (value if isinstance(value, tuple) else [value])]
        assert not [number for number in whole if isinstance(number, np.integer)]
        assert tomllib.loads(tomli_w.dumps(settings))["code_size"] == 5
