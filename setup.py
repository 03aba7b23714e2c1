"""Builds the native code: hands csrc/ to CMake and Ninja. Everything declarative is in pyproject.toml.

FASTMMD_NATIVE=off  builds the pure Python package (the default on Windows and macOS); `on` requires native code.
FASTMMD_CUDA=off    builds no CUDA kernels; `auto`, the default, builds them where nvcc is found; `on` requires them.
CXX                 the C++ compiler.
CUDACXX, CUDA_HOME  nvcc, or the folder whose bin contains it; otherwise it is looked up on the PATH and in
                    /usr/local/cuda.
CMAKE_ARGS          additional arguments for CMake. The arguments below take precedence, except for
                    -DCMAKE_CUDA_ARCHITECTURES=..., which defaults to the GPUs that nvidia-smi lists or, without any,
                    to those of ARCHITECTURES that nvcc supports.
"""

from __future__ import annotations

import os
import re
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
fastmmd: the native code could not be built; see the messages above. Possible remedies:
  - a C++17 compiler with OpenMP, GCC 11 or Clang 14 or newer, and Python's headers
    (Debian, Ubuntu: apt install g++ python3-dev)
  - CXX=/path/to/compiler pip install ...      another compiler
  - FASTMMD_NATIVE=off pip install ...         the package without native code (slower: plain torch)"""
CUDA_REMEDY = """
  - nvcc of CUDA 12.4 or newer, and a C++ compiler that it supports: CUDAHOSTCXX=/path/to/compiler pip install ...
  - FASTMMD_CUDA=off pip install ...           the package without CUDA kernels (GPUs use Triton)"""
ARCHITECTURES = ("80", "86", "89", "90a", "100", "120")  # compute capabilities, where no GPU is visible
DRIVERS = {12: 525, 13: 580}  # the oldest for the CUDA runtime of each nvcc, which the kernels are linked with
CHOICES = {"FASTMMD_NATIVE": ("on", "off"), "FASTMMD_CUDA": ("auto", "on", "off")}


def choice(name: str, default: str) -> str:
    value = os.environ.get(name, default)
    if value not in CHOICES[name]:
        expected = " or ".join(f'"{allowed}"' for allowed in CHOICES[name])
        raise SystemExit(f"{name}: got {value!r}, expected {expected}")
    return value


def native_wanted() -> bool:
    return choice("FASTMMD_NATIVE", "on" if sys.platform == "linux" else "off") == "on"


def nvcc() -> str | None:
    """The compiler for the CUDA kernels, or None if they are not built."""
    wanted = choice("FASTMMD_CUDA", "auto")
    if wanted == "on" and not native_wanted():
        raise SystemExit("FASTMMD_CUDA=on: requires native code, but FASTMMD_NATIVE is off; set FASTMMD_NATIVE=on")
    if wanted == "off" or not native_wanted():
        return None
    given, home = os.environ.get("CUDACXX"), os.environ.get("CUDA_HOME")
    path = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/local/cuda/bin"
    compiler = shutil.which(given or "nvcc", path=f"{home}/bin" if home and not given else path)
    if compiler is None and (wanted == "on" or given):
        where = f"CUDACXX={given}" if given else f"CUDA_HOME={home}" if home else "the PATH and /usr/local/cuda/bin"
        raise SystemExit(
            f"FASTMMD_CUDA={wanted}: no nvcc in {where}; install the NVIDIA CUDA toolkit, set "
            "CUDA_HOME=/path/to/cuda, or build without CUDA kernels: FASTMMD_CUDA=off"
        )
    return compiler


def architectures(compiler: str) -> str:
    """The value of CMAKE_CUDA_ARCHITECTURES: machine code for the visible GPUs or, without any, for those of
    ARCHITECTURES that the compiler supports, plus PTX for the newest. Drivers compile PTX for GPUs that are newer than
    the compiler."""
    specific = {name.rstrip("a"): name for name in ARCHITECTURES}
    known = re.findall(r"compute_(\d+)\b", output(compiler, "--list-gpu-arch")) or list(specific)
    visible = output("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader").replace(".", "").split()

    def translated(name: str) -> str:
        return max((other for other in known if int(other) <= int(name)), key=int, default=name) + "-virtual"

    chosen = [
        f"{specific.get(name, name)}-real" if name in known else translated(name) for name in visible if name.isdigit()
    ]
    if not chosen:
        chosen = [f"{specific[name]}-real" for name in specific if name in known] + [translated(max(specific, key=int))]
    return ";".join(dict.fromkeys(chosen))


def older_driver(compiler: str) -> str | None:
    """That the driver of this machine, if it has one, is too old for kernels of this nvcc, and what to do."""
    release = re.search(r"release (\d+)\.", output(compiler, "--version"))
    driver = re.match(r"(\d+)[\d.]*", output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"))
    needed = DRIVERS.get(int(release[1])) if release else None
    if needed is None or driver is None or int(driver[1]) >= needed:
        return None
    older = max((cuda for cuda, oldest in DRIVERS.items() if int(driver[1]) >= oldest), default=None)
    other = f", or build with CUDACXX=/path/to/nvcc of CUDA {older}" if older else ""
    return (
        f"nvcc of CUDA {release[1]} makes kernels that need driver {needed} or newer; this machine's is {driver[0]}: "
        f"they will not run here. Update the driver{other}"
    )


def output(*command: str) -> str:
    """The standard output of a command, empty if it fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def tool(name: str) -> str:
    """The path of a build tool, on the PATH or next to the interpreter."""
    places = [os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")]
    return shutil.which(name, path=os.pathsep.join(places)) or name


def preprocess(compiler: str, folder: Path) -> None:
    """Preprocess an empty CUDA source to check that the compiler works."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "empty.cu").touch()
    host = os.environ.get("CUDAHOSTCXX")
    command = [compiler, *(["-ccbin", host] if host else []), "-E", str(folder / "empty.cu")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class PythonBuild(build_py):
    """Reports when no native code is built; CMake reports what it builds."""

    def run(self) -> None:
        if not native_wanted():
            print("fastmmd native parts: none (FASTMMD_NATIVE=off, the default outside Linux)", flush=True)
        super().run()


class CMakeBuild(build_ext):
    """Builds all extensions in one CMake run."""

    def build_extensions(self) -> None:
        import pybind11

        modules = [Path(self.get_ext_fullpath(extension.name)).resolve() for extension in self.extensions]
        target = modules[0].parent
        build = ROOT / "build" / "native"  # whose objects the C++ tests link as well
        shutil.rmtree(build, ignore_errors=True)  # never the cache of another compiler or interpreter
        cmake, given = tool("cmake"), os.environ.get("CMAKE_ARGS", "")
        configure = [
            cmake, "-S", str(ROOT / "csrc"), "-B", str(build), "-G", "Ninja",
            *shlex.split(given),
            "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DCMAKE_INSTALL_PREFIX={target}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DPYBIND11_FINDPYTHON=ON",
            f"-DFASTMMD_CUDA={'ON' if NVCC else 'OFF'}",
        ]  # fmt: skip
        if NVCC:
            if note := older_driver(NVCC):
                print(f"fastmmd native parts: {note}", flush=True)
            configure.append(f"-DCMAKE_CUDA_COMPILER={NVCC}")
            if "CMAKE_CUDA_ARCHITECTURES" not in given:
                configure.append(f"-DCMAKE_CUDA_ARCHITECTURES={architectures(NVCC)}")
        else:
            print("fastmmd native parts: no CUDA kernels (FASTMMD_CUDA=off, or no nvcc was found)", flush=True)
        remedy = REMEDY + (CUDA_REMEDY if NVCC else "")
        try:
            if NVCC:  # CMake does not report why nvcc fails, for example an unsupported host compiler
                preprocess(NVCC, build)
            subprocess.run(configure, check=True)
            subprocess.run([cmake, "--build", str(build), "--target", "install"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"{error}\n{remedy}") from None
        for module in modules:
            if not module.exists():  # never build a wheel without native code by accident
                raise SystemExit(f"CMake succeeded but left no {module}\n{remedy}")

    def copy_extensions_to_source(self) -> None:
        for stale in (ROOT / "fastmmd").glob("_cuda.*.so"):  # built from other sources or options
            stale.unlink()
        super().copy_extensions_to_source()


class BinaryDistribution(Distribution):
    """A wheel with native code is specific to a platform; without, it is pure."""

    def has_ext_modules(self) -> bool:
        return native_wanted()


NVCC = nvcc()
EXTENSIONS = ["fastmmd._native", *(["fastmmd._cuda"] if NVCC else [])] if native_wanted() else []
setup(
    ext_modules=[Extension(name, sources=[]) for name in EXTENSIONS],
    cmdclass={"build_py": PythonBuild, "build_ext": CMakeBuild},
    distclass=BinaryDistribution,
)
