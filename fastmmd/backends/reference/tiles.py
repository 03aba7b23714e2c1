"""Row chunks of a batched pairwise computation: what bounds the memory of the reference backend."""

from __future__ import annotations

from collections.abc import Iterator

TILE_ELEMENTS = 1 << 20


def row_tiles(batch: int, rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Slices over [batch, rows] whose tiles [b, n, columns] hold about TILE_ELEMENTS elements at most."""
    n = max(1, min(rows, TILE_ELEMENTS // max(1, columns)))
    b = max(1, TILE_ELEMENTS // max(1, n * columns)) if n == rows else 1
    for first in range(0, batch, b):
        for row in range(0, rows, n):
            yield slice(first, first + b), slice(row, row + n)
