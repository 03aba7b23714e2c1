"""The list of mutants stays in step with the sources; `make mutants` plants them."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent / "mutants"))

from plant import SUITE, mutants  # noqa: E402


def test_every_mutant_can_be_planted() -> None:
    """Each text once, something else in its place, in a list that is long enough, named tests that exist."""
    problems = []
    listed = mutants()
    for mutant in listed:
        try:
            mutant.place(ROOT)
        except ValueError as error:
            problems.append(str(error))
        if mutant.old == mutant.new or not (ROOT / mutant.file).exists():
            problems.append(f"{mutant.name}: changes nothing, or {mutant.file} is not there")
    assert not problems, "\n".join(problems)
    of_layer = {layer: sum(mutant.layer == layer for mutant in listed) for layer in ("cuda", "triton")}
    assert len(listed) >= 40 and min(of_layer.values()) >= 10 and (ROOT / SUITE).exists()
