"""Launches of Triton kernels: how work is shared out, which configuration runs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import triton

from . import interpreted

MOST_SPLITS = 32  # partial results of an ordered reduction
PROGRAMS = 528  # worth having: four for each of the 132 multiprocessors of an H100 or H200
TUNED_PAIRS = 2**24  # fewer are done before a choice pays
FUSED = {"enable_fp_fusion": True}  # of every launch: Triton 3.10 and later round products on their own unless asked


def splits(programs: int, tiles: int) -> tuple[int, int]:
    """Parts into which `tiles` are shared out where there are so many programs without, and tiles of one, by sizes
    alone: the sums, and their order, depend on nothing else."""
    parts = max(1, min(MOST_SPLITS, tiles, -(-PROGRAMS // max(1, programs))))
    per_split = max(1, -(-tiles // parts))
    return -(-tiles // per_split), per_split


def tuned(kernel: Any, pairs: int, *choices: dict[str, int]) -> tuple[Any, dict[str, Any]]:
    """What to launch, and with which further options: the first choice, or for many pairs whichever is the fastest,
    found at the first launch for the dtype and the compile-time arguments.

    Choices differ in how many results a program holds, or in loads in flight, and order no sum: results do not depend
    on them.
    """
    if pairs < TUNED_PAIRS or len(choices) == 1 or interpreted():
        return kernel, choices[0] | FUSED
    return _tuner(kernel, tuple(tuple(choice.items()) for choice in choices)), dict(FUSED)


def stages(warps: int, products: bool) -> list[dict[str, int]]:
    """Choices for a kernel, with products by how many of their tiles are loaded ahead: as the target likes it, or 4."""
    if products and not interpreted():  # AMD's shared memory has room for no more
        products = triton.runtime.driver.active.get_current_target().backend == "cuda"
    return [{"num_warps": warps}, {"num_warps": warps, "num_stages": 4}][: 1 + products]


@lru_cache
def _tuner(kernel: Any, choices: tuple[tuple[tuple[str, int], ...], ...]) -> Any:
    configurations = []
    for choice in map(dict, choices):
        options = {name: choice.pop(name) for name in ("num_warps", "num_stages") if name in choice}
        configurations.append(triton.Config(choice, **options))
    known = configurations[0].kwargs
    key = [parameter.name for parameter in kernel.params if parameter.is_constexpr and parameter.name not in known]
    return triton.autotune(configurations, key=key)(kernel)
