"""An autoencoder is an encoder, a decoder, a posterior, a prior and a regularizer: swapping one touches no other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.nn import functional as F

from ..ops.arguments import check_choice, check_int, check_number
from ..priors import Prior
from ..priors.base import check_prior
from . import inputs
from .convolutional import check_image_shape
from .inputs import Output, Reconstruction, in_eval_mode
from .labels import check_switch, receivers
from .networks import check_module, check_widths
from .regularizers import KL, Moments, Regularizer
from .shifts import shifted
from .spread import normal_rows
from .standardization import standardization
from .steps import OptimizerName
from .trainable import Trainable

Posterior = Literal["deterministic", "gaussian", "implicit"]


class Autoencoder(Trainable):
    """A generative autoencoder over data [B, data_dim] in [0, 1], or real-valued with output="identity".

    Images [B, C, H, W] of data_dim pixels are flattened. `encode`, `draw_codes`, `posterior_distribution`, `decode`,
    `reconstruct` and `sample` run in eval mode, whatever the model's own mode, and take any number of rows;
    `training_step` and calls of the model: see `check_batch`.

    `training_step` trains it with the optimizers of `configure_optimizers`. In a loop of your own, call the model for
    the losses of a batch, descend them as you like, and call `end_step` after each step.

    Args:
        encoder: [B, data_dim] -> [B, code_size], or [B, 2 * code_size] (mean, log variance) for the Gaussian posterior;
            for the implicit one [B, data_dim + noise_size] -> [B, code_size].
        decoder: [B, code_size + decoder_classes] -> [B, data_dim], what `output` turns into data.
        prior: the target distribution of the codes; its dimension is the code size.
        regularizer: pulls the codes towards the prior.
        posterior: q(z | x): "deterministic", "gaussian" (reparameterized) or "implicit": z = encoder(x, eta) with
            eta ~ N(0, I), the universal approximator of the AAE paper (Makhzani et al. 2015, section 2.1).
        noise_size: dimension of eta, of the implicit posterior only; default: the code size.
        denoising: standard deviation of Gaussian noise on the encoder's input while training; the reconstruction's
            target stays clean (Vincent et al. 2008). 0.5 in the sampling paper (Creswell, Arulkumaran, Bharath 2016).
        shift: the encoder's input is moved by up to so many pixels along both axes at random while training, edges
            repeated; the target stays. Codes that few labels place then generalize better. image_shape: (H, W) or
            (C, H, W) of the images that are moved; None: square gray ones.
        reconstruction: "cross_entropy" or "squared_error", summed over the pixels, averaged over the batch.
        output: "sigmoid" for data in [0, 1], "identity" for real-valued data (with "squared_error" only).
        regularizer_weight: lambda in reconstruction + lambda * regularizer.
        shape, shape_weight: a second regularizer, of the codes without dropout, noise and shifts, as evaluation makes
            them; its share is added to that of the regularizer. Dropout widens the codes that the latter fits to the
            prior, so those without it become narrower than the prior.
        warmup_steps: initial steps that train only the regularizer, so that codes reach the prior's support first.
        learning_rate: of encoder and decoder. beta1: Adam's, for them.
        optimizer: "adam", or "muon": Muon for the weight matrices of encoder and decoder, see `MuonAdam`; for large
            batches. The adversary's is Adam.
        standardize: the encoder sees standardized pixels, (x - mean) / std with the mean and standard deviation of each
            over the training images, which `standardize_to` takes once, and the squared error is in these units. The
            data that all methods take and give stay in their own. For output="identity".
        adversary_learning_rate, adversary_beta1: Adam's, for a trained adversary.
        decoder_classes: C > 0: the decoder sees [code, one-hot of the label], so the code keeps what the class does
            not tell, the style (Makhzani et al. 2015, "Supervised adversarial autoencoders"). Label -1, unlabeled:
            all zeros.
        generator_learning_rate: if given, each batch has two phases, as in the AAE paper: reconstruction first, then
            the encoder alone descends the regularizer with an optimizer of its own.

    Raises:
        ValueError: naming the argument; also `KL` without the moments of a Gaussian posterior.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: Prior,
        regularizer: Regularizer,
        *,
        posterior: Posterior = "deterministic",
        noise_size: int | None = None,
        denoising: float = 0.0,
        shift: int = 0,
        image_shape: Sequence[int] | None = None,
        reconstruction: Reconstruction = "cross_entropy",
        output: Output = "sigmoid",
        regularizer_weight: float = 1.0,
        shape: Regularizer | None = None,
        shape_weight: float = 1.0,
        warmup_steps: int = 0,
        learning_rate: float = 1e-3,
        optimizer: OptimizerName = "adam",
        beta1: float = 0.9,
        standardize: bool = False,
        adversary_learning_rate: float = 1e-3,
        adversary_beta1: float = 0.9,
        generator_learning_rate: float | None = None,
        decoder_classes: int = 0,
    ) -> None:
        super().__init__(check_int("warmup_steps", warmup_steps, 0))
        check_choice("posterior", posterior, get_args(Posterior))
        inputs.check_output(output, reconstruction)
        check_module("encoder", encoder)
        check_module("decoder", decoder)
        check_module("regularizer", regularizer, Regularizer)
        check_prior(prior)
        denoising = check_number("denoising", denoising, zero=True)
        regularizer_weight = check_number("regularizer_weight", regularizer_weight, zero=True)
        if shape is not None and check_module("shape", shape, Regularizer).learns:
            raise ValueError(f"shape: got {type(shape).__name__}, expected a regularizer without an adversary")
        self.shape_weight = check_number("shape_weight", shape_weight, zero=True)
        check_number("learning_rate", learning_rate)
        check_choice("optimizer", optimizer, get_args(OptimizerName))
        check_number("beta1", beta1, zero=True, below=1)
        check_number("adversary_learning_rate", adversary_learning_rate)
        check_number("adversary_beta1", adversary_beta1, zero=True, below=1)
        if generator_learning_rate is not None:
            check_number("generator_learning_rate", generator_learning_rate)
        if noise_size is not None and posterior != "implicit":
            raise ValueError(
                f'noise_size: got {noise_size!r} with posterior={posterior!r}, expected posterior="implicit"'
            )
        if isinstance(regularizer, KL) and posterior != "gaussian":
            raise ValueError(f'posterior: got {posterior!r}; KL needs the moments of posterior="gaussian"')
        self.encoder, self.decoder, self.prior, self.regularizer = encoder, decoder, prior, regularizer
        self.shape = shape
        self.posterior, self.reconstruction, self.output, self.denoising = posterior, reconstruction, output, denoising
        self.noise_size = 0
        if posterior == "implicit":
            self.noise_size = prior.dim if noise_size is None else check_int("noise_size", noise_size)
        self.data_dim, self.range_watch = inputs.data_width(encoder, self.noise_size), inputs.RangeWatch()
        self.shift = check_int("shift", shift, 0)
        self._image_shape = _moved_shape(image_shape, self.data_dim) if self.shift else (0, 0, 0)
        self.standardization = standardization(standardize, output, self.data_dim)
        self.regularizer_weight = regularizer_weight
        self.learning_rate, self.beta1, self.generator_learning_rate = learning_rate, beta1, generator_learning_rate
        self.optimizer = optimizer
        self.adversary_learning_rate, self.adversary_beta1 = adversary_learning_rate, adversary_beta1
        self.decoder_classes = check_int("decoder_classes", decoder_classes, 0)
        self.progress: float | None = None  # share of the run that is done, where the loop sets it: for phases

    @property
    def code_size(self) -> int:
        """Dimension of the codes."""
        return self.prior.dim

    def standardize_to(self, images: Tensor) -> None:
        """Take mean and standard deviation of each pixel from the training images [N, data_dim], before training.

        With `synchronize`, before or after it, all processes call it and get those of the first. Without `standardize`
        it does nothing.

        Raises:
            ValueError, TypeError: no images, or not the model's data.
        """
        images = inputs.check_data(self, images, "images")
        if self.standardization is not None:
            self.standardization.fit(images)
            if self.shards is not None:
                self.shards.begin_alike(list(self.standardization.buffers()))

    @in_eval_mode
    def encode(self, x: Tensor) -> Tensor:
        """[B, data_dim] -> codes [B, code_size]: the Gaussian posterior's mean, the implicit one's code at eta = 0."""
        return self._infer(inputs.check_data(self, x), draw=False)[0]

    @in_eval_mode
    def draw_codes(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws from q(z | x), one per row, or a deterministic code: [B, data_dim] -> [B, code_size]."""
        return self._infer(inputs.check_data(self, x, generator=generator), draw=True, generator=generator)[0]

    @in_eval_mode
    def posterior_distribution(self, x: Tensor) -> Independent[Normal]:
        """The Gaussian posterior q(z | x) as a distribution over codes: batch shape [B], event shape [code_size].

        `rsample`, `log_prob`, `mean`, `stddev` and `torch.distributions.kl_divergence` are differentiable.

        Raises:
            ValueError, TypeError: another posterior, which has no density in closed form; data that do not fit.
        """
        moments = self._infer(inputs.check_data(self, x), draw=False)[1]
        if moments is None:
            raise ValueError(
                f'posterior: got {self.posterior!r}, expected "gaussian", the only one with a density in closed form; '
                "encode() and draw_codes() give the codes of any posterior"
            )
        return Independent(Normal(moments.mean, torch.exp(0.5 * moments.log_variance)), 1)

    def corrupt(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """What the encoder sees of x [B, data_dim] while training: shifted, with the noise N(0, denoising^2 I)."""
        x = inputs.check_data(self, x, generator=generator)
        if self.shift:
            x = shifted(x, self.shift, self._image_shape, generator)
        return x + self.denoising * normal_rows(x, x.shape, generator) if self.denoising else x

    @in_eval_mode
    def decode(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """[B, code_size] -> data, [B, data_dim]; labels [B] int64 for a decoder with classes, and only then.

        Raises:
            ValueError, TypeError: labels missing, not wanted, or that do not fit.
        """
        values = inputs.data_of(self._logits(inputs.check_codes(self, codes), labels), self.output)
        return values if self.standardization is None else self.standardization.invert(values)

    def reconstruct(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """[B, data_dim] -> decoded codes [B, data_dim]; labels as for `decode`."""
        return self.decode(self.encode(x), labels)

    @torch.no_grad()
    @in_eval_mode
    def sample(self, count: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Ancestral samples: decoded draws from the prior, [count, data_dim].

        Args:
            labels: [count] int64, the class of each sample. It is passed to the same parts as in `training_step`: to
                the decoder, or to the prior, whose part it selects. Without labels a decoder with classes gets
                uniformly drawn ones.
            generator: of all draws.

        Raises:
            ValueError, TypeError: labels for a model without classes, or that do not fit.
        """
        like = next(self.parameters(), torch.empty(0))
        inputs.check_draws(count, generator, like.device)
        if labels is None and self.decoder_classes:
            labels = torch.randint(self.decoder_classes, (count,), generator=generator, device=like.device)
        parts, switch = receivers(labels, self.regularizer, self.decoder_classes)
        chosen = {} if parts is None else {"labels": parts}  # a prior without classes need not know the argument
        codes = self.prior.sample(count, **chosen, generator=generator, device=like.device, dtype=like.dtype)
        return self.decode(codes, switch)

    def reconstruction_loss(self, x: Tensor, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Sum over pixels, mean over the batch: 0-d (nats for "cross_entropy"); labels as for `decode`.

        With `standardize` the pixels are in standardized units.
        """
        logits = self._logits(codes, labels)
        x = inputs.check_target(self, self._standardized(x), logits)
        if self.reconstruction == "cross_entropy":
            return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / x.shape[0]
        return F.mse_loss(inputs.data_of(logits, self.output), x, reduction="sum") / x.shape[0]

    def _logits(self, codes: Tensor, labels: Tensor | None) -> Tensor:
        """What the decoder makes of codes [B, code_size] and the switch of their labels [B]."""
        check_switch(codes, labels, self.decoder_classes)
        if labels is not None:
            switch = labels[:, None] == torch.arange(self.decoder_classes, device=codes.device)
            codes = torch.cat([codes, switch.to(codes)], dim=1)
        return self.decoder(codes)  # type: ignore[no-any-return]

    def _standardized(self, x: Tensor) -> Tensor:
        return x if self.standardization is None else self.standardization(inputs.check_data(self, x))

    def _infer(self, x: Tensor, draw: bool, generator: torch.Generator | None = None) -> tuple[Tensor, Moments | None]:
        x = self._standardized(x)
        if self.posterior == "implicit":
            eta = normal_rows(x, (len(x), self.noise_size), generator) if draw else x.new_zeros(len(x), self.noise_size)
            x = torch.cat([x, eta], dim=1)
        out = self.encoder(x)
        if self.posterior != "gaussian":
            return out, None
        moments = Moments(*out.chunk(2, dim=1))
        if not draw:
            return moments.mean, moments
        noise = normal_rows(moments.mean, moments.mean.shape, generator)
        return moments.mean + noise * torch.exp(0.5 * moments.log_variance), moments


def _moved_shape(image_shape: Sequence[int] | None, data_dim: int | None) -> tuple[int, int, int]:
    """(C, H, W) of the images of an encoder of `data_dim` inputs, 0 or None where they are not known."""
    if not data_dim:
        if image_shape is None:
            raise ValueError("image_shape: got None, expected (H, W) or (C, H, W) of the images that shift moves")
        data_dim = math.prod(check_widths("image_shape", image_shape))
    return check_image_shape(image_shape, data_dim)
