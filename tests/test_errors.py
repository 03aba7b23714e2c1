"""Bad input: the error names the argument, what came and what is allowed."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from helpers import F64, points

import fastmmd
from fastmmd.backends import NAMES
from fastmmd.ops.arguments import KERNELS

X, Y = points(6, 3), points(5, 3, seed=1)
FEATURES = fastmmd.FourierFeatures(3, 4)
PRIOR = fastmmd.priors.Gaussian(3)
ESTIMATOR = fastmmd.ParzenEstimator(X, (0.5, 1.0))

KERNEL_ARGUMENTS = [
    ({"bandwidths": (1.0, 0.0)}, ValueError, "bandwidths: got .* expected positive finite"),
    ({"bandwidths": (-1.0,)}, ValueError, "bandwidths: got"),
    ({"bandwidths": (math.nan,)}, ValueError, "bandwidths: got"),
    ({"bandwidths": (math.inf,)}, ValueError, "bandwidths: got"),
    ({"bandwidths": ()}, ValueError, "bandwidths: got an empty"),
    ({"bandwidths": 2.0}, TypeError, "bandwidths: got 2.0, expected a sequence"),
    ({"bandwidths": np.array(2.0)}, TypeError, "bandwidths: got array.2.., expected a sequence"),
    ({"bandwidths": "12"}, TypeError, "bandwidths: got '12', expected a sequence"),
    ({"bandwidths": torch.ones(2, 1)}, ValueError, r"bandwidths: got .* shape \[2, 1\]"),
    ({"bandwidths": torch.ones(0)}, ValueError, r"bandwidths: got .* shape \[0\], expected a floating one"),
    ({"bandwidths": torch.tensor(0.0)}, ValueError, r"bandwidths: got \[0.0\], expected positive finite"),
    ({"bandwidths": torch.ones(2, dtype=torch.int64)}, ValueError, "bandwidths: got a torch.int64"),
    ({"bandwidths": torch.ones(2, device="meta")}, ValueError, "bandwidths: got device meta, expected cpu"),
    ({"kernel_weights": (1.0,)}, ValueError, "kernel_weights: got 1, expected 6"),
    ({"kernel_weights": (1.0, math.nan), "bandwidths": (1.0, 2.0)}, ValueError, "kernel_weights: got"),
    ({"kernel_weights": torch.ones(3), "bandwidths": (1.0, 2.0)}, ValueError, "kernel_weights: got 3, expected 2"),
    ({"sigma": 1.0}, TypeError, "unexpected keyword argument 'sigma'"),
    ({"gamma": 1.0}, TypeError, "unexpected keyword argument 'gamma'"),
    ({"x_weights": torch.ones(5)}, ValueError, r"x_weights: got shape \[5\], expected \[6\]"),
    ({"x_weights": torch.ones(2, 6)}, ValueError, r"x_weights: got shape \[2, 6\], expected \[6\]"),
    ({"x_weights": [1.0] * 6}, TypeError, "x_weights: got list"),
    ({"x_weights": torch.ones(6, dtype=torch.int64)}, TypeError, "x_weights: got torch.int64"),
    ({"x_weights": torch.ones(6, dtype=F64)}, TypeError, "x_weights: got dtype torch.float64 .*float64 mixes only"),
    ({"x_weights": torch.ones(6, device="meta")}, ValueError, "x_weights: got device meta"),
]  # fmt: skip
TWO_SAMPLES = [
    ({"kernel": "rbf"}, ValueError, "kernel: got 'rbf', expected one of gaussian, laplacian, imq"),
    ({"kernel": "energy", "bandwidths": (1.0,)}, ValueError, 'bandwidths: the "energy" kernel has none'),
    ({"alpha": 0.0}, ValueError, "alpha: got 0.0"),
    ({"alpha": math.nan}, ValueError, "alpha: got nan"),
    ({"y_weights": torch.ones(6)}, ValueError, r"y_weights: got shape \[6\], expected \[5\]"),
]


@pytest.mark.parametrize("function", ["mmd2", "witness", "mmd2_to_prior"])
@pytest.mark.parametrize(("arguments", "error", "message"), KERNEL_ARGUMENTS + TWO_SAMPLES)
def test_kernel_arguments(function: str, arguments: dict, error: type[Exception], message: str) -> None:
    call = {
        "mmd2": lambda: fastmmd.mmd2(X, Y, **arguments),
        "witness": lambda: fastmmd.witness(X, X, Y, **arguments),
        "mmd2_to_prior": lambda: fastmmd.mmd2_to_prior(X, PRIOR, **arguments),
    }[function]
    if function == "mmd2_to_prior" and set(arguments) & {"kernel", "alpha", "y_weights"}:
        error, message = TypeError, "unexpected keyword argument"
    with pytest.raises(error, match=message):
        call()


POINTS = [
    (torch.ones(6), ValueError, r"{}: got shape \[6\], expected"),
    (torch.ones(0, 3), ValueError, r"{}: got shape \[0, 3\], expected at least one point"),
    (torch.ones(6, 3, dtype=torch.int64), TypeError, r"{}: got dtype torch.int64, expected .*{}.float\(\)"),
    (torch.ones(6, 3, dtype=torch.complex64), TypeError, "{}: got dtype torch.complex64"),
    (torch.ones(6, 3, dtype=torch.bool), TypeError, "{}: got dtype torch.bool"),
    ([[1.0]], TypeError, "{}: got list, expected a torch.Tensor"),
    (None, TypeError, "{}: got NoneType"),
    (torch.ones(6, 4), ValueError, "got dimension [34]"),
    (torch.ones(6, 3, dtype=F64), TypeError, "got dtype torch.float.. .*float64 mixes only with float64"),
    (torch.ones(6, 3, device="meta"), ValueError, "got device (meta|cpu), expected (meta|cpu)"),
]
TAKES_POINTS = {
    "mmd2 x": ("x", lambda p: fastmmd.mmd2(p, Y)),
    "mmd2 y": ("y", lambda p: fastmmd.mmd2(X, p)),
    "mmd2_to_prior": ("x", lambda p: fastmmd.mmd2_to_prior(p, PRIOR)),
    "witness points": ("points", lambda p: fastmmd.witness(p, X, Y)),
    "witness y": ("y", lambda p: fastmmd.witness(X, X, p)),
    "median_bandwidth": ("x", lambda p: fastmmd.median_bandwidth(p)),
    "median_bandwidth y": ("y", lambda p: fastmmd.median_bandwidth(X, p)),
    "fourier_mean": ("x", lambda p: fastmmd.fourier_mean(p, FEATURES)),
    "fourier_function": ("x", lambda p: fastmmd.fourier_function(p, torch.ones(8), FEATURES)),
    "fourier_discrepancy codes": ("codes", lambda p: fastmmd.fourier_discrepancy(p, Y, torch.ones(4), FEATURES)),
    "fourier_discrepancy draws": ("draws", lambda p: fastmmd.fourier_discrepancy(X, p, torch.ones(4), FEATURES)),
    "fourier_ascent codes": ("codes", lambda p: fastmmd.fourier_ascent(torch.ones(4), p, Y, FEATURES, 0.5)),
    "fourier_ascent draws": ("draws", lambda p: fastmmd.fourier_ascent(torch.ones(4), X, p, FEATURES, 0.5)),
    "parzen points": ("points", lambda p: fastmmd.parzen_log_likelihood(p, X, 1.0)),
    "parzen samples": ("samples", lambda p: fastmmd.parzen_log_likelihood(X, p, 1.0)),
    "ParzenEstimator": ("points", lambda p: fastmmd.ParzenEstimator(p, 1.0)),
    "update": ("samples", lambda p: ESTIMATOR.update(p)),
}
ALONE = ("mmd2_to_prior", "median_bandwidth", "fourier_mean", "ParzenEstimator")  # nothing to differ from


@pytest.mark.parametrize("function", TAKES_POINTS)
@pytest.mark.parametrize("index", range(len(POINTS)))
def test_points(function: str, index: int) -> None:
    name, call = TAKES_POINTS[function]
    bad, error, message = POINTS[index]
    if function == "median_bandwidth y" and bad is None:
        assert call(bad).ndim == 0
        return
    if index >= 7 and (function in ALONE and (index > 7 or function in ("median_bandwidth", "ParzenEstimator"))):
        return
    with pytest.raises(error, match=message.format(name, name)):
        call(bad)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fastmmd.mmd2(X[:1], Y, estimator="unbiased"), ValueError, "x: got 1 point, expected at least 2"),
        (lambda: fastmmd.mmd2(X, Y[:1], estimator="unbiased"), ValueError, "y: got 1 point, expected at least 2"),
        (lambda: fastmmd.mmd2_to_prior(X[:1], PRIOR, estimator="unbiased"), ValueError, "x: got 1 point"),
        (
            lambda: fastmmd.mmd2(points(2, 4, 3), Y, x_weights=torch.ones(3, 4)),
            ValueError,
            r"x_weights: got shape \[3",
        ),
        (lambda: fastmmd.mmd2(X, Y, ("a",)), TypeError, "bandwidths: got 'a', expected a number"),
        (lambda: fastmmd.mmd2(X, Y, alpha=2.0), ValueError, "alpha: got 2.0 for kernel='gaussian'"),
        (lambda: fastmmd.FourierFeatures(3, 4, gamma=1.0), TypeError, "unexpected keyword argument 'gamma'"),
        (lambda: fastmmd.parzen_log_likelihood(X, Y, "0.1"), TypeError, "sigma: got '0.1'"),
        (lambda: fastmmd.parzen_log_likelihood(X, Y, True), TypeError, "sigma: got True"),
        (lambda: fastmmd.priors.Gaussian(2, std=1.0, covariance=torch.eye(2)), ValueError, "std: give std or"),
        (lambda: fastmmd.priors.Gaussian(2, std="a"), TypeError, "std: got 'a'"),
        (lambda: fastmmd.nn.DSAAE(64, hidden=[-5]), ValueError, "hidden: got -5, expected a positive int"),
        (lambda: fastmmd.nn.DSAAE(64, hidden=64), TypeError, "hidden: got 64"),
        (lambda: fastmmd.nn.DSAAE(64, features=101), ValueError, "features: got 101, expected a multiple of the 5"),
        (lambda: fastmmd.nn.MMDAE(64, closed_form="false"), TypeError, "closed_form: got .false."),
        (lambda: fastmmd.nn.DSAAE(64, blocks=2.5), ValueError, "blocks: got 2.5"),
        (lambda: fastmmd.nn.MMDAE(64, learning_rate="abc"), ValueError, "learning_rate: got 'abc'"),
        (lambda: fastmmd.nn.MMDAE(64, bandwidths=()), ValueError, "bandwidths: got an empty sequence"),
        (lambda: fastmmd.nn.AAE(64, prior_std=(1.0,) * 8), ValueError, "prior_std: got"),
        (lambda: fastmmd.mmd2(X, Y, estimator="u"), ValueError, "estimator: got 'u', expected \"biased\""),
        (lambda: fastmmd.mmd2(points(2, 4, 3), points(3, 4, 3)), ValueError, r"y: got leading dimensions \[3\]"),
        (lambda: fastmmd.witness(X, points(2, 4, 3), Y), ValueError, r"x: got shape \[2, 4, 3\], expected \[N, D\]"),
        (lambda: fastmmd.median_bandwidth(X[:1]), ValueError, "x: got 1 point, expected at least two"),
        (lambda: fastmmd.median_bandwidth(points(2, 4, 3)), ValueError, "x: got shape"),
        (lambda: fastmmd.mmd2_to_prior(X, PRIOR, sigma=1.0), TypeError, "unexpected keyword argument 'sigma'"),
        (lambda: fastmmd.FourierFeatures(0, 4), ValueError, "dim: got 0"),
        (lambda: fastmmd.FourierFeatures(3, 0), ValueError, "count: got 0"),
        (lambda: fastmmd.FourierFeatures(3, 4.0), ValueError, "count: got 4.0"),
        (lambda: fastmmd.FourierFeatures(3, 5, bandwidths=(1.0, 2.0)), ValueError, "count: got 5, expected a multiple"),
        (lambda: fastmmd.FourierFeatures(3, 4, bandwidths=0.0), ValueError, "bandwidths: got"),
        (lambda: fastmmd.FourierFeatures(3, 4, bandwidths=None), TypeError, "bandwidths: got None"),
        (lambda: fastmmd.FourierFeatures(3, 4, kernel_weights=(-1.0,)), ValueError, "kernel_weights: got"),
        (
            lambda: fastmmd.FourierFeatures(3, 4, kernel_weights=(1.0, 2.0)),
            ValueError,
            "kernel_weights: got 2, expected 1",
        ),
        (lambda: fastmmd.FourierFeatures(3, 4, seed=-1), ValueError, "seed: got -1"),
        (lambda: fastmmd.FourierFeatures(3, 4, seed=2**63), ValueError, "seed: got"),
        (lambda: fastmmd.FourierFeatures(3, 4, start=1.0), ValueError, "start: got 1.0"),
        (lambda: fastmmd.FourierFeatures(3, 4, start=torch.tensor([1])), ValueError, r"start: got .* shape \[1\]"),
        (lambda: fastmmd.FourierFeatures(3, 4, seed=torch.tensor(1.0)), ValueError, "seed: got a torch.float32"),
        (lambda: FEATURES.frequencies(dtype=torch.bfloat16), TypeError, "dtype: got torch.bfloat16"),
        (lambda: fastmmd.fourier_mean(X, torch.ones(4, 3)), TypeError, "features: got Tensor"),
        (lambda: fastmmd.fourier_mean(X, FEATURES, weights=torch.ones(5)), ValueError, r"weights: got shape \[5\]"),
        (lambda: fastmmd.fourier_function(X, torch.ones(4), FEATURES), ValueError, r"coefficients: got \[4\], .*\[8\]"),
        (lambda: fastmmd.fourier_function(X, [1.0] * 8, FEATURES), ValueError, "coefficients: got list"),
        (lambda: fastmmd.fourier_function(X, torch.ones(8).long(), FEATURES), TypeError, "coefficients: got dtype"),
        (lambda: fastmmd.fourier_function(X, torch.ones(8).double(), FEATURES), TypeError, "coefficients: got dtype"),
        (lambda: fastmmd.fourier_function(points(2, 3, 3), torch.ones(8), FEATURES), ValueError, "x: got shape"),
        (
            lambda: fastmmd.fourier_discrepancy(X, Y, [1.0] * 4, FEATURES),
            TypeError,
            "alpha: got list, expected a float",
        ),
        (
            lambda: fastmmd.fourier_discrepancy(X, Y, torch.ones(4).long(), FEATURES),
            TypeError,
            "alpha: got torch.int64",
        ),
        (lambda: fastmmd.fourier_discrepancy(X, Y, torch.ones(4), None), TypeError, "features: got NoneType"),
        (lambda: fastmmd.fourier_ascent(torch.ones(3), X, Y, FEATURES, 0.5), ValueError, r"alpha: got shape \[3\]"),
        (lambda: fastmmd.fourier_ascent(torch.ones(4), X, Y, FEATURES, -0.1), ValueError, "learning_rate: got -0.1"),
        (lambda: fastmmd.fourier_ascent(torch.ones(4), X, Y, FEATURES, 1.5), ValueError, "learning_rate: got 1.5"),
        (lambda: fastmmd.parzen_log_likelihood(X, Y, 0.0), ValueError, "sigma: got"),
        (lambda: fastmmd.parzen_log_likelihood(X, Y, ()), ValueError, "sigma: got"),
        (lambda: fastmmd.parzen_log_likelihood(X, Y, (1.0, math.nan)), ValueError, "sigma: got"),
        (lambda: fastmmd.parzen_log_likelihood(X, Y, None), TypeError, "sigma: got None"),
        (lambda: fastmmd.ParzenEstimator(X, -1.0), ValueError, "sigmas: got"),
        (lambda: fastmmd.parzen_log_likelihood(points(2, 3, 3), Y, 1.0), ValueError, "points: got shape"),
    ],
)
def test_other_arguments(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]


def test_types_name_what_is_allowed() -> None:
    assert get_args(fastmmd.KernelName) == KERNELS
    assert get_args(fastmmd.Estimator) == ("biased", "unbiased")
    assert get_args(fastmmd.BackendName) == ("auto", *NAMES)
