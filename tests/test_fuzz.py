"""Arguments of every kind to every public function: a documented error that names one of them, or a right answer.

In a process of its own, so that a crash or a hang is a failure of the test that says which case it was.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import FULL

HERE = Path(__file__).parent


def run_child(*command: str, record: Path, seconds: float) -> str:
    """What a child prints; fails with the case that it was at if it does not end well, or not in time."""
    record.touch()
    try:
        done = subprocess.run(
            [sys.executable, *command, str(record)], capture_output=True, text=True, timeout=seconds, cwd=HERE.parent
        )
    except subprocess.TimeoutExpired:
        pytest.fail(f"no end after {seconds:g} s at the case: {record.read_text()}")
    if done.returncode:
        pytest.fail(f"exit code {done.returncode} at the case: {record.read_text()}\n{done.stderr[-6000:]}")
    return done.stdout


@pytest.mark.parametrize(
    ("part", "count"), [("arguments", 20_000 if FULL else 800), ("answers", 3_000 if FULL else 200)]
)
def test_cases(tmp_path: Path, part: str, count: int) -> None:
    out = run_child(str(HERE / "fuzz_child.py"), part, str(count), record=tmp_path / "case", seconds=280)
    assert int(out.split()[0]) >= count


@pytest.mark.skipif(not FULL, reason="FASTMMD_TEST_FULL=1 runs it: half a minute")
def test_every_argument_replaced_by_everything(tmp_path: Path) -> None:
    out = run_child(str(HERE / "fuzz_child.py"), "every argument", "0", record=tmp_path / "case", seconds=280)
    assert int(out.split()[0]) > 50_000


PLANTED = """
import faulthandler, sys, time
open(sys.argv[1], "w").write("the last case")
faulthandler.enable()
{}
"""


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("faulthandler._sigsegv()", "exit code -11 at the case: the last case\nFatal Python error"),
        ("time.sleep(9)", "no end after 0.5 s at the case: the last case"),
        ("raise ValueError(1)", "exit code 1 at the case: the last case\nTraceback"),
    ],
)
def test_faults_are_reported_with_the_case(tmp_path: Path, fault: str, message: str) -> None:
    with pytest.raises(pytest.fail.Exception) as caught:
        run_child("-c", PLANTED.format(fault), record=tmp_path / "case", seconds=0.5 if "sleep" in fault else 20)
    assert message in str(caught.value)
