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
    static constexpr float turns_limit = 0x1p22f;  // where `rounder` still rounds
    static constexpr float largest = 0x1.fffffep127f;
};
template <> struct Format<double> {
    static constexpr int mantissa = 52, bias = 1023;
    static constexpr double rounder = 6755399441055744.0;
    static constexpr double exp_smallest = -708.396;
    static constexpr double exp_largest = 709.0;
    static constexpr double turns_limit = 0x1p51;
    static constexpr double largest = 0x1.fffffffffffffp1023;
};

template <class T> struct Exponential {
    Vector<T> expm1, exp;
};

// exp(x) and expm1(x) from one range reduction, each with full relative accuracy, for x from -87.3 to 88
// (float) or -708 to 709 (double). What is fixed here is exact or tiny: an error that all arguments share
// would not average out over many pairs.
template <class T> FASTMMD_INLINE Exponential<T> near_exponential(Vector<T> x) {
    typedef Format<T> F;
    typedef Constants<T> C;
    const Vector<T> shifted = x * C::log2_e + F::rounder;
    const Vector<T> n = shifted - F::rounder;
    const Vector<T> r = (x - n * C::ln2_high) - n * C::ln2_low;
    const Vector<T> p = expm1_polynomial<T>(r);
    // The integer n stands in the low bits of `shifted`; what else is there leaves with the shift.
    const Vector<T> scale = (Vector<T>)(((Bits<T>)shifted + F::bias) << F::mantissa);
    return {scale * p + (scale - T(1)), scale * p + scale};
}

// The same for any x. Arguments above 88 (float) or 709 (double) are taken as that; below -87.3 (-708.4),
// -inf included, exp is 0 and expm1 is -1.
template <class T> FASTMMD_INLINE Exponential<T> exponential(Vector<T> x) {
    typedef Format<T> F;
    const Exponential<T> e = near_exponential<T>(at_most<T>(at_least<T>(x, F::exp_smallest), F::exp_largest));
    return {e.expm1, x < broadcast<T>(F::exp_smallest) ? Vector<T>{} : e.exp};
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

// A number of half turns, t = n + rest with the nearest integer n: |rest| <= 1/2, exact for |t| up to
// Format<T>::turns_limit. `sign` holds (-1)^n as a sign bit, so that
// sin(pi t) = (-1)^n sin(pi rest) and cos(pi t) = (-1)^n cos(pi rest).
template <class T> struct HalfTurns {
    Vector<T> rest;
    Bits<T> sign;
};

template <class T> FASTMMD_INLINE HalfTurns<T> half_turns(Vector<T> t) {
    const Vector<T> shifted = t + Format<T>::rounder;
    return {t - (shifted - Format<T>::rounder), (Bits<T>)shifted << (int)(sizeof(T) * 8 - 1)};
}

FASTMMD_INLINE float round_even(float x) { return __builtin_rintf(x); }
FASTMMD_INLINE double round_even(double x) { return __builtin_rint(x); }

// t less the whole turns in it, at most one half turn to either side: exact for any t. NaN for infinities.
template <class T> FASTMMD_INLINE Vector<T> within_a_turn(Vector<T> t) {
    for (int lane = 0; lane < lanes<T>; ++lane) t[lane] -= 2 * round_even(t[lane] / 2);
    return t;
}

template <class T> FASTMMD_INLINE Vector<T> flip_sign(Vector<T> value, Bits<T> sign) {
    return (Vector<T>)((Bits<T>)value ^ sign);
}

// sin(pi t) and cos(pi t) for any t, with an absolute error of 1.4e-7 (float; 1.8e-7 without
// fused operations) or 3e-16 (double).
template <class T> FASTMMD_INLINE void sincospi_of(Vector<T> t, Vector<T>& sine, Vector<T>& cosine) {
    const HalfTurns<T> turns = half_turns<T>(within_a_turn<T>(t));
    const Vector<T> square = turns.rest * turns.rest;
    sine = flip_sign<T>(turns.rest * sinpi_polynomial<T>(square), turns.sign);
    cosine = flip_sign<T>(cospi_polynomial<T>(square), turns.sign);
}

// a cos(pi t) + b sin(pi t) = amplitude cos(pi (t - phase)) with -1 <= phase <= 1.
template <class T> struct Wave {
    Vector<T> amplitude, phase;
};

template <class T> FASTMMD_INLINE Wave<T> wave_of(Vector<T> a, Vector<T> b) {
    const Vector<T> zero = {}, x = a < zero ? -a : a, y = b < zero ? -b : b;
    const Bits<T> steep = ~(y <= x);  // NaN is either the larger or the smaller
    const Vector<T> large = steep ? y : x, small = steep ? x : y;
    const Vector<T> slope = small / (large == zero ? zero + T(1) : large), square = slope * slope;
    const Vector<T> angle = slope * atan_polynomial<T>(square);
    const Vector<T> acute = steep ? T(0.5) - angle : angle, obtuse = a < zero ? T(1) - acute : acute;
    Wave<T> wave = {large * square_roots<T>(square + T(1)), b < zero ? -obtuse : obtuse};
    if constexpr (sizeof(T) == 8) {  // a step of Newton's method: error^3 / 6 of 4e-8 is left
        Vector<T> sine, cosine;
        sincospi_of<T>(wave.phase, sine, cosine);
        const Vector<T> norm = wave.amplitude == zero ? zero + T(1) : wave.amplitude;
        wave.phase += (b / norm * cosine - a / norm * sine) * T(0.31830988618379067);
    }
    return wave;
}

// 2^(x rate) for |x rate| up to 126 (float) or 1022 (double), to about a unit in the last place and what the
// rounding of `rate`, without fused operations also that of the product, makes of it.
template <class T> FASTMMD_INLINE Vector<T> near_exp2(Vector<T> x, T rate) {
    typedef Format<T> F;
    const Vector<T> shifted = x * rate + F::rounder;
    const Vector<T> fraction = x * rate - (shifted - F::rounder);
    const Vector<T> power = (Vector<T>)(((Bits<T>)shifted + F::bias) << F::mantissa);
    return power * exp2_polynomial<T>(fraction);
}

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
