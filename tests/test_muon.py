"""Muon for the weight matrices and Adam for the rest, as one optimizer."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_nn import data, parameters, same, small, train
from torch import Tensor, nn


def test_muon_moves_along_the_orthogonal_factor() -> None:
    """Every matrix by U V^T of its gradient U S V^T, to the accuracy of Muon's iteration, biases as Adam does."""
    model = small("mmd-ae", optimizer="muon", learning_rate=1e-3)
    weights = [*model.encoder.parameters(), *model.decoder.parameters()]
    before = [weight.detach().clone() for weight in weights]
    model.training_step(data(), model.configure_optimizers())
    for old, new in zip(before, weights, strict=True):
        step, gradient = old - new.detach(), new.grad
        if old.ndim == 1:
            torch.testing.assert_close(step, 1e-3 * gradient / (gradient.abs() + 1e-8), rtol=0, atol=1e-6)
            continue
        u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
        kept = s > 0.05 * s.norm()  # the iteration does not reach 1 from singular values near 0
        inner = (u.T @ step @ vh.T)[kept][:, kept] / (1e-3 * max(old.shape) ** 0.5)
        assert ((inner.diagonal() > 0.6) & (inner.diagonal() < 1.3)).all()
        assert (inner - inner.diagonal().diag()).abs().max() < 0.1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda objects: pickle.loads(pickle.dumps(objects))])
def test_muon_is_copied_with_its_model(copied: Callable[[Any], Any]) -> None:
    model = small("mmd-ae", optimizer="muon")
    optimizers = model.configure_optimizers()
    train(model, 2, optimizers)
    again, its_optimizers = copied((model, optimizers))
    for one, two in ((model, optimizers), (again, its_optimizers)):
        torch.manual_seed(5)
        two["autoencoder"].param_groups[0]["lr"] *= 2
        train(one, 2, two)
    assert same(parameters(model), parameters(again))


def test_muon_evaluates_a_closure_and_keeps_its_parameters() -> None:
    """Lightning trains by closures."""
    models = [small("mmd-ae", optimizer="muon") for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, with_closure in zip(models, (False, True), strict=True):
        optimizer = model.configure_optimizers()["autoencoder"]

        def descend(model: Any = model) -> Tensor:
            torch.manual_seed(0)
            loss: Tensor = model(data()).loss
            loss.backward()
            return loss

        returned = optimizer.step(descend) if with_closure else (descend(), optimizer.step())[0]
        assert returned.requires_grad
        with pytest.raises(RuntimeError, match="optimizer: 'muon' takes no further parameters"):
            optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    assert same(parameters(models[0]), parameters(models[1]))
