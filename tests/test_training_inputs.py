"""Batches of few rows, the mode in which models answer, codes, counts, generators and optimizers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import points, uniform
from test_inputs import untouched
from test_nn import DATA_DIM, data, every_autoencoder, every_model, parameters, same, small
from torch import Tensor

from fastmmd.evaluation import chain, interpolate, markov_chain, posterior_samples, prior_samples
from fastmmd.nn import GMMNAE, MMDAE, VAE, Autoencoder

# --- batches of few rows ---


@every_autoencoder
def test_a_batch_without_rows(kind: str) -> None:
    """Training refuses it; what only answers gives as many rows as it gets."""
    model = small(kind)
    before = parameters(model)
    with pytest.raises(ValueError, match=r"x: got a batch without rows \(shape \[0, 20\]\).*drop_last=True"):
        model.training_step(data()[:0], model.configure_optimizers())
    assert untouched(model, before)
    assert model.encode(data()[:0]).shape == (0, 2) and model.reconstruct(data()[:0]).shape == (0, DATA_DIM)
    assert model.sample(0).shape == (0, DATA_DIM)


ONE_ROW: list[tuple[str, dict[str, Any], str | None]] = [
    ("aae", {}, None),
    ("vae", {}, None),
    ("ds-aae", {"warmup_steps": 0}, None),
    ("mmd-ae", {}, None),
    ("mmd-ae", {"closed_form": False}, None),
    ("mmd-ae", {"estimator": "unbiased"}, 'estimator="unbiased" needs two.*or take estimator="biased"'),
    ("mmd-ae", {"estimator": "unbiased", "closed_form": False}, 'estimator="unbiased" needs two'),
    ("gmmn-ae", {}, "batch normalization needs two"),
]


@pytest.mark.parametrize(("kind", "options", "message"), ONE_ROW)
def test_a_batch_of_one_row(kind: str, options: dict[str, Any], message: str | None) -> None:
    model = small(kind, **options)
    before, optimizers = parameters(model), model.configure_optimizers()
    if message is None:
        assert all(value.isfinite() for value in model.training_step(data()[:1], optimizers).values())
        assert not same(before, parameters(model))
    else:
        with pytest.raises(ValueError, match=f"x: got a batch of one row, but {message}.*drop_last=True|{message}"):
            model.training_step(data()[:1], optimizers)
        assert untouched(model, before)
    assert model.encode(data()[:1]).shape == (1, 2)
    assert torch.equal(model.reconstruct(data()[:1]), model.eval().reconstruct(data()[:1]))


@pytest.mark.parametrize("channels", [(4,), (4, 6), (4, 6, 8)])
def test_one_image_of_a_convolutional_model(channels: tuple[int, ...]) -> None:
    """Of 4 x 4 pixels: three layers, and two, leave one pixel, of which batch normalization needs two."""
    model = small_convolutional(channels)
    x, optimizers = uniform(1, 16), model.configure_optimizers()
    if len(channels) == 1:
        assert model.training_step(x, optimizers)["loss"].isfinite()
        return
    before = [value.clone() for value in model.state_dict().values() if isinstance(value, Tensor)]
    with pytest.raises(ValueError, match="x: got a batch of one row, but batch normalization needs two.*drop_last"):
        model.training_step(x, optimizers)
    assert same(before, [value for value in model.state_dict().values() if isinstance(value, Tensor)])
    assert model.eval().training_step(x, optimizers)["loss"].isfinite()  # with its running statistics


def small_convolutional(channels: tuple[int, ...] = (4, 6)) -> Autoencoder:
    return MMDAE(16, network="convolutional", channels=channels, code_size=2, precision="float32", input_dropout=0.2)


def test_the_generators_phase_takes_one_row() -> None:
    model = small("gmmn-ae", autoencoder_share=0.5)
    model.progress = 0.9
    assert model.training_step(data()[:1], model.configure_optimizers())["regularizer"].isfinite()


# --- the mode of the model ---


@pytest.mark.parametrize("make", [small_convolutional, lambda: small("gmmn-ae", input_dropout=0.3)])
def test_answers_are_those_of_eval_mode_and_change_nothing(make: Callable[[], Autoencoder]) -> None:
    model = make()
    x = data()[:, : model.data_dim]
    model.training_step(x, model.configure_optimizers())
    seeded = lambda use: use(torch.Generator().manual_seed(0))  # noqa: E731
    uses: list[Callable[[], Tensor]] = [
        lambda: model.encode(x),
        lambda: seeded(lambda g: model.draw_codes(x, generator=g)),
        lambda: model.decode(points(5, model.code_size)),
        lambda: model.reconstruct(x),
        lambda: seeded(lambda g: model.sample(5, generator=g)),
        lambda: prior_samples(model).sample(5),
        lambda: posterior_samples(model, x).sample(5),
    ]
    model.decoder.eval()  # a part in a mode of its own
    modes = {part: part.training for part in model.modules()}
    state = copy.deepcopy(model.state_dict())
    training = [use() for use in uses]
    assert {part: part.training for part in model.modules()} == modes and True in modes.values()
    for name, value in model.state_dict().items():
        assert not isinstance(value, Tensor) or torch.equal(value, state[name]), name
    model.eval()
    for use, seen in zip(uses, training, strict=True):
        assert torch.equal(seen, use())
    assert not model.training


def test_mode_is_restored_after_an_error() -> None:
    model = small("vae")
    with pytest.raises(ValueError, match="codes: got shape"):
        model.decode(torch.zeros(2, 5))
    assert all(part.training for part in model.modules())


def test_training_steps_run_in_training_mode() -> None:
    """Dropout and the statistics of the batch, of GMMN+AE too, whose codes come from `encode` otherwise."""
    model = small("gmmn-ae", input_dropout=0.5)
    modes: list[bool] = []
    model.encoder.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    model.progress, before = 0.0, model.encoder[1].running_mean.clone()
    model.training_step(data(), model.configure_optimizers())
    assert modes == [True] and not torch.equal(model.encoder[1].running_mean, before)


def test_answers_compile_to_one_graph() -> None:
    for mode in (True, False):
        model = small("mmd-ae", input_dropout=0.5).train(mode)
        compiled = torch.compile(model.reconstruct, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(data()), model.reconstruct(data()))
        assert model.training == mode


# --- codes, counts, generators, optimizers ---


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda m: m.decode(torch.zeros(2, 3)), ValueError, r"codes: got shape \[2, 3\], expected \[B, 2\]"),
        (lambda m: m.decode(torch.zeros(2)), ValueError, r"codes: got shape \[2\], expected \[B, 2\]"),
        (lambda m: m.decode(torch.zeros(1, 2, dtype=torch.int32)), TypeError, "codes: got dtype torch.int32"),
        (lambda m: m.decode([[0.0, 1.0]]), TypeError, "codes: got list"),
        (lambda m: m.sample(-1), ValueError, "count: got -1"),
        (lambda m: m.sample(2.5), ValueError, "count: got 2.5"),
        (lambda m: m.sample(2, generator=7), TypeError, "generator: got int, expected a torch.Generator"),
        (lambda m: m.draw_codes(data(), generator=7), TypeError, "generator: got int, expected a torch.Generator"),
        (lambda m: prior_samples(m).sample(0), ValueError, "count: got 0"),
        (lambda m: list(prior_samples(m).stream(2, chunk=0)), ValueError, "chunk: got 0"),
        (lambda m: posterior_samples(m, torch.zeros(4, 3)), ValueError, r"images: got shape \[4, 3\], expected"),
        (lambda m: posterior_samples(m, data()[:0]), ValueError, r"images: got shape \[0, 20\]"),
        (lambda m: posterior_samples(m, data().byte()), TypeError, "images: got dtype torch.uint8"),
        (lambda m: chain(m, torch.zeros(4, 3), 1), ValueError, r"codes: got shape \[4, 3\]"),
        (lambda m: interpolate(m, torch.zeros(3, 7), torch.zeros(3, 7), 4), ValueError, r"first: got shape \[3, 7\]"),
        (lambda m: interpolate(m, data(), data().byte(), 4), TypeError, "second: got dtype torch.uint8"),
        (
            lambda m: markov_chain(m, 1, prior_samples(VAE(6, code_size=2))).sample(3),
            ValueError,
            r"draws of the prior: got shape \[3, 6\]",
        ),
    ],
)  # fmt: skip
def test_arguments_that_are_refused(use: Callable[[Autoencoder], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        use(small("vae"))


def test_samplers_take_images() -> None:
    model, x = small("vae"), data(12)
    images = x.unflatten(1, (1, 4, 5))
    assert torch.equal(posterior_samples(model, images).sample(9, 1), posterior_samples(model, x).sample(9, 1))


@every_model
def test_optimizers_by_name(kind: str) -> None:
    options = {"generator_learning_rate": 1e-3} if kind == "aae" else {}
    model = small(kind, **options)
    before, given = parameters(model), model.configure_optimizers()
    names = ", ".join(map(repr, given))
    first = next(iter(given.values()))
    wrong: list[dict[str, Any]] = [{}, given | {"discriminator": first}]
    wrong += [{other: given[other] for other in given if other != name} for name in given]
    for optimizers in wrong:
        shown = ", ".join(map(repr, optimizers)) or "none"
        with pytest.raises(ValueError, match=f"optimizers: got {shown}, expected {names}, as model.configure_opt"):
            model.training_step(data(), optimizers)
    for optimizer in (first, list(given.values()), None):
        with pytest.raises(TypeError, match=f"optimizers: got {type(optimizer).__name__}, expected a dictionary"):
            model.training_step(data(), optimizer)
    assert untouched(model, before)


# --- GMMN+AE without a training loop that knows its length ---


def test_a_plain_loop_trains_autoencoder_and_generator() -> None:
    torch.manual_seed(0)
    model = GMMNAE(
        DATA_DIM, hidden=(32,), code_size=2, generator=(16,), noise_size=3, draws=200, precision="float32",
        bandwidths=(0.25, 1.0), learning_rate=5e-3, prior_learning_rate=5e-3, input_dropout=0.0,
    )  # fmt: skip
    optimizers = model.configure_optimizers()
    history = []
    for _ in range(400):
        history.append(model.training_step(data(), optimizers))
    for term in ("reconstruction", "regularizer"):
        first, last = (sum(float(terms[term]) for terms in part) / 5 for part in (history[:5], history[-5:]))
        assert last < 0.85 * first, term
    patterns = torch.stack([data()[i::3].mean(0) for i in range(3)])
    distances, nearest = torch.cdist(model.sample(600), patterns).min(1)
    assert distances.median() < 0.5 * torch.cdist(patterns, patterns)[0, 1:].min()
    assert nearest.bincount(minlength=3).min() > 60


def test_a_plain_step_is_both_phases() -> None:
    """The autoencoder moves as in the first phase, the generator as in the second."""
    plain, phased = (small("gmmn-ae", hidden_dropout=0.0, input_dropout=0.0) for _ in range(2))
    phased.load_state_dict(plain.state_dict())
    torch.manual_seed(0)
    terms = plain.training_step(data(), plain.configure_optimizers())
    torch.manual_seed(0)
    optimizers = phased.configure_optimizers()
    phased.progress = 0.9
    second = phased.training_step(data(), optimizers)
    phased.progress = 0.0
    first = phased.training_step(data(), optimizers)
    assert same(parameters(plain), parameters(phased)) and plain.steps == 1
    assert terms["reconstruction"] == first["reconstruction"] and terms["regularizer"] == second["regularizer"]
    assert plain.phase_progress == 0.0
