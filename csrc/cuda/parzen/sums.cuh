// Parzen windows: the kernels that make the state of the points, and what comes before.
#pragma once
#include "pairs.cuh"

namespace fastmmd::cuda {
namespace {

// Squared norms; NaN for a point with an infinity, which would be far from everything and so disappear.
template <class T>
__global__ void __launch_bounds__(block_threads) norms_kernel(const T* points,  // [n, dim]
                                                              T* norms,         // [n]
                                                              int64_t n, int dim) {
    const int64_t i = row_of();
    if (i >= n) return;
    double sum = 0;
    for (int d = lane_of(); d < dim; d += warp_size) {
        const double x = checked(points[i * dim + d]);
        sum += x * x;
    }
    sum = warp_sum(sum);
    if (lane_of() == 0) norms[i] = (T)(sum > Format<T>::largest / 4 ? (double)Format<T>::largest / 4 : sum);
}

// Coordinates as columns.
template <class T>
__global__ void __launch_bounds__(block_threads) stage_kernel(const T* points,  // [n, dim]
                                                              T* columns,       // [dim, stride]
                                                              int64_t n, int64_t stride, int dim) {
    const int64_t j = (int64_t)blockIdx.x * block_threads + threadIdx.x;
    if (j >= stride) return;
    for (int d = 0; d < dim; ++d) columns[d * stride + j] = j < n ? checked(points[j * dim + d]) : T(0);
}

template <class T> DEVICE T sum_of(const T* k) {  // [group]
    return ((k[0] + k[1]) + (k[2] + k[3])) + ((k[4] + k[5]) + (k[6] + k[7]));
}

// Adds the columns of a split to the state of each row; with `fresh` to none.
template <class T, class Source>
__global__ void __launch_bounds__(block_threads, 2)
    update_kernel(const __grid_constant__ Source source, const __grid_constant__ Rungs<T> rungs,
                  T* minimum,          // [n], or [splits, n] with `fresh`
                  double* sums,        // [S, state_stride], or [splits, S, n]
                  int64_t split_sums,  // from the sums of one split to the next
                  int64_t n, int64_t state_stride, int64_t split_chunks, bool fresh) {
    SHARED(double, all_totals, warps* most_listed);
    const int lane = lane_of();
    const int64_t i = row_of(), split = blockIdx.y;
    if (i >= n) return;
    double* const totals = all_totals + threadIdx.x / warp_size * most_listed;  // the lane s % 32 has s
    minimum += split * n + i;
    sums += split * split_sums + i;
#pragma unroll 1
    for (int s = lane; s < rungs.count; s += warp_size)
        totals[s] = fresh ? 0 : sums[rungs.index[s] * state_stride];
    T nearest = fresh ? (T)INFINITY : *minimum;
    const int64_t begin = split * split_chunks * chunk<T>, end = begin + split_chunks * chunk<T>;
    for (int64_t first = begin; first < end && first < source.m; first += chunk<T>) {
        T r[pairs<T>], least[pairs<T> / group];
        T here = source.distances(i, first, lane, nearest, r, least);
        const T before = nearest;
        nearest = lesser(before, here);
        here -= nearest;
#pragma unroll
        for (int u = 0; u < pairs<T>; ++u) r[u] -= nearest;
#pragma unroll
        for (int g = 0; g < pairs<T> / group; ++g) least[g] -= nearest;
        if (nearest < before)
#pragma unroll 1
            for (int s = lane; s < rungs.count; s += warp_size)
                totals[s] *= fall(before, nearest, rungs.rate[s]);
        for (int s = 0; s < rungs.count; s += 1 + rungs.powers[s]) {
            const T rate = rungs.rate[s];
            if (here * rate > Format<T>::negligible) continue;
            T parts[1 + most_powers] = {};
#pragma unroll
            for (int g = 0; g < pairs<T> / group; ++g) {
                if (least[g] * rate > Format<T>::negligible) continue;
                T k[group];
                exponentials(r + g * group, rate, k);
                parts[0] += sum_of(k);
#pragma unroll
                for (int power = 1; power <= most_powers; ++power) {
                    if (power > rungs.powers[s]) break;
                    fourth_powers(k);
                    parts[power] += sum_of(k);
                }
            }
#pragma unroll
            for (int power = 0; power <= most_powers; ++power) {
                if (power > rungs.powers[s]) break;
                const T sum = warp_sum(parts[power]);
                if (lane == (s + power) % warp_size) totals[s + power] += sum;
            }
        }
    }
    if (lane == 0) *minimum = nearest;
#pragma unroll 1
    for (int s = lane; s < rungs.count; s += warp_size) sums[rungs.index[s] * state_stride] = totals[s];
}

template <class T>
__global__ void __launch_bounds__(block_threads) merge_kernel(const __grid_constant__ Rungs<T> rungs,
                                                              const T* minima,           // [parts, n]
                                                              const double* split_sums,  // [parts, S, n]
                                                              T* minimum,                // [n]
                                                              double* sums,              // [S, state_stride]
                                                              int64_t n, int64_t state_stride, int parts) {
    const int64_t i = (int64_t)blockIdx.x * block_threads + threadIdx.x;
    if (i >= n) return;
    const T before = minimum[i];
    T nearest = before;
    for (int part = 0; part < parts; ++part) nearest = lesser(nearest, minima[part * n + i]);
    for (int s = 0; s < rungs.count; ++s) {
        const int index = rungs.index[s];
        double total = sums[index * state_stride + i] * fall(before, nearest, rungs.rate[s]);
        for (int part = 0; part < parts; ++part)
            total += split_sums[((int64_t)part * rungs.count + index) * n + i] *
                     fall(minima[part * n + i], nearest, rungs.rate[s]);
        sums[index * state_stride + i] = total;
    }
    minimum[i] = nearest;
}

}  // namespace
}  // namespace fastmmd::cuda
