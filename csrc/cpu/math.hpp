// Elementary functions on vectors of float and double, to one or two units in the last place. NaN gives NaN.
#pragma once
#include <math.h>

#include "../common/polynomials.hpp"
#include "simd.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

template <class T> struct Format;
template <> struct Format<float> {
    static constexpr int mantissa = 23, bias = 127;
    static constexpr float rounder = 12582912.0f;     // 1.5 * 2^23: adding it rounds to an integer
    static constexpr float exp_smallest = -87.3365f;  // below it exp() is no longer a normal number
    static constexpr float exp_largest = 88.0f;
    static constexpr float sincos_limit = 1e4f;
    static constexpr float largest = 0x1.fffffep127f;
};
template <> struct Format<double> {
    static constexpr int mantissa = 52, bias = 1023;
    static constexpr double rounder = 6755399441055744.0;
    static constexpr double exp_smallest = -708.396;
    static constexpr double exp_largest = 709.0;
    static constexpr double sincos_limit = 1e6;
    static constexpr double largest = 0x1.fffffffffffffp1023;
};

template <class T> struct Exponential {
    Vector<T> expm1, exp;
};

// exp(x) and expm1(x) from one range reduction, each with full relative accuracy. Arguments above 88 (float)
// or 709 (double) are taken as that; below -87.3 (-708.4), -inf included, exp is 0 and expm1 is -1.
template <class T> FASTMMD_INLINE Exponential<T> exponential(Vector<T> x) {
    typedef Format<T> F;
    typedef Constants<T> C;
    const Vector<T> bounded = at_most<T>(at_least<T>(x, F::exp_smallest), F::exp_largest);
    const Vector<T> shifted = bounded * C::log2_e + F::rounder;
    const Vector<T> n = shifted - F::rounder;
    const Vector<T> r = (bounded - n * C::ln2_high) - n * C::ln2_low;
    const Vector<T> p = expm1_polynomial<T>(r);
    // The integer n stands in the low bits of `shifted`; what else is there leaves with the shift.
    const Vector<T> scale = (Vector<T>)(((Bits<T>)shifted + F::bias) << F::mantissa);
    const Vector<T> exp = scale * p + scale;
    return {scale * p + (scale - T(1)), x < broadcast<T>(F::exp_smallest) ? Vector<T>{} : exp};
}

// 2^(x rate) and the same minus 1, without guards: |x rate| must stay below 126 (float) or 1022 (double).
template <class T> FASTMMD_INLINE Exponential<T> exponential2(Vector<T> x, T rate) {
    typedef Format<T> F;
    const Vector<T> shifted = x * rate + F::rounder;
    const Vector<T> n = shifted - F::rounder;
    const Vector<T> p = exp2m1_polynomial<T>(x * rate - n);  // one rounding: contracted
    const Vector<T> scale = (Vector<T>)(((Bits<T>)shifted + F::bias) << F::mantissa);
    return {scale * p + (scale - T(1)), scale * p + scale};
}

template <class T> FASTMMD_INLINE Vector<T> exp_of(Vector<T> x) { return exponential<T>(x).exp; }
template <class T> FASTMMD_INLINE Vector<T> expm1_of(Vector<T> x) { return exponential<T>(x).expm1; }

// x = m 2^exponent with sqrt(1/2) <= m < sqrt(2), for normal x > 0; returns m - 1.
template <class T> FASTMMD_INLINE Vector<T> split_exponent(Vector<T> x, Vector<T>& exponent) {
    typedef Format<T> F;
    const Bits<T> bits = (Bits<T>)x, half = (Bits<T>)broadcast<T>(T(0.70710678118654752));
    const Bits<T> n = (bits - half) >> F::mantissa;
    exponent = __builtin_convertvector(n, Vector<T>);
    return (Vector<T>)(bits - (n << F::mantissa)) - T(1);
}

// log(x) for normal x > 0.
template <class T> FASTMMD_INLINE Vector<T> log_of(Vector<T> x) {
    Vector<T> exponent;
    const Vector<T> f = split_exponent<T>(x, exponent);
    return log_polynomial<T>(f, exponent);
}

// log(1 + t) for 0 <= t < the largest number; what 1 + t loses is added back to first order.
template <class T> FASTMMD_INLINE Vector<T> log1p_of(Vector<T> t) {
    const Vector<T> x = t + T(1);
    const Vector<T> result = log_of<T>(x) + (t - (x - T(1))) / x;
    return t == t ? result : t;
}

FASTMMD_INLINE void scalar_sincos(float x, float& sine, float& cosine) {
    sine = (float)sin((double)x);
    cosine = (float)cos((double)x);
}
FASTMMD_INLINE void scalar_sincos(double x, double& sine, double& cosine) {
    sine = sin(x);
    cosine = cos(x);
}

// What vectors outside the range of `sincos_of` take: the C library, lane by lane.
template <class T> __attribute__((noinline)) void sincos_lanes(const T* x, T* sine, T* cosine) {
    for (int lane = 0; lane < lanes<T>; ++lane) scalar_sincos(x[lane], sine[lane], cosine[lane]);
}

// sin(x) and cos(x) by Cody-Waite reduction up to 1e4 (float) or 1e6 (double), by the C library beyond.
template <class T> FASTMMD_INLINE void sincos_of(Vector<T> x, Vector<T>& sine, Vector<T>& cosine) {
    typedef Format<T> F;
    typedef Constants<T> C;
    const Vector<T> limit = broadcast<T>(F::sincos_limit);
    if (__builtin_expect(any<T>(~((x <= limit) & (x >= -limit))), 0)) {
        alignas(vector_bytes) T in[lanes<T>], sines[lanes<T>], cosines[lanes<T>];
        store<T>(in, x);
        sincos_lanes<T>(in, sines, cosines);
        sine = load<T>(sines);
        cosine = load<T>(cosines);
        return;
    }
    const Vector<T> shifted = x * C::two_over_pi + F::rounder;
    const Vector<T> n = shifted - F::rounder;
    const Vector<T> r = ((x - n * C::half_pi[0]) - n * C::half_pi[1]) - n * C::half_pi[2];
    const Bits<T> quadrant = (Bits<T>)shifted;
    const Vector<T> s = sin_polynomial<T>(r), c = cos_polynomial<T>(r);
    const Bits<T> swap = (quadrant & 1) != 0;
    constexpr int top = (int)sizeof(T) * 8 - 2;  // moves bit 1, the sign, to the top
    sine = (Vector<T>)((Bits<T>)(swap ? c : s) ^ ((quadrant & 2) << top));
    cosine = (Vector<T>)((Bits<T>)(swap ? s : c) ^ (((quadrant + 1) & 2) << top));
}

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
