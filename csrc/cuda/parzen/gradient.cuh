// Parzen windows: the kernels of the gradients.
#pragma once
#include "pairs.cuh"

namespace fastmmd::cuda {
namespace {

// share = gradient / (sums sigma^2) of one rung and point.
template <class T> DEVICE T share_of(T grad, double sum, T rate) {
    return (T)(grad / sum * (2 * 0.6931471805599453 * rate));
}

// c of the pairs of one group.
template <class T>
DEVICE void coefficients(const Rungs<T>& rungs,
                         const T* excess,  // [group]
                         T least,
                         const T* shares,  // [S, share_stride]: one for the row, or from each column on
                         int64_t share_stride, bool per_column,
                         T* c) {  // [group]
    T k[group];
#pragma unroll
    for (int u = 0; u < group; ++u) c[u] = 0;
    for (int s = 0; s < rungs.count; s += 1 + rungs.powers[s]) {
        const T rate = rungs.rate[s];
        if (least * rate > Format<T>::negligible) continue;
        exponentials(excess, rate, k);
#pragma unroll 1
        for (int power = 0; power <= rungs.powers[s]; ++power) {
            const T* const at = shares + (s + power) * share_stride;
            if (power) fourth_powers(k);
            if (per_column) {
#pragma unroll
                for (int u = 0; u < group; u += 4) {
                    const Quad<T> four = *(const Quad<T>*)(at + u * warp_size);
#pragma unroll
                    for (int v = 0; v < 4; ++v) c[u + v] += four.x[v] * k[u + v];
                }
            } else {
                const T share = *at;
#pragma unroll
                for (int u = 0; u < group; ++u) c[u] += share * k[u];
            }
        }
    }
}

// The shares of the block's rows, for its warps; all threads take part.
template <class T>
DEVICE void stage_shares(const Rungs<T>& rungs,
                         const T* grad,       // [S, state_stride]
                         const double* sums,  // [S, state_stride]
                         int64_t n, int64_t state_stride,
                         T* shares) {  // [warps, most_listed], shared
    const int64_t i = row_of();
    if (i < n)
#pragma unroll 1
        for (int s = lane_of(); s < rungs.count; s += warp_size) {
            const int64_t at = rungs.index[s] * state_stride + i;
            shares[threadIdx.x / warp_size * most_listed + s] = share_of(grad[at], sums[at], rungs.rate[s]);
        }
    barrier();
}

// Coefficients in place of the products of a tile.
template <class T>
__global__ void __launch_bounds__(block_threads, 2)
    coefficients_kernel(const __grid_constant__ Products<T> source, const __grid_constant__ Rungs<T> rungs,
                        const T* minimum,    // [n]
                        const T* grad,       // [S, state_stride]
                        const double* sums,  // [S, state_stride]
                        int64_t n, int64_t state_stride, int64_t split_chunks) {
    SHARED(T, shares, warps * most_listed);
    stage_shares(rungs, grad, sums, n, state_stride, shares);
    const int lane = lane_of();
    const int64_t i = row_of();
    if (i >= n) return;
    const T* const own = shares + threadIdx.x / warp_size * most_listed;
    const T nearest = minimum[i];
    T* const out = (T*)source.products + i * source.stride;
    const int64_t begin = blockIdx.y * split_chunks * chunk<T>, end = begin + split_chunks * chunk<T>;
    for (int64_t first = begin; first < end && first < source.m; first += chunk<T>) {
        T r[pairs<T>], least[pairs<T> / group];
        source.distances(i, first, lane, nearest, r, least);
#pragma unroll
        for (int g = 0; g < pairs<T> / group; ++g) {
            T c[group];
#pragma unroll
            for (int u = 0; u < group; ++u) r[g * group + u] -= nearest;
            coefficients(rungs, r + g * group, least[g] - nearest, own, 1, false, c);
#pragma unroll
            for (int u = 0; u < group; u += 4) {
                const int64_t j = column(first, lane, g * group + u);
                if (j < source.m) *(Quad<T>*)(out + j) = {{c[u], c[u + 1], c[u + 2], c[u + 3]}};
            }
        }
    }
}

// Adds sum_j c_ij (q_j - p_i) over a tile to the gradient of row i, from the matrix product c q. The pairs
// with a point so far out that this loses digits, which `far` says and the product leaves out, by
// differences.
template <class T>
__global__ void __launch_bounds__(block_threads)
    gather_kernel(const T* c,             // [n, stride]
                  const T* products,      // [n, dim]: c q, q without the far ones
                  const T* rows,          // [n, dim]
                  const T* columns,       // [m, dim]
                  const T* row_norms,     // [n]
                  const T* column_norms,  // [m]
                  double* gradient,       // [n, dim]
                  T far, int64_t m, int64_t stride, int dim) {
    constexpr int at_once = 1024;
    SHARED(double, scratch, warps);
    SHARED(T, weights, at_once);
    const int64_t i = blockIdx.x;
    const bool row_far = row_norms[i] > far;
    c += i * stride;
    double near = 0, apart = 0;
    for (int64_t j = threadIdx.x; j < m; j += block_threads) {
        const T value = c[j];
        if (row_far || column_norms[j] > far)
            apart += value != 0;
        else
            near += value;
    }
    near = block_sum<block_threads>(near, scratch);
    apart = block_sum<block_threads>(apart, scratch);
    for (int d = threadIdx.x; d < dim; d += block_threads) {
        const int64_t at = i * dim + d;
        gradient[at] += (row_far ? 0 : (double)products[at]) - near * rows[at];
    }
    if (apart == 0) return;
    for (int64_t first = 0; first < m; first += at_once) {
        const int count = m - first < at_once ? (int)(m - first) : at_once;
        barrier();  // what was read of the weights before
        for (int j = threadIdx.x; j < count; j += block_threads)
            weights[j] = row_far || column_norms[first + j] > far ? c[first + j] : T(0);
        barrier();
        for (int d = threadIdx.x; d < dim; d += block_threads) {
            const T p = rows[i * dim + d];
            double sum = 0;
            for (int j = 0; j < count; ++j)
                if (weights[j] != 0) sum += (double)weights[j] * (columns[(first + j) * dim + d] - p);
            gradient[i * dim + d] += sum;
        }
    }
}

// Minima and shares of points that are columns; the padding has no share.
template <class T>
__global__ void __launch_bounds__(block_threads) shares_kernel(const __grid_constant__ Rungs<T> rungs,
                                                               const T* minimum,    // [m]
                                                               const T* grad,       // [S, m]
                                                               const double* sums,  // [S, m]
                                                               T* minima,           // [stride]
                                                               T* shares,           // [S, stride]
                                                               int64_t m, int64_t stride) {
    const int64_t j = (int64_t)blockIdx.x * block_threads + threadIdx.x;
    if (j >= stride) return;
    minima[j] = j < m ? minimum[j] : T(0);
    for (int s = 0; s < rungs.count; ++s) {
        const int64_t at = rungs.index[s] * m + j;
        shares[s * stride + j] = j < m ? share_of(grad[at], sums[at], rungs.rate[s]) : T(0);
    }
}

// sum_j c_ij (q_j - p_i) over the columns of a split, by differences.
template <class T, bool ROWS_ARE_POINTS>
__global__ void __launch_bounds__(block_threads)
    gradient_kernel(const __grid_constant__ Coordinates<T> source, const __grid_constant__ Rungs<T> rungs,
                    const T* minimum,     // [n], or [stride] where columns are points
                    const T* grad,        // [S, n]; unread where columns are points
                    const double* sums,   // [S, n]; unread where columns are points
                    const T* all_shares,  // [S, stride]; unread where rows are points
                    double* gradient,     // [splits, n, dim]
                    int64_t n, int64_t split_chunks) {
    SHARED(T, shares, warps * most_listed);
    if (ROWS_ARE_POINTS) stage_shares(rungs, grad, sums, n, n, shares);
    const int lane = lane_of();
    const int64_t i = row_of();
    if (i >= n) return;
    const int64_t begin = blockIdx.y * split_chunks * chunk<T>, end = begin + split_chunks * chunk<T>;
    double total = 0;  // of the dimension `lane`
    for (int64_t first = begin; first < end && first < source.m; first += chunk<T>) {
        T r[pairs<T>], least[pairs<T> / group];
        source.distances(i, first, lane, 0, r, least);
#pragma unroll
        for (int k = 0; k < pairs<T>; k += 4) {
            if (ROWS_ARE_POINTS) {
                const T nearest = minimum[i];
#pragma unroll
                for (int u = 0; u < 4; ++u) r[k + u] -= nearest;
            } else {
                const Quad<T> nearest = *(const Quad<T>*)(minimum + column(first, lane, k));
#pragma unroll
                for (int u = 0; u < 4; ++u) r[k + u] -= nearest.x[u];
            }
        }
        least_of(r, least);
#pragma unroll
        for (int g = 0; g < pairs<T> / group; ++g) {
            T c[group];
            if (ROWS_ARE_POINTS)
                coefficients(rungs, r + g * group, least[g], shares + threadIdx.x / warp_size * most_listed,
                             1, false, c);
            else
                coefficients(rungs, r + g * group, least[g], all_shares + column(first, lane, g * group),
                             source.stride, true, c);
#pragma unroll
            for (int u = 0; u < group; ++u) r[g * group + u] = c[u];
        }
        const T* at = source.columns + column(first, lane, 0);
        for (int d = 0; d < source.dim; ++d, at += source.stride) {
            const T p = checked(source.rows[i * source.dim + d]);
            T sum = 0;
#pragma unroll
            for (int k = 0; k < pairs<T>; k += 4) {
                const Quad<T> q = *(const Quad<T>*)(at + k * warp_size);
#pragma unroll
                for (int u = 0; u < 4; ++u) sum += r[k + u] * (q.x[u] - p);
            }
            sum = warp_sum(sum);
            if (lane == d) total += sum;
        }
    }
    if (lane < source.dim) gradient[(blockIdx.y * n + i) * source.dim + lane] = total;
}

template <class T>
__global__ void __launch_bounds__(block_threads) add_splits_kernel(const double* parts,  // [count, size]
                                                                   T* sums,              // [size]
                                                                   int64_t size, int count) {
    const int64_t at = (int64_t)blockIdx.x * block_threads + threadIdx.x;
    if (at >= size) return;
    double sum = 0;
    for (int part = 0; part < count; ++part) sum += parts[part * size + at];
    sums[at] = (T)sum;
}

}  // namespace
}  // namespace fastmmd::cuda
