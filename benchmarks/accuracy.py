"""Relative errors of mmd2 and of its gradient against float64 as MMD^2 shrinks: ours and the peers'.

    python benchmarks/accuracy.py

prints JSON: one row for each pair of samples and implementation. Two kinds of samples approach each other: independent
draws, one of them shifted (as in training: MMD^2 ends at the noise of the draws), and the same points, shifted.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import peers
from settings import DEVICE, SIX, SIZES

import torch  # isort: skip
from torch import Tensor

import fastmmd

IMPLEMENTATIONS = ("fastmmd", "eager", "KeOps", "GeomLoss")
DIM = 6


def samples(kind: str, shift: float) -> tuple[Tensor, Tensor]:
    """[N, D] twice, float32."""
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(SIZES.accuracy_n, DIM, generator=generator) for _ in range(2))
    y = (x if kind == "the same points" else other) + shift
    return x.to(DEVICE), y.to(DEVICE)


def measure() -> list[dict[str, Any]]:
    """The exact value, the relative error of the value, and the worst gradient row's error over the largest row."""
    rows = []
    for kind in ("independent draws", "the same points"):
        for shift in SIZES.shifts:
            x, y = samples(kind, shift)
            exact = peers.exact_value(x, y, SIX)
            exact_gradient = peers.exact_gradient(x, y, SIX, slice(None))
            largest = exact_gradient.norm(dim=1).max()
            x.requires_grad_()
            for implementation in IMPLEMENTATIONS:
                with peers.chosen(implementation, fastmmd.mmd2, peers.MMD2) as mmd2:
                    value, gradient = peers.value_and_gradient(mmd2, x, y, SIX)
                error = (gradient.double() - exact_gradient).norm(dim=1).max()
                rows.append(
                    {
                        "samples": kind,
                        "n": SIZES.accuracy_n,
                        "shift": shift,
                        "implementation": implementation,
                        "mmd2": exact,
                        "value_error": abs(value.item() - exact) / exact,
                        "gradient_error": (error / largest).item(),
                    }
                )
    return rows


if __name__ == "__main__":
    json.dump(measure(), sys.stdout)
