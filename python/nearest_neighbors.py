"""Samples and their nearest training images (DS-AAE paper, figure 6, last column): does a model copy?

Trains MMD-AE, DS-AAE and AAE, finds the nearest training image of each sample by squared pixel distance, shows both.
A model that has memorized its training images is nearer to them than to as many images that it has never seen.

python python/nearest_neighbors.py                      # scikit-learn's digits, 100 epochs, about 40 seconds
python python/nearest_neighbors.py --data mnist --data-dir DIR --jobs 2
python python/nearest_neighbors.py --data olivetti --data-dir DIR --recipes aae-faces
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from fastmmd.evaluation import nearest_neighbors, parzen_evaluation, prior_samples, save_grid
from fastmmd.training.experiments import Experiment, Spec, arguments

MODELS = {"mmd-ae": "MMD-AE", "ds-aae": "DS-AAE", "aae": "AAE"}  # recipes, and what they are called
COLUMNS, PAIRS = 14, 3  # of rows in the picture, which the models share
SHOWN = COLUMNS * PAIRS
# A copying model is nearer to training images than to unseen ones, and nearer than real images are: both, for smooth
# samples are near to everything, and few different samples are near to either by chance.
COPIED_QUOTIENT = 0.9  # at most this times the quotient of real images
COPIED_SHARE = 0.2  # at least this share of samples nearer than 95% of real images


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--samples", type=int, help="of each model, for the distances; default: as many as test images")
    parser.add_argument("--recipes", default=",".join(MODELS), help="of the models, separated by commas")
    options = parser.parse_args()
    if options.epochs is None and options.data == "digits":
        options.epochs = 100
    with Experiment.start("Nearest neighbors", options) as experiment:
        data, seed = experiment.data, options.seed
        train, test, unseen = data.train.images, data.test.images, data.validation.images
        # As many training images as test images: the nearest of many is nearer than the nearest of few.
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[: len(test)]
        some = train[chosen.to(train.device)]
        count = max(options.samples or len(test), SHOWN)
        real = measure(unseen, unseen, train, some, test)
        specs = [
            Spec(MODELS.get(recipe, recipe), recipe, {"training.evaluate_every": 0})
            for recipe in options.recipes.split(",")
        ]
        lines = [
            f"| | nearest of {len(train):,} training images | nearer than 95% of the validation images | "
            f"nearest of {len(some):,} training images | of {len(test):,} test images | quotient of the last two | "
            "test log-likelihood |",
            "|---|---|---|---|---|---|---|",
            line("validation images", real) + " |",
        ]
        grid, names, copies, rows = [], [], [], []
        for run in experiment.run_all(specs):
            assert run.parzen is not None
            name, samples = run.spec.name, prior_samples(run.model).sample(count, seed)
            figures = measure(samples, unseen, train, some, test)
            lines.append(line(name, figures) + f" {run.parzen.mean:.1f} +- {run.parzen.standard_error:.1f} |")
            for shown in samples[:SHOWN].split(COLUMNS)[: max(1, PAIRS // len(specs))]:
                grid += [shown, train[nearest_neighbors(shown, train).indices]]
                names += [name, "nearest"]
            copied = figures["quotient"] / real["quotient"] < COPIED_QUOTIENT and figures["share_nearer"] > COPIED_SHARE
            copies += [name] * copied
            made = {"model": run.config.recipe.model.keywords(), "epochs": run.epochs, "minutes": run.seconds / 60}
            rows.append({"name": name, **figures, "copies": copied, "likelihood": asdict(run.parzen), **made})
        title = f"Samples from the prior above their nearest training images, {data.name}"
        save_grid(experiment.folder / "neighbors.png", torch.stack(grid), data.image_shape, title, names)
        text = (
            "Squared pixel distances, medians. A model that copies has a smaller quotient than the validation images, "
            "which no model has seen, and many samples nearer to training images than 95% of those are. Smooth samples "
            "lie nearer to all images than sharp ones.\n\n" + "\n".join(lines)
        )
        text += f"\n\nA quotient below {COPIED_QUOTIENT} times that of the validation images and more than "
        text += f"{COPIED_SHARE:.0%} of the samples that near: **{', '.join(copies) or 'no model'}**."
        copy = parzen_evaluation(train[:10_000], unseen, test)
        text += f" {copy.samples:,} training images in place of samples: test log-likelihood {copy.mean:.1f} +- "
        text += f"{copy.standard_error:.1f}."
        record = {"data": data.name, "validation_images": real, "training_images": asdict(copy), "models": rows}
        experiment.write_record("neighbors", record)
        experiment.write_report(f"{text}\n\n![samples and their nearest training images](neighbors.png)")
        print(text)


def median(points: Tensor, images: Tensor) -> float:
    """Median squared distance of points to their nearest images."""
    return nearest_neighbors(points, images).squared_distances.median().item()


def quotient(points: Tensor, train: Tensor, test: Tensor) -> float:
    """How much nearer training images are than as many test images."""
    return median(points, train) / median(points, test)


def share(points: Tensor, unseen: Tensor, train: Tensor) -> float:
    """Share of points that are nearer to a training image than 95% of unseen images are."""
    near = nearest_neighbors(unseen, train).squared_distances.quantile(0.05)
    return (nearest_neighbors(points, train).squared_distances < near).double().mean().item()


def measure(points: Tensor, unseen: Tensor, train: Tensor, some: Tensor, test: Tensor) -> dict[str, float]:
    """Medians of squared distances of points [N, D] to images, and what the table says besides, in its order."""
    return {
        "to_training_images": median(points, train),
        "share_nearer": share(points, unseen, train),
        "to_as_many_training_images": median(points, some),
        "to_test_images": median(points, test),
        "quotient": quotient(points, some, test),
    }


def line(name: str, figures: dict[str, float]) -> str:
    """A line of the table, but for its last cell."""
    to_all, share, to_some, to_test, quotient = figures.values()
    cells = [name, f"{to_all:.2f}", f"{share:.0%}", f"{to_some:.2f}", f"{to_test:.2f}", f"{quotient:.2f}"]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
