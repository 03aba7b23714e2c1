"""Shared fixtures: the backends and the device under test, a quiet machine, hypothesis without deadlines."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: idle threads shall not spin on a busy machine

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backends",
        default="reference,native",
        help="comma-separated backends under test; one that cannot run fails its tests, it is never skipped; "
        '"cuda": the CUDA kernels on the CPU, from the folder FASTMMD_CUDA_ON_HOST (make cuda-on-host)',
    )
    parser.addoption("--device", default="cpu", help="where the tensors of the tests of a backend are: cpu, cuda")


def pytest_configure(config: pytest.Config) -> None:
    """The interpreter patches triton.language at each call of a function, half of its time; here once per function."""
    if INTERPRETED:
        interpreter = importlib.import_module("triton.runtime.interpreter")
        assert hasattr(interpreter, "_LangPatchScope"), "Triton has changed: the tests will be slow without this"
        interpreter._patch_lang = functools.cache(interpreter._patch_lang)
        interpreter._LangPatchScope.restore = lambda self: None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        names = metafunc.config.getoption("--backends").split(",")
        metafunc.parametrize("backend", names, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Emulated kernels take seconds a test: of each test those cases that have each value of each parameter once."""
    if not EMULATED or config.getoption("--backends") not in ("triton", "cuda"):
        return
    kept = [
        item
        for _, cases in itertools.groupby(items, key=lambda item: item.nodeid.split("[")[0])
        for item in covering(list(cases))
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


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
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the test on one backend by explicit choice, which never falls back, with new tensors on the device."""
    device = request.config.getoption("--device")
    if device != "cpu":
        for name in ("rand", "randn", "randint"):
            monkeypatch.setattr(torch, name, _drawn_on_cpu(getattr(torch, name)))
        numpy = torch.Tensor.numpy
        monkeypatch.setattr(torch.Tensor, "numpy", lambda tensor: numpy(tensor.cpu()))
        frequencies = fastmmd.FourierFeatures.frequencies
        monkeypatch.setattr(
            fastmmd.FourierFeatures,
            "frequencies",
            lambda self, device=device, dtype=None: frequencies(self, device, dtype),
        )
        torch.set_default_device(device)
    name = request.param
    if name == "cuda":
        _cuda_on_host(monkeypatch)
        name = "native"
    try:
        with fastmmd.backend(name):
            yield name
    finally:
        backends.select.cache_clear()
        torch.set_default_device(None)


def _cuda_on_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend "native" on CPU tensors means the CUDA kernels, compiled for the CPU."""
    if "fastmmd._cuda" not in sys.modules:
        (path,) = Path(os.environ["FASTMMD_CUDA_ON_HOST"]).glob("_cuda*.so")
        spec = importlib.util.spec_from_file_location("fastmmd._cuda", path)
        assert spec is not None and spec.loader is not None
        sys.modules["fastmmd._cuda"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    monkeypatch.setattr(backends, "package", lambda name, _: f"fastmmd.backends.{'cuda' if name == 'native' else name}")
    backends.select.cache_clear()


def _drawn_on_cpu(draw: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The numbers of a generator do not depend on the device."""

    def drawn(*shape: Any, generator: torch.Generator | None = None, **options: Any) -> torch.Tensor:
        if generator is None:
            return draw(*shape, **options)
        device = options.pop("device", None) or torch.get_default_device()
        return draw(*shape, generator=generator, device="cpu", **options).to(device)

    return drawn


@pytest.fixture(autouse=True)
def _two_threads_and_a_seed() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
