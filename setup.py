"""Builds the native code: hands csrc/ to CMake and Ninja. Everything declarative is in pyproject.toml.

FASTMMD_NATIVE=off  builds the pure-Python package on purpose (the default on Windows, macOS); `on` insists.
FASTMMD_CUDA=off    this version has no CUDA kernels: `auto`, the default, means the same; `on` is an error.
CXX                 the C++ compiler.
CMAKE_ARGS          further arguments for CMake; those below win.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
REMEDY = """\
fastmmd: the native code could not be built; the messages above say why. What helps:
  - a C++17 compiler with OpenMP, GCC 11 or Clang 14 or newer, and Python's headers
    (Debian, Ubuntu: apt install g++ python3-dev)
  - CXX=/path/to/compiler pip install ...      another compiler
  - FASTMMD_NATIVE=off pip install ...         the package without native code (slower: plain torch)"""


def native_wanted() -> bool:
    choice = os.environ.get("FASTMMD_NATIVE", "on" if sys.platform == "linux" else "off")
    if choice not in ("on", "off"):
        raise SystemExit(f'FASTMMD_NATIVE: got {choice!r}, expected "on" or "off"')
    return choice == "on"


def check_cuda_choice() -> None:
    choice = os.environ.get("FASTMMD_CUDA", "auto")
    if choice not in ("auto", "on", "off"):
        raise SystemExit(f'FASTMMD_CUDA: got {choice!r}, expected "auto", "on" or "off"')
    if choice == "on":
        raise SystemExit("FASTMMD_CUDA=on: this version of fastmmd has no CUDA kernels; leave the variable unset")


def tool(name: str) -> str:
    """A build tool on the PATH or beside the interpreter."""
    places = [os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")]
    return shutil.which(name, path=os.pathsep.join(places)) or name


class PythonBuild(build_py):
    """Says so where no native code is built; CMake says what is."""

    def run(self) -> None:
        if not native_wanted():
            print("fastmmd native parts: none (FASTMMD_NATIVE=off, the default outside Linux)", flush=True)
        super().run()


class CMakeBuild(build_ext):
    """Builds the one extension with CMake."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve() / "cmake"
        shutil.rmtree(build, ignore_errors=True)  # never the cache of another compiler or interpreter
        cmake = tool("cmake")
        configure = [
            cmake, "-S", str(ROOT / "csrc"), "-B", str(build), "-G", "Ninja",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
            "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DCMAKE_INSTALL_PREFIX={target}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DPYBIND11_FINDPYTHON=ON",
        ]  # fmt: skip
        try:
            subprocess.run(configure, check=True)
            subprocess.run([cmake, "--build", str(build), "--target", "install"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"{error}\n{REMEDY}") from None
        module = Path(self.get_ext_fullpath(ext.name))
        if not module.exists():  # a wheel without native code is never made by accident
            raise SystemExit(f"CMake ended without an error and left no {module}\n{REMEDY}")


class BinaryDistribution(Distribution):
    """Without native code the wheel is pure; with it, it belongs to one platform."""

    def has_ext_modules(self) -> bool:
        return native_wanted()


check_cuda_choice()
setup(
    ext_modules=[Extension("fastmmd._native", sources=[])] if native_wanted() else [],
    cmdclass={"build_py": PythonBuild, "build_ext": CMakeBuild},
    distclass=BinaryDistribution,
)
