"""Samples and their nearest training images (DS-AAE paper, figure 6, last column): does a model copy?

Trains MMD-AE, DS-AAE and AAE, finds the nearest training image of each sample by squared pixel distance, shows both.
A model that has memorized its training images is nearer to them than to as many images that it has never seen.

python python/nearest_neighbors.py                      # scikit-learn's digits, 100 epochs, about 40 seconds
python python/nearest_neighbors.py --data mnist --data-dir DIR --jobs 2
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmmd.evaluation import nearest_neighbors, prior_samples, save_grid
from fastmmd.training.experiments import Experiment, Spec, arguments

MODELS = {"MMD-AE": "mmd-ae", "DS-AAE": "ds-aae", "AAE": "aae"}
COLUMNS = 14
# A copying model is nearer to training images than to unseen ones, and nearer than real images are: both, for smooth
# samples are near to everything, and few different samples are near to either by chance.
COPIED_QUOTIENT = 0.9  # at most this times the quotient of real images
COPIED_SHARE = 0.2  # at least this share of samples nearer than 95% of real images


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--samples", type=int, help="of each model, for the distances; default: as many as test images")
    options = parser.parse_args()
    if options.epochs is None and options.data == "digits":
        options.epochs = 100
    with Experiment.start("Nearest neighbors", options) as experiment:
        data, seed = experiment.data, options.seed
        train, test, unseen = data.train.images, data.test.images, data.validation.images
        # As many training images as test images: the nearest of many is nearer than the nearest of few.
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[: len(test)]
        some = train[chosen.to(train.device)]
        specs = [Spec(name, recipe, {"training.evaluate_every": 0}) for name, recipe in MODELS.items()]
        lines = [
            f"| | nearest of {len(train):,} training images | nearer than 95% of the validation images | "
            f"nearest of {len(some):,} training images | of {len(test):,} test images | quotient of the last two |",
            "|---|---|---|---|---|---|",
            line("validation images", unseen, unseen, train, some, test),
        ]
        grid, names, copies = [], [], []
        for run in experiment.run_all(specs, evaluate=False):
            samples = prior_samples(run.model).sample(max(options.samples or len(test), COLUMNS), seed)
            lines.append(line(run.spec.name, samples, unseen, train, some, test))
            grid += [samples[:COLUMNS], train[nearest_neighbors(samples[:COLUMNS], train).indices]]
            names += [run.spec.name, "nearest"]
            nearer = quotient(samples, some, test) / quotient(unseen, some, test)
            if nearer < COPIED_QUOTIENT and share(samples, unseen, train) > COPIED_SHARE:
                copies.append(run.spec.name)
        title = f"Samples from the prior above their nearest training images, {data.name}"
        save_grid(experiment.folder / "neighbors.png", torch.stack(grid), data.image_shape, title, names)
        text = (
            "Squared pixel distances, medians. A model that copies has a smaller quotient than the validation images, "
        )
        text += (
            "which no model has seen, and many samples nearer to training images than 95% of those are. Smooth samples "
        )
        text += "lie nearer to all images than sharp ones.\n\n" + "\n".join(lines)
        text += f"\n\nA quotient below {COPIED_QUOTIENT} times that of the validation images and more than "
        text += f"{COPIED_SHARE:.0%} of the samples that near: **{', '.join(copies) or 'no model'}**."
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


def line(name: str, points: Tensor, unseen: Tensor, train: Tensor, some: Tensor, test: Tensor) -> str:
    """A line of the table."""
    cells = [name, f"{median(points, train):.2f}", f"{share(points, unseen, train):.0%}", f"{median(points, some):.2f}"]
    cells += [f"{median(points, test):.2f}", f"{quotient(points, some, test):.2f}"]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
