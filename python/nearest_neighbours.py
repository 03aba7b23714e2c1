"""Samples beside their nearest training images (DS-AAE paper, figure 6, last column): does a model copy?

Trains MMD-AE, DS-AAE and AAE, finds the nearest training image of each sample by squared pixel distance, shows both.
A model that has memorised its training images is nearer to them than to as many images that it has never seen.

python python/nearest_neighbours.py                      # scikit-learn's digits, 100 epochs, about 40 seconds
python python/nearest_neighbours.py --data mnist --data-dir DIR --jobs 2
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmmd.evaluation import nearest_neighbours, prior_samples, save_grid
from fastmmd.training.experiments import Experiment, Spec, arguments

MODELS = {"MMD-AE": "mmd-ae", "DS-AAE": "ds-aae", "AAE": "aae"}
COLUMNS = 14
COPIED = 0.9  # times the quotient of real images: below, the training images are suspiciously near


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--samples", type=int, help="of each model, for the distances; default: as many as test images")
    options = parser.parse_args()
    if options.epochs is None and options.data == "digits":
        options.epochs = 100
    with Experiment.start("Nearest neighbours", options) as experiment:
        data, seed = experiment.data, options.seed
        train, test, unseen = data.train.images, data.test.images, data.validation.images
        # As many training images as test images: the nearest of many is nearer than the nearest of few.
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[: len(test)]
        some = train[chosen.to(train.device)]
        specs = [Spec(name, recipe, {"training.evaluate_every": 0}) for name, recipe in MODELS.items()]
        lines = [
            f"| | nearest of {len(train):,} training images: median | 5% to 95% | nearest of {len(some):,} of them | "
            f"nearest of {len(test):,} test images | quotient of the last two |",
            "|---|---|---|---|---|---|",
            line("validation images", unseen, train, some, test),
        ]
        grid, names, copies = [], [], []
        for run in experiment.run_all(specs, evaluate=False):
            samples = prior_samples(run.model).sample(max(options.samples or len(test), COLUMNS), seed)
            lines.append(line(run.spec.name, samples, train, some, test))
            grid += [samples[:COLUMNS], train[nearest_neighbours(samples[:COLUMNS], train).indices]]
            names += [run.spec.name, "nearest"]
            if quotient(samples, some, test) < COPIED * quotient(unseen, some, test):
                copies.append(run.spec.name)
        title = f"Samples from the prior above their nearest training images, {data.name}"
        save_grid(experiment.folder / "neighbours.png", torch.stack(grid), data.image_shape, title, names)
        text = (
            "Squared pixel distances, medians. The quotient of a model that copies is smaller than that of validation "
            "images, which no model has seen. Smooth samples lie nearer to all images than sharp ones.\n\n"
        )
        text += "\n".join(lines) + f"\n\nLess than {COPIED} times the quotient of the validation images, so perhaps "
        text += f"copying: **{', '.join(copies) or 'no model'}**."
        experiment.write_report(f"{text}\n\n![samples and their nearest training images](neighbours.png)")
        print(text)


def median(points: Tensor, images: Tensor) -> float:
    """Median squared distance of points to their nearest images."""
    return nearest_neighbours(points, images).squared_distances.median().item()


def quotient(points: Tensor, train: Tensor, test: Tensor) -> float:
    """How much nearer training images are than as many test images."""
    return median(points, train) / median(points, test)


def line(name: str, points: Tensor, train: Tensor, some: Tensor, test: Tensor) -> str:
    """A line of the table."""
    squared = nearest_neighbours(points, train).squared_distances
    low, middle, high = squared.quantile(torch.tensor([0.05, 0.5, 0.95], device=squared.device)).tolist()
    cells = [name, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", f"{median(points, some):.2f}"]
    cells += [f"{median(points, test):.2f}", f"{quotient(points, some, test):.2f}"]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
