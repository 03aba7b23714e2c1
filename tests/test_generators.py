"""Generators alone: any regularizer between their draws and the batch, GAN and GMMN, their runs; what has no codes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import points
from test_nn import DATA_DIM, data, parameters, same
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

import fastmmd
from fastmmd import evaluation
from fastmmd.nn import (
    GAN,
    GMMN,
    KL,
    MLP,
    MMD,
    Adversarial,
    ClosedFormMMD,
    FourierAdversary,
    GenerativeNetwork,
    GeneratorPrior,
    Regularizer,
)
from fastmmd.nn.spread import BatchNorm1d
from fastmmd.training import UserError, load_data, load_recipe
from fastmmd.training.commands import app, held
from fastmmd.training.health import HealthMonitor
from fastmmd.training.report import evaluate_run
from fastmmd.training.run import RunConfig, RunFolder

SMALL: dict[str, Any] = {"generator": (64,), "noise_size": 4, "precision": "float32", "learning_rate": 1e-3}


def network(regularizer: Regularizer, **options: Any) -> GenerativeNetwork:
    return GenerativeNetwork(GeneratorPrior(MLP(3, (16,), DATA_DIM), 3, DATA_DIM), regularizer, **options)


def generated(model: GenerativeNetwork, count: int = 64) -> Tensor:
    """By the formula, from the global generator."""
    u = 2 * torch.rand(count, model.generator.noise_size) - 1
    return model.generator.network(u).sigmoid()


# --- losses ---


@pytest.mark.parametrize("root", [False, True])
def test_the_roles_are_swapped(root: bool) -> None:
    """The generator descends MMD^2, or its root, of as many images as the batch has against the batch."""
    model, x = network(MMD((0.5, 2.0), kernel_weights=(0.5, 0.5)), root=root), data(40)
    torch.manual_seed(1)
    squared = fastmmd.mmd2(generated(model, 40), x, (0.5, 2.0), kernel_weights=(0.5, 0.5))
    expected = squared.sqrt() if root else squared
    gradients = torch.autograd.grad(expected, list(model.generator.parameters()))
    torch.manual_seed(1)
    losses = model(x)
    torch.testing.assert_close(losses.loss, expected)
    assert losses.codes.shape == (40, DATA_DIM) and losses.reconstruction == losses.adversary == 0
    torch.autograd.backward(losses.loss)
    for parameter, gradient in zip(model.generator.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    torch.manual_seed(1)
    terms = model.training_step(x, model.configure_optimizers())
    torch.testing.assert_close(terms["loss"], expected.detach())
    assert terms["regularizer"] == terms["loss"] and terms["reconstruction"] == 0


def test_the_losses_of_a_gan() -> None:
    """The discriminator's cross-entropy of real and generated images; -log D(generated) for the generator."""
    quiet = {"input_dropout": 0.0, "hidden_dropout": 0.0, "adversary_noise": 0.0}
    model, x = GAN(DATA_DIM, **SMALL, discriminator=(16,), **quiet), data()
    discriminator = model.regularizer.discriminator
    torch.manual_seed(1)
    fake = generated(model)
    real_logits, fake_logits = discriminator(x), discriminator(fake)
    ones = torch.ones_like(real_logits)
    both = F.binary_cross_entropy_with_logits(real_logits, ones)
    both = both + F.binary_cross_entropy_with_logits(fake_logits, 0 * ones)
    torch.manual_seed(1)
    losses = model(x)
    torch.testing.assert_close(losses.adversary, both)
    torch.testing.assert_close(losses.loss, F.binary_cross_entropy_with_logits(fake_logits, ones))
    assert all(gradient is None for gradient in torch.autograd.grad(
        losses.loss, list(discriminator.parameters()), allow_unused=True, retain_graph=True))  # fmt: skip
    assert all(gradient is None for gradient in torch.autograd.grad(
        losses.adversary, list(model.generator.parameters()), allow_unused=True))  # fmt: skip


@pytest.mark.parametrize(
    "regularizer",
    [MMD(), MMD(kernel="energy"), Adversarial.mlp(DATA_DIM, (8,)), FourierAdversary(DATA_DIM, count=8),
     FourierAdversary(DATA_DIM, count=8, mode="doubly_stochastic", blocks=2)],
)  # fmt: skip
def test_any_regularizer_of_draws(regularizer: Regularizer) -> None:
    model = network(regularizer)
    generator, adversary = parameters(model.generator), [*regularizer.parameters(), *regularizer.buffers()]
    before = [tensor.detach().clone() for tensor in adversary]
    optimizers = model.configure_optimizers()
    assert tuple(optimizers) == model.optimizer_names()
    for _ in range(2):
        model.training_step(data(), optimizers)
    assert model.steps == 2 and not any(map(torch.equal, generator, parameters(model.generator)))
    assert regularizer.learns == bool(before) and all(not torch.equal(a, b) for a, b in zip(before, adversary))  # noqa: B905


def test_a_loop_of_your_own_moves_a_random_function() -> None:
    """Bit for bit as `training_step`, which moves it before the generator's step, does at the second step."""
    model = network(FourierAdversary(DATA_DIM, count=8, mode="first_order"))
    losses = model(data())
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="x: got None, expected the batch, by which FourierAdversary moves"):
        model.end_step(losses.codes)
    model.end_step(losses.codes, data())
    assert model.steps == 1 and (model.regularizer.alpha != 1).any()
    plain = network(MMD())
    plain.end_step(plain(data()).codes)
    assert plain.steps == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: GMMN(DATA_DIM, **SMALL | {"learning_rate": 5e-3}, bandwidths=(0.5, 1.0, 2.0)),
        lambda: GAN(DATA_DIM, **SMALL, adversary_learning_rate=1e-3, discriminator=(64,)),
    ],
)
def test_they_learn(make: Any) -> None:
    """Three patterns: the samples are these patterns, all of them."""
    torch.manual_seed(2)
    model = make()
    optimizers = model.configure_optimizers()
    for _ in range(400):
        model.training_step(data(96), optimizers)
    patterns = torch.stack([data()[i::3].mean(0) for i in range(3)])
    distances, nearest = torch.cdist(model.sample(600), patterns).min(1)
    assert distances.median() < 0.5 * torch.cdist(patterns, patterns)[0, 1:].min()
    assert nearest.bincount(minlength=3).min() > 60


# --- the model ---


def test_batch_normalization() -> None:
    """Of every hidden layer, before ReLU; `paper` has none."""
    net = MLP(3, (16, 8), 5, batch_norm=True)
    x, h = points(40, 3), points(40, 3)
    for linear in (net.hidden[0], net.hidden[3]):
        sums = linear(h)
        h = ((sums - sums.mean(0)) / (sums.var(0, correction=0) + 1e-5).sqrt()).relu()
    torch.testing.assert_close(net(x), net.output(h))
    for model, layers in ((GMMN(), 2), (GMMN.paper(), 0), (GAN(), 2), (GAN.paper(), 0)):
        assert sum(isinstance(layer, BatchNorm1d) for layer in model.modules()) == layers


def test_samples_and_checkpoints() -> None:
    model = GAN(DATA_DIM, **SMALL, discriminator=(16,), hidden_dropout=0.5)
    optimizers = model.configure_optimizers()
    assert {optimizer.param_groups[0]["betas"][0] for optimizer in optimizers.values()} == {0.5}
    model.training_step(data(), optimizers)
    draws = [model.sample(7, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert draws[0].shape == (7, DATA_DIM) and 0 < draws[0].min() and draws[0].max() < 1
    assert not draws[0].requires_grad and model.training
    assert network(MMD(), output="identity").sample(50).min() < 0
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), **{n: o.state_dict() for n, o in optimizers.items()}}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = GAN(DATA_DIM, **model.settings())
    again.load_state_dict(state.pop("model"))
    restored = again.configure_optimizers()
    for name, of_optimizer in state.items():
        restored[name].load_state_dict(of_optimizer)
    for one, two in ((model, optimizers), (again, restored)):
        torch.manual_seed(5)
        one.training_step(data(), two)
    assert again.steps == 2 and same(parameters(model), parameters(again))


def test_the_papers_settings() -> None:
    gmmn, gan = GMMN.paper(), GAN.paper()
    assert [layer.out_features for layer in gmmn.generator.network.modules() if isinstance(layer, nn.Linear)] == [
        64, 256, 256, 1024, 784,
    ]  # fmt: skip
    assert gmmn.regularizer.bandwidths == (2.0, 5.0, 10.0, 20.0, 40.0, 80.0) and gmmn.root
    assert gmmn.generator.noise_size == 10 and gan.generator.noise_size == 100


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: network(KL()), ValueError, "regularizer: KL has no draws, which the batch is here"),
        (lambda: network(ClosedFormMMD()), ValueError, "regularizer: ClosedFormMMD has no draws"),
        (lambda: network(MMD(num_classes=3)), ValueError, "regularizer: MMD has classes"),
        (lambda: network(MMD(), root=1), TypeError, "root: got 1, expected True or False"),
        (lambda: network(MMD(), beta1=1.0), ValueError, "beta1: got 1.0"),
        (lambda: network(MMD(), learning_rate=0.0), ValueError, "learning_rate: got 0.0"),
        (lambda: network(MMD(), output="tanh"), ValueError, "output: got 'tanh'"),
        (lambda: GenerativeNetwork(MLP(3, (), 4), MMD()), TypeError, "generator: got MLP, expected a GeneratorPrior"),
        (lambda: GAN(4, noise_size=0), ValueError, "noise_size: got 0"),
        (lambda: GAN(4, batch_norm=1), TypeError, "batch_norm: got 1, expected True or False"),
        (lambda: GAN(DATA_DIM, **SMALL)(data(1)), ValueError, "x: got a batch of one row, but batch normalization"),
        (lambda: GAN(4, hidden_dropout=1.0), ValueError, "hidden_dropout: got 1.0"),
        (lambda: GMMN(4, bandwidths=(0.0,)), ValueError, "bandwidths: got"),
        (lambda: network(MMD(estimator="unbiased"))(data(1)), ValueError, "x: got a batch of one row"),
    ],
)
def test_errors(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


# --- without codes ---


def test_what_needs_codes_says_so() -> None:
    model, message = network(MMD()), "model: got GenerativeNetwork, which has no codes, expected an autoencoder"
    images = data(4)
    for call in (
        lambda: evaluation.posterior_samples(model, images),
        lambda: evaluation.posterior_codes(model, images),
        lambda: evaluation.chain(model, points(4, 2), 1),
        lambda: evaluation.markov_chain(model, 1),
        lambda: evaluation.interpolate(model, images, images, 3),
    ):
        with pytest.raises(UserError, match=message):
            call()
    sampler = evaluation.markov_chain(model, 0)
    assert sampler.name == "generator" and sampler.sample(5).shape == (5, DATA_DIM)
    result = evaluation.parzen_evaluation(model, data(20), data(20), samples=50)
    assert result.sampler == "generator" and result.samples == 50


def test_the_kernel_is_watched() -> None:
    """There are no codes to watch, but the kernel's bandwidths may not fit the data."""
    (problem,) = HealthMonitor(network(MMD((1e-3,)))).check(data(), 7)
    assert problem.startswith("step 7: kernel saturated near 0")
    assert HealthMonitor(network(MMD((1.0,)))).check(data(), 7) == []
    assert HealthMonitor(network(Adversarial.mlp(DATA_DIM, (8,)))).check(data(), 7) == []


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, resumed, evaluated and sampled from by the commands; the report leaves out what needs codes."""
    monkeypatch.chdir(tmp_path)
    run, runner = str(tmp_path / "run"), CliRunner()
    few = ["--set", "evaluation.samples=200", "--device", "cpu", "--quiet"]

    def call(*words: str) -> Any:
        with held:  # until the command ends
            return runner.invoke(app, list(words))

    assert call("train", "gan", "--epochs", "1", "--run-dir", run, *few).exit_code == 0
    report = (tmp_path / "run" / "report.md").read_text()
    assert "samples.png" in report and "200 | generator |" in report
    assert not [word for word in ("Codes", "latent", "reconstructed", "reconstructions") if word in report]
    assert {path.name for path in (tmp_path / "run").glob("*.png")} == {"samples.png"}
    again = call("train", "--resume", run, "--epochs", "2", "--quiet")
    assert again.exit_code == 0 and (tmp_path / "run" / "metrics.jsonl").read_text().count('"epoch"') == 2
    assert "samples from the generator" in again.output and "(samples.png)" in again.output
    assert call("evaluate", run, "--samples", "100").exit_code == 0
    assert call("sample", run, "--count", "5", "--output", "five.npy").exit_code == 0
    for words in (("--sampler", "posterior"), ("--chain-steps", "1"), ("--corrupt",)):
        error = call("sample", run, "--count", "5", "--output", "more.npy", *words).exception
        assert isinstance(error, UserError) and "which has no codes" in str(error)
    error = call("evaluate", run, "--chain-steps", "2").exception
    assert isinstance(error, UserError) and "without chain steps" in str(error)


def test_a_recipe_of_each(tmp_path: Path) -> None:
    """The result of an evaluation has no codes."""
    dataset = load_data("digits", quiet=True)
    config = RunConfig(load_recipe("gmmn", "digits", ["evaluation.samples=100"]), "digits", 64)
    folder = RunFolder.create(tmp_path / "run")
    config.write(folder.config)
    result = evaluate_run(folder, config, dataset, config.recipe.build(64).eval())
    assert result.codes is None and result.reconstruction_error is None
    assert folder.records()[-1]["codes"] is None and folder.is_evaluated()
