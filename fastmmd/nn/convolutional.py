"""Convolutional encoders and decoders of images, gray or color, flattened channel by channel."""

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

KERNEL, STRIDE, PADDING = 4, 2, 1  # a layer halves or doubles the sides exactly


class ConvEncoder(nn.Module):
    """Strided convolutions, batch normalization, ReLU, a linear layer: [B, data_dim + noise_inputs] -> [B, outputs].

    As the encoders of Creswell, Arulkumaran and Bharath (2016, appendix) and the discriminator of DCGAN (Radford, Metz
    and Chintala 2016): every layer halves the sides, the first has no batch normalization. Batch normalization keeps
    its statistics and weights in float32. While training it needs two numbers of a channel: where the last layer's
    sides are 1, `least_rows` of a batch is 2.

    Args:
        data_dim: numbers of an image, whose sides are padded with zeros to multiples of 2^layers.
        channels: of each layer. outputs: width of the code.
        image_shape: (H, W), or (C, H, W) of an image of C channels; None: a square one of one channel.
        input_dropout: probability of dropping a number of an image while training.
        noise_inputs: how many inputs, the last ones, are noise (the implicit posterior's eta). It enters as
            constant extra channels would, whose convolution is a number for each channel.
        precision: as for `MLP`; the linear layer stays in float32.

    Raises:
        ValueError, TypeError: naming the argument; `data_dim` of no such image.
    """

    def __init__(
        self,
        data_dim: int,
        channels: Sequence[int],
        outputs: int,
        *,
        image_shape: Sequence[int] | None = None,
        input_dropout: float = 0.0,
        noise_inputs: int = 0,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        channels = check_channels(channels)
        self.image_shape = check_image_shape(image_shape, data_dim)
        self.padding, smallest = _padding(self.image_shape, len(channels))
        input_dropout = check_number("input_dropout", input_dropout, zero=True, below=1)
        self.noise_inputs = check_int("noise_inputs", noise_inputs, 0)
        self.input_dropout = Dropout(input_dropout)
        self.input = nn.Conv2d(self.image_shape[0], channels[0], KERNEL, STRIDE, PADDING)
        self.noise = nn.Linear(noise_inputs, channels[0], bias=False) if noise_inputs else None
        layers: list[nn.Module] = []
        for a, b in pairwise(channels):
            convolution = nn.Conv2d(a, b, KERNEL, STRIDE, PADDING, bias=False)
            layers += [convolution, BatchNorm2d(b), nn.ReLU(inplace=True)]
        self.hidden = nn.Sequential(nn.ReLU(inplace=True), *layers, nn.Flatten())
        self.output = nn.Linear(channels[-1] * math.prod(smallest), check_int("outputs", outputs))
        self.precision = check_precision(precision)
        self.least_rows = 2 if smallest == (1, 1) and len(channels) > 1 else 1

    def forward(self, x: Tensor) -> Tensor:
        """[B, data_dim + noise_inputs], or images [B, C, H, W] without noise -> [B, outputs]."""
        x = x.flatten(1)
        dtype = self.output.weight.dtype
        pixels, noise = x.to(dtype).tensor_split([math.prod(self.image_shape)], dim=1)
        image = self.input_dropout(pixels).unflatten(1, self.image_shape)
        with half_precision(self, x.device):
            h = self.input(F.pad(image, self.padding))
            if self.noise is not None:
                h = h + self.noise(noise)[:, :, None, None]
            h = self.hidden(h)
        with torch.autocast(x.device.type, enabled=False):
            return self.output(h.to(dtype))  # type: ignore[no-any-return]


class ConvDecoder(nn.Module):
    """A linear layer, fractionally strided convolutions, batch normalization, ReLU: [B, inputs] -> [B, data_dim].

    The mirror image of `ConvEncoder`: every layer doubles the sides, the last gives the logits of the pixels, of which
    the padding is cropped.

    Args:
        inputs: width of the code, with the switch of a label where the decoder has classes.
        channels: of each layer, in reverse order of the encoder: `channels[::-1]` of the encoder.
        data_dim, image_shape, precision: as for `ConvEncoder`, the linear layer in the layers' precision.

    Raises:
        ValueError, TypeError: naming the argument; `data_dim` of no such image.
    """

    def __init__(
        self,
        inputs: int,
        channels: Sequence[int],
        data_dim: int,
        *,
        image_shape: Sequence[int] | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        channels = check_channels(channels)
        self.image_shape = check_image_shape(image_shape, data_dim)
        self.padding, smallest = _padding(self.image_shape, len(channels))
        self.input = nn.Linear(check_int("inputs", inputs), channels[0] * math.prod(smallest), bias=False)
        layers: list[nn.Module] = [nn.Unflatten(1, (channels[0], *smallest))]
        for number, (a, b) in enumerate(pairwise([*channels, self.image_shape[0]]), 1):
            layers += [BatchNorm2d(a), nn.ReLU(inplace=True)]
            layers += [nn.ConvTranspose2d(a, b, KERNEL, STRIDE, PADDING, bias=number == len(channels))]
        self.hidden = nn.Sequential(*layers)
        self.precision = check_precision(precision)
        self.least_rows = 2 if smallest == (1, 1) else 1

    def forward(self, codes: Tensor) -> Tensor:
        """[B, inputs] -> logits [B, data_dim]."""
        dtype = self.input.weight.dtype
        with half_precision(self, codes.device):
            image = self.hidden(self.input(codes.to(dtype)))
        (_, height, width), (left, _, top, _) = self.image_shape, self.padding
        return image[:, :, top : top + height, left : left + width].flatten(1).to(dtype)  # type: ignore[no-any-return]


def check_channels(channels: Sequence[int]) -> tuple[int, ...]:
    """The channels of one or more layers: positive ints."""
    widths = check_widths("channels", channels)
    if not widths:
        raise ValueError("channels: got none, expected a number for each layer such as (64, 128, 256)")
    return widths


def check_image_shape(image_shape: Sequence[int] | None, data_dim: int) -> tuple[int, int, int]:
    """(C, H, W) of images of `data_dim` numbers: of `image_shape`, else square and of one channel."""
    data_dim = check_int("data_dim", data_dim)
    if image_shape is None:
        side = math.isqrt(data_dim)
        if side**2 != data_dim:
            raise ValueError(
                f"data_dim: got {data_dim}, expected a square image for network='convolutional' and for shift, or "
                "image_shape; 'mlp' takes any"
            )
        return 1, side, side
    sizes = check_widths("image_shape", image_shape)
    if len(sizes) not in (2, 3) or math.prod(sizes) != data_dim:
        raise ValueError(
            f"image_shape: got {list(sizes)}, expected [H, W] or [C, H, W] of data_dim = {data_dim} numbers"
        )
    height, width = sizes[-2:]
    return (sizes[0] if len(sizes) == 3 else 1), height, width


def _padding(image_shape: tuple[int, int, int], layers: int) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """Zeros (left, right, top, bottom) up to multiples of 2^layers, and height and width after the last layer."""
    _, height, width = image_shape
    smallest_height, smallest_width = (-(-side // STRIDE**layers) for side in (height, width))
    below, beside = smallest_height * STRIDE**layers - height, smallest_width * STRIDE**layers - width
    padding = (beside // 2, beside - beside // 2, below // 2, below - below // 2)
    return padding, (smallest_height, smallest_width)
