"""Sampling generative autoencoders by Markov chains (Creswell, Arulkumaran and Bharath 2016).

Trains an AAE and a VAE, each also with the denoising criterion (DAAE, DVAE), draws codes from the prior and along arcs
between codes of the prior, and follows both through ten steps of the chain z -> x -> z. After every step it measures
the samples: their Parzen log-likelihood, and how sure a classifier of real images is of what they show.

python python/markov_sampling.py                      # scikit-learn's digits, about a minute
python python/markov_sampling.py --data mnist --data-dir DIR --epochs 50
python python/markov_sampling.py --data mnist --data-dir DIR --network convolutional   # AAE and DAAE, 200-D codes
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmmd.evaluation import (
    Classifier,
    ParzenResult,
    chain,
    parzen_evaluation,
    posterior_samples,
    save_curves,
    save_grid,
    slerp,
    train_classifier,
)
from fastmmd.training.experiments import Experiment, arguments

STEPS = range(11)
SHOWN = (0, 1, 5, 10)  # in the pictures
NOISE = 0.5  # standard deviation of the denoising criterion's noise, as in the paper
CHUNK = 1_000  # codes that walk together

#: Network -> name -> recipe, denoising.
MODELS = {
    "mlp": {"AAE": ("aae", 0.0), "DAAE": ("aae", NOISE), "VAE": ("vae", 0.0), "DVAE": ("vae", NOISE)},
    "convolutional": {"AAE": ("aae-conv", 0.0), "DAAE": ("aae-conv", NOISE)},
}


class Figures(NamedTuple):
    """What is measured of samples: their likelihood, the classifier's mean largest probability."""

    likelihood: ParzenResult
    confidence: float


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--network", choices=MODELS, default="mlp", help="of encoder and decoder")
    parser.add_argument("--samples", type=int, help="measured after each step; default: 2000 on digits, else 10000")
    with Experiment.start("Markov chain sampling", parser.parse_args()) as experiment:
        options, data = experiment.options, experiment.data
        samples = options.samples or (2_000 if experiment.is_digits else 10_000)
        classifier = train_classifier(data, experiment.folder / "classifier.pt", seed=options.seed)
        measured: dict[str, list[Figures]] = {}
        lines = [
            f"{samples:,} samples; the classifier is right on {classifier.accuracy(data.test):.1%} of test images.\n",
            "| model | samples | test log-likelihood | sigma | classifier's confidence |",
            "|---|---|---|---|---|",
        ]
        for name, (recipe, denoising) in MODELS[options.network].items():
            overrides = {"model.denoising": denoising, "training.evaluate_every": 0}
            if experiment.is_digits and options.network == "mlp":
                overrides["training.epochs"] = 100
            model = experiment.train(f"{name}, {options.network}", recipe, overrides)
            draw_pictures(experiment, model, name)
            measured[name] = [measure(experiment, images, classifier) for images in walk(experiment, model, samples)]
            posterior = posterior_samples(model, data.train.images, "training images")
            last = measure(experiment, posterior.sample(samples, options.seed), classifier)
            names = [f"prior, {step_name(step)}" for step in STEPS]
            for what, figures in zip([*names, posterior.name], [*measured[name], last], strict=True):
                lines.append(row(name, what, figures))
                print(lines[-1].strip("| ").replace(" | ", ", "), flush=True)
        save_figures(experiment, measured)
        experiment.write_report("\n".join(lines))


def walk(experiment: Experiment, model: Any, samples: int) -> Iterator[Tensor]:
    """The images [samples, data_dim] after 0, 1, ..., 10 steps from draws of the prior."""
    generator = torch.Generator(experiment.device).manual_seed(experiment.options.seed)
    start = model.prior.sample(samples, generator=generator, device=experiment.device)
    corrupt = model.denoising > 0
    chains = [chain(model, part, max(STEPS), generator, corrupt=corrupt) for part in start.split(CHUNK)]
    for states in zip(*chains, strict=True):
        yield torch.cat([state.images for state in states])


def measure(experiment: Experiment, images: Tensor, classifier: Classifier) -> Figures:
    """The figures of images [N, data_dim]."""
    likelihood = parzen_evaluation(images, experiment.data.validation.images, experiment.data.test.images)
    return Figures(likelihood, classifier.probabilities(images).amax(1).mean().item())


def row(name: str, samples: str, figures: Figures) -> str:
    """A line of the report's table."""
    likelihood, confidence = figures
    value = f"{likelihood.mean:.1f} +- {likelihood.standard_error:.1f}"
    return f"| {name} | {samples} | {value} | {likelihood.sigma:.3f} | {confidence:.3f} |"


def draw_pictures(experiment: Experiment, model: Any, name: str) -> None:
    """Samples, and arcs between codes of the prior, after some steps of the chain: a row for each."""
    data, folder = experiment.data, experiment.folder
    generator = torch.Generator(experiment.device).manual_seed(experiment.options.seed)
    draws = model.prior.sample(14, generator=generator, device=experiment.device)
    ends = model.prior.sample(6, generator=generator, device=experiment.device)
    arcs = slerp(ends[:3], ends[3:], 14)  # [3, 14, code_size]
    corrupt = model.denoising > 0
    states = list(chain(model, torch.cat([draws, arcs.flatten(0, 1)]), max(STEPS), generator, corrupt=corrupt))
    images = torch.stack([states[step].images for step in SHOWN])  # [steps, 14 + 3 * 14, data_dim]
    paths = images[:, 14:].unflatten(1, (3, 14)).transpose(0, 1)  # [3, steps, 14, data_dim]
    what = f"{name} on {data.name}, {'noise and ' if corrupt else ''}encode-decode steps"
    rows = [step_name(step) for step in SHOWN]
    path = folder / f"{name.lower()}-samples.png"
    save_grid(path, images[:, :14], data.image_shape, f"{what}: from the prior", rows)
    path = folder / f"{name.lower()}-interpolations.png"
    title = f"{what}: three arcs between codes of the prior"
    save_grid(path, paths.flatten(0, 1), data.image_shape, title, 3 * rows)


def save_figures(experiment: Experiment, figures: dict[str, list[Figures]]) -> None:
    """Likelihood and confidence against the number of steps, a curve for each model."""
    where, x = f"samples from the prior on {experiment.data.name}", "encode-decode steps"
    curves: dict[str, Any] = {
        name: ([f.likelihood.mean for f in each], [f.likelihood.standard_error for f in each])
        for name, each in figures.items()
    }
    label = "test log-likelihood (nats)"
    save_curves(experiment.folder / "likelihood.png", STEPS, curves, x, label, f"Parzen windows, {where}")
    curves = {name: ([f.confidence for f in each], None) for name, each in figures.items()}
    label = "mean of the largest probability"
    save_curves(experiment.folder / "confidence.png", STEPS, curves, x, label, f"A classifier's confidence, {where}")


def step_name(step: int) -> str:
    return f"{step} step{'s' if step != 1 else ''}"


if __name__ == "__main__":
    main()
