"""Building and packaging: what the build says, what the wheel and the source distribution hold."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import FULL

ROOT = Path(__file__).parent.parent
PACKAGED = [
    "csrc",
    "fastmmd",
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
]
linux = pytest.mark.skipif(sys.platform != "linux", reason="native code is built on Linux")
full = pytest.mark.skipif(not FULL, reason="builds everything; part of make test-full")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the sources, with folders that must stay out of the wheel."""
    tree = tmp_path / "source"
    tree.mkdir()
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for name in PACKAGED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, tree / name)
    for name in ("tests", "benchmarks", "python"):
        (tree / name).mkdir()
        (tree / name / "__init__.py").touch()
    return tree


def run(command: list[str], cwd: Path, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    """Without CUDA kernels unless the environment says so."""
    ours = ("FASTMMD_NATIVE", "CXX", "CUDACXX", "CUDA_HOME", "CMAKE_ARGS")
    inherited = {key: value for key, value in os.environ.items() if key not in ours}
    return subprocess.run(
        command, cwd=cwd, env=inherited | {"FASTMMD_CUDA": "off"} | environment, timeout=timeout,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def build(source: Path, kind: str, **environment: str) -> tuple[str, list[str]]:
    """Build a "wheel" or "sdist" into source/dist; returns what was printed and the names of its files."""
    hook = f"from setuptools import build_meta as b; print(b.build_{kind}('dist'))"
    done = run([sys.executable, "-c", hook], source, **environment)
    assert done.returncode == 0, done.stdout
    (file,) = (source / "dist").iterdir()
    if kind == "wheel":
        return done.stdout, zipfile.ZipFile(file).namelist()
    shutil.unpack_archive(file, source / "unpacked")
    (top,) = (source / "unpacked").iterdir()
    return done.stdout, [str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()]


def test_pure_python_wheel(source: Path) -> None:
    output, names = build(source, "wheel", FASTMMD_NATIVE="off")
    assert "fastmmd native parts: none" in output
    assert list((source / "dist").glob("*-py3-none-any.whl"))
    assert {name.split("/")[0] for name in names} == {"fastmmd", "fastmmd-0.1.0.dist-info"}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "fastmmd").rglob("*.py")}
    recipes = {str(path.relative_to(ROOT)) for path in (ROOT / "fastmmd").rglob("*.toml")}
    assert recipes
    assert {name for name in names if name.startswith("fastmmd/")} == modules | recipes | {"fastmmd/py.typed"}
    assert "fastmmd-0.1.0.dist-info/entry_points.txt" in names


def test_source_distribution_holds_the_native_sources(source: Path) -> None:
    _, names = build(source, "sdist")
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert sources <= set(names)
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md"} <= set(names)
    assert not [name for name in names if name.split("/")[0] in ("tests", "benchmarks", "python")]


@linux
@pytest.mark.parametrize("compiler", ["/bin/false", "/no/such/compiler"])
def test_broken_compiler_is_an_error_with_a_remedy(source: Path, compiler: str) -> None:
    done = run([sys.executable, "setup.py", "build_ext"], source, CXX=compiler)
    assert done.returncode != 0
    assert compiler in done.stdout, "the compiler's part of the message"
    for remedy in ("apt install g++ python3-dev", "CXX=", "FASTMMD_NATIVE=off"):
        assert remedy in done.stdout
    assert not list(source.rglob("*.so"))


@linux
def test_failing_compilation_is_an_error(source: Path) -> None:
    """The compiler works and the source does not: its message arrives, and the status."""
    for path in (source / "csrc" / "cpu").rglob("*.cpp"):
        path.write_text("#error a line of no use\n")
    done = run([sys.executable, "setup.py", "build_ext"], source)
    assert done.returncode != 0
    assert "a line of no use" in done.stdout
    assert "FASTMMD_NATIVE=off" in done.stdout


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """The first folder of the PATH in `asked`: a CMake that says what it was asked for and does nothing."""
    script(tmp_path / "bin" / "cmake", 'echo "asked: $*"')
    return tmp_path / "bin"


def script(path: Path, *lines: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


def asked(source: Path, tools: Path, **environment: str) -> tuple[list[str], str]:
    """What setup.py asks CMake to configure, and all that it prints."""
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    done = run([sys.executable, "setup.py", "build_ext"], source, **{"PATH": path} | environment)
    assert done.returncode != 0, "nothing was built"
    (line,) = (line for line in done.stdout.splitlines() if "asked:" in line and "-S" in line)
    return line.split(), done.stdout


@linux
def test_build_that_leaves_no_module_is_an_error(source: Path, tools: Path) -> None:
    """What CMake is asked for ends with our own settings."""
    options, output = asked(source, tools, CMAKE_ARGS="-DCMAKE_INSTALL_PREFIX=/elsewhere")
    assert "left no" in output and "FASTMMD_NATIVE=off" in output
    prefixes = [option for option in options if "-DCMAKE_INSTALL_PREFIX=" in option]
    assert prefixes[0].endswith("/elsewhere") and len(prefixes) == 2


# --- which CUDA kernels are built, with an nvcc that only lists what it knows ---

NEWER = "80 86 87 89 90 100 103 110 120 121"  # than this package
OLDER = "50 60 70 75 80 86 87 89 90"
ALL = "80-real;86-real;89-real;90a-real"


@linux
@pytest.mark.parametrize(
    ("known", "gpus", "expected"),
    [
        (NEWER, "", f"{ALL};100-real;120-real;120-virtual"),
        (OLDER, "", f"{ALL};90-virtual"),
        (NEWER, "9.0 9.0", "90a-real"),
        (NEWER, "8.6 8.0", "86-real;80-real"),
        (OLDER, "10.3", "90-virtual"),  # newer than nvcc: the driver translates
        (NEWER, "[N/A]", f"{ALL};100-real;120-real;120-virtual"),
        ("", "8.9", "89-real"),  # an nvcc that does not say what it knows
    ],
)
def test_architectures(source: Path, tools: Path, known: str, gpus: str, expected: str) -> None:
    script(
        tools / "nvcc",
        *(f"echo compute_{name}" for name in known.split()),
        f'[ -n "{known}" ] || [ "$1" != --list-gpu-arch ]',
    )
    script(tools / "nvidia-smi", *(f'echo "{gpu}"' for gpu in gpus.split()), "true" if gpus else "exit 9")
    options, _ = asked(source, tools, FASTMMD_CUDA="auto")
    assert f"-DCMAKE_CUDA_COMPILER={tools / 'nvcc'}" in options and "-DFASTMMD_CUDA=ON" in options
    assert [option for option in options if "ARCHITECTURES" in option] == [f"-DCMAKE_CUDA_ARCHITECTURES={expected}"]


@linux
@pytest.mark.parametrize(
    ("release", "driver", "needed"),
    [("13.0", "570.86.15", "580"), ("12.8", "470.57", "525"), ("13.0", "580.65", ""), ("12.8", "570.86", ""),
     ("13.0", "", ""), ("", "470.57", "")],
)  # fmt: skip
def test_driver_too_old_for_nvcc(source: Path, tools: Path, release: str, driver: str, needed: str) -> None:
    """Said before minutes of compiling; without a driver, as in a container that builds for others, nothing is."""
    script(
        tools / "nvcc",
        "echo compute_90",
        f'[ "$1" = --version ] && echo "tools, release {release}, V1"' * bool(release),
        "true",
    )
    script(tools / "nvidia-smi", f'case "$1" in *driver_version) echo "{driver}";; esac')
    _, output = asked(source, tools, FASTMMD_CUDA="on")
    said = [line for line in output.splitlines() if "need driver" in line]
    assert bool(said) == bool(needed)
    if needed:
        assert f"driver {needed} or newer; this machine's is {driver}" in said[0] and "Update the driver" in said[0]
        assert ("or build with CUDACXX=/path/to/nvcc of CUDA 12" in said[0]) == (driver == "570.86.15")


@linux
def test_given_architectures(source: Path, tools: Path) -> None:
    script(tools / "nvcc", "echo compute_90")
    given = "-DCMAKE_CUDA_ARCHITECTURES=90"
    options, _ = asked(source, tools, FASTMMD_CUDA="on", CMAKE_ARGS=given)
    assert [option for option in options if "ARCHITECTURES" in option] == [given]


@linux
def test_without_nvcc(source: Path, tools: Path) -> None:
    """`auto` says that it builds no CUDA kernels; `on`, and a compiler given by name, are errors with a remedy."""
    options, output = asked(source, tools, FASTMMD_CUDA="auto", CUDA_HOME="/no/such")
    assert "-DFASTMMD_CUDA=OFF" in options and "no CUDA kernels" in output
    for environment in (
        {"FASTMMD_CUDA": "on", "CUDA_HOME": "/no/such"},
        {"FASTMMD_CUDA": "auto", "CUDACXX": "/no/such"},
    ):
        done = run([sys.executable, "setup.py", "--version"], source, **environment)
        assert done.returncode != 0 and "no nvcc in" in done.stdout and "=/no/such" in done.stdout
        assert "CUDA_HOME=/path/to/cuda" in done.stdout and "FASTMMD_CUDA=off" in done.stdout


@linux
def test_where_nvcc_is_looked_for(source: Path, tools: Path, tmp_path: Path) -> None:
    """CUDACXX before CUDA_HOME before the PATH."""
    for place in (tools, tmp_path / "home" / "bin", tmp_path / "given"):
        place.parent.mkdir(exist_ok=True)
        script(place / "nvcc", "true")
    environment = {"FASTMMD_CUDA": "auto"}
    for more, expected in (
        ({}, tools / "nvcc"),
        ({"CUDA_HOME": str(tmp_path / "home")}, tmp_path / "home" / "bin" / "nvcc"),
        ({"CUDACXX": str(tmp_path / "given" / "nvcc")}, tmp_path / "given" / "nvcc"),
    ):
        environment |= more
        assert f"-DCMAKE_CUDA_COMPILER={expected}" in asked(source, tools, **environment)[0]


def test_cuda_without_native_code_is_an_error(source: Path) -> None:
    done = run([sys.executable, "setup.py", "--version"], source, FASTMMD_NATIVE="off", FASTMMD_CUDA="on")
    assert done.returncode != 0 and "FASTMMD_NATIVE is off" in done.stdout


@linux
def test_failing_nvcc_is_an_error_with_a_remedy(source: Path, tmp_path: Path) -> None:
    """Never skipped, though `auto` would have built nothing without one."""
    script(tmp_path / "bin" / "nvcc", 'echo "a toolkit of no use" >&2', "exit 1")
    done = run([sys.executable, "setup.py", "build_ext"], source, FASTMMD_CUDA="auto", CUDA_HOME=str(tmp_path))
    assert done.returncode != 0 and "a toolkit of no use" in done.stdout
    assert "CUDAHOSTCXX=" in done.stdout and "FASTMMD_CUDA=off" in done.stdout


@linux
def test_module_of_an_earlier_build_goes(source: Path, tools: Path) -> None:
    """It would fit neither the Python code nor the choice of now."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    made = f'mkdir -p "${{a#*=}}" && touch "${{a#*=}}/_native{suffix}"'
    script(tools / "cmake", f'for a; do case "$a" in -DCMAKE_INSTALL_PREFIX=*) {made};; esac; done')
    earlier = source / "fastmmd" / "_cuda.cpython-30-x86_64-linux-gnu.so"
    earlier.touch()
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    done = run([sys.executable, "setup.py", "build_ext", "--inplace"], source, PATH=path)
    assert done.returncode == 0, done.stdout
    assert (source / "fastmmd" / f"_native{suffix}").exists() and not earlier.exists()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="looks at the instruction sets of x86-64")
def test_flags_of_the_user_do_not_reach_the_kernels(tmp_path: Path) -> None:
    """-ffast-math would drop NaN, and -march=native would put AVX into the baseline."""
    pybind11 = pytest.importorskip("pybind11")
    command = [
        "cmake", "-S", str(ROOT / "csrc"), "-B", str(tmp_path), "-G", "Ninja", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}",
        "-DPYBIND11_FINDPYTHON=ON",
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = run(command, tmp_path, PATH=path, CXXFLAGS="-Ofast -ffast-math -mavx512f -march=native")
    assert done.returncode == 0, done.stdout
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    kernels = [shlex.split(entry["command"]) for entry in commands if entry["file"].endswith("elementwise.cpp")]
    assert len(kernels) == 3
    macros = {}
    for words in kernels:
        (isa,) = (word.split("=")[1] for word in words if word.startswith("-DFASTMMD_ISA="))
        macros[isa] = run([*words[: words.index("-o")], "-dM", "-E", words[-1]], tmp_path).stdout
        assert "FASTMMD_ISA" in macros[isa] and "__FAST_MATH__" not in macros[isa]
    assert {isa: ("__AVX__" in names, "__AVX512F__" in names) for isa, names in macros.items()} == {
        "baseline": (False, False),
        "avx2": (True, False),
        "avx512": (True, True),
    }


COMPILER = shutil.which(os.environ.get("CXX", "g++"))


@pytest.mark.skipif(COMPILER is None, reason="no compiler")
def test_fast_math_is_refused() -> None:
    command = [
        str(COMPILER), "-std=c++17", "-fsyntax-only", "-w", "-ffast-math", "-DFASTMMD_ISA=baseline",
        "csrc/cpu/elementwise.cpp",
    ]  # fmt: skip
    done = run(command, ROOT)
    assert done.returncode != 0 and "-ffast-math" in done.stdout
    command.remove("-ffast-math")
    assert run(command, ROOT).returncode == 0


@pytest.mark.skipif(COMPILER is None or shutil.which("nm") is None, reason="no compiler or no nm")
def test_kernels_leave_no_weak_symbols(tmp_path: Path) -> None:
    """One function shared between instruction sets, and the linker may keep AVX-512 code for the baseline."""
    sources = {
        "mmd2": "mmd/mmd", "witness": "mmd/witness", "fourier_sum": "fourier/sum",
        "fourier_function": "fourier/function", "parzen": "parzen/parzen", "elementwise": "elementwise",
    }  # fmt: skip
    for name, source in sources.items():
        command = [
            str(COMPILER), "-std=c++17", "-O0", "-w", "-c", "-fopenmp", "-DFASTMMD_ISA=baseline",
            str(ROOT / "csrc" / "cpu" / f"{source}.cpp"), "-o", str(tmp_path / "kernels.o"),
        ]  # fmt: skip
        assert run(command, tmp_path).returncode == 0
        symbols = run(["nm", "-C", "--defined-only", str(tmp_path / "kernels.o")], tmp_path).stdout.splitlines()
        assert [line for line in symbols if f"baseline::{name}" in line or " T " in line]
        weak = [line for line in symbols if line.split()[1] in "WVu" and "DW.ref." not in line]  # data of exceptions
        assert not weak


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FASTMMD_NATIVE", "maybe", "FASTMMD_NATIVE: got 'maybe'"),
        ("FASTMMD_CUDA", "maybe", "FASTMMD_CUDA: got 'maybe'"),
    ],
)
def test_unusable_choice_is_an_error(source: Path, name: str, value: str, message: str) -> None:
    done = run([sys.executable, "setup.py", "--version"], source, **{name: value})
    assert done.returncode != 0
    assert message in done.stdout


@pytest.fixture
def fresh_python(tmp_path: Path) -> Iterator[Path]:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    yield tmp_path / "venv" / "bin" / "python"


@full
@pytest.mark.timeout(600)
def test_source_distribution_builds_a_native_wheel_elsewhere(source: Path, fresh_python: Path, tmp_path: Path) -> None:
    """With build isolation and no torch anywhere."""
    build(source, "sdist")
    (archive,) = (source / "dist").iterdir()
    command = [
        str(fresh_python),
        "-m",
        "pip",
        "wheel",
        "-v",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(archive),
    ]
    done = run(command, tmp_path, timeout=500)
    assert done.returncode == 0, done.stdout
    assert "fastmmd native parts: CPU kernels" in done.stdout
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.startswith("fastmmd/_native.") and name.endswith(".so")]
    assert {name.split("/")[0] for name in names} == {"fastmmd", "fastmmd-0.1.0.dist-info"}
