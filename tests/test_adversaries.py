"""The adversaries: a discriminator with noise and classes, and random functions of every mode."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
from helpers import F64, assert_close, points
from torch import Tensor, nn
from torch.nn import functional as F

import fastmmd
from fastmmd.nn import Adversarial, FourierAdversary
from fastmmd.priors import Gaussian, Prior, SwissRoll


def parameters(module: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def test_adversarial_losses_and_gradients() -> None:
    regularizer, prior, codes = Adversarial.mlp(2, (8,), scale=2.0), Gaussian(2), points(16, 2).requires_grad_()
    loss = regularizer(codes, prior)
    loss.backward()
    logits = regularizer.discriminator(codes / 2.0)
    assert_close(loss, -torch.sigmoid(logits.double()).log().mean())
    assert codes.grad is not None and codes.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in regularizer.parameters())

    optimizer = torch.optim.SGD(regularizer.parameters(), lr=0.5)
    before = parameters(regularizer)
    torch.manual_seed(3)
    regularizer.update(codes, prior, optimizer)
    after = parameters(regularizer)
    for p, value in zip(regularizer.parameters(), before, strict=True):
        p.data.copy_(value)
    torch.manual_seed(3)
    real, fake = (torch.sigmoid(regularizer.discriminator(z / 2.0)) for z in (prior.sample(16), codes.detach()))
    gradients = torch.autograd.grad(-(real.log().mean() + (1 - fake).log().mean()), list(regularizer.parameters()))
    for value, gradient, stepped in zip(before, gradients, after, strict=True):
        torch.testing.assert_close(stepped, value - 0.5 * gradient, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="optimizer: got None"):
        regularizer.update(codes, prior)


def test_adversarial_noise_is_on_both_sides_while_training() -> None:
    """Log-uniform over a factor of 100: the geometric mean is a tenth of the largest; gradients pass through."""
    seen: list[Tensor] = []
    network = nn.Sequential(nn.Linear(2, 1))
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    regularizer = Adversarial(network, scale=2.0, noise=4.0)
    codes, draws = torch.zeros(4000, 2, requires_grad=True), torch.ones(4000, 2)
    regularizer.adversary_loss(codes, Fixed(draws))
    regularizer(codes, Fixed(draws)).backward()
    sides = [2 * seen[0][:4000].detach() - 1, 2 * seen[0][4000:].detach(), 2 * seen[1].detach()]
    assert codes.grad is not None and (codes.grad != 0).all()
    for side in sides:
        sizes = side.norm(dim=1)
        geometric = sizes.log().mean().exp().item()
        assert abs(side.mean().item()) < 0.1 and geometric == pytest.approx(0.4 * 1.06, rel=0.1)  # Rayleigh: 1.06
        assert (sizes < 0.04 * 0.1).float().mean() < 0.01 and (sizes > 4 * 4).float().mean() < 0.01
        assert (sizes > 4).float().mean() > 0.05 and (sizes < 0.08).float().mean() > 0.05
    assert not torch.equal(sides[0], sides[1])
    regularizer.eval()
    regularizer(codes, Fixed(draws))
    assert torch.equal(seen[2], codes / 2)
    for noise in (-1.0, float("nan"), "1"):
        with pytest.raises((ValueError, TypeError), match="noise: got"):
            Adversarial(network, noise=noise)


def test_adversarial_with_classes_sees_labels_on_both_sides() -> None:
    """Draws bear the codes' labels; the switch has a position of its own for the unlabeled."""
    regularizer, prior = Adversarial.mlp(2, (8,), scale=2.0, num_classes=3), SwissRoll(num_classes=3)
    codes, labels = points(16, 2).requires_grad_(), torch.arange(16) % 4 - 1
    switch = F.one_hot(labels + 1, 4).float()

    def logits(z: Tensor) -> Tensor:
        return regularizer.discriminator(torch.cat([z / 2.0, switch], 1))

    loss = regularizer(codes, prior, None, labels)
    assert_close(loss, -torch.sigmoid(logits(codes).double()).log().mean())
    (gradient,) = torch.autograd.grad(loss, codes)
    assert gradient.abs().sum() > 0

    torch.manual_seed(3)
    draws = prior.sample(16, labels=labels)
    real, fake = (torch.sigmoid(logits(z)) for z in (draws, codes.detach()))
    gradients = torch.autograd.grad(-(real.log().mean() + (1 - fake).log().mean()), list(regularizer.parameters()))
    before = parameters(regularizer)
    torch.manual_seed(3)
    regularizer.update(codes, prior, torch.optim.SGD(regularizer.parameters(), lr=0.5), labels)
    for value, part, stepped in zip(before, gradients, parameters(regularizer), strict=True):
        torch.testing.assert_close(stepped, value - 0.5 * part, rtol=1e-5, atol=1e-6)

    unlabeled = regularizer(codes, prior, None, torch.full_like(labels, -1))
    assert torch.equal(regularizer(codes, prior), unlabeled) and unlabeled != regularizer(codes, prior, None, labels)
    assert torch.equal(regularizer(codes, Gaussian(2)), unlabeled)  # without labels the prior needs no classes


def test_adversary_of_any_discriminator_checks_classes() -> None:
    with pytest.raises(ValueError, match="num_classes: got -1"):
        Adversarial(torch.nn.Linear(2, 1), num_classes=-1)


@pytest.mark.parametrize("mode", ["fresh", "first_order", "doubly_stochastic"])
def test_fourier_adversary_with_classes_compares_each_class(mode: str) -> None:
    """An estimate of sum_c p_c^2 MMD^2(x|c, y|c), unlabeled points among the classes, at every bandwidth."""
    prior, labels = SwissRoll(num_classes=3), torch.arange(200) % 4 - 1
    codes = points(200, 2, seed=3)
    for bandwidths in ((0.5, 4.0), (1.0,)):
        count = 20_000 * len(bandwidths)
        adversary = FourierAdversary(
            2, count=count, bandwidths=bandwidths, mode=mode, learning_rate=1.0, blocks=1, num_classes=3
        )
        torch.manual_seed(7)
        draws = prior.sample(200, labels=labels)
        if mode == "doubly_stochastic":
            torch.manual_seed(7)  # the function is zeta itself, so that its mean difference is |zeta|^2
            adversary.update(codes, prior, None, labels)
        torch.manual_seed(7)
        value = adversary(codes, prior, None, labels)
        equal = [1.0 / len(bandwidths)] * len(bandwidths)
        expected = sum(
            (1 / 4) ** 2 * fastmmd.mmd2(codes[labels == c], draws[labels == c], bandwidths, kernel_weights=equal)
            for c in range(-1, 3)
        )
        assert value.item() == pytest.approx(float(expected), rel=0.05)
        # Codes of one class in the place of another: the marginal is the same, the loss is not.
        torch.manual_seed(7)
        moved = adversary(draws.roll(1, 0), prior, None, labels)
        torch.manual_seed(7)
        assert adversary(draws, prior, None, labels).abs() < 1e-9 < 1e-3 < moved
        torch.manual_seed(7)
        unlabeled = adversary(codes, prior, None, torch.full_like(labels, -1))
        torch.manual_seed(7)
        assert torch.equal(adversary(codes, prior), unlabeled)


class Fixed(Prior):
    """Hands out the given draws, one block after the other."""

    def __init__(self, *blocks: Tensor) -> None:
        super().__init__(blocks[0].shape[1])
        self.blocks = list(blocks)

    def sample(self, count: int, **_: Any) -> Tensor:
        block = self.blocks.pop(0)
        assert len(block) == count
        return block


def zeta(features: fastmmd.FourierFeatures, codes: Tensor, draws: Tensor) -> Tensor:
    """mean phi(draws) - mean phi(codes) in float64, [2 * count]."""
    with fastmmd.backend("reference"):
        frequencies = features.frequencies(dtype=F64)
    part = features.count // len(features.bandwidths)
    scale = torch.tensor(features.kernel_weights, dtype=F64).div(part).sqrt().repeat_interleave(part)
    prior_mean, code_mean = (oracle.phi(z.double(), frequencies, scale).mean(0) for z in (draws, codes))
    return prior_mean - code_mean


def test_fresh_adversary() -> None:
    """Its features follow the steps; its gradient is twice that of a random function of one step, made of the batch."""
    fresh = FourierAdversary(3, count=12, bandwidths=(1.0, 3.0), mode="fresh", seed=4)
    of_one_step = FourierAdversary(
        3, count=12, bandwidths=(1.0, 3.0), mode="doubly_stochastic", learning_rate=2.0, blocks=1, seed=4
    )
    for t in range(3):
        x, draws = points(20, 3, seed=t).requires_grad_(), points(20, 3, seed=10 + t, shift=0.8)
        of_one_step.update(x.detach(), Fixed(draws))
        value = fresh(x, Fixed(draws))
        assert_close(value, zeta(fresh.features.block(t), x.detach(), draws).square().sum(), rtol=2e-5)
        pulls = [torch.autograd.grad(adversary(x, Fixed(draws)), x)[0] for adversary in (fresh, of_one_step)]
        assert_close(pulls[0], pulls[1].double(), rows=True, rtol=2e-5)
        fresh.update(x.detach(), Fixed(draws))
    assert fresh.step == 3 and list(fresh.state_dict()) == ["step"]
    with pytest.raises(ValueError, match="codes: got shape"):
        fresh.update(points(20, 2), Gaussian(2))


def test_first_order_adversary() -> None:
    regularizer = FourierAdversary(3, count=12, bandwidths=(1.0, 3.0), mode="first_order", learning_rate=0.3, seed=4)
    assert regularizer.features.kernel_weights == (0.5, 0.5)
    codes = [points(20, 3, seed=i) for i in range(4)]
    draws = [points(20, 3, seed=10 + i, shift=0.8) for i in range(4)]
    alpha = torch.ones(12, dtype=F64)
    for c, d in zip(codes[:3], draws[:3], strict=True):
        regularizer.update(c, Fixed(d))
        z2 = zeta(regularizer.features, c, d).square().reshape(2, 12).sum(0)
        alpha = 0.7 * alpha + 0.3 * z2 / z2.mean()
    assert_close(regularizer.alpha, alpha, rtol=1e-5)
    assert_close(regularizer.alpha.mean(), torch.tensor(1.0, dtype=F64))
    assert regularizer.step == 3

    x = codes[3].clone().requires_grad_()
    loss = regularizer(x, Fixed(draws[3]))
    expected = alpha.repeat(2) @ zeta(regularizer.features, codes[3], draws[3]).square()
    assert_close(loss, expected, rtol=2e-5)
    loss.backward()
    dense = codes[3].double().requires_grad_()
    (alpha.repeat(2) @ zeta(regularizer.features, dense, draws[3]).square()).backward()
    assert_close(x.grad, dense.grad, rows=True, rtol=2e-5)
    # One alpha for the cosine and sine of a frequency: where the origin lies does not matter.
    moved = regularizer(codes[3] + 5, Fixed(draws[3] + 5))
    assert_close(moved, expected, rtol=1e-4, sensitivity=1e-2)


@pytest.mark.parametrize("shrinkage", [0.0, 0.4])
def test_doubly_stochastic_adversary(shrinkage: float) -> None:
    """The explicit sum over all steps while the ring has room; afterwards the oldest steps drop out."""
    rate, blocks = 0.5, 3
    regularizer = FourierAdversary(
        2, count=8, bandwidths=(1.0, 2.0), mode="doubly_stochastic", learning_rate=rate, shrinkage=shrinkage,
        blocks=blocks, seed=5,
    )  # fmt: skip
    assert regularizer(points(4, 2), Gaussian(2)) == 0
    history: list[Tensor] = []
    x, y = points(15, 2, seed=50), points(15, 2, seed=51, shift=0.5)
    for t in range(7):
        codes, draws = points(15, 2, seed=t), points(15, 2, seed=20 + t, shift=0.5)
        regularizer.update(codes, Fixed(draws))
        history = [(1 - rate * shrinkage) * c for c in history]
        history.append(rate * zeta(regularizer.features.block(t), codes, draws))
        kept = range(max(0, t + 1 - blocks), t + 1)

        codes, dense = x.clone().requires_grad_(), x.double().requires_grad_()
        expected = sum(history[s] @ zeta(regularizer.features.block(s), dense, y) for s in kept)
        value = regularizer(codes, Fixed(y))
        assert_close(value, expected, rtol=1e-4, sensitivity=1e-2)
        value.backward()
        expected.backward()
        assert_close(codes.grad, dense.grad, rows=True, rtol=1e-4, sensitivity=1e-2)
    assert regularizer.step == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "third_order"}, "mode: got 'third_order'"),
        ({"blocks": 0}, "blocks: got"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"mode": "first_order", "learning_rate": 2.0}, "learning_rate: got 2.0, expected at most 1"),
        ({"mode": "doubly_stochastic", "learning_rate": 0.5, "shrinkage": 2.0}, "shrinkage"),
        ({"count": 5, "bandwidths": (1.0, 2.0)}, "count: got 5, expected a multiple"),
    ],
)
def test_fourier_adversary_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FourierAdversary(2, **arguments)


def test_fourier_adversary_computes_in_its_own_precision() -> None:
    prior, codes = Gaussian(3), points(32, 3)
    for mode in ("fresh", "first_order", "doubly_stochastic"):
        for dtype in (torch.float32, F64, torch.bfloat16):
            adversary = FourierAdversary(3, count=32, mode=mode, learning_rate=0.5)
            torch.manual_seed(0)
            adversary.update(codes.to(dtype), prior)
            assert adversary(codes.to(dtype), prior).dtype == (F64 if dtype == F64 else torch.float32)
        torch.manual_seed(1)
        plain = adversary(codes, prior)
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(adversary(codes, prior), plain)
