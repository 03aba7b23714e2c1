"""Is DS-AAE more sensitive to the batch size than to the kernel's sigma, as its paper says (Azarafrooz 2018)?

Trains a DS-AAE with one bandwidth for each batch size and sigma of a grid and compares how far the test log-likelihood
moves along either. At a fixed number of epochs large batches also mean few steps; --steps adds the grid at a fixed
number of steps, where they mean many epochs. The two answer different questions.

python python/batch_size_study.py                      # scikit-learn's digits, batches 32 to 1259, about a minute
python python/batch_size_study.py --steps 500          # ... both questions
python python/batch_size_study.py --data mnist --data-dir DIR --epochs 50 --steps 10000 --seeds 2 --jobs 2
python python/batch_size_study.py --data mnist --data-dir DIR --epochs 0 --steps 400 --hidden 128,64  # an hour
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastmmd.evaluation import save_curves, save_heatmap
from fastmmd.training import UserError, for_batch, load_recipe
from fastmmd.training.experiments import Experiment, Spec, arguments, first_order, numbers

BATCHES = (100, 250, 500, 1_000, 4_096, 16_384)
DIGITS_BATCHES = (32, 100, 316, 1_259)  # the last one is all of them
SIGMAS = (0.5, 1.0, 2.0, 4.0, 8.0)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batches", type=numbers, help="separated by commas; default: 100 to 16384, digits 32 to 1259")
    parser.add_argument("--sigmas", type=numbers, default=SIGMAS, help="default: 0.5,1,2,4,8")
    parser.add_argument("--steps", type=int, help="the grid at this number of steps too; with --epochs 0 only so")
    parser.add_argument("--hidden", type=numbers, help="widths of the encoder's hidden layers; default: the recipe's")
    parser.add_argument("--adapt", action="store_true", help="recipes for their batch size, as of --batch-size")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each cell, from --seed on")
    options = parser.parse_args()
    epochs, options.epochs = options.epochs, None  # each cell has its own
    with Experiment.start("Batch size study", options) as experiment:
        recipe = load_recipe("ds-aae", options.data)
        if epochs is None:
            epochs = 25 if experiment.is_digits else recipe.training.epochs
        if not (epochs or options.steps):
            raise UserError("--epochs 0 leaves --steps only: it is not given")
        batches = sorted({int(b) for b in options.batches or (DIGITS_BATCHES if experiment.is_digits else BATCHES)})
        if len(batches) < 2 or len(set(options.sigmas)) < 2:
            raise UserError("--batches and --sigmas: at least two different values of each expected")
        if batches[-1] > len(experiment.data.train):
            raise UserError(f"--batches: at most {len(experiment.data.train)}, the training images; got {batches[-1]}")
        parts = [study(f"{epochs} epochs", batches, epochs, None, experiment)] if epochs else []
        if options.steps:
            parts.append(study(f"{options.steps} steps", batches, None, options.steps, experiment))
        text = "\n\n".join(parts)
        experiment.write_report(text)
        print(text)


def study(what: str, batches: list[int], epochs: int | None, steps: int | None, experiment: Experiment) -> str:
    """The grid at a fixed number of epochs or of steps: its pictures, its record, its part of the report."""
    options, data = experiment.options, experiment.data
    recipe = load_recipe("ds-aae", options.data)
    seeds = range(options.seed, options.seed + options.seeds)
    specs = []
    for sigma in options.sigmas:
        for batch in batches:
            per_epoch = len(data.train) // batch
            passes = epochs or max(1, round(steps / per_epoch))
            overrides: dict[str, Any] = for_batch(recipe, batch) if options.adapt else {"training.batch_size": batch}
            overrides |= {
                **first_order(recipe),
                "model.bandwidths": [sigma],
                "training.epochs": passes,
                "training.evaluate_every": 0,
                # With few steps, not all of them may go to the regularizer alone.
                "model.warmup_steps": min(recipe.model.warmup_steps, passes * per_epoch // 10),
            }
            if options.hidden:
                overrides["model.hidden"] = [int(width) for width in options.hidden]
            specs += [Spec(f"sigma {sigma:g} batch {batch} {what}", "ds-aae", overrides, seed) for seed in seeds]
    runs = experiment.run_all(specs)
    nats = np.array([run.parzen.mean for run in runs]).reshape(len(options.sigmas), len(batches), len(seeds))
    return write(what, batches, nats, experiment)


def write(what: str, batches: list[int], nats: np.ndarray, experiment: Experiment) -> str:
    """Pictures, record and verdict of log-likelihoods [sigmas, batches, seeds]."""
    sigmas, slug = experiment.options.sigmas, what.replace(" ", "-")
    means = nats.mean(2)
    along_batch, along_sigma = np.ptp(means, axis=1), np.ptp(means, axis=0)
    noise = float(np.ptp(nats, axis=2).mean())
    spread = {"batch": float(along_batch.mean()), "sigma": float(along_sigma.mean())}
    doublings = {"batch": math.log2(batches[-1] / batches[0]), "sigma": math.log2(max(sigmas) / min(sigmas))}

    title = f"DS-AAE on {experiment.data.name}, test log-likelihood in nats: {what}, samples from the prior"
    rows, columns = [f"{sigma:g}" for sigma in sigmas], [f"{batch:,}" for batch in batches]
    save_heatmap(experiment.folder / f"heatmap-{slug}.png", means, rows, columns, title, "sigma", "batch size")
    ends = np.stack([means - nats.min(2), nats.max(2) - means], 2)  # [sigmas, batches, 2]
    errors = [[tuple(cell) for cell in row] if nats.shape[2] > 1 else None for row in ends.tolist()]
    curves = {f"sigma {name}": (row, error) for name, row, error in zip(rows, means.tolist(), errors, strict=True)}
    save_curves(experiment.folder / f"curves-{slug}.png", batches, curves, "batch size", "nats", title, logx=True)

    measured = {"sigmas": list(sigmas), "batches": batches, "log_likelihood": nats.tolist()}
    measured |= {"spread": spread, "doublings": doublings, "noise_of_seeds": noise, "claim_holds": holds(spread, noise)}
    experiment.write_record(f"batch-size-study-{slug}", measured)
    lines = [
        ["sigma \\ batch", *columns, "spread"],
        ["---"] * (len(batches) + 2),
        *([row, *map("{:.1f}".format, cells), f"{reach:.1f}"]
          for row, cells, reach in zip(rows, means, along_batch, strict=True)),
        ["spread", *map("{:.1f}".format, along_sigma), ""],
    ]  # fmt: skip
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    seeds = nats.shape[2]
    intro = f"Test log-likelihood in nats per image, mean of {seeds} seed{'s' if seeds > 1 else ''}. "
    intro += "A spread is the range of a row or column."
    pictures = f"![heat map, {what}](heatmap-{slug}.png)\n\n![curves, {what}](curves-{slug}.png)"
    return "\n\n".join([f"## {what}", intro, table, verdict(spread, doublings, noise, seeds), pictures])


def holds(spread: dict[str, float], noise: float) -> bool | None:
    """Whether batch sizes spread the results further than sigmas; None where the seeds' noise could decide it."""
    difference = spread["batch"] - spread["sigma"]
    return None if abs(difference) <= noise else difference > 0


def verdict(spread: dict[str, float], doublings: dict[str, float], noise: float, seeds: int) -> str:
    """What the numbers say of the paper's claim, in words."""
    said = {True: "**The claim holds here**", False: "**The claim does not hold here**", None: "**Undecided**"}
    words = (
        f"{said[holds(spread, noise)]}: over the batch sizes the log-likelihood moves by {spread['batch']:.1f} nats "
    )
    words += f"(mean over the sigmas), over the sigmas by {spread['sigma']:.1f} (mean over the batch sizes); for each "
    words += "doubling that is " + " and ".join(f"{spread[name] / doublings[name]:.1f}" for name in ("batch", "sigma"))
    if seeds == 1:
        return f"{words}. One seed: its noise is not known."
    return f"{words}. Runs of one cell differ by {noise:.1f} (mean range over {seeds} seeds)."


if __name__ == "__main__":
    main()
