"""Generative moment matching: an autoencoder whose prior is learned, a generator of codes trained by MMD."""

from __future__ import annotations

from typing import ClassVar, Self, Unpack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..ops.arguments import check_int, compute_dtype
from . import inputs
from .base import AutoencoderModel
from .generators import GeneratorPrior, square_root
from .labels import receivers
from .networks import MLP
from .regularizers import MMD
from .settings import GMMNAEOptions, GMMNAESettings
from .spread import BatchNorm1d
from .steps import Losses, adam, descend


class GMMNAE(AutoencoderModel):
    """A generative moment matching network in the codes of an autoencoder (Li, Swersky and Zemel 2015, section 4).

    Two phases. First a dropout autoencoder with sigmoid codes is trained for reconstruction alone. Then it is frozen,
    and a generator, uniform noise -> codes, descends MMD(codes, generated codes), the square root of their `mmd2`,
    whose gradient does not vanish near convergence. The generator is the model's prior, so samples are decoded draws
    from the prior as in every other model.

    A training loop that knows its length sets `progress`, the share of the run that is done, before each step; the
    first phase lasts until it reaches `autoencoder_share`. In a loop that does not, every step trains both: the
    autoencoder, and the generator on the codes as they are.

    Args:
        data_dim: number of pixels.
        hidden, input_dropout, hidden_dropout: of the autoencoder; dropout is applied in the encoder only.
        generator: hidden widths of the generator. noise_size: dimension of its noise.
        autoencoder_share: of the run, for the first phase.
        bandwidths: standard deviations of the Gaussian kernels, which are averaged; codes lie in [0, 1]^code_size.
        draws: generated codes for each step; more draws reduce the noise of the gradient.
        learning_rate, prior_learning_rate: Adam's, of the first and of the second phase.
        The others, and all defaults: see `settings.GMMNAESettings`.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    Settings: ClassVar[type[GMMNAESettings]] = GMMNAESettings
    autoencoder_share = 1.0  # while the base class is made

    def __init__(self, data_dim: int = 784, **options: Unpack[GMMNAEOptions]) -> None:
        data_dim, settings = check_int("data_dim", data_dim), GMMNAESettings(**options)
        code_size, hidden, precision = settings.code_size, settings.hidden, settings.precision
        network = nn.Sequential(
            MLP(settings.noise_size, settings.generator, code_size, precision=precision), nn.Sigmoid()
        )
        bandwidths = settings.bandwidths
        average = [1.0 / len(bandwidths)] * len(bandwidths)
        encoder = MLP(
            data_dim,
            hidden,
            code_size,
            input_dropout=settings.input_dropout,
            hidden_dropout=settings.hidden_dropout,
            precision=precision,
        )
        super().__init__(
            data_dim,
            settings,
            encoder,
            MLP(code_size, hidden[::-1], data_dim, precision=precision, last_in_float32=False),
            GeneratorPrior(network, settings.noise_size, code_size),
            MMD(bandwidths, kernel_weights=average, draws=settings.draws),
        )
        # Unnormalized, all codes run into one corner of the cube, where the sigmoid has no slope left (Li et al. train
        # layer by layer first).
        self.encoder = nn.Sequential(encoder, BatchNorm1d(code_size, affine=False), nn.Sigmoid())
        self.autoencoder_share, self.prior_learning_rate = settings.autoencoder_share, settings.prior_learning_rate
        self.progress = None

    @classmethod
    def paper(cls, data_dim: int = 784, **options: Unpack[GMMNAEOptions]) -> Self:
        """The paper's settings, with options over them. Its batch size is 1000."""
        paper: GMMNAEOptions = {
            "code_size": 32,
            "hidden": (1024,),
            "input_dropout": 0.2,
            "hidden_dropout": 0.2,
            "generator": (64, 256, 256, 1024),
            "noise_size": 10,
            "precision": "float32",
        }
        return cls(data_dim, **(paper | options))

    @property
    def progress(self) -> float | None:
        """Share of the run that is done, where the loop sets it; None, the default: every step is of both phases."""
        return self._progress

    @progress.setter
    def progress(self, progress: float | None) -> None:
        first = progress is None or progress < self.autoencoder_share
        # Compiled code reads the phases and not the share, which would compile it anew at each step.
        self._progress, self._phases = progress, (first, progress is None or not first)

    @property
    def phase_progress(self) -> float:
        """Completed share of the current phase."""
        share, progress = self.autoencoder_share, self.progress or 0.0
        return progress / share if progress < share else (progress - share) / (1 - share)

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """Adam for "autoencoder", the first phase, and for "prior", the second."""
        generator = adam(list(self.prior.parameters()), self.prior_learning_rate)  # type: ignore[attr-defined]
        return super().configure_optimizers() | {"prior": generator}

    def optimizer_names(self) -> tuple[str, ...]:
        return (*super().optimizer_names(), "prior")

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Losses:
        """The losses of a batch [B, data_dim] in the phase that `progress` says, or in both; see `Autoencoder.forward`.

        In the first phase `loss` is for the optimizer "autoencoder", and `regularizer`, the MMD, is 0; in the second it
        is for "prior", `reconstruction` is 0, and `codes` are those of x without dropout. Their gradients reach
        different parameters: in both phases at once `loss` is for both.
        """
        first, second = self._phases
        x = inputs.check_batch(self, x, *((self.encoder, self.decoder) if first else ()))
        receivers(labels, self.regularizer, self.decoder_classes)  # raises: there are no classes
        reconstruction = penalty = zero = x.new_zeros((), dtype=compute_dtype(x))
        if second:
            with torch.no_grad():
                codes = self.encode(x)
            penalty = square_root(self.regularizer(codes, self.prior))
        if first:
            codes = self._infer(self.corrupt(x) if self.training else x, draw=False)[0]
            reconstruction = self.reconstruction_loss(x, codes)
        return Losses(reconstruction + penalty, reconstruction, penalty, zero, codes)

    def training_step(
        self, x: Tensor, optimizers: dict[str, Optimizer], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One step on a batch [B, data_dim], of the phase that `progress` says, of both without it.

        Of the terms, "reconstruction" is 0 in the second phase, "regularizer", the MMD, in the first. See
        `Autoencoder.training_step`.
        """
        self._check_synchronized()
        losses = self(x, labels)
        inputs.check_optimizers(self, optimizers)
        terms = {name: getattr(losses, name).detach() for name in ("loss", "reconstruction", "regularizer")}
        first, second = self._phases
        chosen = [optimizers[name] for name in ["autoencoder"] * first + ["prior"] * second]
        descend(losses.loss, *chosen, shards=self.shards)
        self._count_step()
        return terms
