"""Standardized pixels: a model of them is the model of data that were standardized before, in the data's own units."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_close, points
from test_nn import DATA_DIM, SMALL
from torch import Tensor, nn

from fastmmd.nn import MODELS, VAE, Autoencoder, ClosedFormMMD
from fastmmd.nn.networks import MLP
from fastmmd.priors import Gaussian
from fastmmd.training import Dataset, Split, load_recipe
from fastmmd.training.loop import Trainer
from fastmmd.training.run import RunConfig, RunFolder, load_model

REAL: dict[str, Any] = {"output": "identity", "reconstruction": "squared_error", "precision": "float32"}


def real(kind: str, standardize: bool = True, **options: Any) -> Autoencoder:
    torch.manual_seed(0)
    return MODELS[kind](DATA_DIM, **(SMALL[kind] | REAL | {"standardize": standardize} | options))


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    """Of pixels with means from -3 to 3 and standard deviations from 0.1 to 2; the last is the same in all."""
    scale, shift = torch.linspace(0.1, 2, DATA_DIM), torch.linspace(-3, 3, DATA_DIM)
    scale[-1] = 0
    return (points(40, DATA_DIM) * scale + shift).to(dtype)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each pixel, by their definition; 1 where a pixel does not vary."""
    mean = x.double().sum(0) / len(x)
    std = ((x.double() - mean).square().sum(0) / len(x)).sqrt()
    std[-1] = 1
    return mean.to(x), std.to(x)


@pytest.mark.parametrize("kind", [kind for kind, model in MODELS.items() if issubclass(model, Autoencoder)])
def test_a_model_of_standardized_pixels_in_the_units_of_the_data(kind: str) -> None:
    x = images()
    mean, std = moments(x)
    model, plain = real(kind, denoising=0.0), real(kind, standardize=False)
    model.standardize_to(x)
    z = (x - mean) / std
    ours, theirs = model.configure_optimizers(), plain.configure_optimizers()
    for step in range(3):
        torch.manual_seed(step)
        terms = model.training_step(x, ours)
        torch.manual_seed(step)
        for name, value in plain.training_step(z, theirs).items():
            torch.testing.assert_close(terms[name], value, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(model.encode(x), plain.encode(z), rtol=1e-3, atol=1e-4)
    codes = points(5, model.code_size)
    torch.testing.assert_close(model.decode(codes), mean + std * plain.decode(codes), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model.reconstruct(x), mean + std * plain.reconstruct(z), rtol=1e-3, atol=1e-3)
    draws = [one.sample(4, generator=torch.Generator().manual_seed(1)) for one in (model, plain)]
    torch.testing.assert_close(draws[0], mean + std * draws[1], rtol=1e-3, atol=1e-3)


def test_the_noise_of_denoising_is_in_the_units_of_the_data() -> None:
    model, x = real("vae", denoising=0.5), images()
    model.standardize_to(x)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(model.corrupt(x, generator=generator), x + 0.5 * noise)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_and_deviation(dtype: torch.dtype) -> None:
    model, x = real("vae").to(dtype), images(dtype)
    model.standardize_to(x.unflatten(1, (4, 5)))
    assert model.standardization is not None
    for ours, expected in zip((model.standardization.mean, model.standardization.std), moments(x), strict=True):
        assert ours.dtype == dtype
        assert_close(ours, expected)
    assert model.decode(points(2, 2, dtype=dtype)).dtype == dtype
    assert model.standardization.std[-1] == 1  # of a pixel that does not vary


def test_images_of_a_decoder_that_gives_images() -> None:
    x = images()
    decoder = nn.Sequential(nn.Linear(2, DATA_DIM), nn.Unflatten(1, (1, 4, 5)))
    model = Autoencoder(
        MLP(DATA_DIM, (8,), 2),
        decoder,
        Gaussian(2),
        ClosedFormMMD((1.0,)),
        reconstruction="squared_error",
        output="identity",
        standardize=True,
    )
    model.standardize_to(x)
    mean, std = moments(x)
    codes = points(3, 2)
    expected = mean + std * decoder(codes).flatten(1)
    torch.testing.assert_close(model.decode(codes), expected.unflatten(1, (1, 4, 5)))
    squared = (decoder(codes).flatten(1) - (x[:3] - mean) / std).square().sum(1).mean()
    torch.testing.assert_close(model.reconstruction_loss(x[:3].unflatten(1, (1, 4, 5)), codes), squared)


def test_nothing_works_before_they_are_known() -> None:
    model, x, codes = real("vae"), images(), points(2, 2)
    optimizers = model.configure_optimizers()
    for use in (
        lambda: model.encode(x),
        lambda: model.decode(codes),
        lambda: model.sample(2),
        lambda: model(x),
        lambda: model.training_step(x, optimizers),
    ):
        with pytest.raises(RuntimeError, match=r"^standardize: .*model\.standardize_to\(images\)"):
            use()


def test_what_is_refused() -> None:
    for options, error, message in (
        ({"output": "sigmoid"}, ValueError, "standardize: got true with output='sigmoid'"),
        ({"standardize": 1}, TypeError, "standardize: got 1, expected true or false"),
    ):
        with pytest.raises(error, match=message):
            real("vae", **options)
    with pytest.raises(ValueError, match="standardize: got true with an encoder whose inputs cannot be counted"):
        Autoencoder(
            nn.Sequential(nn.Linear(4, 2)),
            nn.Linear(2, 4),
            Gaussian(2),
            ClosedFormMMD((1.0,)),
            reconstruction="squared_error",
            output="identity",
            standardize=True,
        )
    model = real("vae")
    for given, message in (
        (torch.zeros(0, DATA_DIM), r"images: got shape \[0, 20\], expected one or more"),
        (torch.full((3, DATA_DIM), torch.nan), "images: got NaN or infinity"),
        (torch.zeros(3, 7), r"images: got shape \[3, 7\]"),
    ):
        with pytest.raises(ValueError, match=message):
            model.standardize_to(given)
    real("vae", standardize=False).standardize_to(images())  # nothing to do


def test_a_state_dict_carries_them() -> None:
    model, fresh, file = real("vae"), real("vae"), io.BytesIO()
    model.standardize_to(images())
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(fresh.encode(images()), model.encode(images()), rtol=0, atol=0)
    fresh.load_state_dict(real("vae").state_dict())  # of a model that knows none
    with pytest.raises(RuntimeError, match="standardize"):
        fresh.encode(images())


def test_a_run_takes_them_from_its_training_images(tmp_path: Path) -> None:
    """Trained, resumed and loaded, with averaged weights too; what is measured is in the units of the images."""
    x = images().sigmoid()
    data = Dataset("tiny", Split(x[:20]), Split(x[20:30]), Split(x[30:]), (4, 5))
    small = {"model.hidden": [8], "model.discriminator": [8], "model.code_size": 2, "training.batch_size": 10}
    small |= {"training.epochs": 2, "training.average": 0.5, "training.threads": 1, "evaluation.samples": 50}
    config = RunConfig(load_recipe("aae-faces", "", small), "tiny", DATA_DIM)
    for epochs in (2, 3):
        config = RunConfig(load_recipe("aae-faces", "", small | {"training.epochs": epochs}), "tiny", DATA_DIM)
        trainer = Trainer(config, data, RunFolder(tmp_path), quiet=True)
        if epochs == 3:
            trainer.resume()
        trainer.fit()
        loaded = load_model(RunFolder(tmp_path), config, torch.device("cpu"))
        mean, std = moments(x[:20])
        for model in (trainer.model, trainer.evaluated_model, loaded):
            assert model.standardization is not None
            torch.testing.assert_close(model.standardization.mean, mean)
            torch.testing.assert_close(model.standardization.std, std)
        assert (loaded.sample(50).mean(0) - mean).abs().max() < 5 * std[:-1].max()


def test_beta1_is_that_of_encoder_and_decoder() -> None:
    model = real("aae", standardize=False, beta1=0.3, adversary_beta1=0.6, generator_learning_rate=1e-3)
    betas = {name: optimizer.param_groups[0]["betas"][0] for name, optimizer in model.configure_optimizers().items()}
    assert betas == {"autoencoder": 0.3, "generator": 0.3, "adversary": 0.6}
    with pytest.raises(ValueError, match="beta1: got 1"):
        VAE(DATA_DIM, beta1=1)
