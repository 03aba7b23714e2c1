"""Normal random numbers made from a seed in registers: Philox-4x32-10 and Box-Muller."""

from __future__ import annotations

import triton
import triton.language as tl

from ..math import log, square_root


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
def words(key, k, block):
    """Four uint32 words for dimensions 4 block ... 4 block + 3 of the features k; k and block of one shape."""
    seed, start = tl.load(key), tl.load(key + 1)
    index = start + k.to(tl.int64)
    c0 = (index & 0xFFFFFFFF).to(tl.uint32)
    c1 = ((index >> 32) & 0xFFFFFFFF).to(tl.uint32)
    k0, k1 = (seed & 0xFFFFFFFF).to(tl.uint32), ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    return philox(c0, c1, block.to(tl.uint32), tl.zeros(k.shape, tl.uint32), k0, k1)


@triton.jit
def normals(key, k, block, dtype: tl.constexpr):
    """The normals of dimensions 4 block ... 4 block + 3 of the features k [BLOCK_K]: four vectors."""
    w0, w1, w2, w3 = words(key, k, tl.zeros(k.shape, tl.int32) + block)
    g0, g1 = box_muller(w0, w1, dtype)
    g2, g3 = box_muller(w2, w3, dtype)
    return g0, g1, g2, g3
