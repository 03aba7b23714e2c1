"""Markov chains, the aggregated posterior, interpolations, and their pictures."""

from __future__ import annotations

import functools
import json
import math
import runpy
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_programs_papers import use_few_samples
from torch import Tensor

import fastmmd.evaluation
from fastmmd.evaluation import (
    chain,
    interpolate,
    lerp,
    markov_chain,
    posterior_samples,
    prior_samples,
    save_grid,
    slerp,
)
from fastmmd.nn import AAE, MMDAE, VAE
from fastmmd.training import load_recipe

F64 = torch.float64


def aae() -> AAE:
    torch.manual_seed(1)
    return AAE(9, code_size=2, hidden=(8,), discriminator=(8,), precision="float32").eval()


def vae() -> VAE:
    torch.manual_seed(1)
    return VAE(9, code_size=2, hidden=(8,), precision="float32").eval()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the chain ---


def test_chain_shows_every_state() -> None:
    model, start = aae(), torch.randn(5, 2)
    states = list(chain(model, start, 3))
    assert len(states) == 4 and states[0].codes is start
    for state in states:
        assert torch.equal(state.images, model.decode(state.codes)) and not state.images.requires_grad
    for before, after in pairwise(states):
        assert torch.equal(after.codes, model.encode(before.images)) and not torch.equal(after.codes, before.codes)


def test_chain_makes_states_when_they_are_asked_for() -> None:
    states = chain(aae(), torch.randn(5, 2), 10**9)
    assert [next(states).codes.shape for _ in range(3)] == [(5, 2)] * 3
    assert torch.is_grad_enabled()


def test_chain_draws_from_the_posterior() -> None:
    """A Gaussian posterior's noise has the encoder's variance: z_1 - mean over many equal chains."""
    model = vae()
    first, second = list(chain(model, torch.zeros(20_000, 2), 1, seeded()))
    mean, log_variance = model.encoder(first.images[:1]).detach().chunk(2, dim=1)
    torch.testing.assert_close(second.codes.mean(0, keepdim=True), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(second.codes.var(0, keepdim=True), log_variance.exp(), rtol=0.05, atol=0)
    again = list(chain(model, torch.zeros(20_000, 2), 1, seeded()))[1]
    assert torch.equal(again.codes, second.codes)


def test_chain_reaches_its_stationary_distribution() -> None:
    """decode(z) = z and q(z | x) = N(x / 2, 1): an autoregression, whose variance is 1 / (1 - 1 / 4)."""

    class Autoregression(torch.nn.Module):
        data_dim = code_size = 1
        posterior, decoder_classes, encoder = "gaussian", 0, torch.nn.Identity()

        def encode(self, x: Tensor) -> Tensor:
            return x / 2

        def draw_codes(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
            return x / 2 + torch.randn(x.shape, generator=generator)

        def corrupt(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
            return x

        def decode(self, z: Tensor) -> Tensor:
            return z

    *_, last = chain(Autoregression(), torch.full((40_000, 1), 30.0), 15, seeded())
    assert last.codes.mean().item() == pytest.approx(0, abs=0.03)
    assert last.codes.var().item() == pytest.approx(4 / 3, rel=0.03)


@pytest.mark.parametrize("steps", [-1, 1.5, True])
def test_steps_are_checked_at_once(steps: object) -> None:
    with pytest.raises(ValueError, match="steps: got"):
        chain(aae(), torch.zeros(1, 2), steps)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps: got"):
        markov_chain(aae(), steps)  # type: ignore[arg-type]


def test_chain_with_noise() -> None:
    torch.manual_seed(1)
    model = MMDAE(9, code_size=2, hidden=(8,), denoising=0.5, precision="float32").eval()
    start = torch.randn(6, 2)
    noisy, plain = (list(chain(model, start, 1, seeded(), corrupt=corrupt))[1].codes for corrupt in (True, False))
    noise = 0.5 * torch.randn(6, 9, generator=seeded())
    torch.testing.assert_close(noisy, model.encode(model.decode(start) + noise).detach())
    torch.testing.assert_close(plain, model.encode(model.decode(start)).detach())
    with pytest.raises(ValueError, match="corrupt: got True"):
        chain(aae(), start, 1, corrupt=True)


def test_codes_are_a_matrix() -> None:
    with pytest.raises(ValueError, match=r"codes: got shape \[2\], expected \[B, 2\]"):
        chain(aae(), torch.zeros(2), 1)


# --- samplers ---


def test_aggregated_posterior_and_its_chain() -> None:
    model, images = aae(), torch.rand(4, 9)
    sampler = posterior_samples(model, images, "training images")
    drawn = sampler.sample(2_000, seed=3)
    assert sampler.name == "aggregated posterior of 4 training images"
    each = drawn[:, None] - model.reconstruct(images).detach()
    nearest, which = each.norm(dim=-1).min(1)
    assert nearest.max() < 1e-5
    assert (which.bincount(minlength=4) / 2_000 - 0.25).abs().max() < 0.06  # uniform, with replacement
    assert torch.equal(drawn, sampler.sample(2_000, seed=3)) and not torch.equal(drawn, sampler.sample(2_000, seed=4))

    walked = markov_chain(model, 1, sampler)
    assert walked.name == "aggregated posterior of 4 training images, 1 encode-decode step"
    torch.testing.assert_close(walked.sample(50), model.reconstruct(sampler.sample(50)).detach())
    assert markov_chain(model, 0, sampler) is sampler
    with pytest.raises(ValueError, match=r"images: got shape \[0, 9\]"):
        posterior_samples(model, images[:0])


def test_chain_from_the_prior_is_the_chain() -> None:
    model = aae()
    walked = markov_chain(model, 2).sample(10, seed=5)
    *_, last = chain(model, model.prior.sample(10, generator=seeded(5)), 2)
    torch.testing.assert_close(walked, last.images)
    torch.testing.assert_close(prior_samples(model).sample(10, seed=5), model.sample(10, generator=seeded(5)))


# --- interpolation ---


def test_slerp_is_the_arc() -> None:
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    t = torch.linspace(0, math.pi / 2, 7)
    torch.testing.assert_close(slerp(a, b, 7), 2 * torch.stack([t.cos(), t.sin()], 1))
    torch.testing.assert_close(lerp(a, b, 3), torch.tensor([[2.0, 0], [1, 1], [0, 2]]))


def test_slerp_of_different_lengths_is_the_usual_formula() -> None:
    a, b = torch.randn(4, 3, 6, dtype=F64), 3 * torch.randn(4, 3, 6, dtype=F64)
    path = slerp(a, b, 5)
    assert path.shape == (4, 3, 5, 6) and path.dtype == F64
    angle = torch.acos(torch.nn.functional.cosine_similarity(a, b, dim=-1))[..., None]
    for number, t in enumerate((0, 0.25, 0.5, 0.75, 1)):
        expected = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
        torch.testing.assert_close(path[..., number, :], expected)
    torch.testing.assert_close(path[..., 0, :], a, rtol=0, atol=0)
    torch.testing.assert_close(path[..., -1, :], b, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((1.0, 2.0), (1.0, 2.0)),  # equal
        ((1.0, 2.0), (3.0, 6.0)),  # parallel
        ((1.0, 2.0), (-1.0, -2.0)),  # opposite
        ((0.0, 0.0), (1.0, 2.0)),  # zero
        ((1.0, 2.0), (0.0, 0.0)),
        ((0.0, 0.0), (0.0, 0.0)),
        ((1e-30, 2e-30), (2e-30, 4e-30)),
        ((1.0, 2.0), (1.0, 2.0000002)),  # nearly parallel
    ],
)
def test_slerp_is_straight_where_there_is_no_arc(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    a, b = torch.tensor(first), torch.tensor(second)
    torch.testing.assert_close(slerp(a, b, 5), lerp(a, b, 5), rtol=1e-6, atol=1e-36)


def test_slerp_of_tiny_vectors_is_an_arc() -> None:
    a, b = torch.tensor([1e-30, 0.0]), torch.tensor([0.0, 1e-30])
    torch.testing.assert_close(slerp(a, b, 3)[1] / 1e-30, torch.tensor([0.5**0.5, 0.5**0.5]))


def test_interpolation_of_pairs_and_its_correction() -> None:
    model, first, second = aae(), torch.rand(3, 9), torch.rand(3, 9)
    paths = interpolate(model, first, second, 4, path="spherical")
    assert paths.shape == (3, 4, 9)
    torch.testing.assert_close(paths[:, 0], model.reconstruct(first).detach())
    torch.testing.assert_close(paths[:, -1], model.reconstruct(second).detach())
    torch.testing.assert_close(interpolate(model, first[1], second[1], 4, path="spherical"), paths[1])
    straight = interpolate(model, first, second, 4)
    codes = torch.lerp(model.encode(first), model.encode(second), 1 / 3)
    torch.testing.assert_close(straight[:, 1], model.decode(codes).detach())
    corrected = interpolate(model, first, second, 4, path="spherical", steps=2)
    expected = model.reconstruct(model.reconstruct(paths.flatten(0, 1))).detach().unflatten(0, (3, 4))
    torch.testing.assert_close(corrected, expected)
    with pytest.raises(ValueError, match="path: got 'curved', expected one of linear, spherical"):
        interpolate(model, first, second, 4, path="curved")
    with pytest.raises(ValueError, match=r"second: got shape \[9\]"):
        interpolate(model, first, second[0], 4)
    with pytest.raises(ValueError, match="count: got 1"):
        interpolate(model, first, second, 1)


# --- the script ---

SCRIPT = Path(__file__).parents[1] / "python" / "markov_sampling.py"


def run_script(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--device", "cpu", *words])
    quick = functools.partial(fastmmd.evaluation.train_classifier, epochs=1)
    monkeypatch.setattr(fastmmd.evaluation, "train_classifier", quick)
    use_few_samples(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a sigma on the edge: nothing is learned yet
        runpy.run_path(str(SCRIPT), run_name="__main__")


def test_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_script(monkeypatch, "--epochs", "1", "--samples", "100", "--run-dir", str(tmp_path), "--seed", "3")
    models = ("aae", "daae", "vae", "dvae")
    names = {f"{model}-{what}.png" for model in models for what in ("samples", "interpolations")}
    runs = {f"{model}-mlp-seed3" for model in models}
    others = {"likelihood.png", "confidence.png", "code-std.png", "classifier.pt", "report.md", "markov-sampling.json"}
    assert {path.name for path in tmp_path.iterdir()} == names | runs | others
    report, out = (tmp_path / "report.md").read_text(), capsys.readouterr().out
    for model in ("AAE", "DAAE", "VAE", "DVAE"):
        rows = [line.split(" | ") for line in report.splitlines() if line.startswith(f"| {model} | ")]
        steps = [f"prior, {steps} step{'s' if steps != 1 else ''}" for steps in range(11)]
        assert [row[1] for row in rows] == [
            *steps,
            "aggregated posterior of 1,259 training images",
            "codes of 269 test images",
        ]
        assert all(0.1 <= float(row[5].strip(" |")) <= 1 for row in rows[:-1])  # of ten classes
        assert len({row[2] for row in rows}) > 1 and f"{model}, prior, 5 steps, " in out


def test_script_in_the_papers_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images in color without labels no classifier is asked, and the record holds what was measured."""
    np.save(tmp_path / "mine.npy", np.random.RandomState(0).rand(60, 3, 8, 12))
    words = ["--network", "paper", "--data", str(tmp_path / "mine.npy"), "--run-dir", str(tmp_path / "run")]
    words += ["--set", "model.channels=[4, 4]", "--set", "training.batch_size=16"]
    run_script(monkeypatch, *words, "--epochs", "1", "--samples", "20")
    record = json.loads((tmp_path / "run" / "markov-sampling.json").read_text())
    assert [model["name"] for model in record["models"]] == ["VAE", "DVAE", "AAE", "DAAE"]
    assert not {"classifier.pt", "confidence.png"} & {path.name for path in (tmp_path / "run").iterdir()}
    for model in record["models"]:
        settings = model["model"]
        assert (settings["code_size"], settings["learning_rate"], settings["beta1"]) == (200, 2e-4, 0.5)
        assert settings["denoising"] == (0.5 if model["name"].startswith("D") else 0.0)
        assert len(model["rows"]) == 12 and all(row["confidence"] is None for row in model["rows"])
        assert model["rows"][0]["code_std"] == pytest.approx(1, abs=0.05)  # of the prior
        assert load_recipe(model["recipe"]).training.epochs == 20 and model["epochs"] == 1


def test_script_measures_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains that walk in parts, one step at a time, are the chain."""
    script = runpy.run_path(str(SCRIPT))
    monkeypatch.setitem(script["walk"].__globals__, "CHUNK", 4)
    experiment = SimpleNamespace(device=torch.device("cpu"), options=SimpleNamespace(seed=5))
    model = aae()
    walked = list(script["walk"](experiment, model, 10))
    expected = list(chain(model, model.prior.sample(10, generator=seeded(5)), 10))
    assert len(walked) == len(expected) == 11
    for ours, state in zip(walked, expected, strict=True):
        torch.testing.assert_close(ours.images, state.images)
        torch.testing.assert_close(ours.codes, state.codes)


def test_script_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_script(monkeypatch, "--data", "nix", "--run-dir", str(tmp_path))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: data: no such file or folder: nix")
    assert error.count("\n") == 1


# --- pictures ---


def test_grid_figure(tmp_path: Path) -> None:
    images = torch.rand(3, 5, 20)
    save_grid(tmp_path / "plain.png", images, (4, 5))
    save_grid(tmp_path / "labeled.png", images, (4, 5), "title", ("0 steps", "1 step", "2 steps"), tuple("abcde"))
    sizes = [(tmp_path / name).stat().st_size for name in ("plain.png", "labeled.png")]
    assert 2_000 < sizes[0] < sizes[1]
    with pytest.raises(ValueError, match="rows: got 1 labels, expected 3 or none"):
        save_grid(tmp_path / "x.png", images, (4, 5), rows=("one",))
