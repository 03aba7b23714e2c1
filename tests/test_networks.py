"""Convolutional networks: shapes, padding, noise, precision, and the models made of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fastmmd.nn import AAE, MODELS, ConvDecoder, ConvEncoder
from fastmmd.nn.base import Model
from fastmmd.training import load_data

SMALL: dict[str, Any] = {"network": "convolutional", "channels": (4, 6), "precision": "float32", "code_size": 3}


def small(kind: str, side: int = 8, **options: Any) -> Model:
    more = {"discriminator": (8,)} if kind == "aae" else {"features": 10} if kind == "ds-aae" else {}
    return MODELS[kind](side**2, **(SMALL | more | options))


@pytest.mark.parametrize(("side", "layers"), [(1, 1), (7, 2), (8, 2), (8, 3), (28, 3), (28, 2), (33, 5)])
def test_shapes_of_any_side(side: int, layers: int) -> None:
    """The side is padded to a multiple of 2^layers, 28 to 32, and the decoder crops what was padded."""
    channels = (3, 4, 5, 6, 7)[:layers]
    encoder, decoder = ConvEncoder(side**2, channels, 5), ConvDecoder(5, channels[::-1], side**2)
    smallest = -(-side // 2**layers)
    assert encoder.output.in_features == channels[-1] * smallest**2
    x = torch.rand(4, side**2)
    codes = encoder(x)
    assert codes.shape == (4, 5)
    images = decoder(codes)
    assert images.shape == (4, side**2)
    # Every pixel reaches the code, every code dimension every pixel.
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(encoder(x).square().sum(), x)
    assert (gradient.abs().sum(0) > 0).float().mean() > (0.9 if side > 1 else 0)
    assert (decoder(codes).var(0) > 0).all()


def test_pixels_keep_their_place() -> None:
    """One layer with weights that copy: an image through encoder and decoder in the same orientation."""
    decoder = ConvDecoder(9 * 4, (4,), 36).eval()  # side 6 -> 6: one layer, smallest side 3, four channels
    with torch.no_grad():
        decoder.input.weight.copy_(torch.eye(36))
        convolution = decoder.hidden[-1]
        convolution.weight.zero_()
        convolution.bias.zero_()
        for channel, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
            convolution.weight[channel, 0, 1 + row, 1 + column] = 1.0  # the four children of a pixel
    x = torch.rand(2, 6, 6)
    blocks = x.unfold(1, 2, 2).unfold(2, 2, 2).permute(0, 3, 4, 1, 2).reshape(2, 36)  # [B, child, 3, 3]
    torch.testing.assert_close(decoder(blocks), x.flatten(1), rtol=1e-4, atol=1e-4)


def test_the_noise_is_a_constant_plane_beside_the_image() -> None:
    torch.manual_seed(0)
    encoder = ConvEncoder(64, (4, 6), 3, noise_inputs=2).eval()
    x, eta = torch.rand(5, 64), torch.randn(5, 2)
    planes = eta[:, :, None, None].expand(-1, -1, 10, 10)  # padded by the convolution's padding with the constant
    weights = encoder.noise.weight / 16
    kernel = weights[:, :, None, None].expand(-1, -1, 4, 4)
    image = nn.functional.pad(x.reshape(5, 1, 8, 8), (1, 1, 1, 1))
    joined = torch.cat([image, planes], 1)
    first = nn.functional.conv2d(joined, torch.cat([encoder.input.weight, kernel], 1), encoder.input.bias, stride=2)
    torch.testing.assert_close(encoder(torch.cat([x, eta], 1)), encoder.output(encoder.hidden(first)))
    assert not torch.equal(encoder(torch.cat([x, eta], 1)), encoder(torch.cat([x, eta + 1], 1)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvEncoder(12, (4,), 3), "data_dim: got 12, expected a square image for network='convolutional'"),
        (lambda: ConvDecoder(3, (4,), 12), "data_dim: got 12, expected a square image"),
        (lambda: ConvEncoder(16, (), 3), "channels: got none, expected a number for each layer"),
        (lambda: ConvEncoder(16, (4, 0), 3), "channels: got 0, expected a positive int"),
        (lambda: ConvEncoder(16, (4,), 3, precision="half"), "precision: got 'half'"),
        (lambda: ConvEncoder(16, (4,), 3, noise_inputs=-1), "noise_inputs: got -1"),
        (lambda: ConvEncoder(16, (4,), 3, input_dropout=1.0), "input_dropout: got 1.0"),
        (lambda: small("aae", network="transformer"), "network: got 'transformer', expected one of mlp, convolutional"),
        (lambda: MODELS["vae"](20, **SMALL), "data_dim: got 20, expected a square image"),
    ],
)
def test_errors(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", ["aae", "mmd-ae", "ds-aae", "vae"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_models_of_convolutional_networks(kind: str, precision: str) -> None:
    """With every posterior and labels in the decoder; statistics stay in float32; settings make the same model."""
    options: dict[str, Any] = {"labels": "decoder", "precision": precision, "input_dropout": 0.1}
    options["posterior"] = "gaussian" if kind == "vae" else "implicit"
    model = small(kind, **options)
    x, labels = torch.rand(20, 64), torch.arange(20) % 11 - 1
    optimizers = model.configure_optimizers()
    for _ in range(2):
        terms = model.training_step(x, optimizers, labels)
        assert all(value.isfinite() and value.dtype == torch.float32 for value in terms.values())
    floats = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
    assert {value.dtype for value in floats} == {torch.float32}
    model.eval()
    assert model.sample(6, labels=labels[:6]).shape == (6, 64)
    assert model.encode(x).shape == (20, 3)
    again = MODELS[kind](64, **model.settings())
    assert again.settings() == model.settings() and model.settings()["channels"] == (4, 6)
    again.load_state_dict(model.state_dict())  # the statistics of batch normalization too
    assert torch.equal(again.eval().encode(x), model.encode(x))
    assert not torch.equal(model.encoder.hidden[2].running_mean, torch.zeros(6))


def test_convolutional_models_learn_digits() -> None:
    images = load_data("digits").train.images[:500]
    model = AAE(
        64, network="convolutional", channels=(8, 16), code_size=8, discriminator=(32,), prior_std=1.0,
        regularizer_weight=1.0, learning_rate=1e-2, precision="float32",
    )  # fmt: skip
    optimizers = model.configure_optimizers()
    history = [model.training_step(images[i % 5 * 100 :][:100], optimizers) for i in range(50)]
    first, last = (sum(terms["reconstruction"] for terms in part) / 5 for part in (history[:5], history[-5:]))
    assert last < 0.7 * first
    model.eval()
    error = (model.reconstruct(images) - images).square().mean()
    assert error < 0.8 * images.var(0).mean()
