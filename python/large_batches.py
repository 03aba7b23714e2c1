"""What large batches give and cost: AAE, MMD-AE and DS-AAE by batch size, the recipes adapted by `for_batch`.

Test log-likelihood and how well held-out codes match the prior, at equal numbers of epochs, where larger batches mean
fewer steps, and with --steps at equal numbers of steps, where they mean more epochs; beside them the regularizer's
time and that of the same regularizer in eager PyTorch, whose kernel matrices soon fit no memory.

python python/large_batches.py                      # scikit-learn's digits, batches 100 to 1259, about a minute
python python/large_batches.py --steps 300          # ... at equal numbers of steps too
python python/large_batches.py --data mnist --data-dir DIR --epochs 50 --seeds 3 --jobs 2
python python/large_batches.py --data mnist --data-dir DIR --epochs 0 --steps 1000 --hidden 256,128,64
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.timer import timer as default_timer

import fastmmd
from fastmmd import nn, priors
from fastmmd.evaluation import posterior_codes, save_curves
from fastmmd.nn.base import Model
from fastmmd.training import UserError, for_batch, load_recipe
from fastmmd.training.experiments import Experiment, Run, Spec, arguments, numbers
from fastmmd.training.run import RunFolder

MODELS = {"aae": "AAE", "mmd-ae": "MMD-AE", "ds-aae": "DS-AAE"}
BATCHES = (250, 1_000, 4_096, 16_384)
DIGITS_BATCHES = (100, 316, 1_259)  # the last one is all of them
SCALES = (0.25, 0.5, 1.0, 2.0)  # bandwidths of the match, in units of the prior's standard deviation
EAGER_BYTES = 2 * 1024**3  # what eager PyTorch may hold


class Cost(NamedTuple):
    """Seconds of a regularizer's update, value and gradient for one batch, on one thread; on a CPU, processor time."""

    ours: float
    eager: float | None  # None: it does not fit, or there is nothing to replace
    eager_bytes: int  # at least, that autograd keeps for the backward pass; 0: nothing to replace


class Cell(NamedTuple):
    """The runs of one model and batch size: seed by seed."""

    model: str
    batch: int
    runs: list[Run]
    matches: list[float]  # MMD^2 of held-out codes to the prior, over that of as many draws from it
    cost: Cost

    @property
    def nats(self) -> list[float]:
        return [run.parzen.mean for run in self.runs]

    @property
    def last(self) -> list[dict[str, Any]]:
        """The records of the last epochs."""
        return [[line for line in RunFolder(run.folder).records() if "epoch" in line][-1] for run in self.runs]

    @property
    def share(self) -> float | None:
        """The regularizer's share of a training step."""
        shares = [record["regularizer_share"] for record in self.last if record["regularizer_share"] is not None]
        return statistics.mean(shares) if shares else None

    @property
    def eager_share(self) -> float | None:
        """What that share would be with eager PyTorch's time in place of ours."""
        if not self.share or self.cost.eager is None:
            return None
        return self.cost.eager / (self.cost.eager + self.cost.ours * (1 / self.share - 1))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batches", type=numbers, help="separated by commas; default: 250 to 16384, 100 to 1259")
    parser.add_argument("--models", default=",".join(MODELS), help=f"separated by commas; default: {','.join(MODELS)}")
    parser.add_argument("--steps", type=int, help="at this number of steps too; with --epochs 0 only so")
    parser.add_argument("--hidden", type=numbers, help="widths of the encoder's hidden layers; default: the recipes'")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each cell, from --seed on")
    options = parser.parse_args()
    epochs, options.epochs = options.epochs, None  # each cell has its own
    with Experiment.start("Large batches", options) as experiment:
        chosen = options.models.split(",")
        if unknown := set(chosen) - set(MODELS):
            raise UserError(f"--models: unknown {', '.join(sorted(unknown))} (allowed: {', '.join(MODELS)})")
        batches = sorted({int(b) for b in options.batches or (DIGITS_BATCHES if experiment.is_digits else BATCHES)})
        if batches[0] < 2 or batches[-1] > (most := len(experiment.data.train)):
            raise UserError(f"--batches: from 2 to {most}, the training images, expected; got {batches}")
        if epochs is None:
            epochs = 100 if experiment.is_digits else 50
        if not (epochs or options.steps):
            raise UserError("--epochs 0 leaves --steps only, which is not given")
        budgets = [f"{epochs} epochs"] * bool(epochs) + [f"{options.steps} steps"] * bool(options.steps)
        parts = []
        for what in budgets:
            cells = measured(what, chosen, batches, experiment)
            parts.append(section(what, cells, batches, experiment))
        text = "\n\n".join(parts)
        experiment.write_report(text)
        print(text)


def measured(what: str, models: list[str], batches: list[int], experiment: Experiment) -> list[Cell]:
    """Every model at every batch size, for "N epochs" or "N steps"."""
    options, specs = experiment.options, []
    amount, unit = what.split()
    for model in models:
        for batch in batches:
            steps = len(experiment.data.train) // batch  # of an epoch
            passes = int(amount) if unit == "epochs" else max(1, round(int(amount) / steps))
            own: dict[str, Any] = {"training.threads": 1, "training.evaluate_every": 0, "training.epochs": passes}
            if options.hidden:
                own["model.hidden"] = [int(width) for width in options.hidden]
            own |= for_batch(load_recipe(model, options.data, own), batch)
            name = f"{MODELS[model]} batch {batch} {what}"
            specs += [Spec(name, model, own, options.seed + number) for number in range(options.seeds)]
    runs, cells = experiment.run_all(specs), []
    images = torch.cat([experiment.data.validation.images, experiment.data.test.images])
    torch.set_num_threads(1)
    for first in range(0, len(runs), options.seeds):
        some = runs[first : first + options.seeds]
        batch = some[0].config.recipe.training.batch_size
        matches = [match(run.model, images, run.seed) for run in some]
        cells.append(Cell(MODELS[some[0].spec.recipe], batch, some, matches, cost(some[0].model, batch)))
    return cells


# --- the match of the codes ---


@torch.no_grad()
def match(model: Model, images: Tensor, seed: int) -> float:
    """MMD^2 between the codes of images [N, data_dim] and the prior itself, over its mean for N draws from the prior.

    The latter is (k(0) - E k(y, y')) / N: of the biased estimator only the diagonal remains.
    """
    codes = posterior_codes(model, images, torch.Generator(images.device).manual_seed(seed)).double()
    prior, bandwidths = model.prior, [scale * model.settings()["prior_std"] for scale in SCALES]
    own = sum((s**2 / (s**2 + 2 * prior.std.double() ** 2)).sqrt().prod().item() for s in bandwidths)
    return fastmmd.mmd2_to_prior(codes, prior, bandwidths).item() * len(codes) / (len(SCALES) - own)


# --- what the regularizer costs ---


def cost(model: Model, batch: int) -> Cost:
    """Of the model's regularizer as trained, on codes that are draws from the prior."""
    codes, prior, regularizer = model.prior.sample(batch), model.prior, model.regularizer
    moves = regularizer.learns and not regularizer.trains_adversary

    def ours(codes: Tensor) -> Tensor:
        if moves:
            regularizer.update(codes.detach(), prior)
        return regularizer(codes, prior)

    if isinstance(regularizer, nn.Adversarial):  # a network in either case
        return Cost(seconds(ours, codes), None, 0)
    if isinstance(regularizer, nn.ClosedFormMMD):
        kept = 4 * batch**2 * len(regularizer.bandwidths)  # the exponentials, which are their own derivatives
        eager = partial(eager_mmd2, prior=prior, regularizer=regularizer)
    else:
        kept = 4 * batch * regularizer.features.count  # the angles
        eager = partial(eager_adversary, prior=prior, regularizer=regularizer)
    return Cost(seconds(ours, codes), seconds(eager, codes) if kept <= EAGER_BYTES else None, kept)


def seconds(function: Callable[[Tensor], Tensor], codes: Tensor) -> float:
    """Of a value and its gradient, the shortest of several; on a CPU of the processor's time, whatever else it does."""
    names = {"function": function, "codes": codes.clone().requires_grad_()}
    clock = time.process_time if codes.device.type == "cpu" else default_timer
    timer = Timer("function(codes).backward()", globals=names, timer=clock)
    return min(timer.blocked_autorange(min_run_time=0.2).times)


def eager_mmd2(codes: Tensor, prior: priors.Gaussian, regularizer: nn.ClosedFormMMD) -> Tensor:
    """Biased MMD^2 of codes [B, D] to N(0, std^2 I) by dense [B, B] kernel matrices, averaged over the bandwidths."""
    std, dim, terms = prior.std[0].to(codes), codes.shape[1], []
    squares = codes.square().sum(1)
    distances = squares[:, None] + squares - 2 * codes @ codes.T
    for s in regularizer.bandwidths:
        cross = (s**2 / (s**2 + std**2)) ** (dim / 2) * (-squares / (2 * (s**2 + std**2))).exp().mean()
        own = (s**2 / (s**2 + 2 * std**2)) ** (dim / 2)
        terms.append((distances / (-2 * s**2)).exp().mean() - 2 * cross + own)
    return torch.stack(terms).mean()


def eager_adversary(codes: Tensor, prior: priors.Gaussian, regularizer: nn.FourierAdversary) -> Tensor:
    """The discrepancy in fresh features, by matrices [B, count] of them."""
    frequencies = regularizer.features.block(regularizer.step).frequencies(codes.device, codes.dtype)

    def mean(points: Tensor) -> Tensor:
        angles = points @ frequencies.T
        return torch.stack([angles.cos().mean(0), angles.sin().mean(0)]) / len(frequencies) ** 0.5

    return (mean(prior.sample(len(codes))) - mean(codes)).square().sum()


# --- the report ---


def section(what: str, cells: list[Cell], batches: list[int], experiment: Experiment) -> str:
    """Pictures, record and tables of one budget."""
    slug, data = what.replace(" ", "-"), experiment.data
    names = list(dict.fromkeys(cell.model for cell in cells))
    rows = {name: [cell for cell in cells if cell.model == name] for name in names}
    quantities: dict[str, tuple[str, Callable[[Cell], list[float]]]] = {
        "nats": ("test log-likelihood, nats per image", lambda cell: cell.nats),
        "match": ("MMD^2 of held-out codes to the prior over its null value", lambda cell: cell.matches),
    }
    parts = [f"## {what}"]
    for key, (title, values_of) in quantities.items():
        curves = {}
        for name, row in rows.items():
            several = [values_of(cell) for cell in row]
            means = [statistics.mean(values) for values in several]
            reach = [(mean - min(v), max(v) - mean) for mean, v in zip(means, several, strict=True)]
            curves[name] = (means, reach if len(several[0]) > 1 else None)
        picture = f"large-batches-{key}-{slug}.png"
        label, above = title.replace("MMD^2", "MMD$^2$"), f"{data.name}, {what}"
        save_curves(experiment.folder / picture, batches, curves, "batch size", label, above, True, key == "match")
        lines = [[f"{title}: batch", *map("{:,}".format, batches)], ["---"] * (1 + len(batches))]
        lines += [[name, *(spread(values_of(cell)) for cell in row)] for name, row in rows.items()]
        parts += [table(lines), f"![{title}, {what}]({picture})"]
    header = ["", "batch", "steps", "minutes", "rate", "regularizer's share of the step"]
    header += ["regularizer, ms", "eager PyTorch, ms", "share with eager PyTorch"]
    costs = [[cell.model, f"{cell.batch:,}", *costs_of(cell)] for cell in cells]
    parts.append(table([header, ["---"] * len(header), *costs]))
    experiment.write_record(f"large-batches-{slug}", {"cells": [recorded(cell) for cell in cells]})
    return "\n\n".join(parts)


def spread(values: list[float]) -> str:
    """Mean and, of several seeds, range."""
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f} to {max(values):.1f})"


def costs_of(cell: Cell) -> list[str]:
    """The cells of the last table from the third on."""
    cost, settings = cell.cost, cell.runs[0].config.recipe.model
    eager = "the same" if not cost.eager_bytes else f"does not fit: {cost.eager_bytes / 1024**3:.1f} GiB and more"
    shares = [f"{share:.1%}" if share else "" for share in (cell.share, cell.eager_share)]
    minutes = statistics.mean(run.seconds for run in cell.runs) / 60
    return [
        f"{cell.last[0]['step']:,}",
        f"{minutes:.1f}",
        f"{settings.learning_rate:.2g}",
        shares[0],
        f"{1e3 * cost.ours:.1f}",
        f"{1e3 * cost.eager:.1f}" if cost.eager is not None else eager,
        shares[1],
    ]


def recorded(cell: Cell) -> dict[str, Any]:
    of_runs = [
        {"seed": run.seed, "steps": last["step"], "seconds": run.seconds, **asdict(run.parzen), "match": matched}
        | {"codes": asdict(run.codes)}
        for run, last, matched in zip(cell.runs, cell.last, cell.matches, strict=True)
    ]
    costs = {**cell.cost._asdict(), "share": cell.share, "eager_share": cell.eager_share}
    return {"model": cell.model, "batch": cell.batch, "settings": cell.runs[0].config.recipe.to_dict()} | {
        "regularizer": costs,
        "runs": of_runs,
    }


def table(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    main()
