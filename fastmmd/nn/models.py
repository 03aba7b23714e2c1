"""The papers' models as compositions: defaults are the tuned recipes, `.paper()` the papers' own settings."""

from __future__ import annotations

from typing import ClassVar, Self, Unpack

from ..ops.arguments import DEFAULT_BANDWIDTHS, check_int
from .adversaries import Adversarial, FourierAdversary
from .base import FixedPriorModel, GenerativeNetworkModel, Model, named_prior
from .gmmn import GMMNAE
from .networks import MLP
from .regularizers import KL, MMD, ClosedFormMMD, Regularizer
from .settings import (
    AAEOptions,
    AAESettings,
    DSAAEOptions,
    DSAAESettings,
    FixedPriorOptions,
    GANOptions,
    GANSettings,
    GMMNOptions,
    GMMNSettings,
    MMDAEOptions,
    MMDAESettings,
    VAESettings,
)


class MMDAE(FixedPriorModel):
    """MMD autoencoder: reconstruction + lambda MMD^2(codes, prior), the WAE-MMD of Tolstikhin et al. (2018).

    The MMD-AE of table 1 of the DS-AAE paper (Azarafrooz 2018). The estimator is equation 5 of Gretton et al. (2012),
    with closed_form its expectation over the draws. Tuned: closed form, bandwidths around the prior's scale. Paper:
    prior draws, bandwidths 2 to 80, code size 4.

    Args:
        data_dim: number of pixels.
        closed_form: compare with the prior itself instead of with draws from it, which prior="swiss_roll" and
            labels="regularizer" require.
        estimator: "biased" or "unbiased", see `MMD`.
        bandwidths: standard deviations of the Gaussian kernels, which are averaged.
        shape_bandwidths, shape_weight: those of a second, unbiased MMD with draws, for all codes whatever their class,
            and its weight relative to the first: `shape` of `Autoencoder`, without bandwidths none. With wide
            `bandwidths` the first places the classes, with narrow ones the second makes all of them fill the prior.
        posterior: see `Autoencoder`. "gaussian" needs a smaller weight (on the digits 3 instead of 300): untrained it
            is nearly N(0, I), which with a large weight counts as a perfect match, and the codes stay uninformative.
        The others, and all defaults: see `settings.MMDAESettings`.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    Settings: ClassVar[type[MMDAESettings]] = MMDAESettings

    def __init__(self, data_dim: int = 784, **options: Unpack[MMDAEOptions]) -> None:
        settings = MMDAESettings(**options)
        prior, _ = named_prior(settings)
        bandwidths, estimator, classes = settings.bandwidths, settings.estimator, settings.regularizer_classes
        average = [1.0 / len(bandwidths)] * len(bandwidths)
        regularizer: Regularizer
        if not settings.closed_form:
            regularizer = MMD(bandwidths, estimator=estimator, kernel_weights=average, num_classes=classes)
        elif settings.prior == "swiss_roll" or classes:
            what = 'prior="swiss_roll"' if settings.prior == "swiss_roll" else 'labels="regularizer"'
            raise ValueError(f"closed_form: got true, but there is none for {what}; set closed_form=false")
        else:
            regularizer = ClosedFormMMD(bandwidths, estimator=estimator, kernel_weights=average)
        shape = None
        if narrow := settings.shape_bandwidths:
            weights = [1.0 / len(narrow)] * len(narrow)
            shape = MMD(narrow, estimator="unbiased", kernel_weights=weights)
        super().__init__(data_dim, settings, prior, regularizer, shape=shape, shape_weight=settings.shape_weight)

    @classmethod
    def paper(cls, data_dim: int = 784, **options: Unpack[MMDAEOptions]) -> Self:
        """The paper's settings, with options over them. Its batch size is 1000."""
        paper: MMDAEOptions = {
            "bandwidths": DEFAULT_BANDWIDTHS,
            "closed_form": False,
            "regularizer_weight": 6.0,
            "input_dropout": 0.2,
            "learning_rate": 1e-3,
            "precision": "float32",
        }
        return cls(data_dim, **(paper | options))


class DSAAE(FixedPriorModel):
    """Doubly stochastic adversarial autoencoder (Azarafrooz 2018): the adversary is a function in random features.

    f(z) = alpha zeta . phi(z) replaces the discriminator of the AAE: zeta = mean phi(prior) - mean phi(codes), phi the
    random Fourier features of a Gaussian kernel (Rahimi and Recht 2007). Every batch sees fresh features; with
    mode="first_order" they stay and alpha is learned, with mode="doubly_stochastic" every batch is a functional
    gradient step (Dai et al. 2014, algorithm 1). Paper: code size 6, one bandwidth of 1, first-order terms.

    Args:
        data_dim: number of pixels.
        bandwidths, features, mode, adversary_rate, shrinkage, blocks, feature_seed: `bandwidths`, `count`, `mode`,
            `learning_rate`, `shrinkage`, `blocks` and `seed` of `FourierAdversary`. With labels="regularizer" the
            shares of the classes make its loss smaller: raise regularizer_weight by num_classes.
        warmup_steps: see `Autoencoder`. posterior: see `Autoencoder`; for "gaussian" see `MMDAE`.
        The others, and all defaults: see `settings.DSAAESettings`.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    Settings: ClassVar[type[DSAAESettings]] = DSAAESettings

    def __init__(self, data_dim: int = 784, **options: Unpack[DSAAEOptions]) -> None:
        settings = DSAAESettings(**options)
        prior, _ = named_prior(settings)
        regularizer = FourierAdversary(
            settings.code_size,
            count=settings.features,
            bandwidths=settings.bandwidths,
            mode=settings.mode,
            learning_rate=settings.adversary_rate,
            shrinkage=settings.shrinkage,
            blocks=settings.blocks,
            seed=settings.feature_seed,
            num_classes=settings.regularizer_classes,
        )
        super().__init__(data_dim, settings, prior, regularizer, warmup_steps=settings.warmup_steps)

    @classmethod
    def paper(cls, data_dim: int = 784, **options: Unpack[DSAAEOptions]) -> Self:
        """The paper's settings, with options over them. Its batch size is 1000."""
        paper: DSAAEOptions = {
            "code_size": 6,
            "bandwidths": (1.0,),
            "features": 500,
            "mode": "first_order",
            "regularizer_weight": 1000.0,
            "input_dropout": 0.2,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "precision": "float32",
        }
        return cls(data_dim, **(paper | options))


class AAE(FixedPriorModel):
    """Adversarial autoencoder (Makhzani et al. 2015, section 2): a discriminator network between codes and prior draws.

    The paper's two phases, reconstruction and regularization, in one step with a weight between them, or one after the
    other with generator_learning_rate. Paper: two layers of 1000 units everywhere, squared error, code size 8, prior
    std 5, two phases per batch.

    Args:
        data_dim: number of pixels.
        discriminator: hidden widths of the discriminator.
        adversary_learning_rate, adversary_beta1, generator_learning_rate: see `Autoencoder`.
        adversary_noise: `noise` of `Adversarial`, for priors of parts that lie apart.
        The others, and all defaults: see `settings.AAESettings`.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    Settings: ClassVar[type[AAESettings]] = AAESettings

    def __init__(self, data_dim: int = 784, **options: Unpack[AAEOptions]) -> None:
        settings = AAESettings(**options)
        prior, scale = named_prior(settings)
        regularizer = Adversarial.mlp(
            settings.code_size,
            settings.discriminator,
            scale=scale,
            noise=settings.adversary_noise,
            precision=settings.precision,
            num_classes=settings.regularizer_classes,
        )
        super().__init__(
            data_dim,
            settings,
            prior,
            regularizer,
            adversary_learning_rate=settings.adversary_learning_rate,
            adversary_beta1=settings.adversary_beta1,
            generator_learning_rate=settings.generator_learning_rate,
        )

    @classmethod
    def paper(cls, data_dim: int = 784, **options: Unpack[AAEOptions]) -> Self:
        """The paper's settings, with options over them. Its batch size is 100; its learning rates are not stated."""
        paper: AAEOptions = {
            "code_size": 8,
            "hidden": (1000, 1000),
            "discriminator": (1000, 1000),
            "reconstruction": "squared_error",
            "regularizer_weight": 1.0,
            "learning_rate": 5e-4,
            "adversary_learning_rate": 5e-4,
            "adversary_beta1": 0.9,
            "generator_learning_rate": 5e-4,
            "precision": "float32",
        }
        return cls(data_dim, **(paper | options))


class VAE(FixedPriorModel):
    """Variational autoencoder (Kingma and Welling 2014, equation 10): Gaussian posterior, KL divergence to the prior.

    Args:
        data_dim: number of pixels.
        posterior: "gaussian": the divergence needs its moments.
        The others, and all defaults: see `settings.VAESettings`.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    Settings: ClassVar[type[VAESettings]] = VAESettings

    def __init__(self, data_dim: int = 784, **options: Unpack[FixedPriorOptions]) -> None:
        settings = VAESettings(**options)
        prior, _ = named_prior(settings)
        super().__init__(data_dim, settings, prior, KL())

    @classmethod
    def paper(cls, data_dim: int = 784, **options: Unpack[FixedPriorOptions]) -> Self:
        """The paper's settings, with options over them. Its batch size is 100."""
        paper: FixedPriorOptions = {"hidden": (500,), "code_size": 20, "precision": "float32"}
        return cls(data_dim, **(paper | options))


class GAN(GenerativeNetworkModel):
    """Generative adversarial network (Goodfellow et al. 2014): a discriminator network between generated and real data.

    The generator descends the non-saturating loss, -log D(generated).

    Args:
        data_dim: number of pixels.
        discriminator: hidden widths of the discriminator.
        input_dropout, hidden_dropout: of the discriminator.
        beta1: Adam's, for generator and discriminator. learning_rate, adversary_learning_rate: Adam's, for each.
        adversary_noise: `noise` of `Adversarial`, in units of the pixels.
        The others, and all defaults: see `settings.GANSettings`.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    Settings: ClassVar[type[GANSettings]] = GANSettings

    def __init__(self, data_dim: int = 784, **options: Unpack[GANOptions]) -> None:
        data_dim, settings = check_int("data_dim", data_dim), GANSettings(**options)
        discriminator = MLP(
            data_dim,
            settings.discriminator,
            1,
            input_dropout=settings.input_dropout,
            hidden_dropout=settings.hidden_dropout,
            precision=settings.precision,
        )
        super().__init__(
            data_dim,
            settings,
            Adversarial(discriminator, noise=settings.adversary_noise),
            beta1=settings.beta1,
            adversary_learning_rate=settings.adversary_learning_rate,
            adversary_beta1=settings.beta1,
        )

    @classmethod
    def paper(cls, data_dim: int = 784, **options: Unpack[GANOptions]) -> Self:
        """The sizes in the code that the paper refers to, with options over them. Its batch size is 100.

        There the discriminator has 240 maxout units of five linear ones in each layer, the noise is Gaussian, and both
        networks are trained by gradient descent with momentum; here it has as many rectified units as linear ones
        there, and the noise is uniform.
        """
        paper: GANOptions = {
            "generator": (1200, 1200),
            "noise_size": 100,
            "batch_norm": False,
            "discriminator": (1200, 1200),
            "input_dropout": 0.2,
            "hidden_dropout": 0.5,
            "adversary_noise": 0.0,
            "precision": "float32",
        }
        return cls(data_dim, **(paper | options))


class GMMN(GenerativeNetworkModel):
    """Generative moment matching network (Li, Swersky and Zemel 2015, section 3): the MMD of generated and real data.

    The generator descends MMD(generated, batch), the square root of their `mmd2`. The batches have to be large.

    Args:
        data_dim: number of pixels.
        bandwidths: standard deviations of the Gaussian kernels, which are averaged.
        The others, and all defaults: see `settings.GMMNSettings`.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    Settings: ClassVar[type[GMMNSettings]] = GMMNSettings

    def __init__(self, data_dim: int = 784, **options: Unpack[GMMNOptions]) -> None:
        data_dim, settings = check_int("data_dim", data_dim), GMMNSettings(**options)
        bandwidths = settings.bandwidths
        average = [1.0 / len(bandwidths)] * len(bandwidths)
        super().__init__(data_dim, settings, MMD(bandwidths, kernel_weights=average), root=True)

    @classmethod
    def paper(cls, data_dim: int = 784, **options: Unpack[GMMNOptions]) -> Self:
        """The paper's settings, with options over them. Its batch size is 1000; it descends with momentum."""
        paper: GMMNOptions = {
            "generator": (64, 256, 256, 1024),
            "noise_size": 10,
            "batch_norm": False,
            "bandwidths": DEFAULT_BANDWIDTHS,
            "precision": "float32",
        }
        return cls(data_dim, **(paper | options))


MODELS: dict[str, type[Model]] = {
    "aae": AAE,
    "mmd-ae": MMDAE,
    "ds-aae": DSAAE,
    "vae": VAE,
    "gmmn-ae": GMMNAE,
    "gan": GAN,
    "gmmn": GMMN,
}
