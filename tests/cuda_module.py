"""The CUDA kernels compiled by nvcc, once for all tests: kept in build/ as long as sources and compiler stay."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from helpers import FULL

ROOT = Path(__file__).parent.parent
ALL = ("80", "86", "89", "90a", "100", "120")  # as in setup.py
DIMS = 16 if FULL else 5  # for which mmd2 has kernels of its own
NVCC = shutil.which("nvcc", path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/local/cuda/bin")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
BESIDE = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


@dataclass(frozen=True)
class Built:
    """What a build left."""

    module: Path
    log: str  # of the compilers, with the resources of every kernel
    seconds: float | None  # None: an earlier run had built it


@cache
def architectures() -> tuple[str, ...]:
    """For which tests compile: 90a, or with FASTMMD_TEST_FULL=1 all that nvcc knows."""
    known = subprocess.run([str(NVCC), "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout
    return tuple(name for name in ALL if f"compute_{name.rstrip('a')}\n" in known) if FULL else ("90a",)


@cache
def built(flags: str = "", names: tuple[str, ...] | None = None) -> Built:
    """The module for the architectures under test, or for `names`. flags: further ones of nvcc."""
    names = names or architectures()
    state = hashlib.sha256(repr((sys.executable, flags, names)).encode())
    state.update(subprocess.run([str(NVCC), "--version"], check=True, capture_output=True).stdout)
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.is_file():
            state.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    kind = hashlib.sha256(repr((flags, names)).encode()).hexdigest()[:8]
    folder = ROOT / "build" / "cuda-tests" / kind
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:  # the tests may run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _built(folder, state.hexdigest(), names, flags)


def _built(folder: Path, key: str, names: tuple[str, ...], flags: str) -> Built:
    if (folder / "key").exists() and (folder / "key").read_text() == key:
        return Built(_module(folder), (folder / "log").read_text(), None)
    shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    quick = ("-DCMAKE_CXX_FLAGS_RELEASE=-O0", "-DCMAKE_CUDA_FLAGS_RELEASE=-O0")  # of code on the host alone
    dims = f"-DFASTMMD_CUDA_DIMS={DIMS}"
    configure(folder, ";".join(f"{name}-real" for name in names), f"-Xptxas=-v {flags}", dims, *quick)
    done = run(["cmake", "--build", str(folder), "--target", "_cuda"])
    assert done.returncode == 0, done.stdout
    (folder / "log").write_text(done.stdout)
    (folder / "key").write_text(key)
    return Built(_module(folder), done.stdout, time.perf_counter() - start)


def configure(folder: Path, names: str, flags: str, *options: str) -> None:
    """CMake for the CUDA module: architectures and flags for nvcc, further options."""
    import pybind11

    command = [
        "cmake", "-S", str(ROOT / "csrc"), "-B", str(folder), "-G", "Ninja", "-DFASTMMD_CUDA=ON",
        f"-DCMAKE_CUDA_COMPILER={NVCC}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DCMAKE_CUDA_ARCHITECTURES={names}", f"-DPython_EXECUTABLE={sys.executable}", "-DPYBIND11_FINDPYTHON=ON",
        *options,
    ]  # fmt: skip
    done = run(command, CUDAFLAGS=flags)
    assert done.returncode == 0, done.stdout


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """With the tools beside this interpreter first on the PATH."""
    return subprocess.run(
        command, env=os.environ | BESIDE | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _module(folder: Path) -> Path:
    (path,) = (folder / "cuda").glob("_cuda*.so")
    return path
