"""The command `fastmmd`, as a user runs it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from test_data import small_mnist, write_files

from fastmmd import cli
from fastmmd.backends import cpu
from fastmmd.checkpoint import load_checkpoint
from fastmmd.data import load_data
from fastmmd.nn import VAE
from fastmmd.training import report, run
from fastmmd.training.run import RunFolder

TINY = ["--set", "model.hidden=[16]", "--set", "evaluation.samples=300", "--set", "training.health_every=2"]
TINY += ["--device", "cpu", "--batch-size", "200"]
PICTURES = ("samples.png", "reconstructions.png", "latent.png")


class Result(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two threads gain nothing on tiny networks and wait for each other on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture
def fastmmd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process: fastmmd("train", "vae", ...)."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["fastmmd", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        output = capsys.readouterr()
        code = stop.value.code
        assert isinstance(code, int)
        return Result(code, output.out, output.err)

    return run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short DS-AAE on digits."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["train", "ds-aae", "--epochs", "2", "--seed", "4", "--run-dir", str(path), "--quiet", *TINY]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fastmmd", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert not stop.value.code
    return path


def test_run_folder_holds_everything(run_dir: Path) -> None:
    names = {"config.toml", "metrics.jsonl", "checkpoint.pt", "report.md", *PICTURES}
    assert {path.name for path in run_dir.iterdir()} == names
    config = tomllib.loads((run_dir / "config.toml").read_text())
    assert config["training"]["batch_size"] == 200 and config["model"]["optimizer"] == "muon"  # the recipe's is 100
    assert config["run"]["recipe"] == "ds-aae" and config["run"]["data"] == "digits"
    assert config["run"]["seed"] == 4 and config["run"]["device"] == "cpu"
    assert config["model"]["hidden"] == [16] and config["model"]["precision"] in ("float32", "bfloat16")
    assert config["training"]["epochs"] == 2 and config["versions"]["torch"] == torch.__version__
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    epochs = [record for record in records if "epoch" in record]
    assert [record["epoch"] for record in epochs] == [1, 2]
    assert "validation_log_likelihood" in epochs[1] and 0 < epochs[1]["regularizer_share"] < 1
    for picture in PICTURES:
        assert (run_dir / picture).read_bytes()[:4] == b"\x89PNG"


def test_report(run_dir: Path) -> None:
    report = (run_dir / "report.md").read_text()
    result = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    row = f"| {result['mean']:.1f} | {result['standard_error']:.1f} | {result['sigma']:.4f} | 300 | prior |"
    assert row in report
    assert all(f"({picture})" in report for picture in PICTURES)
    for words in ("MMD^2 between 269 codes", "quantile of the norm", "prior's std", "the regularizer takes"):
        assert words in report
    assert "paper" not in report  # the papers' figures are for MNIST
    assert result["codes"]["count"] == 269 and result["n_test"] == 269


def test_report_on_mnist_shows_the_papers_figures(run_dir: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from fastmmd.training.report import evaluate_run
    from fastmmd.training.run import RunConfig, load_model

    config = RunConfig.read(run_dir / "config.toml")
    model = load_model(RunFolder(run_dir), config, torch.device("cpu"))
    dataset = replace(load_data("digits"), name="mnist", original=True)
    (tmp_path / "run").mkdir()
    result = evaluate_run(RunFolder(tmp_path / "run"), config, dataset, model, samples=100)
    report = (tmp_path / "run" / "report.md").read_text()
    for method, value in (("DS-AAE", 243), ("MMD-AE", 228), ("AAE", 340)):
        assert f"| {method}, paper, 10,000 samples | {value} |" in report
    assert "243.3 +- 2.0" in report and "score above real data" in report
    assert f"**{result.parzen.mean:.1f}**" in report


def test_sample(fastmmd: Command, run_dir: Path, tmp_path: Path) -> None:
    images = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        path = tmp_path / f"{name}.npy"
        assert fastmmd("sample", run_dir, "--count", 2_500, "--output", path, "--seed", seed).code == 0
        images.append(np.load(path))
    first, again, other = images
    assert first.shape == (2_500, 64) and first.dtype == np.float32
    assert first.min() >= 0 and first.max() <= 1 and first.std() > 0.05
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    result = fastmmd("sample", run_dir, "--count", 10**15, "--output", tmp_path / "no" / "x.npy")
    assert result.code == 2 and result.err == f"fastmmd: cannot write {tmp_path}/no/x.npy: No such file or directory\n"


def test_sample_names_its_sampler(fastmmd: Command, run_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    options = ("--count", 300, "--output", path)
    posterior = "aggregated posterior of 1,259 training images"
    for arguments, name in (
        ((), "prior"),
        (("--chain-steps", 2), "prior, 2 encode-decode steps"),
        (("--sampler", "posterior"), posterior),
        (("--sampler", "posterior", "--chain-steps", 1), f"{posterior}, 1 encode-decode step"),
    ):
        result = fastmmd("sample", run_dir, *options, *arguments)
        assert result.code == 0 and result.out == f"300 images of 64 numbers from the {name}: {path}\n", result.err
        record = json.loads((tmp_path / "a.npy.json").read_text())
        run = {"count": 300, "seed": 0, "run": str(run_dir), "recipe": "ds-aae"}
        assert record == {"sampler": name, **run} and np.load(path).shape == (300, 64)
    result = fastmmd("sample", run_dir, *options, "--sampler", "postprior")
    assert result.code == 2 and "unknown sampler 'postprior': did you mean" in result.err
    result = fastmmd("sample", run_dir, *options, "--chain-steps", 1, "--corrupt")
    assert result.code == 2 and "--corrupt needs a model that was trained with noise" in result.err


@pytest.mark.parametrize("command", [["evaluate"], ["train", "--epochs", 3, "--resume"]])
def test_run_folder_must_be_writable(fastmmd: Command, run_dir: Path, tmp_path: Path, command: list[object]) -> None:
    path = tmp_path / "run"
    shutil.copytree(run_dir, path)
    before = (path / "metrics.jsonl").read_bytes()
    (path / "report.md").unlink()
    (path / "report.md").mkdir()  # not even root writes it
    result = fastmmd(*command, path)
    assert result.code == 2 and result.err.startswith("fastmmd: cannot write into the run folder (Is a directory")
    assert (path / "metrics.jsonl").read_bytes() == before


@pytest.mark.filterwarnings("ignore:the files in .* are not the published")
def test_run_remembers_where_its_data_was(fastmmd: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path / "data" / "mnist", small_mnist(), compress=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTMMD_DATA", "data")
    options = (*TINY, "--epochs", 1, "--batch-size", 20, "--run-dir", "run")
    assert fastmmd("train", "mmd-ae", "--data", "mnist", *options).code == 0
    config = tomllib.loads(Path("run/config.toml").read_text())
    assert config["run"]["data_dir"] == str(tmp_path / "data")
    assert f"--data mnist --data-dir {tmp_path / 'data'}" in Path("run/report.md").read_text()
    monkeypatch.setenv("FASTMMD_DATA", str(tmp_path / "elsewhere"))
    assert fastmmd("evaluate", "run").code == 0


def test_evaluate_gives_what_training_gave(fastmmd: Command, run_dir: Path) -> None:
    before = RunFolder(run_dir).records()[-1]
    result = fastmmd("evaluate", run_dir, "--device", "cpu")
    after = RunFolder(run_dir).records()[-1]
    assert result.code == 0 and "test log-likelihood: " in result.out and "report.md" in result.out
    assert after == before
    more = fastmmd("evaluate", run_dir, "--samples", 400, "--chain-steps", 1)
    assert "400 samples from the prior, 1 encode-decode step" in more.out
    count = RunFolder(run_dir).evaluations()
    assert count >= 3 and f"evaluation {count} of the run on its test split" in (run_dir / "report.md").read_text()


def test_evaluate_looks_for_the_data_elsewhere(fastmmd: Command, run_dir: Path, tmp_path: Path) -> None:
    """The files of a run on MNIST have moved; the run has not."""
    path = tmp_path / "run"
    shutil.copytree(run_dir, path)
    text = (path / "config.toml").read_text()
    moved = text.replace('data = "digits"', 'data = "mnist"\ndata_dir = "/gone"')
    assert moved != text
    (path / "config.toml").write_text(moved)
    assert "no such folder: /gone" in fastmmd("evaluate", path).err
    here = tmp_path / "here"
    assert f"no such folder: {here}" in fastmmd("evaluate", path, "--data-dir", here).err


@pytest.fixture
def interruptible() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which jobs in the background ignore
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_stopped_in_the_final_evaluation(fastmmd: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "some data.npy", np.random.default_rng(0).random((60, 5, 4)))
    run = tmp_path / "my run"
    evaluate = report.parzen_evaluation

    def stop(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(report, "parzen_evaluation", stop)
    options = ("--data", tmp_path / "some data.npy", "--run-dir", run, "--epochs", 1, *TINY)
    result = fastmmd("train", "mmd-ae", *options)
    assert result.code == 130 and not (run / "report.md").exists()
    assert f"resume with: fastmmd train --resume '{run}'" in result.err
    monkeypatch.setattr(report, "parzen_evaluation", evaluate)
    result = fastmmd("train", "--resume", run)
    assert result.code == 0 and "test log-likelihood" in result.out
    result = fastmmd("train", "--resume", run)
    assert result.code == 2 and "is complete (1 epochs)" in result.err and "fastmmd evaluate" in result.err
    block = (run / "report.md").read_text().split("```")[1]
    for line in block.strip().splitlines():  # the commands of the report survive a shell
        assert shlex.split(line)[0] == "fastmmd"
    assert shlex.split(block)[2:5] == [str(run / "config.toml"), "--data", str(tmp_path / "some data.npy")]


def test_config_is_a_recipe(fastmmd: Command, run_dir: Path, tmp_path: Path) -> None:
    """The command that the report gives for repeating a run does so."""
    again = ("--data", "digits", "--seed", 4, "--run-dir", tmp_path / "again")
    assert fastmmd("train", run_dir / "config.toml", *again).code == 0
    paths = (run_dir / "checkpoint.pt", tmp_path / "again" / "checkpoint.pt")
    first, second = (load_checkpoint(path)["model"] for path in paths)
    assert all(torch.equal(value, second[name]) for name, value in first.items() if torch.is_tensor(value))


def test_train_on_an_array(fastmmd: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("mine.npy", np.random.default_rng(0).random((60, 5, 4)))
    result = fastmmd("train", "mmd-ae", "--data", "mine.npy", "--epochs", 1, *TINY)
    assert result.code == 0 and "epoch 1" in result.out
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("mmd-ae-mine-20")
    assert fastmmd("evaluate", folder).code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "dsaae"], "unknown recipe 'dsaae': did you mean ds-aae"),
        (["train"], "train needs a recipe"),
        (["train", "vae", "--set", "model.weight=1"], "unknown key 'model.weight'"),
        (["train", "vae", "--set", "model.learning_rate=-1"], "learning_rate: got -1"),
        (["train", "vae", "--set", "model.code_size=none"], "model: "),
        (["train", "vae", "--data", "no/file.npy"], "no such file or folder: no/file.npy"),
        (["train", "mnist"], "unknown recipe 'mnist'"),
        (["train", "vae", "--data", "mnist", "--data-dir", "nowhere"], "no such folder: nowhere"),
        (["train", "vae", "--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["train", "vae", "--device", "gpu"], "device 'gpu' cannot be used"),
        (["train", "vae", "--epochs", "0"], "training.epochs must be a whole number"),
        (["train", "vae", "--epochs", "many"], "--epochs"),
        (["train", "vae", "--seed", "99999999999999999999"], "4294967295"),
        (["train", "vae", "--seed", "4294967296"], "4294967295"),
        (["train", "vae", "--set", "model.hidden=[-5]"], "model: "),
        (["train", "vae", "--set", "model.hidden=64"], "model: "),
        (["sample", "nowhere", "--count", "3", "--output", "x.npy", "--seed", "4294967296"], "4294967295"),
        (["train", "vae", "--epoch", "2"], "--epoch"),
        (["train", "--resume", "nowhere"], "nowhere is not a run folder"),
        (["train", "vae", "--resume", "nowhere"], "--resume keeps the run's settings"),
        (["evaluate", "nowhere"], "not a run folder"),
        (["sample", "nowhere", "--count", "3", "--output", "x.npy"], "not a run folder"),
        (["sample", "nowhere", "--count", "0", "--output", "x.npy"], "--count"),
        (["sample", "nowhere", "--count", "3", "--output", "x.png"], "must end in .npy"),
        (["trian"], "trian"),
    ],
)
def test_mistakes_end_in_one_line(
    fastmmd: Command, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = fastmmd(*arguments)
    assert result.code == 2
    assert message in result.err and result.err.startswith("fastmmd: ") and result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # no folder is left behind


def test_folder_in_use_is_refused(fastmmd: Command, run_dir: Path, tmp_path: Path) -> None:
    before = (run_dir / "checkpoint.pt").read_bytes()
    result = fastmmd("train", "vae", "--run-dir", run_dir, *TINY)
    assert result.code == 2 and f"--resume {run_dir}" in result.err and "--run-dir" in result.err
    assert (run_dir / "checkpoint.pt").read_bytes() == before
    (tmp_path / "file").write_text("")
    assert fastmmd("train", "vae", "--run-dir", tmp_path, *TINY).code == 2
    result = fastmmd("train", "--resume", run_dir)
    assert result.code == 2 and "is complete (2 epochs): train on with --epochs" in result.err


def test_info(fastmmd: Command) -> None:
    result = fastmmd("info")
    assert result.code == 0
    for words in ("fastmmd ", "torch ", torch.__version__, "numpy ", "reference  cpu   available", "ds-aae"):
        assert words in result.out
    assert ("torch CUDA" in result.out) == (torch.version.cuda is not None)
    missing = [line for line in result.out.splitlines() if line.startswith("  ") and "available" not in line]
    assert all(len(line.split(maxsplit=2)[2]) > 20 for line in missing)  # why, and what to do


def test_info_names_driver_and_kernels(fastmmd: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of which may be newer than what the other runs."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 570.86.15\necho 570.86.15\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(run, "cuda_build", lambda: "CUDA kernels (90a; nvcc 13.0.88)")
    out = fastmmd("info").out
    assert "driver       570.86.15\n" in out and "CUDA build   CUDA kernels (90a; nvcc 13.0.88)\n" in out


def test_no_command_shows_the_help(fastmmd: Command) -> None:
    result = fastmmd()
    assert result.code == 2 and (result.out + result.err).lstrip().startswith("Usage: fastmmd")


def test_info_names_the_native_build(fastmmd: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    out = fastmmd("info").out
    for name, value in cpu.capability().items():
        assert f"{name:12} {value}\n" in out

    def refuse() -> None:
        raise ValueError("FASTMMD_CPU_CAPABILITY: got 'sse9'")

    monkeypatch.setattr(cpu, "capability", refuse)
    assert fastmmd("info").code == 0
    result = fastmmd("train", "vae")
    assert result.code == 2 and result.err == "fastmmd: FASTMMD_CPU_CAPABILITY: got 'sse9'\n"


def test_a_failing_start_leaves_no_folder(fastmmd: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that only the optimizers refuse, out of memory: the folder comes after them."""
    monkeypatch.setattr(VAE, "configure_optimizers", lambda self: {}["nothing"])
    with pytest.raises(KeyError, match="nothing"):
        fastmmd("train", "vae", "--run-dir", tmp_path / "run", *TINY)
    assert list(tmp_path.iterdir()) == []
