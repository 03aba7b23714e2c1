"""Table 1 of the DS-AAE paper (Azarafrooz 2018): Parzen-window log-likelihood of the test images, over several seeds.

Trains GMMN+AE, AAE, MMD-AE, both variants of DS-AAE, a VAE for reference, and a GAN and a GMMN on pixels, and compares
them with the papers' numbers (on MNIST) and with images that fool this figure: training images, the centroids of their
k-means clusters, and blurred training images, all used as samples (Theis, van den Oord and Bethge 2016). Beside it are
precision, recall, density and coverage in the features of a classifier, which are not fooled in the same way.

python python/table1.py                                        # scikit-learn's digits, 50 epochs, about 2 minutes
python python/table1.py --data mnist --data-dir DIR --jobs 2   # the recipes' epochs; 10,000 samples
python python/table1.py --data mnist --data-dir DIR --rows training,k-means,blurred   # without training
python python/table1.py --data mnist --data-dir DIR --run-dir RUN --samples 10000000   # the same models, more samples
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmmd.errors import require
from fastmmd.evaluation import (
    Classifier,
    ParzenResult,
    choose_sigma,
    density_coverage,
    parzen_evaluation,
    precision_recall,
    prior_samples,
    save_bars,
    train_classifier,
)
from fastmmd.training import Dataset, Recipe, UserError, load_recipe
from fastmmd.training.experiments import Experiment, Run, Spec, arguments, first_order
from fastmmd.training.parts import LARGE, LargeRun
from fastmmd.training.report import evaluate_run, paper_likelihoods
from fastmmd.training.run import RunFolder, Trained


class Row(NamedTuple):
    """A line of the table: its name, its recipe, its paper's name for it, and what it changes in the recipe."""

    name: str
    recipe: str
    in_paper: str = ""
    overrides: Callable[[Recipe], dict[str, Any]] = lambda recipe: {}


# With the functions of earlier steps kept (Dai et al. 2014; mode="doubly_stochastic") DS-AAE's codes run away on the
# digits: no row.
ROWS = {
    "gmmn-ae": Row("GMMN+AE", "gmmn-ae", "GMMN+AE"),
    "aae": Row("AAE", "aae", "AAE"),
    "mmd-ae": Row("MMD-AE", "mmd-ae", "MMD-AE"),
    "ds-aae": Row("DS-AAE, fresh features", "ds-aae", "DS-AAE"),
    "ds-aae-first-order": Row("DS-AAE, first order", "ds-aae", "DS-AAE", first_order),
    "vae": Row("VAE", "vae"),
    "gan": Row("GAN", "gan", "GAN"),
    "gmmn": Row("GMMN", "gmmn", "GMMN"),
}

COUNT = 10_000  # images in place of samples, and features that are compared
WIDTHS = (0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.25, 1.5, 2.0)  # of the blur, in pixels
FIGURES = ("precision", "recall", "density", "coverage")
CODES = ("mmd2", "mmd2_null")  # of `CodeStatistics`


class Trap(NamedTuple):
    """Images in place of samples: their name, and what they score."""

    name: str
    parzen: ParzenResult
    figures: Mapping[str, float]


def training_images(data: Dataset) -> tuple[str, Tensor]:
    """What a generator that copies would draw."""
    images = data.train.images
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:COUNT]
    return f"{len(chosen):,} training images", images[chosen.to(images.device)]


def centroids(data: Dataset) -> tuple[str, Tensor]:
    """Of k-means clusters of all training images, five images to each or more; ten iterations, begun at images."""
    images = data.train.images
    count = min(COUNT, len(images) // 5)
    k_means = require("sklearn.cluster").KMeans(count, init="random", n_init=1, max_iter=10, random_state=0)
    found = torch.from_numpy(k_means.fit(images.cpu().numpy()).cluster_centers_).to(images)
    return f"{count:,} k-means centroids", found


def blurred(data: Dataset) -> tuple[str, Tensor]:
    """By the Gaussian filter that the validation images find most likely."""
    _, images = training_images(data)
    planes, axes = images.unflatten(1, data.image_shape).cpu().numpy(), (-2, -1)[-len(data.image_shape) :]
    blur = require("scipy.ndimage").gaussian_filter
    tries = {width: torch.from_numpy(blur(planes, width, axes=axes)).to(images).flatten(1) for width in WIDTHS}
    width = max(WIDTHS, key=lambda width: choose_sigma(tries[width], data.validation.images)[1])
    return f"{len(images):,} training images, blurred by {width:g} pixels", tries[width]


TRAPS: dict[str, Callable[[Dataset], tuple[str, Tensor]]] = {
    "training": training_images,
    "k-means": centroids,
    "blurred": blurred,
}


class Judge:
    """Precision and recall (k = 3), density and coverage (k = 5) of samples against as many test images.

    In the features of a classifier of the training images, which the experiment's folder keeps; without labels, or
    for images of another shape than the classifier takes, there are none.
    """

    def __init__(self, experiment: Experiment) -> None:
        data = experiment.data
        self._real = data.test.images[:COUNT]
        self._classifier: Classifier | None = None
        try:
            self._classifier = train_classifier(data, experiment.folder / "classifier.pt")
        except UserError as error:
            print(f"without precision and recall: {error}")

    @cached_property
    def _features(self) -> Tensor:
        assert self._classifier is not None
        return self._classifier.features(self._real)

    def __call__(self, samples: Tensor) -> dict[str, float]:
        """The figures by name, of the first samples [N, data_dim]."""
        if self._classifier is None:
            return {}
        features = self._classifier.features(samples[: len(self._real)])
        found = (*precision_recall(self._features, features), *density_coverage(self._features, features))
        return dict(zip(FIGURES, found, strict=True))

    def of(self, run: Run) -> dict[str, float]:
        """Of a trained model."""
        return self(prior_samples(run.model).sample(len(self._real), run.seed)) if self._classifier else {}


def main() -> None:
    parser = arguments(__doc__)
    keys = [*ROWS, *TRAPS]
    parser.add_argument("--rows", default=",".join(keys), help=f"which, separated by commas; default: {','.join(keys)}")
    parser.add_argument("--seeds", type=int, help="runs of each row, from --seed on; default: 3")
    parser.add_argument("--samples", type=int, default=10_000, help="for Parzen windows, streamed")
    parser.add_argument("--quick", action="store_true", help="one seed, 20 epochs on digits, else 2")
    options = parser.parse_args()
    if options.epochs is None and options.data == "digits":
        options.epochs = 20 if options.quick else 50
    elif options.epochs is None and options.quick:
        options.epochs = 2
    seeds = range(options.seed, options.seed + (options.seeds or (1 if options.quick else 3)))
    with Experiment.start("Table 1", options) as experiment:
        chosen = options.rows.split(",")
        if unknown := set(chosen) - set(keys):
            raise UserError(f"--rows: unknown {', '.join(sorted(unknown))} (allowed: {', '.join(keys)})")
        rows = [ROWS[key] for key in chosen if key in ROWS]
        own = [row.overrides(load_recipe(row.recipe, options.data)) for row in rows]
        specs = [Spec(row.name, row.recipe, some, seed) for row, some in zip(rows, own, strict=True) for seed in seeds]
        runs = [with_samples(run, options.samples, experiment) for run in experiment.run_all(specs)]
        results = [(row, [run for run in runs if run.spec.name == row.name]) for row in rows]
        judge = Judge(experiment)
        traps = [fall(TRAPS[key], experiment.data, judge) for key in chosen if key in TRAPS]
        write(results, traps, judge.of, experiment)


def with_samples(run: Run, samples: int, experiment: Experiment) -> Run:
    """The run, evaluated with `samples` samples unless its last evaluation used as many."""
    assert run.parzen is not None
    if run.parzen.samples == samples:
        return run
    trained = Trained(RunFolder(run.folder), run.config, experiment.data, run.model)
    parzen = LargeRun(*trained, samples).measure(resume=True).result() if samples > LARGE else None
    result = evaluate_run(*trained, samples=samples, parzen=parzen)
    print(f"{run.spec.name}, seed {run.seed}: test log-likelihood {result.parzen}", flush=True)
    return replace(run, parzen=result.parzen)


def fall(trap: Callable[[Dataset], tuple[str, Tensor]], data: Dataset, judge: Judge) -> Trap:
    """What the images of a trap score by the protocol of the models."""
    name, images = trap(data)
    parzen = parzen_evaluation(images, data.validation.images, data.test.images)
    print(f"{name}: test log-likelihood {parzen}", flush=True)
    return Trap(name, parzen, judge(images))


def write(
    results: list[tuple[Row, list[Run]]],
    traps: list[Trap],
    judge: Callable[[Run], Mapping[str, float]],
    experiment: Experiment,
) -> None:
    """table1.png, table1.json and report.md."""
    data = experiment.data
    compares = data.original and data.name == "mnist"  # with the papers
    header = ["method", "mean of the seeds", "lowest", "highest", "standard error of one", "sigma", *FIGURES]
    samples = next((run.parzen.samples for _, runs in results for run in runs), COUNT)
    paper, likelihoods = paper_likelihoods(samples) if compares else ("", {})
    header += ["MMD^2 to the prior (null)", "epochs", "minutes"] + [f"the {paper}"] * compares
    lines, record = [], []
    for row, runs in results:
        figures = [judge(run) for run in runs]
        codes = [run.codes for run in runs if run.codes is not None]  # a GAN and a GMMN have none
        match = [f"{statistics.median(getattr(one, name) for one in codes):.1e}" for name in CODES if codes]
        seconds = statistics.mean(run.seconds for run in runs)
        line = cells(row.name, [run.parzen for run in runs], figures)
        line += ["{} ({})".format(*match) if codes else "", f"{runs[0].epochs}", f"{seconds / 60:.1f}"]
        lines.append(line + [f"{likelihoods.get(row.in_paper, '')}"] * compares)
        of_runs = []
        for run, found in zip(runs, figures, strict=True):
            of_run = {"seed": run.seed, "seconds": run.seconds, **asdict(run.parzen), **found}
            of_runs.append(of_run | {"codes": None if run.codes is None else asdict(run.codes)})
        settings = runs[0].config.recipe.to_dict()
        record.append({"name": row.name, "paper": likelihoods.get(row.in_paper), **settings, "runs": of_runs})
    for trap in traps:
        line = cells(trap.name, [trap.parzen], [trap.figures])
        lines.append(line + [""] * (len(header) - len(line)))
    in_traps = [{"name": trap.name, **asdict(trap.parzen), **trap.figures} for trap in traps]
    experiment.write_record("table1", {"rows": record, "traps": in_traps})
    draw(results, traps, likelihoods, experiment)
    table = "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])
    text = (
        "Test log-likelihood in nats per image: Parzen windows on samples of each model, sigma chosen on validation "
        f"images, {len(data.test.images):,} test images; minutes of training for one seed. Precision and recall (k = "
        "3), density and coverage (k = 5) compare as many samples as test images in the features of a classifier of "
        f"the training images.\n\n{table}\n\nThe last rows use images in place of samples. Averages of images score "
        "above images by Parzen windows: a blurred one lies near many test images, a sharp one near few. Compare "
        "models with one another by this figure, and by the others what it does not see.\n\n"
        "![test log-likelihood](table1.png)"
    )
    experiment.write_report(text)
    print(table)


def cells(name: str, parzens: Sequence[ParzenResult], figures: Sequence[Mapping[str, float]]) -> list[str]:
    """What models and images have in common, from the name to the figures."""
    nats, sigmas = [parzen.mean for parzen in parzens], [parzen.sigma for parzen in parzens]
    line = [name, f"**{statistics.mean(nats):.1f}**", f"{min(nats):.1f}", f"{max(nats):.1f}"]
    line += [f"{max(parzen.standard_error for parzen in parzens):.1f}", f"{min(sigmas):.3f} to {max(sigmas):.3f}"]
    return line + [f"{statistics.mean(one[key] for one in figures):.3f}" if figures[0] else "" for key in FIGURES]


def draw(
    results: list[tuple[Row, list[Run]]], traps: list[Trap], likelihoods: Mapping[str, float], experiment: Experiment
) -> None:
    """table1.png: the likelihoods as bars, those of the papers beside them."""
    bars = [(row.name, [run.parzen for run in runs]) for row, runs in results]
    bars += [(trap.name, [trap.parzen]) for trap in traps]
    names = [
        name.replace(", ", ",\n").replace(" images", "\nimages").replace(" centroids", "\ncentroids")
        for name, _ in bars
    ]
    means = [statistics.mean(parzen.mean for parzen in parzens) for _, parzens in bars]
    reach: list[float | tuple[float, float]] = []  # from the lowest to the highest seed; of one, its standard error
    for mean, (_, parzens) in zip(means, bars, strict=True):
        nats, one = [parzen.mean for parzen in parzens], len(parzens) == 1
        reach.append(parzens[0].standard_error if one else (mean - min(nats), max(nats) - mean))
    rows = zip(names, (row for row, _ in results), strict=False)
    papers = {name: likelihoods[row.in_paper] for name, row in rows if row.in_paper in likelihoods}
    seeds = max((len(runs) for _, runs in results), default=1)
    title = f"Test log-likelihood on {experiment.data.name}: {bars[0][1][0].samples:,} samples"
    ylabel = "nats per image" + ("; lowest to highest seed" if seeds > 1 else "")
    save_bars(experiment.folder / "table1.png", names, means, reach, title, ylabel, papers, "the paper")


if __name__ == "__main__":
    main()
