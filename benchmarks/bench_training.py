"""A training step of the MMD autoencoder, in turn with the same step of the same autoencoder without a regularizer."""

from __future__ import annotations

import copy

import peers
import pytest
import torch
from settings import DEVICE, SIZES

import fastmmd
from fastmmd import nn

LARGEST_PEER = 4096  # beyond, a dense formula does not fit
EAGER = {"eager": peers.mmd2}


class Nothing(nn.Regularizer):
    """No regularizer: what remains is the autoencoder itself."""

    def forward(self, codes, prior, moments=None):
        return codes.new_zeros(())


class Textbook(nn.Regularizer):
    """The paper's regularizer by a function of the peers."""

    def __init__(self, mmd2, like):
        super().__init__()
        self.mmd2, self.bandwidths = mmd2, like.bandwidths

    def forward(self, codes, prior, moments=None):
        draws = prior.sample(len(codes), device=codes.device, dtype=codes.dtype)
        return self.mmd2(codes, draws, self.bandwidths) / len(self.bandwidths)


def step(model, x):
    optimizers = model.configure_optimizers()
    return lambda: model.training_step(x, optimizers)


@pytest.mark.parametrize("batch", SIZES.training)
@pytest.mark.parametrize("implementation", [*peers.ours(), "closed form", *EAGER])
def test_step(benchmark, interleave, implementation, batch):
    """The paper's settings (prior draws, six bandwidths, code size 4); "closed form": against the prior itself.

    The first backend gets all rounds, since its ratio is to be known to a fraction of a percent.
    """
    first = implementation == peers.ours()[0]
    if not first and implementation != "closed form" and batch > LARGEST_PEER:
        pytest.skip("does not fit or takes minutes")
    benchmark.group = f"training step of the MMD-AE, D=784, batch {batch}"
    model = nn.MMDAE.paper(784, closed_form=implementation == "closed form").to(DEVICE)
    plain = copy.deepcopy(model)
    plain.regularizer = Nothing()
    x = torch.rand(batch, 784, device=DEVICE)
    rounds = SIZES.training[batch] if first else max(5, SIZES.training[batch] // 8)
    backend = "auto" if implementation == "closed form" else implementation
    with peers.chosen(backend, fastmmd.mmd2, EAGER) as mmd2:
        if implementation in EAGER:
            model.regularizer = Textbook(mmd2, model.regularizer)
        _check(model, x[:1000], exact_draws=implementation != "closed form")
        benchmark.extra_info["baseline"] = "no regularizer"
        interleave(step(model, x), step(plain, x), rounds, {"operation": "training", "dim": 784, "n": batch})


@torch.no_grad()
def _check(model, x, exact_draws):
    """The regularizer of some codes against float64, to the 1% that the textbook formula reaches."""
    codes, bandwidths = model.encode(x), model.regularizer.bandwidths
    torch.manual_seed(1)
    value = model.regularizer(codes, model.prior).item()
    torch.manual_seed(1)
    if exact_draws:
        draws = model.prior.sample(len(codes), device=codes.device, dtype=codes.dtype)
        exact = peers.exact_value(codes, draws, bandwidths) / len(bandwidths)
    else:
        exact = fastmmd.mmd2_to_prior(codes.double(), model.prior, bandwidths).item() / len(bandwidths)
    assert abs(value - exact) <= 1e-2 * exact, (value, exact)
