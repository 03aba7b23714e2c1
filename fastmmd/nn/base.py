"""What the papers' models share: an autoencoder made from numbers and names alone, as a recipe gives them."""

from __future__ import annotations

import inspect
import math
from typing import Any, Self

from torch import nn

from ..ops.arguments import check_int, check_number, positive_floats
from ..priors import Gaussian, GaussianMixture, Prior, SwissRoll, Uniform
from .autoencoders import Autoencoder
from .convolutional import ConvDecoder, ConvEncoder
from .networks import MLP, check_widths
from .regularizers import Regularizer

PRIORS = ("gaussian", "mixture", "swiss_roll", "uniform")
LABELS = ("none", "regularizer", "decoder")
NETWORKS = ("mlp", "convolutional")

#: Keyword arguments that every model takes beside its own, and their defaults: see `Model`.
SHARED: dict[str, Any] = {
    "prior": "gaussian",
    "labels": "none",
    "num_classes": 10,
    "network": "mlp",
    "channels": (64, 128, 256),
}


class Model(Autoencoder):
    """An autoencoder of named parts. Its subclasses have keyword arguments of their own, all of them these:

    Args:
        prior: "gaussian": N(0, prior_std^2 I). "uniform": a centered box whose coordinates have that deviation.
            "mixture": ten components on a ring, and "swiss_roll", both as in the AAE paper's figures, in the plane
            (code_size = 2), at a scale of their own: standard deviations 2.9 and 1.5, prior_std has no part in it.
        labels: what sees the labels of `training_step`: "none", "regularizer" (class i goes to the i-th part of the
            prior, a mixture's component or a stretch of the roll) or "decoder" (the code keeps the style).
        num_classes: of the labels; the mixture has ten.
        network: "mlp" with the widths `hidden`, or "convolutional", for square images, with `channels`: see `MLP`,
            `ConvEncoder` and `ConvDecoder`.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    _paper: dict[str, Any] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        """The constructor's signature names the shared arguments too, for recipes and for people."""
        super().__init_subclass__(**options)
        signature = inspect.signature(cls.__init__)
        own = list(signature.parameters.values())
        if own[-1].kind is inspect.Parameter.VAR_KEYWORD:
            shared = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=SHARED[name]) for name in SHARED]
            named = signature.replace(parameters=[*own[:-1], *shared])
            cls.__init__.__signature__ = named  # type: ignore[attr-defined]

    def __init__(
        self, data_dim: int, settings: dict[str, Any], prior: Prior, regularizer: Regularizer, **options: Any
    ) -> None:
        code_size, precision = settings["code_size"], settings["precision"]
        posterior = settings.get("posterior", "deterministic")
        noise = settings.setdefault("noise_size", code_size) if posterior == "implicit" else 0
        outputs = code_size * (2 if posterior == "gaussian" else 1)
        classes = settings["num_classes"] if settings.get("labels") == "decoder" else 0
        seen: dict[str, Any] = {
            "input_dropout": settings["input_dropout"],
            "noise_inputs": noise,
            "precision": precision,
        }
        encoder: nn.Module
        decoder: nn.Module
        if settings.get("network") == "convolutional":
            encoder = ConvEncoder(data_dim, settings["channels"], outputs, **seen)
            decoder = ConvDecoder(code_size + classes, settings["channels"][::-1], data_dim, precision=precision)
        else:
            hidden = settings["hidden"]
            encoder = MLP(data_dim + noise, hidden, outputs, hidden_dropout=settings.get("hidden_dropout", 0.0), **seen)
            decoder = MLP(code_size + classes, hidden[::-1], data_dim, precision=precision, last_in_float32=False)
        super().__init__(
            encoder,
            decoder,
            prior,
            regularizer,
            posterior=posterior,
            noise_size=settings.get("noise_size") if "posterior" in settings else None,
            denoising=settings["denoising"],
            regularizer_weight=settings.get("regularizer_weight", 1.0),
            learning_rate=settings["learning_rate"],
            decoder_classes=classes,
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


def keywords(arguments: dict[str, Any]) -> dict[str, Any]:
    """The settings among a constructor's arguments, checked; None, which TOML lacks, is the default anyway.

    Args:
        arguments: the constructor's `locals()`, the shared arguments, if it takes them, as a dictionary "shared".
    """
    skipped = ("self", "data_dim", "shared", "__class__")
    settings = {name: value for name, value in arguments.items() if name not in skipped and value is not None}
    if "shared" in arguments:
        for name in arguments["shared"]:
            if name not in SHARED:
                raise TypeError(f"{name}: not an argument of this model (beside its own: {', '.join(SHARED)})")
        settings |= SHARED | arguments["shared"]
    for name, value in settings.items():
        if name in ("code_size", "noise_size", "features", "num_classes", "draws"):
            check_int(name, value)
        elif name in ("hidden", "discriminator", "generator", "channels"):
            settings[name] = check_widths(name, value)
        elif name == "bandwidths":
            settings[name] = positive_floats(name, value)
        elif name in ("prior_std", "adversary_rate"):
            check_number(name, value)
        elif name == "closed_form" and not isinstance(value, bool):
            raise TypeError(f"closed_form: got {value!r}, expected true or false")
    for name, allowed in (("prior", PRIORS), ("labels", LABELS), ("network", NETWORKS)):
        if name in settings and settings[name] not in allowed:
            raise ValueError(f"{name}: got {settings[name]!r}, expected one of {', '.join(allowed)}")
    count = len(settings.get("bandwidths", ()))
    if "features" in settings and settings["features"] % count:
        raise ValueError(f"features: got {settings['features']}, expected a multiple of the {count} bandwidths")
    return settings


def named_prior(settings: dict[str, Any]) -> tuple[Prior, float]:
    """The prior that the settings name, and its standard deviation: the root mean square of its coordinates.

    Raises:
        ValueError: it does not fit code_size, or the labels.
    """
    name, code_size, std = settings["prior"], settings["code_size"], settings["prior_std"]
    if name in ("mixture", "swiss_roll") and code_size != 2:
        raise ValueError(f"code_size: got {code_size}, expected 2 for prior='{name}'")
    prior: Prior
    if name == "gaussian":
        prior = Gaussian(code_size, std)
    elif name == "uniform":
        prior = Uniform(code_size, -math.sqrt(3) * std, math.sqrt(3) * std)
    elif name == "mixture":
        prior, std = GaussianMixture(), math.sqrt((4**2 + 1**2 + 0.2**2) / 2)  # the ring's radius, a component's axes
    else:
        prior, std = SwissRoll(num_classes=settings["num_classes"]), 1.5  # E |z|^2 = radius^2 / 2 in two coordinates
    if settings["labels"] == "regularizer":
        if prior.num_classes == 0:
            raise ValueError(
                f"labels: got 'regularizer' with prior='{name}', which has no classes; expected prior='mixture' or "
                "'swiss_roll', or labels='decoder'"
            )
        if prior.num_classes != settings["num_classes"]:
            raise ValueError(
                f"num_classes: got {settings['num_classes']}, expected {prior.num_classes} for prior='{name}'"
            )
    return prior, std


def regularizer_classes(settings: dict[str, Any]) -> int:
    """How many classes the regularizer gets."""
    classes: int = settings["num_classes"] if settings["labels"] == "regularizer" else 0
    return classes
