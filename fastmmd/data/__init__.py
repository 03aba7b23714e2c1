"""Image data sets as tensors in memory: embedded digits, MNIST and Fashion-MNIST (IDX), arrays, folders."""

from __future__ import annotations

from .datasets import IDX_SOURCES, NAMES, Dataset, Split, load_data
from .folders import ImageFiles

__all__ = ["IDX_SOURCES", "NAMES", "Dataset", "ImageFiles", "Split", "load_data"]
