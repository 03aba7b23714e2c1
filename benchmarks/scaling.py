"""mmd2 over processes: measured here, computed for more. Writes benchmarks/scaling.md.

    python benchmarks/scaling.py [--quick]

Every run of several processes is first compared with the call of one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import machine
import torch
from torch import distributed, multiprocessing

import fastmmd

HERE = Path(__file__).resolve().parent
BANDWIDTHS = (1.0, 2.0, 4.0)
DIM = 8
POINTS = {False: (2048, 8192, 32768), True: (512, 2048)}
ROUNDS = 5

# An H200 and what connects eight of them, and such nodes: data sheets, and shares of them that are usual.
H200 = {"float32": 67e12, "share": 0.4, "memory": 141e9}
LINKS = {"within a node": (450e9, 0.8, 10e-6), "between nodes": (50e9, 0.8, 20e-6)}  # bytes/s each way, share, latency
OPERATIONS = 60  # of a pair with its gradient at D = 8 and three bandwidths, multiply-adds counted as two


def sample(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    x, y = torch.randn(2, n, DIM, generator=generator)
    return x, y + 0.1


def value_and_gradient(x: torch.Tensor, y: torch.Tensor, group: Any) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.requires_grad_()
    value = fastmmd.mmd2(x, y, BANDWIDTHS, group=group)
    return value.detach(), torch.autograd.grad(value, x)[0]


def process(rank: int, ranks: int, folder: str, sizes: tuple[int, ...]) -> None:
    """Medians of every size by both exchanges, into a file; one thread for each process."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/{ranks}", rank=rank, world_size=ranks)
    rows = []
    for n in sizes:
        whole = sample(n)
        expected = value_and_gradient(*(part.clone() for part in whole), None)
        x, y = (part.chunk(ranks)[rank].clone() for part in whole)
        for exchange in ("gather", "ring"):
            group = fastmmd.Shards(exchange=exchange, gradients="summed")
            value, gradient = value_and_gradient(x, y, group)
            torch.testing.assert_close(value, expected[0], rtol=2e-6, atol=0)
            mine = expected[1].chunk(ranks)[rank]
            assert (gradient - mine).abs().max() <= 2e-6 * expected[1].abs().max()
            seconds = []
            for _ in range(ROUNDS):
                distributed.barrier()
                start = time.perf_counter()
                value_and_gradient(x, y, group)
                distributed.barrier()
                seconds.append(time.perf_counter() - start)
            rows.append((n, exchange, statistics.median(seconds)))
    if rank == 0:
        torch.save(rows, f"{folder}/rows-{ranks}.pt")
    distributed.destroy_process_group()


def alone(sizes: tuple[int, ...]) -> dict[int, float]:
    """mmd2 of one process with one thread, without a group."""
    torch.set_num_threads(1)
    found = {}
    for n in sizes:
        x, y = sample(n)
        value_and_gradient(x.clone(), y, None)
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            value_and_gradient(x.clone(), y, None)
            seconds.append(time.perf_counter() - start)
        found[n] = statistics.median(seconds)
    return found


def measured(sizes: tuple[int, ...]) -> list[str]:
    base = alone(sizes)
    lines = [
        "| N = M | processes | exchange | ms | times one process without a group |",
        "|---|---|---|---|---|",
        *(f"| {n:,} | 1 | none | {1e3 * seconds:.1f} | 1 |" for n, seconds in base.items()),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (1, 2, 4):
            multiprocessing.spawn(process, (ranks, folder, sizes), ranks)
            lines += [
                f"| {n:,} | {ranks} | {exchange} | {1e3 * seconds:.1f} | {seconds / base[n]:.2f} |"
                for n, exchange, seconds in torch.load(f"{folder}/rows-{ranks}.pt")
            ]
    return lines


def pairs(n: int, ranks: int, exchange: str) -> float:
    """Of a process: its x and its y with all x and all y, and with themselves, by the ring anew for each block."""
    if ranks == 1:
        return 2 * n * n
    own, blocks = n / ranks, ranks if exchange == "ring" else 1
    return 4 * own * n + 4 * blocks * own**2 / 2


def computed(n: int, ranks: int) -> str:
    received = 2 * n * DIM * 4 * (ranks - 1) / ranks
    rate, share, latency = LINKS["within a node" if ranks <= 8 else "between nodes"]
    exchange = received / (rate * share) + (ranks - 1) * latency if ranks > 1 else 0.0
    busy = {kind: pairs(n, ranks, kind) * OPERATIONS / (H200["float32"] * H200["share"]) for kind in ("gather", "ring")}
    one = (2 * n * n) * OPERATIONS / (H200["float32"] * H200["share"])  # x and y with themselves once, and x with y
    gather, ring = exchange + busy["gather"], max(exchange, busy["ring"])
    memory = {"gather": 2 * n * DIM * 4 * (1 + 1 / ranks), "ring": 3 * 2 * n / ranks * DIM * 4}
    return (
        f"| 2^{n.bit_length() - 1} | {ranks} | {received / 1e6:,.1f} | {memory['gather'] / 1e6:,.1f} | "
        f"{memory['ring'] / 1e6:,.1f} | {pairs(n, ranks, 'gather') * OPERATIONS / 1e12:,.3g} | {1e3 * gather:,.3g} | "
        f"{1e3 * ring:,.3g} | {one / ranks / gather:.0%} |"
    )


def bias() -> list[str]:
    """The mean of the shards' own values beside the value of all points, of two samples of one distribution."""
    lines = ["| processes | value of 4096 + 4096 points | mean of the shards' values | times |", "|---|---|---|---|"]
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4096, DIM, generator=generator)
    whole = fastmmd.mmd2(x, y, BANDWIDTHS).item()
    for ranks in (2, 8, 64):
        parts = [fastmmd.mmd2(a, b, BANDWIDTHS) for a, b in zip(x.chunk(ranks), y.chunk(ranks), strict=True)]
        mean = torch.stack(parts).mean().item()
        lines.append(f"| {ranks} | {whole:.3g} | {mean:.3g} | {mean / whole:.1f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, printed only")
    quick = parser.parse_args().quick
    text = "\n".join([
        "# mmd2 over processes",
        "",
        f"Made by `python benchmarks/scaling.py` on {date.today().isoformat()}, revision {machine.revision()}: "
        f"{machine.hardware()}, torch {torch.__version__}. Value and gradient in x, D = {DIM}, "
        f"{len(BANDWIDTHS)} bandwidths, float32.",
        "",
        "## Measured: gloo processes on one machine",
        "",
        "One thread for each process. More processes than cores share them.",
        "",
        *measured(POINTS[quick]),
        "",
        "A single process computes each pair of a sample once, for both of its points. Several compute their own "
        "points with all points, and with themselves again for each of the two samples: at most half of the processes' "
        "number is gained, and two processes take longer than one. By the ring the pairs of a shard with itself are "
        "computed for every shard that passes. A group of one process makes the plain call.",
        "",
        "## Why not the mean of the shards' own values",
        "",
        "The biased estimator exceeds MMD^2 by about 2 (k(0) - E k) / N, the shards' mean by as many times that as "
        "there are processes (x and y of one distribution, whose MMD is 0):",
        "",
        *bias(),
        "",
        "## Computed: nodes of eight H200",
        "",
        f"Not measured. Assumed: {OPERATIONS} operations for a pair (counted from the kernel: D multiply-adds for the "
        f"distance, as many for the gradient, three exponentials), {H200['share']:.0%} of {H200['float32'] / 1e12:.0f} "
        "TFLOP/s in float32; 80% of 450 GB/s each way within a node and 10 us a step, 80% of 50 GB/s between nodes and "
        "20 us. Efficiency: the time of one GPU that computes each pair once, over the processes' time by gathering.",
        "",
        "| N = M | processes | MB received | MB held, gather | MB held, ring | 10^12 operations each | ms, gather | "
        "ms, ring | efficiency |",
        "|---|---|---|---|---|---|---|---|---|",
        *(computed(2**power, ranks) for power in (14, 17, 20, 24) for ranks in (1, 8, 64, 1024)),
        "",
        "What is received does not depend on the exchange. The ring hides it behind the pairs, of which it computes "
        "half as many again; so it is faster where receiving takes more than half of the time of the pairs: few points "
        "for each of many processes. It needs less memory in any case, 6 N D / R numbers instead of 2 N D: take it "
        "where 2 N D numbers do not fit, which on a GPU of 141 GB is beyond N = 9 10^6 at D = 2048.",
    ]) + "\n"  # fmt: skip
    print(text)
    if not quick:
        (HERE / "scaling.md").write_text(text)


if __name__ == "__main__":
    main()
