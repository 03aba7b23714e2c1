"""A run folder made by an earlier version still loads: sampled from, measured, resumed, used as a recipe.

tests/data/former-run was made by commit 058509b, on scikit-learn's digits:

    fastmmd train aae --epochs 2 --set model.hidden=[2] --set model.code_size=2 --set model.discriminator=[2] \
        --set model.prior=mixture --set model.labels=regularizer --set training.labelled=50 --set training.average=0.9 \
        --set model.input_dropout=0.1 --set model.precision=float32 --set training.batch_size=200 \
        --set evaluation.samples=50 --set training.evaluate_every=1

The expectations are what that version gave for the same commands.
"""

from __future__ import annotations

import gzip
import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmmd.checkpoint import load_checkpoint
from fastmmd.data import load_data
from fastmmd.evaluation import parzen_evaluation, prior_samples
from fastmmd.nn import AAE
from fastmmd.training import load_recipe
from fastmmd.training.commands import sample
from fastmmd.training.config import with_epochs
from fastmmd.training.loop import Trainer
from fastmmd.training.report import sigma_grid
from fastmmd.training.run import RunConfig, RunFolder, load_model, load_trained

FORMER = Path(__file__).parent / "data" / "former-run"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A copy of the run folder."""
    torch.set_num_threads(1)
    for name in ("config.toml", "metrics.jsonl"):
        shutil.copy(FORMER / name, tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(gzip.decompress((FORMER / "checkpoint.pt.gz").read_bytes()))
    return RunFolder.existing(tmp_path)


def test_settings_and_samples(folder: RunFolder) -> None:
    config = RunConfig.read(folder.config)
    settings, training = config.recipe.model, config.recipe.training
    assert training.labeled == 50 and training.average == 0.9  # `labelled` in the file
    assert settings == AAE.Settings(
        code_size=2, hidden=(2,), discriminator=(2,), prior="mixture", labels="regularizer", input_dropout=0.1,
        regularizer_weight=1.0, learning_rate=1e-3, adversary_learning_rate=2e-3, precision="float32",
    )  # fmt: skip
    sampler = prior_samples(load_model(folder, config, torch.device("cpu")))
    pixels = torch.tensor([[0.526528, 0.497407, 0.500908, 0.375773], [0.552643, 0.460204, 0.454680, 0.399370]])
    torch.testing.assert_close(sampler.sample(5)[:2, 18:22], pixels, rtol=0, atol=1e-5)
    data = load_data("digits")
    parzen = parzen_evaluation(
        sampler, data.validation.images, data.test.images, 50, sigmas=sigma_grid(config.recipe.evaluation)
    )
    before = json.loads((FORMER / "metrics.jsonl").read_text().splitlines()[-1])
    assert parzen.mean == pytest.approx(before["mean"], rel=1e-5)
    assert parzen.sigma == pytest.approx(before["sigma"], rel=1e-5)


def test_resume(folder: RunFolder) -> None:
    config = RunConfig.read(folder.config)
    config = replace(config, recipe=with_epochs(config.recipe, 3))
    trainer = Trainer(config, config.load_data(), folder, quiet=True)
    trainer.resume()
    trainer.fit()
    record = folder.records()[-1]
    assert (record["epoch"], record["step"]) == (3, 18)
    assert record["loss"] == pytest.approx(47.21904500325521, rel=1e-5)
    assert record["validation_log_likelihood"] == pytest.approx(-39.45411846628863, rel=1e-5)
    assert load_checkpoint(folder.checkpoint)["epoch"] == 3


def test_config_of_a_former_run_is_a_recipe() -> None:
    recipe = load_recipe(str(FORMER / "config.toml"), "digits", {"training.labelled": 60})
    assert recipe.kind == "aae" and recipe.training.labeled == 60 and recipe.model.prior == "mixture"


def test_data_in_another_order_are_told_of(tmp_path: Path) -> None:
    """Color arrays [N, H, W, 3] were rows of pixels before they became planes."""
    torch.set_num_threads(1)
    images = np.random.default_rng(0).random((40, 4, 4, 3), dtype=np.float32)
    array = tmp_path / "images.npy"
    np.save(array, images.reshape(40, -1))  # as they were read
    settings = {"model.hidden": [4], "training.batch_size": 16, "training.epochs": 1, "evaluation.samples": 20}
    config = RunConfig(load_recipe("mmd-ae", "", settings), str(array), 48)
    folder = RunFolder.create(tmp_path / "run")
    config.write(folder.config)
    Trainer(config, config.load_data(), folder, quiet=True).fit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_trained(folder, None, "cpu")
    np.save(array, images)
    with pytest.warns(UserWarning, match=r"run was trained on other images or labels than .*images.npy holds now"):
        load_trained(folder, None, "cpu")
    with pytest.warns(UserWarning, match="was trained on other images"):
        sample(folder.path, 2, tmp_path / "drawn.npy", sampler="posterior", device="cpu")
