"""Two-dimensional codes of held-out images under a Gaussian and a mixture of ten (AAE paper, figure 2; DS-AAE paper).

Trains AAE, MMD-AE, DS-AAE and (Gaussian only) a VAE without labels, shows their codes side by side with draws from the
prior, colored by label, and decodes the percentiles of the Gaussian. The table checks by MMD^2, at bandwidths down to
the width of the mixture's parts, what the eye sees.

python python/latent_figures.py                      # scikit-learn's digits, 100 epochs, about a minute
python python/latent_figures.py --data mnist --data-dir DIR --jobs 2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastmmd
from fastmmd.evaluation import percentile_grid, posterior_codes, save_grid, save_panels
from fastmmd.training.experiments import Experiment, Run, Spec, arguments

PRIORS = {"gaussian": "N(0, I)", "mixture": "mixture of ten Gaussians"}
MODELS = {"AAE": "aae", "MMD-AE": "mmd-ae", "DS-AAE": "ds-aae", "VAE": "vae"}
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0)  # of the table's MMD^2, for both priors
MATCHES = 20  # sets of draws that show how far from the prior a perfect match lies
SHOWN = 5_000  # codes of a panel at most


def settings(recipe: str, prior: str) -> dict[str, Any]:
    """Overrides of the recipe for two-dimensional codes."""
    common = {"model.code_size": 2, "model.prior": prior, "model.prior_std": 1.0, "training.evaluate_every": 0}
    if prior == "mixture" and recipe in ("mmd-ae", "ds-aae"):
        common["model.bandwidths"] = [0.25, 0.5, 1.0, 2.0, 4.0]  # its parts are 0.2 wide
    return common


def main() -> None:
    options = arguments(__doc__).parse_args()
    if options.epochs is None and options.data == "digits":
        options.epochs = 100
    with Experiment.start("Latent figures", options) as experiment:
        specs = {
            prior: [
                Spec(f"{name} {prior}", recipe, settings(recipe, prior))
                for name, recipe in MODELS.items()
                if (recipe, prior) != ("vae", "mixture")  # its divergence has no closed form there
            ]
            for prior in PRIORS
        }
        runs = experiment.run_all([spec for several in specs.values() for spec in several], evaluate=False)
        text = "\n\n".join(
            section(prior, [run for run in runs if run.spec in specs[prior]], experiment) for prior in PRIORS
        )
        experiment.write_report(text)
        print(text)


@torch.no_grad()
def section(prior: str, runs: list[Run], experiment: Experiment) -> str:
    """The pictures of one prior, and its part of the report."""
    data, folder, device = experiment.data, experiment.folder, experiment.device
    splits = (data.validation, data.test)  # no model has seen either
    images = torch.cat([split.images for split in splits])
    labels = None if data.test.labels is None else torch.cat([split.labels for split in splits])
    generator = torch.Generator(device).manual_seed(experiment.options.seed)
    sets = [runs[0].model.prior.sample(len(images), generator=generator, device=device) for _ in range(MATCHES)]
    perfect = torch.stack([distance(draws, runs[0]) for draws in sets])
    match, worst, draws = perfect.median().item(), perfect.max().item(), sets[0]
    shown = slice(-SHOWN, None)
    panels = [("draws from the prior", draws[shown], None)]
    lines = ["| model | MMD^2 to the prior | in units of a perfect match | std of the codes | epochs | seconds |"]
    lines += ["|---|---|---|---|---|---|"]
    distances = {}
    for run in runs:
        name = run.spec.name.removesuffix(f" {prior}")
        codes = posterior_codes(run.model, images, generator)
        distances[name] = distance(codes, run).item()
        title = f"{name}, MMD$^2$ {distances[name]:.1e}"
        panels.append((title, codes[shown], None if labels is None else labels[shown]))
        stds = ", ".join(f"{std:.2f}" for std in codes.std(0).tolist())
        cells = [name, f"{distances[name]:.2e}", f"{distances[name] / match:.1f}", stds, f"{run.epochs}"]
        lines.append("| " + " | ".join([*cells, f"{run.seconds:.0f}"]) + " |")
        if prior == "gaussian":
            grid = percentile_grid(run.model.prior, 15).to(device)
            decoded = run.model.decode(grid.flatten(0, 1)).unflatten(0, grid.shape[:2])
            title = f"{name} on {data.name}, {PRIORS[prior]}: decoded percentiles of the prior"
            save_grid(folder / f"grid-{name.lower()}.png", decoded, data.image_shape, title)
    stds = ", ".join(f"{std:.2f}" for std in torch.cat(sets).std(0).tolist())
    lines.append(f"| draws from the prior | {match:.2e} | 1.0 | {stds} | | |")
    what = f"codes of {len(images):,} held-out images of {data.name}, prior: {PRIORS[prior]}"
    save_panels(folder / f"latent-{prior}.png", panels, f"{what}, whose draws have MMD$^2$ {match:.1e}", draws)
    order = sorted(distances, key=lambda name: distances[name])
    alike = [name for name in order if distances[name] <= worst]
    verdict = (
        f"Nearest to the prior is {order[0]}, farthest {order[-1]}. Not told from draws of the prior (at most the "
    )
    verdict += f"largest MMD^2 of {MATCHES} sets of as many draws, {worst:.2e}): {', '.join(alike) or 'no model'}."
    parts = [f"## Prior: {PRIORS[prior]}", "\n".join(lines), verdict, f"![{what}](latent-{prior}.png)"]
    if prior == "gaussian":
        parts += [f"![decoded percentiles, {name}](grid-{name.lower()}.png)" for name in distances]
    return "\n\n".join(parts)


def distance(codes: Tensor, run: Run) -> Tensor:
    """MMD^2 to the run's prior itself, in closed form: 0-d."""
    return fastmmd.mmd2_to_prior(codes.double(), run.model.prior, BANDWIDTHS)


if __name__ == "__main__":
    main()
