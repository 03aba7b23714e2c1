"""Tile helpers that the Triton kernels share, and their one grammar of names.

i, j          rows (points that receive a result) and columns (points summed over), of a tile [BLOCK_I, BLOCK_J]
d, k          a dimension, a random feature
b, s          a member of the batch, a bandwidth or sigma
n, m, dim     numbers of rows, of columns, of dimensions
r             squared distances of a tile
u, kappa      a kernel minus its value at r = 0, and the kernel
mass          weight of a column as given; 0 in the padding
split         a part of the columns (or rows) whose sums another stage adds up, in order

Sums run in the points' dtype over one tile and in float64 across tiles. Constants are those of csrc/common, so that
backends round alike. A function of two dtypes chooses by `x.dtype` when it is compiled.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import interpreted

MOST_SPLITS = 32  # partial results of an ordered reduction
PROGRAMS = 528  # worth having: four for each of the 132 multiprocessors of an H100 or H200
TUNED_PAIRS = 2**24  # fewer are done before a choice pays
FUSED = {"enable_fp_fusion": True}  # of every launch: Triton 3.10 and later round products on their own unless asked

LOG2_E = tl.constexpr(1.4426950408889634)
ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds a float32 to an integer
ROUNDER_WIDE = tl.constexpr(6755399441055744.0)  # 1.5 * 2^52: a float64


def splits(programs: int, tiles: int) -> tuple[int, int]:
    """Parts into which `tiles` are shared out where there are so many programs without, and tiles of one, by sizes
    alone: the sums, and their order, depend on nothing else."""
    parts = max(1, min(MOST_SPLITS, tiles, -(-PROGRAMS // max(1, programs))))
    per_split = max(1, -(-tiles // parts))
    return -(-tiles // per_split), per_split


def tuned(kernel: Any, pairs: int, *choices: dict[str, int]) -> tuple[Any, dict[str, Any]]:
    """What to launch, and with which further options: the first choice, or for many pairs whichever is the fastest,
    found at the first launch for the dtype and the compile-time arguments.

    Choices differ in how many results a program holds, or in loads in flight, and order no sum: results do not depend
    on them.
    """
    if pairs < TUNED_PAIRS or len(choices) == 1 or interpreted():
        return kernel, choices[0] | FUSED
    return _tuner(kernel, tuple(tuple(choice.items()) for choice in choices)), dict(FUSED)


def stages(warps: int, products: bool) -> list[dict[str, int]]:
    """Choices for a kernel, with products by how many of their tiles are loaded ahead: as the target likes it, or 4."""
    if products and not interpreted():  # AMD's shared memory has room for no more
        products = triton.runtime.driver.active.get_current_target().backend == "cuda"
    return [{"num_warps": warps}, {"num_warps": warps, "num_stages": 4}][: 1 + products]


@lru_cache
def _tuner(kernel: Any, choices: tuple[tuple[tuple[str, int], ...], ...]) -> Any:
    configurations = []
    for choice in map(dict, choices):
        options = {name: choice.pop(name) for name in ("num_warps", "num_stages") if name in choice}
        configurations.append(triton.Config(choice, **options))
    known = configurations[0].kwargs
    key = [parameter.name for parameter in kernel.params if parameter.is_constexpr and parameter.name not in known]
    return triton.autotune(configurations, key=key)(kernel)


@lru_cache(1024)
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers on a device: [len(values)], copied once and not while a CUDA graph is captured."""
    with torch.inference_mode(False):  # an inference tensor could not be saved for a later backward pass
        return torch.tensor(values, dtype=dtype, device=device)


def squared_norms(points: Tensor) -> Tensor:
    """[..., N]; NaN where a coordinate is not finite, so that no difference of infinities hides it."""
    norms = points.square().sum(-1, dtype=torch.float64)
    return (norms + (norms - norms)).to(points.dtype)


@triton.jit
def exponentials(x):
    """expm1(x) and exp(x) for x <= 0, relative error about 1e-7 (float32) or 3e-16; 0 and -1 below -87.3 (-708.4)."""
    if x.dtype == tl.float64:
        clamped = tl.maximum(x, -708.396, propagate_nan=tl.PropagateNan.ALL)
        rounded = clamped * LOG2_E + ROUNDER_WIDE
        n = rounded - ROUNDER_WIDE
        rest = (clamped - n * 0.6931471803691238) - n * 1.9082149292705877e-10
        q = rest * 2.09147553258932022e-9 + 2.51053127296221018e-8
        q = q * rest + 2.75572734787185805e-7
        q = q * rest + 2.75572551700008874e-6
        q = q * rest + 2.48015873256774619e-5
        q = q * rest + 1.98412698750022788e-4
        q = q * rest + 1.38888888888837112e-3
        q = q * rest + 8.33333333332608312e-3
        q = q * rest + 4.16666666666666698e-2
        q = q * rest + 1.6666666666666671e-1
        q = q * rest + 0.5
        scale = ((rounded.to(tl.int64, bitcast=True) << 52) + (1023 << 52)).to(tl.float64, bitcast=True)
    else:
        clamped = tl.maximum(x, -87.3365, propagate_nan=tl.PropagateNan.ALL)
        rounded = clamped * LOG2_E + ROUNDER
        n = rounded - ROUNDER
        rest = (clamped - n * 0.6931381225585938) - n * 9.05800061445916e-06
        q = rest * 1.98910805e-4 + 1.39337307e-3
        q = q * rest + 8.33331084e-3
        q = q * rest + 4.16664642e-2
        q = q * rest + 1.66666667e-1
        q = q * rest + 0.5
        scale = ((rounded.to(tl.int32, bitcast=True) << 23) + (127 << 23)).to(tl.float32, bitcast=True)
    p = rest * rest * q + rest
    gone = x < (-708.396 if x.dtype == tl.float64 else -87.3365)
    return scale * p + (scale - 1), tl.where(gone, 0.0, scale * p + scale)


@triton.jit
def power_of_2(x, high, low):
    """2^(x (high + low)) for products from -126 (float64: -1022) to 0, relative error about 1e-7 or 3e-16, unbiased."""
    rounder: tl.constexpr = ROUNDER_WIDE if x.dtype == tl.float64 else ROUNDER
    rounded = x * high + rounder
    f = (x * high - (rounded - rounder)) + x * low
    if x.dtype == tl.float64:
        q = f * 2.5729324177362305e-11 + 4.4558179083360645e-10
        q = q * f + 7.0548973041554995e-9
        q = q * f + 1.0178057087733941e-7
        q = q * f + 1.3215486808705563e-6
        q = q * f + 1.5252733841556773e-5
        q = q * f + 1.5403530393370734e-4
        q = q * f + 1.333355814640647e-3
        q = q * f + 9.61812910762848e-3
        q = q * f + 5.5504108664821625e-2
        q = q * f + 2.4022650695910072e-1
        q = q * f + 6.931471805599453e-1
        scale = ((rounded.to(tl.int64, bitcast=True) << 52) + (1023 << 52)).to(tl.float64, bitcast=True)
    else:
        q = f * 1.53264802e-4 + 1.33908074e-3
        q = q * f + 9.61850584e-3
        q = q * f + 5.55035993e-2
        q = q * f + 2.40226477e-1
        q = q * f + 6.93147182e-1
        scale = ((rounded.to(tl.int32, bitcast=True) << 23) + (127 << 23)).to(tl.float32, bitcast=True)
    return scale * (q * f + 1)


@triton.jit
def log(x):
    """log(x) for normal x > 0, relative error about 1e-7 (float32) or 2e-16."""
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True)
        exponent = (bits - 0x3FE6A09E667F3BCD) >> 52
        f = (bits - (exponent << 52)).to(tl.float64, bitcast=True) - 1
    else:
        bits = x.to(tl.int32, bitcast=True)
        exponent = (bits - 0x3F3504F3) >> 23
        f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1
    e = exponent.to(x.dtype)
    s = f / (f + 2)
    z = s * s
    if x.dtype == tl.float64:
        q = z * 1.479819860511658591e-01 + 1.531383769920937332e-01
        q = q * z + 1.818357216161805012e-01
        q = q * z + 2.222219843214978396e-01
        q = q * z + 2.857142874366239149e-01
        q = q * z + 3.999999999940941908e-01
        q = q * z + 6.666666666666735130e-01
        low, high = e * 1.9082149292705877e-10, e * 0.6931471803691238
    else:
        q = z * 0.24279078841 + 0.28498786688
        q = q * z + 0.40000972152
        q = q * z + 0.66666662693
        low, high = e * 9.05800061445916e-06, e * 0.6931381225585938
    half_square = 0.5 * f * f
    return high - ((half_square - (s * (half_square + z * q) + low)) - f)


@triton.jit
def square_root(x):
    """Correctly rounded, as tl.sqrt is for float64 alone."""
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def log1p(t):
    """log(1 + t) for 0 <= t < the largest number; what 1 + t loses is added back to first order."""
    x = t + 1
    result = log(x) + (t - (x - 1)) / x
    return tl.where(t == t, result, t)


@triton.jit
def sincospi(t):
    """sin(pi t) and cos(pi t) up to one sign, which `signed` gives them: absolute error 1.8e-7 (float32) or 3e-16.
    From |t| = 2^22 (2^51) on, the cosine and sine of some angle; NaN for infinities."""
    if t.dtype == tl.float64:
        shifted = t + ROUNDER_WIDE
        rest = t - (shifted - ROUNDER_WIDE)
    else:
        shifted = t + ROUNDER
        rest = t - (shifted - ROUNDER)
    # Beyond, rest may be any number: at z = 1 the polynomials are exactly 0 and -2, so that 0 and -1 result.
    z = tl.minimum(rest * rest, 1.0, propagate_nan=tl.PropagateNan.ALL)
    if t.dtype == tl.float64:
        s = z * 7.506776136651412e-7 - 2.188430496571811e-5
        s = s * z + 4.6629197858488925e-4
        s = s * z - 7.37042883788784e-3
        s = s * z + 8.214588637623513e-2
        s = s * z - 5.992645293063101e-1
        s = s * z + 2.550164039876902
        s = s * z - 5.167712780049965
        s = s * z + 3.141592653589793
        c = z * -1.3177591377794788e-7 + 4.298175376504896e-6
        c = c * z - 1.0463639764823814e-4
        c = c * z + 1.9295739769724565e-3
        c = c * z - 2.5806891352964365e-2
        c = c * z + 2.353306303566088e-1
        c = c * z - 1.3352627688545198
        c = c * z + 4.058712126416768
        c = c * z - 4.934802200544679
    else:
        s = z * 7.14775324e-2 - 5.94843984e-1
        s = s * z + 2.54944158
        s = s * z - 5.16766691
        s = s * z + 3.14159179
        c = z * -2.29028668e-2 + 2.34035403e-1
        c = c * z - 1.33502567
        c = c * z + 4.05869532
        c = c * z - 4.93480206
    return rest * s, c * z + 1, shifted


@triton.jit
def signed(value, shifted):
    """-value where `shifted` of sincospi is an odd number of half turns, value elsewhere: by adding to the sign's bit
    the last one of the mantissa, one integer multiply-add."""
    if value.dtype == tl.float64:
        bits = value.to(tl.uint64, bitcast=True) + (shifted.to(tl.uint64, bitcast=True) << 63)
    else:
        bits = value.to(tl.uint32, bitcast=True) + (shifted.to(tl.uint32, bitcast=True) << 31)
    return bits.to(value.dtype, bitcast=True)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Philox-4x32-10 (Salmon et al. 2011): four words from counters of four words and a key of two, all uint32."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, tl.full(c0.shape, 0xD2511F53, tl.uint32)), c0 * 0xD2511F53
        high1, low1 = tl.umulhi(c2, tl.full(c2.shape, 0xCD9E8D57, tl.uint32)), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def box_muller(radius_word, angle_word, dtype: tl.constexpr):
    """Two normals of two words: radius from u = (2 (word >> 9) + 1) 2^-24, angle 2 pi word 2^-32, cosine first."""
    odd = ((radius_word >> 9) * 2 + 1).to(tl.int32).to(dtype)
    radius = square_root(-2 * log(odd * 5.9604644775390625e-8))
    # The nearest quarter turn, and what is left of the angle: at most an eighth of a turn to either side.
    quarter = (angle_word + 536870912) >> 30
    angle = (angle_word - (quarter << 30)).to(tl.int32, bitcast=True).to(dtype) * 1.4629180792671596e-9
    z = angle * angle
    if dtype == tl.float64:
        q = z * 1.58962301576546568060e-10 - 2.50507477628578072866e-8
        q = q * z + 2.75573136213857245213e-6
        q = q * z - 1.98412698295895385996e-4
        q = q * z + 8.33333333332211858878e-3
        q = q * z - 1.66666666666666307295e-1
        c = z * -1.13585365213876817300e-11 + 2.08757008419747316778e-9
        c = c * z - 2.75573141792967388112e-7
        c = c * z + 2.48015872888517045348e-5
        c = c * z - 1.38888888888730564116e-3
        c = c * z + 4.16666666666665929218e-2
    else:
        q = z * -1.9515295891e-4 + 8.3321608736e-3
        q = q * z - 1.6666654611e-1
        c = z * 2.443315711809948e-5 - 1.388731625493765e-3
        c = c * z + 4.166664568298827e-2
    s = angle * z * q + angle
    c = z * z * c + (1 - 0.5 * z)
    odd_quarter = (quarter & 1) == 1
    sine = tl.where((quarter & 2) == 2, -1.0, 1.0).to(dtype) * tl.where(odd_quarter, c, s)
    cosine = tl.where(((quarter + 1) & 2) == 2, -1.0, 1.0).to(dtype) * tl.where(odd_quarter, s, c)
    return radius * cosine, radius * sine


@triton.jit
def checked(value):
    """NaN in place of infinities, which kernels that vanish far away would hide."""
    return value + (value - value)


@triton.jit
def squared_distances(
    p, q, p_norms, q_norms, i, j, n, m, dim: tl.constexpr, DIRECT: tl.constexpr, BLOCK_D: tl.constexpr
):
    """r of the points i of p [n, dim] and j of q [m, dim]; any number in the padding.

    By differences, or as |p|^2 + |q|^2 - 2 p . q in full precision: tensor cores would take float32 as TF32.
    """
    dtype: tl.constexpr = p.dtype.element_ty
    r = tl.zeros([i.shape[0], j.shape[0]], dtype)
    if DIRECT:
        r = _by_differences(p, q, i, j, n, m, dim)
    else:
        for first in range(0, dim, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            left, right = coordinates(p, i, n, dim, d), coordinates(q, j, m, dim, d)
            r = tl.dot(left, tl.trans(right), r, input_precision="ieee", out_dtype=dtype)
        left_norms = tl.load(p_norms + i, mask=i < n, other=0.0)
        right_norms = tl.load(q_norms + j, mask=j < m, other=0.0)
        r = (left_norms[:, None] + right_norms[None, :]) - 2 * r
        r = tl.where(r < 0, 0.0, r)
    return r


@triton.jit
def _by_differences(p, q, i, j, n, m, dim: tl.constexpr):
    r = tl.zeros([i.shape[0], j.shape[0]], p.dtype.element_ty)
    if dim <= 16:
        for d in tl.static_range(dim):
            r += _square(p, q, i, j, n, m, dim, d)
    else:
        for d in range(dim):
            r += _square(p, q, i, j, n, m, dim, d)
    return r


@triton.jit
def _square(p, q, i, j, n, m, dim, d):
    difference = coordinate(p, i, n, dim, d)[:, None] - coordinate(q, j, m, dim, d)[None, :]
    return difference * difference


@triton.jit
def coordinates(points, i, n, dim, d):
    """Coordinates d of the points i: [BLOCK, BLOCK_D]; 0 in the padding."""
    at = points + i.to(tl.int64)[:, None] * dim + d[None, :]
    return tl.load(at, mask=(i < n)[:, None] & (d < dim)[None, :], other=0.0)


@triton.jit
def coordinate(points, i, n, dim, d):
    """Coordinate d of the points i: [BLOCK]; 0 in the padding."""
    return checked(tl.load(points + i.to(tl.int64) * dim + d, mask=i < n, other=0.0))
