"""Builds the native code: hands csrc/ to CMake and Ninja. Everything declarative is in pyproject.toml.

FASTMMD_NATIVE=off  builds the pure-Python package on purpose (the default on Windows and macOS); `on` insists.
CMAKE_ARGS          further arguments for CMake.       CXX  the C++ compiler.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
REMEDY = """\
fastmmd: the native code could not be built; the messages above say why. What helps:
  - a C++17 compiler with OpenMP: GCC 11 or Clang 14, or newer (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++)
  - CXX=/path/to/compiler pip install ...      another compiler
  - FASTMMD_NATIVE=off pip install ...         the package without native code (slower: plain torch)"""


def native_wanted() -> bool:
    choice = os.environ.get("FASTMMD_NATIVE", "on" if sys.platform == "linux" else "off")
    if choice not in ("on", "off"):
        raise SystemExit(f'FASTMMD_NATIVE: got {choice!r}, expected "on" or "off"')
    return choice == "on"


class CMakeBuild(build_ext):
    """Builds the one extension with CMake and reports which native parts it has."""

    def run(self) -> None:
        if not self.extensions:
            print("fastmmd native parts: none (FASTMMD_NATIVE=off, the default outside Linux)", flush=True)
        super().run()

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve() / "cmake"
        shutil.rmtree(
            build, ignore_errors=True
        )  # a cache from another compiler or interpreter is never reused
        cmake = shutil.which("cmake") or "cmake"
        configure = [
            cmake, "-S", str(ROOT / "csrc"), "-B", str(build), "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_INSTALL_PREFIX={target}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DPYBIND11_FINDPYTHON=ON",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]  # fmt: skip
        try:
            subprocess.run(configure, check=True)
            subprocess.run([cmake, "--build", str(build), "--target", "install"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"{error}\n{REMEDY}") from None


class BinaryDistribution(Distribution):
    """Without native code the wheel is pure; with it, it belongs to one platform."""

    def has_ext_modules(self) -> bool:
        return native_wanted()


setup(
    ext_modules=[Extension("fastmmd._native", sources=[])] if native_wanted() else [],
    cmdclass={"build_ext": CMakeBuild},
    distclass=BinaryDistribution,
)
