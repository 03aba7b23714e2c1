"""Experiments: several models in one folder, each trained once, whatever interrupts."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same

from fastmmd.training.experiments import Experiment, Spec, arguments, slug
from fastmmd.training.loop import Trainer

TINY = {"model.hidden": [16], "evaluation.samples": 200, "training.batch_size": 200, "training.evaluate_every": 0}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def start(folder: Path, *words: str) -> Any:
    options = arguments("Compare things.").parse_args(["--run-dir", str(folder), "--device", "cpu", *words])
    return Experiment.start("Things, compared", options)


def test_runs_are_trained_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specs = [Spec("MMD-AE", "mmd-ae", TINY), Spec("MMD-AE", "mmd-ae", TINY, seed=1)]
    with start(tmp_path, "--epochs", "2") as experiment:
        assert experiment.is_digits
        first = experiment.run_all(specs)
        model = experiment.train("VAE", "vae", TINY)
        assert not model.training
    assert "MMD-AE, seed 1: 2 epochs" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"mmd-ae-seed0", "mmd-ae-seed1", "vae-seed0"}
    assert first[0].parzen is not None and first[1].parzen is not None
    assert first[0].parzen.mean != first[1].parzen.mean and first[0].epochs == 2 and first[0].seconds > 0
    with start(tmp_path, "--epochs", "2") as experiment:
        again = experiment.run_all(specs)
        assert experiment.run("VAE", "vae", TINY, evaluate=False).parzen is None
        assert experiment.run("VAE", "vae", TINY).parzen is not None  # evaluated now, not trained again
    out = capsys.readouterr().out
    assert "MMD-AE" not in out and out.count("VAE") == 1
    assert [(run.parzen, run.codes) for run in again] == [(run.parzen, run.codes) for run in first]
    for one, other in zip(first[0].model.parameters(), again[0].model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_interrupted_experiment_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    take = Trainer._train_step

    def interrupt(self: Trainer, *arguments: Any) -> None:
        if self.step == 4:
            signal.raise_signal(signal.SIGINT)
        take(self, *arguments)

    with start(tmp_path / "whole", "--epochs", "3") as experiment:
        expected = experiment.train("VAE", "vae", TINY)
    monkeypatch.setattr(Trainer, "_train_step", interrupt)
    with pytest.raises(SystemExit) as stop, start(tmp_path / "cut", "--epochs", "3") as experiment:
        experiment.train("VAE", "vae", TINY)
    assert stop.value.code == 130 and "resume with the same command and --run-dir" in capsys.readouterr().err
    monkeypatch.undo()
    with start(tmp_path / "cut", "--epochs", "3") as experiment:
        resumed = experiment.train("VAE", "vae", TINY)
    for one, other in zip(expected.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_killed_between_the_last_record_and_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metrics say that the run is complete, the checkpoint is of an epoch before."""
    save = Trainer.save

    def killed(self: Trainer) -> None:
        if self.epoch == 2:
            raise KeyboardInterrupt
        save(self)

    with start(tmp_path / "whole", "--epochs", "2") as experiment:
        expected = experiment.train("VAE", "vae", TINY)
    monkeypatch.setattr(Trainer, "save", killed)
    with pytest.raises(SystemExit), start(tmp_path / "cut", "--epochs", "2") as experiment:
        experiment.train("VAE", "vae", TINY)
    monkeypatch.undo()
    with start(tmp_path / "cut", "--epochs", "2") as experiment:
        assert_same(dict(experiment.train("VAE", "vae", TINY).state_dict()), dict(expected.state_dict()))


def test_other_settings_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with start(tmp_path, "--epochs", "1") as experiment:
        experiment.train("VAE", "vae", TINY)
    with pytest.raises(SystemExit) as stop, start(tmp_path, "--epochs", "2") as experiment:
        experiment.train("VAE", "vae", TINY)
    assert stop.value.code == 2 and "holds a run with other settings" in capsys.readouterr().err


def test_settings_that_an_older_run_lacks_have_their_defaults(tmp_path: Path) -> None:
    with start(tmp_path, "--epochs", "1") as experiment:
        expected = experiment.train("VAE", "vae", TINY)
    path = tmp_path / "vae-seed0" / "config.toml"
    text = path.read_text()
    assert "denoising = 0.0\n" in text
    path.write_text(text.replace("denoising = 0.0\n", ""))
    with start(tmp_path, "--epochs", "1") as experiment:
        loaded = experiment.train("VAE", "vae", TINY)
    assert torch.equal(next(expected.parameters()), next(loaded.parameters()))


def test_jobs_give_the_same_models(tmp_path: Path) -> None:
    """In processes of their own, whose start is what takes long here."""
    path = str(tmp_path / "images.npy")
    np.save(path, np.random.default_rng(0).random((60, 4, 4)))
    specs = [Spec("VAE", "vae", TINY | {"training.batch_size": 20}, seed) for seed in (0, 1)]
    with start(tmp_path / "one", "--data", path, "--epochs", "1") as experiment:
        expected = experiment.run_all(specs)
    with start(tmp_path / "two", "--data", path, "--epochs", "1", "--jobs", "2") as experiment:
        parallel = experiment.run_all(specs)
    assert [run.parzen for run in parallel] == [run.parzen for run in expected]
    for one, other in zip(parallel, expected, strict=True):
        assert_same(dict(one.model.state_dict()), dict(other.model.state_dict()))


def test_report_and_record_say_how_they_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/things.py", "--data-dir", "/somewhere", "--seed", "3"])
    with start(tmp_path, "--seed", "3") as experiment:
        experiment.write_report("A | B")
        experiment.write_record("things", {"nats": [1.5]})
    report, record = (tmp_path / "report.md").read_text(), json.loads((tmp_path / "things.json").read_text())
    assert report.startswith("# Things, compared\n") and report.endswith("\n\nA | B\n") and "Seed 3." in report
    assert record["nats"] == [1.5] and record["versions"]["torch"] == torch.__version__
    for text in (report, record["command"]):
        assert "python python/things.py --data-dir DIR --seed 3" in text and "somewhere" not in text


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = arguments(None).parse_args(["--data", "nothing-here", "--run-dir", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stop, Experiment.start("Things", options):
        pass
    assert stop.value.code == 2 and not (tmp_path / "run").exists()
    assert capsys.readouterr().err.startswith("error: data: no such file")
    assert slug("AAE, 2-D (swiss roll)") == "aae-2-d-swiss-roll"
