"""Labels in the decoder: the code holds the style, the label the content (AAE paper, section 3.2, figure 3b).

Trains an autoencoder with a 15-dimensional Gaussian style code, whose decoder is told the class of the image. Decodes
styles, of test images and drawn from the prior, with every class, and has a classifier, trained on the real training
images, say how many of the decoded images show the class that was asked for.

python python/style_content.py                      # scikit-learn's digits, about a minute
python python/style_content.py --data mnist --data-dir DIR
python python/style_content.py --data mnist --data-dir DIR --recipe vae
python python/style_content.py --data svhn          # house numbers in color
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmmd.evaluation import posterior_codes, save_grid, train_classifier
from fastmmd.training import UserError
from fastmmd.training.experiments import Experiment, arguments

STYLES = 12  # rows of the pictures

#: Overrides of the recipes: for all data, for digits. With a weak regularizer the code would hold the class too; a
#: deterministic posterior leaves gaps in 15 dimensions, into which the prior's draws fall.
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "aae": (
        {
            "model.posterior": "gaussian",
            "model.prior_std": 1.0,
            "model.regularizer_weight": 100.0,
            "model.learning_rate": 1e-3,
            "model.adversary_learning_rate": 5e-4,
            "training.batch_size": 100,
        },
        {"model.regularizer_weight": 3.0, "training.epochs": 100},
    ),
    "vae": ({}, {"training.epochs": 100}),
}


@torch.no_grad()
def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--recipe", choices=SETTINGS, default="aae", help="the autoencoder")
    parser.add_argument("--code-size", type=int, default=15, help="dimensions of the style")
    parser.add_argument("--pairs", type=int, default=10_000, help="pairs of style and class that the classifier judges")
    with Experiment.start("Style and content", parser.parse_args()) as experiment:
        options, data, device = experiment.options, experiment.data, experiment.device
        if data.train.labels is None or data.test.labels is None:
            raise UserError(f"{data.name} has no labels, which the decoder needs")
        classes = int(data.train.labels.max()) + 1
        everywhere, digits = SETTINGS[options.recipe]
        overrides = (
            everywhere
            | (digits if experiment.is_digits else {})
            | {"training.evaluate_every": 0, "training.labeled": -1}
        )
        overrides |= {"model.labels": "decoder", "model.num_classes": classes, "model.code_size": options.code_size}
        with torch.enable_grad():
            model = experiment.train(f"{options.recipe} with labels in the decoder", options.recipe, overrides)
            classifier = train_classifier(data, experiment.folder / "classifier.pt", seed=options.seed)

        generator = torch.Generator(device).manual_seed(options.seed)
        drawn = model.prior.sample(options.pairs, generator=generator, device=device)
        wanted = torch.randint(classes, (options.pairs,), generator=generator, device=device)
        rows = torch.randint(len(data.test), (options.pairs,), generator=generator, device=device)
        encoded, own = posterior_codes(model, data.test.images[rows], generator), data.test.labels.to(device)[rows]
        lines = [
            f"The classifier recognizes {classifier.accuracy(data.test):.2%} of the {len(data.test):,} test images.",
            f"Of {options.pairs:,} pairs of style and class it recognizes:\n",
            "| styles | classes | recognized as that class |",
            "|---|---|---|",
        ]
        for styles, labels, what in (
            (drawn, wanted, "drawn from the prior | drawn"),
            (encoded, wanted, "of test images | drawn"),
            (encoded, own, "of test images | their own: reconstructions"),
        ):
            hits = (classifier.predict(model.decode(styles, labels)) == labels).double()
            error = hits.std().item() / len(hits) ** 0.5
            lines.append(f"| {what} | {hits.mean().item():.2%} +- {error:.2%} |")
            print(lines[-1].strip("| ").replace(" | ", ", "), flush=True)

        name, every = (
            f"{options.recipe} on {data.name}, labels in the decoder",
            [str(label) for label in range(classes)],
        )
        grid = decode_grid(model, drawn[:STYLES], classes)
        title = f"{name}: rows are styles drawn from the prior"
        save_grid(experiment.folder / "prior-styles.png", grid, data.image_shape, title, columns=every)
        images = data.test.images[:STYLES]
        grid = decode_grid(model, posterior_codes(model, images, generator), classes)
        title = f"{name}: rows are the styles of test images"
        columns = ["image", *every]
        grid = torch.cat([images[:, None], grid], 1)
        save_grid(experiment.folder / "image-styles.png", grid, data.image_shape, title, columns=columns)
        experiment.write_report("\n".join([*lines, "", "![styles of test images](image-styles.png)"]))


def decode_grid(model: Any, styles: Tensor, classes: int) -> Tensor:
    """Each of the styles [R, code_size] decoded with every class: [R, classes, data_dim]."""
    labels = torch.arange(classes, device=styles.device).repeat(len(styles))
    return model.decode(styles.repeat_interleave(classes, 0), labels).unflatten(0, (len(styles), classes))


if __name__ == "__main__":
    main()
