"""Shared fixtures: the backends under test, a quiet machine, hypothesis without deadlines."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: idle threads shall not spin on a busy machine

import pytest
import torch
from hypothesis import HealthCheck, settings

import fastmmd

settings.register_profile(
    "fastmmd",
    deadline=None,
    max_examples=15,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("fastmmd")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backends",
        default="reference,native",
        help="comma-separated backends under test; one that cannot run fails its tests, it is never skipped",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        names = metafunc.config.getoption("--backends").split(",")
        metafunc.parametrize("backend", names, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test on one backend by explicit choice, which never falls back."""
    with fastmmd.backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _two_threads_and_a_seed() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
