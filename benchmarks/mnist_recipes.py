"""Train the recipes on real MNIST over several seeds and record their test log-likelihood.

    python benchmarks/mnist_recipes.py --data-dir DIR [--jobs 2] [--seeds 5] [--runs runs/mnist-recipes]

Each run is `fastmmd train RECIPE --data mnist --epochs N --seed S` with the recipe's defaults, one thread a job. Runs
that are complete are kept, interrupted ones are resumed. Writes results/mnist_recipes.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch
from machine import hardware

from fastmmd.evaluation import parzen_evaluation
from fastmmd.training import load_data

HERE = Path(__file__).parent
SETTINGS = (("ds-aae", 20), ("mmd-ae", 20), ("aae", 20), ("ds-aae", 50), ("mmd-ae", 50))  # recipe, epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=Path, default=Path("runs/mnist-recipes"))
    options = parser.parse_args()
    runs = [(recipe, epochs, seed) for seed in range(options.seeds) for recipe, epochs in SETTINGS]
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda run: train(*run, options), runs))
    rows = [row(recipe, epochs, results) for recipe, epochs in SETTINGS]
    config = tomllib.loads((results[0]["folder"] / "config.toml").read_text())
    record = {
        "command": f"python benchmarks/mnist_recipes.py --data-dir DIR --jobs {options.jobs} --seeds {options.seeds}",
        "date": date.today().isoformat(),
        "hardware": hardware(),
        "versions": {name: config["versions"][name] for name in ("fastmmd", "python", "torch", "numpy")},
        "real_images": real_images(options.data_dir),
        "runs": [{key: value for key, value in result.items() if key != "folder"} for result in results],
    }
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "mnist_recipes.json").write_text(json.dumps(record, indent=1) + "\n")
    table = "\n".join(
        [
            "Test log-likelihood on MNIST in nats: Parzen windows on 10,000 samples decoded from the prior, sigma "
            f"chosen on validation images, 10,000 test images, {options.seeds} seeds. "
            f"Hardware: {record['hardware']}, one thread a run. Date: {record['date']}. "
            f"Command: `{record['command']}`.",
            "",
            "| recipe | epochs | minimum | mean | maximum | standard error of one | sigma | std of the codes / prior | "
            "99% norm of the codes / prior | MMD^2 to the prior (null) | seconds per epoch |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"{record['real_images']['samples']:,} real training images in place of samples: "
            f"{record['real_images']['mean']:.1f} +- {record['real_images']['standard_error']:.1f}.",
        ]
    )
    (HERE / "results" / "mnist_recipes.md").write_text(table + "\n")
    print(table)


def real_images(data_dir: str) -> dict:
    """The same protocol with 10,000 training images as the samples: what a generator that copies would score."""
    data = load_data("mnist", data_dir)
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:10_000]
    return asdict(parzen_evaluation(data.train.images[chosen], data.validation.images, data.test.images))


def train(recipe: str, epochs: int, seed: int, options: argparse.Namespace) -> dict:
    folder = options.runs / f"{recipe}-{epochs}-{seed}"
    result = evaluation(folder)
    if result is None:
        command = [sys.executable, "-m", "fastmmd", "train"]
        if (folder / "checkpoint.pt").exists():
            command += ["--resume", str(folder)]
        else:
            command += [recipe, "--data", "mnist", "--data-dir", options.data_dir, "--epochs", str(epochs)]
            command += ["--seed", str(seed), "--run-dir", str(folder)]
        print(shlex.join(command), flush=True)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        result = evaluation(folder)
        assert result is not None, f"{folder} has no evaluation"
        print(f"{recipe} {epochs} epochs seed {seed}: {result['mean']:.1f}", flush=True)
    return {"recipe": recipe, "epochs": epochs, "seed": seed, "folder": folder, **result}


def evaluation(folder: Path) -> dict | None:
    """The test result of a complete run, with its training seconds and warnings."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return None
    records = [json.loads(line) for line in path.read_text().splitlines()]
    evaluations = [record for record in records if record.get("kind") == "evaluation"]
    if not evaluations:
        return None
    seconds = max(record["seconds"] for record in records if "seconds" in record)
    return evaluations[-1] | {"seconds": seconds, "warnings": [r["warning"] for r in records if "warning" in r]}


def row(recipe: str, epochs: int, results: list[dict]) -> str:
    ours = [result for result in results if (result["recipe"], result["epochs"]) == (recipe, epochs)]
    nats = [result["mean"] for result in ours]
    error = max(result["standard_error"] for result in ours)
    sigmas = [result["sigma"] for result in ours]
    seconds = statistics.median(result["seconds"] / epochs for result in ours)
    codes = [result["codes"] for result in ours]
    ratios = [a / b for code in codes for a, b in zip(code["std"], code["prior_std"], strict=True)]
    norms = [code["norm_quantiles"][-1] / code["prior_norm_quantiles"][-1] for code in codes]
    mmd2, null = (statistics.median(code[name] for code in codes) for name in ("mmd2", "mmd2_null"))
    return (
        f"| `{recipe}` | {epochs} | {min(nats):.1f} | {statistics.mean(nats):.1f} | {max(nats):.1f} | {error:.1f} | "
        f"{min(sigmas):.3f} to {max(sigmas):.3f} | {min(ratios):.2f} to {max(ratios):.2f} | "
        f"{min(norms):.2f} to {max(norms):.2f} | {mmd2:.1e} ({null:.1e}) | {seconds:.1f} |"
    )


if __name__ == "__main__":
    main()
