"""Data files, recipes and run folders that are broken or hostile: an error that names the file, or what is right."""

from __future__ import annotations

import gzip
import os
import pickle
import re
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import FULL
from test_fuzz import HERE, run_child

from fastmmd import cli
from fastmmd.data import load_data
from fastmmd.data.download import md5_of_content
from fastmmd.data.idx import IDX_SOURCES, read_idx
from fastmmd.errors import UserError
from fastmmd.training.batches import Batches
from fastmmd.training.config import load_recipe

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 6, 7), dtype=np.uint8)


def test_cases(tmp_path: Path) -> None:
    count = 6_000 if FULL else 200
    out = run_child(str(HERE / "fuzz_child.py"), "files", str(count), record=tmp_path / "case", seconds=280)
    assert int(out.split()[0]) >= count


# --- files made to fill memory ---


def test_small_files_that_expand_to_gigabytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmmd.data.limits.FREE", 2**23)  # instead of 2^30, which takes seconds to write
    path, zeros = tmp_path / "images.gz", np.zeros((16, 1024, 1024), np.uint8)
    path.write_bytes(gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, *zeros.shape) + zeros.tobytes(), 1))
    for read in (read_idx, md5_of_content):
        with pytest.raises(UserError, match=r"images.gz: [\d,]+ bytes that expand to [\d,]+ or more"):
            read(path)
    with pytest.raises(UserError, match="images.npz: .* expand to"):
        np.savez_compressed(tmp_path / "images.npz", images=zeros)
        load_data(str(tmp_path / "images.npz"))
    torch.save(torch.from_numpy(zeros), tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "images.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
    ):
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))
    with pytest.raises(UserError, match="images.pt: .* expand to"):
        load_data(str(tmp_path / "images.pt"))


def test_more_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmmd.data.limits.memory", lambda: 1_000_000)
    idx = tmp_path / "idx"
    idx.write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 1000, 28, 28) + bytes(784_000))
    with pytest.raises(UserError, match=r"idx: its images take 0.0 GB as float32, this machine has 0.0 GB; use fewer"):
        read_idx(idx)
    torch.save(torch.zeros(1).expand(10**6, 10**6), tmp_path / "huge.pt")  # one number on the disk
    with pytest.raises(UserError, match="huge.pt: its images take 4,000.0 GB"):
        load_data(str(tmp_path / "huge.pt"))
    save_image(tmp_path / "folder" / "a.png", np.zeros((600, 600), np.uint8))
    with pytest.raises(UserError, match="a.png: its images take"):
        load_data(str(tmp_path / "folder"))


@pytest.mark.parametrize(
    "header",
    [
        struct.pack(">4B4I", 0, 0, 8, 4, 2**31, 2**31, 4, 1),  # 2^64, which 64 bits do not hold
        struct.pack(">4B4I", 0, 0, 8, 4, *[2**32 - 1] * 4),
        struct.pack(">4B1I", 0, 0, 8, 1, 2**32 - 1),
        struct.pack(">4B", 0, 0, 8, 3),
        struct.pack(">4B2I", 0, 0, 8, 3, 2, 2),
    ],
)
def test_idx_headers_that_lie(tmp_path: Path, header: bytes) -> None:
    for name, content in (("plain", header), ("packed.gz", gzip.compress(header))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            UserError, match=f"{name}: (.* bytes of data, the header says|its images take|.* expand to)"
        ):
            read_idx(tmp_path / name)


def test_idx_files_that_do_not_fit_each_other(tmp_path: Path) -> None:
    def write(*shapes: tuple[int, ...]) -> None:
        for name, shape in zip(IDX_SOURCES["mnist"][1], shapes, strict=True):
            header = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)
            (tmp_path / name).write_bytes(header + bytes(int(np.prod(shape))))

    for shapes in (
        [(20, 4, 4), (20,), (0, 4, 4), (0,)],
        [(20, 0, 4), (20,), (20, 0, 4), (20,)],
        [(20, 4, 4), (20,), (20, 4, 5), (20,)],
        [(9, 4, 4), (9,), (20, 4, 4), (20,)],
        [(20, 4, 4), (19,), (20, 4, 4), (20,)],
    ):
        write(*shapes)
        with pytest.warns(UserWarning, match="not the published"), pytest.raises(UserError, match="expected, got"):
            load_data("mnist", tmp_path)


# --- arrays that would execute code, or are none ---


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("kind", ["npy", "npz", "pt", "old pt", "plain pickle", "npy named pt", "npz named npy"])
def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"evil.{kind.split()[-1] if kind != 'plain pickle' else 'pt'}"
    objects = np.array([Evil()] * 40, dtype=object)
    with path.open("wb") as file:
        if kind in ("npy", "npy named pt"):
            np.save(file, objects, allow_pickle=True)
        elif kind in ("npz", "npz named npy"):
            np.savez(file, images=IMAGES / 255, labels=objects)
        elif kind == "plain pickle":
            pickle.dump({"images": Evil()}, file, protocol=2)
        else:
            torch.save({"images": Evil()}, file, _use_new_zipfile_serialization=kind == "pt")
    with pytest.raises(UserError, match=f"{path.name}: (cannot be read as|an array .* expected)"):
        load_data(str(path))
    assert not (tmp_path / "executed").exists()


def test_what_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES, other=np.array([Evil()], dtype=object))
    assert load_data(str(tmp_path / "a.npz")).data_dim == 42


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(40, 4).to_sparse(), torch.zeros(40, 4, dtype=torch.complex64), torch.zeros(40, 4, device="meta"),
        torch.zeros(40, 4, dtype=torch.bool),
        torch.full((40, 4), -1.0).to(torch.float8_e5m2),
        {"images": torch.zeros(40, 4), "labels": "abc"}, {"images": torch.zeros(40, 4), "labels": [1] * 40},
        {"images": [1.0]}, {}, {"a": 1}, [torch.zeros(40, 4)], None, "abc", torch.zeros(()), torch.zeros(40, 0),
    ],
    ids=lambda content: str(content)[:20],
)  # fmt: skip
def test_tensors_of_other_kinds(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "images.pt")
    with pytest.raises(UserError, match="images.pt: "):
        load_data(str(tmp_path / "images.pt"))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((40, 4), np.longdouble), np.zeros((40, 4), complex), np.zeros((40, 4), "M8[s]"), np.zeros(40, "i4,f4"),
        np.full((40, 4), b"a"), np.zeros((40, 4), np.uint16), np.zeros((0, 4)), np.array(1.0), np.full((40, 4), np.inf),
    ],
    ids=lambda array: str(array.dtype),
)  # fmt: skip
def test_arrays_of_other_kinds(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "images.npy", array)
    with pytest.raises(UserError, match="images.npy: "):
        load_data(str(tmp_path / "images.npy"))


def test_names_that_no_file_can_have() -> None:
    for name in ("a" * 5000, "a\0b", "", "/dev/null", "x" * 300 + ".npy"):
        with pytest.raises(UserError, match="no such file|unknown kind|no images"):
            load_data(name if name else "nowhere")


# --- images ---


def save_image(path: Path, pixels: Any, **options: Any) -> None:
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(path, **options)


def folder_of(tmp_path: Path, picture: Any, name: str = "30.png", **options: Any) -> str:
    for number, image in enumerate(IMAGES):
        save_image(tmp_path / "images" / f"{number:02}.png", image)
    save_image(tmp_path / "images" / name, picture, **options)
    return str(tmp_path / "images")


def the_image(folder: str, pixels: np.ndarray) -> bool:
    """Whether the 40 images of a folder have these pixels [H, W] in 0..1 among them."""
    data = load_data(folder)
    images = torch.cat([data.train.images, data.validation.images, data.test.images])
    rows = torch.from_numpy(pixels.reshape(1, -1)).float()
    return bool(((images - rows).abs().max(1).values < 1 / 255 / 2).any())


@pytest.mark.parametrize("mode", ["P", "1", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "opaque palette"])
def test_modes_of_images_are_read_as_gray(tmp_path: Path, mode: str) -> None:
    from PIL import Image

    pixels = IMAGES[30] // 255 * 255 if mode == "1" else IMAGES[30]
    gray = Image.fromarray(pixels)
    if mode == "opaque palette":
        colors = Image.new("P", (7, 6))
        colors.putpalette([value for level in range(256) for value in (255 - level,) * 3])  # a negative
        colors.putdata(list(pixels.flatten()))
        assert the_image(folder_of(tmp_path, colors, transparency=bytes([255] * 256)), 1 - pixels / 255)
        return
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    assert the_image(folder_of(tmp_path, gray.convert(mode, dither=0), f"a.{suffix}"), pixels / 255)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "color key"])
def test_transparent_images_are_refused(tmp_path: Path, kind: str) -> None:
    from PIL import Image

    gray, options = Image.fromarray(IMAGES[0]), {}
    if kind in ("RGBA", "LA"):
        picture = gray.convert(kind)
        picture.putalpha(Image.fromarray(IMAGES[1]))
    else:
        picture = gray.convert("P") if kind == "palette" else gray
        options = {"transparency": int(np.asarray(picture)[0, 0])}
    with pytest.raises(UserError, match="a.png: has transparent pixels; save it without"):
        load_data(folder_of(tmp_path, picture, "a.png", **options))


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_animations_are_refused(tmp_path: Path, suffix: str) -> None:
    from PIL import Image

    frames = [Image.fromarray(image) for image in IMAGES[:3]]
    with pytest.raises(UserError, match=f"a.{suffix}: 3 frames in one file; save each"):
        load_data(folder_of(tmp_path, frames[0], f"a.{suffix}", save_all=True, append_images=frames[1:]))


def test_damaged_and_huge_images(tmp_path: Path) -> None:
    folder = Path(folder_of(tmp_path, IMAGES[0]))
    whole = (folder / "00.png").read_bytes()
    huge = whole[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + whole[24:]
    large = whole[:16] + struct.pack(">II", 20_000, 20_000) + whole[24:]
    for content in (whole[:50], whole[:-40], b"", huge, large, b"\x89PNG\r\n\x1a\n" + bytes(100)):
        (folder / "00.png").write_bytes(content)
        with pytest.raises(UserError, match="00.png: cannot be read as an image|images take"):
            load_data(str(folder))
    (folder / "00.png").unlink()
    os.mkfifo(folder / "00.png")  # which would wait for a writer
    assert load_data(str(folder)).data_dim == 42


# --- recipes, run folders, state ---

RECIPE = '[model]\nkind = "vae"\n'
BAD_RECIPES = {
    b"": "unknown model.kind",
    b"\xff\xfe[model]": "can't decode byte",
    b"[model": "Expected",
    b"a = " + b"[" * 100_000: "nested too deeply",
    b"a = " + b"9" * 5000: "Exceeds the limit",
    b"model = 3": "model must be a table",
    b"[model]\nkind = 3": "unknown model.kind",
    b"[[model]]\nkind = 'vae'": "model must be a table",
    RECIPE.encode() + b"size = 1": "unknown key 'model.size'",
    RECIPE.encode() + b"hidden = 'abc'": "model: hidden: got 'abc'",
    RECIPE.encode() + b"hidden = [[1]]": "model: hidden: got",
    RECIPE.encode() + b"hidden = [-1]": "model: hidden: got -1",
    RECIPE.encode() + b"code_size = 99999999999999999999": "model: code_size: got",
    RECIPE.encode() + b"learning_rate = nan": "model: learning_rate: got nan",
    RECIPE.encode() + b"learning_rate = 1979-05-27": "model: learning_rate: got",
    RECIPE.encode() + b"prior = ['gaussian']": "model: prior: got",
    RECIPE.encode() + b"[training]\nepochs = 1" + b"0" * 400: "training.epochs must be a whole number up to",
    RECIPE.encode() + b"[training]\nepochs = true": "training.epochs must be a whole number",
    RECIPE.encode() + b"[training]\naverage = true": "training.average must be a decay",
    RECIPE.encode() + b"[training]\nschedule = [1]": "unknown training.schedule",
    RECIPE.encode() + b"[training.epochs]\na = 1": "training.epochs must be a whole number",
    RECIPE.encode() + b"[evaluation]\nsigma_low = inf": "0 < sigma_low < sigma_high",
    RECIPE.encode() + b"[evaluation]\nsigma_count = 9999999999": "sigma_count must be at most",
    RECIPE.encode() + b"[digits]\nmodel = 3": "model must be a table",
    RECIPE.encode() + b"[other]\nx = 3": "unknown key 'other.x'",
}


@pytest.mark.parametrize("content", BAD_RECIPES, ids=lambda content: content[-24:].decode(errors="replace"))
def test_recipes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.toml").write_bytes(content)
    with pytest.raises(UserError, match=BAD_RECIPES[content].replace("[", r"\[")):
        load_recipe(str(tmp_path / "recipe.toml"), "digits").build(16)


def test_huge_layers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE + "hidden = [9999999999]")
    with pytest.raises(UserError, match="model: .*not the defaults: model.hidden"):
        load_recipe(str(tmp_path / "recipe.toml")).build(784)


def run_command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["fastmmd", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[run", "config.toml: "),
        (RECIPE, r"config.toml: no table \[run\]"),
        ("run = 3\n" + RECIPE, r"config.toml: no table \[run\]"),
        (RECIPE + "[run]\nrecipe = 'a'\ndata = 3\ndata_dim = 64", "run.data must be a string, got 3"),
        (RECIPE + "[run]\nrecipe = 'a'\ndata = 'digits'\ndata_dim = '64'", "run.data_dim must be a whole number"),
        (RECIPE + "[run]\nrecipe = 'a'\ndata = 'digits'\ndata_dim = 64\nseed = -1", "run.seed must be a whole number"),
        (
            RECIPE + "[run]\nrecipe = 'a'\ndata = 'digits'\ndata_dim = 64\ndata_dir = []",
            "run.data_dir must be a string",
        ),
        (RECIPE + "[run]\nrecipe = 'a'\ndata = 'digits'\ndata_dim = 64", "no checkpoint"),
    ],
)
def test_broken_run_folders_end_commands_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], config: str, message: str
) -> None:
    (tmp_path / "config.toml").write_text(config)
    (tmp_path / "metrics.jsonl").write_bytes(b'{"epoch": 1}\n[]\n3\nnull\n\xff\xfe\n{"epoch": "a", "step": []}\n{"ep')
    for command in (["evaluate", tmp_path], ["sample", tmp_path, "--count", 1, "--output", tmp_path / "a.npy"]):
        assert run_command(monkeypatch, *command) == 2
        said = capfd.readouterr().err
        assert said.startswith("fastmmd: ") and said.count("\n") == 1, said
        assert re.search(message, said), said


def test_state_of_the_batches(tmp_path: Path) -> None:
    batches = Batches(torch.rand(20, 3), 4, 0)
    good = batches.state_dict()
    for key, value in (
        ("generator", torch.zeros(3)), ("generator", None), ("generator", torch.zeros(5056, dtype=torch.uint8)),
        ("position", -1), ("position", "1"), ("position", None), ("rows", "20"), ("batch_size", 4.0),
        ("epochs", -1), ("labeled_batch", None),
    ):  # fmt: skip
        with pytest.raises(UserError, match="position in the data is damaged"):
            batches.load_state_dict({**good, key: value})
    batches.load_state_dict(good)
