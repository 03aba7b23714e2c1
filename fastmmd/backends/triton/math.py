"""Elementary functions in Triton.

Constants are those of csrc/common, so that backends round alike. A function of two dtypes chooses by `x.dtype` when it
is compiled.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds a float32 to an integer
ROUNDER_WIDE = tl.constexpr(6755399441055744.0)  # 1.5 * 2^52: a float64


@triton.jit
def checked(value):
    """NaN in place of infinities, which kernels that vanish far away would hide."""
    return value + (value - value)


@triton.jit
def exponentials(x):
    """expm1(x) and exp(x) for x <= 0, relative error about 1e-7 (float32) or 3e-16; 0 and -1 below -87.3 (-708.4).

    x = n log 2 + rest with |rest| <= log 2 / 2, log 2 in two parts: n times the first is exact (Cody, Waite).
    Then expm1(x) = 2^n expm1(rest) + (2^n - 1), which cancels nowhere: n = 0, or the second term is the larger one.
    """
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
    """2^(x (high + low)) for products from -126 (float64: -1022) to 0, relative error about 1e-7 or 3e-16, unbiased.

    `low` is what `high` lost when it was rounded, which would shift the results for all x alike.
    """
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
    """log(x) for normal x > 0, relative error about 1e-7 (float32) or 2e-16.

    As FreeBSD's msun/src/e_log.c and e_logf.c: x = 2^e (1 + f), f from sqrt(1/2) - 1 to sqrt(2) - 1; s = f / (2 + f),
    log(1 + f) = 2 atanh(s) = f - (f^2 / 2 - s (f^2 / 2 + R(s^2))), where f carries nearly all and is exact.
    """
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
def log1p(t):
    """log(1 + t) for 0 <= t < the largest number; what 1 + t loses is added back to first order."""
    x = t + 1
    result = log(x) + (t - (x - 1)) / x
    return tl.where(t == t, result, t)


@triton.jit
def square_root(x):
    """Correctly rounded, as tl.sqrt is for float64 alone."""
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


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
