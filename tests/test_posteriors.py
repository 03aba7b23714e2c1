"""Posteriors and the denoising criterion, for every model."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from test_nn import DATA_DIM, data, every_autoencoder, small, train
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.nn import functional as F

from fastmmd.nn import KL, MLP, MMD, MMDAE, Autoencoder
from fastmmd.nn.autoencoders import Posterior
from fastmmd.priors import Gaussian

# --- posteriors ---


@pytest.mark.parametrize("kind", ["aae", "mmd-ae", "ds-aae"])
@pytest.mark.parametrize("two_phases", [False, True])
def test_every_posterior_trains(kind: str, two_phases: bool) -> None:
    for posterior in get_args(Posterior):
        model = small(kind, posterior=posterior, learning_rate=1e-2)
        model.generator_learning_rate = 1e-3 if two_phases else None
        history = train(model, 30)
        assert history[-1]["reconstruction"] < 0.85 * history[2]["reconstruction"]


def test_the_implicit_posterior_is_the_encoder_of_data_beside_noise() -> None:
    model = small("mmd-ae", posterior="implicit", noise_size=3, input_dropout=0.2).eval()
    x, seen = data(2_000), []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    draws = [model.draw_codes(x, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    moved = (draws[0] - draws[2]).abs().amax(1)
    assert (moved > 1e-4).float().mean() > 0.99 and draws[0].shape == (2_000, 2)
    data_part, eta = seen[0].split([DATA_DIM, 3], dim=1)
    assert torch.equal(data_part, x)
    torch.testing.assert_close(torch.cov(eta.T), torch.eye(3), rtol=0, atol=0.15)  # 4 standard errors of a variance
    assert eta.mean(0).abs().max() < 0.1
    assert torch.equal(model.encode(x), model.encoder(torch.cat([x, torch.zeros(2_000, 3)], 1)))
    assert torch.equal(model.encode(x), model.encode(x))


def test_dropout_leaves_the_noise_of_the_posterior_alone() -> None:
    model = small("mmd-ae", posterior="implicit", noise_size=3, input_dropout=0.5)
    seen: list[Tensor] = []
    model.encoder.hidden.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    noisy = torch.ones(500, DATA_DIM + 3)
    model.encoder(noisy)
    assert 0.4 < (seen[0][:, :DATA_DIM] == 0).float().mean() < 0.6
    assert (seen[0][:, DATA_DIM:] == 1).all()


def test_draws_follow_the_gaussian_posterior() -> None:
    model = small("vae").eval()
    x = data(1).expand(20_000, -1)
    mean, log_variance = model.encoder(x[:1]).chunk(2, dim=1)
    draws = model.draw_codes(x, generator=torch.Generator().manual_seed(1))
    std = torch.exp(0.5 * log_variance)
    torch.testing.assert_close((draws.mean(0) - mean[0]) / std[0], torch.zeros(2), rtol=0, atol=5 / 20_000**0.5)
    torch.testing.assert_close(draws.std(0) / std[0], torch.ones(2), rtol=0, atol=5 / 40_000**0.5)
    deterministic = small("mmd-ae").eval()
    assert torch.equal(deterministic.draw_codes(x[:5]), deterministic.encode(x[:5]))


def test_the_gaussian_posterior_is_a_distribution() -> None:
    """Its moments, draws, densities and divergence are those that training uses."""
    model, x = small("vae").eval(), data(9)
    posterior = model.posterior_distribution(x)
    assert (posterior.batch_shape, posterior.event_shape) == ((9,), (2,))
    mean, log_variance = model.encoder(x).chunk(2, dim=1)
    assert torch.equal(posterior.mean, model.encode(x)) and torch.equal(posterior.mean, mean)
    torch.testing.assert_close(posterior.variance, log_variance.exp())
    torch.manual_seed(1)
    draws = posterior.rsample()
    assert torch.equal(draws, model.draw_codes(x, generator=torch.Generator().manual_seed(1)))
    density = torch.distributions.MultivariateNormal(mean, torch.diag_embed(log_variance.exp()))
    torch.testing.assert_close(posterior.log_prob(draws), density.log_prob(draws))
    divergence = torch.distributions.kl_divergence(posterior, Independent(Normal(torch.zeros(9, 2), 1.0), 1)).mean()
    torch.testing.assert_close(divergence, model(x).regularizer)
    expected = torch.autograd.grad(model(x).regularizer, list(model.encoder.parameters()))
    for gradient, other in zip(
        torch.autograd.grad(divergence, list(model.encoder.parameters())), expected, strict=True
    ):
        torch.testing.assert_close(gradient, other)
    for kind, name in (("mmd-ae", "deterministic"), ("aae", "implicit")):
        with pytest.raises(ValueError, match=f"posterior: got '{name}', expected \"gaussian\".*draw_codes"):
            small(kind, posterior=name).posterior_distribution(x)
    assert small("aae", posterior="gaussian").posterior_distribution(x).mean.shape == (9, 2)


def test_noise_belongs_to_the_implicit_posterior_and_moments_to_kl() -> None:
    assert small("aae", posterior="implicit").noise_size == 2  # the code size
    assert small("aae", posterior="implicit", noise_size=5).settings()["noise_size"] == 5
    assert "noise_size" not in small("aae").settings()
    with pytest.raises(
        ValueError, match="noise_size: got 5 with posterior='gaussian', expected posterior=\"implicit\""
    ):
        small("aae", posterior="gaussian", noise_size=5)
    with pytest.raises(ValueError, match="noise_size: got 0"):
        small("aae", posterior="implicit", noise_size=0)
    for posterior in ("implicit", "deterministic"):
        message = f"posterior: got '{posterior}'; KL needs the moments of posterior=\"gaussian\""
        with pytest.raises(ValueError, match=message):
            small("vae", posterior=posterior)
        with pytest.raises(ValueError, match=message):
            Autoencoder(nn.Linear(6, 2), nn.Linear(2, 4), Gaussian(2), KL(), posterior=posterior)


# --- denoising ---


@every_autoencoder
@pytest.mark.parametrize("two_phases", [False, True])
def test_denoising_corrupts_the_encoders_input_and_not_the_target(kind: str, two_phases: bool) -> None:
    model = small(kind, denoising=0.5, **({"warmup_steps": 0} if kind == "ds-aae" else {}))
    model.generator_learning_rate = 1e-3 if two_phases else None
    model.progress = 0.0  # the phase that trains the encoder
    seen: list[Tensor] = []
    targets: list[Tensor] = []
    hook = model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    loss = model.reconstruction_loss

    def watched(x: Tensor, *rest: Any) -> Tensor:
        targets.append(x)
        return loss(x, *rest)

    model.reconstruction_loss = watched  # type: ignore[method-assign]
    x = data(2_000)
    model.training_step(x, model.configure_optimizers())
    passes = 2 if two_phases and kind != "gmmn-ae" else 1  # its phases are of the run, not of a batch
    assert len(seen) == passes and len(targets) == 1 and torch.equal(targets[0], x)
    for noisy in seen:
        noise = noisy - x
        assert noise.std().item() == pytest.approx(0.5, rel=0.02)  # 40,000 draws: 6 standard errors
        assert abs(noise.mean().item()) < 0.015
    # Everything but training sees clean data.
    seen.clear()
    for use in (model.encode, model.draw_codes, model.reconstruct):
        use(x)
    assert all(torch.equal(clean, x) for clean in seen)
    hook.remove()


@every_autoencoder
def test_denoising_models_learn(kind: str) -> None:
    history = train(small(kind, denoising=0.5, learning_rate=1e-2), 50)
    assert history[-1]["reconstruction"] < 0.85 * history[2]["reconstruction"]


@pytest.mark.parametrize("shape", [(2, 3, 4), (6, 4)])
def test_shifts_move_the_encoders_input(shape: tuple[int, ...]) -> None:
    """By up to a pixel along both axes, all of the nine moves alike, edges repeated; the target stays."""
    planes = (shape if len(shape) == 3 else (1, *shape))[-3:]
    model = MMDAE(24, code_size=2, hidden=(8,), shift=1, image_shape=shape, input_dropout=0.0, precision="float32")
    x = torch.rand(900, 24, generator=torch.Generator().manual_seed(0))
    seen = model.corrupt(x, generator=torch.Generator().manual_seed(1))
    assert torch.equal(seen, model.corrupt(x, generator=torch.Generator().manual_seed(1)))
    padded = F.pad(x.unflatten(1, planes), (1, 1, 1, 1), mode="replicate")
    moves = [
        padded[..., top : top + planes[1], left : left + planes[2]].flatten(1) for top in range(3) for left in range(3)
    ]
    counts = torch.stack([(seen == moved).all(1) for moved in moves]).sum(1)
    assert counts.sum() == 900 and counts.min() > 60
    torch.manual_seed(2)
    losses = model(x)
    torch.manual_seed(2)
    codes = model.encode(model.corrupt(x))
    torch.testing.assert_close(losses.reconstruction, model.reconstruction_loss(x, codes))
    assert torch.equal(model.eval()(x).codes, model.encode(x))


def test_shifts_need_images() -> None:
    with pytest.raises(ValueError, match="shift: got -1"):
        MMDAE(16, shift=-1)
    with pytest.raises(ValueError, match="data_dim: got 20, expected a square image .* for shift, or image_shape"):
        MMDAE(20, shift=1)
    with pytest.raises(ValueError, match="image_shape: got None, expected .* that shift moves"):
        Autoencoder(torch.nn.LazyLinear(2), MLP(2, (8,), 16), Gaussian(2), MMD(), shift=1)


def test_without_denoising_nothing_is_drawn() -> None:
    before = torch.get_rng_state()
    x = data()
    assert small("mmd-ae").corrupt(x) is x
    torch.set_rng_state(before)
    model = small("mmd-ae", denoising=0.5)
    noisy = [model.corrupt(x, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(noisy[0], noisy[1]) and not torch.equal(noisy[0], noisy[2])
