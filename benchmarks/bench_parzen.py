"""Parzen log-likelihood of ten bandwidths: fastmmd against a dense distance matrix, and the bare matrix product."""

from __future__ import annotations

import peers
import pytest
import torch

import fastmmd

SIGMAS = tuple(torch.logspace(-1, 0, 10).tolist())


@pytest.mark.parametrize("implementation", ["native", "reference", "eager", "matrix product alone"])
def test_parzen(benchmark, implementation):
    benchmark.group = "parzen_log_likelihood, 2000 points, 10,000 samples, D=784, ten sigmas, float32"
    points, samples = torch.rand(2000, 784), torch.rand(10_000, 784)

    def run():
        if implementation == "matrix product alone":
            return points @ samples.T
        peer = implementation == "eager"
        return (peers if peer else fastmmd).parzen_log_likelihood(points, samples, SIGMAS)

    with fastmmd.backend(implementation if implementation in ("native", "reference") else "auto"):
        if implementation != "matrix product alone":
            some = slice(0, 2000, 40)
            exact = peers.parzen_log_likelihood(points[some].double(), samples.double(), SIGMAS)
            assert (run()[:, some].double() - exact).abs().max() <= (0.1 if implementation == "eager" else 0.005)
        benchmark(run)
