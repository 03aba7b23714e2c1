"""One process at a time in a run folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import Fault, run
from test_experiments import start
from test_programs import Command, fastmmd, one_thread  # noqa: F401  fixtures

from fastmmd.errors import UserError
from fastmmd.training.lock import LOCK, locked

TRAIN = ["train", "mmd-ae", "--data", "images.npy", "--run-dir", "run", "--device", "cpu", "--batch-size", "20"]
TRAIN += ["--epochs", "100000", "--set", "model.hidden=[16]", "--set", "training.evaluate_every=0", "--quiet"]


def test_the_second_is_refused_and_told_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fastmmd", "train", "my recipe"])
    with locked(tmp_path):
        record = json.loads((tmp_path / LOCK).read_text())
        assert record["pid"] == os.getpid() and record["host"] == platform.node()
        words = rf"{tmp_path} is in use by process {os.getpid()} on {platform.node()} since {record['since'][:10]}.*"
        with pytest.raises(UserError, match=words + r"\(fastmmd train 'my recipe'\): wait"), locked(tmp_path):
            pass
        (tmp_path / LOCK).write_text("")  # not written yet
        with pytest.raises(UserError, match="is in use by another process"), locked(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("record", ["", "no JSON", '{"pid": %d, "host": "here"}'])
def test_a_lock_of_a_dead_process_is_taken_over(tmp_path: Path, record: str) -> None:
    """Its number may belong to another process by now, this one for example."""
    (tmp_path / LOCK).write_text((record % os.getpid() if "%" in record else record) + 200 * " ")
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["command"]
    assert not (tmp_path / LOCK).exists()


def test_a_lock_that_is_removed_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the opening of the file and its lock the holder ended, and a third process came."""
    flock, inodes = fcntl.flock, []

    def late(file: int, how: int) -> None:
        if not inodes:
            (tmp_path / LOCK).unlink()
            (tmp_path / LOCK).write_text("")
        inodes.append(os.fstat(file).st_ino)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path):
        assert inodes == [inodes[0], (tmp_path / LOCK).stat().st_ino] and inodes[0] != inodes[1]


def test_a_fork_keeps_no_lock(tmp_path: Path) -> None:
    """A loader's worker, for example, which may outlive the process that was killed."""
    ready, go = os.pipe(), os.pipe()
    if (holder := os.fork()) == 0:
        with locked(tmp_path):
            if os.fork() == 0:
                os.close(go[1])
                os.write(ready[1], b"x")
                os.read(go[0], 1)  # until the test ends
                os._exit(0)
            os.read(ready[0], 1)
            os._exit(0)  # with the lock
    assert os.waitpid(holder, 0)[1] == 0 and (tmp_path / LOCK).exists()
    with locked(tmp_path):
        pass
    for end in (*ready, *go):
        os.close(end)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, how: int) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", refuse)
    words = f"the file system of {tmp_path} has no locks .*: put the run elsewhere, or .* FASTMMD_LOCK=off"
    with pytest.raises(UserError, match=words), locked(tmp_path):
        pass
    monkeypatch.setenv("FASTMMD_LOCK", "off")
    with locked(tmp_path), locked(tmp_path):
        pass


@pytest.mark.usefixtures("one_thread")
def test_every_command_is_refused(fastmmd: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """`sample` only reads. Nothing in the folder changes; once the first is dead, the run goes on."""
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", np.random.default_rng(0).random((60, 4, 4)))
    folder = tmp_path / "run"
    ended = run(TRAIN, tmp_path, Fault(signal.SIGKILL, operation=22))
    assert ended.code == -signal.SIGKILL and (folder / LOCK).exists()
    with locked(folder):
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        for words in (["train", "--resume", "run", "--epochs", 9], ["evaluate", "run"], TRAIN):
            result = fastmmd(*words)
            assert result.code == 2 and f"run is in use by process {os.getpid()} on " in result.err, result.err
            assert result.err.count("\n") == 1
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert fastmmd("sample", "run", "--count", 3, "--output", "x.npy", "--device", "cpu").code == 0
    assert fastmmd("train", "--resume", "run", "--epochs", 20, "--quiet").code == 0
    assert not (folder / LOCK).exists()


def test_an_experiment_holds_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with start(tmp_path, "--epochs", "1") as experiment:
        with pytest.raises(SystemExit) as stop, start(tmp_path):
            pass
        assert stop.value.code == 2 and f"is in use by process {os.getpid()}" in capsys.readouterr().err
        (tmp_path / "vae-seed0").mkdir()
        with locked(tmp_path / "vae-seed0"), pytest.raises(UserError, match="vae-seed0 is in use by process"):
            experiment.train("VAE", "vae")
    assert not (tmp_path / LOCK).exists()
