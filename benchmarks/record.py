"""Run the benchmarks and write results/<hardware>.json and .md.

make bench, or python benchmarks/record.py [bench_mmd.py ...]
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
MEMORY = """
import resource, sys, torch
sys.path.insert(0, {here!r})
import fastmmd, peers
torch.manual_seed(0)
x, y = torch.randn({n}, 6, requires_grad=True), torch.randn({n}, 6)
fastmmd.mmd2(x[:100], y[:100]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
bandwidths = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)
{module}.mmd2(x, y, bandwidths).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def main() -> None:
    files = sys.argv[1:] or sorted(path.name for path in HERE.glob("bench_*.py"))
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        command = [sys.executable, "-m", "pytest", *files, "-q", "--benchmark-json", str(raw)]
        subprocess.run(command, cwd=HERE, check=True)
        found = json.loads(raw.read_text())
    groups = defaultdict(list)
    for run in found["benchmarks"]:
        name, stats = run["params"]["implementation"], run["stats"]
        groups[run["group"]].append({"name": name, "median_ms": 1e3 * stats["median"], "rounds": stats["rounds"]})
    record = {
        "command": "python benchmarks/record.py " + " ".join(files),
        "date": found["datetime"][:10],
        "hardware": hardware(),
        "versions": found["benchmarks"][0]["extra_info"] | {"python": found["machine_info"]["python_version"]},
        "groups": groups,
        "memory": memory(),
    }
    (HERE / "results").mkdir(exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", hardware().lower()).strip("-")
    (HERE / "results" / f"{slug}.json").write_text(json.dumps(record, indent=1) + "\n")
    table = markdown(record)
    (HERE / "results" / f"{slug}.md").write_text(table)
    print(table)


def hardware() -> str:
    """The processor by name, its cores and the instruction set that our kernels use on it."""
    from fastmmd.backends import native

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {native.capability()['capability']}"


def memory() -> list[dict]:
    """Growth of the peak resident memory by one mmd2 forward+backward, each in a process of its own."""
    rows = []
    for n, module in ((4096, "fastmmd"), (4096, "peers"), (20_000, "fastmmd")):
        script = MEMORY.format(here=str(HERE), n=n, module=module)
        runs = [
            float(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)
            for _ in range(3)
        ]
        rows.append({"n": n, "name": "eager" if module == "peers" else "fastmmd", "megabytes": statistics.median(runs)})
    return rows


def markdown(record: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        f"Hardware: {record['hardware']}. Versions: {versions}. Date: {record['date']}. "
        f"Command: `{record['command']}`.",
        "",
    ]
    for group, rows in record["groups"].items():
        ours = next(row["median_ms"] for row in rows if row["name"] == "native")
        lines += [f"### {group}", "", "| implementation | median, ms | times fastmmd native |", "|---|---|---|"]
        lines += [f"| {row['name']} | {row['median_ms']:.2f} | {row['median_ms'] / ours:.2f} |" for row in rows]
        lines.append("")
    lines += ["### Peak memory of mmd2 forward+backward, D=6, six bandwidths", ""]
    lines += ["| N=M | implementation | growth, MB |", "|---|---|---|"]
    lines += [f"| {row['n']} | {row['name']} | {row['megabytes']:.1f} |" for row in record["memory"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
