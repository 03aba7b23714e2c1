"""The command `fastmmd` with very many samples: parts, interruptions, merging, foreign files, progress."""

# ruff: noqa: F811  fixtures of test_programs are arguments here

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import FULL, assert_same
from test_programs import TINY, Command, fastmmd, one_thread  # noqa: F401  fixtures

from fastmmd import cli
from fastmmd.checkpoint import load_checkpoint, load_state
from fastmmd.evaluation import LargeEvaluation
from fastmmd.training import parts
from fastmmd.training.lock import locked
from fastmmd.training.run import RunFolder

ROOT = Path(__file__).parents[1]
SAMPLES = 23_000  # 12 blocks, the last one half as large


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["fastmmd", "train", "mmd-ae", "--epochs", "1", "--run-dir", str(path), "--quiet", *TINY]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sys, "argv", arguments)
        cli.main()
    assert not stop.value.code
    return path


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run with a complete evaluation in one part."""
    torch.set_num_threads(1)
    path = shutil.copytree(trained, tmp_path_factory.mktemp("whole") / "run")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sys, "argv", ["fastmmd", "evaluate", str(path), *options("1/1")])
        cli.main()
    assert not stop.value.code
    return path


def options(part: str | None = None) -> list[str]:
    return ["--samples", str(SAMPLES), "--device", "cpu", *(["--part", part] if part else [])]


def state(run: Path, name: str = "part-1-of-1.pt") -> dict[str, object]:
    return load_state(run / f"evaluation-{SAMPLES}" / name, "evaluation")


def last_record(run: Path) -> dict[str, float]:
    record = RunFolder(run).records()[-1]
    assert record["kind"] == "evaluation"
    return record


@pytest.mark.parametrize("count", [2, 3])
def test_parts_merge(fastmmd: Command, run_dir: Path, whole: Path, count: int) -> None:
    for number in range(count, 0, -1):  # in any order
        before = (run_dir / "metrics.jsonl").read_bytes()
        result = fastmmd("merge", run_dir)
        expected = "has: none" if number == count else f"has no part {', '.join(map(str, range(1, number + 1)))} of"
        assert result.code == 2 and expected in result.err
        result = fastmmd("evaluate", run_dir, *options(f"{number}/{count}"))
        assert result.code == 0 and f"fastmmd merge {run_dir}" in result.out, result.err
        assert (run_dir / "metrics.jsonl").read_bytes() == before
    result = fastmmd("merge", run_dir)
    assert result.code == 0 and f"{SAMPLES:,} samples from the prior" in result.out
    assert f"| {SAMPLES:,} | prior |" in (run_dir / "report.md").read_text()
    merged, expected = last_record(run_dir), last_record(whole)
    assert merged.keys() == expected.keys() and merged["sigma"] == expected["sigma"]
    assert abs(merged["mean"] - expected["mean"]) < 1e-4
    assert merged["codes"] == expected["codes"]


def test_the_evaluation_agrees_with_the_usual_one(fastmmd: Command, run_dir: Path, whole: Path) -> None:
    """Of other draws, as many: their windows hardly differ."""
    assert fastmmd("evaluate", run_dir, *options()).code == 0
    usual, large = last_record(run_dir), last_record(whole)
    assert usual["samples"] == large["samples"] == SAMPLES and usual["n_test"] == large["n_test"]
    assert abs(usual["mean"] - large["mean"]) < 0.1 and abs(usual["sigma"] / large["sigma"] - 1) < 0.02


def test_more_than_100_000_samples_are_taken_in_one_pass(
    fastmmd: Command,
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parts, "LARGE", 2_000)
    assert fastmmd("evaluate", run_dir, "--samples", 2_000).code == 0
    assert not list(run_dir.glob("evaluation-*"))
    assert fastmmd("evaluate", run_dir, "--samples", 2_001, "--chain-steps", 1).code == 0
    assert (run_dir / "evaluation-2001-chain-1" / "part-1-of-1.pt").exists()
    assert last_record(run_dir)["samples"] == 2_001


KILLED = """
import os, signal, sys
import torch
from fastmmd import cli
from fastmmd.evaluation import LargeEvaluation
from fastmmd.training import parts
from fastmmd.training.lock import locked

torch.set_num_threads(1)
parts.SECONDS_BETWEEN_SAVES = 0.0
where, count = sys.argv.pop(1), int(sys.argv.pop(1))
owner = LargeEvaluation if where == "advance" else os
original = getattr(owner, where)


def killed(*arguments):
    global count
    count -= 1
    if count < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)


setattr(owner, where, killed)
cli.main()
"""


def test_killed_and_continued(fastmmd: Command, run_dir: Path, whole: Path) -> None:
    """Between two updates, and before a new state has taken the place of the old one."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    moments = [("advance", 1), ("replace", 1), *([("advance", 0), ("replace", 0)] * 9 if FULL else [])]
    for where, after in moments:
        command = [sys.executable, "-c", KILLED, where, str(after), "evaluate", str(run_dir), *options("1/1")]
        process = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, check=False)
        assert process.returncode == -signal.SIGKILL, process.stderr
    counted = state(run_dir)["count"]
    assert isinstance(counted, int) and 0 < counted < SAMPLES
    result = fastmmd("evaluate", run_dir, *options("1/1"))
    assert result.code == 2 and "go on with --resume, or remove the file" in result.err
    assert fastmmd("evaluate", run_dir, *options("1/1"), "--resume").code == 0
    assert_same(state(run_dir), state(whole))
    assert last_record(run_dir) == last_record(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_and_continued(
    fastmmd: Command,
    run_dir: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
) -> None:
    advance = LargeEvaluation.advance

    def interrupted(self: LargeEvaluation, blocks: int = 4) -> None:
        signal.raise_signal(number)
        advance(self, blocks)

    monkeypatch.setattr(LargeEvaluation, "advance", interrupted)
    result = fastmmd("evaluate", run_dir, *options("2/2"))
    monkeypatch.undo()
    assert result.code == code and "stopped after 8,000 of 11,000 samples; continue with: fastmmd" in result.err
    remedy = shlex.split(result.err.partition("continue with: ")[2])
    assert fastmmd("evaluate", run_dir, *options("1/2")).code == 0
    result = fastmmd("merge", run_dir)
    assert result.code == 2 and "has 8,000 of 11,000 samples; continue it with: fastmmd" in result.err
    assert fastmmd(*remedy[1:]).code == 0
    assert fastmmd("merge", run_dir).code == 0
    assert abs(last_record(run_dir)["mean"] - last_record(whole)["mean"]) < 1e-4


def test_a_part_is_made_by_one_process(fastmmd: Command, run_dir: Path) -> None:
    folder = run_dir / f"evaluation-{SAMPLES}"
    folder.mkdir()
    with locked(folder, "part-1-of-2.pt.lock"):
        result = fastmmd("evaluate", run_dir, *options("1/2"))
        assert result.code == 2 and f"{folder} is in use by process {os.getpid()}" in result.err
        assert fastmmd("evaluate", run_dir, *options("2/2")).code == 0
    assert fastmmd("evaluate", run_dir, *options("1/2")).code == 0
    assert {path.name for path in folder.iterdir()} == {"part-1-of-2.pt", "part-2-of-2.pt"}
    with locked(run_dir):
        assert "is in use by" in fastmmd("merge", run_dir).err


def other_seed(run: Path) -> None:
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace("seed = 0", "seed = 1"))


def other_checkpoint(run: Path) -> None:
    torch.save({**load_checkpoint(run / "checkpoint.pt"), "seconds": 0.0}, run / "checkpoint.pt")


def other_sigmas(run: Path) -> None:
    file = run / f"evaluation-{SAMPLES}" / "part-2-of-2.pt"
    part = torch.load(file, weights_only=True)
    torch.save({**part, "sigmas": [2 * sigma for sigma in part["sigmas"]]}, file)


def truncated(run: Path) -> None:
    file = run / f"evaluation-{SAMPLES}" / "part-2-of-2.pt"
    file.write_bytes(file.read_bytes()[:500])


def other_samples(run: Path) -> None:
    (run / f"evaluation-{SAMPLES}").rename(run / "evaluation-24000")


def other_number(run: Path) -> None:
    folder = run / f"evaluation-{SAMPLES}"
    shutil.copy(folder / "part-1-of-2.pt", folder / "part-2-of-2.pt")


def other_partition(run: Path) -> None:
    folder = run / f"evaluation-{SAMPLES}"
    shutil.copy(folder / "part-1-of-2.pt", folder / "part-1-of-3.pt")


@pytest.fixture(scope="module")
def halves(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with both halves of an evaluation."""
    torch.set_num_threads(1)
    path = shutil.copytree(trained, tmp_path_factory.mktemp("halves") / "run")
    for part in ("1/2", "2/2"):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(sys, "argv", ["fastmmd", "evaluate", str(path), *options(part)])
            cli.main()
        assert not stop.value.code
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_seed, "seed is 0 there, 1 here"),
        (other_checkpoint, "checkpoint is "),
        (other_sigmas, "sigmas is "),
        (truncated, "is not a usable checkpoint"),
        (other_samples, "samples is 23000 there, 24000 here"),
        (other_number, "part is [1, 2] there, [2, 2] here"),
        (other_partition, "holds parts of several partitions (part-1-of-2.pt, part-1-of-3.pt, part-2-of-2.pt)"),
    ],
)
def test_foreign_parts_are_refused(
    fastmmd: Command,
    halves: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    message: str,
) -> None:
    run = shutil.copytree(halves, tmp_path / "run")
    change(run)
    before = (run / "metrics.jsonl").read_bytes()
    result = fastmmd("merge", run)
    assert result.code == 2 and message in result.err, result.err
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b", "1/0"])
def test_wrong_parts(fastmmd: Command, part: str) -> None:
    result = fastmmd("evaluate", "nowhere", "--part", part)
    assert result.code == 2 and f"--part takes K/N with 1 <= K <= N, such as 3/8, got '{part}'" in result.err


def test_progress(fastmmd: Command, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SECONDS_BETWEEN_SAVES", 0.0)
    result = fastmmd("evaluate", run_dir, *options("1/2"))
    first, second = (line for line in result.out.splitlines() if "validation LL" in line)
    assert first.startswith("part 1/2  67% of 12,000 samples, ") and "left 0:00:0" in first and "sigma 0." in first
    assert second.startswith("part 1/2  100% of 12,000 samples, ")
    assert "validation LL" not in fastmmd("evaluate", run_dir, *options("2/2"), "--quiet").out
