"""Regularizers against dense formulas; diagnostics of codes and kernels."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close, points
from torch import Tensor

import fastmmd
from fastmmd.nn import (
    KL,
    MMD,
    Adversarial,
    ClosedFormMMD,
    FourierAdversary,
    Moments,
    Regularizer,
    code_health,
    kernel_problem,
)
from fastmmd.priors import Gaussian, SwissRoll, Uniform


def parameters(module: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def test_mmd_is_the_operator_on_fresh_draws() -> None:
    codes, prior = points(30, 3).requires_grad_(), Gaussian(3, 2.0)
    regularizer = MMD((1.0, 4.0), kernel_weights=(0.5, 0.5))
    torch.manual_seed(7)
    value = regularizer(codes, prior)
    torch.manual_seed(7)
    draws = prior.sample(30)
    assert torch.equal(value, fastmmd.mmd2(codes, draws, (1.0, 4.0), kernel_weights=(0.5, 0.5)))
    assert regularizer(codes, prior) != value
    closed = ClosedFormMMD((1.0, 4.0), estimator="unbiased")(codes, prior)
    assert torch.equal(closed, fastmmd.mmd2_to_prior(codes, prior, (1.0, 4.0), estimator="unbiased"))
    spec = regularizer.kernel_spec()
    assert spec is not None and (spec.family, spec.bandwidths) == ("gaussian", (1.0, 4.0))
    assert MMD(kernel="energy").kernel_spec() is None


def fourier(num_classes: int = 0) -> FourierAdversary:
    return FourierAdversary(2, count=12, bandwidths=(1.0, 2.0), num_classes=num_classes)


@pytest.mark.parametrize(
    "make", [lambda c=0: Adversarial.mlp(2, (8,), num_classes=c), lambda c=0: MMD((1.0,), num_classes=c), fourier],
    ids=["Adversarial", "MMD", "FourierAdversary"],
)  # fmt: skip
def test_label_errors(make: Callable[..., Regularizer]) -> None:
    codes, labels, prior = points(6, 2), torch.zeros(6, dtype=torch.int64), SwissRoll(num_classes=3)
    plain, classes = make(), make(3)
    name = type(plain).__name__
    for regularizer, other, given, error, message in (
        (plain, prior, labels, ValueError, f"got some, but {name} has no classes; give it num_classes"),
        (classes, SwissRoll(), labels, ValueError, f"SwissRoll has 10 classes, expected 3 as {name}"),
        (classes, Gaussian(2), labels, ValueError, "Gaussian has 0 classes, expected 3"),
        (classes, prior, labels[:5], ValueError, r"got shape \[5\], expected \[6\]"),
        (classes, prior, labels.int(), TypeError, "got torch.int32, expected an int64"),
        (classes, prior, labels + 3, ValueError, "got 3, expected a class from 0 to 2"),
    ):
        before = [value.clone() for value in regularizer.state_dict().values()]
        with pytest.raises(error, match=message):
            regularizer(codes, other, None, given)
        if name != "MMD":  # it has nothing to update
            with pytest.raises(error, match=message):
                optimizer = torch.optim.SGD([*regularizer.parameters(), torch.nn.Parameter(torch.zeros(1))])
                regularizer.update(codes, other, optimizer, given)
        assert all(map(torch.equal, before, regularizer.state_dict().values()))
    with pytest.raises(ValueError, match="num_classes: got -1"):
        make(-1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 3, "class_weights": (0.5, 0.5)}, "class_weights: got 2, expected one for each of 3 classes"),
        ({"num_classes": 2, "class_weights": (0.5, -0.5)}, "class_weights: got -0.5, expected a number >= 0"),
        ({"unconditional_weight": -1.0}, "unconditional_weight: got -1.0, expected a number >= 0"),
    ],
)
def test_mmd_class_weight_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MMD(**arguments)


def test_mmd_with_classes_is_a_sum_over_classes() -> None:
    """Of the operator on the points of each class, and on all of them; draws bear the labels of the codes."""
    codes, prior, labels = points(40, 2).requires_grad_(), SwissRoll(num_classes=3), torch.arange(40) % 4 - 1
    bandwidths, weights = (0.5, 2.0), (0.2, 0.0, 3.0)
    regularizer = MMD(bandwidths, num_classes=3, class_weights=weights, unconditional_weight=0.7)
    torch.manual_seed(7)
    value = regularizer(codes, prior, None, labels)
    torch.manual_seed(7)
    draws = prior.sample(40, labels=labels)
    expected = 0.7 * fastmmd.mmd2(codes, draws, bandwidths)
    for c, weight in enumerate(weights):
        expected = expected + weight * fastmmd.mmd2(codes[labels == c], draws[labels == c], bandwidths)
    assert_close(value, expected)
    assert_close(*(torch.autograd.grad(v, codes)[0] for v in (value, expected)), rows=True)
    # Without labels all points are unlabeled: the unconditional term alone.
    torch.manual_seed(7)
    plain = regularizer(codes, prior)
    torch.manual_seed(7)
    assert_close(plain, 0.7 * fastmmd.mmd2(codes, prior.sample(40), bandwidths))
    assert MMD(num_classes=4).class_weights == (0.25,) * 4


def test_kl_against_torch_distributions() -> None:
    mean, log_variance = points(9, 3).requires_grad_(), points(9, 3, seed=1).requires_grad_()
    prior = Gaussian(3, [0.5, 1.0, 3.0], mean=[1.0, 0.0, -2.0])
    divergence = KL()(mean, prior, Moments(mean, log_variance))
    posterior = torch.distributions.Normal(mean.double(), log_variance.double().mul(0.5).exp())
    target = torch.distributions.Normal(prior.mean, prior.std)
    assert_close(divergence, torch.distributions.kl_divergence(posterior, target).sum(1).mean())
    divergence.backward()
    assert mean.grad is not None and log_variance.grad is not None
    with pytest.raises(ValueError, match='moments: got None; KL needs posterior="gaussian"'):
        KL()(mean, prior)
    for other in (Uniform(3), Gaussian(3, covariance=torch.eye(3))):
        with pytest.raises(ValueError, match="prior: KL has a closed form"):
            KL()(mean, other, Moments(mean, log_variance))


# --- diagnostics ---


def test_code_health() -> None:
    draws = points(2000, 3, seed=1)
    healthy = code_health(points(2000, 3, seed=2), draws)
    assert healthy.problem is None
    assert healthy.norm_quantiles == pytest.approx(healthy.prior_norm_quantiles, rel=0.1)
    assert healthy.prior_norm_quantiles[2] == pytest.approx(1.538, rel=0.05)  # the chi distribution's median, D = 3
    escaped = points(2000, 3, seed=2)
    escaped[:50] *= 20  # 2.5 percent: the 99% quantile sees them
    for codes, message in (
        (0.1 * draws, "codes collapsed: .*regularizer_weight"),
        (10 * draws, "codes escaped: the 50% quantile .*warmup_steps"),
        (escaped, "codes escaped: the 99% quantile"),
        (draws * math.nan, "codes are not finite"),
    ):
        assert re.search(message, code_health(codes, draws).problem or "")
    assert code_health(draws + 100, draws + 100).problem is None


@pytest.mark.parametrize(
    ("bandwidths", "message"), [((0.01, 0.02), "near 0 .*too small"), ((50.0, 100.0), "near 1 .*too large")]
)
def test_kernel_saturation(bandwidths: tuple[float, ...], message: str) -> None:
    codes, draws = points(200, 3), points(200, 3, seed=1)
    for regularizer in (MMD(bandwidths), ClosedFormMMD(bandwidths), FourierAdversary(3, bandwidths=bandwidths)):
        problem = kernel_problem(regularizer, codes, draws)
        assert problem is not None and re.search(message, problem)
        advised = re.search(r"median heuristic gives ([\d.]+)", problem)
        assert advised is not None
        assert float(advised[1]) == pytest.approx(fastmmd.median_bandwidth(codes, draws).item(), rel=0.1)
    assert kernel_problem(MMD((0.01, 1.0, 100.0)), codes, draws) is None
    assert kernel_problem(Adversarial.mlp(3), codes, draws) is None


def test_mmd_checks_its_arguments_at_once_and_keeps_tensors() -> None:
    for arguments in ({"kernel": "foo"}, {"estimator": "bar"}, {"bandwidths": (0.0,)}, {"alpha": 2.0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            MMD(**arguments)
    bandwidths = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    for regularizer in (MMD(bandwidths), ClosedFormMMD(bandwidths)):
        (gradient,) = torch.autograd.grad(regularizer(points(8, 2), Gaussian(2)), bandwidths)
        assert gradient.abs().min() > 0


def test_kernel_problem_knows_the_kernel_and_stays_small() -> None:
    draws = points(3000, 8)
    assert kernel_problem(MMD((1.0,)), points(3000, 8, seed=1), draws) is None  # mean value 0.013, near pairs are seen
    far = draws + 3
    assert "near 0" in str(kernel_problem(MMD((0.4,)), far, draws))
    assert kernel_problem(MMD((0.4,), kernel="imq"), draws[:, :1], draws[:, :1]) is None
    assert "near 1" in str(kernel_problem(MMD((1e3,), kernel="laplacian"), far, draws))
