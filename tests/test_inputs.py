"""Data that models accept: shapes, dtypes, the range of the values, real-valued data."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import points
from test_nn import DATA_DIM, data, every_autoencoder, every_model, parameters, same, small
from torch import Tensor, nn

from fastmmd.nn import MLP, MMDAE, Autoencoder, ClosedFormMMD, ConvEncoder, inputs
from fastmmd.priors import Gaussian
from fastmmd.training import load_recipe

METHODS: dict[str, Callable[[Autoencoder, Any], Any]] = {
    "training_step": lambda model, x: model.training_step(x, model.configure_optimizers()),
    "encode": lambda model, x: model.encode(x),
    "draw_codes": lambda model, x: model.draw_codes(x),
    "corrupt": lambda model, x: model.corrupt(x),
    "reconstruct": lambda model, x: model.reconstruct(x),
    "reconstruction_loss": lambda model, x: model.reconstruction_loss(x, torch.zeros(3, model.code_size)),
}
every_method = pytest.mark.parametrize("method", METHODS)
JAGGED = torch.nested.nested_tensor([torch.zeros(DATA_DIM)] * 2, layout=torch.jagged)
IDENTITY: dict[str, Any] = {"reconstruction": "squared_error", "output": "identity"}


def untouched(model: Autoencoder, before: list[Tensor]) -> bool:
    return same(before, parameters(model)) and model.steps == 0


# --- data ---


@every_method
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((3, DATA_DIM)), TypeError, r"x: got ndarray, expected a torch.Tensor: torch.as_tensor\(x\)"),
        (
            [torch.zeros(3, DATA_DIM)] * 2,
            TypeError,
            "x: got list, .*: unpack a batch as x, labels = batch",
        ),
        (torch.zeros(3, DATA_DIM, dtype=torch.uint8), TypeError, r"x: got dtype torch.uint8.*x.float\(\) / 255"),
        (
            torch.zeros(3, DATA_DIM, dtype=torch.int64),
            TypeError,
            r"x: got dtype torch.int64.*with x.float\(\)$",
        ),
        (torch.zeros(3, DATA_DIM, dtype=torch.complex64), TypeError, "x: got dtype torch.complex64"),
        (torch.zeros(3, DATA_DIM).to_sparse(), TypeError, r"x: got a sparse_coo tensor.*x.to_dense\(\)"),
        (
            torch.nested.nested_tensor([torch.zeros(DATA_DIM)] * 2, layout=torch.jagged),
            TypeError,
            "x: got a nested tensor.*padded",
        ),
        (torch.zeros(DATA_DIM), ValueError, rf"x: got shape \[{DATA_DIM}\], expected \[B, {DATA_DIM}\].*as x\[None\]"),
        (torch.zeros(3, 7), ValueError, rf"x: got shape \[3, 7\], expected \[B, {DATA_DIM}\] or \[B, C, H, W\]"),
        (torch.zeros(3, 1, 4, 4), ValueError, rf"x: got shape \[3, 1, 4, 4\].*C \* H \* W = {DATA_DIM}"),
        (torch.zeros(3, DATA_DIM, device="meta"), ValueError, r'x: got device meta, expected cpu.*x.to\("cpu"\)'),
    ],
)
def test_data_that_is_refused(method: str, x: Any, error: type[Exception], message: str) -> None:
    model = small("vae")
    before = parameters(model)
    with pytest.raises(error, match=message):
        METHODS[method](model, x)
    assert untouched(model, before)


@every_model
def test_every_model_checks_its_data(kind: str) -> None:
    model = small(kind)
    before = parameters(model)
    for x in (255 * data(), data()[:, :7], data().to(torch.uint8), data()[:0], data().log()):
        with pytest.raises((TypeError, ValueError), match="^x: got"):
            model.training_step(x, model.configure_optimizers())
        assert untouched(model, before)


@every_autoencoder
def test_images_are_flattened(kind: str) -> None:
    """In any memory format; codes are codes, and images come back as rows."""
    x = data(12)
    images = x.unflatten(1, (2, 5, 2)).to(memory_format=torch.channels_last)
    one, two = (small(kind) for _ in range(2))
    two.load_state_dict(one.state_dict())
    for model, batch in ((one, x), (two, images)):
        torch.manual_seed(1)
        model.training_step(batch, model.configure_optimizers())
    assert same(parameters(one), parameters(two))
    assert torch.equal(one.encode(images), one.encode(x)) and one.reconstruct(images).shape == x.shape
    assert torch.equal(one.reconstruction_loss(images, one.encode(x)), one.reconstruction_loss(x, one.encode(x)))
    encoder = ConvEncoder(16, (4,), 3)
    assert torch.equal(encoder(x[:, :16].unflatten(1, (1, 4, 4))), encoder(x[:, :16]))


def test_widths_of_encoders() -> None:
    """Known for the networks of the package and a linear layer; another encoder takes what it takes."""
    assert inputs.data_width(MLP(12, (), 3)) == inputs.data_width(MLP(12, (4,), 3)) == 12
    assert inputs.data_width(MLP(12, (4,), 3), 2) == 10 == inputs.data_width(nn.Linear(10, 3))
    assert inputs.data_width(ConvEncoder(49, (4,), 3, noise_inputs=2), 2) == 49

    class Rows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((1, 3))  # [B, 3, 4, 5] -> [B, 4]

    model = Autoencoder(Rows(), nn.Linear(4, 60), Gaussian(4), ClosedFormMMD())
    assert model.data_dim is None and model.encode(images := torch.rand(2, 3, 4, 5)).shape == (2, 4)
    assert model.training_step(images, model.configure_optimizers())["loss"].isfinite()
    loss = model.reconstruction_loss(images, model.encode(images))
    assert torch.equal(loss, model.reconstruction_loss(images.flatten(1), model.encode(images)))
    with pytest.raises(ValueError, match=r"x: got shape \[2, 7\], but the decoder gives \[2, 60\] for the codes"):
        model.reconstruction_loss(torch.rand(2, 7), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"x: got shape \[4\], expected \[B, data_dim\]"):
        model.encode(torch.rand(4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_data_of_every_kind(dtype: torch.dtype) -> None:
    model = small("mmd-ae")
    terms = model.training_step(data().to(dtype), model.configure_optimizers())
    expected = small("mmd-ae").training_step(data().to(dtype).float(), model.configure_optimizers())
    assert terms["loss"].isfinite() and model.encode(data().to(dtype)).dtype == torch.float32
    assert terms.keys() == expected.keys()


# --- the range ---


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (255.0, r"x: got values from 0.* to 255, expected \[0, 1\].*by 255.*ToTensor\(\).*output=\"identity\""),
        (-1.0, r"x: got values from -1 to .*, expected \[0, 1\]"),
        (float("nan"), r"x: got NaN, expected numbers: .*x.nan_to_num\(\)"),
        (float("inf"), r"x: got values from .* to inf, expected finite ones"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"reconstruction": "squared_error"}, IDENTITY])
def test_values_of_the_first_batch(options: dict[str, Any], value: float, message: str) -> None:
    model, x = small("mmd-ae", **options), data()
    x[3, 4] = value
    before = parameters(model)
    if options == IDENTITY and abs(value) < 1000:
        assert model.training_step(x, model.configure_optimizers())["loss"].isfinite()
        return
    with pytest.raises(ValueError, match=message):
        model.training_step(x, model.configure_optimizers())
    assert untouched(model, before)


def test_values_of_later_batches() -> None:
    """Every 50th is looked at; what rounding leaves outside [0, 1] is no error."""
    model, optimizers = small("mmd-ae"), small("mmd-ae").configure_optimizers()
    model.training_step(data() * (1 + 1e-4), optimizers)
    for _ in range(inputs.STEPS_BETWEEN_LOOKS - 1):
        model.training_step(data(4) * 3, optimizers)
    with pytest.raises(ValueError, match="x: got values"):
        model.training_step(data(4) * 3, optimizers)
    assert model.steps == inputs.STEPS_BETWEEN_LOOKS


def test_values_that_arrive_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: nothing waits, the batch that asks for them goes on, and a later one raises."""
    arrived: list[bool] = []
    monkeypatch.setattr(inputs._Bounds, "have_arrived", lambda self: bool(arrived))
    watch = inputs.RangeWatch()
    watch.look(data() * 3, "sigmoid")
    watch.look(data(), "sigmoid")
    arrived.append(True)
    with pytest.raises(ValueError, match="x: got values"):
        watch.look(data(), "sigmoid")
    watch.look(data(), "sigmoid")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_values_on_a_gpu() -> None:
    watch, x = inputs.RangeWatch(), data().cuda()
    watch.look(3 * x, "sigmoid")
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match="x: got values"):
        watch.look(x, "sigmoid")


def test_per_sample_gradients_are_not_looked_at() -> None:
    seen = torch.func.vmap(lambda row: (inputs.RangeWatch().look(row, "sigmoid"), row.sum())[1])(data(4))
    torch.testing.assert_close(seen, data(4).sum(1))


def test_copies_of_a_model_in_training() -> None:
    model = small("mmd-ae")
    model.training_step(data(), model.configure_optimizers())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for again in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(again.encode(data()), model.encode(data()))
        with pytest.raises(ValueError, match="x: got values"):
            again.training_step(255 * data(), again.configure_optimizers())


# --- real-valued data ---


def test_identity_output_is_the_decoder_itself() -> None:
    model, x = small("mmd-ae", **IDENTITY), 3 * points(6, DATA_DIM)
    codes = model.encode(x)
    values = model.decoder.eval()(codes)
    assert torch.equal(model.decode(codes), values) and values.min() < 0
    torch.testing.assert_close(model.reconstruction_loss(x, codes), (values - x).square().sum(1).mean())
    sigmoid = small("mmd-ae", reconstruction="squared_error")
    expected = (sigmoid.decode(sigmoid.encode(data(6))) - data(6)).square().sum(1).mean()
    torch.testing.assert_close(sigmoid.reconstruction_loss(data(6), sigmoid.encode(data(6))), expected)


@every_autoencoder
def test_standardized_features_train(kind: str) -> None:
    """Two factors in 20 features: the reconstruction explains most of their variance."""
    torch.manual_seed(0)
    x = points(256, 2) @ points(2, DATA_DIM, seed=1)
    x = (x - x.mean(0)) / x.std(0)
    options = {"learning_rate": 5e-3, "input_dropout": 0.0, "hidden_dropout": 0.0}
    options = {key: value for key, value in options.items() if kind == "gmmn-ae" or key != "hidden_dropout"}
    model = small(kind, **IDENTITY, **options, hidden=(64,))
    model.regularizer_weight = min(model.regularizer_weight, 1.0)
    optimizers = model.configure_optimizers()
    for _ in range(150):
        model.training_step(x, optimizers)
    assert (model.reconstruct(x) - x).square().mean() < 0.35
    assert model.sample(300).min() < -0.5


def test_identity_in_settings_and_recipes() -> None:
    model = MMDAE(6, hidden=(4,), **IDENTITY)
    assert model.settings()["output"] == "identity" and MMDAE(6, **model.settings()).output == "identity"
    overrides = {"model.output": "identity", "model.reconstruction": "squared_error"}
    assert load_recipe("vae", "", overrides).build(6).output == "identity"
    assert load_recipe("vae").build(6).output == "sigmoid"
    with pytest.raises(ValueError, match="output: got 'identity' with reconstruction='cross_entropy'.*squared_error"):
        MMDAE(6, output="identity")
    with pytest.raises(ValueError, match="output: got 'tanh', expected one of sigmoid, identity"):
        MMDAE(6, output="tanh")
