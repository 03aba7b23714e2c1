"""Folders of images larger than memory: the batches, losses and errors of those in memory, whatever the workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_same
from test_training import interrupt_after, metrics_of, state_of, tiny, trainer

from fastmmd.data import Dataset, load_data
from fastmmd.data.folders import MEMORY
from fastmmd.errors import Interrupted, UserError
from fastmmd.training.batches import Batch, Batches


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ninety images of 4x5 pixels in three classes, a few of 16 bits."""
    from PIL import Image

    path = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(3).integers(0, 65536, (90, 5, 4), dtype=np.uint16)
    for number, image in enumerate(pixels):
        (path / "abc"[number % 3]).mkdir(exist_ok=True)
        kept = image if number % 10 == 0 else (image >> 8).astype(np.uint8)
        Image.fromarray(kept).save(path / "abc"[number % 3] / f"{number:02}.png")
    return path


def on_disk(folder: Path, monkeypatch: pytest.MonkeyPatch, memory: int = 8 * 7 * 80) -> Dataset:
    """With seven images of each split in memory."""
    monkeypatch.setenv(MEMORY, str(memory))
    with pytest.warns(UserWarning, match="7 of 72, 7 of 9, 7 of 9 training, validation and test images"):
        return load_data(str(folder))


def test_the_splits_are_those_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, files = load_data(str(folder)), on_disk(folder, monkeypatch)
    assert whole.train_files is None and files.train_files is not None
    assert torch.equal(files.train_files.read(), whole.train.images)
    assert torch.equal(files.train_files.labels, whole.train.labels)
    for some, all_ in ((files.train, whole.train), (files.validation, whole.validation), (files.test, whole.test)):
        assert torch.equal(some.images, all_.images[:7]) and torch.equal(some.labels, all_.labels[:7])
    assert (files.image_shape, files.data_dim) == (whole.image_shape, whole.data_dim)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_those_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """Two epochs, stopped in the middle of the first one; and no number is drawn from torch's generator."""
    whole, files = load_data(str(folder)).train, on_disk(folder, monkeypatch).train_files
    assert files is not None

    def batches(resumed_at: int | None) -> list[Batch]:
        if resumed_at is None:
            made = Batches(whole.images, 16, 5, whole.labels)
            return [*made.epoch(), *made.epoch()]
        first = Batches(files, 16, 5, files.labels, workers)
        taken = list(islice(first.epoch(), resumed_at))
        second = Batches(files, 16, 99, files.labels, workers)
        second.load_state_dict(first.state_dict())
        return [*taken, *second.epoch(), *second.epoch()]

    before = torch.get_rng_state()
    ours, expected = batches(3), batches(None)
    assert len(ours) == len(expected) == 8
    assert all(
        torch.equal(a, b) for left, right in zip(ours, expected, strict=True) for a, b in zip(left, right, strict=True)
    )
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_is_that_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int
) -> None:
    """To the last bit, with noise, labels, an interruption in the middle of an epoch, and going on."""
    options = {"model__denoising": 0.1, "training__evaluate_every": 0, "training__labeled": 40}
    options |= {"model__labels": "regularizer", "model__prior": "swiss_roll", "model__code_size": 2}
    options |= {"model__num_classes": 3, "training__labeled_batch": 6}
    whole, files = load_data(str(folder)), on_disk(folder, monkeypatch)
    same_held_out = replace(files, validation=whole.validation, test=whole.test)
    expected = trainer(tmp_path / "memory", tiny("aae", **options), whole)
    expected.fit()
    recipe = tiny("aae", **options, training__workers=workers)
    made = trainer(tmp_path / "files", recipe, same_held_out)
    interrupt_after(made, 6)
    with pytest.raises(Interrupted):
        made.fit()
    trainer(tmp_path / "files", recipe, same_held_out, resume=True).fit()
    assert metrics_of(tmp_path / "files") == metrics_of(tmp_path / "memory")
    ours, theirs = state_of(tmp_path / "files"), state_of(tmp_path / "memory")
    assert type(ours.pop("data")) is not type(theirs.pop("data"))
    assert_same(ours, theirs)


def test_other_files_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = on_disk(folder, monkeypatch)
    assert files.train_files is not None
    trainer(tmp_path / "run", tiny(epochs=1), files).fit()
    turned = replace(files, train_files=files.train_files.rows(torch.arange(72).flip(0)))
    with pytest.raises(UserError, match="holds other images or labels"):
        trainer(tmp_path / "run", tiny(), turned, resume=True)
    trainer(tmp_path / "run", tiny(), files, resume=True)
    trainer(tmp_path / "run", tiny(), load_data_in_memory(folder, monkeypatch), resume=True)


def load_data_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.delenv(MEMORY)
    return load_data(str(folder))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("broken", ["size", "content", "missing"])
def test_a_broken_image_ends_training_with_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str, workers: int
) -> None:
    files = on_disk(folder, monkeypatch).train_files
    assert files is not None
    wrong = tmp_path / "wrong.png"
    if broken == "size":
        from PIL import Image

        Image.new("L", (3, 3)).save(wrong)
    elif broken == "content":
        wrong.write_text("no image")
    files = replace(files, paths=(*files.paths[:-1], wrong))
    message = {"size": "is 3x3, the first image is 4x5", "content": "cannot be read", "missing": "cannot be read"}
    with pytest.raises(UserError, match=f"^{wrong}:? {message[broken]}[^\n]*$"):
        list(Batches(files, 16, 0, workers=workers).epoch())


def test_interrupts_do_not_reach_workers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C of a terminal goes to all processes; the next batches are read nevertheless."""
    files = on_disk(folder, monkeypatch).train_files
    assert files is not None
    epoch, others = Batches(files, 4, 0, workers=1).epoch(), multiprocessing.active_children()
    next(epoch)
    (worker,) = set(multiprocessing.active_children()) - set(others)
    os.kill(worker.pid, signal.SIGINT)
    assert len(list(epoch)) == 17 and not worker.is_alive()


@pytest.mark.parametrize("memory", ["much", "-1", "0", ""])
def test_a_wrong_limit_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, memory: str) -> None:
    monkeypatch.setenv(MEMORY, memory)
    with pytest.raises(UserError, match=f"{MEMORY}: a number of bytes expected, got '{memory}'"):
        load_data(str(folder))
