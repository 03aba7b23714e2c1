"""Batches and checkpoints: what is saved is enough, whole, and harmless to read."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same

from fastmmd.checkpoint import load_checkpoint, random_states, save_checkpoint, set_random_states
from fastmmd.training import UserError
from fastmmd.training.batches import Batches
from fastmmd.training.run import RunFolder

# --- batches ---


def test_batches_are_permutations() -> None:
    batches = Batches(torch.arange(10.0)[:, None], 3, seed=0)
    first, second = ([batch.images for batch in batches.epoch()] for _ in range(2))
    assert len(batches) == 3 and all(batch.shape == (3, 1) for batch in first)
    assert len(set(torch.cat(first).flatten().tolist())) == 9
    assert not torch.equal(torch.cat(first), torch.cat(second))
    assert len(Batches(torch.zeros(10, 1), 100, seed=0)) == 1  # a batch is never larger than the data


def test_batches_resume_in_the_middle() -> None:
    images = torch.arange(10.0)[:, None]
    batches = Batches(images, 3, seed=0)
    expected = [*batches.epoch(), *batches.epoch()]
    batches = Batches(images, 3, seed=0)
    running = batches.epoch()
    got = [next(running), next(running)]
    again = Batches(images, 3, seed=99)
    again.load_state_dict(batches.state_dict())
    assert_same([*got, *again.epoch(), *again.epoch()], expected)


def test_labels_stay_beside_their_images() -> None:
    labels = torch.arange(10)
    for batch in Batches(labels.double()[:, None], 3, seed=0, labels=labels).epoch():
        assert batch.labels is not None and torch.equal(batch.images[:, 0].long(), batch.labels)


def test_batches_are_the_same_on_every_device() -> None:
    """The order is drawn on the CPU, wherever the images are ("meta" stands for any other device)."""
    images = torch.arange(10.0)[:, None]
    order = torch.randperm(10, generator=torch.Generator().manual_seed(7))
    batches = Batches(images, 5, seed=7)
    assert torch.equal(torch.cat([batch.images for batch in batches.epoch()]), images[order])
    elsewhere = Batches(images.to("meta"), 5, seed=7)
    assert [batch.images.device.type for batch in elsewhere.epoch()] == ["meta", "meta"]
    assert_same(elsewhere.state_dict(), batches.state_dict())
    elsewhere.load_state_dict(batches.state_dict())


# --- checkpoints ---


def test_checkpoint_survives_a_failing_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"model": {"a": torch.ones(3)}, "step": 1})

    def fail(state: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match=r"cannot write .*checkpoint\.pt: No space left on device; the one from before"):
        save_checkpoint(path, {"model": {}, "step": 2})
    monkeypatch.undo()
    assert load_checkpoint(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_checkpoints_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(UserError, match="no checkpoint"):
        load_checkpoint(path)
    save_checkpoint(path, {"model": {"a": torch.ones(1000)}})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a usable checkpoint"):
        load_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="not a usable checkpoint"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="not a checkpoint of fastmmd"):
        load_checkpoint(path)


def test_checkpoints_execute_nothing(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"model": Payload()}, tmp_path / "checkpoint.pt", pickle_module=pickle)
    with pytest.raises(UserError, match="not a usable checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "executed").exists()


def test_random_states_of_another_device_are_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    states = random_states(torch.device("cpu"))
    expected = torch.rand(3)
    set_random_states(states, torch.device("cuda"))  # saved on the CPU, resumed on a GPU
    assert torch.equal(torch.rand(3), expected)
    set_random_states({**states, "cuda": torch.zeros(16, dtype=torch.uint8)}, torch.device("cpu"))  # and back
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_run_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"cannot write into the run folder \(Permission denied"):
        RunFolder(tmp_path).require_writable()
    tmp_path.chmod(0o700)
