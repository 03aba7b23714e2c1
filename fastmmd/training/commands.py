"""The commands of `fastmmd`: train, evaluate, merge, sample, info. The process around them is `fastmmd.cli`."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastmmd.data import NAMES, load_data
from fastmmd.errors import Interrupted, UserError, unknown
from fastmmd.training.lock import locked
from fastmmd.training.run import RunFolder, absolute, print_info

if TYPE_CHECKING:
    from fastmmd.training.report import RunResult

held = ExitStack()  # what a command holds until its process, `fastmmd.cli`, closes it
LARGEST_SEED = 2**32 - 1  # NumPy's generator takes no larger one

app = typer.Typer(
    help="Train generative autoencoders with fused MMD and random-feature regularizers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
DataDir = Annotated[
    str | None, typer.Option(help="Folder of the files of published data (default: the run's, or the cache).")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")]
ChainSteps = Annotated[int, typer.Option(min=0, help="Encode-decode steps after the draw from the prior.")]


@app.command()
def train(
    recipe: Annotated[str | None, typer.Argument(help="A recipe's name, or the path of a TOML file.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(NAMES)}, .npy/.npz/.pt file, folder of images (default: digits)."),
    ] = None,
    data_dir: DataDir = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data (default: the recipe's).")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step, with rates and optimizer to match (default: the recipe's).")
    ] = None,
    device: Device = "auto",
    seed: Annotated[
        int | None, typer.Option(min=0, max=LARGEST_SEED, help="Seed of weights, batches, noise, samples.")
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Default: runs/RECIPE-DATA-TIMESTAMP.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override the recipe.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Resume an earlier run.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train a model by a recipe and report its Parzen log-likelihood."""
    from fastmmd.training.config import load_recipe, recipe_names, with_epochs
    from fastmmd.training.loop import Trainer
    from fastmmd.training.processes import local_device, processes
    from fastmmd.training.report import evaluate_run
    from fastmmd.training.run import RunConfig, choose_device, default_run_dir

    if resume is not None:
        if set_ or any(option is not None for option in (recipe, data, batch_size, seed, run_dir)):
            raise UserError(
                "--resume keeps the run's settings and data, which decide where in an epoch and in its schedule it "
                "stands; only --epochs, --device, --data-dir change"
            )
        folder = RunFolder.existing(resume)
        config = RunConfig.read(folder.config)
        where = choose_device(local_device(config.device if device == "auto" else device))
        group = held.enter_context(processes(where))
        if group.leads:
            folder.require_writable()
            held.enter_context(locked(folder.path))
        config = replace(
            config,
            recipe=config.recipe if epochs is None else with_epochs(config.recipe, epochs),
            device=str(where),
            data_dir=absolute(data_dir) or config.data_dir,
        )
        trainer = Trainer(
            config, config.load_data(quiet=quiet or not group.leads), folder, quiet=quiet, processes=group
        )
        trainer.resume()
        if group.leads:
            config.write(folder.config)
    else:
        data = data or "digits"
        if recipe is None:
            raise UserError(f"train needs a recipe ({', '.join(recipe_names())}, or a file) or --resume RUN")
        overrides = list(set_ or [])
        overrides += [] if epochs is None else [f"training.epochs={epochs}"]
        resolved = load_recipe(recipe, data, overrides, batch_size=batch_size)
        where = choose_device(local_device(device))
        group = held.enter_context(processes(where))
        dataset = load_data(data, data_dir, quiet=quiet or not group.leads, **asdict(resolved.data))
        config = RunConfig.resolved(resolved, data, dataset, seed or 0, where, data_dir)
        folder = RunFolder(group.same(run_dir or default_run_dir(resolved.name, data)))
        trainer = Trainer(config, dataset, folder, quiet=quiet, processes=group)
        if group.leads:  # after everything that may refuse a setting: a mistake leaves no folder behind
            RunFolder.create(folder.path)
            held.enter_context(locked(folder.path))
            config.write(folder.config)
    training = config.recipe.training
    if group.leads and not quiet:
        print(
            f"{config.recipe.name} on {config.data}: {len(trainer.batches.images):,} images, "
            f"{training.epochs} epochs of {len(trainer.batches)} steps, {config.device} -> {folder.path}",
            flush=True,
        )
    trainer.fit()
    if not group.leads:
        return
    try:
        result = evaluate_run(folder, config, trainer.dataset, trainer.evaluated_model.eval())
    except Interrupted as stop:
        remedy = f"fastmmd train --resume {shlex.quote(str(folder.path))}"
        message = f"trained, but stopped in the final evaluation; resume with: {remedy}"
        raise Interrupted(message, stop.signal_number) from None
    _print_result(result, folder)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data_dir: DataDir = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Number of Parzen samples (default: the recipe's).")
    ] = None,
    chain_steps: ChainSteps = 0,
    part: Annotated[
        str | None, typer.Option(metavar="K/N", help="Only the K-th of N parts of the samples; see merge.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an evaluation that was interrupted, if there is one.")
    ] = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Evaluate a trained run again and rewrite its report.

    More than 100,000 samples are taken in one pass, saved every 20 seconds in RUN/evaluation-SAMPLES.
    """
    from fastmmd.training.parts import LARGE, LargeRun, parse_part
    from fastmmd.training.processes import local_device, processes
    from fastmmd.training.report import evaluate_run
    from fastmmd.training.run import choose_device, load_trained

    which = (1, 1) if part is None else parse_part(part)
    folder = RunFolder.existing(run)
    folder.require_writable()
    device = local_device(device)
    group = held.enter_context(processes(choose_device(device)))
    if group.shards is not None:
        if part is not None:
            raise UserError("--part: the processes that torchrun starts take a part each; leave it out")
        which = (group.shards.rank + 1, group.shards.count)
    if part is None and group.leads:  # parts by several processes have locks of their own
        held.enter_context(locked(folder.path))
    group.wait()
    trained = load_trained(folder, data_dir, device)
    count = samples or trained.config.recipe.evaluation.samples
    parzen = None
    if part is not None or resume or count > LARGE or group.shards is not None:
        large = LargeRun(*trained, count, chain_steps)
        sigmas = None  # those that the part finds
        if group.shards is not None:
            large.require_parts_of(which[1])
            sigmas = group.same(large.sigmas(quiet=quiet) if group.leads else [])
        measured = large.measure(which, sigmas, resume=resume, quiet=quiet or not group.leads)
        if group.shards is not None:
            group.wait()
            if not group.leads:
                return
            measured = large.merge()
        elif which[1] > 1:
            others = [str(k) for k in range(1, which[1] + 1) if (k, which[1]) not in large.parts()]
            print(f"part {part}: {measured.total:,} samples in {large.file(which)}")
            print(f"without: {', '.join(others) or 'none'}; then: fastmmd merge {shlex.quote(str(run))}")
            return
        parzen = measured.result()
    result = evaluate_run(*trained, samples=count, chain_steps=chain_steps, parzen=parzen)
    _print_result(result, folder)


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(help="A run folder with all parts of an evaluation.")],
    samples: Annotated[int | None, typer.Option(min=1, help="Of which evaluation, if there are several.")] = None,
    chain_steps: Annotated[int | None, typer.Option(min=0, help="Of which evaluation, if there are several.")] = None,
    data_dir: DataDir = None,
    device: Device = "auto",
) -> None:
    """Put the parts of an evaluation (evaluate --part) together and rewrite the run's report."""
    from fastmmd.training.parts import LargeRun, find_evaluation
    from fastmmd.training.report import evaluate_run
    from fastmmd.training.run import load_trained

    folder = RunFolder.existing(run)
    count, steps = find_evaluation(folder, samples, chain_steps)
    folder.require_writable()
    held.enter_context(locked(folder.path))
    trained = load_trained(folder, data_dir, device)
    parzen = LargeRun(*trained, count, steps).merge().result()
    result = evaluate_run(*trained, chain_steps=steps, parzen=parzen)
    _print_result(result, folder)


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    count: Annotated[int, typer.Option(min=1, help="Number of images.")],
    output: Annotated[Path, typer.Option(help="An .npy file: float32 [count, data_dim].")],
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the draws.")] = 0,
    sampler: Annotated[
        str, typer.Option(help="prior, or posterior: the aggregated posterior of the training images.")
    ] = "prior",
    chain_steps: Annotated[int, typer.Option(min=0, help="Encode-decode steps after the sampler's draws.")] = 0,
    corrupt: Annotated[bool, typer.Option("--corrupt", help="Add a denoising model's noise before each step.")] = False,
    data_dir: DataDir = None,
    device: Device = "auto",
) -> None:
    """Draw images from a trained run; OUTPUT.json names the sampler."""
    from fastmmd.evaluation.sampling import (
        SAMPLERS,
        images_file,
        markov_chain,
        posterior_samples,
        prior_samples,
        with_codes,
    )
    from fastmmd.training.run import RunConfig, choose_device, load_model, load_trained

    if output.suffix != ".npy":
        raise UserError(f"--output must end in .npy, got {output}")
    if sampler not in SAMPLERS:
        raise unknown("sampler", sampler, SAMPLERS)
    folder = RunFolder.existing(run)
    config = RunConfig.read(folder.config)
    if sampler == "prior":
        model = load_model(folder, config, choose_device(device))
        start = prior_samples(model)
    else:
        _, _, dataset, model = load_trained(folder, data_dir, device)
        start = posterior_samples(with_codes(model), dataset.train.images, "training images")
    if corrupt and not with_codes(model).denoising:
        raise UserError(f"--corrupt needs a model that was trained with noise: model.denoising of {run} is 0")
    source = markov_chain(model, chain_steps, start, corrupt=corrupt)
    record = {"sampler": source.name, "count": count, "seed": seed, "run": str(run), "recipe": config.recipe.name}
    with images_file(output, (count, config.data_dim), record) as images:
        done = 0
        for chunk in source.stream(count, seed):
            images[done : done + len(chunk)] = chunk.cpu().numpy()
            done += len(chunk)
    print(f"{count:,} images of {config.data_dim} numbers from the {source.name}: {output}")


@app.command()
def info() -> None:
    """Print versions, and which backends work here."""
    print_info()


def _print_result(result: RunResult, folder: RunFolder) -> None:
    print(f"test log-likelihood: {result.parzen}")
    pictures = "samples.png" if result.codes is None else "samples.png, reconstructions.png, latent.png"
    print(f"pictures and report: {folder.report} ({pictures})")
