"""What the numbers were measured on: hardware, versions, revision, and what this machine can do at most."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

from settings import BUILD, DEVICE, HERE, THREADS

PACKAGES = ("fastmmd", "torch", "numpy", "pykeops", "geomloss", "scikit-learn", "pytest-benchmark")


def hardware() -> str:
    """The processor by name, its cores and the instruction set that our kernels use on it; or the GPU."""
    from fastmmd.training.run import hardware

    return hardware(DEVICE)


def slug() -> str:
    """The hardware as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", hardware().lower()).strip("-")


def memory_gigabytes() -> float:
    """What the machine has in all."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9


def versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def revision() -> str:
    """The commit, marked where tracked files other than earlier results differ from it."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + (" with changes" if changed else "")


def _git(*arguments: str) -> str:
    process = subprocess.run(["git", *arguments], cwd=HERE.parent, check=True, capture_output=True, text=True)
    return process.stdout.strip()


def yardstick() -> dict[str, dict[str, float]]:
    """Threads -> {"gflops", "gigabytes"} by yardstick.cpp, which the system's compiler tunes to this processor."""
    if DEVICE != "cpu":
        return {}
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or "c++"
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / "yardstick"
    source = HERE / "yardstick.cpp"
    subprocess.run([compiler, "-O3", "-march=native", "-fopenmp", source, "-o", program], check=True)
    return {str(threads): json.loads(subprocess.check_output([program, str(threads)])) for threads in {1, THREADS}}
