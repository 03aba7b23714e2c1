"""What Python hands to the compiled module: calls whose fields are checked by name and by value."""

from __future__ import annotations

import pytest
import torch
from direct import native
from helpers import points
from test_native import features

from fastmmd import _native
from fastmmd.backends.calls import Features
from fastmmd.kernels import Kernel


def test_arguments_that_would_leave_memory_are_errors() -> None:
    """What the operators rule out; whoever calls a backend directly gets an error, not a crash."""
    x, w = points(1, 5, 3), points(1, 5)
    with pytest.raises(ValueError, match="point"):
        native.mmd2(points(1, 0, 3), x, None, None, Kernel("imq", (1.0,), (1.0,)), False, [True] * 6)
    with pytest.raises(ValueError, match="point"):
        native.witness(x[0], points(0, 3), w[0, :0], Kernel("imq", (1.0,), (1.0,)))
    for count, bandwidths in ((7, (1.0, 2.0)), (0, (1.0,)), (8, ()), (1, (1.0, 2.0))):
        with pytest.raises(ValueError, match="count|features"):
            native.fourier_sum(x, w, Features(torch.tensor([0, 0]), count, bandwidths, (1.0,) * len(bandwidths)))
    with pytest.raises(ValueError, match="dim"):
        native.fourier_sum(points(1, 5, 0), w, features())
    with pytest.raises(TypeError, match="Kernel.family: got 'cosine': unknown family"):
        native.witness(x[0], x[0], w[0], Kernel("cosine", (1.0,), (1.0,)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_double": 4}, "fourier_frequencies.is_double: got 4"),  # a number where the flag belongs
        ({"dim": 2.5}, "fourier_frequencies.dim: got 2.5"),
        ({"out": None, "outs": 0}, "expected the fields is_double threads dim features out; got"),
        ({"features": {"key": 0, "count": 8}}, "Features: expected the fields key count bandwidths kernel_weights"),
        ({"features": (0, 8, (1.0,), (1.0,))}, "expected a dict of the fields of Features"),
        ({"features": {"key": "k", "count": 8, "bandwidths": (1.0,), "kernel_weights": (1.0,)}}, "Features.key"),
        ({"features": {"key": 0, "count": 8, "bandwidths": 1.0, "kernel_weights": (1.0,)}}, "Features.bandwidths"),
        ({"features": {"key": 0, "count": 8, "bandwidths": ("s",), "kernel_weights": (1.0,)}}, "Features.bandwidths"),
    ],
)
def test_a_wrong_or_missing_field_is_an_error(changes: dict[str, object], message: str) -> None:
    out = torch.empty(8, 3)
    described = {"key": torch.zeros(2, dtype=torch.int64).data_ptr(), "count": 8}
    described |= {"bandwidths": (1.0,), "kernel_weights": (1.0,)}
    fields = {"is_double": False, "threads": 1, "dim": 3, "features": described, "out": out.data_ptr()}
    with pytest.raises(TypeError) as error:
        _native.fourier_frequencies(**(fields | changes))
    assert message in str(error.value)
    with pytest.raises(TypeError, match="expected the fields"):
        _native.fourier_frequencies(**{name: value for name, value in fields.items() if name != "threads"})
