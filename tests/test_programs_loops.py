"""python/: the programs for the training loops of other packages, as a user runs them."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

PROGRAMS = Path(__file__).parents[1] / "python"
MOST_LINES = 60


@pytest.fixture
def program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """Run a program in this process, in a folder of its own; returns what it prints."""
    torch.set_num_threads(1)
    environment = dict(os.environ)  # the packages leave variables behind
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(name: str, *words: object) -> str:
        path = PROGRAMS / f"{name}.py"
        assert len(path.read_text().splitlines()) <= MOST_LINES
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, words)])
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    yield run
    os.environ.clear()
    os.environ.update(environment)


@pytest.mark.filterwarnings("ignore")  # advice on workers and loggers
def test_lightning(program: Callable[..., str]) -> None:
    pytest.importorskip("lightning", reason='lightning is not installed: pip install "fastmmd[loops]"')
    results = [program("lightning_mmd_ae", "--epochs", epochs) for epochs in (1, 8)]
    early, late = (float(out.rpartition("validation loss: ")[2].partition(",")[0]) for out in results)
    assert late < 0.8 * early and results[1].rstrip().endswith("10 samples")


def test_accelerate(program: Callable[..., str]) -> None:
    pytest.importorskip("accelerate", reason='accelerate is not installed: pip install "fastmmd[loops]"')
    lines = program("accelerate_ds_aae", "--epochs", 10).splitlines()
    steps = [int(line.partition("step ")[2].split()[0]) for line in lines[:-1]]
    assert steps == [13 * epoch for epoch in range(1, 11)]  # 25 batches of 50 of 1,259 images, two a step
    reconstruction = [float(line.partition("reconstruction ")[2].split()[0]) for line in lines[:-1]]
    assert reconstruction[0] == 0  # warming up
    assert 0 < reconstruction[-1] < 0.8 * reconstruction[1]
    regularizer = [float(line.partition("regularizer ")[2]) for line in lines[:-1]]
    assert 0 < regularizer[-1] < 0.3 * regularizer[0]
    assert lines[-1].startswith("test codes: mean ")
