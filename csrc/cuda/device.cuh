// CUDA's vocabulary as the kernels use it: launches, barriers, shuffles, the few intrinsics. A C++ compiler
// takes the same sources with tests/native/cuda/on_host.hpp in place of the first half of this file.
//
// Grammar of names in the kernels:
//   i, j        rows (points that receive a result) and columns (points summed over)
//   d, k        a dimension, a random feature
//   b, s        a member of the batch, a bandwidth or sigma
//   n, m, dim   numbers of rows, of columns, of dimensions
//   r           a squared distance; u, kappa: a kernel minus its value at r = 0, and the kernel
//   mass        weight of a column as given; 0 in the padding
//   split       a part of the columns whose sums another kernel adds up in order; at most most_splits
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "launcher.hpp"

#define FASTMMD_ISA cuda  // the namespace of what csrc/common holds

#ifndef FASTMMD_ON_HOST
#include <cuda_runtime.h>

#define FASTMMD_ANYWHERE __host__ __device__

#define DEVICE __device__ __forceinline__
#define SHARED(type, name, count) __shared__ type name[count]

namespace fastmmd::cuda {
namespace {

// Starts a kernel on blocks of `threads` (a multiple of 32).
template <class... Parameters, class... Arguments>
Status launch(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads, void* stream,
              Arguments... arguments) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return {};
    kernel<<<grid, threads, 0, (cudaStream_t)stream>>>((Parameters)arguments...);
    return {(int)cudaGetLastError(), name};
}

DEVICE void barrier() { __syncthreads(); }

template <class T> DEVICE T shuffle_xor(T value, int mask) { return __shfl_xor_sync(~0u, value, mask); }

// 2^x with a relative error of 2^-22, 0 from about -126 down: one instruction of the special-function unit.
DEVICE float exp2_approximate(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// Keeps a value in its register: the compiler would rather compute a difference again.
DEVICE void keep(float& value) { asm("" : "+f"(value)); }

// The smaller and the larger; NaN where either is.
#if __CUDA_ARCH__ >= 800
DEVICE float minimum(float a, float b) {
    float result;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
}
DEVICE float maximum(float a, float b) {
    float result;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
}
#else
DEVICE float minimum(float a, float b) { return a < b || a != a ? a : b; }
DEVICE float maximum(float a, float b) { return a > b || a != a ? a : b; }
#endif

// a + b into which no product is fused that one of them is: in one kernel, and not in another, it would round
// twice.
DEVICE float plus(float a, float b) { return __fadd_rn(a, b); }
DEVICE double plus(double a, double b) { return __dadd_rn(a, b); }
DEVICE float square_root(float x) { return __fsqrt_rn(x); }
DEVICE double square_root(double x) { return sqrt(x); }

// 1 / x and x^(-1/2) of a normal x whose result is normal, from the special-function unit: wrong by one unit
// or two in the last place, which a step of Newton's method mends.
DEVICE float reciprocal_approximate(float x) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
DEVICE float inverse_root_approximate(float x) {
    float result;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

}  // namespace
}  // namespace fastmmd::cuda
#endif

namespace fastmmd::cuda {
namespace {

constexpr int warp_size = 32;

template <class To, class From> DEVICE To bits(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    memcpy(&result, &value, sizeof(To));
    return result;
}

// 1 / x of a normal x whose reciprocal is normal, to about half a unit in the last place.
DEVICE float reciprocal(float x) {
    const float start = reciprocal_approximate(x);
    return (1 - x * start) * start + start;
}
DEVICE double reciprocal(double x) { return 1 / x; }

// Sum over a warp, the same in all lanes.
template <class T> DEVICE T warp_sum(T value) {
#pragma unroll
    for (int mask = warp_size / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

DEVICE double minimum(double a, double b) { return a < b || a != a ? a : b; }
DEVICE double maximum(double a, double b) { return a > b || a != a ? a : b; }

// Sum over a block of THREADS, in every thread. `scratch` [THREADS / 32] is shared memory.
template <int THREADS, class T> DEVICE T block_sum(T value, T* scratch) {
    value = warp_sum(value);
    barrier();  // what was read of scratch before
    if (threadIdx.x % warp_size == 0) scratch[threadIdx.x / warp_size] = value;
    barrier();
    T sum = 0;
    for (int warp = 0; warp < THREADS / warp_size; ++warp) sum += scratch[warp];
    return sum;
}

// NaN in place of infinities, which kernels that vanish far away would hide.
template <class T> DEVICE T checked(T value) { return value + (value - value); }

// A sum that keeps what additions in T round off: in double where a multiprocessor adds those at half the
// rate of float, elsewhere, where it is at most a 32nd, in two floats: `rest` is the exact error of every
// addition, added up (Knuth, The Art of Computer Programming 2, 4.2.2, theorem B). The compiler must not
// simplify it, which only -ffast-math would let it do.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000)
constexpr bool fast_double = true;
#else
constexpr bool fast_double = false;
#endif
template <class T, bool DOUBLE = fast_double || sizeof(T) == 8> struct Sum {
    double sum = 0;
    DEVICE void add(T value) { sum += value; }
    DEVICE double total() const { return sum; }
};
template <class T> struct Sum<T, false> {
    float sum = 0, rest = 0;
    DEVICE void add(float value) {
        const float next = sum + value, taken = next - sum;
        rest += (sum - (next - taken)) + (value - taken);
        sum = next;
    }
    DEVICE double total() const { return (double)sum + rest; }
};

}  // namespace

FASTMMD_ANYWHERE inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Splits {
    int parts;          // at most most_splits
    int64_t per_split;  // tiles of one
};

// Parts into which `tiles` are shared out where there are so many blocks without. Another kernel adds up
// their sums in order, without atomics; and the parts follow from sizes alone, not from the device or its
// load: so the same call gives the same bits everywhere. worth_having: blocks, by default eight for each of
// the 132 multiprocessors of an H200.
inline Splits splits_of(int64_t blocks, int64_t tiles, int64_t worth_having = 1056) {
    int64_t parts = ceil_divide(worth_having, blocks < 1 ? 1 : blocks);
    if (parts > most_splits) parts = most_splits;
    if (parts > tiles) parts = tiles;
    if (parts < 1) parts = 1;
    const int64_t per_split = tiles < 1 ? 1 : ceil_divide(tiles, parts);
    return {(int)ceil_divide(tiles < 1 ? 1 : tiles, per_split), per_split};
}

}  // namespace fastmmd::cuda

#include "../common/ladder.hpp"
#include "../common/philox.hpp"
#include "../common/polynomials.hpp"
