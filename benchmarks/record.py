"""Run the benchmarks and write results/<hardware>.json, .md and the plots.

    make bench, or python benchmarks/record.py [--quick] [bench_mmd.py ...]

A quick run, or one of some files only, is not a record: it writes to build/bench/ and prints the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds: under 3 minutes")
    parser.add_argument("files", nargs="*", help="only these, without the processes that measure memory")
    options = parser.parse_args()
    if options.quick:
        os.environ["FASTMMD_BENCH_QUICK"] = "1"  # before settings are read, here and in every process started
    from settings import BUILD, QUICK, RESULTS

    record = collect(options.files)
    whole = not (QUICK or options.files)
    folder = RESULTS if whole else BUILD
    print(write(record, folder))
    print(f"{record['seconds']:.0f} seconds, written to {folder}")


def collect(files: list[str]) -> dict[str, Any]:
    """Everything measured, in the order of the report."""
    import machine
    from settings import HERE, QUICK, SIX, SIZES, THREADS
    from targets import outcomes

    start = time.perf_counter()
    command = " ".join(["python benchmarks/record.py", *(["--quick"] if QUICK else []), *files])
    record: dict[str, Any] = {
        "command": command,
        "date": date.today().isoformat(),
        "revision": machine.revision(),
        "hardware": machine.hardware(),
        "memory_gigabytes": machine.memory_gigabytes(),
        "threads": THREADS,
        "versions": machine.versions(),
        "backends": _backends(),
        "yardstick": machine.yardstick(),
    }
    names = files or sorted(path.name for path in HERE.glob("bench_*.py"))
    record["groups"] = timings(names)
    record["against_n"], record["memory"], record["accuracy"] = [], [], []
    if not files:
        record["limits"] = {"bytes": SIZES.memory_limit, "seconds": SIZES.time_limit}
        record["against_n"] = against_n(SIX)
        record["memory"] = memory(SIX)
        record["accuracy"] = accuracy()
    record["seconds"] = time.perf_counter() - start
    record["targets"] = outcomes(record)
    return record


def _backends() -> list[str]:
    import peers

    return peers.ours()


def timings(files: list[str]) -> list[dict[str, Any]]:
    """Groups of pytest-benchmark with their rows, in the order of the files."""
    from settings import HERE

    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        command = [sys.executable, "-m", "pytest", *files, "-q", "-x", "-rs", "-p", "no:cacheprovider", "-W", "ignore"]
        command += ["--benchmark-json", str(raw), "--benchmark-columns", "median,iqr,rounds"]
        subprocess.run(command, cwd=HERE, check=True)
        result = json.loads(raw.read_text())
    groups = defaultdict(list)
    for run in result["benchmarks"]:
        groups[run["group"]].append(row(run))
    return [{"title": title, "rows": rows} for title, rows in groups.items()]


def row(run: dict[str, Any]) -> dict[str, Any]:
    """One benchmark: its name in the group, its case, milliseconds, and what it noted beside."""
    extra = dict(run["extra_info"])
    case, stats = extra["case"], run["stats"]
    if case["operation"] == "dispatch":
        name = f"{case['operator']}, {case['layer']}"
    elif case["operation"] == "scaling":
        name = str(case["amount"])
    elif case["operation"] == "grid":
        name = f"{case['batch']} x {case['n']} x {case['dim']}"
    elif case["operation"] == "contention":
        name = case["work"]
    else:
        name = run["params"]["implementation"]
    milliseconds = {f"{key}_ms": 1e3 * stats[key] for key in ("median", "min", "iqr")}
    return {"name": name, **milliseconds, "rounds": stats["rounds"], **extra}


def against_n(bandwidths: tuple[float, ...]) -> list[dict[str, Any]]:
    """The plots: each implementation with more and more points, until it dies."""
    import peers
    import probe
    from settings import SIZES

    rows = []
    for implementation in ("fastmmd", *peers.MMD2):
        for n in SIZES.against_n:
            rows.append(probe.run(implementation=implementation, n=n, m=n, dim=6, bandwidths=bandwidths))
            print(_line(rows[-1]), flush=True)
            if "died" in rows[-1]:
                break
    return rows


def memory(bandwidths: tuple[float, ...]) -> list[dict[str, Any]]:
    """Single cases: wide points, linear memory, and the sizes at which users ran out of memory."""
    import peers
    import probe
    from settings import SIZES, wide_bandwidth

    n, m = SIZES.headline
    wide = {"n": SIZES.wide, "m": SIZES.wide, "dim": 784, "bandwidths": wide_bandwidth(784)}
    headline = {"n": n, "m": m, "dim": 79, "bandwidths": wide_bandwidth(79)}
    small = headline | {"n": n // 16, "m": m // 16}
    linear = {"n": SIZES.linear_memory, "m": SIZES.linear_memory, "dim": 4, "bandwidths": bandwidths}
    cases = [(name, wide) for name in ("fastmmd", *peers.names_of(peers.MMD2, main=False))]
    cases += [("fastmmd", linear), ("fastmmd", headline), ("eager", headline), ("eager", small)]
    rows = []
    for implementation, case in cases:
        rows.append(probe.median_run(3 if case is wide else 1, implementation=implementation, **case))
        print(_line(rows[-1]), flush=True)
    return rows


def _line(row: dict[str, Any]) -> str:
    outcome = row.get("died") or f"{row['seconds']:.3g} s, {row['megabytes']:.1f} MB"
    return f"{row['implementation']}, N={row['n']}, M={row['m']}, D={row['dim']}: {outcome}"


def accuracy() -> list[dict[str, Any]]:
    from settings import HERE

    process = subprocess.run([sys.executable, HERE / "accuracy.py"], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def write(record: dict[str, Any], folder: Path) -> str:
    """All files at the end and each in one step, so that an interrupted run leaves the old ones whole."""
    import machine
    import plots
    from report import markdown

    folder.mkdir(parents=True, exist_ok=True)
    name = machine.slug()
    figures = plots.draw(record)
    text = markdown(record, {kind: f"{name}-{kind}.svg" for kind in figures})
    contents = {f"{name}-{kind}.svg": figure for kind, figure in figures.items()}
    contents |= {f"{name}.json": json.dumps(record, indent=1) + "\n", f"{name}.md": text}
    for file, content in contents.items():
        temporary = folder / f".{file}.new"
        temporary.write_text(content)
        temporary.replace(folder / file)
    return text


if __name__ == "__main__":
    main()
