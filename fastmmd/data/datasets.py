"""Image data sets as tensors in memory, by name or path."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from fastmmd.data.arrays import read_array
from fastmmd.data.embedded import load_digits, load_patches
from fastmmd.data.folder_sets import load_celeba, load_folder
from fastmmd.data.idx import IDX_SOURCES, load_idx
from fastmmd.data.images import Color, DataSettings, Fit
from fastmmd.data.matlab import load_olivetti, load_svhn
from fastmmd.data.splits import Dataset, split_at_random
from fastmmd.errors import UserError

EMBEDDED: dict[str, Callable[[str], Dataset]] = {"digits": load_digits, "patches": load_patches}
#: In files that lie in a folder or are downloaded.
PUBLISHED: dict[str, Callable[..., Dataset]] = {
    **dict.fromkeys(IDX_SOURCES, load_idx),
    "svhn": load_svhn,
    "olivetti": load_olivetti,
}
NAMES = (*EMBEDDED, *PUBLISHED, "celeba")


def load_data(
    name: str = "digits",
    data_dir: str | os.PathLike[str] | None = None,
    *,
    color: Color = "auto",
    size: int | None = None,
    fit: Fit | None = None,
    background: float | None = None,
    quiet: bool = False,
) -> Dataset:
    """Load a data set.

    Args:
        name: one of `NAMES`, or a path:
            "digits" (1,797 images of 8x8) and "patches" (3,000 color patches of 32x32 of two photographs) come with
            scikit-learn; "mnist" and "fashion-mnist" (28x28); "svhn" (house numbers, 32x32 in color); "olivetti" (400
            faces, 64x64); "celeba" (202,599 faces in color, 64x64);
            an .npy/.npz/.pt array of images [N, H, W], [N, H, W, 3] or [N, 3, H, W], or rows [N, D] (uint8 0..255 or
            float 0..1; in an .npz or a dictionary: `images` and perhaps `labels`); an image whose first and last axes
            both have length 3 is refused;
            a folder of images (sub-folders are labels). One that takes more than half of the memory, or than the bytes
            in the environment variable FASTMMD_DATA_MEMORY, stays on disk (`Dataset.train_files`), with a warning that
            says what is in memory.
        data_dir: where the files of MNIST, Fashion-MNIST, SVHN, the Olivetti faces and CelebA lie; default: the
            environment variable FASTMMD_DATA, else the user's cache folder. Missing files of the first three are
            downloaded there.
        color, size, fit, background: how the images of a folder, and of CelebA, are read: see `DataSettings`.
        quiet: no progress bar.

    Raises:
        UserError: no such data set or file, or its content is not what the name promises.
    """
    settings = DataSettings(color, size, fit, background)
    if name == "celeba":
        return load_celeba(name, data_dir, settings)
    path = Path(os.path.expanduser(name))
    if name not in NAMES and os.path.isdir(path):  # of os.path: a name that no file can have is none
        return load_folder(name, path, settings)
    if name not in NAMES and not os.path.isfile(path):
        allowed = f"{', '.join(NAMES)}, an .npy/.npz/.pt file, a folder of images"
        raise UserError(f"data: no such file or folder: {name} (allowed: {allowed})")
    settings.refuse_for(name)
    if name in EMBEDDED:
        return EMBEDDED[name](name)
    if name in PUBLISHED:
        return PUBLISHED[name](name, data_dir, quiet=quiet)
    return split_at_random(name, *read_array(path))
