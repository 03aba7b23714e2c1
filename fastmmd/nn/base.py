"""What the papers' models share: they are made from their settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, TypedDict, Unpack

from torch import nn

from ..ops.arguments import check_int
from ..priors import Gaussian, GaussianMixture, Prior, SwissRoll, Uniform
from .autoencoders import Autoencoder, Posterior
from .convolutional import ConvDecoder, ConvEncoder
from .generative import GenerativeModel
from .generators import GenerativeNetwork, GeneratorPrior
from .networks import MLP
from .regularizers import Regularizer
from .settings import AutoencoderSettings, FixedPriorSettings, GenerativeNetworkSettings, ModelSettings


class TrainingOptions(TypedDict, total=False):
    """Keyword arguments of `Autoencoder` that only some of the models set."""

    warmup_steps: int
    shape: Regularizer | None
    shape_weight: float
    adversary_learning_rate: float
    adversary_beta1: float
    generator_learning_rate: float | None


class GenerativeNetworkOptions(TypedDict, total=False):
    """Keyword arguments of `GenerativeNetwork` that only some of the models set."""

    root: bool
    beta1: float
    adversary_learning_rate: float
    adversary_beta1: float


class AutoencoderOptions(TrainingOptions, total=False):
    posterior: Posterior
    noise_size: int | None
    shift: int
    image_shape: Sequence[int] | None
    regularizer_weight: float
    decoder_classes: int


class Model(GenerativeModel):
    """A model made from numbers and names alone, its settings. The subclasses take the settings by keyword."""

    Settings: ClassVar[type[ModelSettings]]
    _settings: ModelSettings

    def settings(self) -> dict[str, Any]:
        """The keyword arguments that make this model again."""
        return self._settings.keywords()


class AutoencoderModel(Model, Autoencoder):
    """An autoencoder of this kind."""

    def __init__(
        self,
        data_dim: int,
        settings: AutoencoderSettings,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: Prior,
        regularizer: Regularizer,
        **options: Unpack[AutoencoderOptions],
    ) -> None:
        super().__init__(
            encoder,
            decoder,
            prior,
            regularizer,
            denoising=settings.denoising,
            reconstruction=settings.reconstruction,
            output=settings.output,
            learning_rate=settings.learning_rate,
            optimizer=settings.optimizer,
            beta1=settings.beta1,
            standardize=settings.standardize,
            **options,
        )
        self.data_dim, self._settings = data_dim, settings


class GenerativeNetworkModel(Model, GenerativeNetwork):
    """A generator of this kind."""

    def __init__(
        self,
        data_dim: int,
        settings: GenerativeNetworkSettings,
        regularizer: Regularizer,
        **options: Unpack[GenerativeNetworkOptions],
    ) -> None:
        network = MLP(
            settings.noise_size,
            settings.generator,
            data_dim,
            batch_norm=settings.batch_norm,
            precision=settings.precision,
            last_in_float32=False,
        )
        super().__init__(
            GeneratorPrior(network, settings.noise_size, data_dim),
            regularizer,
            output=settings.output,
            learning_rate=settings.learning_rate,
            **options,
        )
        self._settings = settings


class FixedPriorModel(AutoencoderModel):
    """A model whose prior is chosen, not learned."""

    def __init__(
        self,
        data_dim: int,
        settings: FixedPriorSettings,
        prior: Prior,
        regularizer: Regularizer,
        **options: Unpack[TrainingOptions],
    ) -> None:
        data_dim = check_int("data_dim", data_dim)
        encoder, decoder = _networks(data_dim, settings)
        super().__init__(
            data_dim,
            settings,
            encoder,
            decoder,
            prior,
            regularizer,
            posterior=settings.posterior,
            noise_size=settings.noise_size,
            shift=settings.shift,
            image_shape=settings.image_shape,
            regularizer_weight=settings.regularizer_weight,
            decoder_classes=settings.decoder_classes,
            **options,
        )


def _networks(data_dim: int, settings: FixedPriorSettings) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder."""
    noise = (settings.noise_size if settings.posterior == "implicit" else None) or 0
    outputs = settings.code_size * (2 if settings.posterior == "gaussian" else 1)
    inputs = settings.code_size + settings.decoder_classes
    dropout, precision = settings.input_dropout, settings.precision
    encoder: nn.Module
    decoder: nn.Module
    if settings.network == "convolutional":
        channels, shape = settings.channels, settings.image_shape
        encoder = ConvEncoder(
            data_dim,
            channels,
            outputs,
            image_shape=shape,
            input_dropout=dropout,
            noise_inputs=noise,
            precision=precision,
        )
        decoder = ConvDecoder(inputs, channels[::-1], data_dim, image_shape=shape, precision=precision)
    else:
        hidden = settings.hidden
        encoder = MLP(
            data_dim + noise,
            hidden,
            outputs,
            input_dropout=dropout,
            hidden_dropout=settings.hidden_dropout,
            noise_inputs=noise,
            precision=precision,
        )
        decoder = MLP(inputs, hidden[::-1], data_dim, precision=precision, last_in_float32=False)
    return encoder, decoder


def named_prior(settings: FixedPriorSettings) -> tuple[Prior, float]:
    """The prior that the settings name, and its standard deviation: the root mean square of its coordinates.

    Raises:
        ValueError: it does not fit code_size, or the labels.
    """
    name, code_size, std = settings.prior, settings.code_size, settings.prior_std
    if name in ("mixture", "swiss_roll") and code_size != 2:
        raise ValueError(f"code_size: got {code_size}, expected 2 for prior='{name}'")
    if settings.prior_margin and name != "swiss_roll":
        raise ValueError(f"prior_margin: got {settings.prior_margin!r}, expected 0 for prior='{name}'")
    prior: Prior
    if name == "gaussian":
        prior = Gaussian(code_size, std)
    elif name == "uniform":
        prior = Uniform(code_size, -math.sqrt(3) * std, math.sqrt(3) * std)
    elif name == "mixture":
        prior, std = GaussianMixture(), math.sqrt((4**2 + 1**2 + 0.2**2) / 2)  # the ring's radius, a component's axes
    else:
        # E |z|^2 = radius^2 / 2 in two coordinates
        prior, std = SwissRoll(num_classes=settings.num_classes, margin=settings.prior_margin), 1.5
    if settings.labels == "regularizer":
        if prior.num_classes == 0:
            raise ValueError(
                f"labels: got 'regularizer' with prior='{name}', which has no classes; expected prior='mixture' or "
                "'swiss_roll', or labels='decoder'"
            )
        if prior.num_classes != settings.num_classes:
            raise ValueError(
                f"num_classes: got {settings.num_classes}, expected {prior.num_classes} for prior='{name}'"
            )
    return prior, std
