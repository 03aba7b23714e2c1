"""Models under torch.compile: one graph, made once, with the numbers of eager mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_same
from test_loops import run
from test_nn import AUTOENCODERS, data, every_model, small
from torch import Tensor
from torch.optim import SGD, Optimizer

from fastmmd.nn import MODELS, Autoencoder


class Counting:
    """A backend that runs a graph as it is, and counts the graphs it has been given."""

    def __init__(self) -> None:
        torch.compiler.reset()
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        self.count += 1
        return graph.forward


@every_model
def test_forward_is_one_graph(kind: str) -> None:
    """Made once, and once more where the warm-up ends, for gradients as for losses."""
    results, counting = [], Counting()
    for compiled in (False, True):
        torch.manual_seed(3)
        noise = {"denoising": 0.5} if kind in AUTOENCODERS else {}
        model = small(kind, precision="auto", **noise)
        call = torch.compile(model, backend=counting, fullgraph=True) if compiled else model
        groups = [group for o in model.configure_optimizers().values() for group in o.param_groups]
        optimizer, history = SGD([p for group in groups for p in group["params"]], lr=0.01), []
        for step in range(6):
            torch.manual_seed(step)
            losses = call(data())
            optimizer.zero_grad()
            (losses.loss + losses.adversary).backward()
            optimizer.step()
            model.end_step(losses.codes)
            history.append([part.detach() for part in losses])
        results.append({"history": history, "model": dict(model.state_dict())})
    assert_same(*results)
    assert counting.count == (2 if kind == "ds-aae" else 1)


@pytest.mark.parametrize(
    ("kind", "two_phases"),
    [(kind, False) for kind in MODELS] + [("mmd-ae", True), ("ds-aae", True)],
)
def test_training_step_is_compiled_once(kind: str, two_phases: bool) -> None:
    """A graph between one descent and the next; again where a warm-up or a phase of the run ends."""
    counting, counts, results = Counting(), [], []

    def compiled(
        model: Autoencoder, x: Tensor, optimizers: dict[str, Optimizer], labels: Tensor | None
    ) -> dict[str, Tensor]:
        for group in (group for optimizer in optimizers.values() for group in optimizer.param_groups):
            group["lr"] *= 0.9  # a schedule
        terms: dict[str, Tensor] = step(x, optimizers, labels) if step else model.training_step(x, optimizers, labels)
        counts.append(counting.count)
        return terms

    for compiles in (False, True):
        torch.manual_seed(3)
        model = small(kind, **({"autoencoder_share": 0.5} if kind == "gmmn-ae" else {}))
        if two_phases:
            model.generator_learning_rate = 1e-3
        step = torch.compile(model.training_step, backend=counting) if compiles else None
        results.append(run(model, compiled, 8))
    assert_same(*results)
    graphs = {"aae": 3, "gan": 3}.get(kind, 1) + two_phases
    warm = {"ds-aae": 2, "gmmn-ae": 4}.get(kind, 0)
    assert counts[8:] == [1] * warm + [graphs + (warm > 0)] * (8 - warm)
