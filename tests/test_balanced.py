"""Labeled images that join every batch: as many of each class, shared by processes, the same after a resume."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from helpers import assert_same
from test_training import interrupt_after, metrics_of, state_of, tiny, trainer

from fastmmd import Shards
from fastmmd.data import load_data
from fastmmd.errors import Interrupted, UserError
from fastmmd.training.balanced import BalancedRows
from fastmmd.training.batches import Batches

LABELS = torch.tensor([0, 1, -1, 1, 0, 1, 0, -1, 1, 0, 0, 1, 2, 2, 2, -1])  # five, five and three of a class


def batches(count: int = 6, shards: Any = None) -> Batches:
    """Of 4 images each, whose pixel is their row."""
    balanced = BalancedRows(LABELS, count, 3, seed=0)
    return Batches(torch.arange(16.0)[:, None], 4, 0, LABELS, shards=cast(Shards, shards), balanced=balanced)


def test_every_batch_has_as_many_of_each_class() -> None:
    made, plain = batches(), Batches(torch.arange(16.0)[:, None], 4, 0, LABELS)
    drawn: list[int] = []
    for _ in range(5):
        for batch, without in zip(made.epoch(), plain.epoch(), strict=True):
            assert batch.labels is not None and len(batch.images) == 10
            assert torch.equal(batch.images[:4], without.images)  # those of before, in the same order
            assert torch.equal(batch.labels, LABELS[batch.images[:, 0].long()])
            assert Counter(batch.labels[4:].tolist()) == {0: 2, 1: 2, 2: 2}
            added = batch.images[4:, 0].long().tolist()
            assert len(set(added)) == 6
            drawn += added
    # 20 steps are ten passes over the classes of five, which leave one of them out, another one at random.
    counts = Counter(drawn)
    assert set(counts) == set((LABELS >= 0).nonzero()[:, 0].tolist())
    assert all(counts[row] <= 10 for row in (0, 1, 3, 4, 5, 6, 8, 9, 10, 11))


def test_a_pass_has_no_image_twice() -> None:
    rows = BalancedRows(torch.zeros(6, dtype=torch.int64), 2, 1, seed=1)
    passes = [torch.cat([rows.at(step) for step in range(first, first + 3)]) for first in (0, 3, 6, 9)]
    assert all(sorted(one.tolist()) == list(range(6)) for one in passes)
    assert len({tuple(one.tolist()) for one in passes}) > 1


def test_resumes_in_the_middle_of_a_later_epoch() -> None:
    made = batches()
    list(made.epoch())
    running = made.epoch()
    next(running)
    again = batches()
    again.load_state_dict(made.state_dict())
    assert_same([*again.epoch(), *again.epoch()], [*running, *made.epoch()])


def test_processes_share_what_one_has() -> None:
    ours = [batches(shards=SimpleNamespace(count=2, rank=rank)).epoch() for rank in range(2)]
    for whole, *parts in zip(batches().epoch(), *ours, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert all(len(part.images) == 5 for part in parts)
    message = r"training.batch_size \+ training.labeled_batch: got 10, expected a multiple of the 4 processes"
    with pytest.raises(UserError, match=message):
        batches(shards=SimpleNamespace(count=4, rank=0))


def test_what_cannot_be_balanced() -> None:
    with pytest.raises(UserError, match=r"training.labeled_batch: got 7, expected a multiple of the 3 classes"):
        batches(7)
    batches(9)
    with pytest.raises(UserError, match=r"got 12, 4 of each class, but class 2 has 3 .*at most 9, or raise"):
        batches(12)


def test_the_number_of_a_run_cannot_change() -> None:
    with pytest.raises(UserError, match=r"training.labeled_batch of a run cannot change: the checkpoint has 3, .* 6;"):
        batches(6).load_state_dict(batches(3).state_dict())
    former = batches().state_dict()
    del former["labeled_batch"]
    with pytest.raises(UserError, match="checkpoint has 0, the settings 6"):
        batches().load_state_dict(former)


def test_a_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    options = {"model__labels": "regularizer", "model__prior": "mixture", "model__code_size": 2}
    recipe = tiny("mmd-ae", **options, model__closed_form=False, training__labeled=200, training__labeled_batch=20)
    expected = trainer(tmp_path / "whole", recipe, load_data("digits"))
    expected.fit()
    made = trainer(tmp_path / "stopped", recipe, load_data("digits"))
    interrupt_after(made, len(made.batches) + 2)  # in the second epoch
    with pytest.raises(Interrupted):
        made.fit()
    trainer(tmp_path / "stopped", recipe, load_data("digits"), resume=True).fit()
    assert metrics_of(tmp_path / "stopped") == metrics_of(tmp_path / "whole")
    assert_same(state_of(tmp_path / "stopped"), state_of(tmp_path / "whole"))


def test_a_run_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training.labeled_batch is for labeled images"):
        trainer(tmp_path / "run", tiny("mmd-ae", training__labeled_batch=20), load_data("digits"))
    with pytest.raises(UserError, match="training.labeled_batch must be a whole number >= 0, got -1"):
        tiny("mmd-ae", training__labeled_batch=-1)
