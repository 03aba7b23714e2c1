// Random Fourier features in a thread: frequencies from the seed, sines and cosines, waves.
//
// Feature k has the 64-bit index start + k. Philox-4x32-10 with key = seed and counter = (index low, index
// high, d / 4, 0) gives the normals of four dimensions, two Box-Muller pairs, cosine first. Kernels count
// angles in half turns, t = W x / pi, and make their frequencies with 1 / pi in them.
//
// Angles may be anything. Beyond |t| = 2^22 (double: 2^51) rounding does not find the nearest integer, and
// the rest may be any number; its square is cut off at 1, where the polynomials for both sine and cosine are
// exactly 0 and -1, so that a cosine and its sine result. That cut, a modifier of the multiplication, takes
// NaN to 0: what is not finite is found in the coordinates, by `poison`.
#pragma once
#include "../math.cuh"

namespace fastmmd::cuda {
namespace {

// What kernels need to know of the features.
struct FeatureList {
    const int64_t* key;  // [2]: seed, first feature
    int count, part;     // features in all and of one bandwidth
    List inverse;        // 1 / (unit * bandwidth) of every part
    List scale;          // sqrt(weight / part)

    DEVICE int part_of(int k) const { return inverse.count == 1 ? 0 : (k < count ? k : count - 1) / part; }
};

// Count values that are read and written 16 bytes at a time.
template <class T, int Count> struct alignas(16) Pack {
    static constexpr int quad = 16 / sizeof(T);
    T values[(Count + quad - 1) / quad * quad];
};

// 0, or NaN where the value is not finite.
template <class T> DEVICE T poison(T value) { return value - value; }

DEVICE float saturated(float value) { return fminf(fmaxf(value, 0.0f), 1.0f); }
DEVICE double saturated(double value) { return fmin(fmax(value, 0.0), 1.0); }

// Two normals of two words: radius from u = (2 (word >> 9) + 1) 2^-24, angle 2 pi word 2^-32.
template <class T> DEVICE void box_muller(uint32_t radius_word, uint32_t angle_word, T& first, T& second) {
    const T odd = (T)(int32_t)((radius_word >> 9) * 2 + 1);
    const T radius = square_root(T(-2) * logarithm(odd * T(0x1p-24)));
    // The nearest quarter turn, and what is left of the angle: at most an eighth of a turn to either side.
    const uint32_t quarter = (angle_word + (1u << 29)) >> 30;
    const T angle = (T)(int32_t)(angle_word - (quarter << 30)) * T(1.4629180792671596e-9);  // 2 pi 2^-32
    const T s = sin_polynomial<T>(angle), c = cos_polynomial<T>(angle);
    const T sine = quarter & 1 ? c : s, cosine = quarter & 1 ? s : c;
    first = radius * ((quarter + 1) & 2 ? -cosine : cosine);
    second = radius * (quarter & 2 ? -sine : sine);
}

// The normals of dimensions 4 block ... 4 block + 3 of feature k.
template <class T> DEVICE void make_normals(const int64_t* key, int k, int block, T* normals) {  // [4]
    const uint64_t seed = (uint64_t)key[0], index = (uint64_t)key[1] + (uint64_t)k;
    uint32_t words[4] = {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)block, 0};
    philox<uint32_t, uint64_t>(words, (uint32_t)seed, (uint32_t)(seed >> 32));
    box_muller<T>(words[0], words[1], normals[0], normals[1]);
    box_muller<T>(words[2], words[3], normals[2], normals[3]);
}

// The last bit of the mantissa of `shifted`, added to the sign's.
DEVICE float plus_last_bit(float value, float shifted) {
    return bits<float>(bits<uint32_t>(value) + (bits<uint32_t>(shifted) << 31));
}
DEVICE double plus_last_bit(double value, double shifted) {
    return bits<double>(bits<uint64_t>(value) + (bits<uint64_t>(shifted) << 63));
}

// An angle of t half turns, split into whole ones, which give the sign, and a rest.
template <class T> struct Angle {
    T shifted, rest, square;  // square: of the rest, at most 1

    DEVICE explicit Angle(T t)
        : shifted(plus(t, Number<T>::rounder)),
          rest(plus(t, Number<T>::rounder - shifted)),
          square(saturated(rest * rest)) {}

    // -value where the half turns are odd in number.
    DEVICE T signed_by_turns(T value) const { return plus_last_bit(value, shifted); }
};

// sin(pi rest) / rest and cos(pi rest) for |rest| <= 1/2, and 0 and -1 where the square is 1: absolute errors
// of 1.8e-7 (float) or 3e-16.
DEVICE float sine_over_rest(float z) {
    float q = z * 7.14775324e-2f - 5.94843984e-1f;
    q = q * z + 2.54944158f;
    q = q * z - 5.16766691f;
    return q * z + 3.14159179f;
}
DEVICE double sine_over_rest(double z) {
    double q = z * 7.506776136651412e-7 - 2.188430496571811e-5;
    q = q * z + 4.6629197858488925e-4;
    q = q * z - 7.37042883788784e-3;
    q = q * z + 8.214588637623513e-2;
    q = q * z - 5.992645293063101e-1;
    q = q * z + 2.550164039876902;
    q = q * z - 5.167712780049965;
    return q * z + 3.141592653589793;
}
DEVICE float cosine_of_rest(float z) {
    float q = z * -2.29028668e-2f + 2.34035403e-1f;
    q = q * z - 1.33502567f;
    q = q * z + 4.05869532f;
    q = q * z - 4.93480206f;
    return q * z + 1;
}
DEVICE double cosine_of_rest(double z) {
    double q = z * -1.3177591377794788e-7 + 4.298175376504896e-6;
    q = q * z - 1.0463639764823814e-4;
    q = q * z + 1.9295739769724565e-3;
    q = q * z - 2.5806891352964365e-2;
    q = q * z + 2.353306303566088e-1;
    q = q * z - 1.3352627688545198;
    q = q * z + 4.058712126416768;
    q = q * z - 4.934802200544679;
    return q * z + 1;
}

// a cos(pi t) + b sin(pi t) = amplitude cos(pi (t + advance)): the terms of a function, or with `gradient`
// its derivative in t. One polynomial then does for both. With q the smaller of |a|, |b| over the larger,
// amplitude = larger sqrt(1 + q^2) and, of a the larger, advance = -atan(q) / pi; of b, atan(q) / pi - 1/2.
template <class T> struct Wave {
    T amplitude, advance;
};
DEVICE float half_turns_of_slope(float slope) { return slope * atan_polynomial<float>(slope * slope); }
DEVICE double half_turns_of_slope(double slope) { return atan(slope) * 0.31830988618379067; }

template <class T> DEVICE Wave<T> wave_of(T a, T b, bool gradient) {
    if (gradient) {
        const T slope = T(3.1415926535897932) * b;
        b = T(-3.1415926535897932) * a;
        a = slope;
    }
    const bool steep = !(fabs(b) <= fabs(a));  // NaN is either the larger or the smaller
    const T large = steep ? b : a, slope = (steep ? a : b) / (large == 0 ? T(1) : large);
    const T angle = half_turns_of_slope(slope);
    return {large * square_root(slope * slope + T(1)), steep ? angle - T(0.5) : -angle};
}

}  // namespace
}  // namespace fastmmd::cuda
