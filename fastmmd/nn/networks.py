"""Encoder, decoder and discriminator networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from ..ops.arguments import check_choice, check_int, check_number
from .spread import BatchNorm1d, Dropout

Precision = Literal["auto", "float32", "bfloat16"]
M = TypeVar("M", bound=nn.Module)

CPU_HAS_BFLOAT16 = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))  # asked here: no compiler traces it


class MLP(nn.Module):
    """Fully connected layers with ReLU between them: [B, inputs] -> [B, outputs] in the dtype of its weights.

    Args:
        inputs, outputs: widths of the two ends. hidden: widths in between.
        input_dropout, hidden_dropout: probability of dropping an input, a hidden unit while training.
        batch_norm: normalize every hidden layer's sums over the batch before ReLU (Ioffe and Szegedy 2015).
        noise_inputs: how many inputs, the last ones, are noise and never dropped (the implicit posterior's eta).
        precision: "float32", "bfloat16" (matrix products while training; evaluation stays float32) or "auto" (bfloat16
            where the device multiplies it natively).
        last_in_float32: keep the last layer in float32 even then (encoders: the code needs its digits).
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        *,
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        batch_norm: bool = False,
        noise_inputs: int = 0,
        precision: Precision = "float32",
        last_in_float32: bool = True,
    ) -> None:
        super().__init__()
        self.inputs = check_int("inputs", inputs)
        widths = [self.inputs, *check_widths("hidden", hidden)]
        input_dropout = check_number("input_dropout", input_dropout, zero=True, below=1)
        self.noise_inputs = check_int("noise_inputs", noise_inputs, 0, self.inputs)
        hidden_dropout = check_number("hidden_dropout", hidden_dropout, zero=True, below=1)
        dropout = [Dropout(hidden_dropout)] if hidden_dropout else []
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), *([BatchNorm1d(b)] if batch_norm else []), nn.ReLU(), *dropout]
        self.input_dropout = Dropout(input_dropout)
        self.hidden = nn.Sequential(*layers)
        self.output = nn.Linear(widths[-1], check_int("outputs", outputs))
        self.precision = check_precision(precision)
        self.last_in_float32 = last_in_float32

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] -> [B, outputs]."""
        x = x.to(self.output.weight.dtype)
        if self.noise_inputs:
            data, noise = x[:, : -self.noise_inputs], x[:, -self.noise_inputs :]
            x = torch.cat([self.input_dropout(data), noise], dim=1)
        else:
            x = self.input_dropout(x)
        with half_precision(self, x.device):
            h = self.hidden(x)
            if not self.last_in_float32:
                return self.output(h).to(self.output.weight.dtype)  # type: ignore[no-any-return]
        with torch.autocast(x.device.type, enabled=False):
            return self.output(h.to(self.output.weight.dtype))  # type: ignore[no-any-return]


def half_precision(network: nn.Module, device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where the network's `precision` asks for it and while it trains; else nothing."""
    precision: Precision = network.precision  # type: ignore[assignment]
    low = network.training and resolve_precision(precision, device.type) == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=low)


def check_widths(name: str, widths: Sequence[int]) -> tuple[int, ...]:
    """The widths of hidden layers: positive ints."""
    if not isinstance(widths, Sequence) or isinstance(widths, str | bytes):
        raise TypeError(f"{name}: got {widths!r}, expected a sequence of widths such as (1024, 512)")
    return tuple(check_int(name, width) for width in widths)


def check_module(name: str, value: M, kind: type[nn.Module] = nn.Module) -> M:
    """A module, of a kind.

    Raises:
        TypeError: something else.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a {kind.__name__}")
    return value


def check_precision(precision: Precision) -> Precision:
    """One of "auto", "float32", "bfloat16"."""
    check_choice("precision", precision, get_args(Precision))
    return precision


def resolve_precision(precision: Precision, device_type: str) -> Precision:
    """What "auto" means on a device: "bfloat16" where it multiplies bfloat16 natively, else "float32"."""
    if check_precision(precision) != "auto":
        return precision
    if device_type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if device_type == "cpu" and CPU_HAS_BFLOAT16 else "float32"
