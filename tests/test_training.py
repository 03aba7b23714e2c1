"""The training loop: what is resumed is the same, what is warned about is worth it."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import assert_same
from torch import Tensor

from fastmmd.checkpoint import load_checkpoint, save_checkpoint
from fastmmd.errors import Interrupted
from fastmmd.nn import KL
from fastmmd.nn.regularizers import Moments
from fastmmd.priors import Gaussian
from fastmmd.training import Dataset, Recipe, Split, UserError, load_recipe, timing
from fastmmd.training.health import HealthMonitor
from fastmmd.training.loop import Trainer
from fastmmd.training.run import RunConfig, RunFolder
from fastmmd.training.timing import FIRST, RegularizerTimer

SMALL = {"model.hidden": [12], "training.batch_size": 16, "training.health_every": 3}
SMALL |= {"training.evaluate_every": 2, "evaluation.samples": 200}
SMALL |= {"evaluation.sigma_low": 0.05, "evaluation.sigma_high": 2.0}
TINY = {
    "ds-aae": SMALL | {"model.features": 20, "model.warmup_steps": 3},
    "mmd-ae": SMALL,
    "aae": SMALL | {"model.discriminator": [8], "model.optimizer": "muon"},
    "vae": SMALL,
}
GROWS = {"training__regularizer_growth": 50.0}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two threads gain nothing on tiny networks and wait for each other on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Ninety images of ten pixels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(90, 10, generator=generator)
    labels = torch.arange(90) % 3
    return Dataset(
        "tiny",
        Split(images[:50], labels[:50]),
        Split(images[50:70], labels[50:70]),
        Split(images[70:], labels[70:]),
        (2, 5),
    )


def tiny(kind: str = "mmd-ae", epochs: int = 4, **overrides: Any) -> Recipe:
    named = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_recipe(kind, "", {**TINY[kind], "training.epochs": epochs, **named})


def trainer(path: Path, recipe: Recipe, data: Dataset, *, resume: bool = False) -> Trainer:
    config = RunConfig(recipe, data.name, data.data_dim, seed=3)
    folder = RunFolder(path) if resume else RunFolder.create(path)
    made = Trainer(config, data, folder, quiet=True)
    if resume:
        made.resume()
    return made


def interrupt_after(made: Trainer, step: int) -> None:
    """Press Ctrl-C while the model takes the given step."""
    take = made.model.training_step

    def training_step(batch: Tensor, optimizers: Any, labels: Any = None) -> Any:
        if made.step + 1 == step:
            signal.raise_signal(signal.SIGINT)
        return take(batch, optimizers, labels)

    made.model.training_step = training_step


def state_of(path: Path) -> dict[str, Any]:
    state = load_checkpoint(path / "checkpoint.pt")
    del state["seconds"]
    return state


def metrics_of(path: Path) -> list[dict[str, Any]]:
    times = ("seconds", "images_per_second", "regularizer_share")
    return [{k: v for k, v in r.items() if k not in times} for r in RunFolder(path).records()]


# --- the loop ---


@pytest.mark.parametrize(("kind", "more"), [*((kind, {}) for kind in TINY), ("aae", GROWS)])
def test_interrupted_and_resumed_is_bit_identical(tmp_path: Path, data: Dataset, kind: str, more: Any) -> None:
    """Stopped in the middle of the second of four epochs and of the warm-up, with a schedule and averaged weights."""
    recipe = tiny(kind, training__schedule="cosine", training__warmup=0.7, training__average=0.9, **more)
    whole = trainer(tmp_path / "whole", recipe, data)
    whole.fit()
    parts = trainer(tmp_path / "parts", recipe, data)
    interrupt_after(parts, 5)
    with pytest.raises(Interrupted, match="stopped after step 5") as stop:
        parts.fit()
    assert stop.value.exit_code == 130
    torch.manual_seed(77)  # another process would not have this one's random state
    resumed = trainer(tmp_path / "parts", recipe, data, resume=True)
    assert (resumed.step, resumed.epoch) == (5, 1)
    resumed.fit()
    assert resumed.step == 12
    assert_same(state_of(tmp_path / "parts"), state_of(tmp_path / "whole"))
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole")
    assert metrics_of(tmp_path / "whole")[-1]["validation_log_likelihood"] < math.inf


def test_two_and_two_epochs_are_four(tmp_path: Path, data: Dataset) -> None:
    trainer(tmp_path / "whole", tiny(epochs=4, training__schedule="constant"), data).fit()
    trainer(tmp_path / "parts", tiny(epochs=2, training__schedule="constant"), data).fit()
    longer = trainer(tmp_path / "parts", tiny(epochs=4, training__schedule="constant"), data, resume=True)
    longer.fit()
    assert_same(state_of(tmp_path / "parts"), state_of(tmp_path / "whole"))


def test_complete_run_goes_on_only_to_its_missing_evaluation(tmp_path: Path, data: Dataset) -> None:
    run = tmp_path / "my run"
    trainer(run, tiny(epochs=2), data).fit()
    again = trainer(run, tiny(epochs=2), data, resume=True)
    before = state_of(run)
    again.fit()  # nothing left to train: on to the evaluation
    assert_same(state_of(run), before)
    RunFolder(run).append({"kind": "evaluation"})
    with pytest.raises(UserError, match=r"is complete \(2 epochs\).*--epochs N, N > 2.*fastmmd evaluate '.*my run'"):
        trainer(run, tiny(epochs=2), data, resume=True)
    trainer(run, tiny(epochs=3), data, resume=True).fit()
    trainer(run, tiny(epochs=3), data, resume=True)  # the evaluation was of two epochs
    with pytest.raises(UserError, match=r"is complete \(3 epochs\)"):
        trainer(run, tiny(epochs=2), data, resume=True)


@pytest.mark.parametrize("epoch", [1, 2])
def test_interrupt_in_an_evaluation_is_heeded(tmp_path: Path, data: Dataset, epoch: int) -> None:
    made = trainer(tmp_path / "my run", recipe := tiny(epochs=2, training__evaluate_every=1), data)
    evaluate = made.evaluate

    def interrupted() -> dict[str, float]:
        if made.epoch == epoch:
            signal.raise_signal(signal.SIGTERM)
        return evaluate()

    made.evaluate = interrupted  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match=f"after step {3 * epoch}; resume with: .*--resume '.*my run'$") as stop:
        made.fit()
    assert stop.value.exit_code == 143
    resumed = trainer(tmp_path / "my run", recipe, data, resume=True)
    assert resumed.epoch == epoch
    resumed.fit()
    trainer(tmp_path / "whole", recipe, data).fit()
    assert_same(state_of(tmp_path / "my run"), state_of(tmp_path / "whole"))
    assert metrics_of(tmp_path / "my run") == metrics_of(tmp_path / "whole")


@pytest.mark.parametrize("former", [False, True])
def test_another_batch_size_or_other_data_is_refused(tmp_path: Path, data: Dataset, former: bool) -> None:
    """Run folders of earlier versions, which recorded neither, are taken as they are."""
    made = trainer(tmp_path / "run", tiny(epochs=2), data)
    made.fit()
    if former:
        state = load_checkpoint(made.folder.checkpoint)
        del state["batches"]["batch_size"], state["batches"]["rows"], state["data"]
        save_checkpoint(made.folder.checkpoint, state)
    images, labels = data.train.images, data.train.labels
    wrong = [
        (tiny(training__batch_size=8), data, r"training.batch_size of a run cannot change: .* has 16, the settings 8"),
        (tiny(), replace(data, train=Split(images[:48], labels[:48])), "has 50 training images, the data 48"),
        (tiny(), replace(data, train=Split(images.flip(0), labels)), "tiny holds other images or labels"),
        (tiny(), replace(data, train=Split(images, labels.flip(0))), "tiny holds other images or labels"),
    ]
    for recipe, dataset, message in wrong:
        with nullcontext() if former else pytest.raises(UserError, match=message):
            trainer(tmp_path / "run", recipe, dataset, resume=True)
    trainer(tmp_path / "run", tiny(), data, resume=True).fit()


def test_seed_decides_everything(tmp_path: Path, data: Dataset) -> None:
    for name, noise in (("a", 1), ("b", 2)):
        torch.manual_seed(noise)
        trainer(tmp_path / name, tiny(epochs=1), data).fit()
    assert_same(state_of(tmp_path / "a"), state_of(tmp_path / "b"))


@pytest.mark.parametrize("kind", list(TINY))
def test_looking_does_not_change_the_run(tmp_path: Path, data: Dataset, kind: str) -> None:
    """Neither evaluations nor health checks nor the timer's hooks change a weight."""
    watched = tiny(kind, epochs=5, training__evaluate_every=1, training__health_every=1)
    blind = tiny(kind, epochs=5, training__evaluate_every=0, training__health_every=0)
    trainer(tmp_path / "watched", watched, data).fit()
    made = trainer(tmp_path / "blind", blind, data)
    made.timer.step = lambda step: nullcontext()  # type: ignore[method-assign]
    made.fit()
    assert made.timer.share is None
    states = [state_of(tmp_path / name) for name in ("watched", "blind")]
    for state in states:
        del state["warned"]
    assert_same(*states)


def test_metrics_of_steps_that_are_done_again_are_dropped(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    for step in (3, 6, 9):
        folder.append({"step": step})
    with open(folder.metrics, "a") as file:
        file.write('{"step": 12, "los')  # killed while writing
    assert folder.records() == [{"step": 3}, {"step": 6}, {"step": 9}]
    folder.append({"kind": "evaluation"})  # does not continue the unfinished line
    assert folder.records()[3:] == [{"kind": "evaluation"}]
    folder.forget_after(6)
    assert folder.records() == [{"step": 3}, {"step": 6}, {"kind": "evaluation"}]
    assert folder.metrics.read_text().count("\n") == 3


def test_cosine_schedule_average_and_growth(tmp_path: Path, data: Dataset) -> None:
    recipe = tiny(epochs=2, training__schedule="cosine", training__average=0.5, training__regularizer_growth=64)
    made, base = trainer(tmp_path / "run", recipe, data), recipe.model
    rates, growth, weights, take = [], [], list[Tensor](), made.model.training_step

    def training_step(batch: Tensor, optimizers: Any, labels: Any = None) -> Any:
        rates.append(optimizers["autoencoder"].param_groups[0]["lr"])
        growth.append(made.model.regularizer_weight / base.regularizer_weight)
        terms = take(batch, optimizers)
        weights.append(next(made.model.parameters()).detach().clone())
        return terms

    made.model.training_step = training_step
    made.fit()
    assert rates == pytest.approx([base.learning_rate * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)])
    assert growth == pytest.approx([2.0**step for step in range(6)])  # 64 after the last step
    expected = weights[0]
    for step, weight in enumerate(weights[1:], 2):
        expected = torch.lerp(expected, weight, 1 - min(0.5, (1 + step) / (10 + step)))
    torch.testing.assert_close(next(made.evaluated_model.parameters()).detach(), expected)
    assert made.evaluated_model is not made.model


def test_loss_that_is_not_finite_stops_the_run(tmp_path: Path, data: Dataset) -> None:
    made = trainer(tmp_path / "run", tiny(epochs=4), data)
    take = made.model.training_step

    def training_step(batch: Tensor, optimizers: Any, labels: Any = None) -> Any:
        return take(batch * float("nan") if made.step == 4 else batch, optimizers)

    made.model.training_step = training_step
    with pytest.raises(UserError, match="diverged at step 5: loss nan, reconstruction nan.* of step 3$"):
        made.fit()
    state = load_checkpoint(made.folder.checkpoint)
    assert state["step"] == 3
    assert all(value.isfinite().all() for value in state["model"].values() if torch.is_tensor(value))


def test_progress_reports_the_regularizers_share(tmp_path: Path, data: Dataset) -> None:
    made = trainer(tmp_path / "run", tiny("ds-aae", epochs=4), data)
    made.fit()
    share = made.folder.records()[-1]["regularizer_share"]
    assert 0 < share < 1
    regularizer = made.model.regularizer
    assert "update" not in vars(regularizer)
    assert not regularizer._forward_hooks and not regularizer._backward_hooks


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let 0.02 s pass on the clock that the timer reads; nothing else takes any time."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def wait() -> None:
        clock.now += 0.02

    monkeypatch.setattr(Wait, "wait", staticmethod(wait), raising=False)
    return wait


class Wait(torch.autograd.Function):
    """The identity, with a backward pass that takes 0.02 s of the fixture `wait`."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        Wait.wait()
        return gradient


@pytest.mark.usefixtures("wait")
def test_timer_measures_the_backward_pass_through_the_moments() -> None:
    class SlowKL(KL):
        def forward(self, codes: Tensor, prior: Any, moments: Moments | None = None) -> Tensor:
            assert moments is not None
            return super().forward(codes, prior, Moments(*map(Wait.apply, moments)))

    module = SlowKL()
    timer = RegularizerTimer(module, torch.device("cpu"))
    outputs = torch.ones(4, 6, requires_grad=True)
    moments = Moments(*(2 * outputs).chunk(2, dim=1))
    codes = moments.mean + moments.log_variance
    with timer.step(FIRST):
        penalty = module(codes, Gaussian(3), moments)
        (penalty + Wait.apply(Wait.apply(codes)).sum()).backward()  # 40 ms of decoder, 40 ms of KL
    assert timer.share == pytest.approx(0.5)


def test_timer_measures_forward_backward_and_update(wait: Callable[[], None]) -> None:
    class Slow(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            wait()
            return Wait.apply(x).sum()  # type: ignore[no-any-return]

        def update(self, x: Tensor) -> None:
            wait()

    module = Slow()
    timer = RegularizerTimer(module, torch.device("cpu"))
    x = torch.ones(3, requires_grad=True)
    for step in (0, FIRST):
        with timer.step(step):
            module.update(x)
            (module(x) + x.sum()).backward()
            wait()
        assert (timer.share is None) == (step == 0)
    assert timer.share == pytest.approx(0.75)


# --- health ---


def test_collapsed_and_escaped_codes_are_warned_about_once(data: Dataset) -> None:
    model = tiny().build(10)
    for scale, word in ((1e-3, "collapsed"), (1e3, "escaped")):
        torch.nn.init.normal_(model.encoder.output.weight, std=scale)
        monitor = HealthMonitor(model)
        messages = monitor.check(data.train.images, 100)
        assert len([m for m in messages if word in m and "step 100" in m and "model." in m]) == 1
        assert not any(word in message for message in monitor.check(data.train.images, 200))


@pytest.mark.parametrize(("bandwidth", "word"), [(1e-3, "near 0"), (1e3, "near 1")])
def test_saturated_kernels_are_warned_about(data: Dataset, bandwidth: float, word: str) -> None:
    model = tiny(model__bandwidths=[bandwidth]).build(10)
    messages = HealthMonitor(model).check(data.train.images, 1)
    assert any("saturated " + word in message and "model.bandwidths" in message for message in messages)


def test_healthy_codes_are_left_alone(data: Dataset) -> None:
    model = tiny().build(10)
    model.encode = lambda x: torch.randn(len(x), 4, generator=torch.Generator().manual_seed(0))
    assert HealthMonitor(model).check(torch.rand(500, 10), 1) == []


def test_warnings_reach_the_metrics(tmp_path: Path, data: Dataset) -> None:
    recipe = tiny(epochs=1, model__bandwidths=[1e-3], training__health_every=1)
    trainer(tmp_path / "run", recipe, data).fit()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum("saturated near 0" in line.get("warning", "") for line in lines) == 1


@pytest.mark.parametrize(("every", "steps"), [(1, [20, 25, 40, 50]), (30, [40]), (24, [25, 50]), (0, [])])
def test_health_is_checked_where_figures_are_read(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch, every: int, steps: list[int]
) -> None:
    """No wait for the device but every 20 steps and at the end of an epoch of 25."""
    checked: list[int] = []
    made = trainer(tmp_path / "run", tiny(epochs=2, training__batch_size=2, training__health_every=every), data)
    monkeypatch.setattr(made.health, "check", lambda batch, step: checked.append(step) or [])
    made.fit()
    assert checked == steps


def test_more_threads_than_a_machine_bears_are_refused(tmp_path: Path, data: Dataset) -> None:
    with pytest.raises(UserError, match=r"training.threads must be at most \d+ on this machine, got 100000"):
        trainer(tmp_path / "run", tiny(**{"training.threads": 100_000}), data)


def test_threads_are_those_of_the_recipe_while_it_trains(tmp_path: Path, data: Dataset) -> None:
    torch.set_num_threads(1)
    made = trainer(tmp_path / "run", tiny(epochs=1, training__threads=2), data)
    seen = []
    take = made.model.training_step
    made.model.training_step = lambda *arguments: seen.append(torch.get_num_threads()) or take(*arguments)
    made.fit()
    assert set(seen) == {2} and torch.get_num_threads() == 1
