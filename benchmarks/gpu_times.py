"""The operations at the sizes of gpu_cases.py on a GPU, each implementation in a process of its own.

    FASTMMD_BENCH_DEVICE=cuda python benchmarks/gpu_times.py --of ours peers --seconds 480 --json FILE
    FASTMMD_BENCH_DEVICE=cuda python benchmarks/gpu_times.py '{"operation": "mmd2", "n": 99}' native

Results are compared with float64 before they are timed, and while they are as gpu_clock.py says; those of our backends
with one another. What runs out of memory or time has "died" in place of a time. The file is written anew after every
case.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, fields
from itertools import combinations
from pathlib import Path
from typing import Any

from settings import DEVICE, QUICK  # isort: skip  before torch

import cuda_report
import peers
import torch
from gpu_cases import SIZES, SMALL, TABLES, Case, differences, problem
from gpu_clock import Clock, DeviceClock, HostClock, first_results, timed
from probe import OUT_OF_MEMORY

import fastmmd

LIMIT = 75.0  # seconds for a process, compilers included
TIMED = 0.5  # seconds of rounds, twice
COUNTED_FOR = ("H100", "H200")  # GPUs that machine_code.py predicts
NO_TIME = "no time left"  # which is no failure
OURS = {"parzen": "parzen_log_likelihood"}


def measure(case: Case, implementation: str, floor: float = 0.0, save: Path | None = None) -> dict[str, Any]:
    """Seconds of a call, peak megabytes beyond its inputs, and the largest errors; save: where its results go."""
    start, table = time.perf_counter(), TABLES[case.operation]
    clock: Clock = HostClock() if DEVICE == "cpu" else DeviceClock()
    with peers.chosen(implementation, getattr(fastmmd, OURS.get(case.operation, case.operation)), table) as function:
        task = problem(case, implementation, function)
        firsts = first_results(task.call, task.inputs, clock)
        first = time.perf_counter() - start
        errors = [task.check(result, number) for number, result in enumerate(firsts)]
        before = _memory(reset=True)
        tolerance = 1e-5 if implementation in table else 0.0  # ours are deterministic
        times = timed(task.call, task.inputs, firsts, clock, seconds=TIMED, floor=floor, tolerance=tolerance)
    if save:
        torch.save([part.cpu() for part in firsts[0]], save)
    (low, median, high), (cold_low, cold, cold_high) = times.warm, times.cold
    return {
        "median_s": median, "quartiles_s": [low, high], "cold_s": cold, "cold_quartiles_s": [cold_low, cold_high],
        "rounds": times.rounds, "first_calls_s": first, "floor_s": floor, "megabytes": (_memory() - before) / 1e6,
        **{name: max(error[name] for error in errors) for name in errors[0]},
    }  # fmt: skip


def _memory(reset: bool = False) -> int:
    """Bytes at the peak; since now, if reset. Only a GPU's are counted."""
    if DEVICE == "cpu":
        return 0
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated()


def floors(cases: tuple[Case, ...]) -> dict[Case, float]:
    """Seconds that the CUDA kernels need at least, counted from their machine code: where there is any, for the GPU
    that it is counted for."""
    spec = importlib.util.find_spec("fastmmd._cuda")
    if DEVICE == "cpu" or spec is None or not any(name in torch.cuda.get_device_name() for name in COUNTED_FOR):
        return {}
    module = Path(str(spec.origin))
    architecture = next((name for name in cuda_report.architectures(module) if name.startswith("sm_90")), None)
    if architecture is None:
        return {}
    codes = {code.kernel: code for code in cuda_report.read_module(module, architecture)}
    counted = {case: [cuda_report.seconds(cuda_report.CASES[name], codes) for name in case.counted] for case in cases}
    return {case: sum(max(pipes.values()) for pipes in parts) for case, parts in counted.items() if parts}


def in_process(case: Case, implementation: str, seconds: float, *options: str) -> dict[str, Any]:
    """The case with what was measured, or with "died" and why."""
    about = asdict(case) | {"implementation": implementation}
    command = [sys.executable, "-W", "ignore", __file__, json.dumps(asdict(case)), implementation, *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return about | {"died": f"over {seconds:.0f} s"}
    if done.returncode == 0:
        return about | json.loads(done.stdout.splitlines()[-1])
    if any(words in done.stderr for words in OUT_OF_MEMORY):
        return about | {"died": "out of memory"}
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return about | {"died": lines[-1][:160], "stderr": done.stderr[-4000:]}


def run(of: list[str], seconds: float, output: Path | None) -> bool:
    """All cases as far as the time allows; whether none of ours failed, and all agree."""
    end = time.perf_counter() + seconds
    cases = SMALL if QUICK else SIZES
    ours = [name for name in peers.ours() if name != "reference"]
    order = [(case, name) for case in cases for name in ours] if "ours" in of else []
    order += [(case, name) for case in cases for name in ("reference", *case.peers)] if "peers" in of else []
    about = {"device": DEVICE, "torch": torch.__version__, "backends": ours}
    if DEVICE != "cpu":
        about |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    counted = floors(cases)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        saved: dict[Case, dict[str, Path]] = {}
        for case, implementation in order:
            options = []
            if implementation in ours:
                saved.setdefault(case, {})[implementation] = path = Path(folder, f"{len(rows)}.pt")
                options = ["--save", str(path)]
            if implementation == "native" and case in counted:
                options += ["--floor", str(counted[case])]
            left = min(LIMIT, end - time.perf_counter())
            row = asdict(case) | {"implementation": implementation, "died": NO_TIME}
            rows.append(in_process(case, implementation, left, *options) if left > 5 else row)
            outcome = rows[-1].get("died") or f"{1e3 * rows[-1]['median_s']:.3g} ms"
            print(f"{case} {implementation}: {outcome}", file=sys.stderr, flush=True)
            if output:
                temporary = output.with_suffix(".new")
                temporary.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
                temporary.replace(output)
        print(table(rows))
        agree = all([_agree(case, paths) for case, paths in saved.items()])
    failed = [row for row in rows if row["implementation"] in ours and row.get("died", NO_TIME) != NO_TIME]
    return agree and not failed


def _agree(case: Case, paths: dict[str, Path]) -> bool:
    """Whether our backends give the same, as far as the dtype goes."""
    there = {name: torch.load(path) for name, path in paths.items() if path.exists()}
    bound = {"mmd2": 4e-6, "parzen": 1e-5, "fourier_mean": 1e-5}[case.operation]
    bound = 2e-5 if case.gradient == "bandwidths" or case.classes else bound
    agree = True
    for one, other in combinations(there, 2):
        try:
            differences(there[one], there[other], bound)
        except AssertionError as error:
            print(f"{case}: {one} and {other} differ: {error}")
            agree = False
    return agree


def table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds, warm and cold: a line for each case, a column for each implementation."""
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    cells_of: dict[str, dict[str, str]] = {}
    for row in rows:
        case = str(Case.of_json({field.name: row[field.name] for field in fields(Case)}))
        cell = f"† {row['died']}" if "died" in row else f"{1e3 * row['median_s']:.3g}, {1e3 * row['cold_s']:.3g}"
        cells_of.setdefault(case, {})[row["implementation"]] = cell
    lines = [["ms warm, cold", *names], ["---"] * (len(names) + 1)]
    lines += [[case, *(cells.get(name, "") for name in names)] for case, cells in cells_of.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", help="one case as JSON, in this process")
    parser.add_argument("implementation", nargs="?", help="of that case")
    parser.add_argument("--of", nargs="+", choices=("ours", "peers"), default=["ours", "peers"])
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--floor", type=float, default=0.0, help="seconds that the case takes at least")
    parser.add_argument("--save", type=Path, help="where the case's first result goes")
    options = parser.parse_args()
    if options.case:
        case = Case.of_json(json.loads(options.case))
        print(json.dumps(measure(case, options.implementation, options.floor, options.save)))
    else:
        sys.exit(0 if run(options.of, options.seconds, options.json) else 1)


if __name__ == "__main__":
    main()
