"""Fused kernels for maximum mean discrepancy, random Fourier features and Parzen likelihood in PyTorch."""

from . import nn, priors
from .backends import BackendName, available_backends, backend
from .ops.arguments import Estimator, KernelName
from .ops.closed_form import mmd2_to_prior
from .ops.fourier import FourierFeatures, fourier_ascent, fourier_discrepancy, fourier_function, fourier_mean
from .ops.median import median_bandwidth
from .ops.mmd import FixedSample, StreamingMMD, mmd2, witness
from .ops.parzen import ParzenEstimator, parzen_log_likelihood
from .ops.shards import Shards

__version__ = "0.1.0"
__all__ = [
    "BackendName",
    "Estimator",
    "FixedSample",
    "FourierFeatures",
    "KernelName",
    "ParzenEstimator",
    "Shards",
    "StreamingMMD",
    "available_backends",
    "backend",
    "fourier_ascent",
    "fourier_discrepancy",
    "fourier_function",
    "fourier_mean",
    "median_bandwidth",
    "mmd2",
    "mmd2_to_prior",
    "nn",
    "parzen_log_likelihood",
    "priors",
    "witness",
]
