"""Data sets that come with scikit-learn and need no download."""

from __future__ import annotations

import numpy as np
import torch

from fastmmd.data.arrays import scaled
from fastmmd.data.splits import Dataset, Split, split_at_random
from fastmmd.errors import require

PATCH, STRIDE, CELL = 32, 8, 64  # pixels: sides of patches and of the regions they are cut from


def load_digits(name: str) -> Dataset:
    """1,797 digits of 8x8 pixels."""
    digits = require("sklearn.datasets").load_digits()
    images = torch.from_numpy(digits.data / 16.0).float()
    return split_at_random(name, images, torch.from_numpy(digits.target).long(), (8, 8), held_out=0.15)


def load_patches(name: str) -> Dataset:
    """3,000 patches of 32x32 pixels of two photographs in color, a temple (label 0) and a flower (1).

    The photographs are cut into 60 regions of 64x64 each, and a region into 25 patches that overlap. A fixed
    permutation gives 96 regions to training and twelve each to validation and test, so no pixel is in two splits.
    """
    require("PIL.Image")
    regions, labels = [], []
    for label, photograph in enumerate(require("sklearn.datasets").load_sample_images().images):
        pixels = torch.tensor(photograph).movedim(2, 0)  # [3, 427, 640]
        cells = pixels.unfold(1, CELL, CELL).unfold(2, CELL, CELL)  # [3, 6, 10, 64, 64]
        patches = cells.unfold(3, PATCH, STRIDE).unfold(4, PATCH, STRIDE)  # [3, 6, 10, 5, 5, 32, 32]
        regions.append(patches.movedim(0, 4).reshape(-1, (1 + (CELL - PATCH) // STRIDE) ** 2, 3, PATCH, PATCH))
        labels.append(torch.full((len(regions[-1]),), label))
    random = np.random.RandomState(0)
    images, kinds = torch.cat(regions), torch.cat(labels)
    order = torch.from_numpy(random.permutation(len(images)))
    held_out = len(images) // 10
    splits = []
    for part in order.split([len(images) - 2 * held_out, held_out, held_out]):
        rows = torch.from_numpy(random.permutation(len(part) * images.shape[1]))  # neighbors need not stand together
        splits.append(
            Split(scaled(images[part].flatten(0, 1)[rows], name), kinds[part].repeat_interleave(images.shape[1])[rows])
        )
    train, validation, test = splits
    return Dataset(name, train, validation, test, (3, PATCH, PATCH))
