"""What every benchmark shares: threads, device, folders, and the sizes of the quick and of the full run.

Import it before torch: the number of threads and the peers' caches are set in the environment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
BUILD = HERE.parent / "build" / "bench"  # compiled peers, the yardstick, the report of a quick run

THREADS = int(os.environ.get("FASTMMD_BENCH_THREADS") or len(os.sched_getaffinity(0)))
DEVICE = os.environ.get("FASTMMD_BENCH_DEVICE") or "cpu"
QUICK = os.environ.get("FASTMMD_BENCH_QUICK") == "1"

os.environ["OMP_NUM_THREADS"] = str(THREADS)  # MKL, OpenBLAS, KeOps and our kernels follow it
os.environ["PYKEOPS_VERBOSE"] = "0"
os.environ.setdefault("KEOPS_CACHE_FOLDER", str(BUILD / "keops"))
if " " not in str(BUILD):  # of which inductor makes two arguments of the C++ compiler
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(BUILD / "inductor"))

SIX = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)  # the bandwidths of the papers
SIGMAS = tuple(10 ** (-1 + i / 9) for i in range(10))  # logspace(-1, 0, 10)


def wide_bandwidth(dim: int) -> tuple[float, ...]:
    """One bandwidth at the scale of the distances of standard normal points, as the median rule would choose."""
    return (float(round(dim**0.5)),)


def grid_bandwidths(dim: int) -> tuple[float, ...]:
    """Five around that scale."""
    return tuple(factor * dim**0.5 for factor in (0.25, 0.5, 1.0, 2.0, 4.0))


@dataclass(frozen=True)
class Sizes:
    """Everything in which the quick and the full run differ."""

    row_seconds: float  # time spent on the rounds of one row, where one round is shorter
    mmd2: tuple[int, ...]  # N = M, D = 6, six bandwidths
    mmd2_value: int  # N = M without gradients
    labels: int  # N = M of ten classes
    wide: int  # N = M at D = 784, and in the dimensions below
    wide_dims: tuple[int, ...]  # beside torch.compile
    fourier: tuple[int, int]  # N, count
    parzen: tuple[int, int]  # points, samples at D = 784
    mmd2_beside: tuple[tuple[int, int], ...]  # N = M, D beside busy processes
    parzen_beside: tuple[int, int]  # alike
    parzen_rounds: int  # interleaved with the bare matrix product
    parzen_gradients: tuple[int, int]  # points, samples at D = 784, where gradients are compared
    density: tuple[int, int]  # points, samples of the comparison with one sigma
    training: dict[int, int]  # batch: rounds, interleaved with the step without regularizer
    scaling_n: tuple[int, ...]
    scaling_at: int  # N where D, bandwidths or threads grow
    dims: tuple[int, ...]
    counts: tuple[int, ...]  # bandwidths
    grid_n: tuple[int, ...]  # N = M beside eager, in each of these dimensions
    grid_dims: tuple[int, ...]
    grid_batches: tuple[tuple[int, int, int], ...]  # members, N = M, D
    grid_seconds: float  # spent on a cell, where one round is shorter
    against_n: tuple[int, ...]  # the plots
    memory_limit: int  # bytes a peer may grow by
    time_limit: float  # seconds a process may take beyond starting and compiling
    linear_memory: int  # N = M at D = 4
    headline: tuple[int, int]  # rows of 79 columns
    accuracy_n: int
    shifts: tuple[float, ...]


FULL = Sizes(
    row_seconds=1.0,
    mmd2=(1000, 4096, 8192),
    mmd2_value=4096,
    labels=4096,
    wide=4096,
    wide_dims=(24, 32, 48, 64, 128, 256, 2048),
    fourier=(16384, 4096),
    parzen=(2000, 10_000),
    mmd2_beside=((1000, 6), (4096, 6), (1000, 784)),
    parzen_beside=(1000, 10_000),
    parzen_rounds=15,
    parzen_gradients=(10_000, 10_000),
    density=(200, 10_000),
    training={1000: 200, 4096: 40, 16384: 10},
    scaling_n=(1000, 2000, 4096, 8192, 16384, 32768),
    scaling_at=4096,
    dims=(1, 2, 4, 6, 8, 16, 32, 48, 64, 128, 784),
    counts=(1, 2, 4, 6, 10),
    grid_n=(16, 64, 256, 1000, 2048),
    grid_dims=(2, 6, 16, 64, 256, 512, 768, 2048),
    grid_batches=((32, 16, 2048), (32, 16, 64), (8, 64, 512)),
    grid_seconds=0.3,
    against_n=(1000, 4096, 8192, 16384, 32768, 65536),
    memory_limit=16 << 30,
    time_limit=30.0,
    linear_memory=60_000,
    headline=(7207, 93_070),
    accuracy_n=2000,
    shifts=(1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001),
)
SMALL = Sizes(
    row_seconds=0.2,
    mmd2=(1000,),
    mmd2_value=1000,
    labels=1000,
    wide=1000,
    wide_dims=(32, 256),
    fourier=(4096, 1024),
    parzen=(500, 2000),
    mmd2_beside=((1000, 6), (300, 784)),
    parzen_beside=(200, 1000),
    parzen_rounds=5,
    parzen_gradients=(1000, 1000),
    density=(20, 2000),
    training={250: 40},
    scaling_n=(1000, 2000, 4000),
    scaling_at=1000,
    dims=(1, 4, 16, 64, 784),
    counts=(1, 6),
    grid_n=(16, 64, 256),
    grid_dims=(6, 64, 2048),
    grid_batches=((32, 16, 2048),),
    grid_seconds=0.2,
    against_n=(1000, 2000),
    memory_limit=1 << 30,
    time_limit=5.0,
    linear_memory=10_000,
    headline=(900, 11_600),
    accuracy_n=500,
    shifts=(1.0, 0.03, 0.001),
)
SIZES = SMALL if QUICK else FULL
