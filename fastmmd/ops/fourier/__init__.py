"""Random Fourier features (Rahimi and Recht 2007) whose frequencies are made from a seed and never stored."""

from __future__ import annotations

from .adversary import fourier_ascent, fourier_discrepancy
from .features import FourierFeatures
from .sums import fourier_function, fourier_mean

__all__ = ["FourierFeatures", "fourier_ascent", "fourier_discrepancy", "fourier_function", "fourier_mean"]
