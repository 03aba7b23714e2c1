"""Regularizers: what pulls the distribution of the codes towards the prior; those that learn are in `adversaries`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..kernels import FAMILIES, Kernel
from ..ops.arguments import (
    DEFAULT_BANDWIDTHS,
    Estimator,
    Floats,
    KernelName,
    check_estimator,
    check_int,
    check_number,
    check_points,
    compute_dtype,
    float_tuple,
    kernel_arguments,
)
from ..ops.closed_form import EmbeddedPrior, mmd2_to_prior
from ..ops.labels import check_labels
from ..ops.mmd import mmd2
from ..ops.shards import Shards
from ..priors import Gaussian, Prior
from ..priors.base import check_prior
from .spread import own_count, own_rows, own_slice
from .steps import descend


class Moments(NamedTuple):
    """Mean and logarithm of the variance of a Gaussian posterior, each [B, D]."""

    mean: Tensor
    log_variance: Tensor


class Regularizer(nn.Module):
    """A discrepancy between codes and a prior.

    `forward` is what the encoder descends; `update` is the adversary's own step, taken before it on detached codes. An
    adversary trained by an optimizer overrides `adversary_loss`, any other one `update`.
    Where `num_classes` is not 0, all of them take the labels [B] of the codes as one more, last argument, int64, -1 for
    an unlabeled point. Draws from the prior then have the labels of the codes: that of a labeled point comes from its
    class's part of the prior, that of an unlabeled one (all of them without labels) from the whole prior.
    Where `shards` is set, the codes are those of one process of a group: discrepancies are between the codes and draws
    of all of them (`group` of `fastmmd.mmd2`), means are left to what averages gradients.
    """

    num_classes: int = 0
    shards: Shards | None = None

    @property
    def trains_adversary(self) -> bool:
        """Whether there is an adversary that an optimizer trains."""
        return type(self).adversary_loss is not Regularizer.adversary_loss

    @property
    def learns(self) -> bool:
        """Whether `update` changes anything: there is an adversary, trained by an optimizer or not."""
        return self.trains_adversary or type(self).update is not Regularizer.update

    @property
    def descends_adversary(self) -> bool:
        """Whether an optimizer trains its adversary."""
        return self.learns and any(True for _ in self.parameters())

    @property
    def ends_steps(self) -> bool:
        """Whether `update` has to follow each step of a loop of one's own."""
        return self.learns and not self.trains_adversary

    def forward(self, codes: Tensor, prior: Prior, moments: Moments | None = None) -> Tensor:
        """[B, D] codes -> 0-d loss, differentiable in the codes (and in the moments where it uses them)."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward()")

    def adversary_loss(self, codes: Tensor, prior: Prior, labels: Tensor | None = None) -> Tensor:
        """What a trained adversary descends on codes [B, D]: 0-d, constant in the codes; 0 without one."""
        return codes.new_zeros((), dtype=compute_dtype(codes))

    def update(
        self,
        codes: Tensor,
        prior: Prior,
        optimizer: torch.optim.Optimizer | None = None,
        labels: Tensor | None = None,
    ) -> None:
        """The adversary's step on detached codes [B, D], of the optimizer where one trains it; else nothing to do.

        Raises:
            ValueError: no optimizer for an adversary that needs one.
        """
        if not self.trains_adversary:
            return
        if optimizer is None:
            raise ValueError("optimizer: got None, expected the adversary's optimizer")
        classes = () if labels is None else (labels,)
        descend(self.adversary_loss(codes, prior, *classes), optimizer, shards=self.shards)

    def kernel_spec(self) -> Kernel | None:
        """The kernel that compares codes with the prior, None where there is none with a scale."""
        return None

    def check_labels(self, codes: Tensor, prior: Prior, labels: Tensor | None) -> None:
        """Codes [B, D] fit the prior, and labels [B] int64 the codes, this regularizer and the prior; None always does.

        Raises:
            ValueError, TypeError: no codes, or of another dimension; labels without classes, for a prior with other
                classes, or that do not fit the codes.
        """
        check_sides(codes, prior)
        if labels is None:
            return
        name = type(self).__name__
        if self.num_classes == 0:
            raise ValueError(f"labels: got some, but {name} has no classes; give it num_classes")
        if prior.num_classes != self.num_classes:
            raise ValueError(
                f"labels: {type(prior).__name__} has {prior.num_classes} classes, expected {self.num_classes} as {name}"
            )
        check_labels(labels, codes.shape[0], self.num_classes, codes.device)


class MMD(Regularizer):
    """Squared MMD between the codes and draws from the prior (`fastmmd.mmd2`; GMMN, Li et al. 2015; WAE).

    With classes: sum_c class_weights[c] MMD^2(codes of class c, draws of class c) + unconditional_weight MMD^2(codes,
    draws), the second over all points, the unlabeled ones among them. So each class goes to its own part of the prior.

    Args:
        bandwidths, kernel, estimator, kernel_weights, alpha: those of `fastmmd.mmd2`. The biased estimator, with
            classes, pulls the few codes of a class in a batch together: they end up narrower than their part. The
            unbiased one gives them its width; the only code of its class in a batch then counts as unlabeled.
        num_classes: number of classes, equal to the prior's; 0: labels are not accepted.
        class_weights: [C] numbers >= 0, used as they are; uniform, 1 / C each, by default.
        unconditional_weight: >= 0; 0 takes labeled points only.
        draws: how many for each batch; as many as codes by default, and with classes.
    """

    bandwidths: Floats
    kernel_weights: Floats | None

    def __init__(
        self,
        bandwidths: Floats = DEFAULT_BANDWIDTHS,
        *,
        kernel: KernelName = "gaussian",
        estimator: Estimator = "biased",
        kernel_weights: Floats | None = None,
        alpha: float = 1.0,
        num_classes: int = 0,
        class_weights: Sequence[float] | None = None,
        unconditional_weight: float = 1.0,
        draws: int | None = None,
    ) -> None:
        super().__init__()
        check_estimator(estimator)
        _check_kernel(bandwidths, kernel, kernel_weights, alpha)
        _keep(self, "bandwidths", bandwidths)
        _keep(self, "kernel_weights", kernel_weights)
        self.kernel, self.estimator, self.alpha = kernel, estimator, alpha
        self.num_classes = check_int("num_classes", num_classes, 0)
        if class_weights is None:
            class_weights = [1.0 / num_classes] * num_classes if num_classes else ()
        elif not isinstance(class_weights, Sequence) or len(class_weights):  # none of no classes
            class_weights = float_tuple("class_weights", class_weights)
        if len(class_weights) != num_classes:
            raise ValueError(f"class_weights: got {len(class_weights)}, expected one for each of {num_classes} classes")
        if draws is not None and num_classes:
            raise ValueError(f"draws: got {draws!r} with classes, where each code has a draw of its label; omit it")
        self.draws = None if draws is None else check_int("draws", draws)
        self.class_weights = tuple(check_number("class_weights", weight, zero=True) for weight in class_weights)
        self.unconditional_weight = check_number("unconditional_weight", unconditional_weight, zero=True)

    def forward(
        self, codes: Tensor, prior: Prior, moments: Moments | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """[B, D], labels [B] int64 -> 0-d.

        Raises:
            ValueError, TypeError: see `check_labels` and `fastmmd.mmd2`.
        """
        self.check_labels(codes, prior, labels)
        if labels is not None and self.estimator == "unbiased":
            labels = without_lone(labels, self.num_classes, self.shards)
        draws = draws_like(prior, codes, labels, self.draws)
        class_weights, unconditional_weight = None, 0.0
        if self.num_classes:
            class_weights, unconditional_weight = self.class_weights, self.unconditional_weight
            labels = torch.full(codes.shape[:1], -1, device=codes.device) if labels is None else labels
        return mmd2(
            codes,
            draws,
            self.bandwidths,
            kernel=self.kernel,
            estimator=self.estimator,
            kernel_weights=self.kernel_weights,
            alpha=self.alpha,
            x_labels=labels,
            y_labels=labels,
            class_weights=class_weights,
            unconditional_weight=unconditional_weight,
            group=self.shards,
        )

    def kernel_spec(self) -> Kernel | None:
        has_bandwidths = FAMILIES[self.kernel].has_bandwidths
        return kernel_of(self.bandwidths, self.kernel, self.alpha) if has_bandwidths else None


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
        estimator: Estimator = "biased",
        kernel_weights: Floats | None = None,
    ) -> None:
        super().__init__()
        check_estimator(estimator)
        _check_kernel(bandwidths, "gaussian", kernel_weights)
        _keep(self, "bandwidths", bandwidths)
        _keep(self, "kernel_weights", kernel_weights)
        self.estimator = estimator

    def forward(self, codes: Tensor, prior: Prior, moments: Moments | None = None) -> Tensor:
        """[B, D] -> 0-d."""
        check_points(2, codes=codes)
        embedded = cast(EmbeddedPrior, prior)  # another raises
        return mmd2_to_prior(
            codes,
            embedded,
            self.bandwidths,
            estimator=self.estimator,
            kernel_weights=self.kernel_weights,
            group=self.shards,
        )

    def kernel_spec(self) -> Kernel | None:
        return kernel_of(self.bandwidths)


class KL(Regularizer):
    """KL divergence from a Gaussian posterior to a Gaussian prior, the VAE's (Kingma and Welling 2014, appendix B)."""

    def forward(self, codes: Tensor, prior: Prior, moments: Moments | None = None) -> Tensor:
        """Mean over the batch of the sum over dimensions, in nats: 0-d.

        Raises:
            ValueError: a posterior without moments, or a prior that is not an axis-aligned Gaussian.
        """
        if moments is None:
            raise ValueError('moments: got None; KL needs posterior="gaussian"')
        if not isinstance(moments, Moments):
            raise TypeError(f"moments: got {type(moments).__name__}, expected Moments(mean, log_variance)")
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


def check_sides(codes: Tensor, prior: Prior) -> None:
    """Codes [B, D] and a prior of their dimension.

    Raises:
        ValueError, TypeError: something else.
    """
    check_points(2, codes=codes)
    check_prior(prior)
    if prior.dim != codes.shape[1]:
        raise ValueError(f"prior: got dimension {prior.dim}, expected {codes.shape[1]}, that of the codes")


def draws_like(prior: Prior, codes: Tensor, labels: Tensor | None = None, count: int | None = None) -> Tensor:
    """Draws from the prior for codes [B, D], B by default, of their labels, never rounded to a half type."""
    count = codes.shape[0] if count is None else own_count("draws", count)

    def draw(rows: int) -> Tensor:
        dtype = compute_dtype(codes)
        if labels is None:  # a prior without classes need not know the argument
            return prior.sample(rows, device=codes.device, dtype=dtype)
        of_rows = labels.new_full((rows,), -1)  # a draw's random numbers are the same whatever its label
        of_rows[own_slice(count)] = labels
        return prior.sample(rows, labels=of_rows, device=codes.device, dtype=dtype)

    return own_rows(count, draw)


def without_lone(labels: Tensor, num_classes: int, shards: Shards | None = None) -> Tensor:
    """Labels [B] with -1 for points that are the only ones of their class, on all processes."""
    classes = torch.arange(num_classes, device=labels.device)
    counts = (labels == classes[:, None]).sum(1)
    lone = (counts if shards is None else shards.total(counts)) == 1
    return labels.masked_fill(lone[labels.clamp(0, num_classes - 1)], -1)


def kernel_of(bandwidths: Floats, kernel: KernelName = "gaussian", alpha: float = 1.0) -> Kernel:
    """The kernel of a regularizer, for the checks of its scale."""
    scales = bandwidths.detach().reshape(-1) if isinstance(bandwidths, Tensor) else tuple(bandwidths)
    return Kernel(kernel, scales, (1.0,) * len(scales), alpha)


def _check_kernel(bandwidths: Floats, kernel: KernelName, kernel_weights: Floats | None, alpha: float = 1.0) -> None:
    """As `kernel_arguments`, on the device of the tensors among them."""
    device = next((values.device for values in (bandwidths, kernel_weights) if isinstance(values, Tensor)), None)
    kernel_arguments(bandwidths, kernel, kernel_weights, alpha, torch.empty(0, device=device))
