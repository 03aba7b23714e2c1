"""Class labels in the regularizer: each class in its own part of the prior (AAE paper, figures 3a and 4).

Trains autoencoders with a mixture of ten Gaussians and with a swiss roll as prior, in which the labeled images of
class i belong to component i or to the i-th tenth of the roll, the unlabeled ones anywhere. Shows the codes of the
test images, walks through each part, the share of the test codes that lie in the part of their class, and how well
all of them together fill the prior: their MMD^2 to it, and the share of the prior in their holes.

python python/semi_supervised.py                      # scikit-learn's digits, about a minute
python python/semi_supervised.py --data mnist --data-dir DIR --labeled 10000 all
python python/semi_supervised.py --data mnist --data-dir DIR --bandwidths 1,2,4,8
python python/semi_supervised.py --data mnist --data-dir DIR --regularizer ds-aae
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastmmd
from fastmmd.evaluation import (
    component_walks,
    posterior_codes,
    prior_holes,
    prior_parts,
    roll_walk,
    save_panels,
    save_walks,
)
from fastmmd.priors import Prior
from fastmmd.training import UserError
from fastmmd.training.experiments import Experiment, arguments, numbers

PRIORS = {"mixture": "mixture of ten Gaussians", "swiss_roll": "swiss roll"}
SCALES = (0.25, 0.5, 1.0, 2.0)  # bandwidths of the table's MMD^2, those of latent_figures.py
BANDWIDTHS = {"mixture": [2.0, 4.0, 8.0, 16.0], "swiss_roll": [0.5, 1.0, 2.0, 4.0]}  # around the prior's scale

#: Overrides of the recipes: for all data, for digits.
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mmd-ae": (
        {
            "model.closed_form": False,
            "model.regularizer_weight": 40_000.0,
            "model.input_dropout": 0.2,
        },
        {
            "model.regularizer_weight": 1_000.0,
            "model.input_dropout": 0.1,
            "training.epochs": 100,
        },
    ),
    "aae": (
        {"model.regularizer_weight": 100.0, "model.input_dropout": 0.2},
        {"model.regularizer_weight": 10.0, "training.epochs": 100},
    ),
    # Here a class counts by the square of its share of a batch: a weight for all labels, too small for some of them.
    "ds-aae": (
        {"model.regularizer_weight": 20_000.0},
        {"model.regularizer_weight": 3_000.0, "training.epochs": 100},
    ),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--regularizer", choices=SETTINGS, default="mmd-ae", help="the recipe")
    what = 'training images that keep their label, a number or "all"; several: models for each; default: 10000'
    parser.add_argument("--labeled", type=labeled, nargs="+", help=f"{what}, digits: 300 all")
    what = "of the kernels, separated by commas: wide ones place the classes and hardly see their width"
    parser.add_argument("--bandwidths", type=numbers, help=f"{what}; default: around the scale of each prior")
    with Experiment.start("Semi-supervised", parser.parse_args()) as experiment:
        if experiment.options.bandwidths and experiment.options.regularizer == "aae":
            raise UserError("--bandwidths: a discriminator has no kernels; choose another --regularizer")
        lines = [
            "Share of the test codes in the part of the prior that belongs to their class, and the share of draws from",
            "that part that lie in it: neighboring parts of the roll touch, and its noise crosses their borders.\n",
            "| prior | labels | test codes in the part of their class | draws from the prior | MMD^2 of the test codes "
            "to draws | of as many draws | share of the prior in holes | pictures |",
            "|---|---|---|---|---|---|---|---|",
        ]
        record = {}
        for count in experiment.options.labeled or ([300, -1] if experiment.is_digits else [10_000]):
            for prior in PRIORS:
                line, record[f"{prior}, {count}"] = evaluate(experiment, prior, count)
                lines.append(line)
        experiment.write_record("semi-supervised", record)
        experiment.write_report("\n".join(lines))


def labeled(text: str) -> int:
    """A number of images; "all" is -1, as in the recipes."""
    return -1 if text == "all" else int(text)


def evaluate(experiment: Experiment, prior: str, count: int) -> tuple[str, dict[str, Any]]:
    """Train a model with `count` labels and draw its pictures; returns a row of the report and of the record."""
    data, recipe = experiment.data, experiment.options.regularizer
    known = "all" if count < 0 else f"{count}"
    everywhere, digits = SETTINGS[recipe]
    overrides = everywhere | (digits if experiment.is_digits else {})
    overrides |= {"model.prior": prior, "model.code_size": 2, "model.labels": "regularizer"}
    overrides |= {"training.labeled": count, "training.evaluate_every": 0}
    if recipe != "aae":
        overrides["model.bandwidths"] = experiment.options.bandwidths or BANDWIDTHS[prior]
    run = experiment.run(f"{prior}, {known} labels", recipe, overrides, evaluate=False)
    model = run.model

    generator = torch.Generator(experiment.device).manual_seed(experiment.options.seed)
    codes = posterior_codes(model, data.test.images, generator)
    share, error = hits(model.prior, codes, data.test.labels)
    labels = torch.arange(5_000) % model.prior.num_classes
    draws = model.prior.sample(len(labels), labels=labels.to(codes.device), generator=generator, device=codes.device)
    what = f"{recipe} on {data.name}, {PRIORS[prior]}, {known} labels"
    stem = f"{prior.replace('_', '-')}-{known}"
    panels = [
        ("codes of the test images", codes, data.test.labels),
        ("draws from the prior", draws, labels),
    ]
    save_panels(experiment.folder / f"{stem}-codes.png", panels, what, model.prior)
    walks = walk(model, prior).to(experiment.device)  # [10, 16, 2]
    with torch.no_grad():
        images = model.decode(walks.flatten(0, 1)).unflatten(0, walks.shape[:2])
    title = f"{what}: decoded codes along each part, outwards"
    save_walks(experiment.folder / f"{stem}-walks.png", walks, draws, images, data.image_shape, title)
    of_draws, _ = hits(model.prior, draws, labels)
    sets = [model.prior.sample(len(codes), generator=generator, device=codes.device).double() for _ in range(3)]
    result = {
        "in_part": share,
        "standard_error": error,
        "draws_in_part": of_draws,
        "mmd2": fastmmd.mmd2(codes.double(), sets[0], SCALES).item(),
        "mmd2_of_draws": fastmmd.mmd2(sets[1], sets[0], SCALES).item(),
        "holes": prior_holes(codes.double(), sets[0], sets[2]),
        "epochs": run.epochs,
        "seconds": round(run.seconds),
        "settings": run.config.recipe.to_dict(),
    }
    print(f"{what}: {share:.2%} of the test codes in the part of their class", flush=True)
    cells = [PRIORS[prior], known, f"{share:.2%} +- {error:.2%}", f"{of_draws:.2%}", f"{result['mmd2']:.2e}"]
    cells += [f"{result['mmd2_of_draws']:.2e}", f"{result['holes']:.1%}", f"{stem}-codes.png, {stem}-walks.png"]
    return "| " + " | ".join(cells) + " |", result


def hits(prior: Prior, codes: Tensor, labels: Tensor) -> tuple[float, float]:
    """The share of codes [N, 2] in the part of their class, and its standard error."""
    hit = (prior_parts(prior, codes).cpu() == labels).double()
    return hit.mean().item(), hit.std().item() / len(hit) ** 0.5


def walk(model: Any, prior: str) -> Tensor:
    """[10, 16, 2] codes along the ten components, or along the tenths of the roll."""
    if prior == "mixture":
        return component_walks(model.prior, 16)
    return roll_walk(model.prior, 160).unflatten(0, (10, 16))


if __name__ == "__main__":
    main()
