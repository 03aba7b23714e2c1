"""Measuring a trained model: Parzen log-likelihood, code statistics, sampling, figures."""

from __future__ import annotations

from fastmmd.evaluation.codes import CodeStatistics, code_statistics
from fastmmd.evaluation.figures import save_latent, save_reconstructions, save_samples
from fastmmd.evaluation.parzen import ParzenResult, choose_sigma, parzen_evaluation
from fastmmd.evaluation.sampling import Sampler, interpolate, markov_chain, posterior_codes, prior_samples

__all__ = [
    "CodeStatistics",
    "ParzenResult",
    "Sampler",
    "choose_sigma",
    "code_statistics",
    "interpolate",
    "markov_chain",
    "parzen_evaluation",
    "posterior_codes",
    "prior_samples",
    "save_latent",
    "save_reconstructions",
    "save_samples",
]
