"""Full disks, read-only folders, foreign checkpoints: one line that says so, and the checkpoint as it was."""

from __future__ import annotations

import ctypes
import io
import os
import pickle
import random
import re
import resource
import shutil
import sys
import traceback
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import FULL
from processes import FORKS
from test_faults import trained  # noqa: F401  a fixture
from test_programs import one_thread  # noqa: F401  a fixture

from fastmmd import cli
from fastmmd.checkpoint import load_checkpoint
from fastmmd.errors import UserError
from fastmmd.training.experiments import Experiment, arguments
from fastmmd.training.run import RunFolder

# ruff: noqa: F811  fixtures are arguments here

RESUME = ["train", "--resume", "run", "--epochs", "6"]
EVALUATE = ["evaluate", "run", "--device", "cpu"]
SAMPLE = ["sample", "run", "--count", "3000", "--output", "run/samples.npy", "--device", "cpu"]
FREE = (0, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 200, 250, 300) if FULL else (0, 12, 40, 100)  # KB


# --- disks ---


class Disk:
    """A small file system in this process alone; where none can be mounted, no file may grow beyond a limit."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.filler = folder, folder / "filler"
        self.libc = ctypes.CDLL(None, use_errno=True)
        user, group = os.getuid(), os.getgid()
        new_user_and_mounts = 0x10000000 | 0x00020000
        self.is_mounted = self.libc.unshare(new_user_and_mounts) == 0
        if self.is_mounted:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
            self.is_mounted = self._mount(b"tmpfs", 0, b"size=4m")

    def _mount(self, kind: bytes | None, flags: int, options: bytes | None) -> bool:
        return self.libc.mount(kind, bytes(self.folder), kind, ctypes.c_ulong(flags), options) == 0

    def leave(self, kilobytes: int) -> None:
        if not self.is_mounted:
            return resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes << 10, -1))
        with suppress(OSError), open(self.filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        os.truncate(self.filler, self.filler.stat().st_size - (kilobytes << 10))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        self.filler.unlink(missing_ok=True)

    def make_read_only(self) -> bool:
        if self.is_mounted:
            return self._mount(None, 32 | 1, None)  # remount, read-only
        for path in (self.folder, *self.folder.rglob("*")):
            path.chmod(0o500)
        return os.geteuid() != 0  # whom that does not keep out


def call(*words: str) -> tuple[int, str]:
    """`fastmmd WORDS` in this process: its exit code and what it says on stderr."""
    sys.argv = ["fastmmd", *words]
    err = io.StringIO()
    with redirect_stderr(err), redirect_stdout(io.StringIO()):
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0), err.getvalue()
    raise AssertionError


def refused(words: list[str], *messages: str) -> None:
    code, err = call(*words)
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert code == 2 and len(lines) == 1 and lines[0].startswith("fastmmd: "), (words, code, err)
    assert any(message in lines[0] for message in messages), (words, lines)


def _child(test: Callable[[Disk, Path], None], disk: Path, run: Path, said: Path) -> None:
    try:
        torch.set_num_threads(1)
        os.chdir(disk)
        test(Disk(disk), run)
    except BaseException:
        said.write_text(traceback.format_exc())
        os._exit(1)


def on_a_disk(test: Callable[[Disk, Path], None], trained: Path, tmp_path: Path) -> None:
    """`test` in a process of its own, with the folder that is its disk and the path of a trained run's folder."""
    (tmp_path / "disk").mkdir()
    said = tmp_path / "said"
    process = FORKS.Process(target=_child, args=(test, tmp_path / "disk", trained, said))
    process.start()
    process.join(300)
    message = said.read_text() if said.exists() else f"exit code {process.exitcode}"
    if "no read-only folder can be made" in message:
        pytest.skip("no read-only folder can be made by root here")
    assert process.exitcode == 0, message


def fill_the_disk(disk: Disk, trained: Path) -> None:
    os.chdir(disk.folder)
    failed = set()
    for kilobytes in FREE:
        for words in (RESUME, EVALUATE, SAMPLE):
            shutil.rmtree("run", ignore_errors=True)
            shutil.copytree(trained / "run", "run")
            before = Path("run/checkpoint.pt").read_bytes()
            disk.leave(kilobytes)
            code, err = call(*words)
            left = [str(path) for path in Path("run").rglob("*") if path.name == "lock" or path.suffix == ".tmp"]
            disk.free()
            lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
            if code:
                assert code == 2 and len(lines) == 1 and "cannot write" in lines[0], (kilobytes, words, err)
                assert any(why in lines[0] for why in ("No space left", "too large", "GB are free")), lines
                failed.add(lines[0].partition("run/")[2].partition(":")[0])
            assert not left, (kilobytes, words, left)
            if words is RESUME:
                assert load_checkpoint(Path("run/checkpoint.pt"))["epoch"] in (4, 5, 6)
                code, err = call(*words)
                assert code == 0 or "is complete" in err, err
                done = [record["epoch"] for record in RunFolder(Path("run")).records() if "epoch" in record]
                assert done == [1, 2, 3, 4, 5, 6]
            else:
                assert Path("run/checkpoint.pt").read_bytes() == before
    assert {"checkpoint.pt", "samples.npy"} <= failed and len(failed) > 3, failed


def forbid_writing(disk: Disk, trained: Path) -> None:
    os.chdir(disk.folder)
    shutil.copytree(trained / "run", "run")
    assert disk.make_read_only(), "no read-only folder can be made"
    why = ("Read-only file system", "Permission denied")
    for words in (RESUME, EVALUATE, SAMPLE, ["train", "vae", "--run-dir", "new", "--epochs", "1"]):
        refused(words, *why)
    err = io.StringIO()
    options = arguments(None).parse_args(["--run-dir", "table", "--device", "cpu"])
    with redirect_stderr(err), pytest.raises(SystemExit), Experiment.start("Things", options):
        pass
    assert err.getvalue().startswith("error: cannot write table: ") and any(word in err.getvalue() for word in why)


def test_full_disk(trained: Path, tmp_path: Path) -> None:
    """With more and more left of it, so that one file after another does not fit."""
    on_a_disk(fill_the_disk, trained, tmp_path)


def test_record_on_a_full_disk(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics = Path("/dev/full")
    with pytest.raises(UserError, match="cannot write /dev/full: No space left on device"):
        folder.append({"step": 1})


def test_files_are_written_in_one_place() -> None:
    """`fastmmd.files`, by whose functions they are whole; a full disk for each of them would be a test for each."""
    package = Path(cli.__file__).parent
    writers = [path for path in package.rglob("*.py") if re.search(r"\.write_(text|bytes)\(", path.read_text())]
    assert writers == []


def test_read_only_folder(trained: Path, tmp_path: Path) -> None:
    on_a_disk(forbid_writing, trained, tmp_path)


# --- checkpoints ---


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("hello/data.pkl", "hello")
    return file.getvalue()


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, pickle_module=pickle)
    return file.getvalue()


def changed(change: Callable[[dict[str, Any], str], Any]) -> Callable[[dict[str, Any]], bytes]:
    """The run's own checkpoint after change(state, name of a weight)."""

    def content(state: dict[str, Any]) -> bytes:
        name = next(name for name, value in state["model"].items() if torch.is_tensor(value) and value.ndim == 2)
        change(state, name)
        return saved(state)

    return content


def moments(state: dict[str, Any]) -> dict[str, Any]:
    return next(iter(next(iter(state["optimizers"].values()))["state"].values()))


def of_sgd(state: dict[str, Any]) -> None:
    """The run's optimizers as those of a user who trained with gradient descent and momentum."""
    for optimizer in state["optimizers"].values():
        optimizer["state"] = {n: {"momentum_buffer": of["exp_avg"]} for n, of in optimizer["state"].items()}
        for group in optimizer["param_groups"]:
            del group["betas"], group["eps"]
            group.update(momentum=0.9, dampening=0.0, nesterov=False)


UNUSABLE: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "random": lambda state: random.Random(0).randbytes(5_000),
    "empty": lambda state: b"",
    "truncated": lambda state: saved(state)[:-300],
    "text": lambda state: b"hello\n",
    "another zip": lambda state: zipped(),
    "another project": lambda state: saved({"state_dict": state["model"], "epoch": 3}),
    "a list": lambda state: saved([1, 2]),
    "a model that is none": lambda state: saved({"model": [1.0]}),
    "keys": changed(lambda state, name: state["model"].update(other=state["model"].pop(name))),
    "numbers for keys": lambda state: saved(state | {"model": dict(enumerate(state["model"].values()))}),
    "shapes": changed(lambda state, name: state["model"].update({name: torch.zeros(3, 3)})),
    "dtypes": changed(lambda state, name: state["model"].update({name: state["model"][name].double()})),
    "NaN": changed(lambda state, name: state["model"][name][0].fill_(float("nan"))),
}
#: Those that only a resumed run reads.
UNRESUMABLE: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "no optimizers": changed(lambda state, name: state.pop("optimizers")),
    "another optimizer": changed(lambda state, name: state.update(optimizers={"other": {}})),
    "another kind of optimizer": changed(lambda state, name: of_sgd(state)),
    "moments": changed(lambda state, name: moments(state).update(exp_avg=torch.zeros(3))),
    "infinite moments": changed(lambda state, name: moments(state)["exp_avg_sq"].fill_(float("inf"))),
    "random states": changed(lambda state, name: state.update(random={"cpu": torch.zeros(3)})),
    "no random states": changed(lambda state, name: state.pop("random")),
    "sums": changed(lambda state, name: state["sums"].update(loss=torch.zeros(3))),
    "steps": changed(lambda state, name: state.update(step="many")),
    "batches": changed(lambda state, name: state.update(batches=[])),
}


@pytest.mark.parametrize("case", [*UNUSABLE, *UNRESUMABLE])
@pytest.mark.usefixtures("one_thread")
def test_foreign_checkpoint(case: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    path = Path("run/checkpoint.pt")
    make = UNUSABLE.get(case) or UNRESUMABLE[case]
    path.write_bytes(make(load_checkpoint(path)))
    before = {file.name: file.read_bytes() for file in Path("run").iterdir()}
    for words in (RESUME, EVALUATE, SAMPLE) if case in UNUSABLE else (RESUME,):
        refused(words, "is not a usable checkpoint", "is not a checkpoint of fastmmd", "does not fit run/config.toml",
                "position in the data is damaged")  # fmt: skip
    assert {file.name: file.read_bytes() for file in Path("run").iterdir()} == before


@pytest.mark.parametrize("how", [saved, pickle.dumps])
def test_checkpoint_with_code_is_not_executed(
    how: Callable[[Any], bytes], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    content = how({"model": Payload(tmp_path / "executed")})
    Path("run/checkpoint.pt").write_bytes(content)
    for words in (RESUME, EVALUATE, SAMPLE):
        refused(words, "run/checkpoint.pt is not a usable checkpoint")
    assert not (tmp_path / "executed").exists() and Path("run/checkpoint.pt").read_bytes() == content


def test_lost_checkpoint_is_not_begun_again(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unlike that of a run that was killed before its first one."""
    shutil.copytree(trained / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    Path("run/checkpoint.pt").unlink()
    before = Path("run/metrics.jsonl").read_bytes()
    refused(RESUME, "no checkpoint in run")
    assert Path("run/metrics.jsonl").read_bytes() == before
