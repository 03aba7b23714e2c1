// SIMD vectors through the GCC/Clang vector extensions. Every kernel file is compiled once per instruction
// set with FASTMMD_ISA naming the namespace; everything here has internal linkage and uses no std templates,
// so that the linker can never hand code built for AVX-512 to the baseline.
#pragma once
#include <stdint.h>
#include <string.h>

#include <utility>

#ifdef __FAST_MATH__
#error "fastmmd relies on NaN, infinities and the order of operations: compile without -ffast-math, -Ofast"
#endif

namespace fastmmd::FASTMMD_ISA {
namespace {

#define FASTMMD_INLINE inline __attribute__((always_inline))
// A loop whose registers no caller shares.
#define FASTMMD_ALONE __attribute__((noinline))
#define FASTMMD_UNROLL _Pragma("GCC unroll 16")

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

template <class T> constexpr int lanes = vector_bytes / (int)sizeof(T);

template <class T, int Count> struct VectorOf {
    typedef T type __attribute__((vector_size(Count * sizeof(T))));
};
template <class T, int Count = lanes<T>> using Vector = typename VectorOf<T, Count>::type;

template <class T> struct BitsOf;
template <> struct BitsOf<float> {
    typedef int32_t type;
};
template <> struct BitsOf<double> {
    typedef int64_t type;
};
template <class T> using Integer = typename BitsOf<T>::type;
template <class T>
using Bits = Vector<Integer<T>>;  // as many bits per lane as T; also the type of a comparison

// (x - 0 is x; 0 + x is not where x is -0, and would be computed.)
template <class T> FASTMMD_INLINE Vector<T> broadcast(T value) { return value - Vector<T>{}; }

template <class T> FASTMMD_INLINE Vector<T> load(const T* source) {
    Vector<T> value;
    memcpy(&value, source, sizeof value);
    return value;
}

template <class T> FASTMMD_INLINE void store(T* target, Vector<T> value) {
    memcpy(target, &value, sizeof value);
}

// The smaller of value and limit; NaN stays NaN.
template <class T> FASTMMD_INLINE Vector<T> at_most(Vector<T> value, T limit) {
    const Vector<T> bound = broadcast(limit);
    return value > bound ? bound : value;
}

template <class T> FASTMMD_INLINE Vector<T> at_least(Vector<T> value, T limit) {
    const Vector<T> bound = broadcast(limit);
    return value < bound ? bound : value;
}

FASTMMD_INLINE float square_root(float value) { return __builtin_sqrtf(value); }
FASTMMD_INLINE double square_root(double value) { return __builtin_sqrt(value); }

template <class T> FASTMMD_INLINE Vector<T> square_roots(Vector<T> value) {
    for (int lane = 0; lane < lanes<T>; ++lane) value[lane] = square_root(value[lane]);
    return value;
}

// Sum of the lanes in double, halves first: a fixed order.
template <int Count> FASTMMD_INLINE double sum_halves(Vector<double, Count> value) {
    if constexpr (Count == 1) {
        return value[0];
    } else {
        Vector<double, Count / 2> halves[2];
        memcpy(halves, &value, sizeof value);
        return sum_halves<Count / 2>(halves[0] + halves[1]);
    }
}

template <class T> using Wide = Vector<double, lanes<T>>;

template <class T> FASTMMD_INLINE Wide<T> widen(Vector<T> value) {
    return __builtin_convertvector(value, Wide<T>);
}

template <class T> FASTMMD_INLINE Wide<T> load_wide(const double* source) {  // [lanes]
    Wide<T> value;
    memcpy(&value, source, sizeof value);
    return value;
}

// target[lane] += value[lane], a vector of T into sums in double. The barrier keeps the sums in memory: held
// in registers, they would push what the loops before work on out of them.
template <class T>
FASTMMD_INLINE void add_wide(double* target,  // [lanes]
                             Vector<T> value) {
    const Wide<T> sum = load_wide<T>(target) + widen<T>(value);
    memcpy(target, &sum, sizeof sum);
    asm volatile("" : : : "memory");
}

// The same without the barrier, of numbers in double.
template <class T> FASTMMD_INLINE void add_to(double* target, Wide<T> value) {  // [lanes]
    const Wide<T> sum = load_wide<T>(target) + value;
    memcpy(target, &sum, sizeof sum);
}

template <class T> FASTMMD_INLINE double sum_wide(const double* sums) {  // [lanes]
    return sum_halves<lanes<T>>(load_wide<T>(sums));
}

template <class T> FASTMMD_INLINE double sum_lanes(Vector<T> value) {
    return sum_halves<lanes<T>>(widen<T>(value));
}

template <class T> FASTMMD_INLINE bool any(Bits<T> mask) {
    Integer<T> joined = 0;
    for (int lane = 0; lane < lanes<T>; ++lane) joined |= mask[lane];
    return joined != 0;
}

template <int Value> struct Number {
    static constexpr int value = Value;
};

// Where lane `lane` comes from when two vectors give, of every 2 `half` lanes, their first or last `half`.
constexpr int half_source(int lane, int half, bool last, int count) {
    const int first = lane / (2 * half) * 2 * half, within = lane % (2 * half);
    return (within < half ? first + within : count + first + within - half) + (last ? half : 0);
}

template <class T, int Half, bool Last, int... I>
FASTMMD_INLINE Vector<T> halves_of(Vector<T> a, Vector<T> b, std::integer_sequence<int, I...>) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, half_source(I, Half, Last, lanes<T>)...);
#else
    return __builtin_shuffle(a, b, Bits<T>{half_source(I, Half, Last, lanes<T>)...});
#endif
}

// As many vectors as lanes: lane i of vector j becomes lane j of vector i.
template <class T, int Half = lanes<T> / 2> FASTMMD_INLINE void transpose_lanes(Vector<T>* rows) {
    constexpr std::make_integer_sequence<int, lanes<T>> all = {};
    FASTMMD_UNROLL for (int block = 0; block < lanes<T>; block += 2 * Half)
        FASTMMD_UNROLL for (int i = block; i < block + Half; ++i) {
        const Vector<T> first = rows[i], second = rows[i + Half];
        rows[i] = halves_of<T, Half, false>(first, second, all);
        rows[i + Half] = halves_of<T, Half, true>(first, second, all);
    }
    if constexpr (Half > 1) transpose_lanes<T, Half / 2>(rows);
}

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
