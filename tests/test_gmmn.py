"""GMMN+AE: a generator as prior, its two phases, its runs."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import points
from test_nn import DATA_DIM, data, parameters, same
from torch import Tensor, nn

import fastmmd
from fastmmd.nn import GMMNAE, MLP, MMD, GeneratorPrior
from fastmmd.priors import Gaussian
from fastmmd.training import load_recipe

SMALL: dict[str, Any] = {
    "hidden": (32,), "code_size": 2, "generator": (16,), "noise_size": 3, "draws": 200, "precision": "float32",
    "bandwidths": (0.25, 1.0), "learning_rate": 5e-3, "prior_learning_rate": 5e-3, "autoencoder_share": 0.5,
}  # fmt: skip


def train(model: GMMNAE, begin: float, end: float, steps: int, optimizers: dict | None = None) -> list[dict]:
    optimizers = optimizers or model.configure_optimizers()
    history = []
    for step in range(steps):
        model.progress = begin + (end - begin) * step / steps
        history.append(model.training_step(data(), optimizers))
    return history


def test_a_generator_is_a_prior() -> None:
    network = MLP(3, (8,), 2)
    prior = GeneratorPrior(network, 3, 2)
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    draws = [prior.sample(50_000, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert draws[0].shape == (50_000, 2) and torch.equal(draws[0], network(seen[0]))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    for u in seen:
        assert -1 <= u.min() < -0.999 and 0.999 < u.max() <= 1
        assert u.mean(0).abs().max() < 0.013  # 5 standard errors
        torch.testing.assert_close(torch.cov(u.T), torch.eye(3) / 3, rtol=0, atol=0.01)
    assert prior.sample(4, dtype=torch.float64).dtype == torch.float64
    gradients = torch.autograd.grad(prior.sample(9).square().sum(), list(network.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    with pytest.raises(ValueError, match="labels: got some, but GeneratorPrior has no classes"):
        prior.sample(4, labels=torch.zeros(4, dtype=torch.int64))
    assert set(prior.state_dict()) == {f"network.{name}" for name in network.state_dict()}


def test_each_phase_trains_its_own_part() -> None:
    model = GMMNAE(DATA_DIM, **SMALL)
    optimizers = model.configure_optimizers()
    assert set(optimizers) == {"autoencoder", "prior"}
    autoencoder, generator = parameters(model.encoder, model.decoder), parameters(model.prior)
    (terms,) = train(model, 0.49, 0.5, 1, optimizers)
    assert same(generator, parameters(model.prior)) and terms["regularizer"] == 0 < terms["reconstruction"]
    assert not any(map(torch.equal, autoencoder, parameters(model.encoder, model.decoder)))
    autoencoder = parameters(model.encoder, model.decoder)
    (terms,) = train(model, 0.5, 1.0, 1, optimizers)
    assert same(autoencoder, parameters(model.encoder, model.decoder))
    assert not any(map(torch.equal, generator, parameters(model.prior)))
    assert terms["reconstruction"] == 0 < terms["regularizer"] == terms["loss"]
    assert model.steps == 2 and model.encoder.training
    # Each phase has a schedule of its own.
    shares = []
    for model.progress in (0.0, 0.25, 0.499, 0.5, 0.75, 0.999):
        shares.append(model.phase_progress)
    assert shares == pytest.approx([0, 0.5, 0.998, 0, 0.5, 0.998])


def test_the_second_phase_descends_the_mmd_of_clean_codes() -> None:
    model, x = GMMNAE(DATA_DIM, **SMALL | {"hidden_dropout": 0.5, "input_dropout": 0.5}), data()
    codes = model.eval().encode(x)
    assert 0 < codes.min() and codes.max() < 1  # sigmoid
    torch.manual_seed(3)
    expected = fastmmd.mmd2(codes, model.prior.sample(200), (0.25, 1.0), kernel_weights=(0.5, 0.5)).sqrt()
    torch.manual_seed(3)
    (terms,) = train(model.train(), 0.5, 1.0, 1)
    torch.testing.assert_close(terms["loss"], expected.detach())


def test_it_learns() -> None:
    """Three patterns: after both phases the samples are these patterns, all of them."""
    model = GMMNAE(DATA_DIM, **SMALL | {"hidden_dropout": 0.1, "input_dropout": 0.0})
    optimizers = model.configure_optimizers()
    first = train(model, 0.0, 0.5, 200, optimizers)
    second = train(model, 0.5, 1.0, 400, optimizers)
    assert first[-1]["reconstruction"] < 0.85 * first[0]["reconstruction"]
    assert second[-1]["regularizer"] < 0.4 * second[0]["regularizer"]
    model.eval()
    patterns = torch.stack([data()[i::3].mean(0) for i in range(3)])
    distances, nearest = torch.cdist(model.sample(600), patterns).min(1)
    assert distances.median() < 0.5 * torch.cdist(patterns, patterns)[0, 1:].min()
    assert nearest.bincount(minlength=3).min() > 60


def test_checkpoints_repeat_both_phases() -> None:
    model = GMMNAE(DATA_DIM, **SMALL)
    optimizers = model.configure_optimizers()
    train(model, 0.0, 0.5, 2, optimizers)
    train(model, 0.5, 1.0, 2, optimizers)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), **{n: o.state_dict() for n, o in optimizers.items()}}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = GMMNAE(DATA_DIM, **model.settings())
    assert again.settings() == model.settings()
    again.load_state_dict(state.pop("model"))
    restored = again.configure_optimizers()
    for name, optimizer_state in state.items():
        restored[name].load_state_dict(optimizer_state)
    for one, two in ((model, optimizers), (again, restored)):
        torch.manual_seed(5)
        train(one, 0.4, 0.6, 4, two)
    assert again.steps == 8 and same(parameters(model), parameters(again))


def test_more_draws_than_codes() -> None:
    codes, prior = points(10, 2), Gaussian(2)
    torch.manual_seed(1)
    value = MMD((1.0,), draws=500)(codes, prior)
    torch.manual_seed(1)
    assert torch.equal(value, fastmmd.mmd2(codes, prior.sample(500), (1.0,)))
    with pytest.raises(ValueError, match="draws: got 5 with classes"):
        MMD(num_classes=2, draws=5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"autoencoder_share": 1.0}, ValueError, "autoencoder_share: got 1.0, expected a positive number below 1"),
        ({"autoencoder_share": 0.0}, ValueError, "autoencoder_share: got 0.0"),
        ({"prior_learning_rate": 0.0}, ValueError, "prior_learning_rate: got 0.0"),
        ({"hidden_dropout": 1.0}, ValueError, "hidden_dropout: got 1.0"),
        ({"draws": 0}, ValueError, "draws: got 0"),
        ({"generator": (0,)}, ValueError, "generator: got 0"),
        ({"noise_size": 0}, ValueError, "noise_size: got 0"),
        ({"prior": "mixture"}, TypeError, "prior"),
    ],
)
def test_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GMMNAE(DATA_DIM, **SMALL | options)
    with pytest.raises(ValueError, match="labels: got some, but neither MMD nor the decoder has classes"):
        model = GMMNAE(DATA_DIM, **SMALL)
        model.training_step(data(), model.configure_optimizers(), torch.zeros(64, dtype=torch.int64))


def test_dropout_of_hidden_units() -> None:
    network = MLP(4, (1000,), 1, hidden_dropout=0.3)
    seen: list[Tensor] = []
    network.output.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    nn.init.ones_(network.hidden[0].bias), nn.init.zeros_(network.hidden[0].weight)
    network(torch.zeros(2, 4))
    network.eval()(torch.zeros(2, 4))
    assert 0.25 < (seen[0] == 0).float().mean() < 0.35 and (seen[1] == 1).all()


def test_a_run_goes_through_both_phases(tmp_path: Path) -> None:
    """By the loop, whose schedule begins anew with each phase."""
    from fastmmd.training.loop import Trainer
    from fastmmd.training.run import RunConfig, RunFolder

    overrides = ["training.epochs=4", "training.evaluate_every=0", "evaluation.samples=50", "model.draws=50"]
    overrides += ["model.autoencoder_share=0.5", "training.warmup=0.25"]
    config = RunConfig(load_recipe("gmmn-ae", "digits", overrides), "digits", 64)
    trainer = Trainer(config, config.load_data(quiet=True), RunFolder.create(tmp_path / "run"), quiet=True)
    rates, step = [], trainer.model.training_step

    def watched(*arguments: Any) -> dict[str, Tensor]:
        rates.append({name: optimizer.param_groups[0]["lr"] for name, optimizer in trainer.optimizers.items()})
        return step(*arguments)

    trainer.model.training_step = watched
    trainer.fit()
    half = len(rates) // 2
    factors = [min(1, 4 * i / half) * 0.5 * (1 + math.cos(math.pi * i / half)) for i in range(half)] * 2
    highest = {"autoencoder": trainer.model.learning_rate, "prior": trainer.model.prior_learning_rate}
    for name, rate in highest.items():
        assert [rate_of[name] for rate_of in rates] == pytest.approx([rate * factor for factor in factors])
    records = [record for record in trainer.folder.records() if "epoch" in record]
    assert [record["regularizer"] > 0 for record in records] == [False, False, True, True]
    assert trainer.model.sample(5).shape == (5, 64)
