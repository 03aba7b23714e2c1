"""DistributedDataParallel: two processes train as one does on the mean of their gradients, and stay equal."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import of_ranks
from test_nn import data, small
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer

from fastmmd.nn import Autoencoder, Losses

RANKS, STEPS = 2, 4
#: Models, their settings, those of DistributedDataParallel.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mmd-ae": ("mmd-ae", {}, {}),
    "vae": ("vae", {}, {}),
    "aae": ("aae", {}, {}),
    "aae, denoising, implicit": ("aae", {"denoising": 0.5, "posterior": "implicit"}, {}),
    # While the model warms up no gradient reaches the decoder.
    "ds-aae, first order": ("ds-aae", {"mode": "first_order", "warmup_steps": 2}, {"find_unused_parameters": True}),
    "ds-aae": ("ds-aae", {"warmup_steps": 0}, {}),
    "ds-aae, doubly stochastic": ("ds-aae", {"mode": "doubly_stochastic", "warmup_steps": 0}, {}),
    "aae, two phases": ("aae", {"generator_learning_rate": 1e-3}, {}),
}


def phases(case: str, losses: Losses, weight: float) -> list[Tensor]:
    """What each phase of a step descends. A replica's backward pass has to reach every parameter."""
    if "two phases" not in case:
        return [losses.loss + losses.adversary]
    generator = weight * losses.regularizer + losses.adversary
    return [losses.reconstruction + 0 * generator, generator + 0 * losses.reconstruction]


def make(case: str) -> tuple[Autoencoder, Optimizer]:
    kind, options, _ = CASES[case]
    torch.manual_seed(3)
    model = small(kind, **options)
    return model, SGD(model.parameters(), lr=0.01)


def seed(step: int, rank: int) -> None:
    torch.manual_seed(10 * step + rank)


def part(step: int, rank: int) -> Tensor:
    return data(RANKS * 16).roll(step, 0)[rank::RANKS]


def replica(rank: int, folder: str) -> None:
    """One of the processes: trains every case, leaves its states in a file."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    states = {}
    for case, (_, _, options) in CASES.items():
        model, optimizer = make(case)
        parallel = DistributedDataParallel(model, **options)
        for step in range(STEPS):
            for phase in range(1 + ("two phases" in case)):
                seed(step, rank + RANKS * phase)
                losses = parallel(part(step, rank))
                optimizer.zero_grad()
                phases(case, losses, model.regularizer_weight)[phase].backward()
                optimizer.step()
            model.end_step(losses.codes)
        states[case] = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
        seed(STEPS, rank)
        parallel(part(STEPS, rank))  # which begins with the buffers of rank 0
        states[case] |= {f"then {name}": value.clone() for name, value in model.named_buffers()}
        assert model.steps == STEPS
    torch.save(states, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """Of both processes, by case and name."""
    return of_ranks(replica, RANKS, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_replicas_are_one_model(states: list[dict[str, dict[str, Tensor]]], case: str) -> None:
    """Their parameters are equal, and those of one process that averages the gradients of both shares."""
    model, optimizer = make(case)
    for step in range(STEPS):
        for phase in range(1 + ("two phases" in case)):
            optimizer.zero_grad()
            for rank in reversed(range(RANKS)):  # rank 0 last: the random function follows its codes
                seed(step, rank + RANKS * phase)
                losses = model(part(step, rank))
                (phases(case, losses, model.regularizer_weight)[phase] / RANKS).backward()
            optimizer.step()
        model.end_step(losses.codes)
    first, second = (by_case[case] for by_case in states)
    parameters = dict(model.named_parameters())
    assert all(torch.equal(first[name], second[name]) for name in parameters)
    initial = dict(make(case)[0].named_parameters())
    for name, value in itertools.chain(parameters.items(), model.named_buffers()):
        torch.testing.assert_close(first[name], value.detach(), rtol=1e-4, atol=1e-6)
    assert not any(torch.equal(first[name], value) for name, value in initial.items())


@pytest.mark.parametrize("case", ["ds-aae, first order", "ds-aae, doubly stochastic"])
def test_the_random_function_is_that_of_rank_0(states: list[dict[str, dict[str, Tensor]]], case: str) -> None:
    """Each replica moves its own by its own codes; every forward pass begins with that of rank 0."""
    first, second = (by_case[case] for by_case in states)
    name = f"regularizer.{'alpha' if 'first order' in case else 'coefficients'}"
    assert not torch.equal(first[name], second[name])
    assert torch.equal(first[f"then {name}"], first[name]) and torch.equal(second[f"then {name}"], first[name])
