"""Prior distributions of the code: what a generative autoencoder samples from."""

from __future__ import annotations

from .base import Prior
from .closed_form import ClosedFormPrior
from .mixture import Gaussian, GaussianMixture, MixturePrior
from .swiss_roll import SwissRoll
from .uniform import Uniform

__all__ = ["ClosedFormPrior", "Gaussian", "GaussianMixture", "MixturePrior", "Prior", "SwissRoll", "Uniform"]
