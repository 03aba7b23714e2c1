"""Regularisers: what pulls the distribution of the codes towards the prior. One interface, five of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backends.specs import KernelSpec
from ..ops.arguments import (
    DEFAULT_BANDWIDTHS,
    Floats,
    check_int,
    check_number,
    compute_dtype,
    kernel_arguments,
    positive_floats,
)
from ..ops.closed_form import mmd2_to_prior
from ..ops.fourier import FourierFeatures, fourier_ascent, fourier_discrepancy, fourier_mean
from ..ops.mmd import check_estimator, mmd2
from ..priors import Gaussian, Prior, check_labels
from .networks import MLP


class Moments(NamedTuple):
    """Mean and logarithm of the variance of a Gaussian posterior, each [B, D]."""

    mean: Tensor
    log_variance: Tensor


class Regularizer(nn.Module):
    """A discrepancy between codes and a prior.

    `forward` is what the encoder descends; `update` is the adversary's own step, taken before it on detached codes.
    Where `num_classes` is not 0, both take the labels [B] of the codes as one more, last argument.
    """

    num_classes: int = 0

    def forward(self, codes: Tensor, prior: Prior, moments: Moments | None = None) -> Tensor:
        """[B, D] codes -> 0-d loss, differentiable in the codes (and in the moments where it uses them)."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward()")

    def update(self, codes: Tensor, prior: Prior, optimizer: torch.optim.Optimizer | None = None) -> None:
        """The adversary's step on detached codes [B, D]; nothing to do without an adversary."""

    def kernel_spec(self) -> KernelSpec | None:
        """The kernel that compares codes with the prior, None where there is none with a scale."""
        return None


class MMD(Regularizer):
    """Squared MMD between the codes and as many draws from the prior (`fastmmd.mmd2`; GMMN, Li et al. 2015; WAE).

    Args: those of `fastmmd.mmd2`.
    """

    bandwidths: Floats
    kernel_weights: Floats | None

    def __init__(
        self,
        bandwidths: Floats = DEFAULT_BANDWIDTHS,
        *,
        kernel: str = "gaussian",
        estimator: str = "biased",
        kernel_weights: Floats | None = None,
        alpha: float = 1.0,
    ) -> None:
        super().__init__()
        check_estimator(estimator)
        kernel_arguments(bandwidths, kernel, kernel_weights, alpha, torch.empty(0))
        _keep(self, "bandwidths", bandwidths)
        _keep(self, "kernel_weights", kernel_weights)
        self.kernel, self.estimator, self.alpha = kernel, estimator, alpha

    def forward(self, codes: Tensor, prior: Prior, moments: Moments | None = None) -> Tensor:
        """[B, D] -> 0-d."""
        return mmd2(
            codes,
            _draws(prior, codes),
            self.bandwidths,
            kernel=self.kernel,
            estimator=self.estimator,
            kernel_weights=self.kernel_weights,
            alpha=self.alpha,
        )

    def kernel_spec(self) -> KernelSpec | None:
        return None if self.kernel == "energy" else _spec(self.bandwidths, self.kernel, self.alpha)


class ClosedFormMMD(Regularizer):
    """Squared MMD between the codes and the prior itself (`fastmmd.mmd2_to_prior`): no noise from prior draws.

    Args: those of `fastmmd.mmd2_to_prior`.
    """

    bandwidths: Floats
    kernel_weights: Floats | None

    def __init__(
        self,
        bandwidths: Floats = DEFAULT_BANDWIDTHS,
        *,
        estimator: str = "biased",
        kernel_weights: Floats | None = None,
    ) -> None:
        super().__init__()
        check_estimator(estimator)
        kernel_arguments(bandwidths, "gaussian", kernel_weights, 1.0, torch.empty(0))
        _keep(self, "bandwidths", bandwidths)
        _keep(self, "kernel_weights", kernel_weights)
        self.estimator = estimator

    def forward(self, codes: Tensor, prior: Prior, moments: Moments | None = None) -> Tensor:
        """[B, D] -> 0-d."""
        return mmd2_to_prior(
            codes, prior, self.bandwidths, estimator=self.estimator, kernel_weights=self.kernel_weights
        )

    def kernel_spec(self) -> KernelSpec | None:
        return _spec(self.bandwidths)


class FourierAdversary(Regularizer):
    """The adversary of the doubly stochastic adversarial autoencoder: a random function in place of a network.

    zeta = mean phi(prior) - mean phi(codes) in random Fourier features phi of a sum of Gaussian kernels, over a random
    batch of codes and of prior draws.

    - mode="first_order" (DS-AAE paper: the adversary approximated by its first-order terms, fixed seed): the features
      stay; f(z) = sum_k alpha_k zeta_k phi_k(z) with one alpha for the cosine and sine of a frequency, or the
      discrepancy would depend on where the origin lies. The encoder descends delta = sum_k alpha_k zeta_k^2. The
      adversary ascends delta under the constraint that alpha has mean 1: alpha moves by `learning_rate` towards
      zeta_k^2 / mean zeta^2, so it weighs the frequencies where codes and prior differ most, and stays bounded.
      On CUDA `update` launches two kernels, `forward` two and its backward pass one or two, beside the prior's draws
      and the counter of steps.
    - mode="doubly_stochastic" (Dai et al. 2014, algorithm 1): every step draws fresh features W_t, appends
      learning_rate * zeta_t to the function and shrinks the older coefficients by 1 - learning_rate * shrinkage;
      f_t = sum_{s <= t} c_s phi_{W_s} over the last `blocks` steps, the features made again from the seed. The
      encoder descends mean f_t(prior) - mean f_t(codes). With many blocks it acts like an integral controller of gain
      weight * learning_rate * blocks: about 100 is stable, several hundred oscillates or runs away; shrinkage helps.

    Args:
        code_size: dimension D of the codes.
        count: number of frequencies (per step in "doubly_stochastic"), a multiple of the number of bandwidths.
        bandwidths: standard deviations of the kernels, weighted equally with sum 1.
        mode, learning_rate, shrinkage, blocks: above. seed: of the frequencies.
    """

    coefficients: Tensor
    alpha: Tensor
    step: Tensor

    def __init__(
        self,
        code_size: int,
        *,
        count: int = 480,
        bandwidths: Sequence[float] = (1.0, 2.0, 4.0, 8.0),
        mode: str = "first_order",
        learning_rate: float = 0.05,
        shrinkage: float = 0.0,
        blocks: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if mode not in ("first_order", "doubly_stochastic"):
            raise ValueError(f'mode: got {mode!r}, expected "first_order" or "doubly_stochastic"')
        check_int("blocks", blocks)
        check_number("learning_rate", learning_rate)
        if not 0 <= learning_rate * shrinkage < 1:
            raise ValueError(f"shrinkage: got {shrinkage}, expected learning_rate * shrinkage in [0, 1)")
        if mode == "first_order" and learning_rate > 1:
            raise ValueError(f'learning_rate: got {learning_rate}, expected at most 1 for mode="first_order"')
        bandwidths = positive_floats("bandwidths", bandwidths)
        weights = [1.0 / len(bandwidths)] * len(bandwidths)
        self.features = FourierFeatures(code_size, count, bandwidths=bandwidths, weights=weights, seed=seed)
        self.mode, self.learning_rate, self.shrinkage, self.blocks = mode, learning_rate, shrinkage, blocks
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        if mode == "first_order":
            self.register_buffer("alpha", torch.ones(count))
        else:
            self.register_buffer("coefficients", torch.zeros(blocks, 2 * count))

    def forward(self, codes: Tensor, prior: Prior, moments: Moments | None = None) -> Tensor:
        """[B, D] -> 0-d."""
        draws = _draws(prior, codes)
        if self.mode == "first_order":
            return fourier_discrepancy(codes, draws, self.alpha, self.features)
        # Slot s of the ring holds the newest step t with t = s modulo blocks; slots not yet filled hold zeros.
        age = (self.step - 1 - torch.arange(self.blocks, device=codes.device)) % self.blocks
        zetas = [self._zeta(codes, draws, (self.step - 1 - age[slot]).clamp(min=0)) for slot in range(self.blocks)]
        return (self.coefficients * torch.stack(zetas)).sum()

    @torch.no_grad()
    def update(self, codes: Tensor, prior: Prior, optimizer: torch.optim.Optimizer | None = None) -> None:
        """One ascent step of the random function on detached codes [B, D]."""
        draws = _draws(prior, codes)
        if self.mode == "first_order":
            fourier_ascent(self.alpha, codes, draws, self.features, self.learning_rate)
        else:
            zeta = self._zeta(codes, draws, self.step)
            self.coefficients.mul_(1 - self.learning_rate * self.shrinkage)
            slot = torch.arange(self.blocks, device=codes.device) == self.step % self.blocks
            new = self.learning_rate * zeta.to(self.coefficients)
            self.coefficients.copy_(torch.where(slot[:, None], new, self.coefficients))
        self.step += 1

    def kernel_spec(self) -> KernelSpec | None:
        return _spec(self.features.bandwidths)

    def _zeta(self, codes: Tensor, draws: Tensor, block: Tensor) -> Tensor:
        features = self.features.block(block)
        return fourier_mean(draws, features) - fourier_mean(codes, features)


class Adversarial(Regularizer):
    """A discriminator network between prior draws and codes (Makhzani et al. 2015, "Adversarial Autoencoders").

    The discriminator's phase minimises -log D(prior) - log(1 - D(codes)); the encoder minimises the non-saturating
    -log D(codes).

    With classes (the same paper, "Incorporating label information in the adversarial regularization", figures 3 and
    4) the discriminator also sees a one-hot switch of the class, with one more position for unlabelled points. Draws
    bear the labels of the batch: for a labelled point one from its class's part of the prior, for an unlabelled one
    (-1, or no labels at all) one from the whole prior. So each class goes to its own part.

    Args:
        discriminator: [B, D] -> [B, 1] logits; with classes [B, D + 1 + num_classes], the code, whether the point is
            unlabelled, its class.
        scale: codes and draws are divided by it first (the prior's standard deviation, so that the discriminator sees
            inputs of order one).
        num_classes: of the labels, as many as the prior's; 0: none are taken.
    """

    def __init__(self, discriminator: nn.Module, *, scale: float = 1.0, num_classes: int = 0) -> None:
        super().__init__()
        self.discriminator, self.scale = discriminator, check_number("scale", scale)
        self.num_classes = check_int("num_classes", num_classes, 0)

    @classmethod
    def mlp(
        cls,
        code_size: int,
        hidden: Sequence[int] = (1000, 1000),
        *,
        scale: float = 1.0,
        precision: str = "float32",
        num_classes: int = 0,
    ) -> Adversarial:
        """With a fully connected discriminator, two layers of 1000 units as in the paper."""
        inputs = code_size + (1 + num_classes if check_int("num_classes", num_classes, 0) else 0)
        return cls(MLP(inputs, hidden, 1, precision=precision), scale=scale, num_classes=num_classes)

    def forward(
        self, codes: Tensor, prior: Prior, moments: Moments | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """[B, D], labels [B] int64 -> 0-d: mean of -log D(codes). The discriminator itself receives no gradient.

        Raises:
            ValueError, TypeError: labels without classes, for a prior with other classes, or that do not fit the codes.
        """
        self._check_labels(codes, prior, labels)
        state = [(parameter, parameter.requires_grad) for parameter in self.discriminator.parameters()]
        for parameter, _ in state:
            parameter.requires_grad_(False)
        try:
            return F.softplus(-self._logits(codes, labels)).mean()
        finally:
            for parameter, requires_grad in state:
                parameter.requires_grad_(requires_grad)

    def update(
        self,
        codes: Tensor,
        prior: Prior,
        optimizer: torch.optim.Optimizer | None = None,
        labels: Tensor | None = None,
    ) -> None:
        """One step of the discriminator's optimiser on detached codes [B, D], labels [B] int64.

        Raises:
            ValueError, TypeError: no optimiser; labels as for `forward`.
        """
        if optimizer is None:
            raise ValueError("optimizer: got None, expected the discriminator's optimiser")
        self._check_labels(codes, prior, labels)
        draws = _draws(prior, codes, labels)
        both = None if labels is None else labels.repeat(2)
        real, fake = self._logits(torch.cat([draws, codes.detach()]), both).tensor_split([draws.shape[0]])
        loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def _logits(self, points: Tensor, labels: Tensor | None) -> Tensor:
        """[N, D] -> [N]; the switch follows the point, its first position for unlabelled ones."""
        inputs = points / self.scale
        if self.num_classes:
            if labels is None:
                labels = torch.full(points.shape[:1], -1, device=points.device)
            switch = labels[:, None] == torch.arange(-1, self.num_classes, device=points.device)
            inputs = torch.cat([inputs, switch.to(inputs)], 1)
        return self.discriminator(inputs).squeeze(1)  # type: ignore[no-any-return]

    def _check_labels(self, codes: Tensor, prior: Prior, labels: Tensor | None) -> None:
        if labels is None:
            return
        if self.num_classes == 0:
            raise ValueError("labels: got some, but the discriminator has no classes; give Adversarial num_classes")
        if prior.num_classes != self.num_classes:
            raise ValueError(
                f"labels: {type(prior).__name__} has {prior.num_classes} classes, expected {self.num_classes} as the "
                "discriminator"
            )
        check_labels(labels, codes.shape[0], self.num_classes, codes.device)


class KL(Regularizer):
    """KL divergence from a Gaussian posterior to a Gaussian prior, the VAE's (Kingma and Welling 2014, appendix B)."""

    def forward(self, codes: Tensor, prior: Prior, moments: Moments | None = None) -> Tensor:
        """Mean over the batch of the sum over dimensions, in nats: 0-d.

        Raises:
            ValueError: a posterior without moments, or a prior that is not an axis-aligned Gaussian.
        """
        if moments is None:
            raise ValueError('moments: got None; KL needs posterior="gaussian"')
        if not isinstance(prior, Gaussian) or prior.components().eigenvectors is not None:
            raise ValueError("prior: KL has a closed form for Gaussian(dim, std, mean) only")
        mean, std = prior.mean.to(codes), prior.std.to(codes)
        ratio = moments.log_variance.exp() / std.square()
        shift = ((moments.mean - mean) / std).square()
        return 0.5 * (ratio + shift - 1 - moments.log_variance + 2 * std.log()).sum(1).mean()


def _keep(module: nn.Module, name: str, values: Floats | None) -> None:
    """Numbers as an attribute; a tensor as a buffer, which moves and is saved with the module; a Parameter as it is."""
    if isinstance(values, Tensor) and not isinstance(values, nn.Parameter):
        module.register_buffer(name, values)
    else:
        setattr(module, name, values if values is None or isinstance(values, Tensor) else tuple(values))


def _draws(prior: Prior, codes: Tensor, labels: Tensor | None = None) -> Tensor:
    """As many draws from the prior as there are codes, of their labels, never rounded to a half type."""
    count, dtype = codes.shape[0], compute_dtype(codes)
    if labels is None:  # a prior without classes need not know the argument
        return prior.sample(count, device=codes.device, dtype=dtype)
    return prior.sample(count, labels=labels, device=codes.device, dtype=dtype)


def _spec(bandwidths: Floats, kernel: str = "gaussian", alpha: float = 1.0) -> KernelSpec:
    scales = bandwidths.detach() if isinstance(bandwidths, Tensor) else tuple(bandwidths)
    return KernelSpec(kernel, scales, (1.0,) * len(bandwidths), alpha)
