"""Two-dimensional codes of held-out images under a Gaussian and a mixture of ten (AAE paper, figure 2; DS-AAE paper).

Trains AAE, MMD-AE, DS-AAE and (Gaussian only) a VAE without labels, shows their codes side by side with draws from the
prior, colored by label, and decodes the percentiles of the Gaussian. The table checks by MMD^2, at bandwidths down to
the width of the mixture's parts, and by the share of the prior in holes of the codes, what the eye sees. Beside the
held-out images it has as many training images, at random and as they follow one another: where those differ, the order
of the data does (that of MNIST is not random), and codes of other images cannot match better than that.

python python/latent_figures.py                      # scikit-learn's digits, 100 epochs, about a minute
python python/latent_figures.py --data mnist --data-dir DIR --jobs 2
python python/latent_figures.py --data mnist --data-dir DIR --priors gaussian --hidden 256,128 --epochs 8
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastmmd
from fastmmd.evaluation import percentile_grid, posterior_codes, prior_holes, save_grid, save_panels
from fastmmd.training.experiments import Experiment, Run, Spec, arguments, numbers

PRIORS = {"gaussian": "N(0, I)", "mixture": "mixture of ten Gaussians"}
MODELS = {"AAE": "aae", "MMD-AE": "mmd-ae", "DS-AAE": "ds-aae", "VAE": "vae"}
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0)  # of the table's MMD^2, for both priors
MATCHES = 20  # sets of draws that show how far from the prior a perfect match lies
SHOWN = 5_000  # codes of a panel at most


def settings(recipe: str, prior: str) -> dict[str, Any]:
    """Overrides of the recipe for two-dimensional codes."""
    common = {"model.code_size": 2, "model.prior": prior, "model.prior_std": 1.0, "training.evaluate_every": 0}
    if recipe in ("mmd-ae", "ds-aae"):  # the parts of the mixture are 0.2 wide
        start = 1000.0 if prior == "gaussian" else 100.0  # codes that are held too early stay between the parts
        weight = start if recipe == "mmd-ae" else start / 2
        common |= {"model.regularizer_weight": weight, "training.regularizer_growth": 1e5 / start}
        common |= {"model.bandwidths": [0.25, 0.5, 1.0, 2.0, 4.0], "model.input_dropout": 0.0}
    if (recipe, prior) == ("ds-aae", "mixture"):  # the wide kernel calls back codes that begin to run away
        common |= {"model.bandwidths": [0.25, 0.5, 1.0, 2.0, 4.0, 16.0], "model.features": 1_920}
    if recipe == "aae":
        common |= {"model.adversary_learning_rate": 0.004, "training.average": 0.999}
        common |= {"model.regularizer_weight": 10.0, "training.regularizer_growth": 100.0}
        if prior == "mixture":  # noise as wide as the prior shows the discriminator which parts have too many codes
            common |= {"model.regularizer_weight": 100.0, "training.regularizer_growth": 10.0}
            common |= {"model.adversary_noise": 4.0}
    return common


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--hidden", type=numbers, help="widths of the encoder's layers, as 256,128; default: the recipes'"
    )
    parser.add_argument("--priors", choices=PRIORS, nargs="+", default=list(PRIORS))
    options = parser.parse_args()
    if options.epochs is None and options.data == "digits":
        options.epochs = 100
    network = {} if options.hidden is None else {"model.hidden": [int(width) for width in options.hidden]}
    with Experiment.start("Latent figures", options) as experiment:
        specs = {
            prior: [
                Spec(f"{name} {prior}", recipe, settings(recipe, prior) | network)
                for name, recipe in MODELS.items()
                if (recipe, prior) != ("vae", "mixture")  # its divergence has no closed form there
            ]
            for prior in options.priors
        }
        runs = experiment.run_all([spec for several in specs.values() for spec in several], evaluate=False)
        parts = []
        for prior in specs:
            of_prior = [run for run in runs if run.spec in specs[prior]]
            text, results = section(prior, of_prior, experiment)
            recipes = {run.spec.name: run.config.recipe.to_dict() for run in of_prior}
            experiment.write_record(f"latent-{prior}", {"results": results, "settings": recipes})
            parts.append(text)
        experiment.write_report("\n\n".join(parts))
        print("\n\n".join(parts))


@torch.no_grad()
def section(prior: str, runs: list[Run], experiment: Experiment) -> tuple[str, dict[str, dict[str, Any]]]:
    """The pictures of one prior, its part of the report and its figures by model."""
    data, folder, device = experiment.data, experiment.folder, experiment.device
    splits = (data.validation, data.test)  # no model has seen either
    images = torch.cat([split.images for split in splits])
    labels = None if data.test.labels is None else torch.cat([split.labels for split in splits])
    generator = torch.Generator(device).manual_seed(experiment.options.seed)
    sets = [runs[0].model.prior.sample(len(images), generator=generator, device=device) for _ in range(MATCHES)]
    perfect = torch.stack([distance(draws, runs[0]) for draws in sets])
    draws, more = sets[:2]
    results: dict[str, dict[str, Any]] = {
        "draws from the prior": {"mmd2": perfect.median().item(), "mmd2_most": perfect.max().item()}
    }
    results["draws from the prior"] |= {"holes": prior_holes(sets[2], draws, more), "std": stds(torch.cat(sets))}
    order = torch.randperm(len(data.train.images), generator=generator, device=device)[: len(images)]
    shown = torch.randperm(len(images), generator=generator, device=device)[:SHOWN]
    panels = [("draws from the prior", draws[shown], None)]
    for run in runs:
        name = run.spec.name.removesuffix(f" {prior}")
        codes = posterior_codes(run.model, images, generator)
        result: dict[str, Any] = {"mmd2": distance(codes, run).item(), "holes": prior_holes(codes, draws, more)}
        for key, some in (("random", data.train.images[order]), ("consecutive", data.train.images[: len(images)])):
            result[f"mmd2_training_{key}"] = distance(posterior_codes(run.model, some, generator), run).item()
        results[name] = result | {"std": stds(codes), "epochs": run.epochs, "seconds": round(run.seconds)}
        title = f"{name}, MMD$^2$ {result['mmd2']:.1e}"
        panels.append((title, codes[shown], None if labels is None else labels[shown.to(labels.device)]))
        if prior == "gaussian":
            grid = percentile_grid(run.model.prior, 15).to(device)
            decoded = run.model.decode(grid.flatten(0, 1)).unflatten(0, grid.shape[:2])
            title = f"{name} on {data.name}, {PRIORS[prior]}: decoded percentiles of the prior"
            save_grid(folder / f"grid-{name.lower()}.png", decoded, data.image_shape, title)
    match, target = results["draws from the prior"]["mmd2"], runs[0].model.prior
    what = f"codes of {len(images):,} held-out images of {data.name}, prior: {PRIORS[prior]}"
    title = f"{what}, whose draws have MMD$^2$ {match:.1e}"
    save_panels(folder / f"latent-{prior}.png", panels, title, target)
    parts = [f"## Prior: {PRIORS[prior]}", table(results), verdict(results), f"![{what}](latent-{prior}.png)"]
    if prior == "gaussian":
        parts += [f"![decoded percentiles, {name}](grid-{name.lower()}.png)" for name in list(results)[1:]]
    return "\n\n".join(parts), results


def table(results: dict[str, dict[str, Any]]) -> str:
    """A row for each model, draws from the prior last."""
    match = results["draws from the prior"]["mmd2"]
    heads = ["model", "MMD^2 to the prior", "in units of a perfect match", "of as many training images, at random"]
    heads += ["one after another", "share of the prior in holes", "std of the codes", "epochs", "seconds"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in [*list(results)[1:], "draws from the prior"]:
        row = results[name]
        cells = [name, f"{row['mmd2']:.2e}", f"{row['mmd2'] / match:.1f}"]
        cells += [
            f"{row[key]:.2e}" if key in row else "" for key in ("mmd2_training_random", "mmd2_training_consecutive")
        ]
        cells += [f"{row['holes']:.1%}", ", ".join(f"{std:.2f}" for std in row["std"])]
        lines.append("| " + " | ".join([*cells, *(f"{row.get(key, '')}" for key in ("epochs", "seconds"))]) + " |")
    return "\n".join(lines)


def verdict(results: dict[str, dict[str, Any]]) -> str:
    """Who is nearest, and who is told from draws of the prior."""
    most = results["draws from the prior"]["mmd2_most"]
    order = sorted(list(results)[1:], key=lambda name: results[name]["mmd2"])
    alike = [name for name in order if results[name]["mmd2"] <= most]
    return (
        f"Nearest to the prior is {order[0]}, farthest {order[-1]}. Not told from draws of the prior (at most the "
        f"largest MMD^2 of {MATCHES} sets of as many draws, {most:.2e}): {', '.join(alike) or 'no model'}."
    )


def stds(codes: Tensor) -> list[float]:
    return codes.std(0).tolist()


def distance(codes: Tensor, run: Run) -> Tensor:
    """MMD^2 to the run's prior itself, in closed form: 0-d."""
    return fastmmd.mmd2_to_prior(codes.double(), run.model.prior, BANDWIDTHS)


if __name__ == "__main__":
    main()
