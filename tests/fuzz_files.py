"""Files of every kind with bytes changed, cut off or mixed up: an error that names the file, or what is right."""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_junk import JUNK
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from fastmmd.data import load_data
from fastmmd.data.folders import image_files
from fastmmd.data.idx import read_idx
from fastmmd.data.matlab import _svhn_split
from fastmmd.errors import UserError
from fastmmd.training.batches import Batches
from fastmmd.training.config import load_recipe
from fastmmd.training.report import _training
from fastmmd.training.run import RunConfig, RunFolder

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (31, 4, 4), dtype=np.uint8)
RECIPE = """[model]
kind = "mmd-ae"
hidden = [5, 4]
code_size = 2
bandwidths = [0.5, 1.0]
regularizer_weight = 3.5
labels = "none"

[training]
epochs = 3
batch_size = 20
schedule = "cosine"

[evaluation]
samples = 100
sigma_low = 0.1

[digits.training]
epochs = 4
"""
CONFIG = RECIPE + '\n[run]\nrecipe = "small"\ndata = "digits"\ndata_dim = 64\nseed = 3\n'
EPOCH = {"epoch": 1, "step": 2, "seconds": 0.5, "images_per_second": 9.5, "loss": 1.5, "reconstruction": 1.0}
EPOCH |= {"regularizer": 0.5, "regularizer_share": 0.25, "validation_log_likelihood": -3.0}
METRICS = "".join(json.dumps({**EPOCH, "epoch": n, "step": 2 * n}) + "\n" for n in range(1, 4))
METRICS += json.dumps({"warning": "codes collapsed", "step": 4}) + '\n{"kind": "evaluation", "mean": 1.0}\n'


def _written(write: Callable[[Any], Any]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _image(suffix: str, mode: str = "L") -> bytes:
    picture = Image.fromarray(PIXELS[0]).convert(mode)
    return _written(lambda file: picture.save(file, suffix))


def _matlab(file: Any, compressed: bool) -> None:
    """House numbers, between arrays of other kinds."""
    numbers = {"X": RANDOM.integers(0, 256, (4, 4, 3, 7), dtype=np.uint8), "y": np.arange(1.0, 8)[:, None]}
    others = {"text": "abc", "cells": np.array([1.5, "a"], object), "table": {"X": np.ones(3)}}
    savemat(file, {**others, **numbers, "last": np.ones((2, 2), complex)}, do_compression=compressed)


IDX = struct.pack(">4B3I", 0, 0, 8, 3, *PIXELS.shape) + PIXELS.tobytes()
VALID: dict[str, bytes] = {
    "file.idx": IDX,
    "file.idx.gz": gzip.compress(IDX, mtime=0),
    "images.npy": _written(lambda file: np.save(file, PIXELS / 255)),
    "images.npz": _written(lambda file: np.savez_compressed(file, images=PIXELS, labels=np.arange(31))),
    "images.pt": _written(lambda file: torch.save({"images": torch.from_numpy(PIXELS)}, file)),
    "old.pt": _written(
        lambda file: torch.save(torch.from_numpy(PIXELS), file, _use_new_zipfile_serialization=False)
    ),
    "plain.mat": _written(lambda file: _matlab(file, False)),
    "packed.mat": _written(lambda file: _matlab(file, True)),
    "recipe.toml": RECIPE.encode(),
    "config.toml": CONFIG.encode(),
    "metrics.jsonl": METRICS.encode(),
    **{f"{suffix}.{suffix}": _image(suffix) for suffix in ("png", "gif", "bmp", "tiff", "webp")},
    "jpg.jpg": _image("jpeg"),
    "pgm.pgm": _image("ppm"),
    "palette.png": _image("png", "P"),
    "deep.png": _written(lambda file: Image.fromarray(PIXELS[0].astype(np.uint16) * 257).save(file, "png")),
}  # fmt: skip
BYTES = st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, b"\0" * 8, b"9" * 6, b"[" * 3000]))


def changed(draw: Any, content: bytes) -> bytes:
    """Bytes replaced, put in, left out, cut off, or those of another file."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        how = draw(st.sampled_from(["replace", "replace", "insert", "omit", "cut", "mix"]))
        some = draw(BYTES)
        if how == "replace":
            content = content[:at] + some + content[at + len(some) :]
        elif how == "insert":
            content = content[:at] + some + content[at:]
        elif how == "omit":
            content = content[:at] + content[at + len(some) :]
        elif how == "cut":
            content = content[:at]
        else:
            content = content[:at] + VALID[draw(st.sampled_from(sorted(VALID)))][at:]
    return content


def files(draw: Any) -> None:
    if draw(st.integers(0, 9)) == 0:
        return state(draw)
    name = draw(st.sampled_from(sorted(VALID)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(changed(draw, VALID[name]))
        try:
            read(path)
        except UserError as error:
            said = str(error)
            assert any(word in said for word in (name, "model", "training.", "evaluation", "key '")), said
            assert len(said) < 3000 or path.suffix == ".toml", said  # a value of a recipe is quoted whole
    return None


def read(path: Path) -> None:
    """Reads a file by its name, and judges what it held."""
    if ".idx" in path.name:
        images = read_idx(path)
        assert images.dtype == torch.uint8 and 1 <= images.ndim <= 4
    elif path.suffix == ".mat":
        split, shape = _svhn_split(path)
        judge(split.images, split.labels)
        assert split.labels is not None and split.labels.max() <= 9 and split.images.shape[1] == math.prod(shape)
    elif path.suffix in (".npy", ".npz", ".pt"):
        data = load_data(str(path))
        for split in (data.train, data.validation, data.test):
            judge(split.images, split.labels)
    elif path.name == "recipe.toml":
        recipe = load_recipe(str(path), "digits")
        if max([1, *recipe.model.hidden]) < 1e5 and recipe.model.code_size < 1e5:
            assert recipe.build(16).data_dim == 16
    elif path.name == "config.toml":
        config = RunConfig.read(path)
        assert isinstance(config.data, str) and isinstance(config.seed, int)
    elif path.name == "metrics.jsonl":
        folder = RunFolder(path.parent)
        assert all(isinstance(record, dict) for record in folder.records())
        assert folder.evaluations() >= int(folder.is_evaluated())
        assert _training(folder, RunConfig(load_recipe("mmd-ae"), "digits", 64))
        folder.forget_after(2)
        assert all(record.get("step", 0) <= 2 for record in folder.records())
    else:
        folder = image_files(path.parent)
        images = folder.read()
        judge(images, folder.labels)
        assert images.shape == (1, math.prod(folder.image_shape))


def judge(images: torch.Tensor, labels: torch.Tensor | None) -> None:
    assert images.dtype == torch.float32 and images.ndim == 2 and images.numel()
    assert images.min() >= 0 and images.max() <= 1
    assert labels is None or (labels.dtype == torch.int64 and len(labels) == len(images))


def state(draw: Any) -> None:
    """Of the batches, with anything in it."""
    batches = Batches(torch.rand(20, 3), 4, 0)
    good = batches.state_dict()
    key = draw(st.sampled_from([*good, "all"]))
    value = JUNK[draw(st.sampled_from(sorted(JUNK)))]()
    try:
        batches.load_state_dict(value if key == "all" else good | {key: value})
    except UserError:
        return
    assert all(len(batch.images) == 4 for batch in batches.epoch())
