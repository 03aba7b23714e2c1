"""Faces, house numbers and patches by name: from small files of the published formats, made here."""

from __future__ import annotations

import hashlib
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat

from fastmmd.data import Dataset, load_data
from fastmmd.data import matlab as matlab_files
from fastmmd.data.download import DownloadError
from fastmmd.data.matfile import read_matlab
from fastmmd.errors import UserError

RANDOM = np.random.default_rng(0)


def load_others(name: str, folder: Path) -> Dataset:
    """Files that are not the published ones, as the data set says."""
    with pytest.warns(UserWarning, match=f"the files in .* are not the published {name}") as said:
        data = load_data(name, folder)
    assert said[0].filename == __file__ and not data.original
    return data


# --- SVHN ---


def write_svhn(folder: Path, train: int = 40, test: int = 12, **changed: Any) -> dict[str, tuple[Any, Any]]:
    """Files as published: X [H, W, 3, N], y [N, 1] from 1 to 10; the arrays of each."""
    folder.mkdir(exist_ok=True)
    made = {}
    for split, count in (("train", train), ("test", test)):
        arrays = {
            "X": RANDOM.integers(0, 256, (6, 5, 3, count), dtype=np.uint8),
            "y": (np.arange(count, dtype=np.uint8) % 10 + 1)[:, None],
        }
        arrays |= changed if split == "train" else {}
        savemat(folder / f"{split}_32x32.mat", arrays, do_compression=split == "test")
        made[split] = (arrays["X"], arrays["y"])
    return made


@pytest.mark.parametrize("where", ["", "svhn", "SVHN"])
def test_svhn(tmp_path: Path, where: str) -> None:
    made = write_svhn(tmp_path / where)
    data = load_others("svhn", tmp_path)
    assert data.image_shape == (3, 6, 5) and data.data_dim == 90
    assert [len(split) for split in (data.train, data.validation, data.test)] == [36, 4, 12]
    for name, first, split in (("train", 0, data.train), ("train", 36, data.validation), ("test", 0, data.test)):
        pictures, labels = made[name]
        assert split.labels is not None and split.labels.dtype == torch.int64
        for row in range(len(split)):
            expected = np.stack([pictures[:, :, channel, first + row] for channel in range(3)]) / np.float32(255)
            np.testing.assert_array_equal(split.images[row].reshape(data.image_shape), expected)
            assert split.labels[row] == (0 if labels[first + row, 0] == 10 else labels[first + row, 0])


def test_numbers_of_matlab_are_bytes_whatever_they_are_stored_as(tmp_path: Path) -> None:
    made = write_svhn(tmp_path)
    bytes_read = load_others("svhn", tmp_path)
    pictures, labels = made["train"]
    savemat(tmp_path / "train_32x32.mat", {"X": pictures.astype(float), "y": labels.astype(float), "other": "text"})
    doubles = load_others("svhn", tmp_path)
    assert torch.equal(doubles.train.images, bytes_read.train.images)
    assert torch.equal(doubles.train.labels, bytes_read.train.labels)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"X": np.zeros((40, 6, 5, 3), np.uint8)}, r"X \[H, W, 3, N\] and labels y \[N, 1\] expected, got \[40, 6, 5"),
        ({"X": np.zeros((6, 5, 3), np.uint8)}, r"images X .* got \[6, 5, 3\]"),
        ({"X": np.zeros((6, 5, 3, 39), np.uint8)}, r"got \[6, 5, 3, 39\] and \[40, 1\]"),
        ({"X": np.full((6, 5, 3, 40), 256)}, "bytes in 0..255 expected"),
        ({"X": np.full((6, 5, 3, 40), 0.5)}, "bytes in 0..255 expected"),
        ({"X": np.full((6, 5, 3, 40), np.nan)}, "bytes in 0..255 expected"),
        ({"X": np.zeros((6, 5, 3, 40), complex)}, "X: an array of real numbers expected"),
        ({"X": np.full((6, 5, 3, 40), "a", object)}, "X: an array of numbers expected, got 'cell'"),
        ({"X": "text"}, "X: an array of numbers expected, got 'char'"),
        ({"X": {"a": 1}}, "X: an array of numbers expected, got 'struct'"),
        ({"X": np.zeros((7, 5, 3, 40), np.uint8)}, "test images of one size expected"),
        ({"X": np.zeros((6, 5, 3, 9), np.uint8), "y": np.ones((9, 1))}, "10 or more training images"),
        ({"y": np.full((40, 1), 11, np.uint8)}, "labels y from 1 to 10"),
        ({"y": np.full((40, 1), 1.5)}, "labels y from 1 to 10"),
    ],
)  # fmt: skip
def test_svhn_of_other_content(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    write_svhn(tmp_path, **changed)
    with pytest.warns(UserWarning, match="not the published"), pytest.raises(UserError, match=message):
        load_data("svhn", tmp_path)


def test_matlab_files_without_the_arrays(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    path = tmp_path / "train_32x32.mat"
    savemat(path, {"images": np.zeros(3)})
    with pytest.warns(UserWarning), pytest.raises(UserError, match="train_32x32.mat: no array named 'X' among images"):
        load_data("svhn", tmp_path)
    for content in (b"", b"no MATLAB file", b"\x89HDF\r\n\x1a\n" + bytes(200)):
        path.write_bytes(content)
        with pytest.warns(UserWarning), pytest.raises(UserError, match="train_32x32.mat: cannot be read as a MATLAB"):
            load_data("svhn", tmp_path)


def test_matlab_files_made_to_fill_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmmd.data.limits.FREE", 2**20)
    path = tmp_path / "a.mat"
    savemat(path, {"X": np.zeros(2**22, np.uint8)}, do_compression=True)
    with pytest.raises(UserError, match="a.mat: .* expand to"):
        read_matlab(path, ("X",))
    monkeypatch.setattr("fastmmd.data.limits.memory", lambda: 1_000_000)
    savemat(path, {"X": np.zeros(2**18, np.uint8), "small": np.ones(3)}, do_compression=True)
    with pytest.raises(UserError, match="a.mat: its images take"):
        read_matlab(path, ("X",))
    assert read_matlab(path, ("small",))["small"].sum() == 3


def test_elements_of_unknown_type(tmp_path: Path) -> None:
    """Which ended the process in SciPy's reader."""
    path = tmp_path / "a.mat"
    savemat(path, {"X": np.arange(40, dtype=np.uint8)})
    whole = path.read_bytes()
    at = whole.index(struct.pack("<2I", 2, 40))
    for kind in (0, 8, 200, 514):
        path.write_bytes(whole[:at] + struct.pack("<I", kind) + whole[at + 4 :])
        with pytest.raises(UserError, match=f"a.mat: cannot be read as a MATLAB file .X holds elements of type {kind}"):
            read_matlab(path, ("X",))


@pytest.mark.parametrize("order", "<>")
def test_matlab_files_of_either_byte_order_with_numbers_of_other_types(tmp_path: Path, order: str) -> None:
    """By the format: a matrix of doubles that is stored as bytes, in a short element, and one of doubles."""
    made = (b"MATLAB 5.0".ljust(124) + struct.pack(f"{order}H", 0x100)) + (b"IM" if order == "<" else b"MI")
    for name, numbers in ((b"b", [1, 2, 250]), (b"d", [0.5, -1e300, 7.0])):
        short = name == b"b"
        flags = struct.pack(f"{order}4I", 6, 8, 6, 0)
        shape = struct.pack(f"{order}2I2i", 5, 8, 1, 3)
        named = struct.pack(f"{order}I", 1 << 16 | 1) + name.ljust(4, b"\0")
        real = (
            struct.pack(f"{order}I3Bx", 3 << 16 | 2, *numbers)
            if short
            else struct.pack(f"{order}2I3d", 9, 24, *numbers)
        )
        matrix = flags + shape + named + real
        made += struct.pack(f"{order}2I", 14, len(matrix)) + matrix
    (tmp_path / "a.mat").write_bytes(made)
    found = read_matlab(tmp_path / "a.mat", ("b", "d"))
    assert found["b"].tolist() == [[1, 2, 250]] and found["d"].tolist() == [[0.5, -1e300, 7.0]]
    theirs = loadmat(tmp_path / "a.mat")
    assert all(np.array_equal(found[name], theirs[name]) for name in "bd")


def test_svhn_is_downloaded_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(urls: tuple[str, ...], path: Path, md5: str, *, quiet: bool) -> None:
        asked.append((urls, path.name, md5))
        raise DownloadError("no network")

    monkeypatch.setattr("fastmmd.data.published.download", download)
    with pytest.raises(UserError, match="svhn could not be downloaded .no network.. Put the files train_32x32.mat, te"):
        load_data("svhn", tmp_path)
    ((urls, name, md5),) = asked
    assert urls == (f"http://ufldl.stanford.edu/housenumbers/{name}",) and len(bytes.fromhex(md5)) == 16


# --- the Olivetti faces ---


def test_olivetti(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns are images stored column by column; a person is in one split alone."""
    pictures = RANDOM.integers(0, 256, (400, 64, 64), dtype=np.uint8)
    pictures[:, 0, 1], pictures[:, 1, 0] = 255, 0  # first row, second column; and the other way round
    columns = np.stack([picture.flatten(order="F") for picture in pictures], axis=1)
    savemat(tmp_path / "olivettifaces.mat", {"faces": columns, "p": "text"})
    data = load_others("olivetti", tmp_path)
    splits = (data.train, data.validation, data.test)
    assert data.image_shape == (64, 64) and [len(split) for split in splits] == [300, 40, 60]
    images = torch.cat([split.images for split in splits]).reshape(-1, 64, 64)
    np.testing.assert_array_equal(images, pictures / np.float32(255))
    assert (images[:, 0, 1] == 1).all() and (images[:, 1, 0] == 0).all()
    assert [sorted(set(split.labels.tolist())) for split in splits] == [
        [*range(30)], [*range(30, 34)], [*range(34, 40)],
    ]  # fmt: skip
    assert all((split.labels.bincount()[split.labels.unique()] == 10).all() for split in splits)

    monkeypatch.setattr(matlab_files, "OLIVETTI_MD5", hashlib.md5(columns.T.tobytes()).hexdigest())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_data("olivetti", tmp_path).original


def test_olivetti_that_is_not_there_or_something_else(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="there is no .*olivettifaces.mat. Put the files olivettifaces.mat into .*roweis"
    ):
        load_data("olivetti", tmp_path)
    savemat(tmp_path / "olivettifaces.mat", {"faces": np.zeros((400, 4096), np.uint8)})
    with pytest.raises(UserError, match=r"faces of shape \[4096, 400\] expected, got \[400, 4096\]"):
        load_data("olivetti", tmp_path)


# --- CelebA ---


def write_celeba(folder: Path, count: int = 40) -> np.ndarray:
    """Images of 22 x 18 pixels, each half of one color and half of another, and the official partition."""
    images = folder / "img_align_celeba"
    images.mkdir(parents=True)
    colors = RANDOM.integers(0, 256, (count, 3), dtype=np.uint8)
    for number, color in enumerate(colors, 1):
        pixels = np.zeros((22, 18, 3), np.uint8)
        pixels[2:20] = color  # what a crop to the middle square keeps
        Image.fromarray(pixels).save(images / f"{number:06}.png")
    return colors


def partition(folder: Path, split_of: dict[int, int]) -> None:
    lines = [f"{number:06}.png {split}\n" for number, split in split_of.items()]
    (folder / "list_eval_partition.txt").write_text("".join(lines))


@pytest.mark.parametrize("where", ["", "celeba"])
def test_celeba(tmp_path: Path, where: str) -> None:
    """The middle of the images at 64 x 64, in the official splits, whatever their order."""
    colors = write_celeba(tmp_path / where)
    partition(tmp_path / where, {number: number % 3 for number in range(40, 0, -1)})
    data = load_data("celeba", tmp_path)
    assert data.image_shape == (3, 64, 64) and not data.original
    for number, split in enumerate((data.train, data.validation, data.test)):
        expected = [colors[row - 1] for row in range(1, 41) if row % 3 == number]
        assert split.labels is None and len(split) == len(expected)
        flat = split.images.reshape(-1, 3, 64 * 64)
        np.testing.assert_allclose(flat.amin(2), np.array(expected) / 255, atol=1e-6)
        np.testing.assert_allclose(flat.amax(2), np.array(expected) / 255, atol=1e-6)


def test_celeba_by_its_own_folder_without_a_partition_and_with_settings(tmp_path: Path) -> None:
    write_celeba(tmp_path)
    folder = tmp_path / "img_align_celeba"
    data = load_data("celeba", folder, color="gray", size=22, fit="pad", background=1)
    assert data.image_shape == (22, 22) and [len(data.train), len(data.validation), len(data.test)] == [32, 4, 4]
    pictures = data.train.images.reshape(-1, 22, 22)
    assert (pictures[:, :, :2] == 1).all() and (pictures[:, :2, 2:20] == 0).all()


def test_celeba_that_is_not_there_or_in_other_parts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="celeba: there is no folder img_align_celeba in .*--data-dir"):
        load_data("celeba", tmp_path)
    write_celeba(tmp_path, 6)
    every = {number: number % 3 for number in range(1, 7)}
    for split_of, message in (
        ({**every, 2: 3}, "lines such as '000001.jpg 0' expected"),
        ({number: every[number] for number in range(1, 6)}, "does not list the image '000006.png'"),
        (dict.fromkeys(every, 0), "6 / 0 / 0 of the images"),
    ):
        partition(tmp_path, split_of)
        with pytest.raises(UserError, match=message):
            load_data("celeba", tmp_path)


# --- patches ---


def test_patches_are_of_disjoint_regions() -> None:
    """3,000 of two photographs, the same each time; no pixel of a photograph is in two splits."""
    from sklearn.datasets import load_sample_images

    data, again = load_data("patches"), load_data("patches")
    assert data.image_shape == (3, 32, 32) and data.data_dim == 3072
    windows = [
        np.lib.stride_tricks.sliding_window_view(photograph, (32, 32), axis=(0, 1))[::8, ::8].reshape(-1, 3 * 1024)
        for photograph in load_sample_images().images
    ]
    places: dict[bytes, list[tuple[int, int]]] = {}
    across = (640 - 32) // 8 + 1
    for photograph, rows in enumerate(windows):
        for row, pixels in enumerate(rows):
            top, left = 8 * (row // across), 8 * (row % across)
            if (top % 64) <= 32 and (left % 64) <= 32:  # within one region
                places.setdefault(pixels.tobytes(), []).append((photograph, top // 64 * 10 + left // 64))
    regions = []
    for split, same in (
        (data.train, again.train), (data.validation, again.validation), (data.test, again.test),
    ):  # fmt: skip
        assert split.labels is not None and torch.equal(split.images, same.images)
        pixels = (split.images * 255).round().to(torch.uint8).numpy()
        found = [places[row.tobytes()] for row in pixels]
        assert [place[0][0] for place in found] == split.labels.tolist()
        regions.append({region for place in found if len(place) == 1 for region in place})
        assert len(split) == 25 * len(regions[-1])
    assert [len(some) for some in regions] == [96, 12, 12]
    assert not regions[0] & regions[1] and not regions[0] & regions[2] and not regions[1] & regions[2]
