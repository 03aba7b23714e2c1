"""mmd2 and witness on fused Triton kernels."""

from __future__ import annotations

from torch import Tensor

from ...calls import Mmd2, Mmd2Inputs, Witness, WitnessBackward, WitnessInputs
from ...common import mmd as common
from .statistics import Cloud
from .sums import sum_rows


def mmd2(call: Mmd2) -> tuple[Tensor, Mmd2Inputs[Tensor]]:
    """Value [B] in float64 and six gradients; see `calls.MmdBackend.mmd2`."""
    return common.mmd2(sum_rows, Cloud, call)


def witness(call: Witness) -> Tensor:
    """sum_j weights_j u(points_i, samples_j): [P]."""
    return common.witness(sum_rows, Cloud, call)


def witness_backward(call: WitnessBackward) -> WitnessInputs[Tensor]:
    """The five gradients of grad . witness; see `calls.MmdBackend.witness_backward`."""
    return common.witness_backward(sum_rows, Cloud, call)
