"""Shared fixtures: the backends and the device under test, a quiet machine, hypothesis without deadlines."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: idle threads shall not spin on a busy machine

import interpreter
import pytest
import torch
from helpers import EMULATED, INTERPRETED
from hypothesis import HealthCheck, settings

import fastmmd
from fastmmd import backends

settings.register_profile(
    "fastmmd",
    deadline=None,
    max_examples=15,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("fastmmd")


#: Those that compile, train or start processes for long, the longest first.
SLOW_FILES = (
    "test_cuda_code", "test_triton_compile", "test_native_program", "test_dispatch", "test_labels",
    "test_mmd_products", "test_native", "test_operators", "test_experiments", "test_build", "test_closed_form",
    "test_cuda_build", "test_faults", "test_faults_files",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backends",
        default="reference,native",
        help="comma-separated backends under test; one that cannot run fails its tests, it is never skipped; "
        '"cuda": the CUDA kernels on the CPU, from the folder FASTMMD_CUDA_ON_HOST (make cuda-on-host)',
    )
    parser.addoption("--device", default="cpu", help="where the tensors of the tests of a backend are: cpu, cuda")


def pytest_configure(config: pytest.Config) -> None:
    if INTERPRETED:
        interpreter.patch_once()
        interpreter.patch_precision()


def pytest_collection_finish() -> None:
    """What torch and the test modules have made stays: a collector that walks it often takes a tenth of the time."""
    gc.collect()
    gc.set_threshold(50_000, 20, 100)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        names = metafunc.config.getoption("--backends").split(",")
        metafunc.parametrize("backend", names, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first, so that no worker waits for one at the end.

    Emulated kernels take seconds a test: only what asks for a backend runs there, and of each test those cases that
    have each value of each parameter once; all cases in test_quick.py, which is chosen that way by hand.
    """
    items.sort(key=lambda item: SLOW_FILES.index(name) if (name := item.path.stem) in SLOW_FILES else len(SLOW_FILES))
    if not EMULATED or config.getoption("--backends") not in ("triton", "cuda"):
        return
    kept = []
    for _, cases in itertools.groupby(items, key=lambda item: item.nodeid.split("[")[0]):
        tests = [case for case in cases if "backend" in getattr(case, "fixturenames", ()) or _of_one_backend(case)]
        kept += tests if tests and tests[0].path.stem == "test_quick" else covering(tests)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _of_one_backend(item: pytest.Item) -> bool:
    return item.path.stem in ("test_triton", "test_cuda")


def covering(cases: list[pytest.Item]) -> list[pytest.Item]:
    """Cases of one test in which each value of each of its parameters stands at least once, greedily few."""
    parameters = [getattr(case, "callspec", None) for case in cases]
    values = [{("", "")} if p is None else {(k, repr(v)) for k, v in p.params.items()} for p in parameters]
    chosen, missing = [], set().union(*values)
    while missing:
        best = max(range(len(cases)), key=lambda i: len(values[i] & missing))
        chosen.append(best)
        missing -= values[best]
    return [cases[i] for i in sorted(chosen)]


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where the tensors of a test are, by default those that it makes without a word. Draw on the CPU: `points`."""
    chosen = torch.device(request.config.getoption("--device"))
    if chosen.type == "cpu":  # which it is anyway; to say so costs time in every call of torch
        yield chosen
        return
    torch.set_default_device(chosen)
    yield chosen
    torch.set_default_device(None)


@pytest.fixture
def backend(request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the test on one backend by explicit choice, which never falls back."""
    name = request.param
    if name == "cuda":
        _register_cuda_on_host(monkeypatch)
        name = "native"
    with fastmmd.backend(name):
        yield name
    backends.select.cache_clear()


def _register_cuda_on_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend "native" on CPU tensors means the CUDA kernels, compiled for the CPU."""
    if "fastmmd._cuda" not in sys.modules:
        (path,) = Path(os.environ["FASTMMD_CUDA_ON_HOST"]).glob("_cuda*.so")
        spec = importlib.util.spec_from_file_location("fastmmd._cuda", path)
        assert spec is not None and spec.loader is not None
        sys.modules["fastmmd._cuda"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    package = backends.package
    on_host = {("native", "cpu"): package("native", "cuda")}
    monkeypatch.setattr(backends, "package", lambda *key: on_host.get(key) or package(*key))
    backends.select.cache_clear()


@pytest.fixture(autouse=True)
def _two_threads_and_a_seed() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
