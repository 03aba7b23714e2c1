"""What gpu_times.py times: sizes, rotating inputs, a call, and its check against float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from settings import DEVICE, SIGMAS, SIX, wide_bandwidth  # isort: skip  before torch

import peers
import torch
from gpu_clock import INPUTS, Result
from torch import Tensor

import fastmmd

F64 = torch.float64
LADDER = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # too narrow to fold into a series
TABLES = {"mmd2": peers.MMD2, "parzen": peers.DENSITY, "fourier_mean": peers.FOURIER_MEAN}
LEFT_OUT = ("GeomLoss", "scikit-learn")


@dataclass(frozen=True)
class Case:
    """An operation and its sizes. N = M; Parzen windows at D = 784, with ten sigmas."""

    operation: str
    n: int
    dim: int = 6
    bandwidths: str = "six"  # "six": the papers', "ladder", "wide": one at the scale of the distances
    dtype: str = "float32"
    gradient: str = "x"  # "x", "bandwidths"
    classes: int = 0  # of labels; 0: none
    count: int = 0  # random features
    counted: tuple[str, ...] = ()  # cases of cuda_report.py that say what the kernels need at least

    def __str__(self) -> str:
        """The operation and what differs from the defaults, on one line."""
        shown = [
            f for f in fields(self) if f.name not in ("operation", "counted") and getattr(self, f.name) != f.default
        ]
        return " ".join([self.operation, *(f"{f.name}={getattr(self, f.name)}" for f in shown)])

    @property
    def peers(self) -> list[str]:
        """Which of the peers have the operation."""
        plain = self.classes == 0 and self.gradient == "x" and self.dtype == "float32"
        return [name for name in TABLES[self.operation] if plain and name not in LEFT_OUT]

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Case:
        """The inverse of `dataclasses.asdict` and JSON."""
        return cls(**values | {"counted": tuple(values.get("counted", ()))})


SIZES = (
    Case("mmd2", 1000),
    Case("mmd2", 8192, counted=("mmd2-8192",)),
    Case("mmd2", 65536, counted=("mmd2-65536",)),
    Case("parzen", 10_000, dim=784, counted=("parzen",)),
    Case("fourier_mean", 65536, count=4096, counted=("fourier", "fourier-backward")),
    Case("mmd2", 8192, bandwidths="ladder"),
    Case("mmd2", 8192, dim=16),
    Case("mmd2", 4096, dim=64, bandwidths="wide"),
    Case("mmd2", 4096, dim=784, bandwidths="wide"),
    Case("mmd2", 4096, dtype="float64"),
    Case("mmd2", 8192, gradient="bandwidths"),
    Case("mmd2", 8192, classes=10),
)
SMALL = (
    Case("mmd2", 300),
    Case("mmd2", 100, dim=20, bandwidths="ladder", dtype="float64"),
    Case("mmd2", 100, gradient="bandwidths"),
    Case("mmd2", 100, classes=3),
    Case("parzen", 100, dim=784),
    Case("fourier_mean", 300, count=64),
)


@dataclass(frozen=True)
class Problem:
    """Inputs that rotate; the call; errors of its result for the input of that number, asserted."""

    inputs: Sequence[Any]
    call: Callable[[Any], Result]
    check: Callable[[Result, int], dict[str, float]]


def problem(case: Case, implementation: str, function: Callable[..., Tensor]) -> Problem:
    """Of `function`, fastmmd's or that of the peer `implementation`."""
    return PROBLEMS[case.operation](case, implementation, function)


def _mmd2(case: Case, implementation: str, function: Callable[..., Tensor]) -> Problem:
    bandwidths = {"six": SIX, "ladder": LADDER, "wide": wide_bandwidth(case.dim)}[case.bandwidths]
    plain = case.classes == 0 and case.gradient == "x"

    def given(seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        x, y = (points.to(dtype) for points in peers.two_samples(case.n, case.n, case.dim, seed))
        scales = torch.tensor(bandwidths, dtype=F64, device=DEVICE)
        return x.clone().requires_grad_(case.gradient == "x"), y, scales.requires_grad_(case.gradient != "x")

    labels = torch.arange(case.n, device=DEVICE) % max(1, case.classes)
    named = {"x_labels": labels, "y_labels": labels, "class_weights": (1.0,) * case.classes} if case.classes else {}

    def call(points: tuple[Tensor, Tensor, Tensor], function: Callable[..., Tensor] = function) -> Result:
        x, y, scales = points
        value = function(x, y, bandwidths if case.gradient == "x" else scales, **named)
        return value.detach(), *torch.autograd.grad(value, x if case.gradient == "x" else scales)

    def check(result: Result, number: int) -> dict[str, float]:
        if plain:
            x, y, _ = given(number, F64 if case.dtype == "float64" else torch.float32)
            return peers.check_mmd2((result[0], result[1]), x, y, bandwidths, implementation, number)
        with fastmmd.backend("reference"):
            return differences(result, call(given(number, F64), fastmmd.mmd2), 2e-5)

    return Problem([given(seed, getattr(torch, case.dtype)) for seed in range(INPUTS)], call, check)


def _parzen(case: Case, implementation: str, function: Callable[..., Tensor]) -> Problem:
    def given(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        points, samples = (torch.rand(case.n, case.dim, generator=generator).to(DEVICE) for _ in range(2))
        return points, samples

    def check(result: Result, number: int) -> dict[str, float]:
        points, samples = given(number)
        some = slice(0, case.n, max(1, case.n // 50))
        exact = peers.parzen_log_likelihood(points[some].double(), samples.double(), SIGMAS)
        error = (result[0][:, some].double() - exact).abs().max().item()
        assert error <= (0.1 if implementation in peers.DENSITY else 0.005), error
        return {"value_error": error}

    return Problem([given(seed) for seed in range(INPUTS)], lambda points: (function(*points, SIGMAS),), check)


def _fourier_mean(case: Case, implementation: str, function: Callable[..., Tensor]) -> Problem:
    peer = implementation in peers.FOURIER_MEAN
    features = fastmmd.FourierFeatures(case.dim, case.count, seed=1)
    generator = torch.Generator().manual_seed(INPUTS)
    cotangent = torch.randn(2 * case.count, generator=generator).to(DEVICE)
    argument: Any = features.frequencies(device=DEVICE) if peer else features

    def given(seed: int) -> Tensor:
        return peers.two_samples(case.n, 1, case.dim, seed)[0].clone().requires_grad_()

    def call(x: Tensor, function: Callable[..., Tensor] = function, argument: Any = argument) -> Result:
        mean = function(x, argument)
        return mean.detach(), *torch.autograd.grad(mean @ cotangent.to(mean), x)

    def check(result: Result, number: int) -> dict[str, float]:
        x = given(number).detach().double().requires_grad_()
        with fastmmd.backend("reference"):
            frequencies = features.frequencies(device=DEVICE, dtype=F64)
        value, gradient = call(x, peers.fourier_mean, frequencies)
        errors = {
            "value_error": (result[0].double() - value).abs().max().item(),
            "gradient_error": ((result[1].double() - gradient).norm(dim=1).max() / gradient.norm(dim=1).max()).item(),
        }
        factor = 10 if peer else 1
        assert errors["value_error"] <= factor * 1e-6 and errors["gradient_error"] <= factor * 1e-5, errors
        return errors

    return Problem([given(seed) for seed in range(INPUTS)], call, check)


PROBLEMS = {"mmd2": _mmd2, "parzen": _parzen, "fourier_mean": _fourier_mean}


def differences(result: Result, expected: Result, most: float) -> dict[str, float]:
    """Of a value and of its gradient, relative to the largest number.

    Raises:
        AssertionError: one of them exceeds `most`.
    """
    names = ("value_error", "gradient_error")
    errors = {
        name: ((one.double() - other.double()).abs().max() / other.double().abs().max()).item()
        for name, one, other in zip(names, result, expected, strict=False)
    }
    assert all(error <= most for error in errors.values()), errors
    return errors
