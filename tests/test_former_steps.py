"""`training_step` gives the same bits as when it was one function, which is kept here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_same
from test_loops import descend, run
from test_nn import DATA_DIM, every_autoencoder, small
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from fastmmd.nn import GMMNAE, MLP, MMD, Adversarial, Autoencoder, FourierAdversary
from fastmmd.priors import Prior, SwissRoll


class FormerAdversarial(Adversarial):
    """The discriminator as it was frozen and stepped."""

    def forward(self, codes: Tensor, prior: Prior, moments: Any = None, labels: Tensor | None = None) -> Tensor:
        for parameter in self.discriminator.parameters():
            parameter.requires_grad_(False)
        loss = F.softplus(-self.discriminator(self._inputs(codes, labels)).squeeze(1)).mean()
        for parameter in self.discriminator.parameters():
            parameter.requires_grad_(True)
        return loss

    def update(
        self, codes: Tensor, prior: Prior, optimizer: Optimizer | None = None, labels: Tensor | None = None
    ) -> None:
        chosen = {} if labels is None else {"labels": labels}
        draws = prior.sample(len(codes), **chosen)
        both = None if labels is None else labels.repeat(2)
        inputs = self._inputs(torch.cat([draws, codes]), both)
        real, fake = self.discriminator(inputs).squeeze(1).tensor_split([len(codes)])
        descend(F.softplus(-real).mean() + F.softplus(fake).mean(), optimizer)


def former_step(
    model: Autoencoder, x: Tensor, optimizers: dict[str, Optimizer], labels: Tensor | None
) -> dict[str, Tensor]:
    regularizer, prior, weight = model.regularizer, model.prior, model.regularizer_weight
    switch = labels if model.decoder_classes else None
    classes = (labels,) if regularizer.num_classes and labels is not None else ()
    model.steps += 1
    codes, moments = model._infer(model.corrupt(x), draw=True)
    warming = model.steps <= model.warmup_steps
    if "generator" in optimizers and not warming:
        reconstruction = model.reconstruction_loss(x, codes, switch)
        descend(reconstruction, optimizers["autoencoder"])
        codes, moments = model._infer(model.corrupt(x), draw=True)
        regularizer.update(codes.detach(), prior, optimizers.get("adversary"), *classes)
        penalty = regularizer(codes, prior, moments, *classes)
        descend(weight * penalty, optimizers["generator"])
    else:
        regularizer.update(codes.detach(), prior, optimizers.get("adversary"), *classes)
        penalty = regularizer(codes, prior, moments, *classes)
        reconstruction = penalty.new_zeros(()) if warming else model.reconstruction_loss(x, codes, switch)
        descend(reconstruction + weight * penalty, optimizers["autoencoder"])
    reconstruction, penalty = reconstruction.detach(), penalty.detach()
    return {"loss": reconstruction + weight * penalty, "reconstruction": reconstruction, "regularizer": penalty}


def former_gmmn_step(model: GMMNAE, x: Tensor, optimizers: dict[str, Optimizer], _: Tensor | None) -> dict[str, Tensor]:
    model.steps += 1
    reconstruction = penalty = torch.zeros(())
    if model.progress < model.autoencoder_share:
        reconstruction = model.reconstruction_loss(x, model._infer(model.corrupt(x), draw=False)[0])
        descend(reconstruction, optimizers["autoencoder"])
    else:
        model.encoder.eval()
        codes = model.encode(x).detach()
        model.encoder.train()
        penalty = model.regularizer(codes, model.prior).clamp(min=1e-12).sqrt()
        descend(penalty, optimizers["prior"])
    reconstruction, penalty = reconstruction.detach(), penalty.detach()
    return {"loss": reconstruction + penalty, "reconstruction": reconstruction, "regularizer": penalty}


@every_autoencoder
@pytest.mark.parametrize("options", [{}, {"denoising": 0.5, "posterior": "implicit"}], ids=["plain", "noisy"])
@pytest.mark.parametrize("two_phases", [False, True], ids=["one phase", "two phases"])
def test_training_step_is_what_it_was(kind: str, options: dict[str, Any], two_phases: bool) -> None:
    if kind in ("vae", "gmmn-ae") and options:
        options = {"denoising": 0.5}
    runs = []
    for step in (type(small(kind)).training_step, former_gmmn_step if kind == "gmmn-ae" else former_step):
        torch.manual_seed(3)
        model = small(kind, **options)
        if kind != "gmmn-ae":
            model.generator_learning_rate = 1e-3 if two_phases else None
        if step is former_step and isinstance(model.regularizer, Adversarial):
            model.regularizer = FormerAdversarial(model.regularizer.discriminator, scale=model.regularizer.scale)
        runs.append(run(model, step))
    assert_same(*runs)


@pytest.mark.parametrize("two_phases", [False, True], ids=["one phase", "two phases"])
@pytest.mark.parametrize("of", ["Adversarial", "MMD", "FourierAdversary", "decoder"])
def test_training_step_with_labels_is_what_it_was(of: str, two_phases: bool) -> None:
    """Some of the points unlabeled; with steps that warm up before."""
    labels, runs = torch.arange(64) % 4 - 1, []
    for step in (Autoencoder.training_step, former_step):
        torch.manual_seed(3)
        adversarial = Adversarial if step is Autoencoder.training_step else FormerAdversarial
        regularizer = {
            "Adversarial": lambda make=adversarial: make.mlp(2, (8,), num_classes=3),
            "MMD": lambda: MMD((1.0,), num_classes=3),
            "FourierAdversary": lambda: FourierAdversary(2, count=8, num_classes=3),
            "decoder": lambda: MMD((1.0,)),
        }[of]()
        classes = 3 if of == "decoder" else 0
        model = Autoencoder(
            MLP(DATA_DIM, (8,), 2), MLP(2 + classes, (8,), DATA_DIM), SwissRoll(num_classes=3), regularizer,
            decoder_classes=classes, warmup_steps=2, generator_learning_rate=1e-3 if two_phases else None,
        )  # fmt: skip
        runs.append(run(model, step, labels=labels))
    assert_same(*runs)
