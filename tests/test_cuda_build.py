"""The CUDA module without a GPU: nvcc compiles it, it loads without torch, and it says what is missing."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from cuda_module import NVCC, architectures, built, configure, needs_nvcc, run
from helpers import FULL

import fastmmd
from fastmmd import backends
from fastmmd.backends import cuda
from fastmmd.backends.cuda import library

pytestmark = pytest.mark.timeout(900)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fastmmd._cuda", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path | None], None]]:
    """A function that puts a module, or none, in the place of fastmmd._cuda of a torch that sees a GPU."""
    find_spec = importlib.util.find_spec

    def install(path: Path | None) -> None:
        def find(name: str, *more: str) -> ModuleSpec | None:
            if name != "fastmmd._cuda":
                return find_spec(name, *more)
            return None if path is None else importlib.util.spec_from_file_location(name, path)

        def load() -> ModuleType:
            assert path is not None
            return loaded(path)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(importlib.util, "find_spec", find)
        monkeypatch.setattr(library, "load", load)
        backends.select.cache_clear()

    yield install
    backends.select.cache_clear()


def explanation() -> str:
    """Why native does not run on CUDA tensors: as listed, and as an explicit choice says it."""
    status = fastmmd.available_backends()["native"]["cuda"]
    assert not status.available and status.reason is not None
    with pytest.raises(RuntimeError) as caught:
        backends.select("native", "mmd", "cuda")
    assert status.reason in str(caught.value) and 'backend "native" cannot run mmd on cuda' in str(caught.value)
    return status.reason


@pytest.fixture(scope="module")
def module_path() -> Path:
    return built().module


@needs_nvcc
def test_compiles_and_links(capsys: pytest.CaptureFixture[str]) -> None:
    """For every architecture under test, and our sources give no warning."""
    module = built()
    with capsys.disabled():
        took = "as an earlier run" if module.seconds is None else f"in {module.seconds:.0f} s"
        print(f"\n[CUDA module for {', '.join(architectures())}: built {took}]")
    assert FULL == (len(architectures()) > 1)
    targets = set(re.findall(r"Compiling entry function '\w+' for 'sm_(\w+)'", module.log))
    assert targets == set(architectures())
    ours = [line for line in module.log.splitlines() if "csrc" in line and "warning" in line.lower()]
    assert not ours, ours


@needs_nvcc
def test_loads_alone(module_path: Path) -> None:
    """Without torch, without a GPU, without CUDA's libraries: the runtime is inside."""
    code = (
        "import importlib.util, sys; spec = importlib.util.spec_from_file_location('_cuda', sys.argv[1]);"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module);"
        "assert 'torch' not in sys.modules and 'fastmmd' not in sys.modules; print(module.build_summary)"
    )
    done = run([sys.executable, "-c", code, str(module_path)])
    assert done.returncode == 0, done.stdout
    version = re.search(r"release ([\d.]+)", subprocess.check_output([str(NVCC), "--version"], text=True))
    assert version is not None and f"nvcc {version[1]}" in done.stdout and "90a-real" in done.stdout
    needed = re.sub(r"\(0x\w+\)", "", run(["ldd", str(module_path)]).stdout)  # without addresses
    assert "libc.so" in needed and not re.search("cudart|libcuda|torch|c10", needed)


@no_gpu
@needs_nvcc
def test_says_that_there_is_no_device(module_path: Path, installed: Callable[[Path | None], None]) -> None:
    why = loaded(module_path).unusable()
    assert re.search(r"\(cudaError(InsufficientDriver|NoDevice)\)", why), why
    assert "no NVIDIA driver was found" in why or "Insufficient" not in why
    installed(module_path)
    assert explanation() == f"its CUDA kernels do not run here: {why}"


CALLS = {
    "mmd2": lambda x, y: fastmmd.mmd2(x, y),
    "witness": lambda x, y: fastmmd.witness(x, x, y),
    "fourier_mean": lambda x, y: fastmmd.fourier_mean(x, fastmmd.FourierFeatures(x.shape[1], 8)),
    "parzen": lambda x, y: fastmmd.parzen_log_likelihood(x, y, (0.5, 1.0)),
}


@no_gpu
@needs_nvcc
@pytest.mark.parametrize("dim", [3, 100])
@pytest.mark.parametrize("name", CALLS)
def test_launch_without_a_device_is_an_error(
    module_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dim: int
) -> None:
    """With the kernel and what CUDA says. The tensors are on the CPU, as nothing reads them."""
    monkeypatch.setitem(sys.modules, "fastmmd._cuda", loaded(module_path))
    monkeypatch.setattr(backends, "package", lambda name, _: "fastmmd.backends.cuda")
    monkeypatch.setattr(cuda, "unavailable", lambda device_type: None)
    for cached in (library.load, backends.select):
        cached.cache_clear()
    try:
        with fastmmd.backend("native"), pytest.raises(RuntimeError) as caught:
            CALLS[name](torch.randn(10, dim), torch.randn(20, dim))
    finally:
        for cached in (library.load, backends.select):
            cached.cache_clear()
    assert re.fullmatch(r"CUDA kernel \w[\w ]*: .+ \(cudaError(InsufficientDriver|NoDevice)\).*", str(caught.value))


def test_says_that_the_module_is_missing(installed: Callable[[Path | None], None]) -> None:
    installed(None)
    assert explanation().startswith("fastmmd was installed without its CUDA kernels; ")
    assert "FASTMMD_CUDA=on pip install" in explanation() and "nvcc" in explanation()


def test_says_that_the_module_cannot_be_loaded(installed: Callable[[Path | None], None], tmp_path: Path) -> None:
    broken = tmp_path / "_cuda.so"
    broken.write_text("not a library")
    installed(broken)
    assert explanation().startswith("its CUDA kernels cannot be loaded (") and "FASTMMD_CUDA=on" in explanation()


@no_gpu
def test_says_that_torch_sees_no_device() -> None:
    assert "torch sees no CUDA device" in explanation()


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build folder with the flags of a user in a hurry."""
    folder = tmp_path_factory.mktemp("build")
    flags = "-use_fast_math --use_fast_math -ftz=true -prec-div=false -prec-sqrt=false -fmad=false -Xcompiler=-Ofast"
    configure(folder, "90a-real", flags, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON")
    return folder


@needs_nvcc
def test_flags_of_the_user_do_not_reach_the_kernels(configured: Path) -> None:
    """Fast arithmetic would drop NaN and small numbers; separate roundings would be slower."""
    commands = json.loads((configured / "compile_commands.json").read_text())
    kernels = [entry["command"] for entry in commands if entry["file"].endswith(".cu")]
    assert len(kernels) >= 4
    for command in kernels:
        steps = run(["sh", "-c", command.replace("nvcc ", "nvcc --dryrun ", 1)]).stdout
        (device,) = (line for line in steps.splitlines() if "cicc" in line and "-arch" in line)
        assert "-ftz=0 -prec_div=1 -prec_sqrt=1 -fmad=1" in device and "fast-math" not in device
        hosts = [line for line in steps.splitlines() if "-c -x c++" in line]
        assert len(hosts) == 1 and hosts[0].rindex("-fno-fast-math") > hosts[0].rindex("-Ofast")


@needs_nvcc
@pytest.mark.parametrize("name", ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"])
def test_flags_behind_our_back_are_refused(configured: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """nvcc reads them itself, before or after ours."""
    monkeypatch.setenv(name, "--use_fast_math")
    with pytest.raises(AssertionError, match=r"change the arithmetic of the\s+kernels"):
        configure(configured, "90a-real", "")
