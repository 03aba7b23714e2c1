"""Priors whose kernel mean embedding is known: what `mmd2_to_prior` takes."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..device_cache import DeviceCache
from ..ops.closed_form import KernelMeans
from .base import F64, Prior

Numbers = tuple[float, ...]


class ClosedFormPrior(Prior):
    """A prior with expectations of Gaussian kernels, `ops.closed_form.EmbeddedPrior`."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self._kept: dict[tuple[Numbers, Numbers], DeviceCache[KernelMeans]] = {}

    def kernel_means(
        self, bandwidths: Numbers | Tensor, kernel_weights: Numbers | Tensor, device: torch.device
    ) -> KernelMeans:
        """Expectations for S Gaussian kernels; those for numbers are made once and kept."""
        if isinstance(bandwidths, Tensor) or isinstance(kernel_weights, Tensor):
            s, w = (torch.as_tensor(values, dtype=F64, device=device) for values in (bandwidths, kernel_weights))
            return self._kernel_means(s, w, device)
        if torch.compiler.is_compiling():
            return self._means_for_numbers(bandwidths, kernel_weights, device)
        kept = self._kept.get((bandwidths, kernel_weights))
        if kept is None:
            if len(self._kept) >= 64:  # bandwidths on a schedule
                self._kept.clear()
            kept = DeviceCache(partial(self._means_for_numbers, bandwidths, kernel_weights))
            self._kept[bandwidths, kernel_weights] = kept
        return kept.get(device)

    def _means_for_numbers(self, bandwidths: Numbers, kernel_weights: Numbers, device: torch.device) -> KernelMeans:
        s, w = (torch.tensor(values, dtype=F64, device=device) for values in (bandwidths, kernel_weights))
        return self._kernel_means(s, w, device)

    def _kernel_means(self, bandwidths: Tensor, kernel_weights: Tensor, device: torch.device) -> KernelMeans:
        """For [S] float64 tensors on the device."""
        raise NotImplementedError(f"{type(self).__name__} must implement _kernel_means()")
