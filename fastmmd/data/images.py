"""An image file as pixels: gray or color, cropped or padded to a square, resized."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmmd.data.limits import check_memory
from fastmmd.errors import UserError, first_line, require, unknown

Color = Literal["auto", "gray", "color"]
Fit = Literal["crop", "pad"]
LARGEST_SIDE = 10_000  # pixels


@dataclass(frozen=True)
class DataSettings:
    """How the images of a folder are read.

    Attributes:
        color: "gray", "color" (three channels, also of gray images), or "auto": color if the first image has any, that
            is channels that differ. In a folder found to be gray an image with color is an error.
        size: pixels of a side of the square that images are resized to; None: they keep their size, which must be one.
        fit: how images that are no squares become some: "crop" keeps the middle, "pad" adds `background`. Without a
            size, all are resized to the side of the first. None: they must be squares where there is a size.
        background: gray level in [0, 1] behind transparent pixels, and beside padded images (there by default 0,
            black); None: transparent pixels are an error.

    Raises:
        UserError: another value.
    """

    color: Color = "auto"
    size: int | None = None
    fit: Fit | None = None
    background: float | None = None

    def __post_init__(self) -> None:
        if self.color not in get_args(Color):
            raise unknown("data.color", str(self.color), get_args(Color))
        if self.fit is not None and self.fit not in get_args(Fit):
            raise unknown("data.fit", str(self.fit), get_args(Fit))
        if self.size is not None and (type(self.size) is not int or not 1 <= self.size <= LARGEST_SIDE):
            raise UserError(f"data.size must be a whole number from 1 to {LARGEST_SIDE}, got {self.size!r}")
        level = self.background
        if level is not None and (type(level) not in (int, float) or not 0 <= level <= 1):
            raise UserError(f"data.background must be a gray level in 0..1, got {level!r}")

    def refuse_for(self, name: str) -> None:
        """Raises:
        UserError: a setting is not the default, though the data set is no folder of images.
        """
        for key, value in asdict(self).items():
            if value != getattr(DataSettings, key):
                raise UserError(f"data.{key} is for folders of images, got {value!r} for {name}")


def read_image(path: Path, settings: DataSettings | None = None) -> Tensor:
    """[H, W] float32 in [0, 1], or [3, H, W] for color.

    Raises:
        UserError: the file is no image, or the range of its pixels is unknown, or it needs a setting.
    """
    settings = settings or DataSettings()
    pillow = require("PIL.Image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(path) as picture:  # its size; pixels are read below
                check_memory(path, picture.width * picture.height)
                pixels = torch.from_numpy(_pixels(picture, path, settings))
    except UserError:
        raise
    except Exception as error:  # its readers raise whatever the broken content leads them to
        raise UserError(f"{path}: cannot be read as an image ({first_line(error)})") from error
    return _fitted(pixels, path, settings)


def _pixels(picture: Any, path: Path, settings: DataSettings) -> np.ndarray[Any, Any]:
    """[H, W] or [3, H, W] float32 in [0, 1] of an opened image."""
    if (frames := getattr(picture, "n_frames", 1)) > 1 and picture.format != "MPO":  # of a camera, with a preview
        raise UserError(f"{path}: {frames} frames in one file; save each as an image of its own")
    deep = picture.mode.startswith("I;16")  # convert() would cut its values off at 255
    if not deep and ("transparency" in picture.info or "A" in picture.getbands()):
        picture = _opaque(picture.convert("RGBA"), path, settings.background)
    if picture.mode in ("I", "F"):
        remedy = "save it with 8 bits, as a 16-bit PNG, or all images as an .npy of floats in 0..1"
        raise UserError(f"{path}: the range of its pixels (mode {picture.mode}) is unknown: {remedy}")
    if deep:
        values = np.asarray(picture)
        gray, clear = values.astype(np.float32) / np.float32(65535), values == picture.info.get("transparency", -1)
        if clear.any():
            gray[clear] = _known(settings.background, path)
    elif settings.color == "gray" or picture.mode in ("1", "L"):
        gray = np.asarray(picture.convert("L")) / np.float32(255)
    else:
        colors = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)  # of 16 bits their upper 8
        if settings.color == "color" or (colors != colors[:1]).any():
            return colors / np.float32(255)
        gray = colors[0] / np.float32(255)
    return np.stack([gray] * 3) if settings.color == "color" else gray


def _opaque(picture: Any, path: Path, background: float | None) -> Any:
    """An RGBA picture without transparency, on a background."""
    if picture.getchannel("A").getextrema() != (255, 255):
        pillow, level = require("PIL.Image"), round(255 * _known(background, path))
        picture = pillow.alpha_composite(pillow.new("RGBA", picture.size, (level, level, level, 255)), picture)
    return picture.convert("RGB")


def _known(background: float | None, path: Path) -> float:
    if background is None:  # what lies behind is not said, and colors of transparent pixels mean nothing
        raise UserError(
            f"{path}: has transparent pixels; save it without, on the background that it shall have, or set "
            "data.background to a gray level in 0..1"
        )
    return background


def _fitted(pixels: Tensor, path: Path, settings: DataSettings) -> Tensor:
    """Pixels [..., H, W] as a square of the wanted size, if the settings want one."""
    height, width = pixels.shape[-2:]
    if settings.fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[..., top : top + side, left : left + side]
    elif settings.fit == "pad":
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        beside = (left, side - width - left, top, side - height - top)
        pixels = F.pad(pixels, beside, value=float(settings.background or 0))
    elif settings.size is not None and height != width:
        raise UserError(f"{path} is {width}x{height}, no square: set data.fit to 'crop' or 'pad'")
    if settings.size is None or pixels.shape[-1] == settings.size:
        return pixels
    planes = pixels.reshape(1, -1, *pixels.shape[-2:])
    check_memory(path, planes.shape[1] * settings.size**2)
    resized = F.interpolate(planes, size=(settings.size,) * 2, mode="bilinear", antialias=True)
    return resized.clamp_(0, 1).reshape(*pixels.shape[:-2], settings.size, settings.size)
