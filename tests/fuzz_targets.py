"""What the fuzz tests call: public functions and constructors with arguments that are right."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from helpers import points, positive
from torch import Tensor, nn

import fastmmd
from fastmmd import priors
from fastmmd.nn import (
    AAE,
    DSAAE,
    GMMNAE,
    KL,
    MLP,
    MMD,
    MMDAE,
    VAE,
    Adversarial,
    Autoencoder,
    ClosedFormMMD,
    ConvDecoder,
    ConvEncoder,
    FourierAdversary,
    GeneratorPrior,
    Moments,
    code_health,
    kernel_problem,
)

N, M, D, K, CLASSES = 6, 5, 3, 4, 3
UNFIT = "mat1 and mat2|possible overflow|expected device meta"


@dataclass(frozen=True)
class Target:
    """A public function, arguments that it takes, and the shape of the tensor that it then returns, if it does."""

    call: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]
    shape: tuple[int, ...] | None = None
    spared: tuple[str, ...] = ()  # arguments that take anything
    also: tuple[str, ...] = ()  # more words that an error may name
    network: str = r"\b\B"  # what torch says of a network of the caller that does not fit: its own error

    def names(self) -> set[str]:
        """Words of which an error message has one."""
        return {*self.arguments(), *inspect.signature(self.call).parameters, *self.also}


def x() -> Tensor:
    return points(N, D)


def y() -> Tensor:
    return points(M, D, seed=1)


def features() -> fastmmd.FourierFeatures:
    return fastmmd.FourierFeatures(D, K)


def labels(count: int = N) -> Tensor:
    return torch.arange(count) % CLASSES


def kernel(*left_out: str) -> dict[str, Any]:
    given = {"bandwidths": (1.0, 2.0), "kernel": "gaussian", "kernel_weights": (1.0, 0.5), "alpha": 1.0}
    return {name: value for name, value in given.items() if name not in left_out}


def draws() -> dict[str, Any]:
    return {"count": M, "labels": None, "generator": None, "device": None, "dtype": None}


def mixture() -> priors.GaussianMixture:
    return priors.GaussianMixture(means=torch.eye(3), covariances=torch.eye(3).repeat(3, 1, 1))


def autoencoder() -> MMDAE:
    return MMDAE(16, hidden=(5,), code_size=D)


def codes() -> dict[str, Any]:
    return {"codes": x(), "prior": priors.Gaussian(D)}


SMALL: dict[str, Any] = {"data_dim": 16, "code_size": 2, "hidden": (5,)}
SETTINGS: dict[str, Any] = SMALL | {
    "input_dropout": 0.1, "denoising": 0.0, "reconstruction": "cross_entropy", "output": "sigmoid",
    "learning_rate": 1e-3, "beta1": 0.5, "standardize": False, "optimizer": "adam", "precision": "float32",
}  # fmt: skip
FIXED: dict[str, Any] = SETTINGS | {
    "prior": "gaussian", "prior_std": 1.0, "posterior": "deterministic", "noise_size": None, "labels": "none",
    "num_classes": 10, "network": "mlp", "channels": (4, 8), "regularizer_weight": 1.0, "shift": 1,
}  # fmt: skip


def model(kind: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A model of `kind` that takes one step."""

    def run(**settings: Any) -> Any:
        made = kind(**settings)
        assert isinstance(made.settings(), dict)
        return made

    run.__signature__ = inspect.signature(kind)  # type: ignore[attr-defined]
    return run


def built(kind: type[nn.Module], *widths: str) -> Callable[..., Any]:
    """A network, on two rows as wide as the sum of some settings."""

    def run(**settings: Any) -> Tensor:
        return kind(**settings).eval()(torch.zeros(2, sum(int(settings[name]) for name in widths)))

    run.__signature__ = inspect.signature(kind)  # type: ignore[attr-defined]
    return run


def estimated(points: Any, sigmas: Any, samples: Any) -> Tensor:
    return fastmmd.ParzenEstimator(points, sigmas).update(samples).log_likelihood()


def merged(other: Any) -> Tensor:
    return fastmmd.ParzenEstimator(x(), 1.0).merge(other).log_likelihood()


def sharded(**given: Any) -> Tensor:
    return torch.tensor(float(fastmmd.Shards(**given).exchange in ("gather", "ring")))


def fixed(x: Any, **kernel: Any) -> Tensor:
    return fastmmd.mmd2(x, fastmmd.FixedSample(**kernel))


def with_backend(name: Any) -> Tensor:
    with fastmmd.backend(name):
        return fastmmd.mmd2(x(), y())


def blocks(dim: Any, count: Any, bandwidths: Any, kernel_weights: Any, seed: Any, start: Any, t: Any) -> Any:
    made = fastmmd.FourierFeatures(
        dim, count, bandwidths=bandwidths, kernel_weights=kernel_weights, seed=seed, start=start
    )
    return made.block(t) if made.dim * made.count > 2**20 else made.block(t).frequencies()


def ascended(alpha: Any, codes: Any, draws: Any, features: Any, learning_rate: Any) -> Tensor:
    fastmmd.fourier_ascent(alpha, codes, draws, features, learning_rate)
    return alpha


def regularized(kind: Callable[..., Any]) -> Callable[..., Tensor]:
    def run(**settings: Any) -> Tensor:
        return kind(**settings)(x(), priors.Gaussian(D))

    run.__signature__ = inspect.signature(kind)  # type: ignore[attr-defined]
    return run


def drawn(kind: Callable[..., priors.Prior]) -> Callable[..., Tensor]:
    def run(**settings: Any) -> Any:
        made = kind(**settings)
        return made.sample(M) if made.dim <= 100 else made

    run.__signature__ = inspect.signature(kind)  # type: ignore[attr-defined]
    return run


def of_model(method: str) -> Callable[..., Any]:
    def run(**arguments: Any) -> Any:
        return getattr(autoencoder(), method)(**arguments)

    run.__signature__ = inspect.signature(getattr(MMDAE, method))  # type: ignore[attr-defined]
    return run


def step(x: Any, optimizers: Any, labels: Any) -> Tensor:
    made = autoencoder()
    optimizers = made.configure_optimizers() if optimizers is None else optimizers
    return made.training_step(x, optimizers, labels)["loss"]


TARGETS: dict[str, Target] = {
    "mmd2": Target(
        fastmmd.mmd2,
        lambda: (
            {"x": x(), "y": y(), **kernel(), "x_weights": positive(N), "y_weights": positive(M)}
            | {"estimator": "biased"}
        ),
        (),
    ),
    "mmd2 of classes": Target(
        fastmmd.mmd2,
        lambda: (
            {"x": x(), "y": y(), "x_labels": labels(), "y_labels": labels(M), "class_weights": (0.5, 0.3, 0.2)}
            | {"unconditional_weight": 0.5, "absent": "skip", "estimator": "unbiased"}
        ),
        (),
    ),
    "witness": Target(
        fastmmd.witness,
        lambda: {"points": points(7, D), "x": x(), "y": y(), **kernel(), "x_weights": positive(N)},
        (7,),
    ),
    "FixedSample": Target(fixed, lambda: {"x": x(), "y": y(), **kernel(), "y_weights": positive(M)}, ()),
    "StreamingMMD": Target(  # network: a function of the caller that takes an argument
        lambda **given: fastmmd.StreamingMMD(**given).value(),
        lambda: {"x": x(), "y": y(), **kernel(), "estimator": "biased", "block": 8, "device": None},
        (),
        network="missing 1 required positional argument",
    ),  # fmt: skip
    "Shards": Target(sharded, lambda: {"group": None, "exchange": "ring", "gradients": "summed"}, ()),
    "mmd2_to_prior": Target(
        fastmmd.mmd2_to_prior,
        lambda: (
            {"x": x(), "prior": priors.Gaussian(D), "estimator": "biased", **kernel("kernel", "alpha")}
            | {"x_weights": positive(N)}
        ),
        (),
    ),
    "median_bandwidth": Target(fastmmd.median_bandwidth, lambda: {"x": x(), "y": y()}, ()),
    "fourier_mean": Target(
        fastmmd.fourier_mean, lambda: {"x": x(), "features": features(), "weights": positive(N)}, (2 * K,)
    ),
    "fourier_function": Target(
        fastmmd.fourier_function,
        lambda: {"x": x(), "coefficients": points(2 * K), "features": features()},
        (N,),
    ),
    "fourier_discrepancy": Target(
        fastmmd.fourier_discrepancy,
        lambda: {"codes": x(), "draws": y(), "alpha": torch.ones(K), "features": features()},
        (),
    ),
    "fourier_ascent": Target(
        ascended,
        lambda: {"alpha": torch.ones(K), "codes": x(), "draws": y(), "features": features(), "learning_rate": 0.5},
        (K,),
    ),
    "FourierFeatures": Target(
        blocks,
        lambda: (
            {"dim": D, "count": K, "bandwidths": (1.0, 2.0), "kernel_weights": (1.0, 1.0), "seed": 1}
            | {"start": 2, "t": 3}
        ),
        (K, D),
    ),
    "parzen": Target(
        fastmmd.parzen_log_likelihood, lambda: {"points": x(), "samples": y(), "sigma": (0.5, 1.0)}, (2, N)
    ),
    "ParzenEstimator": Target(estimated, lambda: {"points": x(), "sigmas": 0.5, "samples": y()}, (N,)),
    "merge": Target(merged, lambda: {"other": fastmmd.ParzenEstimator(x(), 1.0).update(y())}, (N,)),
    "backend": Target(with_backend, lambda: {"name": "reference"}, (), also=("backend",)),
    "Gaussian": Target(drawn(priors.Gaussian), lambda: {"dim": D, "std": (1.0, 2.0, 0.5), "mean": torch.ones(D)}),
    "Gaussian, full": Target(
        drawn(priors.Gaussian), lambda: {"dim": D, "std": None, "mean": None, "covariance": torch.eye(D)}
    ),
    "GaussianMixture": Target(
        drawn(priors.GaussianMixture),
        lambda: {"weights": (1.0, 2.0), "means": torch.ones(2, D), "covariances": torch.eye(D).repeat(2, 1, 1)},
    ),
    "Uniform": Target(drawn(priors.Uniform), lambda: {"dim": D, "low": -1.0, "high": (1.0, 1.0, 2.0)}),
    "SwissRoll": Target(drawn(priors.SwissRoll), lambda: {"radius": 3.0, "std": 0.1, "num_classes": 9, "margin": 0.1}),
    "Gaussian.sample": Target(priors.Gaussian(D).sample, draws, (M, D)),
    "GaussianMixture.sample": Target(mixture().sample, lambda: draws() | {"labels": labels(M)}, (M, D)),
    "SwissRoll.sample": Target(priors.SwissRoll().sample, lambda: draws() | {"labels": labels(M)}, (M, 2)),
    "Uniform.sample": Target(priors.Uniform(D).sample, draws, (M, D)),
    "GeneratorPrior.sample": Target(GeneratorPrior(nn.Linear(2, D), 2, D).sample, draws, (M, D)),
    "GeneratorPrior": Target(
        drawn(GeneratorPrior), lambda: {"network": nn.Linear(2, D), "noise_size": 2, "dim": D}, (M, D), network=UNFIT
    ),
    "MMD": Target(
        regularized(MMD),
        lambda: (
            {**kernel(), "estimator": "biased", "num_classes": 0, "class_weights": None}
            | {"unconditional_weight": 1.0, "draws": None}
        ),
        (),
    ),
    "ClosedFormMMD": Target(
        regularized(ClosedFormMMD), lambda: {**kernel("kernel", "alpha"), "estimator": "biased"}, ()
    ),
    "FourierAdversary": Target(
        regularized(FourierAdversary),
        lambda: (
            {"code_size": D, "count": K, "bandwidths": (1.0, 2.0), "mode": "doubly_stochastic"}
            | {"learning_rate": 0.1, "shrinkage": 0.1, "blocks": 2, "seed": 0, "num_classes": 0}
        ),
        (),
        also=("dim",),
    ),
    "Adversarial.mlp": Target(
        regularized(Adversarial.mlp),
        lambda: {"code_size": D, "hidden": (4,), "scale": 1.0, "precision": "float32", "num_classes": 0},
        (),
        network=UNFIT,
        also=("inputs",),
    ),
    "Adversarial": Target(
        regularized(Adversarial),
        lambda: {"discriminator": nn.Linear(D, 1), "scale": 1.0, "num_classes": 0},
        (),
        network=UNFIT,
    ),
    "MMD()": Target(MMD((1.0,)), lambda: {**codes(), "moments": None, "labels": None}, (), ("moments",)),
    "ClosedFormMMD()": Target(ClosedFormMMD((1.0,)), lambda: {**codes(), "moments": None}, (), ("moments",)),
    "FourierAdversary()": Target(
        FourierAdversary(D, count=K), lambda: {**codes(), "moments": None, "labels": None}, (), ("moments",)
    ),
    "Adversarial()": Target(
        Adversarial(nn.Linear(D, 1)),
        lambda: {**codes(), "moments": None, "labels": None},
        (),
        ("moments",),
        network=UNFIT,
    ),
    "KL()": Target(KL(), lambda: {**codes(), "moments": Moments(x(), x())}, (), ("codes",)),
    "update": Target(
        FourierAdversary(D, count=K).update,
        lambda: {**codes(), "optimizer": None, "labels": None},
        None,
        ("optimizer",),
    ),
    "code_health": Target(code_health, lambda: {"codes": x(), "draws": y(), "factor": 2.0}),
    "kernel_problem": Target(kernel_problem, lambda: {"regularizer": MMD((1.0,)), "codes": x(), "draws": y()}),
    "MLP": Target(
        built(MLP, "inputs"),
        lambda: (
            {"inputs": 4, "hidden": (5,), "outputs": 3, "input_dropout": 0.1, "hidden_dropout": 0.1}
            | {"noise_inputs": 1, "precision": "float32", "last_in_float32": True}
        ),
        (2, 3),
        ("last_in_float32",),
    ),
    "ConvEncoder": Target(
        built(ConvEncoder, "data_dim", "noise_inputs"),
        lambda: (
            {"data_dim": 16, "channels": (4, 8), "outputs": 3, "input_dropout": 0.1, "noise_inputs": 1}
            | {"precision": "float32"}
        ),
        (2, 3),
    ),
    "ConvDecoder": Target(
        built(ConvDecoder, "inputs"),
        lambda: {"inputs": 3, "channels": (4, 8), "data_dim": 16, "precision": "float32"},
        (2, 16),
    ),
    "MMDAE": Target(model(MMDAE), lambda: FIXED | {"bandwidths": (1.0,), "closed_form": True, "estimator": "biased"}),
    "DSAAE": Target(
        model(DSAAE),
        lambda: (
            FIXED
            | {"bandwidths": (1.0, 2.0), "features": 4, "mode": "first_order", "adversary_rate": 0.1, "shrinkage": 0.0}
            | {"blocks": 2, "feature_seed": 0, "warmup_steps": 1}
        ),
    ),
    "AAE": Target(
        model(AAE),
        lambda: (
            FIXED
            | {"discriminator": (4,), "adversary_learning_rate": 0.1, "adversary_beta1": 0.5}
            | {"generator_learning_rate": 0.1}
        ),
    ),
    "VAE": Target(model(VAE), lambda: FIXED | {"posterior": "gaussian"}),
    "GMMNAE": Target(
        model(GMMNAE),
        lambda: (
            SETTINGS
            | {"hidden_dropout": 0.1, "generator": (4,), "noise_size": 2, "autoencoder_share": 0.5}
            | {"bandwidths": (1.0,), "draws": 5, "prior_learning_rate": 0.1}
        ),
    ),
    "Autoencoder": Target(
        Autoencoder,
        lambda: (
            {"encoder": nn.Linear(4, D), "decoder": nn.Linear(D, 4), "prior": priors.Gaussian(D)}
            | {"regularizer": MMD((1.0,)), "posterior": "deterministic", "noise_size": None, "denoising": 0.1}
            | {"reconstruction": "cross_entropy", "output": "sigmoid", "regularizer_weight": 1.0, "warmup_steps": 0}
            | {"learning_rate": 0.1, "beta1": 0.5, "standardize": False, "adversary_learning_rate": 0.1}
            | {"adversary_beta1": 0.5, "decoder_classes": 0, "optimizer": "muon", "shift": 1}
        ),
    ),
    "model()": Target(of_model("forward"), lambda: {"x": torch.rand(4, 16), "labels": None}),
    "encode": Target(of_model("encode"), lambda: {"x": torch.rand(4, 16)}, (4, D)),
    "decode": Target(of_model("decode"), lambda: {"codes": x(), "labels": None}, (N, 16)),
    "reconstruct": Target(of_model("reconstruct"), lambda: {"x": torch.rand(4, 16), "labels": None}, (4, 16)),
    "model.sample": Target(of_model("sample"), lambda: {"count": 4, "labels": None, "generator": None}, (4, 16)),
    "adversary_loss": Target(of_model("adversary_loss"), lambda: {"codes": x(), "labels": None}, ()),
    "end_step": Target(of_model("end_step"), lambda: {"codes": x(), "labels": None}),
    "training_step": Target(step, lambda: {"x": torch.rand(4, 16), "optimizers": None, "labels": None}, ()),
}
