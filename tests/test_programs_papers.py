"""python/: table1, latent_figures, batch_size_study and nearest_neighbors, as a user runs them."""

from __future__ import annotations

import json
import runpy
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastmmd.evaluation import CodeStatistics, ParzenResult, choose_sigma, nearest_neighbors
from fastmmd.training import experiments, load_data, load_recipe, report

PROGRAMS = Path(__file__).parents[1] / "python"
Program = Callable[..., str]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """Run a program in this process on the digits, in tmp_path/run; returns what it prints."""
    torch.set_num_threads(1)
    monkeypatch.setattr(report, "_save_pictures", lambda *arguments: None)  # of each run: they are tested elsewhere

    def run(name: str, *words: object) -> str:
        path = PROGRAMS / f"{name}.py"
        folder = ["--run-dir", str(tmp_path / "run"), "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", [str(path), *folder, *map(str, words)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a sigma on the edge: nothing is learned yet
            runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return run


def use_few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parzen windows on 500 samples where a test does not look at the likelihoods: most of a short run's time."""
    load = experiments.load_recipe
    few = {"evaluation.samples": 500}
    monkeypatch.setattr(experiments, "load_recipe", lambda recipe, data, over: load(recipe, data, few | dict(over)))


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    use_few_samples(monkeypatch)


def cells(table: str, name: str) -> list[str]:
    """The cells of the one line of a table that begins with a name."""
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip(" *") for cell in line.strip("|").split("|")][1:]


# --- table 1 ---


def test_table1(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "mmd-ae,ds-aae-first-order,gmmn,training"
    first = program("table1", "--rows", rows, "--seeds", 2, "--epochs", 1)
    folder = tmp_path / "run"
    record = json.loads((folder / "table1.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["MMD-AE", "DS-AAE, first order", "GMMN"]
    first_order = record["rows"][1]["model"]
    assert (first_order["mode"], first_order["regularizer_weight"]) == ("first_order", 300)
    assert record["hardware"] and record["date"]
    nats = [run["mean"] for run in record["rows"][0]["runs"]]
    mean, low, high = (float(cell) for cell in cells(first, "MMD-AE")[:3])
    assert [low, high] == [round(value, 1) for value in sorted(nats)] and low < mean < high
    assert {run["samples"] for row in record["rows"] for run in row["runs"]} == {10_000}
    text = (folder / "report.md").read_text()
    assert "paper" not in text.lower()  # on the digits there is nothing to compare with
    images = cells(text, "1,259 training images")
    assert float(images[0]) == pytest.approx(29.9, abs=0.2)
    assert (folder / "table1.png").stat().st_size > 5_000
    precision, recall, density, coverage = map(float, images[5:9])  # by a classifier of 269 test images
    assert min(precision, recall, coverage) > 0.85 and density == pytest.approx(1, abs=0.15)
    untrained = [run["precision"] for run in record["rows"][2]["runs"]]
    assert max(untrained) < 0.5 and cells(text, "GMMN")[5] == f"{np.mean(untrained):.3f}"
    assert cells(text, "GMMN")[9] == "" != cells(text, "MMD-AE")[9]  # its codes' match with the prior: it has none
    assert record["rows"][2]["runs"][0]["codes"] is None
    again = program("table1", "--rows", "mmd-ae", "--seeds", 2, "--epochs", 1, "--samples", 300)
    assert "1 epochs, " not in again and again.count("300 samples from the prior") == 2  # measured, not trained again
    assert "300 samples" not in program("table1", "--rows", "mmd-ae", "--seeds", 2, "--epochs", 1, "--samples", 300)
    monkeypatch.setattr("fastmmd.training.parts.LARGE", 300)
    large = program("table1", "--rows", "mmd-ae", "--seeds", 1, "--epochs", 1, "--samples", 301)
    assert "301 samples from the prior" in large and (folder / "mmd-ae-seed0" / "evaluation-301").is_dir()


def test_table1_compares_with_the_papers_on_mnist_alone(tmp_path: Path) -> None:
    table1 = runpy.run_path(str(PROGRAMS / "table1.py"))
    parzen = ParzenResult(300.0, 2.0, 0.16, 10_000, "prior", 10_000, 301.0)
    codes = CodeStatistics(*[(1.0,)] * 6, 1e-3, 5e-4, 10_000)
    config = SimpleNamespace(recipe=load_recipe("vae"))
    runs = [
        SimpleNamespace(parzen=parzen, codes=codes, seed=seed, seconds=60.0, epochs=50, config=config)
        for seed in range(2)
    ]
    results = [(row, runs) for row in table1["ROWS"].values()]
    figures = dict.fromkeys(table1["FIGURES"], 0.5)
    traps = [table1["Trap"]("images", parzen, figures)]
    for original, samples in ((True, 10_000), (True, 10_000_000), (False, 10_000)):
        for run in runs:
            run.parzen = replace(parzen, samples=samples)
        written: dict[str, Any] = {}
        experiment = SimpleNamespace(
            data=SimpleNamespace(original=original, name="mnist", test=SimpleNamespace(images=torch.zeros(9, 1))),
            folder=tmp_path,
            write_record=lambda name, results, written=written: written.update(results),
            write_report=lambda text, written=written: written.update(text=text),
        )
        table1["write"](results, traps, lambda run: figures, experiment)
        last = {row.name: cells(written["text"], row.name)[-1] for row, _ in results}
        papers = [row["paper"] for row in written["rows"]]
        assert cells(written["text"], "images")[5:9] == ["0.500"] * 4 and written["traps"][0]["mean"] == 300
        if original and samples > 10_000:
            assert papers == [None, 427, None, None, None, None, 386, None] and last["AAE"] == "427"
        elif original:
            assert last["AAE"] == "340" and last["GMMN+AE"] == "282" and last["MMD-AE"] == "228" and last["VAE"] == ""
            assert last["DS-AAE, first order"] == "243" and papers == [282, 340, 228, 243, 243, None, 225, 147]
        else:
            assert set(last.values()) == {"1.0"} and set(papers) == {None}  # minutes


def test_table1_names_the_rows_it_knows(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        program("table1", "--rows", "aae,nix")
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: --rows: unknown nix (allowed: gmmn-ae, aae, mmd-ae, ds-aae,")


def test_what_fools_the_figure() -> None:
    """Centroids are nearer to all images than as many images are; the blur is the one that validation images choose."""
    table1, data = runpy.run_path(str(PROGRAMS / "table1.py")), load_data("digits", quiet=True)
    name, centroids = table1["centroids"](data)
    assert name == "251 k-means centroids" and centroids.shape == (251, 64)

    def distance(images: torch.Tensor) -> float:
        return nearest_neighbors(data.train.images, images).squared_distances.mean().item()

    assert distance(centroids) < 0.8 * distance(data.train.images[:251])
    name, images = table1["blurred"](data)
    assert name == "1,259 training images, blurred by 0.4 pixels"
    sharp, validation = table1["training_images"](data)[1], data.validation.images
    torch.testing.assert_close(images.mean(), sharp.mean(), rtol=0.02, atol=0)
    assert choose_sigma(images, validation)[1] > choose_sigma(sharp, validation)[1]


# --- latent figures ---


@pytest.mark.usefixtures("few_samples")
def test_latent_figures(program: Program, tmp_path: Path) -> None:
    program("latent_figures", "--epochs", 1)
    names = {path.name for path in (tmp_path / "run").iterdir() if path.is_file()}
    grids = {f"grid-{model}.png" for model in ("aae", "mmd-ae", "ds-aae", "vae")}
    files = {f"latent-{prior}.{kind}" for prior in ("gaussian", "mixture") for kind in ("png", "json")}
    assert names == {*grids, *files, "report.md"}
    _, gaussian, mixture = (tmp_path / "run" / "report.md").read_text().split("## Prior: ")
    match = float(cells(gaussian, "draws from the prior")[0])
    # Untrained codes are no N(0, I), but for those of a VAE; N draws of it have MMD^2 = E(k(x, x) - k(x, y)) / N.
    assert all(float(cells(gaussian, name)[0]) > 3 * match for name in ("AAE", "MMD-AE", "DS-AAE"))
    for text, prior in ((gaussian, "gaussian"), (mixture, "mixture")):
        results = json.loads((tmp_path / "run" / f"latent-{prior}.json").read_text())["results"]
        for name, row in results.items():
            assert cells(text, name)[0] == f"{row['mmd2']:.2e}" and f"| {row['holes']:.1%} | " in text
        assert results["draws from the prior"]["holes"] < 0.04 < results["MMD-AE"]["holes"]  # 1%, of 538
    kernel = sum(s**2 / (s**2 + 2) for s in (0.25, 0.5, 1.0, 2.0))
    assert match == pytest.approx((4 - kernel) / 538, rel=0.3)
    assert "| VAE |" not in mixture and "| DS-AAE |" in mixture and "no model." in mixture


# --- batch sizes ---


@pytest.mark.usefixtures("few_samples")
def test_batch_size_study(program: Program, tmp_path: Path) -> None:
    words = ("--batches", "400,1259", "--sigmas", "1,8", "--epochs", 1, "--steps", 3)
    program("batch_size_study", *words)
    text = (tmp_path / "run" / "report.md").read_text()
    for what in ("1-epochs", "3-steps"):
        record = json.loads((tmp_path / "run" / f"batch-size-study-{what}.json").read_text())
        nats = np.array(record["log_likelihood"])
        assert nats.shape == (2, 2, 1) and record["batches"] == [400, 1259] and record["sigmas"] == [1, 8]
        assert record["spread"]["batch"] == pytest.approx(abs(nats[:, 0] - nats[:, 1]).mean())
        assert record["spread"]["sigma"] == pytest.approx(abs(nats[0] - nats[1]).mean())
        assert record["doublings"]["sigma"] == 3
        for picture in ("heatmap", "curves"):
            assert f"{picture}-{what}.png" in text and (tmp_path / "run" / f"{picture}-{what}.png").exists()
    for batch, at_epochs, at_steps in ((400, 3, 3), (1259, 1, 3)):  # 3 steps are an epoch of 400, three of all
        for what, wanted in (("1-epochs", at_epochs), ("3-steps", at_steps)):
            lines = (tmp_path / "run" / f"sigma-1-batch-{batch}-{what}-seed0" / "metrics.jsonl").read_text()
            assert max(json.loads(line).get("step", 0) for line in lines.splitlines()) == wanted


def test_verdict_of_the_batch_size_study() -> None:
    study = runpy.run_path(str(PROGRAMS / "batch_size_study.py"))
    for batch, sigma, noise, holds, said in (
        (3.0, 1.0, 0.5, True, "The claim holds here"),
        (1.0, 3.0, 0.5, False, "The claim does not hold here"),
        (1.0, 3.0, 2.5, None, "Undecided"),
    ):
        spread = {"batch": batch, "sigma": sigma}
        assert study["holds"](spread, noise) is holds
        words = study["verdict"](spread, {"batch": 5.0, "sigma": 4.0}, noise, 3)
        assert words.startswith(f"**{said}**") and f"{batch / 5:.1f} and {sigma / 4:.1f}" in words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batches", "100,2000"), "error: --batches: at most 1259, the training images; got 2000"),
        (("--sigmas", "1"), "error: --batches and --sigmas: at least two different values of each expected"),
    ],
)
def test_batch_size_study_refuses(
    program: Program, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        program("batch_size_study", *words)
    assert stop.value.code == 2 and capsys.readouterr().err == f"{message}\n"


# --- large batches ---


@pytest.mark.usefixtures("few_samples")
def test_large_batches(program: Program, tmp_path: Path) -> None:
    program("large_batches", "--epochs", 0, "--steps", 2, "--batches", "100,1259", "--hidden", "8", "--seeds", 2)
    text = (tmp_path / "run" / "report.md").read_text()
    record = json.loads((tmp_path / "run" / "large-batches-2-steps.json").read_text())
    found = [(cell["model"], cell["batch"]) for cell in record["cells"]]
    assert found == [(model, batch) for model in ("AAE", "MMD-AE", "DS-AAE") for batch in (100, 1259)]
    for cell in record["cells"]:
        settings, batch = cell["settings"], cell["batch"]
        assert settings["model"]["hidden"] == [8] and settings["training"]["batch_size"] == batch
        assert settings["model"]["optimizer"] == ("adam" if batch == 100 else "muon")
        assert [run["steps"] for run in cell["runs"]] == 2 * [12 if batch == 100 else 2]  # 12 steps are an epoch
        assert [run["seed"] for run in cell["runs"]] == [0, 1]
        assert (cell["regularizer"]["eager"] is None) == (cell["model"] == "AAE")
        mean = sum(run["mean"] for run in cell["runs"]) / 2
        assert f"| {cell['model']} |" in text and f"{mean:.1f} (" in text
    for picture in ("nats", "match"):
        assert (tmp_path / "run" / f"large-batches-{picture}-2-steps.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batches", "2000"), "error: --batches: from 2 to 1259, the training images, expected; got [2000]"),
        (("--models", "vae"), "error: --models: unknown vae (allowed: aae, mmd-ae, ds-aae)"),
        (("--epochs", "0"), "error: --epochs 0 leaves --steps only, which is not given"),
    ],
)
def test_large_batches_refuses(
    program: Program, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        program("large_batches", *words)
    assert stop.value.code == 2 and capsys.readouterr().err == f"{message}\n"


def test_eager_regularizers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program times beside ours has the same value and gradient; past its memory it is not called."""
    large = runpy.run_path(str(PROGRAMS / "large_batches.py"))
    for name, eager in (("mmd-ae", "eager_mmd2"), ("ds-aae", "eager_adversary")):
        model = load_recipe(name).build(10)
        regularizer, prior = model.regularizer, model.prior
        codes = (1.5 * torch.randn(300, 4, generator=torch.Generator().manual_seed(1))).requires_grad_()
        torch.manual_seed(2)
        theirs = large[eager](codes, prior, regularizer)
        (gradient,) = torch.autograd.grad(theirs, codes)
        torch.manual_seed(2)
        ours = regularizer(codes, prior)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(ours, codes)[0], gradient, rtol=1e-2, atol=1e-6)
    model = load_recipe("mmd-ae").build(10)
    monkeypatch.setitem(large["cost"].__globals__, "seconds", lambda function, codes: 1.0)
    assert large["cost"](model, 4096) == (1.0, 1.0, 4 * 4 * 4096**2)
    assert large["cost"](model, 16384) == (1.0, None, 4 * 4 * 16384**2)


def test_match_of_draws_from_the_prior() -> None:
    large = runpy.run_path(str(PROGRAMS / "large_batches.py"))
    model = load_recipe("aae", "", {"model.prior_std": 3.0}).build(4).eval()
    for factor, low, high in ((1.0, 0.5, 2.0), (1.2, 10, 1000)):
        model.encode = lambda images, factor=factor: factor * images
        images = 3 * torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
        assert low < large["match"](model, images, 0) < high


# --- nearest neighbors ---


@pytest.mark.usefixtures("few_samples")
def test_nearest_neighbors(program: Program, tmp_path: Path) -> None:
    out = program("nearest_neighbors", "--epochs", 1)
    assert (tmp_path / "run" / "neighbors.png").stat().st_size > 5_000
    for name in ("validation images", "MMD-AE", "DS-AAE", "AAE"):
        every, _, some, test, quotient, likelihood = cells(out, name)
        assert float(every) <= float(some)  # the nearest of more is nearer
        assert float(quotient) == pytest.approx(float(some) / float(test), abs=0.01)
        assert (" +- " in likelihood) == (name != "validation images")
    record = json.loads((tmp_path / "run" / "neighbors.json").read_text())
    assert [row["name"] for row in record["models"]] == ["MMD-AE", "DS-AAE", "AAE"] and "no model" in out
    assert not any(row["copies"] for row in record["models"])


@pytest.mark.usefixtures("few_samples")
def test_nearest_neighbors_of_other_recipes(program: Program, tmp_path: Path) -> None:
    out = program("nearest_neighbors", "--epochs", 1, "--recipes", "aae-faces", "--samples", 50)
    assert cells(out, "aae-faces") and "| MMD-AE |" not in out
    (row,) = json.loads((tmp_path / "run" / "neighbors.json").read_text())["models"]
    assert row["model"]["standardize"] is True and row["likelihood"]["n_test"] == 269


def test_a_copy_has_a_small_quotient() -> None:
    neighbors = runpy.run_path(str(PROGRAMS / "nearest_neighbors.py"))
    generator = torch.Generator().manual_seed(0)
    train, test, unseen = (torch.rand(400, 16, generator=generator) for _ in range(3))
    copies = train + 0.1 * torch.rand(400, 16, generator=generator)
    assert neighbors["quotient"](unseen, train, test) == pytest.approx(1, abs=0.1)
    assert neighbors["quotient"](copies, train, test) < 0.3
    assert neighbors["share"](unseen, unseen, train) == pytest.approx(0.05, abs=0.01)
    assert neighbors["share"](copies, unseen, train) == 1
