"""Learning rates over a run; those of a model with phases are in test_gmmn.py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from test_training import data, tiny, trainer  # noqa: F401  a fixture
from torch import Tensor

from fastmmd.training import Dataset

# ruff: noqa: F811  fixtures are arguments here


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_rates_rise_and_fall(tmp_path: Path, data: Dataset, schedule: str) -> None:
    """All optimizers', those of Muon too, step by step: 12 steps, of which a quarter warms up."""
    rates = {"learning_rate": 4e-3, "adversary_learning_rate": 2e-3, "generator_learning_rate": 1e-3}
    overrides = {f"model__{name}": rate for name, rate in rates.items()}
    made = trainer(tmp_path / "run", tiny("aae", training__schedule=schedule, training__warmup=0.25, **overrides), data)
    seen, step = [], made.model.training_step

    def watched(*arguments: Any) -> dict[str, Tensor]:
        groups = {name: optimizer.param_groups for name, optimizer in made.optimizers.items()}
        rates_now = [groups[name][-1]["lr"] for name in ("autoencoder", "adversary", "generator")]
        seen.append([*rates_now, groups["autoencoder"][0]["lr"] / 5])  # of the matrices
        return step(*arguments)

    made.model.training_step = watched
    made.fit()
    rise = [0, 1 / 3, 2 / 3] + 9 * [1]
    fall = [math.cos(math.pi * t / 24) ** 2 if schedule == "cosine" else 1 for t in range(12)]
    for column, rate in enumerate([*rates.values(), rates["learning_rate"]]):
        assert [row[column] for row in seen] == pytest.approx([rate * a * b for a, b in zip(rise, fall, strict=True)])
