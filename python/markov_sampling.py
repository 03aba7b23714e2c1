"""Sampling generative autoencoders by Markov chains (Creswell, Arulkumaran and Bharath 2016).

Trains an AAE and a VAE, each also with the denoising criterion (DAAE, DVAE), draws codes from the prior and along arcs
between codes of the prior, and follows both through ten steps of the chain z -> x -> z. After every step it measures
the samples: their Parzen log-likelihood, the standard deviation of their codes beside that of real images, and, where
test images are of the classes of training images, how sure a classifier of real images is of what they show.

python python/markov_sampling.py                      # scikit-learn's digits, about a minute
python python/markov_sampling.py --data mnist --data-dir DIR --epochs 50
python python/markov_sampling.py --data mnist --data-dir DIR --network convolutional   # AAE and DAAE, 200-D codes
python python/markov_sampling.py --data celeba --data-dir DIR --network paper          # the paper's settings; also svhn
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmmd.evaluation import (
    ChainState,
    Classifier,
    ParzenResult,
    chain,
    parzen_evaluation,
    posterior_codes,
    posterior_samples,
    save_curves,
    save_grid,
    slerp,
    train_classifier,
)
from fastmmd.training.experiments import Experiment, Run, arguments
from fastmmd.training.report import sigma_grid

STEPS = range(11)
SHOWN = (0, 1, 5, 10)  # in the pictures
SMALL = 3 * 32 * 32  # numbers of an image; of larger ones the pictures show fewer
NOISE = 0.5  # standard deviation of the denoising criterion's noise, as in the paper
CHUNK = 1_000  # codes that walk together

#: Network -> name -> recipe, denoising.
MODELS = {
    "mlp": {"AAE": ("aae", 0.0), "DAAE": ("aae", NOISE), "VAE": ("vae", 0.0), "DVAE": ("vae", NOISE)},
    "convolutional": {"AAE": ("aae-conv", 0.0), "DAAE": ("aae-conv", NOISE)},
    "paper": {
        "VAE": ("vae-conv-paper", 0.0),
        "DVAE": ("vae-conv-paper", NOISE),
        "AAE": ("aae-conv-paper", 0.0),
        "DAAE": ("aae-conv-paper", NOISE),
    },
}


class Figures(NamedTuple):
    """What is measured of samples: their likelihood, the mean standard deviation of a dimension of their codes, the
    classifier's mean largest probability."""

    likelihood: ParzenResult
    code_std: float
    confidence: float | None


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--network", choices=MODELS, default="mlp", help="of encoder and decoder")
    parser.add_argument("--samples", type=int, help="measured after each step; default: 2000 on digits, else 10000")
    with Experiment.start("Markov chain sampling", parser.parse_args()) as experiment:
        options, data = experiment.options, experiment.data
        samples = options.samples or (2_000 if experiment.is_digits else 10_000)
        classifier = classifier_of(experiment)
        about = f"{samples:,} samples."
        if classifier is not None:
            about += f" The classifier is right on {classifier.accuracy(data.test):.1%} of test images."
        lines = [
            f"{about} The std of codes is the mean over their dimensions.\n",
            "| model | samples | test log-likelihood | sigma | std of codes | classifier's confidence |",
            "|---|---|---|---|---|---|",
        ]
        measured: dict[str, list[Figures]] = {}
        records = []
        for name, (recipe, denoising) in MODELS[options.network].items():
            overrides = {"model.denoising": denoising, "training.evaluate_every": 0}
            if experiment.is_digits and options.network == "mlp":
                overrides["training.epochs"] = 100
            run = experiment.run(f"{name}, {options.network}", recipe, overrides, evaluate=False)
            draw_pictures(experiment, run.model, name)
            rows = measure_all(experiment, run, samples, classifier)
            measured[name] = [rows[step_name(step)] for step in STEPS]
            test_std = code_std(encode(experiment, run.model, data.test.images))
            for what, figures in rows.items():
                lines.append(line(name, what, figures))
                print(lines[-1].strip("| ").replace(" | ", ", "), flush=True)
            lines.append(f"| {name} | codes of {len(data.test):,} test images | | | {test_std:.3f} | |")
            records.append(record(name, run, rows, test_std))
        save_figures(experiment, measured)
        accuracy = None if classifier is None else classifier.accuracy(data.test)
        experiment.write_record(
            "markov-sampling",
            {"data": data.name, "samples": samples, "classifier_accuracy": accuracy, "models": records},
        )
        experiment.write_report("\n".join(lines))


def classifier_of(experiment: Experiment) -> Classifier | None:
    """A classifier of the training images, if test images are of the same classes: other people's faces are not."""
    train, test = experiment.data.train.labels, experiment.data.test.labels
    if train is None or test is None or not bool(torch.isin(test, train).all()):
        return None
    return train_classifier(experiment.data, experiment.folder / "classifier.pt", seed=experiment.options.seed)


def measure_all(experiment: Experiment, run: Run, samples: int, classifier: Classifier | None) -> dict[str, Figures]:
    """By name: the samples after each step, and those from the codes of training images."""
    train, sigmas = experiment.data.train.images, sigma_grid(run.config.recipe.evaluation)
    rows = {
        step_name(step): measure(experiment, state, classifier, sigmas)
        for step, state in zip(STEPS, walk(experiment, run.model, samples), strict=True)
    }
    posterior = posterior_samples(run.model, train, "training images")
    state = ChainState(encode(experiment, run.model, train), posterior.sample(samples, experiment.options.seed))
    rows[posterior.name] = measure(experiment, state, classifier, sigmas)
    return rows


def encode(experiment: Experiment, model: Any, images: Tensor) -> Tensor:
    """Codes of images [N, data_dim], drawn from the posterior: [N, code_size]."""
    random = generator(experiment)
    return torch.cat([posterior_codes(model, part, random) for part in images.split(CHUNK)])


def walk(experiment: Experiment, model: Any, samples: int) -> Iterator[ChainState]:
    """Codes [samples, code_size] and images [samples, data_dim] after 0, 1, ..., 10 steps from draws of the prior."""
    random = generator(experiment)
    start = model.prior.sample(samples, generator=random, device=experiment.device)
    corrupt = model.denoising > 0
    chains = [chain(model, part, max(STEPS), random, corrupt=corrupt) for part in start.split(CHUNK)]
    for states in zip(*chains, strict=True):
        yield ChainState(*(torch.cat(parts) for parts in zip(*states, strict=True)))


def measure(experiment: Experiment, state: ChainState, classifier: Classifier | None, sigmas: list[float]) -> Figures:
    """The figures of codes and images."""
    data = experiment.data
    likelihood = parzen_evaluation(state.images, data.validation.images, data.test.images, sigmas=sigmas)
    confidence = None if classifier is None else classifier.probabilities(state.images).amax(1).mean().item()
    return Figures(likelihood, code_std(state.codes), confidence)


def code_std(codes: Tensor) -> float:
    """The standard deviation of a code dimension, mean over the dimensions."""
    return codes.std(0).mean().item()


def line(name: str, what: str, figures: Figures) -> str:
    """A line of the report's table."""
    likelihood, std, confidence = figures
    value = f"{likelihood.mean:.1f} +- {likelihood.standard_error:.1f}"
    sure = "" if confidence is None else f"{confidence:.3f}"
    return f"| {name} | {what} | {value} | {likelihood.sigma:.3f} | {std:.3f} | {sure} |"


def record(name: str, run: Run, rows: dict[str, Figures], test_std: float) -> dict[str, Any]:
    """What the table says of a model, and how it was made."""
    return {
        "name": name,
        "recipe": run.spec.recipe,
        "model": run.config.recipe.model.keywords(),
        "epochs": run.epochs,
        "batch_size": run.config.recipe.training.batch_size,
        "minutes": round(run.seconds / 60, 1),
        "code_std_of_test_images": test_std,
        "rows": [
            {
                "samples": what,
                "log_likelihood": figures.likelihood.mean,
                "standard_error": figures.likelihood.standard_error,
                "sigma": figures.likelihood.sigma,
                "code_std": figures.code_std,
                "confidence": figures.confidence,
            }
            for what, figures in rows.items()
        ],
    }


def draw_pictures(experiment: Experiment, model: Any, name: str) -> None:
    """Samples, and arcs between codes of the prior, after some steps of the chain: a row for each."""
    data, folder = experiment.data, experiment.folder
    random = generator(experiment)
    count, width = (3, 14) if data.data_dim <= SMALL else (2, 10)  # arcs, images in a row
    draws = model.prior.sample(width, generator=random, device=experiment.device)
    ends = model.prior.sample(2 * count, generator=random, device=experiment.device)
    arcs = slerp(ends[:count], ends[count:], width)  # [count, width, code_size]
    corrupt = model.denoising > 0
    states = list(chain(model, torch.cat([draws, arcs.flatten(0, 1)]), max(STEPS), random, corrupt=corrupt))
    images = torch.stack([states[step].images for step in SHOWN])  # [steps, (1 + count) * width, data_dim]
    paths = images[:, width:].unflatten(1, (count, width)).transpose(0, 1)  # [count, steps, width, data_dim]
    what = f"{name} on {data.name}, {'noise and ' if corrupt else ''}encode-decode steps"
    rows = [f"{step} step{'s' if step != 1 else ''}" for step in SHOWN]
    path = folder / f"{name.lower()}-samples.png"
    save_grid(path, images[:, :width], data.image_shape, f"{what}: from the prior", rows)
    path = folder / f"{name.lower()}-interpolations.png"
    title = f"{what}: arcs between codes of the prior"
    save_grid(path, paths.flatten(0, 1), data.image_shape, title, count * rows)


def save_figures(experiment: Experiment, figures: dict[str, list[Figures]]) -> None:
    """Likelihood, std of codes and confidence against the number of steps, a curve for each model."""
    where, x = f"samples from the prior on {experiment.data.name}", "encode-decode steps"

    def save(name: str, curves: dict[str, Any], label: str, what: str) -> None:
        save_curves(experiment.folder / f"{name}.png", STEPS, curves, x, label, f"{what}, {where}")

    curves: dict[str, Any] = {
        name: ([f.likelihood.mean for f in each], [f.likelihood.standard_error for f in each])
        for name, each in figures.items()
    }
    save("likelihood", curves, "test log-likelihood (nats)", "Parzen windows")
    curves = {name: ([f.code_std for f in each], None) for name, each in figures.items()}
    save("code-std", curves, "mean standard deviation of a dimension", "Codes")
    curves = {name: ([f.confidence for f in each], None) for name, each in figures.items()}
    if all(f.confidence is not None for each in figures.values() for f in each):
        save("confidence", curves, "mean of the largest probability", "A classifier's confidence")


def generator(experiment: Experiment) -> torch.Generator:
    """Of the experiment's seed, on its device."""
    return torch.Generator(experiment.device).manual_seed(experiment.options.seed)


def step_name(step: int) -> str:
    return f"prior, {step} step{'s' if step != 1 else ''}"


if __name__ == "__main__":
    main()
