"""Sampling generative autoencoders by Markov chains (Creswell, Arulkumaran and Bharath 2016).

Trains an AAE and a VAE, each also with the denoising criterion (DAAE, DVAE), draws codes from the prior and along arcs
between codes of the prior, and shows both after 0, 1, 5, 10 steps of the chain z -> x -> z.

python python/markov_sampling.py                      # scikit-learn's digits, about a minute
python python/markov_sampling.py --data mnist --data-dir DIR --epochs 50
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from fastmmd.evaluation import chain, markov_chain, parzen_evaluation, posterior_samples, save_grid, slerp
from fastmmd.training import Dataset, Recipe, UserError, load_data, load_recipe

STEPS = (0, 1, 5, 10)
NOISE = 0.5  # standard deviation of the denoising criterion's noise, as in the paper
ROWS = [f"{steps} step{'s' if steps != 1 else ''}" for steps in STEPS]


def train(settings: Recipe, data: Dataset, device: str) -> torch.nn.Module:
    """The recipe's model, trained with a cosine schedule, in eval mode."""
    model = settings.build(data.data_dim).to(device)
    optimizers = model.configure_optimizers()
    images, epochs = data.train.images, settings.training.epochs
    size = min(settings.training.batch_size, len(images))
    batches = len(images) // size
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, epochs * batches) for o in optimizers.values()]
    for _ in range(epochs):
        order = torch.randperm(len(images), device=device)
        for rows in order[: batches * size].split(size):
            model.training_step(images[rows], optimizers)
            for schedule in schedules:
                schedule.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, mnist, fashion-mnist, an array or a folder")
    parser.add_argument("--data-dir", help="folder of the MNIST files")
    parser.add_argument("--epochs", type=int, help="default: 200 on digits, else the recipes'")
    parser.add_argument("--samples", type=int, help="for Parzen windows; default: 2000 on digits, else 10000")
    parser.add_argument("--run-dir", type=Path, help="default: runs/markov-sampling-DATA-TIMESTAMP")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        data = load_data(options.data, options.data_dir).to(device)
        epochs = 200 if data.name == "digits" and options.epochs is None else options.epochs
        overrides = {} if epochs is None else {"training.epochs": epochs}
        models = {
            name: load_recipe(recipe, data.name, overrides | {"model.denoising": noise})
            for name, recipe, noise in (
                ("AAE", "aae", 0.0),
                ("DAAE", "aae", NOISE),
                ("VAE", "vae", 0.0),
                ("DVAE", "vae", NOISE),
            )
        }
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    if data.data_dim <= 100:  # small networks: two threads would wait for each other
        torch.set_num_threads(1)
    samples = options.samples or (2_000 if data.name == "digits" else 10_000)
    folder = (
        options.run_dir or Path("runs") / f"markov-sampling-{Path(options.data).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    folder.mkdir(parents=True, exist_ok=True)

    lines = ["| model | sampler | test log-likelihood | sigma |", "|---|---|---|---|"]
    for name, recipe in models.items():
        torch.manual_seed(options.seed)
        model: Any = train(recipe, data, device)
        corrupt = model.denoising > 0
        samplers = [markov_chain(model, steps, corrupt=corrupt) for steps in STEPS]
        for sampler in [*samplers, posterior_samples(model, data.train.images, "training images")]:
            result = parzen_evaluation(sampler, data.validation.images, data.test.images, samples, seed=options.seed)
            lines.append(
                f"| {name} | {sampler.name} | {result.mean:.1f} +- {result.standard_error:.1f} | {result.sigma:.3f} |"
            )
            print(f"{name:4}  {result}", flush=True)

        generator = torch.Generator(device).manual_seed(options.seed)
        draws = model.prior.sample(14, generator=generator, device=device)
        ends = model.prior.sample(6, generator=generator, device=device)
        arcs = slerp(ends[:3], ends[3:], 14)  # [3, 14, code_size]
        states = list(chain(model, torch.cat([draws, arcs.flatten(0, 1)]), max(STEPS), generator, corrupt=corrupt))
        images = torch.stack([states[steps].images for steps in STEPS])  # [steps, 14 + 3 * 14, data_dim]
        what = f"{name} on {data.name}, {'noise and ' if corrupt else ''}encode-decode steps"
        save_grid(
            folder / f"{name.lower()}-samples.png", images[:, :14], data.image_shape, f"{what}: from the prior", ROWS
        )
        paths = images[:, 14:].unflatten(1, (3, 14)).transpose(0, 1)  # [3, steps, 14, data_dim]
        title = f"{what}: three arcs between codes of the prior"
        save_grid(folder / f"{name.lower()}-interpolations.png", paths.flatten(0, 1), data.image_shape, title, 3 * ROWS)
    trained = ", ".join(f"{name} {recipe.training.epochs} epochs" for name, recipe in models.items())
    head = f"# Markov chain sampling on {data.name}\n\n{trained}; {samples:,} samples; seed {options.seed}.\n\n"
    (folder / "report.md").write_text(head + "\n".join(lines) + "\n")
    print(f"pictures and report.md: {folder}")


if __name__ == "__main__":
    main()
