// What the Parzen kernels share: squared distances of one row, held by a warp, to a chunk of columns, by
// differences or from products, and exponentials for all sigmas.
//
// Each lane holds `pairs` of a row's distances in registers, four neighboring columns at a time:
// column(first, lane, k). From few chunks per row follow few minima, and sums over lanes are rare.
#pragma once
#include "../math.cuh"

namespace fastmmd::cuda {
namespace {

constexpr int warps = 8, block_threads = warps * warp_size;  // rows of a block, one for each warp
constexpr int group = 8;                                     // pairs that are near or far together
template <class T> constexpr int pairs = sizeof(T) == 4 ? 32 : 16;
template <class T> constexpr int chunk = pairs<T> * warp_size;

DEVICE int lane_of() { return threadIdx.x % warp_size; }
DEVICE int64_t row_of() { return (int64_t)blockIdx.x * warps + threadIdx.x / warp_size; }

template <class T> struct Format;
template <> struct Format<float> {
    static constexpr float largest = 3.402823466e38f, unit = 0x1p-24f;
    static constexpr float negligible =
        64;  // terms of 2^-64 of the largest are none: no number of them counts
};
template <> struct Format<double> {
    static constexpr double largest = 1.7976931348623157e308, unit = 0x1p-53, negligible = 80;
};

template <class T> struct alignas(16) Quad {
    T x[4];
};

// The sigmas in the order of the ladder (common/ladder.hpp).
template <class T> struct Rungs {
    int count;
    int index[most_listed];   // of the sigma
    int powers[most_listed];  // rungs after this one whose exponentials are fourth powers of those before
    T rate[most_listed];      // log2(e) / (2 sigma^2)
};

// Fourth powers in a row that start from one exponential; each makes relative errors four times as large.
constexpr int most_powers = 2;

template <class T> Rungs<T> rungs_of(const List& sigmas) {
    Rungs<T> rungs;
    bool follows[most_listed];
    plan_ladder(sigmas.values, rungs.count = sigmas.count, rungs.index, follows);
    for (int s = 0, first = 0; s < rungs.count; ++s) {
        const double sigma = sigmas.values[rungs.index[s]];
        rungs.rate[s] = (T)(0.5 * 1.4426950408889634 / (sigma * sigma));
        rungs.powers[s] = 0;
        if (follows[s] && rungs.powers[first] < most_powers)
            ++rungs.powers[first];
        else
            first = s;
    }
    return rungs;
}

DEVICE int64_t column(int64_t first, int lane, int k) {
    return first + k / 4 * (4 * warp_size) + lane * 4 + k % 4;
}

// 2^(-excess rate): three of four pairs by the special-function unit and one by multiply-adds, which take as
// long.
DEVICE float exponential(float excess, float rate, int k) {
    const float x = -excess * rate;
    if (k % 4 != 3) return exp2_approximate(x);
    const float y = maximum(x, -126.0f), rounded = y + Number<float>::rounder;
    return power_of_rounded(rounded) * exp2_polynomial<float>(y - (rounded - Number<float>::rounder));
}
DEVICE double exponential(double excess, double rate, int = 0) {
    const double y = maximum(-excess * rate, -1022.0), rounded = y + Number<double>::rounder;
    return power_of_rounded(rounded) * exp2_polynomial<double>(y - (rounded - Number<double>::rounder));
}

// How much smaller terms become where the minimum falls.
template <class T> DEVICE T fall(T before, T nearest, T rate) {
    return before == nearest ? T(1) : exponential(before - nearest, rate, 3);
}

// Of the pairs of one group.
template <class T>
DEVICE void exponentials(const T* excess,  // [group]
                         T rate,
                         T* k) {  // [group]
#pragma unroll
    for (int u = 0; u < group; ++u) k[u] = exponential(excess[u], rate, u);
}
template <class T> DEVICE void fourth_powers(T* k) {  // [group]
#pragma unroll
    for (int u = 0; u < group; ++u) {
        const T square = k[u] * k[u];
        k[u] = square * square;
    }
}

// The least of every group, NaN where there is one, and of the whole chunk in all lanes.
template <class T>
DEVICE T least_of(const T* r,  // [pairs]
                  T* least) {  // [pairs / group]
#pragma unroll
    for (int g = 0; g < pairs<T> / group; ++g) {
        least[g] = r[g * group];
#pragma unroll
        for (int u = 1; u < group; ++u) least[g] = minimum(least[g], r[g * group + u]);
    }
    T here = least[0];
#pragma unroll
    for (int g = 1; g < pairs<T> / group; ++g) here = minimum(here, least[g]);
#pragma unroll
    for (int mask = warp_size / 2; mask > 0; mask /= 2) here = minimum(here, shuffle_xor(here, mask));
    return here;
}

// The lesser of a minimum and a chunk's; passes over NaN, which reaches the sums.
template <class T> DEVICE T lesser(T before, T here) {
    const T positive = here < 0 ? T(0) : here;  // products may round below 0
    return positive < before ? positive : before;
}

// Columns by differences: few dimensions.
template <class T> struct Coordinates {
    const T* rows;     // [n, dim]
    const T* columns;  // [dim, stride]: staged, NaN in place of infinities
    int64_t m;         // columns in use
    int64_t stride;    // a multiple of the chunk
    int dim;

    // r of row i, inf in the padding; least and result as least_of.
    DEVICE T distances(int64_t i, int64_t first, int lane, T,
                       T* r,              // [pairs]
                       T* least) const {  // [pairs / group]
#pragma unroll
        for (int k = 0; k < pairs<T>; ++k) r[k] = 0;
        const T* at = columns + column(first, lane, 0);
        for (int d = 0; d < dim; ++d, at += stride) {
            const T p = checked(rows[i * dim + d]);
#pragma unroll
            for (int k = 0; k < pairs<T>; k += 4) {
                const Quad<T> q = *(const Quad<T>*)(at + k * warp_size);
#pragma unroll
                for (int u = 0; u < 4; ++u) r[k + u] += (q.x[u] - p) * (q.x[u] - p);
            }
        }
#pragma unroll
        for (int k = 0; k < pairs<T>; ++k) r[k] = minimum(r[k], Format<T>::largest);
        if (first + chunk<T> > m)
#pragma unroll
            for (int k = 0; k < pairs<T>; ++k)
                if (column(first, lane, k) >= m) r[k] = INFINITY;
        return least_of(r, least);
    }
};

// Columns of a tile of products. Where |p|^2 + |q|^2 - 2 p.q loses what matters, by differences: `limit` is
// the sum of squared norms from which the rounding of products moves the logarithm of the largest exponential
// too far, and pairs that are farther than the nearest by `margin` of that sum add nothing to the sums of the
// sigmas that would see it. Distances that are of the size of the norms are as precise as differences.
template <class T> struct Products {
    const T* products;      // [n, stride]
    const T* rows;          // [n, dim]
    const T* columns;       // [m, dim]
    const T* row_norms;     // [n]; NaN for points with infinities
    const T* column_norms;  // [stride]
    int64_t m;
    int64_t stride;  // a multiple of 4
    int dim;
    T limit, margin;

    // As above. `nearest`: the minimum so far.
    DEVICE T distances(int64_t i, int64_t first, int lane, T nearest,
                       T* r,              // [pairs]
                       T* least) const {  // [pairs / group]
        const T norm = row_norms[i];
        const T* at = products + i * stride;
#pragma unroll
        for (int k = 0; k < pairs<T>; k += 4) {
            const int64_t j = column(first, lane, k);
            Quad<T> product = {{0, 0, 0, 0}}, other = {{INFINITY, INFINITY, INFINITY, INFINITY}};
            if (j < m) {
                product = *(const Quad<T>*)(at + j);
                other = *(const Quad<T>*)(column_norms + j);
            }
#pragma unroll
            for (int u = 0; u < 4; ++u) r[k + u] = (norm + other.x[u]) - 2 * product.x[u];
        }
        if (first + chunk<T> > m)
#pragma unroll
            for (int k = 0; k < pairs<T>; ++k)
                if (column(first, lane, k) >= m) r[k] = INFINITY;
        const T here = least_of(r, least), bound = lesser(nearest, here);
        // |q|^2 <= 2 |p|^2 + 2 r tells without the columns' norms whether any pair may be wanted.
        const T farthest = (bound + 3 * margin * norm) / (1 - 2 * margin);
        if (here > farthest || 3 * norm + 2 * farthest <= limit) return here;
        refine(i, first, lane, bound, r);
        return least_of(r, least);
    }

  private:
    DEVICE void refine(int64_t i, int64_t first, int lane, T bound, T* r) const {  // [pairs]
        uint32_t wanted = 0;                                                       // pairs of this lane
#pragma unroll
        for (int k = 0; k < pairs<T>; ++k) {
            const int64_t j = column(first, lane, k);
            const T norms = j < m ? row_norms[i] + column_norms[j] : T(0);
            const bool precise = r[k] >= norms * T(0.5) || r[k] >= bound + margin * norms;  // false for NaN
            wanted |= (uint32_t)(norms > limit && !precise) << k;
        }
        while (true) {
            constexpr int none = 1 << 30;
            // The number of the lowest bit: each mask has the numbers with one binary digit set.
            const uint32_t lowest = wanted & (0 - wanted);
            int next = lane * 32 + ((lowest & 0xAAAAAAAA) != 0) + 2 * ((lowest & 0xCCCCCCCC) != 0) +
                       4 * ((lowest & 0xF0F0F0F0) != 0) + 8 * ((lowest & 0xFF00FF00) != 0) +
                       16 * ((lowest & 0xFFFF0000) != 0);
            if (wanted == 0) next = none;
#pragma unroll
            for (int mask = warp_size / 2; mask > 0; mask /= 2) {
                const int other = shuffle_xor(next, mask);
                next = other < next ? other : next;
            }
            if (next == none) return;
            const int owner = next / 32, which = next % 32;
            const T exact = difference(i, column(first, owner, which), lane);
            if (lane != owner) continue;
            wanted &= wanted - 1;
#pragma unroll
            for (int k = 0; k < pairs<T>; ++k)
                if (k == which) r[k] = exact;
        }
    }

    DEVICE T difference(int64_t i, int64_t j, int lane) const {
        T sum = 0;
        for (int d = lane; d < dim; d += warp_size) {
            const T difference = rows[i * dim + d] - columns[j * dim + d];
            sum += difference * difference;
        }
        return minimum(warp_sum(sum), Format<T>::largest);
    }
};

}  // namespace
}  // namespace fastmmd::cuda
