"""Image data sets as tensors in memory: embedded and published ones by name, arrays, folders."""

from __future__ import annotations

from .datasets import EMBEDDED, NAMES, load_data
from .folders import ImageFiles
from .idx import IDX_SOURCES
from .images import DataSettings
from .splits import Dataset, Split

__all__ = ["EMBEDDED", "IDX_SOURCES", "NAMES", "DataSettings", "Dataset", "ImageFiles", "Split", "load_data"]
