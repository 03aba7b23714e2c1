"""A memory of codes: the other regularizer on the codes of several steps, as it is on them side by side."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from helpers import assert_close, points
from test_nn import DATA_DIM, data, small
from torch import Tensor

import fastmmd
from fastmmd.nn import (
    KL,
    MLP,
    MMD,
    MODELS,
    Adversarial,
    Autoencoder,
    ClosedFormMMD,
    CodeMemory,
    FourierAdversary,
    Moments,
    Regularizer,
)
from fastmmd.nn.steps import PATIENCE
from fastmmd.priors import Gaussian, GaussianMixture, Prior

SIZE, BATCH = 60, 20
S = (0.5, 1.0, 2.0)
PRIOR = Gaussian(2)
MEANS = torch.tensor([[4.0, 0.0], [-2.0, 3.5], [-2.0, -3.5]])
PARTS = GaussianMixture(None, MEANS, 0.25 * torch.eye(2).repeat(3, 1, 1))


def batch(step: int) -> Tensor:
    return points(BATCH, 2, seed=step, scale=0.6, shift=0.1 * step)


def filled(regularizer: Regularizer, prior: Prior = PRIOR, labels: Tensor | None = None) -> CodeMemory:
    """After the steps 0, 1, 2, 3 with `update`, the last of which is at hand: it has seen `batch(3)`."""
    memory = CodeMemory(regularizer, SIZE, 2)
    for step in range(4):
        memory.update(batch(step), prior, None, labels)
    return memory


def leaf(step: int) -> Tensor:
    return batch(step).requires_grad_()


def test_the_closed_form_of_the_last_codes() -> None:
    memory, codes = filled(ClosedFormMMD(S)), leaf(3)
    value = memory(codes, PRIOR)
    value.backward()
    side_by_side = torch.cat([batch(3), batch(2), batch(1)]).requires_grad_()
    expected = fastmmd.mmd2_to_prior(side_by_side, PRIOR, S)
    expected.backward()
    assert side_by_side.grad is not None and codes.grad is not None
    assert_close(value, expected.detach())
    # As hard as a batch of its own: by its share of a mean over the batch, not over the union.
    assert_close(codes.grad, SIZE / BATCH * side_by_side.grad[:BATCH])


def test_labels_are_remembered_with_their_codes() -> None:
    regularizer = MMD(S, num_classes=3, class_weights=(0.2, 0.3, 0.4), unconditional_weight=0.7)
    labels = torch.tensor([-1, 0, 2, 1]).repeat(BATCH // 4)
    memory, codes = filled(regularizer, PARTS, labels), leaf(3)
    labels = labels.roll(1)  # of this step
    memory._push(batch(3), labels)
    torch.manual_seed(3)
    value = memory(codes, PARTS, None, labels)
    union = torch.cat([batch(3), batch(3), batch(2)])
    of_union = torch.cat([labels, labels.roll(-1), labels.roll(-1)])
    torch.manual_seed(3)
    draws = PARTS.sample(SIZE, labels=of_union)
    terms = [fastmmd.mmd2(union[of_union == c], draws[of_union == c], S) for c in range(3)]
    expected = 0.2 * terms[0] + 0.3 * terms[1] + 0.4 * terms[2] + 0.7 * fastmmd.mmd2(union, draws, S)
    assert_close(value, expected)


def test_a_random_function_moves_on_the_union() -> None:
    memory, alone = (FourierAdversary(2, count=12, bandwidths=S) for _ in range(2))
    wrapped = CodeMemory(memory, SIZE, 2)
    for step in range(5):
        last = [batch(before) for before in range(step, max(step - 3, -1), -1)]
        union = torch.cat(last if step > 2 else last[:1])  # not yet full
        for regularizer, codes in ((wrapped, batch(step)), (alone, union)):
            torch.manual_seed(step)
            regularizer.update(codes, PRIOR)
        assert torch.equal(memory.alpha, alone.alpha)
    assert not torch.equal(memory.alpha, torch.ones(12))
    codes, values = leaf(4), []
    for regularizer, given in ((wrapped, codes), (alone, torch.cat([batch(4), batch(3), batch(2)]))):
        torch.manual_seed(9)
        values.append(regularizer(given, PRIOR))
    assert_close(values[0], values[1])


def test_a_discriminator_learns_on_the_union_and_pulls_as_without() -> None:
    regularizer = Adversarial.mlp(2, (8,))
    memory, codes, alone = CodeMemory(regularizer, SIZE, 2), leaf(3), leaf(3)
    optimizer = torch.optim.SGD(memory.parameters(), lr=0.0)
    for step in range(4):
        memory.update(batch(step), PRIOR, optimizer)
    memory(codes, PRIOR).backward()
    regularizer(alone, PRIOR).backward()
    assert codes.grad is not None and alone.grad is not None
    assert_close(codes.grad, alone.grad)
    torch.manual_seed(4)
    loss = memory.adversary_loss(batch(3), PRIOR)
    torch.manual_seed(4)
    assert_close(loss, regularizer.adversary_loss(torch.cat([batch(3), batch(2), batch(1)]), PRIOR))


class Spy(Regularizer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Tensor]] = []

    def forward(self, codes: Tensor, prior: Prior, moments: Moments | None = None) -> Tensor:
        self.seen.append(("forward", codes.detach()))
        return codes.square().mean()

    def update(self, codes: Tensor, prior: Prior, optimizer: Any = None, labels: Tensor | None = None) -> None:
        self.seen.append(("update", codes))


def with_memory(regularizer: Regularizer, size: int = SIZE) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(MLP(DATA_DIM, (8,), 2), MLP(2, (8,), DATA_DIM), PRIOR, CodeMemory(regularizer, size, 2))


def test_steps_see_each_code_once() -> None:
    """In `training_step` and in a loop of one's own, while the memory fills, when it is full, and in evaluation."""
    for own_loop in (False, True):
        spy = Spy()
        model = with_memory(spy)
        optimizers, batches = model.configure_optimizers(), []
        for step in range(6):
            spy.seen.clear()
            x = data()[step : step + BATCH]
            if own_loop:
                losses = model(x)
                losses.loss.backward()
                model.end_step(losses.codes)
            else:
                model.training_step(x, optimizers)
            seen = dict(spy.seen)
            assert list(seen) == (["forward", "update"] if own_loop else ["update", "forward"])
            batches.append(seen["update"][:BATCH])
            union = torch.cat(batches[-1:-4:-1])
            assert torch.equal(seen["update"], union if step > 2 else batches[-1])
            if own_loop and step > 2:  # before the step ends, the codes of the last one count as those of this one
                union = torch.cat([batches[-1], *batches[-3:-5:-1]])
            assert torch.equal(seen["forward"], union if step > (3 if own_loop else 2) or step < 1 else seen["forward"])
        spy.seen.clear()
        model.eval()(data()[:BATCH])
        assert len(spy.seen[0][1]) == BATCH


@pytest.mark.parametrize("kind", ["aae", "mmd-ae", "ds-aae"])
def test_saved_with_the_model(kind: str) -> None:
    """A model that goes on from the state of another takes the steps that this takes, before and after it is full."""
    for steps in (1, 4):
        first, second = small(kind, memory=SIZE), small(kind, memory=SIZE)
        optimizers = [model.configure_optimizers() for model in (first, second)]
        for step in range(steps):
            first.training_step(data()[step : step + BATCH], optimizers[0])
        second.load_state_dict(first.state_dict())
        for name, optimizer in optimizers[1].items():
            optimizer.load_state_dict(copy.deepcopy(optimizers[0][name].state_dict()))
        for step in range(3):
            terms = []
            for model, given in zip((first, second), optimizers, strict=True):
                torch.manual_seed(step)
                terms.append(model.training_step(data()[step : step + BATCH], given))
            assert terms[0] == terms[1]
        memory = cast(CodeMemory, second.regularizer)
        assert torch.equal(memory.codes, cast(CodeMemory, first.regularizer).codes) and memory.codes.any()


def test_batches_of_any_size() -> None:
    memory = filled(ClosedFormMMD(S))
    large = points(SIZE + 5, 2, seed=9)
    memory.update(large, PRIOR)  # which has more codes than the memory
    assert_close(memory(large, PRIOR), fastmmd.mmd2_to_prior(large, PRIOR, S))
    one = points(1, 2, seed=10)
    memory.update(one, PRIOR)
    assert_close(memory(one, PRIOR), fastmmd.mmd2_to_prior(torch.cat([one, large[: SIZE - 1]]), PRIOR, S))


def test_what_a_memory_is_no_part_of() -> None:
    for regularizer in (KL(), CodeMemory(MMD(S), 4, 2)):
        with pytest.raises(ValueError, match=f"regularizer: got {type(regularizer).__name__}, expected"):
            CodeMemory(regularizer, 4, 2)
    with pytest.raises(ValueError, match="size: got 0"):
        CodeMemory(MMD(S), 0, 2)
    with pytest.raises(ValueError, match="memory: got 5, expected 0: KL"):
        MODELS["vae"](DATA_DIM, memory=5)
    with pytest.raises(ValueError, match="memory: got -1"):
        MODELS["aae"](DATA_DIM, memory=-1)
    with pytest.raises(ValueError, match="memory: got one of 4 codes in a model that 2 processes train"):
        CodeMemory(MMD(S), 4, 2).shards = cast(fastmmd.Shards, SimpleNamespace(count=2))
    model = small("mmd-ae", memory=SIZE)
    assert model.settings()["memory"] == SIZE and MODELS["mmd-ae"](DATA_DIM, **model.settings()).settings()


def test_a_loop_that_forgets_the_memory_is_told() -> None:
    for kind in ("mmd-ae", "aae"):
        model, x = small(kind, memory=SIZE), data(4)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(PATIENCE - 1):
                model(x)
        with pytest.warns(UserWarning, match=r"without end_step.*the memory stays empty"):
            model(x)
        model.end_step(model(x).codes)
        assert cast(CodeMemory, model.regularizer).codes[:4].any()
