"""The programs with labels, from the command line to the report: semi_supervised.py and style_content.py."""

from __future__ import annotations

import functools
import json
import re
import runpy
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from test_programs_papers import use_few_samples

import fastmmd.evaluation

PROGRAMS = Path(__file__).parents[1] / "python"


def run(monkeypatch: pytest.MonkeyPatch, program: str, *words: str) -> None:
    """The program's main, as its file runs it."""
    torch.set_num_threads(1)
    path = str(PROGRAMS / f"{program}.py")
    monkeypatch.setattr(sys, "argv", [path, "--device", "cpu", *words])
    quick = functools.partial(fastmmd.evaluation.train_classifier, epochs=1)
    monkeypatch.setattr(fastmmd.evaluation, "train_classifier", quick)
    use_few_samples(monkeypatch)
    runpy.run_path(path, run_name="__main__")


@pytest.mark.parametrize("regularizer", ["aae", "mmd-ae", "ds-aae"])
def test_semi_supervised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], regularizer: str
) -> None:
    words = ["--run-dir", str(tmp_path), "--epochs", "1", "--labeled", "40", "--regularizer", regularizer]
    words += ["--seeds", "2"]
    words += ["--bandwidths", "3,6.5"] if regularizer == "mmd-ae" else []
    run(monkeypatch, "semi_supervised", *words)
    if regularizer != "aae":
        for prior, around in (("mixture", [2.0, 4.0, 8.0, 16.0]), ("swiss-roll", [0.5, 1.0, 2.0, 4.0])):
            config = tomllib.loads((tmp_path / f"{prior}-40-labels-seed0" / "config.toml").read_text())
            assert config["model"]["bandwidths"] == ([3.0, 6.5] if regularizer == "mmd-ae" else around)
    runs = {f"{prior}-40-labels-seed{seed}" for prior in ("mixture", "swiss-roll") for seed in range(2)}
    pictures = {f"{prior}-40-{what}.png" for prior in ("mixture", "swiss-roll") for what in ("codes", "walks")}
    assert {path.name for path in tmp_path.iterdir()} == {*runs, *pictures, "report.md", "semi-supervised.json"}
    record = json.loads((tmp_path / "semi-supervised.json").read_text())
    rows = [record["mixture, 40"], record["swiss_roll, 40"]]
    assert all([run["seed"] for run in row["runs"]] == [0, 1] for row in rows)
    measured = [run[split] for row in rows for run in row["runs"] for split in ("validation", "test")]
    assert all(one["mmd2"] > one["mmd2_of_draws"] > 0 and one["holes"] > 0.04 for one in measured)
    assert len({one["in_part"] for one in measured}) > 4  # other splits, seeds and priors have other codes
    report, out = (tmp_path / "report.md").read_text(), capsys.readouterr().out
    for prior in ("mixture of ten Gaussians", "swiss roll"):
        share = report.split(f"| {prior} | 40 | 0, 1 | ")[1].split(" |")[0]  # 12.34% (10.00% to 14.68%) +- 1.20%
        mean, low, high, _ = map(float, re.findall(r"[\d.]+", share))
        assert 0 <= low <= mean <= high <= 100
        for seed in range(2):
            line = re.search(f"{regularizer} on digits, {prior}, 40 labels, seed {seed}: (.*)% of the test codes", out)
            assert line is not None and low <= float(line[1]) <= high
    run(monkeypatch, "semi_supervised", *words, "--priors", "swiss_roll")  # of the runs that are there
    again = json.loads((tmp_path / "semi-supervised.json").read_text())
    assert again["swiss_roll, 40"] == record["swiss_roll, 40"] and "mixture, 40" not in again


def test_models_of_no_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "semi_supervised", "--run-dir", str(tmp_path), "--seeds", "0")
    assert "--seeds: got 0, expected at least 1" in capsys.readouterr().err


def test_a_discriminator_has_no_bandwidths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--run-dir", str(tmp_path), "--bandwidths", "3,6.5", "--regularizer", "aae"]
    with pytest.raises(SystemExit):
        run(monkeypatch, "semi_supervised", *words)
    assert "--bandwidths: a discriminator has no kernels" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["aae", "vae"])
def test_style_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    words = ["--run-dir", str(tmp_path), "--epochs", "1", "--pairs", "200", "--code-size", "3", "--recipe", recipe]
    run(monkeypatch, "style_content", *words)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        f"{recipe}-with-labels-in-the-decoder-seed0",
        "classifier.pt",
        "image-styles.png",
        "prior-styles.png",
        "report.md",
    }
    report, out = (tmp_path / "report.md").read_text(), capsys.readouterr().out
    assert "Of 200 pairs" in report
    for what in (
        "drawn from the prior | drawn",
        "of test images | drawn",
        "of test images | their own: reconstructions",
    ):
        share = report.split(f"| {what} | ")[1].split(" |")[0]
        assert 0 <= float(share.split("%")[0]) <= 100 and f"{what.replace(' | ', ', ')}, {share}" in out


def test_style_needs_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "images.npy", np.random.RandomState(0).rand(60, 8, 8).astype(np.float32))
    with pytest.raises(SystemExit) as stop:
        run(
            monkeypatch,
            "style_content",
            *("--data", str(tmp_path / "images.npy"), "--run-dir", str(tmp_path / "run")),
        )
    assert stop.value.code == 2 and "has no labels" in capsys.readouterr().err
