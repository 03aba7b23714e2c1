"""The models: training, settings, swapped parts, phases, checkpoints."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any, get_args, get_type_hints

import pytest
import torch
from helpers import points
from torch import Tensor, nn

from fastmmd.nn import (
    AAE,
    DSAAE,
    KL,
    MLP,
    MMD,
    MMDAE,
    MODELS,
    VAE,
    Adversarial,
    Autoencoder,
    ClosedFormMMD,
    FourierAdversary,
)
from fastmmd.priors import Gaussian, Prior, SwissRoll, Uniform
from fastmmd.training.timing import FIRST, RegularizerTimer

DATA_DIM = 20
SMALL: dict[str, dict[str, Any]] = {
    "aae": {"hidden": (32,), "discriminator": (16,), "code_size": 2, "prior_std": 1.0},
    "mmd-ae": {"hidden": (32,), "code_size": 2, "regularizer_weight": 10.0},
    "ds-aae": {
        "hidden": (32,),
        "code_size": 2,
        "bandwidths": (1.0, 2.0),
        "features": 16,
        "regularizer_weight": 10.0,
        "warmup_steps": 2,
    },
    "vae": {"hidden": (32,), "code_size": 2},
    "gmmn-ae": {"hidden": (32,), "code_size": 2, "generator": (16,), "learning_rate": 5e-3, "hidden_dropout": 0.1},
    "gan": {"generator": (32,), "noise_size": 3, "discriminator": (16,)},
    "gmmn": {"generator": (32,), "noise_size": 3, "bandwidths": (0.5, 2.0)},
}
AUTOENCODERS = [kind for kind, model in MODELS.items() if issubclass(model, Autoencoder)]
every_model = pytest.mark.parametrize("kind", MODELS)
every_autoencoder = pytest.mark.parametrize("kind", AUTOENCODERS)


def data(n: int = 64) -> Tensor:
    """Three patterns with noise, in [0, 1]."""
    patterns = torch.rand(3, DATA_DIM, generator=torch.Generator().manual_seed(1)).round()
    return (patterns[torch.arange(n) % 3] * 0.8 + 0.1 + 0.05 * points(n, DATA_DIM)).clamp(0, 1)


def small(kind: str, **overrides: Any) -> Autoencoder:
    return MODELS[kind](DATA_DIM, **(SMALL[kind] | {"precision": "float32"} | overrides))


def train(model: Autoencoder, steps: int, optimizers: dict | None = None) -> list[dict[str, Tensor]]:
    optimizers = optimizers or model.configure_optimizers()
    return [model.training_step(data(), optimizers) for _ in range(steps)]


def parameters(*modules: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for module in modules for p in module.parameters()]


def same(before: list[Tensor], after: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# --- models ---


@every_autoencoder
def test_training_lowers_the_loss(kind: str) -> None:
    model = small(kind, learning_rate=1e-2)
    history = train(model, 30)
    for losses in history:
        assert set(losses) == {"loss", "reconstruction", "regularizer"}
        assert all(v.ndim == 0 and v.isfinite() and not v.requires_grad for v in losses.values())
        total = losses["reconstruction"] + model.regularizer_weight * losses["regularizer"]
        torch.testing.assert_close(losses["loss"], total)
    assert history[-1]["reconstruction"] < 0.85 * history[2]["reconstruction"]
    assert model.steps == 30


@every_autoencoder
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_shapes_ranges_and_dtypes(kind: str, precision: str) -> None:
    model = small(kind, precision=precision)
    x = data(7)
    for mode in (True, False):
        model.train(mode)
        codes = model.encode(x)
        assert codes.shape == (7, 2) and codes.dtype == torch.float32 and model.code_size == 2
        for images in (model.decode(codes), model.reconstruct(x), model.sample(7)):
            assert images.shape == (7, DATA_DIM) and images.dtype == torch.float32
            assert 0 <= images.min() and images.max() <= 1
    assert torch.equal(model.reconstruct(x), model.decode(model.encode(x)))
    draws = [model.sample(4, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert not draws[0].requires_grad
    train(model, 2)


@every_model
def test_settings_repeat_the_model(kind: str) -> None:
    for model in (small(kind), MODELS[kind](DATA_DIM), MODELS[kind].paper(DATA_DIM)):
        settings = model.settings()
        for value in settings.values():
            parts = value if isinstance(value, tuple) else [value]
            assert all(isinstance(part, (str, int, float, bool)) for part in parts)
        listed = {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}  # as TOML gives it back
        again = MODELS[kind](DATA_DIM, **listed)
        assert again.settings() == settings
        assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]
        settings["learning_rate"] = -1
        assert model.settings()["learning_rate"] != -1


@every_model
def test_keyword_arguments_are_the_fields_of_the_settings(kind: str) -> None:
    """Those that editors and mypy see, of the same names and types; anything else is Python's TypeError."""
    model = MODELS[kind]
    for function in (model.__init__, model.paper):
        (options,) = get_args(get_type_hints(function)["options"])
        assert get_type_hints(options) == get_type_hints(model.Settings)
    for make in (model, model.paper, model.Settings):
        with pytest.raises(TypeError, match="unexpected keyword argument 'code'"):
            make(code=3)
    widths = "hidden" if issubclass(model, Autoencoder) else "generator"
    settings, same = (model.Settings(**{widths: value}) for value in ([5, 4], (5, 4)))
    assert settings == same and hash(settings) == hash(same)
    with pytest.raises(FrozenInstanceError):
        settings.learning_rate = 3


def widths(network: nn.Module) -> list[int]:
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    return [layers[0].in_features, *(layer.out_features for layer in layers)]


def test_dropout_is_in_the_encoder_alone() -> None:
    model = MMDAE(16, hidden=(8, 4), code_size=2, hidden_dropout=0.3, input_dropout=0.2)
    dropouts = [part.p for part in model.encoder.modules() if isinstance(part, nn.Dropout)]
    assert dropouts.count(0.3) >= 1 and dropouts.count(0.2) == 1
    assert all(part.p == 0 for part in model.decoder.modules() if isinstance(part, nn.Dropout))
    with pytest.raises(ValueError, match="hidden_dropout: got 0.3, expected 0 with network='convolutional'"):
        MMDAE(16, network="convolutional", channels=(4,), hidden_dropout=0.3)


def test_the_papers_settings() -> None:
    for kind in (MMDAE, DSAAE):
        model = kind.paper()
        code = 4 if kind is MMDAE else 6
        assert widths(model.encoder) == [784, 1024, 512, 216, code]
        assert widths(model.decoder) == [code, 216, 512, 1024, 784]
        assert model.encoder.input_dropout.p == 0.2 and model.decoder.input_dropout.p == 0
        assert model.learning_rate == 1e-3 and model.reconstruction == "cross_entropy"
        assert model.generator_learning_rate is None
    assert isinstance(MMDAE.paper().regularizer, MMD)
    assert MMDAE.paper().regularizer.bandwidths == (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)
    assert DSAAE.paper().regularizer.features.bandwidths == (1.0,)
    aae = AAE.paper()
    assert widths(aae.encoder) == [784, 1000, 1000, 8] and widths(aae.decoder) == [8, 1000, 1000, 784]
    assert widths(aae.regularizer.discriminator) == [8, 1000, 1000, 1]
    assert aae.reconstruction == "squared_error" and aae.generator_learning_rate is not None
    assert (aae.prior.std == 5).all() and aae.code_size == 8
    assert AAE.paper(DATA_DIM, code_size=3).code_size == 3
    assert VAE.paper(DATA_DIM).posterior == "gaussian"


@pytest.mark.parametrize(
    "regularizer",
    [MMD((1.0, 2.0)), ClosedFormMMD((1.0,)), FourierAdversary(2, count=8), Adversarial.mlp(2, (8,)),
     MMD(kernel="energy"), FourierAdversary(2, count=8, mode="doubly_stochastic", blocks=2)],
)  # fmt: skip
@pytest.mark.parametrize("prior", [Gaussian(2, 2.0), Uniform(2), SwissRoll()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("posterior", ["deterministic", "gaussian", "implicit"])
def test_any_part_with_any_other(regularizer: nn.Module, prior: Prior, posterior: str) -> None:
    inputs, outputs = DATA_DIM + (2 if posterior == "implicit" else 0), 4 if posterior == "gaussian" else 2
    model = Autoencoder(
        MLP(inputs, (16,), outputs), nn.Sequential(nn.Linear(2, DATA_DIM)), prior, regularizer, posterior=posterior,
        reconstruction="squared_error",
    )  # fmt: skip
    if isinstance(regularizer, ClosedFormMMD) and isinstance(prior, SwissRoll):
        with pytest.raises(TypeError, match="mmd2"):
            train(model, 1)
        return
    before = parameters(model.encoder, model.decoder)
    train(model, 2)
    assert not same(before, parameters(model.encoder, model.decoder))


def test_two_phases_touch_only_what_they_should() -> None:
    model = small("aae", generator_learning_rate=1e-3)
    optimizers = model.configure_optimizers()
    assert set(optimizers) == {"autoencoder", "adversary", "generator"}
    parts = {"encoder": model.encoder, "decoder": model.decoder, "discriminator": model.regularizer.discriminator}
    log: list[tuple[str, set[str]]] = []

    def watch(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            before = {part: parameters(module) for part, module in parts.items()}
            out = step(*args, **kwargs)
            log.append((name, {part for part, module in parts.items() if not same(before[part], parameters(module))}))
            return out

        return run

    for name, optimizer in optimizers.items():
        optimizer.step = watch(name, optimizer.step)
    train(model, 1, optimizers)
    assert log == [
        ("autoencoder", {"encoder", "decoder"}),
        ("adversary", {"discriminator"}),
        ("generator", {"encoder"}),
    ]


def test_joint_step_updates_adversary_then_autoencoder() -> None:
    model = small("aae")
    optimizers = model.configure_optimizers()
    assert set(optimizers) == {"autoencoder", "adversary"}
    assert optimizers["adversary"].param_groups[0]["betas"][0] == 0.5
    before = parameters(model.regularizer)
    train(model, 1, optimizers)
    assert not same(before, parameters(model.regularizer))


def test_warmup_trains_the_encoder_alone() -> None:
    model = small("ds-aae", warmup_steps=2)
    decoder = parameters(model.decoder)
    history = train(model, 2)
    assert same(decoder, parameters(model.decoder)) and history[1]["reconstruction"] == 0
    assert train(model, 1)[0]["reconstruction"] > 0
    assert not same(decoder, parameters(model.decoder))


@every_autoencoder
@pytest.mark.parametrize("options", [{}, {"posterior": "implicit", "denoising": 0.5}], ids=["plain", "noisy"])
def test_checkpoint_round_trip(kind: str, options: dict[str, Any]) -> None:
    """Training resumed from a saved state gives the same bits: weights, buffers, step counter, optimizers."""
    if kind in ("vae", "gmmn-ae") and options:
        options = {"denoising": 0.5}
    model = small(kind, **options)
    optimizers = model.configure_optimizers()
    train(model, 3, optimizers)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), **{n: o.state_dict() for n, o in optimizers.items()}}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = small(kind, **options)
    again.load_state_dict(state.pop("model"))
    restored = again.configure_optimizers()
    for name, optimizer_state in state.items():
        restored[name].load_state_dict(optimizer_state)
    assert again.steps == 3
    for one, two in ((model, optimizers), (again, restored)):
        torch.manual_seed(5)
        train(one, 2, two)
    assert same(parameters(model), parameters(again))
    assert same(list(model.buffers()), list(again.buffers()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "lamb"}, "optimizer: got 'lamb', expected one of adam, muon"),
        ({"posterior": "laplace"}, "posterior: got 'laplace', expected one of deterministic, gaussian, implicit"),
        ({"denoising": -0.5}, "denoising: got -0.5, expected a number >= 0"),
        ({"denoising": math.nan}, "denoising: got nan"),
        ({"reconstruction": "l1"}, "reconstruction: got 'l1'"),
        ({"regularizer_weight": -1.0}, "regularizer_weight: got -1.0"),
        ({"warmup_steps": -1}, "warmup_steps: got -1"),
        ({"learning_rate": 0.0}, "learning_rate: got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate: got nan"),
        ({"adversary_learning_rate": -1.0}, "adversary_learning_rate: got -1.0"),
        ({"generator_learning_rate": 0.0}, "generator_learning_rate: got 0.0"),
    ],
)
def test_autoencoder_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Autoencoder(nn.Linear(4, 2), nn.Linear(2, 4), Gaussian(2), KL(), **arguments)
    with pytest.raises(ValueError, match="precision: got 'half'"):
        small("vae", precision="half")


def test_a_model_works_in_double() -> None:
    model = MMDAE(12, hidden=(8,), precision="float32").double()
    terms = model.training_step(torch.rand(6, 12, dtype=torch.float64), model.configure_optimizers())
    assert {value.dtype for value in terms.values()} == {torch.float64}
    assert model.sample(3).dtype == torch.float64


@pytest.mark.parametrize("generator_learning_rate", [None, 1e-3])
def test_labels_reach_the_discriminator_and_the_encoder(generator_learning_rate: float | None) -> None:
    """In one phase and in two, and through the timer's hooks."""
    given: list[tuple[str, Tensor]] = []

    class Recorder(Adversarial):
        def forward(self, *arguments: Any) -> Tensor:
            given.append(("forward", arguments[3]))
            return super().forward(*arguments)

        def update(self, *arguments: Any) -> None:
            given.append(("update", arguments[3]))
            super().update(*arguments)

    regularizer = Recorder(MLP(2 + 1 + 10, (8,), 1), num_classes=10)
    model = Autoencoder(
        MLP(DATA_DIM, (8,), 2), MLP(2, (8,), DATA_DIM), SwissRoll(), regularizer,
        generator_learning_rate=generator_learning_rate,
    )  # fmt: skip
    labels, timer = torch.arange(64) % 11 - 1, RegularizerTimer(regularizer, torch.device("cpu"))
    optimizers = model.configure_optimizers()
    for step in (FIRST, FIRST + 1):
        with timer.step(step):
            model.training_step(data(), optimizers, labels)
    assert [name for name, _ in given] == ["update", "forward"] * 2
    assert all(torch.equal(seen, labels) for _, seen in given)
    assert timer.share is not None


def test_labels_need_a_regularizer_with_classes() -> None:
    labels = torch.zeros(64, dtype=torch.int64)
    for kind in MODELS:
        model = small(kind)
        before, optimizers = parameters(model), model.configure_optimizers()
        message = f"labels: got some, but neither {type(model.regularizer).__name__} nor the decoder has classes"
        message = message if kind in AUTOENCODERS else "labels: got some, but a generator alone has no classes"
        with pytest.raises(ValueError, match=message):
            model.training_step(data(), optimizers, labels)
        with pytest.raises(ValueError, match=message):
            model.sample(64, labels=labels)
        assert same(before, parameters(model)) and model.steps == 0


def test_tensor_bandwidths_belong_to_the_module() -> None:
    bandwidths = torch.tensor([1.0, 2.0])
    assert "bandwidths" in MMD(bandwidths).state_dict()
    model = Autoencoder(nn.Linear(4, 2), nn.Linear(2, 4), Gaussian(2), MMD(nn.Parameter(bandwidths)))
    assert set(model.configure_optimizers()) == {"autoencoder"}  # nothing would step an adversary's optimizer
