"""The report of a run: likelihood, codes, pictures, and how to repeat it."""

from __future__ import annotations

import os
import shlex
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastmmd.data import Dataset
from fastmmd.evaluation.codes import NEAR, QUANTILES, SCALES, CodeStatistics, code_statistics
from fastmmd.evaluation.figures import save_latent, save_reconstructions, save_samples
from fastmmd.evaluation.parzen import ParzenResult, parzen_evaluation
from fastmmd.evaluation.sampling import Sampler, markov_chain, posterior_codes
from fastmmd.files import write_text
from fastmmd.nn import Autoencoder, GenerativeModel
from fastmmd.training.config import Evaluation
from fastmmd.training.run import RunConfig, RunFolder, is_number

CHUNK = 2_000  # images at once
COLUMNS = 20  # of the table of the codes, at most
#: Numbers that a record of an epoch has.
EPOCH = ("epoch", "step", "seconds", "images_per_second", "loss", "reconstruction", "regularizer")

#: Test log-likelihood on MNIST in nats by the number of samples: after 1000 epochs, from the table of the DS-AAE paper,
#: of pixels from Goodfellow et al. (2014) and Li, Swersky and Zemel (2015), by 10 million samples from the AAE paper.
PAPER_LIKELIHOODS = {
    10_000: {"GMMN+AE": 282, "DS-AAE": 243, "MMD-AE": 228, "AAE": 340, "GAN": 225, "GMMN": 147},
    10_000_000: {"AAE": 427, "GAN": 386},
}


def paper_likelihoods(samples: int) -> tuple[str, dict[str, int]]:
    """The papers' figures to compare with by their names; "paper", and how many samples made them if not as many."""
    count = max((count for count in PAPER_LIKELIHOODS if count <= samples), default=min(PAPER_LIKELIHOODS))
    return "paper" if count == samples else f"paper, {count:,} samples", PAPER_LIKELIHOODS[count]


@dataclass(frozen=True)
class RunResult:
    """The result of an evaluation; `reconstruction_error` is the mean squared error per test pixel.

    Of a model without codes, a generator alone, `codes` and `reconstruction_error` are None.
    """

    parzen: ParzenResult
    codes: CodeStatistics | None = None
    reconstruction_error: float | None = None


def sigma_grid(settings: Evaluation) -> list[float]:
    """The initial grid of Parzen bandwidths."""
    return [float(s) for s in np.geomspace(settings.sigma_low, settings.sigma_high, settings.sigma_count)]


def evaluate_run(
    folder: RunFolder,
    config: RunConfig,
    dataset: Dataset,
    model: GenerativeModel,
    *,
    samples: int | None = None,
    chain_steps: int = 0,
    parzen: ParzenResult | None = None,
) -> RunResult:
    """Evaluate a trained model on the test split, write the pictures and report.md, and add to metrics.jsonl.

    Args:
        model: in eval mode, on the device of the data set's images.
        samples: number of Parzen samples; default: the recipe's.
        chain_steps: encode-decode steps after the draw from the prior.
        parzen: the likelihood, if it is already known: see `fastmmd.training.parts`.
    """
    settings = config.recipe.evaluation
    sampler = markov_chain(model, chain_steps)
    validation, test = dataset.validation.images, dataset.test.images
    if parzen is None:
        count = samples or settings.samples
        parzen = parzen_evaluation(sampler, validation, test, count, sigmas=sigma_grid(settings), seed=config.seed)
    result, codes = RunResult(parzen), None
    if isinstance(model, Autoencoder):
        result, codes = _with_codes(parzen, model, dataset, config.seed)
    _save_pictures(folder.path, config, dataset, model, sampler, codes)
    write_text(folder.report, _render(folder, config, dataset, result, folder.evaluations() + 1))
    # Last, for the record says that the run is evaluated.
    codes_record = None if result.codes is None else asdict(result.codes)
    folder.append({"kind": "evaluation", **asdict(parzen), "codes": codes_record})
    return result


@torch.no_grad()
def _with_codes(
    parzen: ParzenResult, model: Autoencoder, dataset: Dataset, seed: int
) -> tuple[RunResult, tuple[Tensor, Tensor]]:
    """The result with what the codes of the test images say, and these codes with as many draws from the prior."""
    test = dataset.test.images
    generator = torch.Generator(test.device).manual_seed(seed)
    parts = test.split(CHUNK)
    codes = torch.cat([posterior_codes(model, part, generator) for part in parts])
    labels = [None] * len(parts) if model.decoder_classes == 0 else _labels(dataset).split(CHUNK)
    squared = [
        (model.reconstruct(part, given) - part).square().sum() for part, given in zip(parts, labels, strict=True)
    ]
    draws, more = (
        model.prior.sample(len(codes), generator=generator, device=codes.device, dtype=codes.dtype) for _ in range(2)
    )
    error = torch.stack(squared).sum().item() / test.numel()
    return RunResult(parzen, code_statistics(codes, draws, more), error), (codes, draws)


def _save_pictures(
    path: Path,
    config: RunConfig,
    dataset: Dataset,
    model: GenerativeModel,
    sampler: Sampler,
    codes: tuple[Tensor, Tensor] | None,
) -> None:
    name = f"{config.recipe.name} on {dataset_name(config)}"
    shape = dataset.image_shape
    samples = sampler.sample(100, config.seed)
    save_samples(path / "samples.png", samples, shape, f"{name}: samples ({sampler.name})")
    if codes is None or not isinstance(model, Autoencoder):
        return
    images = dataset.test.images[:20]
    with torch.no_grad():
        reconstructions = model.reconstruct(images, _labels(dataset)[:20] if model.decoder_classes else None)
    title = f"{name}: test images and reconstructions"
    save_reconstructions(path / "reconstructions.png", images, reconstructions, shape, title)
    save_latent(path / "latent.png", *codes, dataset.test.labels, f"{name}: codes of the test images")


def _labels(dataset: Dataset) -> Tensor:
    """Labels [N] of the test images, on the device of the images: for a decoder that takes labels."""
    assert dataset.test.labels is not None  # or it could not have been trained
    return dataset.test.labels.to(dataset.test.images.device)


def dataset_name(config: RunConfig) -> str:
    return Path(config.data).name if os.sep in config.data else config.data


def _render(folder: RunFolder, config: RunConfig, dataset: Dataset, result: RunResult, evaluations: int) -> str:
    parzen = result.parzen
    squared = result.reconstruction_error
    error = "" if squared is None else f" Mean squared error of the reconstructed pixels: {squared:.5f}."
    again = f" This is evaluation {evaluations} of the run on its test split; metrics.jsonl holds all of them."
    parts = [
        f"# {config.recipe.name} on {dataset_name(config)}",
        "## Parzen-window log-likelihood of the test split",
        _table(
            ["nats per image", "standard error", "sigma", "samples", "sampler", "test images"],
            [
                [
                    f"{parzen.mean:.1f}",
                    f"{parzen.standard_error:.1f}",
                    f"{parzen.sigma:.4f}",
                    f"{parzen.samples:,}",
                    parzen.sampler,
                    f"{parzen.n_test:,}",
                ]
            ],
        ),
        f"Sigma was chosen on the validation split (mean there: {parzen.validation_mean:.1f}); the "
        f"test split had no part in it.{error}{again if evaluations > 1 else ''}",
    ]
    if dataset.original and dataset.name == "mnist":
        epochs = config.recipe.training.epochs
        rows = [[f"this run ({config.recipe.name}, {epochs} epochs)", f"**{parzen.mean:.1f}**"]]
        paper, likelihoods = paper_likelihoods(parzen.samples)
        rows += [[f"{method}, {paper}", str(value)] for method, value in likelihoods.items()]
        rows += [["10,000 real training images as samples", "243.3 +- 2.0"]]
        parts += [
            _table(["MNIST", "nats"], rows),
            "Smooth decoders score above real data: a blurred image lies near many test images, a sharp one "
            "near few. Compare models with one another by this figure, and look at the pictures.",
        ]
    pictures = ["![samples](samples.png)"]
    if result.codes is not None:
        parts += ["## Codes of the test images against the prior", *_codes(result.codes)]
        pictures += ["![test images and reconstructions](reconstructions.png)", "![codes and prior](latent.png)"]
    parts += [
        "## Pictures",
        *pictures,
        "## Training",
        _training(folder, config),
        "All settings are in `config.toml`. To repeat the run, to measure it again or to draw from it:",
        _commands(folder, config),
    ]
    return "\n\n".join(parts) + "\n"


def _codes(codes: CodeStatistics) -> list[str]:
    def row(name: str, values: tuple[float, ...]) -> list[str]:
        shown = values if len(values) <= COLUMNS else (min(values), statistics.median(values), max(values))
        return [name, *(f"{value:.2f}" for value in shown)]

    size = len(codes.mean)
    columns = [f"z{number + 1}" for number in range(size)] if size <= COLUMNS else ["least", "median", "largest"]
    moments = _table(
        ["" if size <= COLUMNS else f"of {size} dimensions", *columns],
        [
            row("mean", codes.mean),
            row("prior's mean", codes.prior_mean),
            row("std", codes.std),
            row("prior's std", codes.prior_std),
        ],
    )
    norms = _table(
        ["quantile of the norm", *(f"{quantile:.0%}" for quantile in QUANTILES)],
        [row("codes", codes.norm_quantiles), row("prior", codes.prior_norm_quantiles)],
    )
    mmd = (
        f"MMD^2 between {codes.count:,} codes and as many draws from the prior: **{codes.mmd2:.2e}**; "
        f"between two independent sets of draws (a perfect match): {codes.mmd2_null:.2e}. Gaussian kernels "
        f"at {', '.join(f'{scale:g}' for scale in SCALES)} times the prior's std, biased estimator."
    )
    holes = (
        f"Holes: **{codes.holes:.1%}** of the draws from the prior are farther from every code than {NEAR:.0%} of them "
        f"are from the nearest of as many draws (a perfect match: {1 - NEAR:.0%})."
    )
    return [moments, norms, mmd, holes]


def _training(folder: RunFolder, config: RunConfig) -> str:
    epochs = [record for record in folder.records() if all(map(is_number, map(record.get, EPOCH)))]
    if not epochs:
        return "No epoch was completed."
    last = epochs[-1]
    lines = [
        f"- {last['epoch']} epochs, {last['step']:,} steps, {last['seconds']:.0f} s on {config.device} "
        f"({last['images_per_second']:,.0f} images/s)",
        f"- last epoch: loss {last['loss']:.4g}, reconstruction {last['reconstruction']:.4g}, "
        f"regularizer {last['regularizer']:.4g}",
    ]
    if is_number(last.get("regularizer_share")):
        lines.append(f"- the regularizer takes {last['regularizer_share']:.0%} of a training step")
    curve = [record for record in epochs if is_number(record.get("validation_log_likelihood"))]
    values = ", ".join(f"{record['validation_log_likelihood']:.1f}@{record['epoch']}" for record in curve)
    lines.append(f"- log-likelihood of the validation split by epoch: {values}")
    warned = dict.fromkeys(str(record["warning"]) for record in folder.records() if "warning" in record)
    lines += [f"- warning: {message}" for message in warned]
    return "\n".join(lines)


def _commands(folder: RunFolder, config: RunConfig) -> str:
    data = ["--data-dir", config.data_dir] if config.data_dir else []
    commands = [
        ["train", folder.config, "--data", config.data, *data, "--seed", config.seed],
        ["evaluate", folder.path],
        ["sample", folder.path, "--count", 1000, "--output", "samples.npy"],
    ]
    return "\n".join(["```", *(shlex.join(["fastmmd", *map(str, words)]) for words in commands), "```"])


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
