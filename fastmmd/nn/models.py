"""The papers' models as compositions: defaults are the tuned recipes, `.paper()` the papers' own settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from ..ops.arguments import DEFAULT_BANDWIDTHS, check_int, check_number, positive_floats
from ..priors import Gaussian
from .adversaries import Adversarial, FourierAdversary
from .autoencoders import Autoencoder
from .networks import MLP, check_widths
from .regularizers import KL, MMD, ClosedFormMMD, Regularizer

HIDDEN = (1024, 512, 216)


class _Model(Autoencoder):
    """An autoencoder of fully connected networks with a N(0, prior_std^2 I) prior, made from numbers alone."""

    _paper: dict[str, Any] = {}

    def __init__(
        self,
        data_dim: int,
        regularizer: Regularizer,
        settings: dict[str, Any],
        **options: Any,
    ) -> None:
        code_size, hidden = settings["code_size"], settings["hidden"]
        posterior, precision = settings["posterior"], settings["precision"]
        noise = settings.setdefault("noise_size", code_size) if posterior == "implicit" else 0
        outputs = code_size * (2 if posterior == "gaussian" else 1)
        super().__init__(
            MLP(
                data_dim + noise,
                hidden,
                outputs,
                input_dropout=settings["input_dropout"],
                noise_inputs=noise,
                precision=precision,
            ),
            MLP(code_size, hidden[::-1], data_dim, precision=precision, last_in_float32=False),
            Gaussian(code_size, settings["prior_std"]),
            regularizer,
            posterior=posterior,
            noise_size=settings.get("noise_size"),
            denoising=settings["denoising"],
            regularizer_weight=settings["regularizer_weight"],
            learning_rate=settings["learning_rate"],
            **options,
        )
        self.data_dim, self._settings = data_dim, settings

    def settings(self) -> dict[str, Any]:
        """The keyword arguments that make this model again."""
        return dict(self._settings)

    @classmethod
    def paper(cls, data_dim: int = 784, **overrides: Any) -> Self:
        """The paper's settings, everything overridable. Its batch size is 1000 (AAE: 100)."""
        return cls(data_dim, **({"precision": "float32"} | cls._paper | overrides))


class MMDAE(_Model):
    """MMD autoencoder: squared MMD between the codes and the prior.

    Tuned: closed form, bandwidths around the prior's scale. Paper: prior draws, bandwidths 2 to 80, code size 4.

    Args:
        data_dim: number of pixels.
        closed_form: compare with the prior itself instead of with draws from it.
        bandwidths: standard deviations of the Gaussian kernels, which are averaged.
        posterior: see `Autoencoder`. "gaussian" needs a smaller weight (on the digits 3 in place of 300): untrained it
            is nearly N(0, I), which a large weight takes for a perfect match, and the codes stay empty.
        The others: see `Autoencoder` and `MLP`.
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
        regularizer_weight: float = 1000.0,
        learning_rate: float = 2e-3,
        precision: str = "auto",
    ) -> None:
        settings = _keywords(locals())
        bandwidths = settings["bandwidths"]
        average = [1.0 / len(bandwidths)] * len(bandwidths)
        regularizer = (ClosedFormMMD if closed_form else MMD)(bandwidths, kernel_weights=average)
        super().__init__(data_dim, regularizer, settings)


class DSAAE(_Model):
    """Doubly stochastic adversarial autoencoder: the adversary is a function in random Fourier features.

    Paper: code size 6, one bandwidth of 1, first-order terms.

    Args:
        data_dim: number of pixels.
        bandwidths, features, mode, adversary_rate, shrinkage, blocks, feature_seed: of `FourierAdversary`.
        posterior: see `Autoencoder`; for "gaussian" see `MMDAE`.
        The others: see `Autoencoder` and `MLP`.
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
    ) -> None:
        settings = _keywords(locals())
        regularizer = FourierAdversary(
            code_size,
            count=features,
            bandwidths=settings["bandwidths"],
            mode=mode,
            learning_rate=adversary_rate,
            shrinkage=shrinkage,
            blocks=blocks,
            seed=feature_seed,
        )
        super().__init__(data_dim, regularizer, settings, warmup_steps=warmup_steps)


class AAE(_Model):
    """Adversarial autoencoder (Makhzani et al. 2015): a discriminator network between codes and prior draws.

    Paper: two layers of 1000 units everywhere, squared error, code size 8, prior std 5, two phases per batch.

    Args:
        data_dim: number of pixels.
        discriminator: hidden widths of the discriminator.
        reconstruction, adversary_learning_rate, adversary_beta1, generator_learning_rate: see `Autoencoder`.
        The others: see `Autoencoder` and `MLP`.
    """

    _paper = {
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
        code_size: int = 8,
        hidden: Sequence[int] = (1000, 1000),
        discriminator: Sequence[int] = (1000, 1000),
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
    ) -> None:
        settings = _keywords(locals())
        regularizer = Adversarial.mlp(code_size, discriminator, scale=prior_std, precision=precision)
        super().__init__(
            data_dim,
            regularizer,
            settings,
            reconstruction=reconstruction,
            adversary_learning_rate=adversary_learning_rate,
            adversary_beta1=adversary_beta1,
            generator_learning_rate=generator_learning_rate,
        )


class VAE(_Model):
    """Variational autoencoder (Kingma and Welling 2014): Gaussian posterior, KL divergence to the prior.

    Args:
        data_dim: number of pixels.
        posterior: "gaussian": the divergence needs its moments.
        The others: see `Autoencoder` and `MLP`.
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
    ) -> None:
        super().__init__(data_dim, KL(), _keywords(locals()))


MODELS: dict[str, type[_Model]] = {"aae": AAE, "mmd-ae": MMDAE, "ds-aae": DSAAE, "vae": VAE}


def _keywords(arguments: dict[str, Any]) -> dict[str, Any]:
    """The settings among a constructor's arguments, checked; None, which TOML lacks, is the default anyway."""
    skipped = ("self", "data_dim", "__class__")
    settings = {name: value for name, value in arguments.items() if name not in skipped and value is not None}
    for name, value in settings.items():
        if name in ("code_size", "noise_size", "features"):
            check_int(name, value)
        elif name in ("hidden", "discriminator"):
            settings[name] = check_widths(name, value)
        elif name == "bandwidths":
            settings[name] = positive_floats(name, value)
        elif name in ("prior_std", "adversary_rate"):
            check_number(name, value)
        elif name == "closed_form" and not isinstance(value, bool):
            raise TypeError(f"closed_form: got {value!r}, expected true or false")
    count = len(settings.get("bandwidths", ()))
    if "features" in settings and settings["features"] % count:
        raise ValueError(f"features: got {settings['features']}, expected a multiple of the {count} bandwidths")
    return settings
