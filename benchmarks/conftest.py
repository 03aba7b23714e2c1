"""Every benchmark runs with torch's default number of threads and records which versions it ran on."""

from __future__ import annotations

import pytest
import torch

import fastmmd


@pytest.fixture(autouse=True)
def versions(benchmark):
    torch.manual_seed(0)
    benchmark.extra_info |= {
        "torch": torch.__version__,
        "fastmmd": fastmmd.__version__,
        "threads": torch.get_num_threads(),
    }


def pytest_configure(config):
    config.option.benchmark_min_rounds = 5
    config.option.benchmark_warmup = "on"
    config.option.benchmark_warmup_iterations = 1
