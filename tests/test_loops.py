"""Loops of one's own: the losses that a model returns, and what people do with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_same, points
from test_nn import DATA_DIM, data, every_autoencoder, parameters, same, small
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from fastmmd.nn import MLP, MMD, Adversarial, Autoencoder, Losses, Regularizer
from fastmmd.nn.steps import PATIENCE
from fastmmd.priors import Gaussian, Prior, SwissRoll

Step = Callable[..., dict[str, Tensor]]


def run(model: Autoencoder, step: Step, steps: int = 5, labels: Tensor | None = None) -> dict[str, Any]:
    """Everything that steps leave behind: the terms, the state, the state of the optimizers."""
    optimizers = model.configure_optimizers()
    torch.manual_seed(11)
    terms = []
    for number in range(steps):
        model.progress = number / steps
        terms.append(step(model, data(), optimizers, labels))
    states = {name: optimizer.state_dict()["state"] for name, optimizer in optimizers.items()}
    return {"terms": terms, "model": dict(model.state_dict()), "states": states, "random": torch.get_rng_state()}


def descend(loss: Tensor, optimizer: Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


# --- forward ---


@every_autoencoder
def test_forward_returns_the_losses_and_steps_nothing(kind: str) -> None:
    model, x = small(kind, **({"warmup_steps": 0} if kind == "ds-aae" else {})), data()
    state = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    losses = model(x)
    assert isinstance(losses, Losses) and losses.codes.shape == (64, 2)
    assert all(term.ndim == 0 for term in losses[:4]) and losses.reconstruction > 0
    expected = losses.reconstruction + model.regularizer_weight * losses.regularizer
    torch.testing.assert_close(losses.loss, expected, rtol=0, atol=0)
    if kind != "gmmn-ae":  # whose encoder normalizes by the batch
        assert_same(state, {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)})
    assert model.steps == 0 and (losses.adversary > 0) == (kind == "aae")


@pytest.mark.parametrize("kind", ["mmd-ae", "vae"])
@pytest.mark.parametrize("warmup_steps", [0, 2])
@pytest.mark.parametrize("denoising", [0.0, 0.5])
def test_a_plain_loop_is_training_step(kind: str, warmup_steps: int, denoising: float) -> None:
    """Bit for bit where there is no adversary: the warm-up, and the noise on the encoder's input, are in forward."""

    def loop(model: Autoencoder, x: Tensor, optimizers: dict[str, Optimizer], _: Tensor | None) -> dict[str, Tensor]:
        losses = model(x)
        descend(losses.loss, optimizers["autoencoder"])
        model.end_step(losses.codes)
        return {name: getattr(losses, name).detach() for name in ("loss", "reconstruction", "regularizer")}

    runs = []
    for step in (loop, Autoencoder.training_step):
        torch.manual_seed(3)
        model = small(kind, denoising=denoising)
        model.warmup_steps = warmup_steps
        model.steps = 0
        runs.append(run(model, step))
    assert_same(*runs)
    terms = [bool(term["reconstruction"] > 0) for term in runs[0]["terms"]]
    assert terms == [warmup_steps == 0] * 2 + [True] * 3


def test_validation_sees_clean_data_and_every_term() -> None:
    model, x, seen = small("ds-aae", denoising=0.5, warmup_steps=5).eval(), data(), []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        losses = model(x)
    assert torch.equal(seen[0], x) and losses.reconstruction > 0
    assert torch.equal(losses.reconstruction, model.reconstruction_loss(x, losses.codes))
    model.train()(x)
    assert not torch.equal(seen[1], x)


def test_labels_are_checked_and_passed_on() -> None:
    labels = torch.arange(64) % 3
    regularizer = Adversarial.mlp(2, (8,), num_classes=3)
    model = Autoencoder(MLP(DATA_DIM, (8,), 2), MLP(2, (8,), DATA_DIM), SwissRoll(num_classes=3), regularizer)
    torch.manual_seed(1)
    losses = model(data(), labels)
    assert torch.equal(losses.regularizer, regularizer(losses.codes, model.prior, None, labels))
    torch.manual_seed(1)
    assert torch.equal(losses.adversary, model.adversary_loss(losses.codes, labels))
    torch.manual_seed(1)
    assert torch.equal(losses.adversary, regularizer.adversary_loss(losses.codes, model.prior, labels))
    plain = small("aae")
    for call in (lambda: plain(data(), labels), lambda: plain.adversary_loss(points(64, 2), labels),
                 lambda: plain.end_step(points(64, 2), labels)):  # fmt: skip
        with pytest.raises(ValueError, match="labels: got some, but neither Adversarial nor the decoder has classes"):
            call()
    with pytest.raises(ValueError, match="labels: got None, but the decoder has 3 classes"):
        Autoencoder(MLP(DATA_DIM, (8,), 2), MLP(5, (8,), DATA_DIM), Gaussian(2), MMD(), decoder_classes=3)(data())


# --- adversaries ---


def test_one_backward_pass_serves_both_optimizers() -> None:
    """Of the sum: the discriminator gets the gradient of its loss alone, encoder and decoder that of theirs."""
    model, x = small("aae"), data()
    groups = ([*model.encoder.parameters(), *model.decoder.parameters()], list(model.regularizer.parameters()))
    torch.manual_seed(1)
    losses = model(x)
    for loss, mine, other in ((losses.loss, *groups), (losses.adversary, *groups[::-1])):
        assert all(g is None for g in torch.autograd.grad(loss, other, retain_graph=True, allow_unused=True))
        expected = torch.autograd.grad(loss, mine, retain_graph=True)
        model.zero_grad()
        (losses.loss + losses.adversary).backward(retain_graph=True)
        assert same(list(expected), [p.grad for p in mine])
    discriminator, codes = model.regularizer.discriminator, losses.codes.detach()
    torch.manual_seed(1)
    draws = model.prior.sample(64)  # the first draws, of a deterministic posterior
    real, fake = (torch.sigmoid(discriminator(z / model.regularizer.scale)) for z in (draws, codes))
    torch.testing.assert_close(losses.adversary, -(real.log().mean() + (1 - fake).log().mean()))
    torch.testing.assert_close(losses.regularizer, -fake.log().mean())


def test_the_weights_of_a_discriminator_may_be_frozen_or_shared() -> None:
    """They stay as they are, whether a module occurs twice or a parameter in two modules."""
    layer, tied, last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
    tied.weight = layer.weight
    regularizer = Adversarial(nn.Sequential(nn.Linear(2, 4), layer, nn.Tanh(), layer, tied, last))
    regularizer.discriminator[0].requires_grad_(False)
    before, wanted = list(regularizer.parameters()), [p.requires_grad for p in regularizer.parameters()]
    codes = points(8, 2).requires_grad_()
    loss = regularizer(codes, Gaussian(2))
    loss.backward()
    assert all(p is old and p.grad is None for p, old in zip(regularizer.parameters(), before, strict=True))
    assert [p.requires_grad for p in regularizer.parameters()] == wanted == [False, False, True, True, True, True, True]
    assert tied.weight is layer.weight
    dense = F.softplus(-regularizer.discriminator(codes)).mean()
    assert torch.equal(loss, dense) and torch.equal(codes.grad, torch.autograd.grad(dense, codes)[0])


@pytest.mark.parametrize("mode", ["fresh", "first_order", "doubly_stochastic"])
def test_end_step_moves_the_random_function(mode: str) -> None:
    model, again = (small("ds-aae", mode=mode, warmup_steps=2) for _ in range(2))
    codes = points(64, 2)
    torch.manual_seed(1)
    model.end_step(codes.requires_grad_())
    torch.manual_seed(1)
    again.regularizer.update(codes.detach(), again.prior)
    assert_same(*(dict(m.regularizer.state_dict()) for m in (model, again)))
    assert model.steps == 1 and model.regularizer.step == 1
    assert model(data()).reconstruction == 0  # one more step to warm up
    model.end_step(codes)
    assert model(data()).reconstruction > 0
    assert model.adversary_loss(codes) == 0 and not model.adversary_loss(codes).requires_grad


@pytest.mark.parametrize("mode", ["fresh", "first_order", "doubly_stochastic"])
def test_a_step_may_end_before_the_backward_pass(mode: str) -> None:
    model = small("ds-aae", mode=mode, warmup_steps=0)
    model.end_step(points(64, 2))
    expected = gradients(model, data(), 5)
    torch.manual_seed(5)
    losses = model(data())
    model.end_step(losses.codes)
    assert same(expected, list(torch.autograd.grad(losses.loss, list(model.parameters()))))


@every_autoencoder
def test_codes_are_checked(kind: str) -> None:
    """Of a model that does something with them, or not."""
    model = small(kind)
    for codes, error, message in (
        (model(data()), TypeError, "codes: got Losses, expected a torch.Tensor"),
        (None, TypeError, "codes: got NoneType"),
        (
            points(64, 3),
            ValueError,
            r"codes: got shape \[64, 3\], expected \[B, 2\]",
        ),
        (points(2), ValueError, r"codes: got shape \[2\]"),
    ):
        for call in (model.end_step, model.adversary_loss):
            with pytest.raises(error, match=message):
                call(codes)
    assert model.steps == 0


def test_end_step_leaves_a_trained_adversary_to_its_optimizer() -> None:
    model = small("aae")
    before = parameters(model)
    model.end_step(points(64, 2))
    assert same(before, parameters(model)) and model.steps == 1


def test_a_trained_adversary_is_one_method() -> None:
    """What else it needs follows: an optimizer, its step, the loss that forward returns."""

    class Affine(Regularizer):
        def __init__(self) -> None:
            super().__init__()
            self.direction = nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self, codes: Tensor, prior: Prior, moments: Any = None) -> Tensor:
            return (codes @ self.direction.detach()).mean().square()

        def adversary_loss(self, codes: Tensor, prior: Prior, labels: Tensor | None = None) -> Tensor:
            return -(codes.detach() @ self.direction).mean()

    model = Autoencoder(MLP(DATA_DIM, (8,), 2), MLP(2, (8,), DATA_DIM), Gaussian(2), Affine())
    optimizers = model.configure_optimizers()
    assert set(optimizers) == {"autoencoder", "adversary"}
    codes = model.encode(data()).detach()
    assert torch.equal(model(data()).adversary, -(codes @ model.regularizer.direction).mean())
    optimizers["adversary"] = SGD(model.regularizer.parameters(), lr=0.5)
    model.training_step(data(), optimizers)
    torch.testing.assert_close(model.regularizer.direction.data, torch.tensor([1.0, 2.0]) + 0.5 * codes.mean(0))


def test_a_loop_that_never_ends_a_step_is_told() -> None:
    for kind, message in (("ds-aae", "the adversary stands still"), ("mmd-ae", "the warm-up never ends")):
        model, x = small(kind), data(4)
        model.warmup_steps, model.steps = 2, 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(PATIENCE - 1):
                model(x)
            with torch.no_grad():
                model(x)
            model.eval()(x)
        with pytest.warns(UserWarning, match=f"100 training batches without end_step.*: {message}"):
            model.train()(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.end_step(model(x).codes)
            for _ in range(PATIENCE - 1):
                model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = small("aae")
        for _ in range(PATIENCE + 1):
            model(x)


# --- clipping, accumulation, scaled gradients ---

KINDS = pytest.mark.parametrize("kind", ["mmd-ae", "ds-aae", "aae", "vae"])


def fresh(kind: str) -> tuple[Autoencoder, dict[str, Optimizer]]:
    torch.manual_seed(3)
    model = small(kind, **({"warmup_steps": 0} if kind == "ds-aae" else {}))
    return model, {name: SGD(o.param_groups[0]["params"], lr=0.125) for name, o in model.configure_optimizers().items()}


def gradients(model: Autoencoder, x: Tensor, seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    losses = model(x)
    return list(torch.autograd.grad(losses.loss + losses.adversary, list(model.parameters())))


@KINDS
def test_gradient_clipping(kind: str) -> None:
    model, optimizers = fresh(kind)
    before, gradient = parameters(model), gradients(model, data(), 5)
    norm = torch.stack([g.square().sum() for g in gradient]).sum().sqrt()
    torch.manual_seed(5)
    losses = model(data())
    (losses.loss + losses.adversary).backward()
    torch.testing.assert_close(nn.utils.clip_grad_norm_(model.parameters(), 0.25 * norm.item()), norm)
    for optimizer in optimizers.values():
        optimizer.step()
    for p, old, g in zip(model.parameters(), before, gradient, strict=True):
        torch.testing.assert_close(p.data, old - 0.125 * 0.25 * g)


@KINDS
def test_accumulation_of_gradients(kind: str) -> None:
    """The mean of the gradients of two batches in one step, which counts once."""
    model, optimizers = fresh(kind)
    before, halves = parameters(model), data().chunk(2)
    expected = [(a + b) / 2 for a, b in zip(*(gradients(model, x, s) for s, x in enumerate(halves)), strict=True)]
    codes = []
    for seed, x in enumerate(halves):
        torch.manual_seed(seed)
        losses = model(x)
        ((losses.loss + losses.adversary) / 2).backward()
        codes.append(losses.codes)
    for optimizer in optimizers.values():
        optimizer.step()
    model.end_step(torch.cat(codes))
    assert model.steps == 1
    for p, old, g in zip(model.parameters(), before, expected, strict=True):
        torch.testing.assert_close(p.data, old - 0.125 * g)


@KINDS
def test_gradients_scaled(kind: str) -> None:
    """By a power of two: the same bits. After an overflow no optimizer steps, and the scale is halved."""
    models = []
    for enabled in (True, False):
        model, optimizers = fresh(kind)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000, enabled=enabled)
        for step in range(3):
            torch.manual_seed(step)
            losses = model(data())
            for optimizer in optimizers.values():
                optimizer.zero_grad()
            scaler.scale(losses.loss + losses.adversary).backward()
            for optimizer in optimizers.values():
                scaler.unscale_(optimizer)
                scaler.step(optimizer)
            scaler.update()
            model.end_step(losses.codes)
        models.append(model)
    assert same(*(parameters(model) for model in models))
    model, optimizers = fresh(kind)
    scaler, before = torch.amp.GradScaler("cpu", init_scale=2.0**127), parameters(model)
    losses = model(data())
    scaler.scale(1e10 * losses.loss).backward()
    scaler.step(optimizers["autoencoder"])
    scaler.update()
    assert same(before, parameters(model)) and scaler.get_scale() == 2.0**126


@KINDS
def test_autocast(kind: str) -> None:
    """Losses and codes in float32, near those without it."""
    model, _ = fresh(kind)
    torch.manual_seed(1)
    plain = model(data())
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(data())
    assert {part.dtype for part in losses} == {torch.float32}
    torch.testing.assert_close(losses.loss, plain.loss, rtol=0.05, atol=0)
    (losses.loss + losses.adversary).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
