"""Measuring a trained model: Parzen log-likelihood, code statistics, sampling, walks through code space, figures."""

from __future__ import annotations

from fastmmd.evaluation.classifier import Classifier, train_classifier
from fastmmd.evaluation.codes import CodeStatistics, code_statistics, prior_holes, prior_parts
from fastmmd.evaluation.figures import save_grid, save_latent, save_reconstructions, save_samples, save_walks
from fastmmd.evaluation.large import LargeEvaluation, pilot_sigmas
from fastmmd.evaluation.manifold import DensityCoverage, PrecisionRecall, density_coverage, precision_recall
from fastmmd.evaluation.neighbors import Neighbors, nearest_neighbors
from fastmmd.evaluation.parzen import ParzenResult, choose_sigma, parzen_evaluation
from fastmmd.evaluation.plots import save_bars, save_curves, save_heatmap, save_panels
from fastmmd.evaluation.sampling import (
    ChainState,
    Sampler,
    chain,
    markov_chain,
    posterior_codes,
    posterior_samples,
    prior_samples,
)
from fastmmd.evaluation.walks import (
    component_walks,
    interpolate,
    lerp,
    percentile_grid,
    percentile_walks,
    roll_walk,
    slerp,
)

__all__ = [
    "ChainState",
    "Classifier",
    "CodeStatistics",
    "DensityCoverage",
    "LargeEvaluation",
    "Neighbors",
    "ParzenResult",
    "PrecisionRecall",
    "Sampler",
    "chain",
    "choose_sigma",
    "code_statistics",
    "component_walks",
    "density_coverage",
    "interpolate",
    "lerp",
    "markov_chain",
    "nearest_neighbors",
    "parzen_evaluation",
    "percentile_grid",
    "percentile_walks",
    "pilot_sigmas",
    "posterior_codes",
    "posterior_samples",
    "precision_recall",
    "prior_holes",
    "prior_parts",
    "prior_samples",
    "roll_walk",
    "save_bars",
    "save_curves",
    "save_grid",
    "save_heatmap",
    "save_latent",
    "save_panels",
    "save_reconstructions",
    "save_samples",
    "save_walks",
    "slerp",
    "train_classifier",
]
