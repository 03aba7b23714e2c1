// Frequencies of random Fourier features, made from the seed: W = G / bandwidth, G standard normal.
//
// Feature k has the 64-bit index start + k. Philox-4x32-10 with key = seed and counter = (index low, index
// high, d / 4, 0) gives the normals of four dimensions: two Box-Muller pairs from the words 0, 1 and 2, 3,
// cosine first, with radius from u = (2 (word >> 9) + 1) 2^-24 and angle 2 pi word 2^-32.
//
// The kernels count angles in half turns, t = W x / pi, and so make their frequencies with 1 / pi in them.
// The nearest integer to t is subtracted and its parity flips signs; sine and cosine of the rest are two
// polynomials. Where |t| may pass Format<T>::turns_limit, whole turns are taken off first (`far`). While some
// projections become sines and cosines the next ones are under way: independent work for both multipliers.
#pragma once
#include "../../common/philox.hpp"
#include "../calls.hpp"
#include "../math.hpp"
#include "../pairs.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

constexpr double inverse_pi = 0.31830988618379067, pi = 3.1415926535897932;
constexpr int chunk = 16;  // terms added in T before their sum goes on: equal ones round alike

template <class T>
FASTMMD_INLINE void box_muller(Vector<uint32_t, lanes<T>> radius_word, Vector<uint32_t, lanes<T>> angle_word,
                               Vector<T>& first, Vector<T>& second) {
    typedef Vector<int32_t, lanes<T>> Signed;
    const Vector<T> odd = __builtin_convertvector((Signed)((radius_word >> 9) * 2 + 1), Vector<T>);
    const Vector<T> radius = square_roots<T>(log_of<T>(odd * T(0x1p-24)) * T(-2));
    // The nearest quarter turn, and what is left of the angle: at most an eighth of a turn to either side.
    const Vector<uint32_t, lanes<T>> quarter = (angle_word + (1u << 29)) >> 30;
    const Signed rest = (Signed)(angle_word - (quarter << 30));
    const Vector<T> angle =
        __builtin_convertvector(rest, Vector<T>) * T(1.4629180792671596e-9);  // 2 pi 2^-32
    const Vector<T> s = sin_polynomial<T>(angle), c = cos_polynomial<T>(angle);
    const Bits<T> quadrant = __builtin_convertvector(quarter, Bits<T>);
    const Bits<T> swap = (quadrant & 1) != 0;
    constexpr int top = (int)sizeof(T) * 8 - 2;
    const Vector<T> sine = (Vector<T>)((Bits<T>)(swap ? c : s) ^ ((quadrant & 2) << top));
    const Vector<T> cosine = (Vector<T>)((Bits<T>)(swap ? s : c) ^ (((quadrant + 1) & 2) << top));
    first = radius * cosine;
    second = radius * sine;
}

// value(part) for each of the features first ... first + lanes - 1, beyond the last one that of the last
// part.
template <class T, class Value>
FASTMMD_INLINE Vector<T> by_part(const Features& features, int64_t first, const Value& value) {
    const int64_t size = features.count / features.parts, last = first + lanes<T> - 1;
    const auto part = [&](int64_t k) { return smaller<int64_t>(k / size, features.parts - 1); };
    Vector<T> values = broadcast<T>((T)value(part(first)));
    if (part(first) != part(last))
        for (int lane = 0; lane < lanes<T>; ++lane) values[lane] = (T)value(part(first + lane));
    return values;
}

// unit * W of the features first, first + 1, ..., first + width - 1; what lies beyond features.count is
// computed alike.
template <class T>
void make_frequencies(const Features& features, int64_t first, int width, int dim, double unit,
                      T* frequencies) {  // [dim][width]
    typedef Vector<uint32_t, lanes<T>> Words;
    typedef Vector<uint64_t, lanes<T>> LongWords;
    const uint64_t seed = (uint64_t)features.key[0], start = (uint64_t)features.key[1] + (uint64_t)first;
    LongWords lane_numbers;
    for (int lane = 0; lane < lanes<T>; ++lane) lane_numbers[lane] = (uint64_t)lane;
    for (int k = 0; k < width; k += lanes<T>) {
        const LongWords index = lane_numbers + (start + (uint64_t)k);
        const Vector<T> scale =
            by_part<T>(features, first + k, [&](int64_t s) { return unit / features.bandwidths[s]; });
        for (int d = 0; d < dim; d += 4) {
            Words counter[4] = {__builtin_convertvector(index, Words),
                                __builtin_convertvector(index >> 32, Words), Words{} + (uint32_t)(d / 4),
                                Words{}};
            philox<Words, LongWords>(counter, (uint32_t)seed, (uint32_t)(seed >> 32));
            Vector<T> normals[4];
            box_muller<T>(counter[0], counter[1], normals[0], normals[1]);
            box_muller<T>(counter[2], counter[3], normals[2], normals[3]);
            for (int i = 0; i < 4 && d + i < dim; ++i)
                store(frequencies + (int64_t)(d + i) * width + k, normals[i] * scale);
        }
    }
}

// sqrt(weight / features of its part): what makes phi(a) . phi(b) approximate k(a, b).
template <class T> FASTMMD_INLINE Vector<T> feature_scales(const Features& features, int64_t first) {
    const double size = (double)(features.count / features.parts);
    return by_part<T>(features, first, [&](int64_t s) { return sqrt(features.kernel_weights[s] / size); });
}

// The largest |value|; passes over NaN, which reaches every result that it concerns anyway.
template <class T>
T largest_size(const T* values,  // [count]
               int64_t count) {
    Vector<T> largest = {};
    for (int64_t i = 0; i < count; i += lanes<T>) {
        Vector<T> size = {};
        if (i + lanes<T> <= count) {
            size = load(values + i);
        } else {
            for (int lane = 0; lane < count - i; ++lane) size[lane] = values[i + lane];
        }
        size = size < Vector<T>{} ? -size : size;
        largest = size > largest ? size : largest;
    }
    T result = 0;
    for (int lane = 0; lane < lanes<T>; ++lane) result = larger(result, largest[lane]);
    return result;
}

// Whether |W x / pi| may pass the limit of half_turns for one of `width` features and |x_d| <= largest.
template <class T>
bool may_be_far(const T* frequencies,  // [dim][width]
                int width, int dim, T largest) {
    for (int k = 0; k < width; k += lanes<T>) {
        Vector<T> sum = {};
        for (int d = 0; d < dim; ++d) {
            const Vector<T> w = load(frequencies + (int64_t)d * width + k);
            sum += w < Vector<T>{} ? -w : w;
        }
        if (any<T>(~(sum * largest < broadcast(Format<T>::turns_limit / 2)))) return true;
    }
    return false;
}

// sin(pi t) / rest = (-1)^n sinpi_polynomial(square), cos(pi t) = (-1)^n cospi_polynomial(square).
template <class T, int Count, bool Far>
FASTMMD_INLINE void reduce(const Vector<T>* t, HalfTurns<T>* turns, Vector<T>* square) {  // [Count] each
    for (int i = 0; i < Count; ++i) turns[i] = half_turns<T>(Far ? within_a_turn<T>(t[i]) : t[i]);
    for (int i = 0; i < Count; ++i) square[i] = turns[i].rest * turns[i].rest;
}

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
