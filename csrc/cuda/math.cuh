// Elementary functions of one number in a thread, from the polynomials that all backends share, so that they
// round alike. T is float or double.
#pragma once
#include "device.cuh"

namespace fastmmd::cuda {
namespace {

template <class T> struct Number;
template <> struct Number<float> {
    typedef int32_t Integer;
    static constexpr float rounder = 12582912;  // 1.5 * 2^23: adding it rounds to an integer
    static constexpr float least_exponent = -87.3365f;
    static constexpr int mantissa = 23, bias = 127;
};
template <> struct Number<double> {
    typedef int64_t Integer;
    static constexpr double rounder = 6755399441055744;  // 1.5 * 2^52
    static constexpr double least_exponent = -708.396;
    static constexpr int mantissa = 52, bias = 1023;
};

// 2^n of the n that an addition of the rounder left in the low bits of `rounded`.
template <class T> DEVICE T power_of_rounded(T rounded) {
    typedef typename Number<T>::Integer Integer;
    typedef decltype(Integer() + 0u + 0ull * (sizeof(T) == 8)) Bits;
    return bits<T>((Integer)(((Bits)bits<Integer>(rounded) + Number<T>::bias) << Number<T>::mantissa));
}

// expm1(x) and exp(x) for x <= 0, relative error about 1e-7 (float) or 3e-16; -1 and 0 below -87.3 (-708.4).
// x = n ln 2 + rest with ln 2 in two parts, of which the first has so few bits that its multiple is exact
// (Cody and Waite); exp(x) = 2^n (1 + p), expm1(x) = 2^n p + (2^n - 1), where p = expm1(rest).
template <class T> struct Exponentials {
    T expm1, exp;
};
template <class T> DEVICE Exponentials<T> exponentials(T x) {
    const T clamped = x < Number<T>::least_exponent ? Number<T>::least_exponent : x;  // NaN stays
    const T rounded = clamped * Constants<T>::log2_e + Number<T>::rounder, n = rounded - Number<T>::rounder;
    const T rest = (clamped - n * Constants<T>::ln2_high) - n * Constants<T>::ln2_low;
    const T p = expm1_polynomial<T>(rest), scale = power_of_rounded(rounded);
    return {scale * p + (scale - 1), x < Number<T>::least_exponent ? T(0) : scale * p + scale};
}

// 2^(x (high + low)) for products from -126 (double: -1022) to 0, relative error about 1e-7 or 3e-16,
// unbiased.
template <class T> DEVICE T power_of_2(T x, T high, T low) {
    const T rounded = x * high + Number<T>::rounder;
    const T f = (x * high - (rounded - Number<T>::rounder)) + x * low;
    return power_of_rounded(rounded) * exp2_polynomial<T>(f);
}

// log(x) for normal x > 0, relative error about 1e-7 (float) or 2e-16.
DEVICE float logarithm(float x) {
    const int32_t exponent = (bits<int32_t>(x) - 0x3F3504F3) >> 23;
    return log_polynomial<float>(bits<float>(bits<int32_t>(x) - (int32_t)((uint32_t)exponent << 23)) - 1,
                                 (float)exponent);
}
DEVICE double logarithm(double x) {
    const int64_t exponent = (bits<int64_t>(x) - 0x3FE6A09E667F3BCD) >> 52;
    return log_polynomial<double>(bits<double>(bits<int64_t>(x) - (int64_t)((uint64_t)exponent << 52)) - 1,
                                  (double)exponent);
}

// sqrt(r) and its reciprocal, r >= 0, to about one unit in the last place; at 0 the root is 0 and the
// reciprocal some number, of infinity infinity and some number. In float one step of Newton's method from
// an approximate y = r^(-1/2): r y + (r - (r y)^2) y / 2 and y + (1 - r y y) y / 2.
template <class T> struct Root {
    T root, inverse;
};
DEVICE Root<double> root_of(double r) { return {sqrt(r), r > 0 ? 1 / sqrt(r) : 0}; }
DEVICE Root<float> root_of(float r) {
    const float within = minimum(r, 3e38f), start = inverse_root_approximate(maximum(within, 1e-37f));
    const float half = 0.5f * start, root = within * start;
    return {(r - root * root) * half + root, (1 - root * start) * half + start};
}

// log(1 + t) for 0 <= t < the largest number: with x = 1 + t as it is rounded, log(x) + (t - (x - 1)) / x,
// what rounding lost to first order.
template <class T> DEVICE T logarithm_1p(T t) {
    const T x = t + 1;
    return t == t ? logarithm(x) + (t - (x - 1)) / x : t;
}

// What the families' formulas need (common/families.hpp).
template <class Number> struct ThreadMath {
    typedef Number T, V;
    static DEVICE T reciprocal(T x) { return cuda::reciprocal(x); }
    static DEVICE T log1p(T x) { return logarithm_1p(x); }
    static DEVICE Exponentials<T> exponentials(T x) { return cuda::exponentials(x); }
    static DEVICE T at_most(T x, T limit) { return minimum(x, limit); }
    static DEVICE T exp(T x) { return cuda::exponentials(x).exp; }
    static DEVICE T root(T x) { return sqrt(x); }
};

}  // namespace
}  // namespace fastmmd::cuda
