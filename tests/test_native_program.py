"""The C++ tests in tests/native: elementary functions, helpers and kernels on every instruction set."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from fastmmd import _native

ROOT = Path(__file__).parent.parent


def tool(name: str) -> str:
    """A build tool on the PATH or beside the interpreter."""
    return shutil.which(name, path=os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"]))) or name


def run(*command: str | Path) -> str:
    done = subprocess.run(
        command, env=os.environ | {"OMP_WAIT_POLICY": "passive"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20_000:]
    return done.stdout


@pytest.mark.timeout(900)
def test_native_program() -> None:
    """Where setup.py built the module: the kernels are tested as they were compiled for it."""
    build = ROOT / "build" / "native"
    (build / "CMakeCache.txt").unlink(missing_ok=True)  # never the cache of another compiler; objects stay
    run(
        tool("cmake"), "-S", ROOT / "csrc", "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        "-DFASTMMD_TESTS=ON", "-DFASTMMD_SANITIZE=",
    )  # fmt: skip
    run(tool("cmake"), "--build", build)
    report = run(build / "native_tests").splitlines()
    assert report[0].split()[2:] == _native.capabilities()
    assert report[-1].endswith(" 0 failed")
