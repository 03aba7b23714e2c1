"""The settings of the models: plain numbers and names, which a recipe's TOML table fills field by field.

A model has two classes here. `MMDAESettings` holds the fields, their defaults (the tuned recipe) and their checks.
`MMDAEOptions` repeats only names and types: it annotates the keyword arguments of `MMDAE(...)` and `MMDAE.paper(...)`
(PEP 692), so that editors complete them and mypy checks them, and so that no default is written twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict, get_args

from ..ops.arguments import Estimator, check_choice, check_int, check_number, positive_floats
from .adversaries import Mode
from .autoencoders import Posterior
from .inputs import Output, Reconstruction
from .networks import Precision, check_widths
from .steps import OptimizerName

PriorName = Literal["gaussian", "mixture", "swiss_roll", "uniform"]
Labels = Literal["none", "regularizer", "decoder"]
Network = Literal["mlp", "convolutional"]


class ModelOptions(TypedDict, total=False):
    output: Output
    learning_rate: float
    precision: Precision


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What all models share.

    Attributes:
        output, learning_rate: see `Autoencoder` and `GenerativeNetwork`.
        precision: see `MLP`.

    Raises:
        ValueError, TypeError: naming the field. The networks and models check what is theirs.
    """

    output: Output = "sigmoid"
    learning_rate: float = 2e-3
    precision: Precision = "auto"

    def keywords(self) -> dict[str, Any]:
        """The keyword arguments that make the same settings, without those that are None, which TOML cannot hold."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def _keep(self, **checked: object) -> None:
        """Fields in the form that they are compared and saved in: tuples for lists, ints for those of NumPy."""
        for name, value in checked.items():
            object.__setattr__(self, name, value)


class AutoencoderModelOptions(ModelOptions, total=False):
    code_size: int
    hidden: Sequence[int]
    input_dropout: float
    hidden_dropout: float
    denoising: float
    reconstruction: Reconstruction
    optimizer: OptimizerName
    beta1: float
    standardize: bool


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings(ModelSettings):
    """What all autoencoders share.

    Attributes:
        code_size: dimension of the codes.
        hidden: widths of the hidden layers of encoder and, reversed, decoder.
        input_dropout, hidden_dropout: probability of dropping a pixel at the encoder's input, and a unit of its hidden
            layers (fully connected ones only), while training.
        denoising, reconstruction, optimizer, beta1, standardize: see `Autoencoder`.
    """

    code_size: int = 4
    hidden: Sequence[int] = (1024, 512, 216)
    input_dropout: float = 0.1
    hidden_dropout: float = 0.0
    denoising: float = 0.0
    reconstruction: Reconstruction = "cross_entropy"
    optimizer: OptimizerName = "adam"
    beta1: float = 0.9
    standardize: bool = False

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, get_args(OptimizerName))
        self._keep(code_size=check_int("code_size", self.code_size), hidden=check_widths("hidden", self.hidden))


class FixedPriorOptions(AutoencoderModelOptions, total=False):
    prior: PriorName
    prior_std: float
    prior_margin: float
    posterior: Posterior
    noise_size: int | None
    labels: Labels
    num_classes: int
    network: Network
    channels: Sequence[int]
    image_shape: Sequence[int] | None
    shift: int
    regularizer_weight: float


@dataclass(frozen=True, kw_only=True)
class FixedPriorSettings(AutoencoderSettings):
    """What the models share whose prior is chosen, not learned.

    Attributes:
        prior: "gaussian": N(0, prior_std^2 I). "uniform": a centered box whose coordinates have that deviation.
            "mixture": ten components on a ring, and "swiss_roll", both as in the figures of the AAE paper, in the plane
            (code_size = 2), at a scale of their own: standard deviations 2.9 and 1.5; prior_std has no effect.
        prior_margin: `margin` of the swiss roll.
        posterior, noise_size, regularizer_weight: see `Autoencoder`.
        labels: what sees the labels of `training_step`: "none", "regularizer" (class i goes to the i-th part of the
            prior, a component of the mixture or a stretch of the roll) or "decoder" (the code keeps the style).
        num_classes: of the labels; the mixture has ten.
        network: "mlp" with the widths `hidden`, or "convolutional" with `channels`: see `MLP`, `ConvEncoder` and
            `ConvDecoder`.
        image_shape: for convolutional networks and shifts: (H, W), or (C, H, W) of images in color; None: square gray
            ones.
        shift: see `Autoencoder`.
    """

    prior: PriorName = "gaussian"
    prior_std: float = 1.0
    prior_margin: float = 0.0
    posterior: Posterior = "deterministic"
    noise_size: int | None = None
    labels: Labels = "none"
    num_classes: int = 10
    network: Network = "mlp"
    channels: Sequence[int] = (64, 128, 256)
    image_shape: Sequence[int] | None = None
    shift: int = 0
    regularizer_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("prior", self.prior, get_args(PriorName))
        check_choice("posterior", self.posterior, get_args(Posterior))
        check_choice("labels", self.labels, get_args(Labels))
        check_choice("network", self.network, get_args(Network))
        check_number("prior_std", self.prior_std)
        if self.network == "convolutional" and self.hidden_dropout:
            raise ValueError(f"hidden_dropout: got {self.hidden_dropout!r}, expected 0 with network='convolutional'")
        self._keep(
            num_classes=check_int("num_classes", self.num_classes),
            channels=check_widths("channels", self.channels),
        )
        if self.image_shape is not None:
            self._keep(image_shape=check_widths("image_shape", self.image_shape))
        if self.noise_size is not None:
            self._keep(noise_size=check_int("noise_size", self.noise_size))
        elif self.posterior == "implicit":
            self._keep(noise_size=self.code_size)

    @property
    def regularizer_classes(self) -> int:
        """Number of classes that the regularizer sees."""
        return self.num_classes if self.labels == "regularizer" else 0

    @property
    def decoder_classes(self) -> int:
        """Number of classes that the decoder sees."""
        return self.num_classes if self.labels == "decoder" else 0


class MMDAEOptions(FixedPriorOptions, total=False):
    bandwidths: Sequence[float]
    closed_form: bool
    estimator: Estimator
    shape_bandwidths: Sequence[float]
    shape_weight: float


@dataclass(frozen=True, kw_only=True)
class MMDAESettings(FixedPriorSettings):
    """Settings of `MMDAE`, which describes the fields."""

    regularizer_weight: float = 1000.0
    bandwidths: Sequence[float] = (0.5, 1.0, 2.0, 4.0)
    closed_form: bool = True
    estimator: Estimator = "biased"
    shape_bandwidths: Sequence[float] = ()
    shape_weight: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep(bandwidths=positive_floats("bandwidths", self.bandwidths))
        shape = self.shape_bandwidths
        self._keep(shape_bandwidths=positive_floats("shape_bandwidths", shape) if shape else ())
        if not isinstance(self.closed_form, bool):
            raise TypeError(f"closed_form: got {self.closed_form!r}, expected true or false")


class DSAAEOptions(FixedPriorOptions, total=False):
    bandwidths: Sequence[float]
    features: int
    mode: Mode
    adversary_rate: float
    shrinkage: float
    blocks: int
    feature_seed: int
    warmup_steps: int


@dataclass(frozen=True, kw_only=True)
class DSAAESettings(FixedPriorSettings):
    """Settings of `DSAAE`, which describes the fields."""

    regularizer_weight: float = 1000.0
    bandwidths: Sequence[float] = (0.5, 1.0, 2.0, 4.0, 8.0)
    features: int = 480
    mode: Mode = "fresh"
    adversary_rate: float = 0.05
    shrinkage: float = 0.0
    blocks: int = 10
    feature_seed: int = 0
    warmup_steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep(bandwidths=positive_floats("bandwidths", self.bandwidths))
        check_number("adversary_rate", self.adversary_rate)
        self._keep(
            features=check_int("features", self.features), feature_seed=check_int("feature_seed", self.feature_seed, 0)
        )
        if self.features % len(self.bandwidths):
            count = len(self.bandwidths)
            raise ValueError(f"features: got {self.features}, expected a multiple of the {count} bandwidths")


class AAEOptions(FixedPriorOptions, total=False):
    discriminator: Sequence[int]
    adversary_learning_rate: float
    adversary_beta1: float
    adversary_noise: float
    generator_learning_rate: float | None


@dataclass(frozen=True, kw_only=True)
class AAESettings(FixedPriorSettings):
    """Settings of `AAE`, which describes the fields."""

    input_dropout: float = 0.0
    prior_std: float = 5.0
    regularizer_weight: float = 10.0
    discriminator: Sequence[int] = (256, 256)
    adversary_learning_rate: float = 1e-3
    adversary_beta1: float = 0.5
    adversary_noise: float = 0.0
    generator_learning_rate: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("adversary_noise", self.adversary_noise, zero=True)
        self._keep(discriminator=check_widths("discriminator", self.discriminator))


@dataclass(frozen=True, kw_only=True)
class VAESettings(FixedPriorSettings):
    """Settings of `VAE`, which describes the fields."""

    code_size: int = 8
    input_dropout: float = 0.0
    learning_rate: float = 1e-3
    posterior: Posterior = "gaussian"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior != "gaussian":
            raise ValueError(f"prior: got {self.prior!r}, expected 'gaussian': KL has a closed form for it only")
        if self.labels == "regularizer":
            raise ValueError("labels: got 'regularizer', but KL takes none; expected 'none' or 'decoder'")


class GMMNAEOptions(AutoencoderModelOptions, total=False):
    generator: Sequence[int]
    noise_size: int
    autoencoder_share: float
    bandwidths: Sequence[float]
    draws: int
    prior_learning_rate: float


@dataclass(frozen=True, kw_only=True)
class GMMNAESettings(AutoencoderSettings):
    """Settings of `GMMNAE`, which describes the fields."""

    code_size: int = 5
    generator: Sequence[int] = (256, 256, 256)
    noise_size: int = 5
    autoencoder_share: float = 0.75
    bandwidths: Sequence[float] = (0.1, 0.2, 0.4, 0.8)
    draws: int = 1000
    prior_learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep(
            generator=check_widths("generator", self.generator),
            bandwidths=positive_floats("bandwidths", self.bandwidths),
            noise_size=check_int("noise_size", self.noise_size),
            draws=check_int("draws", self.draws),
        )
        check_number("autoencoder_share", self.autoencoder_share, below=1)
        check_number("prior_learning_rate", self.prior_learning_rate)


class GenerativeNetworkModelOptions(ModelOptions, total=False):
    generator: Sequence[int]
    noise_size: int
    batch_norm: bool


@dataclass(frozen=True, kw_only=True)
class GenerativeNetworkSettings(ModelSettings):
    """What the models share that are a generator alone.

    Attributes:
        generator: hidden widths of the generator.
        noise_size: dimension of its noise.
        batch_norm: of the generator, see `MLP`. Without it a GAN soon draws ones alone.
    """

    generator: Sequence[int]
    noise_size: int = 10
    batch_norm: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.batch_norm, bool):
            raise TypeError(f"batch_norm: got {self.batch_norm!r}, expected True or False")
        self._keep(
            generator=check_widths("generator", self.generator), noise_size=check_int("noise_size", self.noise_size)
        )


class GANOptions(GenerativeNetworkModelOptions, total=False):
    discriminator: Sequence[int]
    input_dropout: float
    hidden_dropout: float
    beta1: float
    adversary_learning_rate: float
    adversary_noise: float


@dataclass(frozen=True, kw_only=True)
class GANSettings(GenerativeNetworkSettings):
    """Settings of `GAN`, which describes the fields."""

    generator: Sequence[int] = (512, 1024)
    noise_size: int = 32
    learning_rate: float = 1e-3
    discriminator: Sequence[int] = (512, 256)
    input_dropout: float = 0.0
    hidden_dropout: float = 0.3
    beta1: float = 0.5
    adversary_learning_rate: float = 1e-3
    adversary_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("adversary_noise", self.adversary_noise, zero=True)
        self._keep(discriminator=check_widths("discriminator", self.discriminator))


class GMMNOptions(GenerativeNetworkModelOptions, total=False):
    bandwidths: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class GMMNSettings(GenerativeNetworkSettings):
    """Settings of `GMMN`, which describes the fields."""

    generator: Sequence[int] = (1024, 1024)
    learning_rate: float = 2e-3
    bandwidths: Sequence[float] = (0.5, 1.0, 2.0, 5.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep(bandwidths=positive_floats("bandwidths", self.bandwidths))
