"""Images in color: from arrays and folders, by the settings of [data], to networks, runs, pictures and programs."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_close
from PIL import Image
from test_label_programs import run
from test_programs import Command, fastmmd  # noqa: F401 (a fixture)
from test_published_data import write_svhn
from torch.nn import functional as F

from fastmmd.data import Dataset, DataSettings, load_data
from fastmmd.data.images import read_image
from fastmmd.errors import UserError
from fastmmd.evaluation import Classifier, figures, save_grid
from fastmmd.nn import ConvDecoder, ConvEncoder
from fastmmd.training.config import load_recipe
from fastmmd.training.run import RunConfig

RANDOM = np.random.default_rng(0)
COLORS = RANDOM.integers(0, 256, (32, 6, 5, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def all_images(data: Dataset) -> np.ndarray:
    return torch.cat([split.images for split in (data.train, data.validation, data.test)]).numpy()


def same_rows(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """The same rows in any order."""
    return sorted(row.tobytes() for row in ours) == sorted(row.tobytes() for row in theirs.astype(np.float32))


def write_folder(folder: Path, pictures: Any) -> str:
    folder.mkdir(exist_ok=True)
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return str(folder)


# --- arrays ---


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_of_either_order_become_channels_first(tmp_path: Path, first: bool, dtype: type) -> None:
    pixels = COLORS if dtype == np.uint8 else COLORS / np.float32(255)
    np.save(tmp_path / "a.npy", pixels.transpose(0, 3, 1, 2) if first else pixels)
    data = load_data(str(tmp_path / "a.npy"))
    assert data.image_shape == (3, 6, 5)
    expected = COLORS.transpose(0, 3, 1, 2).reshape(32, -1) / np.float32(255)
    assert same_rows(all_images(data), expected)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((32, 3, 8, 3), "both may be the colors"),
        ((32, 4, 8, 8), "neither has the three colors"),
        ((32, 8, 8, 4), "neither has the three colors"),
        ((32, 3, 8, 8, 8), "neither has the three colors"),
    ],
)
def test_arrays_of_unknown_axes_are_refused(tmp_path: Path, shape: tuple[int, ...], message: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match=f"a.npy: images .* expected, got shape .*{message}"):
        load_data(str(tmp_path / "a.npy"))


@pytest.mark.parametrize(
    ("shape", "found"),
    [((8, 3), (8, 3)), ((1, 8, 7), (8, 7)), ((8, 7, 1), (8, 7)), ((49,), (7, 7)), ((50,), (50,)), ((1,), (1, 1))],
)
def test_shapes_of_gray_arrays(tmp_path: Path, shape: tuple[int, ...], found: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", RANDOM.integers(0, 256, (32, *shape), dtype=np.uint8))
    assert load_data(str(tmp_path / "a.npy")).image_shape == found


# --- folders ---


def test_folders_are_read_in_the_color_of_the_first_image_or_the_asked_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "color", COLORS)
    channels_first = COLORS.transpose(0, 3, 1, 2).reshape(32, -1) / np.float32(255)
    for color in ("auto", "color"):
        data = load_data(folder, color=color)
        assert data.image_shape == (3, 6, 5) and same_rows(all_images(data), channels_first)
    gray = load_data(folder, color="gray")
    luma = (COLORS.astype(float) @ [0.299, 0.587, 0.114]).round() / 255  # ITU-R 601, within a rounding
    assert gray.image_shape == (6, 5)
    for row in all_images(gray):
        assert np.abs(luma.reshape(32, -1) - row).max(1).min() < 1.01 / 255

    gray_folder = write_folder(tmp_path / "gray", [np.stack([COLORS[0, :, :, 0]] * 3, -1), *COLORS[:31, :, :, 1]])
    data = load_data(gray_folder)  # the first one has three channels, and no color
    assert data.image_shape == (6, 5)
    data = load_data(gray_folder, color="color")
    assert data.image_shape == (3, 6, 5)
    red, green, blue = torch.from_numpy(all_images(data)).unflatten(1, (3, 30)).unbind(1)
    assert torch.equal(red, green) and torch.equal(red, blue)
    Image.fromarray(COLORS[0]).save(Path(gray_folder) / "31.png")
    with pytest.raises(UserError, match="31.png has color, the first image has none: set data.color to 'gray' or 'co"):
        load_data(gray_folder)
    assert load_data(gray_folder, color="gray").image_shape == (6, 5)
    Image.fromarray(COLORS[0]).save(Path(gray_folder) / "00.png")  # now the first one has, and the others follow
    assert load_data(gray_folder).image_shape == (3, 6, 5)


def deep_png(pixels: np.ndarray, transparent: bytes = b"") -> bytes:
    """[H, W] or [H, W, 3] uint16 as a PNG of 16 bits, of which Pillow writes gray ones without transparency alone."""
    height, width = pixels.shape[:2]

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">2I5B", width, height, 16, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    header = chunk(b"IHDR", header) + (chunk(b"tRNS", transparent) if transparent else b"")
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bits(tmp_path: Path) -> None:
    """Gray in full, also among images in color; of color the upper eight."""
    pixels = RANDOM.integers(0, 65536, (6, 5, 3), dtype=np.uint16)
    (tmp_path / "rgb.png").write_bytes(deep_png(pixels))
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "gray.png")
    color = read_image(tmp_path / "rgb.png")
    assert color.shape == (3, 6, 5)
    np.testing.assert_allclose(color, pixels.transpose(2, 0, 1) / 65535, atol=1.01 / 255)
    gray = pixels[:, :, 0] / np.float32(65535)
    np.testing.assert_array_equal(read_image(tmp_path / "gray.png"), gray)
    np.testing.assert_array_equal(read_image(tmp_path / "gray.png", DataSettings("color")), np.stack([gray] * 3))


def test_one_of_sixteen_bit_grays_is_transparent(tmp_path: Path) -> None:
    pixels = RANDOM.integers(0, 65536, (6, 5), dtype=np.uint16)
    expected = pixels / np.float32(65535)
    (tmp_path / "a.png").write_bytes(deep_png(pixels, struct.pack(">H", pixels[1, 2])))
    with pytest.raises(UserError, match="a.png: has transparent pixels"):
        read_image(tmp_path / "a.png")
    expected[1, 2] = 0.25
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", DataSettings(background=0.25)), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_lie_on_the_background(tmp_path: Path, mode: str) -> None:
    alpha = RANDOM.integers(0, 256, (6, 5), dtype=np.uint8)
    picture, options = Image.fromarray(COLORS[0]).convert(mode), {}
    opaque = np.asarray(picture.convert("RGB")).transpose(2, 0, 1) / 255
    if mode == "P":  # one color of the palette is transparent
        index = np.asarray(picture)
        alpha = np.where(index == index[0, 0], 0, 255)
        options = {"transparency": int(index[0, 0])}
    else:
        picture.putalpha(Image.fromarray(alpha))
    picture.save(tmp_path / "a.png", **options)
    with pytest.raises(UserError, match="a.png: has transparent pixels.*data.background"):
        read_image(tmp_path / "a.png")
    for background in (0, 0.2, 1):
        weight = alpha / 255
        expected = weight * opaque + (1 - weight) * background
        made = read_image(tmp_path / "a.png", DataSettings("color", background=background))
        np.testing.assert_allclose(made, expected, atol=1.01 / 255)


def test_opaque_images_with_alpha_need_no_background(tmp_path: Path) -> None:
    for mode, shape in (("RGBA", (3, 6, 5)), ("LA", (6, 5))):
        Image.fromarray(COLORS[0]).convert(mode).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png").shape == shape


@pytest.mark.parametrize("turned", [False, True])
def test_crop_and_pad(tmp_path: Path, turned: bool) -> None:
    pixels = COLORS[0].transpose(1, 0, 2) if turned else COLORS[0]  # 6 x 5, or 5 x 6
    Image.fromarray(pixels).save(tmp_path / "a.png")
    whole = torch.from_numpy(pixels.transpose(2, 0, 1) / np.float32(255))
    crop = read_image(tmp_path / "a.png", DataSettings(fit="crop"))
    assert torch.equal(crop, whole[:, :5, :5])  # the middle: of six lines the last one goes
    pad = read_image(tmp_path / "a.png", DataSettings(fit="pad", background=0.5))
    assert torch.equal(pad, F.pad(whole, (0, 0, 0, 1) if turned else (0, 1), value=0.5))
    assert torch.equal(read_image(tmp_path / "a.png", DataSettings(fit="pad"))[:, :5, :5], whole[:, :5, :5])
    with pytest.raises(UserError, match=r"a.png is \dx\d, no square: set data.fit to 'crop' or 'pad'"):
        read_image(tmp_path / "a.png", DataSettings(size=4))


def test_sizes(tmp_path: Path) -> None:
    """Smaller images are means of what they show; a folder's size is that of the first image or the asked one."""
    large = RANDOM.integers(0, 256, (12, 12), dtype=np.uint8)
    Image.fromarray(large).save(tmp_path / "a.png")
    made = read_image(tmp_path / "a.png", DataSettings(size=4))
    assert made.shape == (4, 4) and made.min() >= 0 and made.max() <= 1
    assert abs(made.mean().item() - large.mean() / 255) < 0.01
    weights = np.array([1, 2, 3, 2, 1]) / 9  # a triangle of width 6 about the middle of pixels 3 to 5
    middle = weights @ (large[2:7, 2:7] / 255) @ weights
    assert made[1, 1].item() == pytest.approx(middle, abs=1e-6)

    pictures = [COLORS[0], *RANDOM.integers(0, 256, (30, 9, 7, 3), dtype=np.uint8), large]
    folder = write_folder(tmp_path / "folder", pictures)
    with pytest.raises(UserError, match="01.png is 7x9, the first image is 5x6: images must have equal sizes, or data"):
        load_data(folder)
    assert load_data(folder, fit="crop").image_shape == (3, 5, 5)
    assert load_data(folder, fit="pad", size=8).image_shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"color": "rgb"}, "data.color 'rgb'"),
        ({"color": ["gray"]}, "data.color"),
        ({"fit": "stretch"}, "data.fit 'stretch'"),
        ({"size": 0}, "data.size must be a whole number from 1"),
        ({"size": True}, "data.size must"),
        ({"size": 1.5}, "data.size must"),
        ({"background": 2}, "data.background must be a gray level in 0..1, got 2"),
        ({"background": "red"}, "data.background must"),
        ({"background": float("nan")}, "data.background must"),
    ],
)
def test_settings_of_other_values(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DataSettings(**settings)
    with pytest.raises(UserError, match=message):
        load_recipe("vae", "", {f"data.{key}": value for key, value in settings.items()})


def test_settings_are_for_folders(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", COLORS)
    for name in ("digits", "patches", str(tmp_path / "a.npy")):
        with pytest.raises(UserError, match="data.size is for folders of images, got 8 for"):
            load_data(name, size=8)
    with pytest.raises(UserError, match="unknown key 'data.colour'"):
        load_recipe("vae", "", ["data.colour=gray"])


# --- networks ---


@pytest.mark.parametrize("image_shape", [(3, 8, 8), (3, 6, 5), (7, 10), (2, 1, 3)])
def test_networks_of_channels(image_shape: tuple[int, ...]) -> None:
    """Every number of an image reaches the code, and every number of the output comes from it."""
    torch.manual_seed(0)
    data_dim = int(np.prod(image_shape))
    encoder = ConvEncoder(data_dim, (4, 6), 3, image_shape=image_shape).eval()
    decoder = ConvDecoder(3, (6, 4), data_dim, image_shape=image_shape).eval()
    images = torch.rand(20, data_dim, requires_grad=True)
    codes = encoder(images)
    logits = decoder(codes)
    assert codes.shape == (20, 3) and logits.shape == (20, data_dim) and (logits.var(0) > 0).all()
    (gradient,) = torch.autograd.grad(logits.square().sum(), images)
    assert gradient.any(0).all()
    assert torch.equal(encoder(images.unflatten(1, image_shape)), codes)


def test_first_convolution_sees_the_channels() -> None:
    encoder = ConvEncoder(3 * 8 * 6, (4,), 2, image_shape=(3, 8, 6))
    images = torch.rand(5, 3, 8, 6)
    hidden = F.relu(F.conv2d(images, encoder.input.weight, encoder.input.bias, 2, 1))
    assert_close(encoder(images.flatten(1)), encoder.output(hidden.flatten(1)))


def test_image_shapes_that_do_not_fit() -> None:
    for shape, message in (
        ((3, 4, 5), r"image_shape: got \[3, 4, 5\], expected \[H, W\] or \[C, H, W\] of data_dim = 48"),
        ((48,), r"image_shape: got \[48\]"),
        ((3, 4, 2, 2), r"image_shape: got \[3, 4, 2, 2\]"),
        ((3, 4, 0), "image_shape: got 0, expected a positive int"),
    ):
        with pytest.raises(ValueError, match=message):
            ConvEncoder(48, (4,), 2, image_shape=shape)


def test_recipes_learn_the_shape_of_images_in_color() -> None:
    recipe = load_recipe("aae-conv", "", {"model.channels": [4, 8]})
    assert recipe.for_images((3, 6, 5)).model.image_shape == (3, 6, 5)  # type: ignore[attr-defined]
    assert recipe.for_images((6, 5)).model.image_shape == (6, 5)  # type: ignore[attr-defined]
    for same in (recipe.for_images((6, 6)), recipe.for_images((36,))):  # as runs made before
        assert same == recipe
    given = load_recipe("aae-conv", "", {"model.image_shape": [3, 6, 5]})
    assert given.for_images((6, 15)) == given
    mlp = load_recipe("aae")
    assert mlp.for_images((3, 6, 5)) == mlp
    with pytest.raises(UserError, match="data_dim: got 90, expected a square image .* or image_shape"):
        recipe.build(90)


def test_classifier_of_colors() -> None:
    """It tells images by their color alone: of one gray level."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (120,), generator=generator)
    images = F.one_hot(labels, 3).float()[:, :, None, None].expand(-1, -1, 8, 5).flatten(1)
    torch.manual_seed(0)
    classifier = Classifier((3, 8, 5), 3)
    optimizer = torch.optim.Adam(classifier.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(classifier(images), labels).backward()
        optimizer.step()
    assert (classifier.predict(images) == labels).all()
    features = classifier.features(images)  # both in eval mode, without dropout
    assert features.shape == (120, 128) and classifier.training
    torch.testing.assert_close(classifier.eval()(images), classifier.layers[-1](features))


# --- pictures ---


def test_pictures_have_the_colors_in_their_places(tmp_path: Path) -> None:
    image = torch.zeros(3, 4, 6)
    image[0, 0, :], image[2, :, 0] = 1, 1  # a red line at the top, a blue one at the left, magenta where they meet
    made = figures._picture(image.flatten().numpy(), (3, 4, 6))
    assert made.shape == (4, 6, 3)
    assert made[0, 5].tolist() == [1, 0, 0] and made[3, 0].tolist() == [0, 0, 1] and made[0, 0].tolist() == [1, 0, 1]
    save_grid(tmp_path / "a.png", image.flatten().expand(2, 3, -1), (3, 4, 6), "title")
    with Image.open(tmp_path / "a.png") as picture:
        seen = {color for _, color in picture.convert("RGB").getcolors(1 << 20)}
    assert {(255, 0, 0), (0, 0, 255), (255, 0, 255)} <= seen


# --- runs and programs ---

TINY = ("training.threads=1", "model.channels=[4,4]", "model.code_size=2", "model.discriminator=[4]")
TINY += ("evaluation.samples=40", "evaluation.sigma_count=3", "training.batch_size=16", "training.evaluate_every=0")


def test_a_run_keeps_how_its_folder_is_read(tmp_path: Path, fastmmd: Command) -> None:  # noqa: F811
    folder = write_folder(tmp_path / "images", COLORS)
    settings = ("data.fit=pad", "data.size=8", "data.background=1", *TINY)
    overrides = [word for setting in settings for word in ("--set", setting)]
    train = ("train", "aae-conv", "--data", folder, "--epochs", 1, "--run-dir", tmp_path / "run", "--quiet")
    result = fastmmd(*train, *overrides)
    assert result.code == 0, result.err
    config = RunConfig.read(tmp_path / "run" / "config.toml")
    assert config.recipe.data == DataSettings(size=8, fit="pad", background=1)
    assert config.data_dim == 192 and config.recipe.model.image_shape == (3, 8, 8)  # type: ignore[attr-defined]
    data = config.load_data()
    assert data.image_shape == (3, 8, 8) and (data.train.images.reshape(-1, 3, 8, 8)[..., 7] > 0.6).all()
    for command in (("train", "--resume", tmp_path / "run", "--epochs", 2), ("evaluate", tmp_path / "run")):
        result = fastmmd(*command, "--quiet")
        assert result.code == 0, result.err
    assert {"samples.png", "reconstructions.png"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_runs_made_before_read_folders_in_gray(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", COLORS)
    config = RunConfig(load_recipe("vae"), folder, data_dim=30)
    config.write(tmp_path / "config.toml")
    text = (tmp_path / "config.toml").read_text()
    before, _, after = text.partition("[data]\n")
    assert after.startswith('color = "auto"\n')
    (tmp_path / "former.toml").write_text(before + after.partition("\n\n")[2])
    former = RunConfig.read(tmp_path / "former.toml")
    assert former.recipe.data == DataSettings("gray") and former.load_data().image_shape == (6, 5)
    with pytest.raises(UserError, match="has 90 numbers per image, the run 30"):
        RunConfig.read(tmp_path / "config.toml").load_data()
    (tmp_path / "digits.toml").write_text((before + after.partition("\n\n")[2]).replace(folder, "digits"))
    assert RunConfig.read(tmp_path / "digits.toml").recipe.data == DataSettings()


def test_style_and_content_of_house_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_svhn(tmp_path / "data")
    words = ["--data", "svhn", "--data-dir", str(tmp_path / "data"), "--run-dir", str(tmp_path / "run")]
    words += ["--epochs", "1", "--pairs", "50", "--code-size", "2", "--set", "model.hidden=[8]"]
    with pytest.warns(UserWarning, match="not the published svhn"):
        run(monkeypatch, "style_content", *words)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "of the 12 test images" in report and "Of 50 pairs" in report
    for name in ("prior-styles.png", "image-styles.png"):
        with Image.open(tmp_path / "run" / name) as picture:
            assert np.ptp(np.asarray(picture.convert("RGB")).astype(int), axis=2).max() > 20  # in color
