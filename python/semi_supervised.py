"""Class labels in the regularizer: each class in its own part of the prior (AAE paper, figures 3a and 4).

Trains autoencoders with a mixture of ten Gaussians and with a swiss roll as prior, in which the labeled images of
class i belong to component i or to the i-th tenth of the roll, the unlabeled ones anywhere. Shows the codes of the
test images, walks through each part, the share of the test codes that lie in the part of their class, and how well
all of them together fill the prior: their MMD^2 to it, and the share of the prior in their holes. On MNIST, MMD-AE and
AAE take labeled images beside each batch, as many of each class (training.labeled_batch); MMD-AE also shapes the codes
without dropout (model.shape_bandwidths), AAE puts noise on what its discriminator sees (model.adversary_noise).

python python/semi_supervised.py                      # scikit-learn's digits, about a minute
python python/semi_supervised.py --data mnist --data-dir DIR --seeds 3
python python/semi_supervised.py --data mnist --data-dir DIR --regularizer aae --labeled 1000 10000
"""

from __future__ import annotations

import statistics
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
from fastmmd.priors import Prior, SwissRoll
from fastmmd.training import UserError
from fastmmd.training.experiments import Experiment, Run, Spec, arguments, numbers

PRIORS = {"mixture": "mixture of ten Gaussians", "swiss_roll": "swiss roll"}
SCALES = (0.25, 0.5, 1.0, 2.0)  # bandwidths of the table's MMD^2, those of latent_figures.py
BANDWIDTHS = {"mixture": [2.0, 4.0, 8.0, 16.0], "swiss_roll": [0.5, 1.0, 2.0, 4.0]}  # around the prior's scale

#: Where the shape has narrow bandwidths: wide ones place the classes.
WIDE = {
    "mixture": {"model.bandwidths": [2.0, 4.0, 8.0, 16.0], "model.shape_weight": 0.5},
    "swiss_roll": {"model.bandwidths": [1.0, 2.0, 4.0, 8.0], "model.shape_weight": 0.4},
}

#: What unlabeled images need to come to the part of their class; chosen, as all settings, by the validation images.
FEW_LABELS = {
    "model.input_dropout": 0.2,
    "model.hidden_dropout": 0.1,
    "model.shift": 1,
    "training.labeled_batch": 250,
}

#: Overrides of the recipes.
SETTINGS: dict[str, dict[str, Any]] = {
    "mmd-ae": FEW_LABELS
    | {
        "model.closed_form": False,
        "model.regularizer_weight": 40_000.0,
        "model.shape_bandwidths": [0.25, 0.5, 1.0, 2.0],
    },
    "aae": FEW_LABELS
    | {"model.regularizer_weight": 100.0, "model.adversary_noise": 1.0, "model.adversary_learning_rate": 4e-3},
    # Here a class counts by the square of its share of a batch: a weight for all labels, too small for some of them.
    "ds-aae": {"model.mode": "first_order", "model.regularizer_weight": 20_000.0},
}
DIGITS: dict[str, dict[str, Any]] = {
    "mmd-ae": {"model.closed_form": False, "model.regularizer_weight": 1_000.0, "model.input_dropout": 0.1},
    "aae": {"model.regularizer_weight": 10.0, "model.input_dropout": 0.2},
    "ds-aae": {"model.mode": "first_order", "model.regularizer_weight": 3_000.0},
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--regularizer", choices=SETTINGS, default="mmd-ae", help="the recipe")
    parser.add_argument("--priors", choices=PRIORS, nargs="+", default=list(PRIORS))
    what = 'training images that keep their label, a number or "all"; several: models for each; default: 10000'
    parser.add_argument("--labeled", type=labeled, nargs="+", help=f"{what}, digits: 300 all")
    what = "of the kernels, separated by commas: wide ones place the classes and hardly see their width"
    parser.add_argument("--bandwidths", type=numbers, help=f"{what}; default: around the scale of each prior")
    what = "models of each row, from --seed on; the pictures are of the first"
    parser.add_argument("--seeds", type=int, default=1, help=f"{what}; default: 1")
    with Experiment.start("Semi-supervised", parser.parse_args()) as experiment:
        if experiment.options.bandwidths and experiment.options.regularizer == "aae":
            raise UserError("--bandwidths: a discriminator has no kernels; choose another --regularizer")
        if experiment.options.seeds < 1:
            raise UserError(f"--seeds: got {experiment.options.seeds}, expected at least 1")
        lines = [
            "Share of the codes in the part of the prior that belongs to their class, and the share of draws from",
            "that part that lie in it: neighboring parts of the roll touch, and its noise crosses their borders.",
            "Settings are chosen by the validation images. Of several seeds the mean (lowest to highest).\n",
            "| prior | labels | seeds | test codes in the part of their class | draws from the prior | MMD^2 of the "
            "test codes to draws | of as many draws | share of the prior in holes | validation codes in the part of "
            "their class | MMD^2 of the validation codes | pictures |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        record = {}
        for count in experiment.options.labeled or ([300, -1] if experiment.is_digits else [10_000]):
            for prior in experiment.options.priors:
                line, record[f"{prior}, {count}"] = evaluate(experiment, prior, count)
                lines.append(line)
        experiment.write_record("semi-supervised", record)
        experiment.write_report("\n".join(lines))


def labeled(text: str) -> int:
    """A number of images; "all" is -1, as in the recipes."""
    return -1 if text == "all" else int(text)


def evaluate(experiment: Experiment, prior: str, count: int) -> tuple[str, dict[str, Any]]:
    """Train models with `count` labels, draw pictures of the first; returns a row of the report and of the record."""
    options, recipe = experiment.options, experiment.options.regularizer
    known = "all" if count < 0 else f"{count}"
    overrides = DIGITS[recipe] | {"training.epochs": 100} if experiment.is_digits else dict(SETTINGS[recipe])
    overrides |= {"model.prior": prior, "model.code_size": 2, "model.labels": "regularizer"}
    overrides |= {"training.labeled": count, "training.evaluate_every": 0}
    if "training.labeled_batch" in overrides and prior == "swiss_roll":
        overrides["model.prior_margin"] = 0.3  # labeled codes away from the borders of their tenths
    if recipe != "aae":
        overrides["model.bandwidths"] = BANDWIDTHS[prior]
        if overrides.get("model.shape_bandwidths"):
            overrides |= WIDE[prior]
        if options.bandwidths:
            overrides["model.bandwidths"] = options.bandwidths
    seeds = range(options.seed, options.seed + options.seeds)
    specs = [Spec(f"{prior}, {known} labels", recipe, overrides, seed) for seed in seeds]
    runs = experiment.run_all(specs, evaluate=False)
    what = f"{recipe} on {experiment.data.name}, {PRIORS[prior]}, {known} labels"
    results = [measure(experiment, run) for run in runs]
    for result in results:
        share = f"{result['test']['in_part']:.2%} of the test codes in the part of their class"
        print(f"{what}, seed {result['seed']}: {share}, MMD^2 {result['test']['mmd2']:.1e}", flush=True)
    stem = f"{prior.replace('_', '-')}-{known}"
    draw(experiment, runs[0].model, prior, what, stem)

    def spread(split: str, key: str, form: str) -> str:
        return of_seeds([result[split][key] for result in results], form)

    error = f" +- {results[0]['test']['standard_error']:.2%}"
    cells = [PRIORS[prior], known, ", ".join(map(str, seeds)), spread("test", "in_part", ".2%") + error]
    cells += [of_seeds([result["draws_in_part"] for result in results], ".2%"), spread("test", "mmd2", ".2e")]
    cells += [spread("test", "mmd2_of_draws", ".2e")]
    cells += [spread("test", "holes", ".1%"), spread("validation", "in_part", ".2%")]
    cells += [spread("validation", "mmd2", ".2e"), f"{stem}-codes.png, {stem}-walks.png"]
    settings = {"epochs": runs[0].epochs, "settings": runs[0].config.recipe.to_dict()}
    return "| " + " | ".join(cells) + " |", settings | {"runs": results}


def of_seeds(values: list[float], form: str) -> str:
    """The mean, and of several the range."""
    mean = f"{statistics.mean(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ({min(values):{form}} to {max(values):{form}})"


def measure(experiment: Experiment, run: Run) -> dict[str, Any]:
    """Where the codes of validation and test images lie, and draws from the prior."""
    data, prior = experiment.data, run.model.prior
    generator = torch.Generator(experiment.device).manual_seed(run.seed)
    result: dict[str, Any] = {"seed": run.seed, "seconds": round(run.seconds)}
    for name, split in (("test", data.test), ("validation", data.validation)):
        codes = posterior_codes(run.model, split.images, generator)
        share, error = hits(prior, codes, split.labels)
        draws = [prior.sample(len(codes), generator=generator, device=codes.device).double() for _ in range(3)]
        result[name] = {
            "in_part": share,
            "standard_error": error,
            "mmd2": fastmmd.mmd2(codes.double(), draws[0], SCALES).item(),
            "mmd2_of_draws": fastmmd.mmd2(draws[1], draws[0], SCALES).item(),
            "holes": prior_holes(codes.double(), draws[0], draws[2]),
        }
    draws, labels = labeled_draws(experiment, prior, run.seed)
    result["draws_in_part"], _ = hits(prior, draws, labels)
    return result


def labeled_draws(experiment: Experiment, prior: Prior, seed: int) -> tuple[Tensor, Tensor]:
    """Draws [5000, 2] from the prior, as many from each part, and the numbers of the parts [5000]."""
    generator = torch.Generator(experiment.device).manual_seed(seed)
    labels = torch.arange(5_000) % prior.num_classes
    device = experiment.device
    if isinstance(prior, SwissRoll):
        prior = SwissRoll(num_classes=prior.num_classes)  # without a margin
    return prior.sample(5_000, labels=labels.to(device), generator=generator, device=device), labels


def draw(experiment: Experiment, model: Any, prior: str, what: str, stem: str) -> None:
    """The codes of the test images beside draws, and walks through each part."""
    data, seed = experiment.data, experiment.options.seed
    codes = posterior_codes(model, data.test.images, torch.Generator(experiment.device).manual_seed(seed))
    draws, labels = labeled_draws(experiment, model.prior, seed)
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
