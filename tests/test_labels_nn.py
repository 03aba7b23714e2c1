"""Labels in the model layer: where they go, and what they do there."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from helpers import assert_close, points
from test_nn import DATA_DIM, data
from torch import Tensor

import fastmmd
from fastmmd.evaluation import chain, markov_chain, posterior_samples, prior_samples
from fastmmd.nn import (
    AAE,
    KL,
    MLP,
    MMD,
    MMDAE,
    MODELS,
    Adversarial,
    Autoencoder,
    ClosedFormMMD,
    FourierAdversary,
    Regularizer,
)
from fastmmd.nn.base import Model
from fastmmd.nn.settings import PriorName
from fastmmd.priors import Gaussian, GaussianMixture, Prior, SwissRoll

MEANS = torch.tensor([[4.0, 0.0], [-2.0, 3.5], [-2.0, -3.5]])
CLASSES = torch.tensor([2, 0, 1])[torch.arange(96) % 3]  # not in the order in which anything else lists them


def three_parts() -> GaussianMixture:
    return GaussianMixture(None, MEANS, 0.25 * torch.eye(2).repeat(3, 1, 1))


def with_classes(decoder_classes: int = 3, **options: Any) -> Autoencoder:
    parts: dict[str, Any] = {"prior": Gaussian(2), "regularizer": ClosedFormMMD((1.0, 2.0))} | options
    outputs = 4 if options.get("posterior") == "gaussian" else 2
    encoder, decoder = MLP(DATA_DIM, (32,), outputs), MLP(2 + decoder_classes, (32,), DATA_DIM)
    return Autoencoder(encoder, decoder, decoder_classes=decoder_classes, **parts)


# --- in the decoder ---


def test_the_decoder_sees_the_code_beside_a_switch() -> None:
    model, codes, labels = with_classes().eval(), points(4, 2), torch.tensor([0, 2, -1, 1])
    seen: list[Tensor] = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = model.decode(codes, labels)
    switch = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]])
    assert torch.equal(seen[0], torch.cat([codes, switch], 1))
    assert torch.equal(images, torch.sigmoid(model.decoder(seen[0])))
    x = data(4)
    assert torch.equal(model.reconstruct(x, labels), model.decode(model.encode(x), labels))
    assert model.reconstruction_loss(x, codes, labels) != model.reconstruction_loss(x, codes, labels.roll(1))


def test_samples_of_a_class() -> None:
    """Labels go to the decoder and to the prior's parts; without any they are drawn, from the generator."""
    model = with_classes(prior=three_parts(), regularizer=Adversarial.mlp(2, (8,), num_classes=3)).eval()
    seen: list[Tensor] = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.sample(300, labels=torch.arange(300) % 3)
    codes, switch = seen[-1].split([2, 3], 1)
    assert torch.equal(switch.argmax(1), torch.arange(300) % 3)
    assert torch.equal(torch.cdist(codes, MEANS).argmin(1), torch.arange(300) % 3)
    draws = [model.sample(300, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    codes, switch = seen[-1].split([2, 3], 1)
    assert switch.sum(0).min() > 70  # of 100 expected, 4 standard deviations
    assert torch.equal(torch.cdist(codes, MEANS).argmin(1), switch.argmax(1))


def test_label_errors_of_the_decoder() -> None:
    model, plain, x, labels = with_classes(), with_classes(0), data(4), torch.zeros(4, dtype=torch.int64)
    optimizers = model.configure_optimizers()
    for missing in (
        lambda: model.decode(points(4, 2)),
        lambda: model.reconstruct(x),
        lambda: model.training_step(x, optimizers),
    ):
        with pytest.raises(ValueError, match=r"labels: got None, but the decoder has 3 classes; give int64 labels \[B"):
            missing()
    for unwanted in (lambda: plain.decode(points(4, 2), labels), lambda: plain.reconstruct(x, labels)):
        with pytest.raises(ValueError, match="labels: got some, but the decoder has no classes; give Autoencoder dec"):
            unwanted()
    for error, wrong, message in (
        (ValueError, labels + 3, "labels: got 3, expected a class from 0 to 2, or -1"),
        (TypeError, labels.float(), "labels: got torch.float32, expected an int64"),
        (ValueError, labels[:2], r"labels: got shape \[2\], expected \[4\]"),
    ):
        for use in (model.reconstruct, lambda x, given: model.training_step(x, optimizers, given)):
            with pytest.raises(error, match=message):
                use(x, wrong)
    assert model.steps == 0
    with pytest.raises(ValueError, match="decoder_classes: got -1"):
        with_classes(-1)


@pytest.mark.parametrize("generator_learning_rate", [None, 5e-3])
def test_style_and_content_part(generator_learning_rate: float | None) -> None:
    """AAE paper, "Supervised adversarial autoencoders": any code, decoded with the label of a class, is of that class.

    With KL, which charges for what the code says: it then leaves the class to the switch.
    """
    options: dict[str, Any] = {"learning_rate": 5e-3, "generator_learning_rate": generator_learning_rate}
    model = with_classes(regularizer=KL(), posterior="gaussian", **options)
    optimizers = model.configure_optimizers()
    x, labels = data(96), CLASSES
    for _ in range(150):
        model.training_step(x, optimizers, labels)
    patterns = torch.stack([x[CLASSES == c].mean(0) for c in range(3)])
    codes = model.prior.sample(90)
    for c in range(3):
        images = model.decode(codes, torch.full((90,), c))
        assert (torch.cdist(images, patterns).argmin(1) == c).float().mean() > 0.9


# --- in the regularizer ---


@pytest.mark.parametrize("kind", [Adversarial, FourierAdversary])
def test_labels_send_each_class_to_its_component(kind: type[Regularizer]) -> None:
    """AAE paper, figure 4: two thirds of the points are labeled; the others find their class's component as well."""
    regularizer: Regularizer
    if kind is Adversarial:
        regularizer, weight, rate = Adversarial.mlp(2, (64,), scale=3.0, num_classes=3), 10.0, 5e-3
    else:
        regularizer = FourierAdversary(2, count=288, bandwidths=(1.0, 4.0, 16.0), num_classes=3)
        weight, rate = 1000.0, 1e-2
    model = with_classes(
        0, prior=three_parts(), regularizer=regularizer, regularizer_weight=weight, learning_rate=rate,
        adversary_learning_rate=rate, adversary_beta1=0.5,
    )  # fmt: skip
    optimizers = model.configure_optimizers()
    x, labels = data(48), CLASSES[:48].where(torch.arange(48) < 32, -1)
    for _ in range(300):
        model.training_step(x, optimizers, labels)
    component = torch.cdist(model.encode(x), MEANS).argmin(1)
    assert (component == CLASSES[:48])[32:].float().mean() > 0.95


@pytest.mark.parametrize("prior", [three_parts(), SwissRoll(num_classes=3)], ids=lambda p: type(p).__name__)
def test_labels_reach_both(prior: Prior) -> None:
    """A regularizer and a decoder with classes get the same labels."""
    model = with_classes(prior=prior, regularizer=FourierAdversary(2, count=12, bandwidths=(1.0,), num_classes=3))
    given: list[Tensor] = []
    model.regularizer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[3]))
    model.decoder.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0][:, 2:].argmax(1)))
    model.training_step(data(96), model.configure_optimizers(), CLASSES)
    assert len(given) == 2 and all(torch.equal(labels, CLASSES) for labels in given)


# --- few codes of a class in a batch ---


def test_unbiased_takes_the_only_code_of_its_class_for_unlabeled() -> None:
    codes, prior = points(9, 2), three_parts()
    regularizer = MMD((1.0,), estimator="unbiased", num_classes=3)
    labels, without = torch.tensor([[0, 2, -1, 2, 1, 1, -1, -1, 2], [-1, 2, -1, 2, 1, 1, -1, -1, 2]])
    torch.manual_seed(7)
    value = regularizer(codes, prior, None, labels)
    torch.manual_seed(7)
    draws = prior.sample(9, labels=without)
    rows = [slice(None), without == 1, without == 2]
    terms = [fastmmd.mmd2(codes[r], draws[r], (1.0,), estimator="unbiased") for r in rows]
    assert_close(value, terms[0] + (terms[1] + terms[2]) / 3)


def test_unbiased_is_least_at_the_width_of_a_part() -> None:
    """Three codes of each class, drawn from its part and scaled about its middle: the biased estimator narrows them."""
    labels, widths, best = torch.arange(10).repeat_interleave(3), torch.linspace(0.4, 1.6, 5), {}
    for estimator in ("biased", "unbiased"):
        options = {"prior": "mixture", "labels": "regularizer", "closed_form": False, "estimator": estimator}
        model = named("mmd-ae", code_size=2, bandwidths=(1.0, 2.0), **options)
        torch.manual_seed(0)
        angles = labels * (2 * math.pi / 10)
        middles = 4 * torch.stack([angles.cos(), angles.sin()], 1)
        losses = torch.zeros(len(widths))
        for _ in range(200):
            codes = model.prior.sample(30, labels=labels)
            losses += torch.stack(
                [model.regularizer(middles + w * (codes - middles), model.prior, None, labels) for w in widths]
            )
        best[estimator] = widths[losses.argmin()].item()
    assert best["biased"] < 0.8 and best["unbiased"] == pytest.approx(1.0), best
    with pytest.raises(ValueError, match="estimator: got 'mean'"):
        named("mmd-ae", estimator="mean")


# --- models by name ---


def named(kind: str, **options: Any) -> Model:
    return MODELS[kind](DATA_DIM, hidden=(8,), precision="float32", **options)


@pytest.mark.parametrize("kind", ["aae", "mmd-ae", "ds-aae"])
@pytest.mark.parametrize("labels", ["none", "regularizer", "decoder"])
def test_priors_and_labels_by_name(kind: str, labels: str) -> None:
    """Every prior with every use of labels trains and samples, or says why not; settings make the same model."""
    options: dict[str, Any] = {"labels": labels} | ({"discriminator": (8,)} if kind == "aae" else {})
    if kind == "mmd-ae":
        options["closed_form"] = False
    given = None if labels == "none" else torch.arange(30) % 11 - 1
    for name in get_args(PriorName):
        options |= {"prior": name, "code_size": 2}
        if labels == "regularizer" and name in ("gaussian", "uniform"):
            with pytest.raises(
                ValueError, match=f"labels: got 'regularizer' with prior='{name}', which has no classes"
            ):
                named(kind, **options)
            continue
        model = named(kind, **options)
        model.training_step(data(30), model.configure_optimizers(), given)
        assert model.sample(30, labels=given).shape == (30, DATA_DIM)
        again = MODELS[kind](DATA_DIM, **model.settings())
        assert again.settings() == model.settings() and type(again.prior) is type(model.prior)
        assert model.regularizer.num_classes == (10 if labels == "regularizer" else 0)
        assert model.decoder_classes == (10 if labels == "decoder" else 0)


@pytest.mark.parametrize("name", get_args(PriorName))
def test_the_discriminator_divides_by_the_priors_standard_deviation(name: str) -> None:
    model = named("aae", prior=name, code_size=2, prior_std=3.0)
    draws = model.prior.sample(100_000, generator=torch.Generator().manual_seed(1))
    assert draws.square().mean().sqrt().item() == pytest.approx(model.regularizer.scale, rel=0.02)
    assert model.regularizer.scale == pytest.approx({"mixture": 2.92, "swiss_roll": 1.5}.get(name, 3.0), abs=0.01)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("aae", {"prior": "ring"}, "prior: got 'ring', expected one of gaussian, mixture, swiss_roll, uniform"),
        ("aae", {"labels": "all"}, "labels: got 'all', expected one of none, regularizer, decoder"),
        ("aae", {"prior": "mixture"}, "code_size: got 4, expected 2 for prior='mixture'"),
        ("ds-aae", {"prior": "swiss_roll"}, "code_size: got 4, expected 2 for prior='swiss_roll'"),
        ("aae", {"num_classes": 0}, "num_classes: got 0"),
        ("aae", {"prior": "mixture", "code_size": 2, "labels": "regularizer", "num_classes": 5},
         "num_classes: got 5, expected 10 for prior='mixture'"),
        ("mmd-ae", {"prior": "swiss_roll", "code_size": 2}, "closed_form: got true, .* set closed_form=false"),
        ("mmd-ae", {"prior": "mixture", "code_size": 2, "labels": "regularizer"}, "closed_form: got true, .*labels"),
        ("vae", {"prior": "mixture", "code_size": 2}, "prior: got 'mixture', expected 'gaussian': KL"),
        ("vae", {"labels": "regularizer"}, "labels: got 'regularizer', but KL takes none"),
    ],
)  # fmt: skip
def test_errors_of_names(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        named(kind, **options)
    with pytest.raises(TypeError, match="unexpected keyword argument 'epochs'"):
        named(kind, epochs=3)


def test_a_closed_form_for_the_mixture_and_the_box() -> None:
    for name in ("mixture", "uniform"):
        model = named("mmd-ae", prior=name, code_size=2)
        assert isinstance(model.regularizer, ClosedFormMMD)
        assert model.training_step(data(30), model.configure_optimizers())["loss"].isfinite()


def test_chains_and_posterior_samples_need_a_decoder_without_classes() -> None:
    model = AAE(9, code_size=2, hidden=(8,), discriminator=(8,), labels="decoder", num_classes=3).eval()
    assert prior_samples(model).sample(4).shape == (4, 9)  # its labels are drawn too
    for make in (
        lambda: markov_chain(model, 1),
        lambda: chain(model, torch.zeros(2, 2), 1),
        lambda: posterior_samples(model, torch.rand(3, 9)),
    ):
        with pytest.raises(
            ValueError, match="the decoder has 3 classes, and codes drawn from the posterior have no labels"
        ):
            make()


class Seen(MMD):
    """The discrepancy, which remembers codes and labels."""

    def forward(self, codes: Tensor, prior: Any, moments: Any = None, labels: Tensor | None = None) -> Tensor:
        self.codes, self.labels = codes, labels
        return super().forward(codes, prior, moments, labels)


@pytest.mark.parametrize("with_classes", [True, False])
def test_shape_sees_the_codes_of_evaluation(with_classes: bool) -> None:
    """Without dropout, noise and shifts, which the regularizer's have; its weighted loss reaches the encoder."""
    first, second = Seen((4.0,), num_classes=10), Seen((0.5,), num_classes=10 if with_classes else 0)
    encoder, decoder = MLP(16, (8,), 2, input_dropout=0.5, hidden_dropout=0.5), MLP(2, (8,), 16)
    prior = GaussianMixture()
    model = Autoencoder(encoder, decoder, prior, first, denoising=0.1, shift=1, shape=second, shape_weight=3.0)
    x, labels = torch.rand(40, 16), torch.arange(40) % 10
    expected = model.encode(x)
    losses = model(x, labels)
    assert torch.equal(second.codes, expected) and torch.equal(first.codes, losses.codes)
    assert not torch.equal(first.codes, expected) and encoder.hidden[2].training
    assert first.labels is not None and torch.equal(first.labels, labels)
    assert (second.labels is not None) == with_classes
    torch.manual_seed(0)
    both = model(x, labels).regularizer
    model.shape_weight = 0.0
    torch.manual_seed(0)
    alone = model(x, labels).regularizer
    assert both > alone
    (gradient,) = torch.autograd.grad(both - alone, [encoder.output.weight], allow_unused=True)
    assert gradient is not None and gradient.abs().sum() > 0
    model.training_step(x, model.configure_optimizers(), labels)
    assert torch.equal(second.codes, expected)


def test_shape_is_no_adversary() -> None:
    encoder, decoder = MLP(16, (8,), 2), MLP(2, (8,), 16)
    with pytest.raises(ValueError, match="shape: got Adversarial, expected a regularizer without an adversary"):
        Autoencoder(encoder, decoder, Gaussian(2), MMD(), shape=Adversarial.mlp(2))


def test_the_mmd_autoencoders_shape() -> None:
    options: dict[str, Any] = {"prior": "mixture", "labels": "regularizer", "code_size": 2, "closed_form": False}
    model = MMDAE(16, hidden=(8,), shape_bandwidths=[0.5, 1], shape_weight=2.0, **options)
    assert isinstance(model.shape, MMD) and model.shape.bandwidths == (0.5, 1.0)
    assert (model.shape.estimator, model.shape.num_classes, model.shape_weight) == ("unbiased", 0, 2.0)
    assert MMDAE(16, **options).shape is None and MMDAE(16, **model.settings()).shape is not None
    with pytest.raises(ValueError, match="shape_bandwidths: got"):
        MMDAE(16, shape_bandwidths=[0.0])
