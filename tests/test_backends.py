"""Which backend runs: the override and its scope, explicit choices, the table of what is available."""

from __future__ import annotations

import importlib
import sys
import threading
from types import ModuleType

import pytest
import torch
from helpers import points, value_and_gradients
from torch import Tensor

import fastmmd
from fastmmd import backends
from fastmmd.backends import AUTOMATIC_ORDER, NAMES, current, select


class Recorder(ModuleType):
    """A backend that records its calls and lets the reference do the work."""

    def __init__(self, name: str = "fastmmd.backends.recorder") -> None:
        super().__init__(name)
        self.calls: list[str] = []
        self.reason: str | None = None

    def unavailable(self, device_type: str) -> str | None:
        return self.reason

    def module(self, operation: str) -> ModuleType:
        module = ModuleType(f"{self.__name__}.{operation}")
        reference = importlib.import_module(f"fastmmd.backends.reference.{operation}")

        def function(name: str) -> object:
            self.calls.append(name)
            assert not torch.is_autocast_enabled("cpu"), "backends run without autocast"
            return getattr(reference, name)

        module.__getattr__ = function  # type: ignore[method-assign]
        return module


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """In the place of native."""
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, recorder.__name__, recorder)
    for operation in ("mmd", "fourier", "parzen"):
        monkeypatch.setitem(sys.modules, f"{recorder.__name__}.{operation}", recorder.module(operation))
    package = backends.package
    monkeypatch.setattr(
        backends, "package", lambda name, device: recorder.__name__ if name == "native" else package(name, device)
    )
    select.cache_clear()
    return recorder


@pytest.fixture(autouse=True)
def _forget_choices() -> object:
    yield
    select.cache_clear()


def test_override_nests_and_restores() -> None:
    assert current() == "auto"
    with fastmmd.backend("reference"):
        assert current() == "reference"
        with fastmmd.backend("auto"):
            assert current() == "auto"
        assert current() == "reference"
        with pytest.raises(KeyError), fastmmd.backend("native"):
            assert current() == "native"
            raise KeyError
        assert current() == "reference"
    assert current() == "auto"


def test_override_belongs_to_its_thread() -> None:
    seen = []
    with fastmmd.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
        assert current() == "reference"
    assert seen == ["auto"]


@pytest.mark.parametrize("name", ["cpu", "Native", "", None])
def test_unknown_names(name: object) -> None:
    with pytest.raises(ValueError, match=f"backend: got {name!r}, expected one of .*auto.*native.*triton.*reference"):
        with fastmmd.backend(name):  # type: ignore[arg-type]
            pass
    assert current() == "auto"


def test_automatic_choice_takes_the_first_that_runs(recorder: Recorder) -> None:
    x, y = points(4, 2), points(3, 2, seed=1)
    fastmmd.mmd2(x, y)
    assert recorder.calls == ["mmd2"]
    with fastmmd.backend("reference"):
        fastmmd.mmd2(x, y)
    assert recorder.calls == ["mmd2"]
    recorder.reason = "no compiler"
    select.cache_clear()
    fastmmd.mmd2(x, y)
    assert recorder.calls == ["mmd2"]


def test_explicit_choice_never_falls_back(recorder: Recorder) -> None:
    x, y = points(4, 2), points(3, 2, seed=1)
    recorder.reason = "no compiler, install one"
    with fastmmd.backend("native"):
        for call in (
            lambda: fastmmd.mmd2(x, y),
            lambda: fastmmd.witness(x, x, y),
            lambda: fastmmd.fourier_mean(x, fastmmd.FourierFeatures(2, 4)),
            lambda: fastmmd.FourierFeatures(2, 4).frequencies(),
            lambda: fastmmd.parzen_log_likelihood(x, y, 1.0),
            lambda: fastmmd.ParzenEstimator(x, 1.0).update(y),
            lambda: fastmmd.mmd2_to_prior(x, fastmmd.priors.Gaussian(2)),
        ):
            with pytest.raises(RuntimeError, match='"native" cannot run .*no compiler, install one'):
                call()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, y: fastmmd.mmd2(x, y), ["mmd2"]),
        (lambda x, y: fastmmd.witness(x, x, y), ["witness", "witness_backward"]),
        (lambda x, y: fastmmd.fourier_mean(x, FEATURES) + y.sum(), ["fourier_sum", "fourier_function"]),
        (
            lambda x, y: fastmmd.fourier_function(x, y.flatten()[:8], FEATURES),
            ["fourier_function", "fourier_function", "fourier_sum"],
        ),
        (
            lambda x, y: fastmmd.fourier_discrepancy(x, y, torch.ones(4), FEATURES),
            ["fourier_discrepancy", "fourier_discrepancy_backward"],
        ),
        (lambda x, y: fastmmd.parzen_log_likelihood(x, y, 1.0), ["parzen_update", "parzen_backward"]),
    ],
)
def test_backward_runs_where_forward_ran(recorder: Recorder, function: object, expected: list[str]) -> None:
    """Whatever the override says by then, and without autocast."""
    x, y = points(6, 2).requires_grad_(), points(5, 2, seed=1).requires_grad_()
    with fastmmd.backend("native"), torch.autocast("cpu", torch.bfloat16):
        value = function(x, y).sum()
    with fastmmd.backend("reference"), torch.autocast("cpu", torch.bfloat16):
        value.backward()
    assert recorder.calls == expected
    recorder.calls.clear()
    with fastmmd.backend("reference"):
        value = function(x, y).sum()
    with fastmmd.backend("native"):
        value.backward()
    assert recorder.calls == []


FEATURES = fastmmd.FourierFeatures(2, 4)


def test_available_backends() -> None:
    table = fastmmd.available_backends()
    assert list(table) == list(NAMES) and set(AUTOMATIC_ORDER["cuda"]) == set(NAMES)
    assert table["reference"]["cpu"].available and table["reference"]["cpu"].reason is None
    for statuses in table.values():
        assert set(statuses) == {"cpu", "cuda"}
        for status in statuses.values():
            assert status.available == (status.reason is None)
            assert status.available or len(status.reason) > 20  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        assert all("no CUDA device" in statuses["cuda"].reason for statuses in table.values())
    for name, statuses in table.items():
        with fastmmd.backend(name):
            if statuses["cpu"].available:
                fastmmd.mmd2(points(3, 2), points(3, 2))
            else:
                with pytest.raises(RuntimeError) as caught:
                    fastmmd.mmd2(points(3, 2), points(3, 2))
                assert statuses["cpu"].reason in str(caught.value)


def test_backends_agree(backend: str) -> None:
    """The backend under test against the reference: where both run, they run the same thing."""

    def everything(x: Tensor, y: Tensor) -> Tensor:
        parts = [fastmmd.mmd2(x, y, (1.0, 2.0)), fastmmd.witness(x[:3], x, y, (2.0,)).sum()]
        parts += [fastmmd.fourier_mean(x, FEATURES).sum(), fastmmd.parzen_log_likelihood(x, y, 1.0).mean()]
        return torch.stack(parts)

    x, y = points(40, 2), points(35, 2, seed=1)
    value, gradients = value_and_gradients(everything, [x, y])
    with fastmmd.backend("reference"):
        expected, wanted = value_and_gradients(everything, [x, y])
    for result, want in zip([value, *gradients], [expected, *wanted], strict=True):
        torch.testing.assert_close(result, want, rtol=1e-5, atol=2e-5)


def test_a_bad_capability_is_listed_and_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device_type: str) -> str | None:
        raise ValueError("FASTMMD_CPU_CAPABILITY: got 'foo'")

    monkeypatch.setattr(backends.cpu, "unavailable", refuse)
    assert "FASTMMD_CPU_CAPABILITY" in str(fastmmd.available_backends()["native"]["cpu"].reason)
    select.cache_clear()
    with pytest.raises(ValueError, match="FASTMMD_CPU_CAPABILITY"):
        fastmmd.mmd2(points(4, 2), points(4, 2))
    select.cache_clear()


def test_triton_explains_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = importlib.import_module("fastmmd.backends.triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    select.cache_clear()
    x, y = points(4, 2), points(3, 2, seed=1)
    with fastmmd.backend("triton"), pytest.raises(RuntimeError, match="Triton compiles for GPUs.*TRITON_INTERPRET=1"):
        fastmmd.mmd2(x, y)
    assert "pass CUDA tensors" in triton.unavailable("mps")
    assert triton.unavailable("cuda") is None
    with monkeypatch.context() as older:
        older.setattr(importlib.import_module("triton"), "__version__", "3.6.0")
        assert "Triton 3.6.0 is installed, and 3.7 is needed; upgrade torch" in triton.unavailable("cuda")
    monkeypatch.setattr(triton, "find_spec", lambda name: None)
    assert triton.unavailable("cuda") == "Triton is not installed; pip install triton"
    fastmmd.mmd2(x, y)  # the automatic choice does not care


def test_every_gpu_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators make the device of their tensors the current one; the second here is too old for the kernels."""
    pytest.importorskip("triton")
    at = 0
    monkeypatch.setattr(
        backends, "_unavailable", lambda name, device: "too old" if name == "native" and at == 1 else None
    )
    select.cache_clear()
    chosen = []
    for at in (0, 1, 0):
        chosen.append(select("auto", "mmd", torch.device("cuda", at)).__name__.split(".")[2])
    assert chosen == ["cuda", "triton", "cuda"]
    with pytest.raises(RuntimeError, match="cannot run mmd on cuda: too old"):
        at = 1
        select("native", "mmd", torch.device("cuda", 1))
    select.cache_clear()
