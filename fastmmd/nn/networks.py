"""Encoder, decoder and discriminator networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

PRECISIONS = ("auto", "float32", "bfloat16")


class MLP(nn.Module):
    """Fully connected layers with ReLU between them: [B, inputs] -> [B, outputs], float32.

    Args:
        inputs, outputs: widths of the two ends. hidden: widths in between.
        input_dropout: probability of dropping an input while training.
        precision: "float32", "bfloat16" (matrix products of the layers in `low_precision` while training; evaluation
            stays float32) or "auto" (bfloat16 where the hardware multiplies it natively).
        last_in_float32: keep the last layer in float32 even then (encoders: the code needs its digits).
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        *,
        input_dropout: float = 0.0,
        precision: str = "float32",
        last_in_float32: bool = True,
    ) -> None:
        super().__init__()
        widths = [inputs, *hidden]
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.input_dropout = nn.Dropout(input_dropout)
        self.hidden = nn.Sequential(*layers)
        self.output = nn.Linear(widths[-1], outputs)
        self.low_precision = resolve_precision(precision) == "bfloat16"
        self.last_in_float32 = last_in_float32

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] -> [B, outputs]."""
        x = self.input_dropout(x)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.low_precision and self.training):
            h = self.hidden(x)
            if not self.last_in_float32:
                return self.output(h).float()  # type: ignore[no-any-return]
        with torch.autocast(x.device.type, enabled=False):
            return self.output(h.float())  # type: ignore[no-any-return]


def resolve_precision(precision: str) -> str:
    """ "auto" becomes "bfloat16" where a GPU or this CPU has native bfloat16 products, else "float32"."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, expected one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bfloat16" if native() else "float32"
