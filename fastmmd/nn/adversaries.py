"""Adversaries: regularizers that learn where codes and prior differ, a random function and a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..kernels import Kernel
from ..ops.arguments import check_choice, check_int, check_number, positive_floats
from ..ops.fourier import FourierFeatures, fourier_ascent, fourier_discrepancy, fourier_mean
from ..priors import Prior
from .networks import MLP, Precision, check_module
from .regularizers import Moments, Regularizer, draws_like, kernel_of
from .spread import in_parts, normal_rows, own_rows

Mode = Literal["fresh", "first_order", "doubly_stochastic"]


class FourierAdversary(Regularizer):
    """The adversary of the doubly stochastic adversarial autoencoder: a random function instead of a network.

    zeta = mean phi(prior) - mean phi(codes) in random Fourier features phi of a sum of Gaussian kernels, over a random
    batch of codes and of prior draws.

    - mode="fresh" (the first step of "doubly_stochastic", at every step): every step draws fresh features, and the
      function is that of the batch itself, f(z) = sum_k zeta_k phi_k(z). The encoder descends sum_k zeta_k^2, which on
      average over the features is the biased `mmd2`; the batch sees other features of the kernel at every step.
    - mode="first_order" (DS-AAE paper: the adversary approximated by its first-order terms, fixed seed): the features
      stay; f(z) = sum_k alpha_k zeta_k phi_k(z) with one alpha for the cosine and sine of a frequency, or the
      discrepancy would depend on where the origin lies. The encoder descends delta = sum_k alpha_k zeta_k^2. The
      adversary ascends delta under the constraint that alpha has mean 1: alpha moves by `learning_rate` towards
      zeta_k^2 / mean zeta^2, so it weighs the frequencies where codes and prior differ most, and stays bounded.
      On CUDA `update` launches two kernels, `forward` two and its backward pass one or two, besides the prior's draws
      and the counter of steps.
    - mode="doubly_stochastic" (Dai et al. 2014, algorithm 1): every step draws fresh features W_t, appends
      learning_rate * zeta_t to the function and shrinks the older coefficients by 1 - learning_rate * shrinkage;
      f_t = sum_{s <= t} c_s phi_{W_s} over the last `blocks` steps, the features regenerated from the seed. The
      encoder descends mean f_t(prior) - mean f_t(codes). With many blocks it acts like an integral controller of gain
      weight * learning_rate * blocks: about 100 is stable, several hundred oscillates or runs away; shrinkage helps.

    With classes the features are those of (z, t e_c), the point and a switch: e_c the unit vector of its class, with
    one more position for unlabeled points, t = 6 max bandwidth. Switches of two classes lie sqrt(2) t apart, so under
    the kernel of bandwidth s two such points have k((z, t e_c), (z', t e_c')) <= exp(-t^2 / s^2) <= exp(-36), which is
    negligible, and two of one class k(z, z'). Codes and draws have the same labels, so the discrepancy becomes
    sum_c p_c^2 MMD^2(codes of class c, draws of class c) with p_c the share of class c in the batch (unlabeled points
    are one more class, whose part is the whole prior): the frequencies W of the switch give the features of each class
    random phases t W e_c of their own. The factor p_c^2 requires a larger weight of the regularizer, by about C.

    Args:
        code_size: dimension D of the codes.
        count: number of frequencies, a multiple of the number of bandwidths; where features are fresh, of each step.
        bandwidths: standard deviations of the kernels, weighted equally with sum 1.
        mode, learning_rate, shrinkage, blocks: above. seed: of the frequencies.
        num_classes: number of classes, equal to the prior's; 0: labels are not accepted.
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
        mode: Mode = "fresh",
        learning_rate: float = 0.05,
        shrinkage: float = 0.0,
        blocks: int = 10,
        seed: int = 0,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        check_choice("mode", mode, get_args(Mode))
        blocks, code_size = check_int("blocks", blocks), check_int("code_size", code_size)
        learning_rate = check_number("learning_rate", learning_rate)
        shrinkage = check_number("shrinkage", shrinkage, zero=True)
        if learning_rate * shrinkage >= 1:
            raise ValueError(f"shrinkage: got {shrinkage}, expected learning_rate * shrinkage in [0, 1)")
        if mode == "first_order" and learning_rate > 1:
            raise ValueError(f'learning_rate: got {learning_rate}, expected at most 1 for mode="first_order"')
        bandwidths = positive_floats("bandwidths", bandwidths)
        weights = [1.0 / len(bandwidths)] * len(bandwidths)
        self.num_classes = check_int("num_classes", num_classes, 0)
        inputs = code_size + _switch_size(self.num_classes)
        self.features = FourierFeatures(inputs, count, bandwidths=bandwidths, kernel_weights=weights, seed=seed)
        self.mode, self.learning_rate, self.shrinkage, self.blocks = mode, learning_rate, shrinkage, blocks
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        if mode == "first_order":
            self.register_buffer("alpha", torch.ones(self.features.count))
        elif mode == "doubly_stochastic":
            self.register_buffer("coefficients", torch.zeros(blocks, 2 * self.features.count))

    def forward(
        self, codes: Tensor, prior: Prior, moments: Moments | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """[B, D], labels [B] int64 -> 0-d.

        Raises:
            ValueError, TypeError: see `check_labels`.
        """
        codes, draws = self._sides(codes, prior, labels)
        if self.mode == "first_order":
            return fourier_discrepancy(codes, draws, self.alpha, self.features, group=self.shards)
        if self.mode == "fresh":
            equal = draws.new_ones(self.features.count)
            return fourier_discrepancy(codes, draws, equal, self.features.block(self.step), group=self.shards)
        # Slot s of the ring holds the newest step t with t = s modulo blocks; slots not yet filled hold zeros.
        age = (self.step - 1 - torch.arange(self.blocks, device=codes.device)) % self.blocks
        zetas = [self._zeta(codes, draws, (self.step - 1 - age[slot]).clamp(min=0)) for slot in range(self.blocks)]
        return (self.coefficients.clone() * torch.stack(zetas)).sum()  # an update may come before the backward pass

    @torch.no_grad()
    def update(
        self,
        codes: Tensor,
        prior: Prior,
        optimizer: torch.optim.Optimizer | None = None,
        labels: Tensor | None = None,
    ) -> None:
        """One ascent step of the random function on detached codes [B, D], labels [B] int64."""
        if self.mode == "fresh":
            self._check(codes, prior, labels)
        elif self.mode == "first_order":
            sides = self._sides(codes, prior, labels)
            fourier_ascent(self.alpha, *sides, self.features, self.learning_rate, group=self.shards)
        else:
            codes, draws = self._sides(codes, prior, labels)
            zeta = self._zeta(codes, draws, self.step)
            self.coefficients.mul_(1 - self.learning_rate * self.shrinkage)
            slot = torch.arange(self.blocks, device=codes.device) == self.step % self.blocks
            new = self.learning_rate * zeta.to(self.coefficients)
            self.coefficients.copy_(torch.where(slot[:, None], new, self.coefficients))
        self.step += 1

    def kernel_spec(self) -> Kernel | None:
        return kernel_of(self.features.bandwidths)

    def _check(self, codes: Tensor, prior: Prior, labels: Tensor | None) -> None:
        self.check_labels(codes, prior, labels)
        width = self.features.dim - _switch_size(self.num_classes)
        if codes.shape[1] != width:
            raise ValueError(f"codes: got shape {list(codes.shape)}, expected [B, {width}], code_size of the adversary")

    def _sides(self, codes: Tensor, prior: Prior, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes and as many draws, with their switches where there are classes."""
        self._check(codes, prior, labels)
        draws = draws_like(prior, codes, labels)
        if not self.num_classes:
            return codes, draws
        size = 6 * max(self.features.bandwidths)
        # In the dtype of the draws: a switch rounded on one side only would tell the sides apart.
        codes, draws = (_with_switch(z.to(draws.dtype), labels, self.num_classes, size) for z in (codes, draws))
        return codes, draws

    def _zeta(self, codes: Tensor, draws: Tensor, block: Tensor) -> Tensor:
        features = self.features.block(block)
        return fourier_mean(draws, features, group=self.shards) - fourier_mean(codes, features, group=self.shards)


class Adversarial(Regularizer):
    """A discriminator network between prior draws and codes (Makhzani et al. 2015, "Adversarial Autoencoders").

    The discriminator's phase minimizes -log D(prior) - log(1 - D(codes)); the encoder minimizes the non-saturating
    -log D(codes).

    With classes (the same paper, "Incorporating label information in the adversarial regularization", figures 3 and
    4) the discriminator also sees a one-hot switch of the class, with one more position for unlabeled points. So each
    class goes to its own part of the prior.

    Args:
        discriminator: [B, D] -> [B, 1] logits; with classes [B, D + 1 + num_classes], the code, whether the point is
            unlabeled, its class.
        scale: codes and draws are divided by it first (the prior's standard deviation, so that the discriminator sees
            inputs of order one).
        noise: the largest standard deviation of Gaussian noise on what the discriminator sees while training, codes and
            draws alike, in the units of the codes ("instance noise", Sonderby et al. 2017, "Amortised MAP inference");
            each point has one of its own, log-uniform from noise / 100. Parts of a prior that lie apart, of which one
            has too many codes, then still have a gradient between them: about the prior's width is best. 0: none.
        num_classes: number of classes, equal to the prior's; 0: labels are not accepted.
    """

    def __init__(
        self, discriminator: nn.Module, *, scale: float = 1.0, noise: float = 0.0, num_classes: int = 0
    ) -> None:
        super().__init__()
        self.discriminator, self.scale = check_module("discriminator", discriminator), check_number("scale", scale)
        self.noise = check_number("noise", noise, zero=True)
        self.num_classes = check_int("num_classes", num_classes, 0)

    @classmethod
    def mlp(
        cls,
        code_size: int,
        hidden: Sequence[int] = (1000, 1000),
        *,
        scale: float = 1.0,
        noise: float = 0.0,
        precision: Precision = "float32",
        num_classes: int = 0,
    ) -> Adversarial:
        """With a fully connected discriminator, two layers of 1000 units as in the paper."""
        inputs = check_int("code_size", code_size) + _switch_size(check_int("num_classes", num_classes, 0))
        return cls(MLP(inputs, hidden, 1, precision=precision), scale=scale, noise=noise, num_classes=num_classes)

    def forward(
        self, codes: Tensor, prior: Prior, moments: Moments | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """[B, D], labels [B] int64 -> 0-d: mean of -log D(codes). The discriminator itself receives no gradient.

        Raises:
            ValueError, TypeError: see `check_labels`.
        """
        self.check_labels(codes, prior, labels)
        inputs = self._inputs(self._noisy(codes), labels)
        logits = functional_call(self.discriminator, self._frozen(), (inputs,), tie_weights=False)
        return F.softplus(-logits.squeeze(1)).mean()

    def adversary_loss(self, codes: Tensor, prior: Prior, labels: Tensor | None = None) -> Tensor:
        """The discriminator's loss on codes [B, D], labels [B] int64: 0-d. The codes receive no gradient.

        Raises:
            ValueError, TypeError: labels as for `forward`.
        """
        self.check_labels(codes, prior, labels)
        draws = draws_like(prior, codes, labels)
        both = None if labels is None else labels.repeat(2)
        inputs = self._inputs(torch.cat([self._noisy(draws), self._noisy(codes.detach())]), both)
        with in_parts(2):
            logits = self.discriminator(inputs)
        real, fake = logits.squeeze(1).tensor_split([draws.shape[0]])
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def _frozen(self) -> dict[str, Tensor]:
        """The discriminator's parameters as constants: of each module once, each name of a shared parameter.

        Another list would leave the constants behind in a module that occurs twice.
        """
        return {
            f"{path}.{name}".removeprefix("."): parameter.detach()
            for path, module in self.discriminator.named_modules()
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        }

    def _noisy(self, points: Tensor) -> Tensor:
        """Points [N, D] with their noise."""
        if not (self.noise and self.training):
            return points
        exponents = own_rows(len(points), lambda rows: torch.rand(rows, 1, device=points.device))
        return points + (self.noise * 100**-exponents * normal_rows(points, points.shape)).to(points)

    def _inputs(self, points: Tensor, labels: Tensor | None) -> Tensor:
        """What the discriminator sees of points [N, D]."""
        inputs = points / self.scale
        return _with_switch(inputs, labels, self.num_classes) if self.num_classes else inputs


def _switch_size(num_classes: int) -> int:
    """Width of the switch: a position for unlabeled points, one for each class; 0 without classes."""
    return 1 + num_classes if num_classes else 0


def _with_switch(points: Tensor, labels: Tensor | None, num_classes: int, size: float = 1.0) -> Tensor:
    """[N, D] -> [N, D + 1 + num_classes]: the points, then `size` at the position of their labels, -1 first."""
    if labels is None:
        labels = torch.full(points.shape[:1], -1, device=points.device)
    switch = labels[:, None] == torch.arange(-1, num_classes, device=points.device)
    return torch.cat([points, size * switch.to(points)], 1)
