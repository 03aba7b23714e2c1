"""mmd2: value and gradient, and the value alone."""

from __future__ import annotations

from functools import partial

import peers
import pytest
import torch
from settings import DEVICE, SIX, SIZES, wide_bandwidth

import fastmmd

WIDE = wide_bandwidth(784)


@pytest.mark.parametrize("n", SIZES.mmd2)
@pytest.mark.parametrize("implementation", peers.candidates(peers.MMD2))
def test_forward_backward(benchmark, measure, interleave, implementation, n):
    """torch.compile takes turns with ours as well: no drift of the machine, but caches that the other one filled."""
    if implementation == "GeomLoss" and n > 5000:
        pytest.skip("KeOps, six times over")
    benchmark.group = f"mmd2 forward+backward, D=6, six bandwidths, N=M={n}"
    if implementation == "torch.compile":
        _measure(partial(_in_turns, benchmark, interleave, n), implementation, n, 6, SIX)
    else:
        _measure(measure, implementation, n, 6, SIX)


def _in_turns(benchmark, interleave, n, function, check, case, compiles):
    benchmark.extra_info |= {"baseline": "fastmmd", **check(function())}
    x, y = peers.two_samples(n, n, 6)
    x = x.clone().requires_grad_()
    rounds = max(5, min(100, 10 * (4096 // n) ** 2))
    interleave(function, lambda: peers.value_and_gradient(fastmmd.mmd2, x, y, SIX), rounds, case)


BY_CLASS = {"mmd2 for each class": fastmmd.mmd2, "eager for each class": peers.mmd2}
CLASSES = 10


@pytest.mark.parametrize("implementation", [*peers.ours(), *BY_CLASS])
def test_labels(benchmark, measure, implementation):
    """Classes of unequal sizes, 1 to 3; beside one call a loop over the classes, which picks the points of each."""
    n = SIZES.labels
    benchmark.group = f"mmd2 forward+backward with labels, D=6, six bandwidths, N=M={n}, ten classes"
    x, y = peers.two_samples(n, n, 6)
    x = x.clone().requires_grad_()
    generator = torch.Generator().manual_seed(1)
    shares = torch.linspace(1, 3, CLASSES)
    labels = [torch.multinomial(shares, n, replacement=True, generator=generator).to(DEVICE) for _ in range(2)]

    def in_one_call(x, y, bandwidths):
        return fastmmd.mmd2(
            x, y, bandwidths, x_labels=labels[0], y_labels=labels[1], class_weights=(1 / CLASSES,) * CLASSES
        )

    def by_class(mmd2, x, y, bandwidths):
        each = [mmd2(x[labels[0] == c], y[labels[1] == c], bandwidths) for c in range(CLASSES)]
        return torch.stack(each).mean()

    def check(result):
        """Against the sum over the classes in float64."""
        exact = peers.value_and_gradient(
            partial(by_class, peers.mmd2), x.detach().double().requires_grad_(), y.double(), SIX
        )
        peer, sizes = implementation.startswith("eager"), [labels[0].bincount(), labels[1].bincount()]
        value_error, gradient_error = ((a - b).abs() for a, b in zip(result, exact, strict=True))
        additive = 2e-7 * len(SIX) / min(size.min().item() for size in sizes)
        assert value_error <= (1e-2 if peer else 1e-6) * exact[0] + additive
        largest = exact[1].norm(dim=1).max()
        assert gradient_error.norm(dim=1).max() <= (1e-2 if peer else 2e-6) * largest
        return {"value_error": (value_error / exact[0]).item()}

    case = {"operation": "mmd2 labels", "dim": 6, "n": n, "bandwidths": len(SIX), "classes": CLASSES}
    with peers.chosen(
        implementation, in_one_call, {name: partial(by_class, f) for name, f in BY_CLASS.items()}
    ) as mmd2:
        measure(lambda: peers.value_and_gradient(mmd2, x, y, SIX), check, case)


@pytest.mark.parametrize("implementation", peers.candidates(peers.MMD2, main=False))
def test_wide(benchmark, measure, implementation):
    if implementation == "KeOps":
        pytest.skip("takes minutes; the table of memory shows how long it was given")
    benchmark.group = f"mmd2 forward+backward, D=784, one bandwidth, N=M={SIZES.wide}"
    _measure(measure, implementation, SIZES.wide, 784, WIDE)


@pytest.mark.parametrize("dim", SIZES.wide_dims)
@pytest.mark.parametrize("implementation", [peers.ours()[0], "torch.compile"])
def test_dims(benchmark, measure, implementation, dim):
    benchmark.group = f"mmd2 forward+backward, D={dim}, one bandwidth, N=M={SIZES.wide}"
    _measure(measure, implementation, SIZES.wide, dim, wide_bandwidth(dim))


def _measure(measure, implementation, n, dim, bandwidths):
    x, y = peers.two_samples(n, n, dim)
    x = x.clone().requires_grad_()
    with peers.chosen(implementation, fastmmd.mmd2, peers.MMD2) as mmd2:
        warm = peers.warm_up(implementation, mmd2, dim, bandwidths)
        measure(
            lambda: peers.value_and_gradient(mmd2, x, y, bandwidths),
            lambda result: peers.check_mmd2(result, x, y, bandwidths, implementation),
            {"operation": "mmd2", "dim": dim, "n": n, "bandwidths": len(bandwidths)},
            compiles=not warm,
        )


@pytest.mark.parametrize("implementation", peers.candidates(peers.MMD2_VALUE, main=False))
def test_value(benchmark, measure, implementation):
    n = SIZES.mmd2_value
    benchmark.group = f"mmd2 without gradients, D=6, six bandwidths, N=M={n}"
    x, y = peers.two_samples(n, n, 6)

    def check(value):
        exact = peers.exact_value(x, y, SIX)
        tolerance = 1e-2 * exact if implementation in peers.MMD2_VALUE else 1e-6 * exact + 2e-7 * len(SIX) / n
        assert abs(value.item() - exact) <= tolerance
        return {"value_error": abs(value.item() - exact) / exact}

    with torch.no_grad(), peers.chosen(implementation, fastmmd.mmd2, peers.MMD2_VALUE) as mmd2:
        case = {"operation": "mmd2 value", "dim": 6, "n": n, "bandwidths": len(SIX)}
        measure(lambda: mmd2(x, y, SIX), check, case, compiles=implementation in peers.COMPILES)
