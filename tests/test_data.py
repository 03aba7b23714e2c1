"""Data sets: splits, IDX files, downloads that break, arrays and folders of images."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmmd.data import IDX_SOURCES, load_data
from fastmmd.data.download import DownloadError, download
from fastmmd.data.idx import read_idx
from fastmmd.data.published import cache_folder
from fastmmd.errors import UserError

FILES = list(IDX_SOURCES["mnist"][1])


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def small_mnist(count: int = 60) -> dict[str, bytes]:
    """Four IDX files of small random images."""
    random = np.random.default_rng(0)
    arrays = []
    for n in (count, count // 2):
        arrays += [random.integers(0, 256, (n, 4, 5)), random.integers(0, 10, n)]
    return dict(zip(FILES, map(idx_bytes, arrays), strict=True))


def write_files(folder: Path, contents: dict[str, bytes], compress: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


# --- digits ---


def test_digits_are_scaled_and_split_without_overlap() -> None:
    data = load_data("digits")
    splits = (data.train, data.validation, data.test)
    assert [len(split) for split in splits] == [1259, 269, 269]
    assert data.data_dim == 64 and data.image_shape == (8, 8)
    images = torch.cat([split.images for split in splits])
    assert images.dtype == torch.float32 and images.min() == 0 and images.max() == 1
    from sklearn.datasets import load_digits

    original = load_digits().data / 16
    assert sorted(map(bytes, images.numpy())) == sorted(map(bytes, original.astype(np.float32)))
    again = load_data("digits")
    assert torch.equal(again.test.images, data.test.images)


# --- IDX files ---


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("sub", ["", "mnist", "MNIST/raw"])
def test_idx_folder(tmp_path: Path, compress: bool, sub: str) -> None:
    contents = small_mnist()
    write_files(tmp_path / sub, contents, compress)
    with pytest.warns(UserWarning, match="not the published mnist"):
        data = load_data("mnist", tmp_path)
    assert not data.original and data.image_shape == (4, 5)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [54, 6, 30]
    pixels = np.frombuffer(contents[FILES[0]][16:], np.uint8).reshape(60, 20)
    assert torch.equal(data.validation.images, torch.from_numpy(pixels[54:] / 255).float())  # the last ones
    assert data.test.labels is not None and data.test.labels.dtype == torch.int64


def test_idx_folder_from_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path / "fashion-mnist", small_mnist(), True)
    monkeypatch.setenv("FASTMMD_DATA", str(tmp_path))
    with pytest.warns(UserWarning, match="not the published fashion-mnist"):
        assert load_data("fashion-mnist").data_dim == 20


def test_published_content_is_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = small_mnist()
    write_files(tmp_path, contents, True)
    sums = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setitem(IDX_SOURCES, "mnist", ((), sums))
    assert load_data("mnist", tmp_path).original
    with pytest.raises(UserError, match="is a file of mnist, not of fashion-mnist"):
        load_data("fashion-mnist", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PNG?", "not an IDX file"),
        (b"", "not an IDX file"),
        (idx_bytes(np.zeros((3, 2, 2)))[:-1], "11 bytes of data, the header says 12"),
        (idx_bytes(np.zeros((3, 2, 2))) + b"x", "13 or more bytes of data, the header says 12"),
        (b"\0\0\x0d\1\0\0\0\1" + b"\0" * 4, "not an IDX file of unsigned bytes"),
        (gzip.compress(idx_bytes(np.zeros(100)), mtime=0)[:-9], "damaged gzip file"),
    ],
)
def test_broken_idx_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_idx(path)


# --- downloads ---


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; can know no ranges, break off after some bytes, or be out of order."""

    content = b""
    ranges = True
    break_after: int | None = None
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str | None] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.gz"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:  # noqa: N802
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int(wanted[6:-1]) if wanted and server.ranges else 0
        if start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.break_after is not None and len(body) > server.break_after:
            body, server.break_after = body[: server.break_after], None  # breaks once
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    running.content = gzip.compress(np.random.default_rng(1).bytes(300_000))
    yield running
    running.shutdown()
    running.server_close()


def md5_of(server: Server) -> str:
    return hashlib.md5(gzip.decompress(server.content)).hexdigest()


def fetch(server: Server, target: Path, md5: str | None = None, *other: str) -> None:
    download([*other, server.url], target, md5 or md5_of(server), quiet=True)


def test_download(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.gz"
    fetch(server, target)
    assert target.read_bytes() == server.content
    assert [path.name for path in target.parent.iterdir()] == ["file.gz"]


def test_download_resumes_where_the_server_broke_off(server: Server, tmp_path: Path) -> None:
    server.break_after = 100_000
    fetch(server, tmp_path / "file.gz")
    assert (tmp_path / "file.gz").read_bytes() == server.content
    assert server.requests == [None, "bytes=100000-"]


def test_download_resumes_a_part_of_an_earlier_call(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.gz.part").write_bytes(server.content[:70_000])
    fetch(server, tmp_path / "file.gz")
    assert (tmp_path / "file.gz").read_bytes() == server.content
    assert server.requests == ["bytes=70000-"]


def test_download_from_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges, server.break_after = False, 100_000
    fetch(server, tmp_path / "file.gz")
    assert (tmp_path / "file.gz").read_bytes() == server.content
    assert server.requests == [None, "bytes=100000-"]


@pytest.mark.parametrize("size", [70_000, 300_000, 400_000])
def test_download_replaces_a_part_of_another_file(server: Server, tmp_path: Path, size: int) -> None:
    (tmp_path / "file.gz.part").write_bytes(b"\x1f\x8b" + b"x" * (size - 2))
    fetch(server, tmp_path / "file.gz")
    assert (tmp_path / "file.gz").read_bytes() == server.content
    assert server.requests[-1] is None


def test_download_takes_a_part_that_is_complete(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.gz.part").write_bytes(server.content)
    fetch(server, tmp_path / "file.gz")
    assert (tmp_path / "file.gz").read_bytes() == server.content


def test_download_refuses_wrong_content(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="wrong content"):
        fetch(server, tmp_path / "file.gz", "0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_download_tries_the_next_mirror(server: Server, tmp_path: Path) -> None:
    broken = Server()
    broken.status = 404
    fetch(server, tmp_path / "file.gz", None, "http://127.0.0.1:1/file.gz", broken.url)
    broken.shutdown()
    broken.server_close()
    assert (tmp_path / "file.gz").read_bytes() == server.content
    assert len(broken.requests) == 1  # what is not there will not come by asking again


def test_two_downloads_at_once(server: Server, tmp_path: Path) -> None:
    threads = [threading.Thread(target=fetch, args=(server, tmp_path / "file.gz")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["file.gz"]
    assert (tmp_path / "file.gz").read_bytes() == server.content


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FASTMMD_DATA", raising=False)
    monkeypatch.setitem(IDX_SOURCES, "mnist", (("http://127.0.0.1:1/",), IDX_SOURCES["mnist"][1]))
    with pytest.raises(UserError) as caught:
        load_data("mnist")
    message = str(caught.value)
    assert all(name in message for name in FILES)
    assert "--data-dir" in message and "FASTMMD_DATA" in message and "refused" in message
    assert str(cache_folder() / "mnist") in message


def test_missing_folder_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_data("mnist", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


# --- arrays and folders ---

BYTES = np.random.default_rng(2).integers(0, 256, (50, 6, 7), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["npy", "npz", "pt", "labeled npz", "floats", "channel"])
def test_arrays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"images.{kind.split()[-1] if 'np' in kind or kind == 'pt' else 'npy'}"
    labels = np.arange(50) % 3
    if kind == "pt":
        torch.save(torch.from_numpy(BYTES), path)
    elif kind == "npz":
        np.savez(path, BYTES)
    elif kind == "labeled npz":
        np.savez(path, images=BYTES, labels=labels)
    else:
        np.save(path, {"npy": BYTES, "floats": BYTES / 255, "channel": BYTES[:, None]}[kind])
    data = load_data(str(path))
    assert data.image_shape == (6, 7) and data.data_dim == 42
    images = torch.cat([data.train.images, data.validation.images, data.test.images])
    order = np.lexsort(images.numpy().T)
    expected = torch.from_numpy(BYTES.reshape(50, 42)).float() / 255
    torch.testing.assert_close(images[order], expected[np.lexsort(expected.numpy().T)])
    assert (data.train.labels is None) == (kind != "labeled npz")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.linspace(0, 1.01, 160).reshape(40, 4), r"must lie in 0\.\.1, got values from 0 to 1.01"),
        (np.full((40, 4), np.nan), "must lie in 0..1"),
        (np.ones((40, 4), np.int64), "uint8 in 0..255 or float in 0..1 expected, got torch.int64"),
        (np.ones(40), r"\[N, ...\] of images expected"),
        (np.ones((20, 4)), "too few"),
        (np.array(["a", "b"]), "uint8 in 0..255 or float in 0..1 expected, got <U1"),
    ],
)
def test_arrays_of_the_wrong_content_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "images.npy", array)
    with pytest.raises(UserError, match=message):
        load_data(str(tmp_path / "images.npy"))


def test_parameters_lose_their_gradient(tmp_path: Path) -> None:
    torch.save(torch.nn.Parameter(torch.rand(40, 4)), tmp_path / "images.pt")
    assert not load_data(str(tmp_path / "images.pt")).train.images.requires_grad


def test_arrays_of_the_other_byte_order(tmp_path: Path) -> None:
    images, labels = np.random.default_rng(4).random((40, 4), np.float32), np.arange(40)
    np.savez(tmp_path / "here.npz", images=images, labels=labels)
    images, labels = (part.astype(part.dtype.newbyteorder("S")) for part in (images, labels))
    np.savez(tmp_path / "other.npz", images=images, labels=labels)
    here, other = (load_data(str(tmp_path / f"{name}.npz")).train for name in ("here", "other"))
    assert torch.equal(here.images, other.images) and here.labels is not None and other.labels is not None
    assert torch.equal(here.labels, other.labels)


def test_files_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    for name in ("text.npy", "text.npz", "text.pt", "text.csv"):
        (tmp_path / name).write_text("nothing of the kind")
        with pytest.raises(UserError, match="cannot be read|unknown kind"):
            load_data(str(tmp_path / name))
    np.savez(tmp_path / "two.npz", a=BYTES, b=BYTES)
    with pytest.raises(UserError, match="no array named 'images' among a, b"):
        load_data(str(tmp_path / "two.npz"))
    with pytest.raises(UserError, match="no such file or folder: mnits .allowed: digits, .*mnist"):
        load_data("mnits")


def test_image_folder(tmp_path: Path) -> None:
    from PIL import Image

    for number, image in enumerate(BYTES):
        folder = tmp_path / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:02}.png")
    data = load_data(str(tmp_path))
    assert data.image_shape == (6, 7) and len(data.train) == 40
    assert data.train.labels is not None and set(data.train.labels.tolist()) == {0, 1}
    first = torch.from_numpy(BYTES[0].reshape(-1)).float() / 255
    images = torch.cat([data.train.images, data.validation.images, data.test.images])
    assert (images == first).all(1).sum() == 1

    Image.new("L", (3, 3)).save(tmp_path / "b" / "99.png")
    with pytest.raises(UserError, match="99.png is 3x3, .* is 7x6: images must have equal sizes"):
        load_data(str(tmp_path))
    (tmp_path / "b" / "99.png").write_text("no image")
    with pytest.raises(UserError, match="cannot be read as an image"):
        load_data(str(tmp_path))


def test_sixteen_bit_images_keep_their_range(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(3).integers(0, 65536, (40, 6, 7), dtype=np.uint16)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number:02}.png")
    Image.fromarray(BYTES[0]).save(tmp_path / "40.png")  # among them one of 8 bits
    data = load_data(str(tmp_path))
    images = torch.cat([data.train.images, data.validation.images, data.test.images])
    expected = [pixels.reshape(40, -1) / np.float32(65535), BYTES[:1].reshape(1, -1) / np.float32(255)]
    ours, theirs = (np.sort(rows, axis=0) for rows in (images.numpy(), np.concatenate(expected)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_images_of_unknown_range_are_refused(tmp_path: Path, dtype: type) -> None:
    from PIL import Image

    Image.fromarray(np.ones((3, 3), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="a.tif: the range of its pixels .* is unknown: save it with 8 bits"):
        load_data(str(tmp_path))


def test_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images"):
        load_data(str(tmp_path))
