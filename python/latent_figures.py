"""Two-dimensional codes of held-out images under a Gaussian and a mixture of ten (AAE paper, figure 2; DS-AAE paper).

Trains AAE, MMD-AE, DS-AAE and (Gaussian only) a VAE without labels, shows their codes side by side with draws from the
prior, coloured by label, and decodes the percentiles of the Gaussian. The table checks by MMD^2 what the eye sees.

python python/latent_figures.py                      # scikit-learn's digits, 100 epochs, about a minute
python python/latent_figures.py --data mnist --data-dir DIR --jobs 2
"""

from __future__ import annotations

from typing import Any

import torch

from fastmmd.evaluation import code_statistics, percentile_grid, posterior_codes, save_grid, save_panels
from fastmmd.training.experiments import Experiment, Run, Spec, arguments

PRIORS = {"gaussian": "N(0, I)", "mixture": "mixture of ten Gaussians"}
MODELS = {"AAE": "aae", "MMD-AE": "mmd-ae", "DS-AAE": "ds-aae", "VAE": "vae"}
SHOWN = 5_000  # codes of a panel at most


def settings(recipe: str, prior: str) -> dict[str, Any]:
    """What goes over the recipe for two-dimensional codes."""
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
    draws, more = (runs[0].model.prior.sample(len(images), generator=generator, device=device) for _ in range(2))
    shown = slice(-SHOWN, None)
    panels = [("draws from the prior", draws[shown], None)]
    lines = ["| model | MMD^2 to the prior | of a perfect match | std of the codes | of the prior | epochs | seconds |"]
    lines += ["|---|---|---|---|---|---|---|"]
    distances = {}
    for run in runs:
        name = run.spec.name.removesuffix(f" {prior}")
        codes = posterior_codes(run.model, images, generator)
        found = code_statistics(codes, draws, more)
        distances[name] = found.mmd2 / found.mmd2_null
        panels.append((f"{name}, MMD$^2$ {found.mmd2:.1e}", codes[shown], None if labels is None else labels[shown]))
        stds = (f"{first:.2f}, {second:.2f}" for first, second in (found.std, found.prior_std))
        cells = [name, f"{found.mmd2:.2e}", f"{found.mmd2_null:.2e}", *stds, f"{run.epochs}", f"{run.seconds:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
        if prior == "gaussian":
            grid = percentile_grid(run.model.prior, 15).to(device)
            decoded = run.model.decode(grid.flatten(0, 1)).unflatten(0, grid.shape[:2])
            title = f"{name} on {data.name}, {PRIORS[prior]}: decoded percentiles of the prior"
            save_grid(folder / f"grid-{name.lower()}.png", decoded, data.image_shape, title)
    what = f"codes of {len(images):,} held-out images of {data.name}, prior: {PRIORS[prior]}"
    save_panels(folder / f"latent-{prior}.png", panels, f"{what} (perfect match: {found.mmd2_null:.1e})", draws)
    order = sorted(distances, key=lambda name: distances[name])
    verdict = f"Nearest to the prior is {order[0]}, farthest {order[-1]}: {distances[order[0]]:.1f} and "
    verdict += f"{distances[order[-1]]:.1f} times the value of a perfect match."
    parts = [f"## Prior: {PRIORS[prior]}", f"{len(images):,} held-out images.", "\n".join(lines), verdict]
    parts += [f"![{what}](latent-{prior}.png)"]
    if prior == "gaussian":
        parts += [f"![decoded percentiles, {name}](grid-{name.lower()}.png)" for name in distances]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
