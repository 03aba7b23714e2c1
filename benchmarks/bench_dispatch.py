"""What a call costs beside its arithmetic: tensors of two numbers, from the operator down to the compiled kernel, and
batches of 16 to 64 points."""

from __future__ import annotations

import peers
import pytest
import torch
from settings import DEVICE, SIX, THREADS

import fastmmd
from fastmmd.backends import select
from fastmmd.backends.calls import Mmd2, Mmd2Inputs, Sample
from fastmmd.backends.cpu import library
from fastmmd.kernels import Kernel

BACKEND = peers.ours()[0]
FEATURES = fastmmd.FourierFeatures(1, 4)
PRIOR = fastmmd.priors.Gaussian(1)


def _points(**options):
    return torch.tensor([[0.3], [0.6]], device=DEVICE, **options)


OPERATORS = {
    "mmd2": lambda x: fastmmd.mmd2(x, _Y, SIX),
    "mmd2_to_prior": lambda x: fastmmd.mmd2_to_prior(x, PRIOR, SIX),
    "fourier_mean": lambda x: fastmmd.fourier_mean(x, FEATURES).sum(),
    "parzen_log_likelihood": lambda x: fastmmd.parzen_log_likelihood(x, _Y, 0.5).sum(),
    "textbook mmd2 in PyTorch": lambda x: peers.mmd2(x, _Y, SIX),
}
_Y = _points() + 0.1


@pytest.mark.parametrize("operator", OPERATORS)
def test_forward(benchmark, measure, operator):
    _measure(benchmark, measure, operator, "forward", lambda x: OPERATORS[operator](x), _points())


@pytest.mark.parametrize("operator", OPERATORS)
def test_forward_backward(benchmark, measure, operator):
    def run(x):
        return torch.autograd.grad(OPERATORS[operator](x), x)[0]

    _measure(benchmark, measure, operator, "forward+backward", run, _points(requires_grad=True))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("operator", ["mmd2", "textbook mmd2 in PyTorch"])
@pytest.mark.parametrize("n", [16, 32, 64])
def test_small_batches(benchmark, measure, n, operator, backward):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 8, generator=generator).to(DEVICE) for _ in range(2))
    function = {"mmd2": fastmmd.mmd2, "textbook mmd2 in PyTorch": peers.mmd2}[operator]

    def run(x):
        value = function(x, y, SIX)
        return torch.autograd.grad(value, x)[0] if backward else value

    layer = "forward+backward" if backward else "forward"
    group = f"dispatch, N=M={n}, D=8, {THREADS} threads"
    _measure(benchmark, measure, operator, f"{layer}, N={n}", run, x.requires_grad_(backward), group)


@pytest.mark.parametrize("layer", ["backend function", "compiled function"])
def test_layers_of_mmd2(benchmark, measure, monkeypatch, layer):
    """The backend's Python function, and what it calls, with the same arguments."""
    if layer == "compiled function" and (BACKEND, DEVICE) != ("native", "cpu"):
        pytest.skip(f"{BACKEND} on {DEVICE} ends elsewhere")
    x, y = _points()[None], _Y[None]
    kernel = Kernel("gaussian", SIX, (1.0,) * len(SIX))
    module = select(BACKEND, "mmd", DEVICE)

    def call():
        return module.mmd2(Mmd2(Sample(x), Sample(y), kernel, False, Mmd2Inputs(*[False] * 6)))

    if layer == "compiled function":
        calls = []
        compiled = library.load()
        function = compiled.mmd2
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "mmd2", lambda **fields: (calls.append(fields), function(**fields))[1])
            outputs = call()  # kept: the recorded addresses are theirs
        (fields,) = calls
        _measure(benchmark, measure, "mmd2", layer, lambda _: (function(**fields), outputs[0])[1], None)
    else:
        _measure(benchmark, measure, "mmd2", layer, lambda _: call()[0], None)


def _measure(benchmark, measure, operator, layer, run, x, group=f"dispatch, N=M=2, D=1, {THREADS} threads"):
    benchmark.group = group
    with fastmmd.backend(BACKEND):
        measure(
            lambda: run(x),
            lambda result: _finite(result),
            {"operation": "dispatch", "operator": operator, "layer": layer},
        )


def _finite(result):
    assert result.isfinite().all()
