"""The papers' models as compositions: defaults are the tuned recipes, `.paper()` the papers' own settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..ops.arguments import DEFAULT_BANDWIDTHS, Estimator
from .adversaries import Adversarial, FourierAdversary
from .base import Model, keywords, named_prior, regularizer_classes
from .gmmn import GMMNAE
from .regularizers import KL, MMD, ClosedFormMMD, Regularizer

HIDDEN = (1024, 512, 216)


class MMDAE(Model):
    """MMD autoencoder: reconstruction + lambda MMD^2(codes, prior), the WAE-MMD of Tolstikhin et al. (2018).

    The MMD-AE of table 1 of the DS-AAE paper (Azarafrooz 2018). The estimator is equation 5 of Gretton et al. (2012),
    with closed_form its expectation over the draws. Tuned: closed form, bandwidths around the prior's scale. Paper:
    prior draws, bandwidths 2 to 80, code size 4.

    Args:
        data_dim: number of pixels.
        closed_form: compare with the prior itself instead of with draws from it, which prior="swiss_roll" and
            labels="regularizer" need.
        estimator: "biased" or "unbiased", see `MMD`.
        bandwidths: standard deviations of the Gaussian kernels, which are averaged.
        posterior: see `Autoencoder`. "gaussian" needs a smaller weight (on the digits 3 in place of 300): untrained it
            is nearly N(0, I), which a large weight takes for a perfect match, and the codes stay empty.
        The others: see `Model`, `Autoencoder` and `MLP`.
    """

    _paper = {
        "bandwidths": DEFAULT_BANDWIDTHS,
        "closed_form": False,
        "regularizer_weight": 6.0,
        "input_dropout": 0.2,
        "learning_rate": 1e-3,
    }

    def __init__(
        self,
        data_dim: int = 784,
        *,
        code_size: int = 4,
        hidden: Sequence[int] = HIDDEN,
        input_dropout: float = 0.1,
        prior_std: float = 1.0,
        posterior: str = "deterministic",
        noise_size: int | None = None,
        denoising: float = 0.0,
        bandwidths: Sequence[float] = (0.5, 1.0, 2.0, 4.0),
        closed_form: bool = True,
        estimator: Estimator = "biased",
        regularizer_weight: float = 1000.0,
        learning_rate: float = 2e-3,
        precision: str = "auto",
        **shared: Any,
    ) -> None:
        settings = keywords(locals())
        prior, _ = named_prior(settings)
        bandwidths, classes = settings["bandwidths"], regularizer_classes(settings)
        average = [1.0 / len(bandwidths)] * len(bandwidths)
        regularizer: Regularizer
        if not closed_form:
            regularizer = MMD(bandwidths, estimator=estimator, kernel_weights=average, num_classes=classes)
        elif settings["prior"] == "swiss_roll" or classes:
            what = 'prior="swiss_roll"' if settings["prior"] == "swiss_roll" else 'labels="regularizer"'
            raise ValueError(f"closed_form: got true, but there is none for {what}; set closed_form=false")
        else:
            regularizer = ClosedFormMMD(bandwidths, estimator=estimator, kernel_weights=average)
        super().__init__(data_dim, settings, prior, regularizer)


class DSAAE(Model):
    """Doubly stochastic adversarial autoencoder (Azarafrooz 2018): the adversary is a function in random features.

    In place of the AAE's discriminator stands f(z) = alpha zeta . phi(z), zeta = mean phi(prior) - mean phi(codes), phi
    the random Fourier features of a Gaussian kernel (Rahimi and Recht 2007). With mode="doubly_stochastic" every batch
    is a functional gradient step (Dai et al. 2014, algorithm 1). Paper: code size 6, one bandwidth of 1, first-order
    terms.

    Args:
        data_dim: number of pixels.
        bandwidths, features, mode, adversary_rate, shrinkage, blocks, feature_seed: of `FourierAdversary`. With
            labels="regularizer" the classes' shares make its loss smaller: raise regularizer_weight by num_classes.
        posterior: see `Autoencoder`; for "gaussian" see `MMDAE`.
        The others: see `Model`, `Autoencoder` and `MLP`.
    """

    _paper = {
        "code_size": 6,
        "bandwidths": (1.0,),
        "features": 500,
        "regularizer_weight": 1000.0,
        "input_dropout": 0.2,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
    }

    def __init__(
        self,
        data_dim: int = 784,
        *,
        code_size: int = 4,
        hidden: Sequence[int] = HIDDEN,
        input_dropout: float = 0.1,
        prior_std: float = 1.0,
        posterior: str = "deterministic",
        noise_size: int | None = None,
        denoising: float = 0.0,
        bandwidths: Sequence[float] = (0.5, 1.0, 2.0, 4.0, 8.0),
        features: int = 480,
        mode: str = "first_order",
        adversary_rate: float = 0.05,
        shrinkage: float = 0.0,
        blocks: int = 10,
        feature_seed: int = 0,
        regularizer_weight: float = 2000.0,
        warmup_steps: int = 100,
        learning_rate: float = 2e-3,
        precision: str = "auto",
        **shared: Any,
    ) -> None:
        settings = keywords(locals())
        prior, _ = named_prior(settings)
        regularizer = FourierAdversary(
            code_size,
            count=features,
            bandwidths=settings["bandwidths"],
            mode=mode,
            learning_rate=adversary_rate,
            shrinkage=shrinkage,
            blocks=blocks,
            seed=feature_seed,
            num_classes=regularizer_classes(settings),
        )
        super().__init__(data_dim, settings, prior, regularizer, warmup_steps=warmup_steps)


class AAE(Model):
    """Adversarial autoencoder (Makhzani et al. 2015, section 2): a discriminator network between codes and prior draws.

    The paper's two phases, reconstruction and regularization, in one step with a weight between them, or one after the
    other with generator_learning_rate. Paper: two layers of 1000 units everywhere, squared error, code size 8, prior
    std 5, two phases per batch.

    Args:
        data_dim: number of pixels.
        discriminator: hidden widths of the discriminator.
        reconstruction, adversary_learning_rate, adversary_beta1, generator_learning_rate: see `Autoencoder`.
        The others: see `Model`, `Autoencoder` and `MLP`.
    """

    _paper = {
        "code_size": 8,
        "hidden": (1000, 1000),
        "discriminator": (1000, 1000),
        "reconstruction": "squared_error",
        "regularizer_weight": 1.0,
        "learning_rate": 5e-4,
        "adversary_learning_rate": 5e-4,
        "adversary_beta1": 0.9,
        "generator_learning_rate": 5e-4,
    }

    def __init__(
        self,
        data_dim: int = 784,
        *,
        code_size: int = 4,
        hidden: Sequence[int] = HIDDEN,
        discriminator: Sequence[int] = (256, 256),
        input_dropout: float = 0.0,
        prior_std: float = 5.0,
        posterior: str = "deterministic",
        noise_size: int | None = None,
        denoising: float = 0.0,
        reconstruction: str = "cross_entropy",
        regularizer_weight: float = 10.0,
        learning_rate: float = 2e-3,
        adversary_learning_rate: float = 1e-3,
        adversary_beta1: float = 0.5,
        generator_learning_rate: float | None = None,
        precision: str = "auto",
        **shared: Any,
    ) -> None:
        settings = keywords(locals())
        prior, scale = named_prior(settings)
        classes = regularizer_classes(settings)
        regularizer = Adversarial.mlp(
            code_size, settings["discriminator"], scale=scale, precision=precision, num_classes=classes
        )
        super().__init__(
            data_dim,
            settings,
            prior,
            regularizer,
            reconstruction=reconstruction,
            adversary_learning_rate=adversary_learning_rate,
            adversary_beta1=adversary_beta1,
            generator_learning_rate=generator_learning_rate,
        )


class VAE(Model):
    """Variational autoencoder (Kingma and Welling 2014, equation 10): Gaussian posterior, KL divergence to the prior.

    Args:
        data_dim: number of pixels.
        posterior: "gaussian": the divergence needs its moments.
        The others: see `Model`, `Autoencoder` and `MLP`.
    """

    _paper = {"hidden": (500,), "code_size": 20}

    def __init__(
        self,
        data_dim: int = 784,
        *,
        code_size: int = 8,
        hidden: Sequence[int] = HIDDEN,
        input_dropout: float = 0.0,
        prior_std: float = 1.0,
        posterior: str = "gaussian",
        denoising: float = 0.0,
        regularizer_weight: float = 1.0,
        learning_rate: float = 1e-3,
        precision: str = "auto",
        **shared: Any,
    ) -> None:
        settings = keywords(locals())
        if settings["prior"] != "gaussian":
            raise ValueError(f"prior: got {settings['prior']!r}, expected 'gaussian': KL has a closed form for it only")
        if settings["labels"] == "regularizer":
            raise ValueError("labels: got 'regularizer', but KL takes none; expected 'none' or 'decoder'")
        prior, _ = named_prior(settings)
        super().__init__(data_dim, settings, prior, KL())


MODELS: dict[str, type[Model]] = {"aae": AAE, "mmd-ae": MMDAE, "ds-aae": DSAAE, "vae": VAE, "gmmn-ae": GMMNAE}
