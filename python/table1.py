"""Table 1 of the DS-AAE paper (Azarafrooz 2018): Parzen-window log-likelihood of the test images, over several seeds.

Trains GMMN+AE, AAE, MMD-AE, both variants of DS-AAE, and a VAE for reference, and compares them with the
paper's numbers (on MNIST) and with the score of real training images used as samples.

python python/table1.py                                        # scikit-learn's digits, 50 epochs, about 90 seconds
python python/table1.py --data mnist --data-dir DIR --jobs 2   # the recipes' epochs; 10,000 samples
python python/table1.py --data mnist --data-dir DIR --run-dir RUN --samples 10000000   # the same models, more samples
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch

from fastmmd.evaluation import ParzenResult, parzen_evaluation, save_bars
from fastmmd.training import UserError
from fastmmd.training.experiments import Experiment, Run, Spec, arguments
from fastmmd.training.parts import LARGE, LargeRun
from fastmmd.training.report import PAPER_LIKELIHOODS, evaluate_run
from fastmmd.training.run import RunFolder, Trained


class Row(NamedTuple):
    """A line of the table: its name, recipe and settings over it, the paper's name for it."""

    name: str
    recipe: str
    overrides: dict[str, Any]
    in_paper: str = ""

    @property
    def paper(self) -> float | None:
        """The paper's number for MNIST after 1000 epochs."""
        return PAPER_LIKELIHOODS.get(self.in_paper)


# The random function in the manner of Dai et al. (2014): features that are new at every step. With the functions of
# earlier steps kept (model.blocks = 10) the codes run away on the digits.
DOUBLY_STOCHASTIC = {"model.mode": "doubly_stochastic", "model.blocks": 1, "model.adversary_rate": 1.0}

ROWS = {
    "gmmn-ae": Row("GMMN+AE", "gmmn-ae", {}, "GMMN+AE"),
    "aae": Row("AAE", "aae", {}, "AAE"),
    "mmd-ae": Row("MMD-AE", "mmd-ae", {}, "MMD-AE"),
    "ds-aae": Row("DS-AAE, first order", "ds-aae", {}, "DS-AAE"),
    "ds-aae-fresh": Row("DS-AAE, fresh features", "ds-aae", DOUBLY_STOCHASTIC, "DS-AAE"),
    "vae": Row("VAE", "vae", {}),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"which, separated by commas; default: {','.join(ROWS)}")
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
        if unknown := set(options.rows.split(",")) - set(ROWS):
            raise UserError(f"--rows: unknown {', '.join(sorted(unknown))} (allowed: {', '.join(ROWS)})")
        rows = [ROWS[key] for key in options.rows.split(",")]
        specs = [Spec(row.name, row.recipe, row.overrides, seed) for row in rows for seed in seeds]
        runs = [with_samples(run, options.samples, experiment) for run in experiment.run_all(specs)]
        results = [(row, [run for run in runs if run.spec.name == row.name]) for row in rows]
        write(results, real_images(experiment), experiment)


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


def real_images(experiment: Experiment) -> ParzenResult:
    """The same protocol with 10,000 training images (or all) as the samples: what a generator that copies would get."""
    images = experiment.data.train.images
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:10_000]
    data = experiment.data
    return parzen_evaluation(images[chosen.to(images.device)], data.validation.images, data.test.images)


def write(results: list[tuple[Row, list[Run]]], real: ParzenResult, experiment: Experiment) -> None:
    """table1.png, table1.json and report.md."""
    data, first = experiment.data, results[0][1]
    compares = data.original and data.name == "mnist"  # with the paper
    real_name = f"{real.samples:,} training images"
    header = ["method", "mean of the seeds", "lowest", "highest", "standard error of one", "sigma"]
    header += ["MMD^2 to the prior (null)", "epochs", "minutes"] + ["the paper, 1000 epochs"] * compares
    lines, record = [], []
    for row, runs in results:
        nats = [run.parzen.mean for run in runs]
        sigmas = [run.parzen.sigma for run in runs]
        codes = [[getattr(run.codes, name) for run in runs] for name in ("mmd2", "mmd2_null")]
        mmd2, null = map(statistics.median, codes)
        cells = [row.name, f"**{statistics.mean(nats):.1f}**", f"{min(nats):.1f}", f"{max(nats):.1f}"]
        cells += [f"{max(run.parzen.standard_error for run in runs):.1f}", f"{min(sigmas):.3f} to {max(sigmas):.3f}"]
        cells += [f"{mmd2:.1e} ({null:.1e})", f"{runs[0].epochs}"]
        cells += [f"{statistics.mean(run.seconds for run in runs) / 60:.1f}"]
        cells += [f"{row.paper or ''}"] * compares
        lines.append(cells)
        of_runs = [
            {"seed": run.seed, "seconds": run.seconds, **asdict(run.parzen), "codes": asdict(run.codes)} for run in runs
        ]
        settings = runs[0].config.recipe.to_dict()
        record.append({"name": row.name, "paper": row.paper if compares else None, **settings, "runs": of_runs})
    lines.append([real_name, f"{real.mean:.1f}", "", "", f"{real.standard_error:.1f}", f"{real.sigma:.3f}"])
    lines[-1] += [""] * (len(header) - len(lines[-1]))
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *lines])

    means = [statistics.mean(run.parzen.mean for run in runs) for _, runs in results]
    reach: list[float | tuple[float, float]] = []  # from the lowest to the highest seed; of one, its standard error
    for mean, (_, runs) in zip(means, results, strict=True):
        nats = [run.parzen.mean for run in runs]
        one = len(runs) == 1
        reach.append(runs[0].parzen.standard_error if one else (mean - min(nats), max(nats) - mean))
    names = [row.name.replace(", ", ",\n") for row, _ in results]
    papers = {name: row.paper for name, (row, _) in zip(names, results, strict=True) if row.paper} if compares else {}
    epochs = sorted({run.epochs for _, runs in results for run in runs})
    seeds = f"{len(first)} seed{'s' if len(first) > 1 else ''}"
    trained = f"{' or '.join(map(str, epochs))} epochs, {seeds}"
    title = f"Test log-likelihood on {data.name}: {first[0].parzen.samples:,} samples from the prior, {trained}"
    ylabel = "nats per image" + ("; lowest to highest seed" if len(first) > 1 else "")
    references = {**papers, f"{real_name} as samples": real.mean}
    save_bars(experiment.folder / "table1.png", names, means, reach, title, ylabel, references, "paper, 1000 epochs")
    experiment.write_record("table1", {"rows": record, "real_images": asdict(real)})
    text = (
        f"Test log-likelihood in nats per image: Parzen windows on {first[0].parzen.samples:,} samples decoded from "
        f"the prior, sigma chosen on validation images, {real.n_test:,} test images; {seeds}, minutes of training "
        f"for one.\n\n{table}\n\nThe last row uses real images as samples. Smooth decoders score "
        "above them: a blurred image lies near many test images, a sharp one near few. Compare models with one "
        "another by this figure.\n\n![test log-likelihood](table1.png)"
    )
    experiment.write_report(text)
    print(table)


if __name__ == "__main__":
    main()
