"""The Parzen protocol against closed forms, samplers, code statistics, figures."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import uniform
from torch import Tensor

import fastmmd
from fastmmd.errors import UserError
from fastmmd.evaluation import (
    Sampler,
    choose_sigma,
    code_statistics,
    interpolate,
    markov_chain,
    parzen_evaluation,
    posterior_codes,
    prior_holes,
    prior_samples,
    save_latent,
    save_reconstructions,
    save_samples,
)
from fastmmd.evaluation.sampling import images_file
from fastmmd.nn import MMDAE
from fastmmd.training import report

DIM = 3
GRID = (0.05, 0.1, 0.2, 0.4, 0.8)


def gaussian(count: int, seed: int, std: float = 1.0, dim: int = DIM) -> Tensor:
    return std * torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


class Toy(torch.nn.Module):
    """An autoencoder whose samples are N(0, 1): encode doubles, decode halves its input."""

    data_dim = code_size = DIM
    posterior, decoder_classes, encoder = "deterministic", 0, torch.nn.Identity()

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.modes: list[bool] = []

    def encode(self, x: Tensor) -> Tensor:
        return 2 * self.weight * x

    def decode(self, z: Tensor) -> Tensor:
        return z / 2 + 0.001

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        self.modes.append(self.training)
        return torch.randn(count, DIM, generator=generator) * self.weight


def test_parzen_of_gaussian_samples_is_their_smoothed_density() -> None:
    """Windows of width s on many draws of N(0, I) estimate N(0, (1 + s^2) I)."""
    test, validation = gaussian(2_000, 1), gaussian(500, 2)
    result = parzen_evaluation(gaussian(8_000, 3), validation, test, sigmas=GRID)
    variance = 1 + result.sigma**2
    expected = -(test.double().square().sum(1) / (2 * variance)) - DIM / 2 * math.log(2 * math.pi * variance)
    assert abs(result.mean - expected.mean().item()) < 0.03  # the windows of 8,000 draws still fluctuate
    assert result.standard_error == pytest.approx(expected.std().item() / math.sqrt(2_000), rel=0.05)
    assert 0.1 < result.sigma < 0.4
    assert (result.samples, result.sampler, result.n_test) == (8_000, "given samples", 2_000)


def test_parzen_agrees_with_the_dense_formula() -> None:
    samples, validation, test = gaussian(300, 1), gaussian(40, 2), gaussian(50, 3)
    result = parzen_evaluation(samples, validation, test, sigmas=GRID)

    def dense(points: Tensor, sigma: float) -> Tensor:
        squared = torch.cdist(points.double(), samples.double()).square()
        log_density = torch.logsumexp(-squared / (2 * sigma**2), 1) - math.log(300)
        return log_density - DIM / 2 * math.log(2 * math.pi * sigma**2)

    assert result.mean == pytest.approx(dense(test, result.sigma).mean().item(), abs=1e-4)
    assert result.validation_mean == pytest.approx(dense(validation, result.sigma).mean().item(), abs=1e-4)
    best = max(dense(validation, float(s)).mean().item() for s in torch.logspace(-1.3, -0.1, 200))
    assert best - 1e-3 < result.validation_mean <= best + 1e-4  # sigma is refined beyond the coarse grid


def test_test_split_does_not_choose_sigma() -> None:
    samples, validation = gaussian(500, 1), gaussian(100, 2)
    narrow = parzen_evaluation(samples, validation, 0.01 * gaussian(50, 3), sigmas=GRID)
    wide = parzen_evaluation(samples, validation, 5 * gaussian(50, 3), sigmas=GRID)
    assert narrow.sigma == wide.sigma and narrow.mean > wide.mean


@pytest.mark.parametrize("sigmas", [(0.001, 0.002, 0.004), (3.0, 4.0, 5.0)])
def test_sigma_on_the_edge_of_the_grid_is_warned_about(sigmas: tuple[float, ...]) -> None:
    with pytest.warns(UserWarning, match="edge of the grid"):
        parzen_evaluation(gaussian(500, 1), gaussian(100, 2), gaussian(100, 3), sigmas=sigmas)


def test_sigma_inside_the_grid_is_not_warned_about() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_sigma(gaussian(500, 1), gaussian(100, 2), sigmas=GRID)


def test_validation_takes_its_first_thousand_rows() -> None:
    samples, validation = gaussian(200, 1), gaussian(1_200, 2)
    first = choose_sigma(samples, validation[:1_000], sigmas=GRID)
    assert choose_sigma(samples, validation, sigmas=GRID) == first


def test_model_is_sampled_in_eval_mode_and_put_back() -> None:
    model = Toy().train()
    result = parzen_evaluation(model, gaussian(100, 1), gaussian(100, 2), samples=3_000, sigmas=GRID)
    assert model.training and not any(model.modes)
    assert result.sampler == "prior" and result.samples == 3_000
    again = parzen_evaluation(model, gaussian(100, 1), gaussian(100, 2), samples=3_000, sigmas=GRID)
    assert again == result
    other = parzen_evaluation(model, gaussian(100, 1), gaussian(100, 2), samples=3_000, sigmas=GRID, seed=9)
    assert other.mean != result.mean


def test_evaluation_leaves_the_random_state_and_denormals_alone() -> None:
    before = torch.get_rng_state()
    parzen_evaluation(Toy(), gaussian(100, 1), gaussian(100, 2), samples=100, sigmas=(0.1, 0.5, 3.0))
    assert torch.equal(torch.get_rng_state(), before)
    assert (torch.tensor(1e-40) * 1).item() > 0


def test_function_as_sampler() -> None:
    def noise(count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, DIM, generator=generator)

    result = parzen_evaluation(noise, gaussian(100, 1), gaussian(100, 2), samples=500, sigmas=GRID)
    assert result.sampler == "noise"


def test_wrong_arguments_are_refused() -> None:
    points = gaussian(10, 1)
    for arguments, error, message in (
        ((points, points, points[:1]), ValueError, "at least 2 rows"),
        ((points, points[:, :2], points), ValueError, "same D"),
        ((points, points[:0], points), ValueError, "same D"),
        ((points[0], points, points), ValueError, r"samples must be a matrix \[N, D\]"),
        (("prior", points, points), TypeError, "got str"),
    ):
        with pytest.raises(error, match=message):
            parzen_evaluation(*arguments, sigmas=GRID)
    for sigmas in ((0.1,), (0.2, 0.1), (0.0, 0.1), (float("nan"), 0.1), (0.1, float("inf"))):
        with pytest.raises(ValueError, match="sigmas"):
            parzen_evaluation(points, points, points, sigmas=sigmas)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        parzen_evaluation(Toy(), points, points, samples=0, sigmas=GRID)


def test_samplers() -> None:
    model = Toy()
    prior = prior_samples(model)
    images = prior.sample(5_000, seed=3)
    assert images.shape == (5_000, DIM) and torch.equal(images, torch.cat(list(prior.stream(5_000, 3))))
    assert not torch.equal(images, prior.sample(5_000, seed=4))
    walked = markov_chain(model, 2)
    torch.testing.assert_close(walked.sample(100, 3), prior.sample(100, 3) + 0.002)
    assert walked.name == "prior, 2 encode-decode steps" and markov_chain(model, 0).name == "prior"
    with pytest.raises(ValueError, match="steps"):
        markov_chain(model, -1)


def test_the_chain_of_a_denoising_model_adds_its_noise_before_each_encoding() -> None:
    model = MMDAE(DIM, code_size=2, hidden=(4,), denoising=0.5, precision="float32").eval()
    seen: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    walked = markov_chain(model, 2, corrupt=True)
    images = walked.sample(1_000, 3)
    assert torch.equal(images, walked.sample(1_000, 3)) and walked.name == "prior, 2 corrupt-encode-decode steps"
    start = model.sample(1_000, generator=torch.Generator().manual_seed(3))
    first, second = seen[:2]
    for noise in (first - start, second - model.reconstruct(first)):
        assert noise.std().item() == pytest.approx(0.5, rel=0.06)  # 3,000 draws: 4.6 SE
    torch.testing.assert_close(images, model.reconstruct(second))
    seen.clear()
    markov_chain(model, 1).sample(1_000, 3)
    assert torch.equal(seen[0], start)
    plain = MMDAE(DIM, code_size=2, hidden=(4,), precision="float32")
    with pytest.raises(ValueError, match="corrupt: got True for a model with denoising=0"):
        markov_chain(plain, 1, corrupt=True)


@pytest.mark.parametrize("posterior", ["deterministic", "gaussian", "implicit"])
def test_posterior_codes(posterior: str) -> None:
    model = MMDAE(DIM, code_size=2, hidden=(4,), posterior=posterior, precision="float32").eval()
    x = gaussian(50, 1)
    codes = [posterior_codes(model, x, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(codes[0], codes[1]) and codes[0].shape == (50, 2) and not codes[0].requires_grad
    assert torch.equal(codes[0], codes[2]) == (posterior == "deterministic")
    assert torch.equal(codes[0], model.encode(x)) == (posterior == "deterministic")


def test_interpolate() -> None:
    first, second = torch.zeros(DIM), torch.ones(DIM)
    path = interpolate(Toy(), first, second, 5)
    torch.testing.assert_close(path, torch.linspace(0, 1, 5)[:, None].expand(5, DIM) + 0.001)
    with pytest.raises(ValueError, match="count"):
        interpolate(Toy(), first, second, 1)


def test_code_statistics() -> None:
    draws, more = gaussian(1_000, 1, dim=2), gaussian(1_000, 2, dim=2)
    good = code_statistics(gaussian(1_000, 3, dim=2), draws, more)
    bad = code_statistics(3 * gaussian(1_000, 3, dim=2), draws, more)
    assert bad.mmd2 > 20 * good.mmd2 and good.mmd2 < 4 * good.mmd2_null
    assert bad.std == pytest.approx([3 * value for value in good.std], rel=1e-4)
    scale = draws.std().item()
    expected = fastmmd.mmd2(more, draws, [scale / 2, scale, 2 * scale, 4 * scale]).item()
    assert good.mmd2_null == pytest.approx(expected, rel=1e-5)
    rayleigh = [math.sqrt(-2 * math.log(1 - q)) for q in (0.05, 0.5, 0.95, 0.99)]
    assert good.prior_norm_quantiles == pytest.approx(rayleigh, rel=0.15)
    with pytest.raises(ValueError, match="one shape"):
        code_statistics(draws, draws[:10], more)


def test_the_report_of_codes_of_many_dimensions() -> None:
    """No table of 200 columns."""
    for dim in (20, 21):
        codes, draws, more = gaussian(50, 1, 0.5, dim), gaussian(50, 2, 1.0, dim), gaussian(50, 3, 1.0, dim)
        statistics = code_statistics(codes, draws, more)
        table = report._codes(statistics)[0].splitlines()
        assert table[0].endswith("| z20 |" if dim == 20 else "| of 21 dimensions | least | median | largest |")
        std = sorted(statistics.std)
        shown = statistics.std if dim == 20 else (std[0], std[10], std[20])
        assert table[4] == "| std | " + " | ".join(f"{value:.2f}" for value in shown) + " |"


def test_prior_holes() -> None:
    draws, more = uniform(4_000, 2, seed=1), uniform(1_000, 2, seed=2)
    assert prior_holes(draws, draws, more) == 0.01  # by definition: 10 draws are farther than the 990th
    assert prior_holes(uniform(4_000, 2, seed=3), draws, more) == pytest.approx(0.01, abs=0.01)  # another match
    disk = (draws - 0.5).norm(dim=1) < 0.25
    around = torch.cat([draws[~disk], 9 + draws[: int(disk.sum())]])  # as many codes, none in the disk
    near = torch.cdist(more, draws).amin(1).sort().values[989]
    expected = (torch.cdist(more, around).amin(1) > near).double().mean().item()
    assert prior_holes(around, draws, more) == pytest.approx(expected, abs=1e-9) and 0.1 < expected < math.pi / 16
    assert code_statistics(around, draws, draws.flip(0)).holes == prior_holes(around, draws, draws.flip(0))
    assert prior_holes(draws[:1], draws[:1] + 0.1, draws[:1] + 0.3) == 1.0  # one of each
    for other in ((draws[:5], more), (draws, more[:0])):
        with pytest.raises(ValueError, match=r"draws: got shape"):
            prior_holes(draws, *other)
    with pytest.raises(ValueError, match="more_draws: got dimension 1"):
        prior_holes(draws, draws, more[:, :1])
    with pytest.raises(ValueError, match="codes: got NaN or infinity"):  # codes of NaN would leave no hole
        prior_holes(draws.index_fill(0, torch.tensor(7), math.nan), draws, more)


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 4), (4, 4, 3), (7,)])
def test_figures_take_every_image_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    from PIL import Image

    images = torch.rand(13, math.prod(shape))
    save_samples(tmp_path / "samples.png", images, shape, "title")
    save_reconstructions(tmp_path / "reconstructions.png", images, images / 2, shape)
    for name in ("samples.png", "reconstructions.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.convert("L").getextrema() == (0, 255) or picture.size[0] > 300


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("classes", [0, 4, 30])
def test_latent_figure(tmp_path: Path, dim: int, classes: int) -> None:
    labels = torch.arange(90) % classes if classes else None
    save_latent(tmp_path / "latent.png", gaussian(90, 1, dim=dim), gaussian(50, 2, dim=dim), labels, "title")
    assert (tmp_path / "latent.png").stat().st_size > 5_000


def test_sampler_is_public() -> None:
    sampler = Sampler("ones", lambda count, generator: torch.ones(count, DIM), torch.device("cpu"))
    assert [len(chunk) for chunk in sampler.stream(5, chunk=2)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("missing/x.npy", 3, "No such file"),
        ("folder.npy", 3, "Is a directory"),
        ("x.npy", 10**15, "GB are free"),
        ("x.npy", 10**30, "GB are free"),
    ],
)
def test_images_file_is_refused_at_once(tmp_path: Path, name: str, count: int, message: str) -> None:
    (tmp_path / "folder.npy").mkdir()
    with (
        pytest.raises(UserError, match=f"cannot write .*{name}: .*{message}"),
        images_file(tmp_path / name, (count, 4), {}),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["folder.npy"]


def test_images_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_text("earlier")
    with pytest.raises(KeyboardInterrupt), images_file(path, (2, 4), {"sampler": "prior"}) as images:
        images[0] = 1
        raise KeyboardInterrupt
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]
    with images_file(path, (2, 4), {"sampler": "prior"}) as images:
        images[:] = 1
    assert np.array_equal(np.load(path), np.ones((2, 4), np.float32))
    assert (tmp_path / "x.npy.json").read_text() == '{"sampler": "prior"}\n'
    assert {file.name for file in tmp_path.iterdir()} == {"x.npy", "x.npy.json"}
