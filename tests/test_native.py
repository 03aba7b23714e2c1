"""The compiled kernels as native code: instruction sets, threads, forks, precision."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import oracle
import pytest
import torch
from direct import native
from helpers import F32, F64, assert_close, points, positive
from torch import Tensor

import fastmmd
from fastmmd import _native
from fastmmd.backends import cpu
from fastmmd.backends.calls import Features
from fastmmd.backends.common import products
from fastmmd.kernels import Kernel

TESTS = Path(__file__).parent
SIGMAS = (0.3, 1.0, 2.5)
KERNELS = {
    "gaussian": (2.0, 5.0, 10.0, 20.0, 40.0, 80.0),
    "laplacian": (0.5, 1.0, 3.0),
    "imq": (0.7, 2.0),
    "rational_quadratic": (0.7, 2.0),
    "energy": (1.0,),
}


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    """torch fills the memory of empty() with NaN in this mode, so that an output nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def run_python(code: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=TESTS, env=os.environ | environment, timeout=timeout, capture_output=True, text=True,
    )  # fmt: skip


def features(count: int = 300, seed: int = 12345678901234, start: int = -7) -> Features:
    return Features(torch.tensor([seed, start]), count, (1.0, 2.0), (1.0, 0.5))


# --- every instruction set against dense float64 formulas


def check_against_formulas() -> None:
    """All operations in both dtypes; run in a process of its own for each instruction set."""
    for dtype in (F32, F64):
        for name, bandwidths in KERNELS.items():
            for n, m, dim in ((37, 53, 6), (300, 270, 3), (65, 21, 17)):
                x, y = (
                    points(n, dim, seed=1, dtype=F64),
                    points(m, dim, seed=2, scale=1.2, shift=0.3, dtype=F64),
                )
                check_mmd2(x.to(dtype).to(F64), y.to(dtype).to(F64), name, bandwidths, dtype)
        check_fourier(dtype)
        check_batches_of_nothing(dtype)
        for dim in (2, 40):
            check_parzen(points(70, dim, seed=3, dtype=dtype), points(1300, dim, seed=4, dtype=dtype))
    check_outliers()


def check_mmd2(x: Tensor, y: Tensor, name: str, bandwidths: tuple[float, ...], dtype: torch.dtype) -> None:
    s = torch.tensor(bandwidths, dtype=F64)
    leaves = [t.clone().requires_grad_() for t in (x, y, s)]
    expected = oracle.mmd2(leaves[0], leaves[1], leaves[2], name)
    gradients = torch.autograd.grad(expected, leaves, allow_unused=True)
    spec = Kernel(name, bandwidths, (1.0,) * len(bandwidths))
    needs = [True, True, False, False, True, False]
    value, g_x, g_y, _, _, g_s, _ = native.mmd2(x[None].to(dtype), y[None].to(dtype), None, None, spec, False, needs)
    assert_close(value[0].to(dtype), expected)
    assert_close(g_x[0], gradients[0], rows=True)
    assert_close(g_y[0], gradients[1], rows=True)
    if gradients[2] is not None:  # energy has no bandwidth
        assert_close(g_s[0], gradients[2], rtol={F32: 5e-6, F64: 1e-12}[dtype])


def check_fourier(dtype: torch.dtype) -> None:
    x, w, spec = (
        points(1, 700, 6, scale=3, dtype=dtype),
        positive(1, 700, seed=5, dtype=dtype) / 700,
        features(),
    )
    frequencies = native.fourier_frequencies(spec, 6, F64)
    scale = torch.tensor(spec.kernel_weights, dtype=F64).div(150).sqrt().repeat_interleave(150)
    leaf = x[0].to(F64).requires_grad_()
    phi = oracle.phi(leaf, frequencies, scale)
    coefficients = points(1, 600, seed=6, dtype=dtype)
    value, gradient = native.fourier_function(x, coefficients, spec, True, True)
    expected = phi @ coefficients[0].to(F64)
    bound = {F32: 1e-6, F64: 1e-14}[dtype] * (1 + float((x[0].to(F64) @ frequencies.T).abs().max()))
    assert_close(native.fourier_sum(x, w, spec)[0], w[0].to(F64) @ phi, rtol=bound)
    assert_close(value[0], expected, rtol=bound)
    assert_close(gradient[0], torch.autograd.grad(expected.sum(), leaf)[0], rtol=bound, rows=True)


def check_parzen(x: Tensor, samples: Tensor) -> None:
    minimum = torch.full((len(x),), float("inf"), dtype=F64)
    sums = torch.zeros(len(SIGMAS), len(x), dtype=F64)
    for part in samples.split(900):
        native.parzen_update(x, part, SIGMAS, minimum, sums)
    r = torch.cdist(x.to(F64), samples.to(F64)).square()
    rates = 0.5 / torch.tensor(SIGMAS, dtype=F64)[:, None].square()
    expected = torch.logsumexp(-r * rates[:, :, None], 2)
    assert_close(sums.log() - minimum * rates, expected, atol={F32: 5e-4, F64: 1e-11}[x.dtype])


def check_batches_of_nothing(dtype: torch.dtype) -> None:
    x, spec = points(0, 5, 3, dtype=dtype), Kernel("gaussian", (1.0,), (1.0,))
    assert native.mmd2(x, x, None, None, spec, False, [True] * 6)[1].shape == x.shape
    assert native.fourier_sum(x, points(0, 5, dtype=dtype), features()).shape == (0, 600)
    value, gradient = native.fourier_function(x, points(0, 600, dtype=dtype), features(), True, True)
    assert value.shape == (0, 5) and gradient.shape == x.shape
    nobody = points(2, 0, 3, dtype=dtype)
    assert (native.fourier_sum(nobody, points(2, 0, dtype=dtype), features()) == 0).all()
    assert native.fourier_function(nobody, points(2, 600, dtype=dtype), features(), True, True)[0].shape == (2, 0)
    for dim in (3, 40):
        minimum, sums = torch.full((4,), float("inf"), dtype=F64), torch.zeros(3, 4, dtype=F64)
        native.parzen_update(points(4, dim, dtype=dtype), points(0, dim, dtype=dtype), SIGMAS, minimum, sums)
        assert minimum.isinf().all() and (sums == 0).all()


def check_outliers() -> None:
    """One far point must not cost the gradients their digits; float32 against float64, which is tested above."""
    for bandwidths in ((80.0,), KERNELS["gaussian"]):
        spec = Kernel("gaussian", bandwidths, (1.0,) * len(bandwidths))
        for far in (1e2, 1e4):
            x, y, w, g = points(1, 2000, 6), points(1, 2000, 6, seed=1, shift=0.1), points(2000), points(2000, seed=2)
            x[0, 0] = far
            actual, expected = (
                (
                    *native.mmd2(x.to(t), y.to(t), None, None, spec, False, [True, True, False, False, False, False]),
                    *native.witness_backward(
                        g.to(t), x[0].to(t), y[0].to(t), w.to(t), spec, [True, True, False, False, False]
                    ),
                )
                for t in (F32, F64)
            )
            for i in (1, 2, 7, 8):
                assert_close(actual[i], expected[i], rows=True)


@pytest.mark.parametrize("capability", _native.capabilities())
def test_instruction_set_agrees_with_formulas(capability: str) -> None:
    code = f"""
import test_native, test_mmd_products
assert test_native._native.capability() == {capability!r}
test_native.check_against_formulas()
test_mmd_products.check_kernels()
"""
    done = run_python(code, FASTMMD_CPU_CAPABILITY=capability)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86-64 has three instruction sets, others the baseline")
def test_instruction_sets_of_x86() -> None:
    assert _native.capabilities()[0] == "baseline"
    assert "baseline, avx2, avx512" in _native.build_summary


@pytest.mark.parametrize("choice", ["sse9", "AVX2"])
def test_unusable_capability_is_an_error(choice: str) -> None:
    code = "import torch, fastmmd; fastmmd.mmd2(torch.randn(4, 2), torch.randn(4, 2))"
    done = run_python(code, FASTMMD_CPU_CAPABILITY=choice)
    assert done.returncode != 0
    assert f'ValueError: FASTMMD_CPU_CAPABILITY: got "{choice}"' in done.stderr
    assert "baseline" in done.stderr.splitlines()[-1]


# --- threads


def everything() -> list[Tensor]:
    """Outputs of all loops of our own, at sizes where every thread gets several tasks."""
    x, y = points(2, 301, 6), points(2, 277, 6, seed=1, scale=1.1)
    spec = Kernel("gaussian", KERNELS["gaussian"], (1.0,) * 6)
    out = [*native.mmd2(x, y, positive(2, 301) / 200, None, spec, True, [True] * 6)]
    p, s, w = points(500, 3, seed=2), points(900, 3, seed=3), points(900, seed=4)
    out += [
        native.witness(p, s, w, spec),
        *native.witness_backward(points(500, seed=5), p, s, w, spec, [True] * 5),
    ]
    out += [native.fourier_sum(points(1, 9000, 6), positive(1, 9000), features())]
    out += native.fourier_function(points(1, 150, 6), points(1, 12000), features(6000), True, True)
    out += [native.fourier_frequencies(features(5000), 6, F32)]
    minimum, sums = torch.full((500,), float("inf"), dtype=F64), torch.zeros(3, 500, dtype=F64)
    native.parzen_update(p, s, SIGMAS, minimum, sums)
    out += [minimum, sums, *native.parzen_backward(points(3, 500), p, s, SIGMAS, minimum, sums, [True, True])]
    return out


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_bits_do_not_depend_on_the_thread_count(threads: int) -> None:
    torch.set_num_threads(1)
    expected = everything()
    torch.set_num_threads(threads)
    for _ in range(3):
        for actual, wanted in zip(everything(), expected, strict=True):
            assert wanted.isfinite().all()
            assert torch.equal(actual, wanted)


def test_the_gil_is_released() -> None:
    """Another Python thread runs in the middle of a long call."""
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    x = points(1, 6000, 6)
    spec = Kernel("gaussian", KERNELS["gaussian"], (1.0,) * 6)
    begin = time.perf_counter()
    native.mmd2(x, x, None, None, spec, False, [True, True, False, False, False, False])
    length = time.perf_counter() - begin
    stop.set()
    thread.join()
    assert length > 0.02, "the call is too short to tell"
    assert any(begin + 0.2 * length < t < begin + 0.8 * length for t in ticks)


@pytest.mark.skipif(torch.__version__ < (2, 10), reason="torch carries a libgomp of another name")
def test_one_openmp_runtime() -> None:
    """In a process of its own: scikit-learn, which other tests use, loads one more."""
    code = """
import torch, fastmmd
fastmmd.mmd2(torch.randn(9, 2), torch.randn(9, 2))
maps = open("/proc/self/maps").read().splitlines()
runtimes = {line.split()[-1] for line in maps if "libgomp" in line or "libomp" in line or "libiomp" in line}
assert len(runtimes) == 1, runtimes
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


FORK = """
import os, signal, torch
import fastmmd
torch.set_num_threads(2)
x, y = torch.randn(700, 4), torch.randn(700, 4)
wide, features = torch.randn(600, 40), fastmmd.FourierFeatures(4, 256)
large = torch.randn(60_000, 4).bfloat16()  # torch's conversions are parallel as well
def use():
    torch.mm(torch.randn(500, 500), torch.randn(500, 500)).sum()  # torch's threads are running
    return [
        fastmmd.mmd2(x, y).sum().item(),
        fastmmd.parzen_log_likelihood(x, y, (0.5, 1.0)).sum(1).tolist(),
        fastmmd.parzen_log_likelihood(wide, wide + 1, (0.5, 1.0)).shape,
        fastmmd.fourier_mean(large, features).sum().item(),
        fastmmd.witness(x[:9], x, y).sum().item(),
    ]
torch.mm(torch.randn(500, 500), torch.randn(500, 500)).sum()
before = {before}
child = os.fork()
if child == 0:
    signal.alarm(20)
    value = use()
    os._exit(0 if before in (None, value) else 3)
status = os.waitpid(child, 0)[1]
assert status == 0, f"child: {{status}}"
assert before in (None, use())
"""


@pytest.mark.parametrize("before", ["use()", "None"], ids=["used before the fork", "first used after it"])
def test_fork(before: str) -> None:
    done = run_python(FORK.format(before=before))
    assert done.returncode == 0, done.stderr


# --- loading (what an import loads: test_import.py)


def test_reasons_name_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu.unavailable("cpu") is None
    assert "CPU tensors" in str(cpu.unavailable("cuda"))
    for error, remedy in (("libgomp.so.1: no such file", "apt install libgomp1"), ("bad ELF", "pip install")):
        monkeypatch.setattr(cpu.library, "load", Mock(side_effect=ImportError(error)))
        assert remedy in str(cpu.unavailable("cpu")) and error in str(cpu.unavailable("cpu"))
    monkeypatch.setattr(cpu.library.importlib.util, "find_spec", lambda name: None)
    for remedy in ("g++", "python3-dev", "pip install --force-reinstall --no-deps .", "--no-binary fastmmd"):
        assert remedy in str(cpu.unavailable("cpu"))


def test_capability_for_info() -> None:
    info = cpu.capability()
    assert info["capability"] in _native.capabilities()
    assert info["threads"] == torch.get_num_threads()
    assert "CPU kernels" in str(info["build"])


# --- precision of matrix products


def parzen(x: Tensor, samples: Tensor) -> Tensor:
    return fastmmd.parzen_log_likelihood(x, samples, SIGMAS)


def test_parzen_ignores_autocast_and_the_matmul_precision() -> None:
    x, samples = points(300, 64), points(500, 64, seed=1)
    with fastmmd.backend("native"):
        expected = parzen(x, samples)
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("medium")
            medium = parzen(x, samples)
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision(before)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            autocast = parzen(x, samples)
            assert torch.is_autocast_enabled("cpu")
    assert torch.equal(medium, expected)
    assert torch.equal(autocast, expected)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_precision_is_pinned_inside_and_restored_after_an_error(device: str) -> None:
    settings = {"cpu": torch.backends.mkldnn.matmul, "cuda": torch.backends.cuda.matmul}
    here, lower = settings[device], {"cpu": "bf16", "cuda": "tf32"}[device]
    before = here.fp32_precision
    here.fp32_precision = lower
    try:
        full = products.full_precision
        with pytest.raises(KeyError), full(device), full(device):
            assert here.fp32_precision == "ieee"
            raise KeyError
        assert here.fp32_precision == lower
    finally:
        here.fp32_precision = before


def test_parzen_accuracy_at_784_dimensions() -> None:
    """At most 0.005 nats per point against float64 and between partitions; points like centered images."""
    active = torch.rand(784, generator=torch.Generator().manual_seed(1)) < 0.3
    x, samples = (points(n, 784, seed=n, scale=0.35) * active for n in (600, 2500))
    sigmas = tuple(float(s) for s in np.logspace(-1, 0, 10))

    def sums(x: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
        minimum, sums = torch.full((len(x),), float("inf"), dtype=F64), torch.zeros(10, len(x), dtype=F64)
        for part in parts:
            native.parzen_update(x, part.contiguous(), sigmas, minimum, sums)
        return sums.log() - minimum * (0.5 / torch.tensor(sigmas, dtype=F64).square())[:, None]

    expected = torch.logsumexp(
        -torch.cdist(x.to(F64), samples.to(F64)).square()
        * (0.5 / torch.tensor(sigmas, dtype=F64).square())[:, None, None],
        2,
    )
    whole, parts = sums(x, (samples,)), sums(x, samples.split(701))
    assert_close(whole, expected, rtol=0, atol=0.005)
    assert_close(parts, whole, rtol=0, atol=0.005)
    assert_close(parts.mean(1), whole.mean(1), rtol=0, atol=1e-4)
