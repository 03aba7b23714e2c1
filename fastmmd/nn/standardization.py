"""Standardized pixels: the units in which a model may see and reconstruct its images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Standardization(nn.Module):
    """Mean and standard deviation of every pixel over the training images, as buffers [data_dim].

    The contrast normalization by which Makhzani et al. (2015, appendix A.1) model faces; `invert` undoes it before
    images are shown or their likelihood is measured. A pixel that is the same in all training images keeps its unit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, data_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(data_dim))
        self.register_buffer("std", torch.ones(data_dim))
        self.known = False  # not by the buffers' values, which a GPU would have to be waited for

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Take both from images [N, data_dim].

        Raises:
            ValueError: there are none, or they are not finite.
        """
        if len(images) == 0 or not bool(images.isfinite().all()):
            what = "NaN or infinity" if len(images) else f"shape {list(images.shape)}"
            raise ValueError(f"images: got {what}, expected one or more training images of finite numbers")
        std, mean = torch.std_mean(images.to(self.mean.dtype), 0, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 0, std, 1.0))
        self.known = True

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, data_dim] in standardized units.

        Raises:
            RuntimeError: neither `fit` nor a checkpoint has given mean and standard deviation.
        """
        self._require_known()
        return (x - self.mean) / self.std

    def invert(self, values: Tensor) -> Tensor:
        """Values [B, ...] of data_dim numbers each, in standardized units, in those of the images.

        Raises:
            RuntimeError: as `forward`.
        """
        self._require_known()
        return (self.mean + self.std * values.flatten(1)).reshape(values.shape)

    def get_extra_state(self) -> dict[str, Any]:
        return {"known": self.known}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.known = state["known"]

    def _require_known(self) -> None:
        if not self.known:
            raise RuntimeError(
                "standardize: mean and standard deviation of the training images are not known; call "
                "model.standardize_to(images) before the model is trained or used, or load a trained one's state_dict"
            )


def standardization(standardize: bool, output: str, data_dim: int | None) -> Standardization | None:
    """What a model with this setting, this output and images of `data_dim` numbers has, or None.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not isinstance(standardize, bool):
        raise TypeError(f"standardize: got {standardize!r}, expected true or false")
    if not standardize:
        return None
    if output != "identity":
        raise ValueError(
            f"standardize: got true with output={output!r}, but standardized pixels are real-valued; expected "
            "output='identity'"
        )
    if data_dim is None:
        raise ValueError(
            "standardize: got true with an encoder whose inputs cannot be counted, expected an MLP, a ConvEncoder or "
            "an nn.Linear"
        )
    return Standardization(data_dim)
