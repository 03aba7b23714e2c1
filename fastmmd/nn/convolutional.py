"""Convolutional encoders and decoders of square one-channel images, flattened as everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.arguments import check_int, check_number
from .networks import Precision, check_precision, check_widths, half_precision
from .spread import BatchNorm2d, Dropout

KERNEL, STRIDE, PADDING = 4, 2, 1  # a layer halves or doubles the side exactly


class ConvEncoder(nn.Module):
    """Strided convolutions, batch normalization, ReLU, a linear layer: [B, data_dim + noise_inputs] -> [B, outputs].

    As the encoders of Creswell, Arulkumaran and Bharath (2016, appendix) and the discriminator of DCGAN (Radford, Metz
    and Chintala 2016): every layer halves the side, the first has no batch normalization. Batch normalization keeps
    its statistics and weights in float32. While training it needs two numbers of a channel: where the last layer's
    side is 1, `least_rows` of a batch is 2.

    Args:
        data_dim: pixels of a square image of any side; it is padded with zeros to a multiple of 2^layers.
        channels: of each layer. outputs: width of the code.
        input_dropout: probability of dropping a pixel while training.
        noise_inputs: how many inputs, the last ones, are noise (the implicit posterior's eta). It enters as
            constant extra channels would, whose convolution is a number for each channel.
        precision: as for `MLP`; the linear layer stays in float32.

    Raises:
        ValueError, TypeError: naming the argument; `data_dim` of no square image.
    """

    def __init__(
        self,
        data_dim: int,
        channels: Sequence[int],
        outputs: int,
        *,
        input_dropout: float = 0.0,
        noise_inputs: int = 0,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        channels = check_channels(channels)
        self.side, self.padding, smallest = _sides(data_dim, len(channels))
        input_dropout = check_number("input_dropout", input_dropout, zero=True, below=1)
        self.noise_inputs = check_int("noise_inputs", noise_inputs, 0)
        self.input_dropout = Dropout(input_dropout)
        self.input = nn.Conv2d(1, channels[0], KERNEL, STRIDE, PADDING)
        self.noise = nn.Linear(noise_inputs, channels[0], bias=False) if noise_inputs else None
        layers: list[nn.Module] = []
        for a, b in pairwise(channels):
            convolution = nn.Conv2d(a, b, KERNEL, STRIDE, PADDING, bias=False)
            layers += [convolution, BatchNorm2d(b), nn.ReLU(inplace=True)]
        self.hidden = nn.Sequential(nn.ReLU(inplace=True), *layers, nn.Flatten())
        self.output = nn.Linear(channels[-1] * smallest**2, check_int("outputs", outputs))
        self.precision = check_precision(precision)
        self.least_rows = 2 if smallest == 1 and len(channels) > 1 else 1

    def forward(self, x: Tensor) -> Tensor:
        """[B, data_dim + noise_inputs], or images [B, 1, side, side] without noise -> [B, outputs]."""
        x = x.flatten(1)
        dtype = self.output.weight.dtype
        pixels, noise = x.to(dtype).tensor_split([self.side**2], dim=1)
        image = self.input_dropout(pixels).unflatten(1, (1, self.side, self.side))
        with half_precision(self, x.device):
            h = self.input(F.pad(image, self.padding))
            if self.noise is not None:
                h = h + self.noise(noise)[:, :, None, None]
            h = self.hidden(h)
        with torch.autocast(x.device.type, enabled=False):
            return self.output(h.to(dtype))  # type: ignore[no-any-return]


class ConvDecoder(nn.Module):
    """A linear layer, fractionally strided convolutions, batch normalization, ReLU: [B, inputs] -> [B, data_dim].

    The mirror image of `ConvEncoder`: every layer doubles the side, the last gives the logits of the pixels, of which
    the padding is cropped.

    Args:
        inputs: width of the code, with the switch of a label where the decoder has classes.
        channels: of each layer, in reverse order of the encoder: `channels[::-1]` of the encoder.
        data_dim, precision: as for `ConvEncoder`, the linear layer in the layers' precision.

    Raises:
        ValueError, TypeError: naming the argument; `data_dim` of no square image.
    """

    def __init__(
        self, inputs: int, channels: Sequence[int], data_dim: int, *, precision: Precision = "float32"
    ) -> None:
        super().__init__()
        channels = check_channels(channels)
        self.side, self.padding, smallest = _sides(data_dim, len(channels))
        self.input = nn.Linear(check_int("inputs", inputs), channels[0] * smallest**2, bias=False)
        layers: list[nn.Module] = [nn.Unflatten(1, (channels[0], smallest, smallest))]
        for a, b in pairwise([*channels, 1]):
            layers += [BatchNorm2d(a), nn.ReLU(inplace=True)]
            layers += [nn.ConvTranspose2d(a, b, KERNEL, STRIDE, PADDING, bias=b == 1)]
        self.hidden = nn.Sequential(*layers)
        self.precision = check_precision(precision)
        self.least_rows = 2 if smallest == 1 else 1

    def forward(self, codes: Tensor) -> Tensor:
        """[B, inputs] -> logits [B, data_dim]."""
        dtype = self.input.weight.dtype
        with half_precision(self, codes.device):
            image = self.hidden(self.input(codes.to(dtype)))
        left, _, top, _ = self.padding
        return image[:, 0, top : top + self.side, left : left + self.side].flatten(1).to(dtype)  # type: ignore[no-any-return]


def check_channels(channels: Sequence[int]) -> tuple[int, ...]:
    """The channels of one or more layers: positive ints."""
    widths = check_widths("channels", channels)
    if not widths:
        raise ValueError("channels: got none, expected a number for each layer such as (64, 128, 256)")
    return widths


def _sides(data_dim: int, layers: int) -> tuple[int, tuple[int, int, int, int], int]:
    """Side of the image, zeros (left, right, top, bottom) up to a multiple of 2^layers, side after the last layer."""
    side = math.isqrt(check_int("data_dim", data_dim))
    if side**2 != data_dim:
        raise ValueError(
            f"data_dim: got {data_dim}, expected a square image for network='convolutional'; 'mlp' takes any"
        )
    padded = -(-side // STRIDE**layers) * STRIDE**layers
    before = (padded - side) // 2
    after = padded - side - before
    return side, (before, after, before, after), padded // STRIDE**layers
