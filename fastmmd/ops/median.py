"""The median heuristic for the bandwidth of a kernel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .arguments import check_points, compute_dtype, known_values


def median_bandwidth(x: Tensor, y: Tensor | None = None) -> Tensor:
    """The median heuristic: sqrt(median of |a - b|^2 / 2) over all pairs of distinct points, in linear memory.

    The median over the pairs i < j of x, or of x and y pooled when y is given (Gretton et al. 2012, section 8; the
    factor 2 makes exp(-r / (2 s^2)) equal 1/e at the median distance). An even number of pairs takes the mean of the
    two middle ones. Exact, by radix selection over repeated passes through the distances.

    Args:
        x: [N, D]; y: [M, D] or None. At least two points in total.

    Returns:
        0-d tensor on x's device in the compute dtype, without gradient; NaN where a point is not finite. `mmd2` and
        `FourierFeatures` take it as the one bandwidth that it is. The median squared distance must be a number of that
        dtype: beyond 3e38 in float32 the result is inf, below 1e-45 it counts as 0. Pass x.double() there.

    Raises:
        TypeError, ValueError: as `mmd2`; fewer than two points. On the CPU also more than half of the distances being
            0, as in sparse binary data, where the median is 0 and no bandwidth. On other devices and under
            torch.compile no value is read on the host: there the result is 0.
    """
    check_points(2, x=x, y=x if y is None else y)
    with torch.no_grad():
        points = (x if y is None else torch.cat([x.to(compute_dtype(x)), y.to(compute_dtype(x))])).detach()
        n = points.shape[0]
        if n < 2:
            raise ValueError(f"x: got {n} point, expected at least two to have a pair")
        points = points.to(compute_dtype(x)).contiguous()
        median = _median_squared_distance(points).div(2).sqrt()
        median = torch.where(points.isfinite().all(), median, float("nan"))
        if 0.0 in known_values(median[None]):
            raise ValueError(
                "x: got points of which more than half of the pairs are at distance 0, which is the median then and no "
                "bandwidth; use the median over distinct points, median_bandwidth(x.unique(dim=0)), or the root of the "
                "mean square instead, x.var(0).sum().sqrt()"
            )
        return median


def _median_squared_distance(points: Tensor) -> Tensor:
    """Radix selection, 16 bits a pass: non-negative floats order as their bit patterns do."""
    n = points.shape[0]
    pairs = n * (n - 1) // 2
    integer, passes = (torch.int64, 4) if points.dtype == torch.float64 else (torch.int32, 2)
    middle = []
    for rank in sorted({(pairs - 1) // 2, pairs // 2}):
        prefix = torch.zeros((), dtype=integer, device=points.device)
        remaining = torch.full((), rank, dtype=torch.int64, device=points.device)
        for shift in range(16 * (passes - 1), -1, -16):
            histogram = torch.zeros(1 << 16, dtype=torch.int64, device=points.device)
            for tile in _upper_triangle(points):
                bits = tile.view(integer)
                inside = (bits >> (shift + 15) >> 1) == prefix  # two shifts: shifting by the full width is undefined
                digit = ((bits >> shift) & 0xFFFF).to(torch.int64)
                histogram.scatter_add_(0, digit.flatten(), inside.to(torch.int64).flatten())
            cumulative = histogram.cumsum(0)
            digit = torch.searchsorted(cumulative, remaining, right=True)
            remaining = remaining - (_at(cumulative, digit) - _at(histogram, digit))
            prefix = (prefix << 16) | digit.to(integer)
        middle.append(prefix.view(points.dtype))
    return torch.stack(middle).mean()


def _upper_triangle(points: Tensor) -> Iterator[Tensor]:
    """Squared distances of the pairs i < j, tile by tile; pairs i >= j hold NaN's bit pattern, beyond every rank."""
    n = points.shape[0]
    rows = max(1, (1 << 20) // n)
    column = torch.arange(n, device=points.device)
    for first in range(0, n - 1, rows):
        block = points[first : first + rows]
        r = torch.cdist(block, points, compute_mode="donot_use_mm_for_euclid_dist").square_()
        yield r.masked_fill_(column <= column[first : first + rows, None], float("nan"))


def _at(values: Tensor, index: Tensor) -> Tensor:
    """values[index] for a 0-d index, which indexing itself would read on the host."""
    return values.gather(0, index[None])[0]
