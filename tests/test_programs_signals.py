"""The command `fastmmd`: Ctrl-C in a terminal, and a process without the extra (kills: test_faults.py)."""

# ruff: noqa: F811  fixtures of test_programs are arguments here

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_programs import Command, fastmmd, interruptible, one_thread  # noqa: F401  fixtures

from fastmmd.checkpoint import load_checkpoint
from fastmmd.training.run import RunFolder

ROOT = Path(__file__).parents[1]


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def endless(tmp_path: Path) -> list[str]:
    """The arguments of a training run that will not end by itself, on 60 images of 16 pixels, in tmp_path/run."""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((60, 4, 4)))
    words = ["train", "mmd-ae", "--data", str(tmp_path / "images.npy"), "--run-dir", str(tmp_path / "run")]
    words += ["--device", "cpu", "--epochs", "100000", "--batch-size", "20"]
    settings = ("model.hidden=[16]", "evaluation.samples=300", "training.health_every=2", "training.evaluate_every=0")
    return [*words, *(word for setting in settings for word in ("--set", setting))]


def wait_for_checkpoint(run: Path) -> None:
    """Until a run is some steps past its first checkpoint."""
    deadline = time.monotonic() + 60
    while not (run / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)


def resume(command: Command, run: Path) -> None:
    """One epoch more than the checkpoint has, from the command line."""
    epochs = load_checkpoint(run / "checkpoint.pt")["epoch"] + 1
    result = command("train", "--resume", run, "--epochs", epochs)
    assert result.code == 0 and "test log-likelihood" in result.out, result.err
    assert load_checkpoint(run / "checkpoint.pt")["epoch"] == epochs
    done = [record["epoch"] for record in RunFolder(run).records() if "epoch" in record]
    assert done == list(range(1, epochs + 1))


@pytest.mark.usefixtures("interruptible")
def test_interrupt_saves_and_says_how_to_go_on(fastmmd: Command, endless: list[str], tmp_path: Path) -> None:
    """Ctrl-C at any moment; the command runs in this process, which takes the signal in its main thread."""
    ended = threading.Event()

    def interrupt() -> None:
        wait_for_checkpoint(tmp_path / "run")
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=interrupt)
    presser.start()
    try:
        result = fastmmd(*endless)
    finally:
        ended.set()
        presser.join()
    assert result.code == 130
    assert "resume with: fastmmd train --resume" in result.err and "Traceback" not in result.err
    step = int(result.err.partition("after step ")[2].partition(";")[0])
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == step
    resume(fastmmd, tmp_path / "run")


def test_info_without_the_extra(environment: dict[str, str], tmp_path: Path) -> None:
    """A process that cannot import the packages of `train`: `info` works, all else says what is missing."""
    packages = ["typer", "rich", "tomli_w", "sklearn", "PIL", "matplotlib"]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({packages}))
from fastmmd.cli import main
for arguments in (["info"], ["train", "vae"], []):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as stop:
        print("exit", stop.code)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    for words in (f"torch        {torch.__version__}", "reference  cpu   available", "capability", "ds-aae"):
        assert words in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("exit")] == ["exit 0", "exit 2", "exit 2"]
    need = "the programs need typer, rich, tomli-w, scikit-learn, pillow, matplotlib: "
    need += 'pip install "fastmmd[train]" (from a checkout: pip install ".[train]")\n'
    assert done.stderr == 2 * f"fastmmd: {need}" and need in done.stdout
