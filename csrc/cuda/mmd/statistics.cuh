// What the plan of mmd2 and witness needs to know of the points: the kernel that reads all of them once, and
// what follows from its sums.
#pragma once
#include "memory.cuh"

namespace fastmmd::cuda {
namespace {

constexpr int threads = 256, warps = threads / warp_size;
constexpr int lane_dims = 4;                       // dimensions of a lane
constexpr int chunk_dims = warp_size * lane_dims;  // of a block; reaches of several chunks add up

// Adds up what the warps of a block have for each of a chunk's dimensions, in order; the result is in warp 0.
DEVICE void sum_of_warps(double (&value)[lane_dims], double* scratch) {  // scratch [chunk_dims, warps]
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
    barrier();
#pragma unroll
    for (int q = 0; q < lane_dims; ++q) scratch[(q * warp_size + lane) * warps + warp] = value[q];
    barrier();
#pragma unroll
    for (int q = 0; q < lane_dims; ++q) {
        value[q] = 0;
        for (int other = 0; other < warps; ++other)
            value[q] += scratch[(q * warp_size + lane) * warps + other];
    }
}

// Where a sample's points are, how far they reach, what their masses sum to: a row for each warp in turn.
template <class T>
__global__ __launch_bounds__(threads) void statistics_kernel(const __grid_constant__ Memory memory) {
    SHARED(double, scratch, chunk_dims* warps);
    SHARED(double, farthest_of, warps);
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size, dim = memory.dim;
    const int side = blockIdx.x % 2;
    const int64_t b = blockIdx.x / 2;
    const Sample& sample = memory.samples[side];
    const Statistics& of = memory.statistics[side];
    const int split = blockIdx.z, chunk = blockIdx.y;
    if (split >= of.parts || sample.count == 0) return;
    const Segment segment = segment_of(sample, b);
    const int64_t n = segment.count;
    const int64_t per_split = ceil_divide(ceil_divide(n, statistics_rows), of.parts) * statistics_rows;
    const int64_t first = split * per_split, last = first + per_split < n ? first + per_split : n;
    const T* const points = (const T*)sample.points + segment.first * dim;  // [n, dim]
    const T* const mass = sample.weights ? (const T*)sample.weights + segment.first : nullptr;
    int d[lane_dims];
    double middle[lane_dims] = {}, total[lane_dims] = {}, moment[lane_dims] = {};
#pragma unroll
    for (int q = 0; q < lane_dims; ++q) d[q] = chunk * chunk_dims + q * warp_size + lane;
    const int64_t leading = n < leaders ? n : leaders;
    for (int64_t i = warp; i < leading; i += warps)
#pragma unroll
        for (int q = 0; q < lane_dims; ++q)
            if (d[q] < dim) middle[q] += points[i * dim + d[q]];
    sum_of_warps(middle, scratch);
#pragma unroll
    for (int q = 0; q < lane_dims; ++q) middle[q] /= leading;
    double farthest = 0, all_mass = 0, squares = 0;
    for (int64_t i = first + warp; i < last; i += warps) {
        const double w = mass ? (double)mass[i] : 1.0;
        double norm = 0;
#pragma unroll
        for (int q = 0; q < lane_dims; ++q) {
            if (d[q] >= dim) continue;
            const double difference = points[i * dim + d[q]] - middle[q];
            norm += difference * difference;
            total[q] += difference;
            moment[q] += w * difference;
        }
        farthest = maximum(farthest, warp_sum(norm));
        all_mass += w;
        squares += w * w;
    }
    sum_of_warps(total, scratch);
    sum_of_warps(moment, scratch);
    const int64_t part = b * of.parts + split;
    if (warp == 0)
#pragma unroll
        for (int q = 0; q < lane_dims; ++q) {
            if (d[q] >= dim) continue;
            of.sums[part * 2 * dim + d[q]] = total[q];
            of.sums[(part * 2 + 1) * dim + d[q]] = moment[q];
            if (split == 0) of.center[b * dim + d[q]] = middle[q];
        }
    // The other numbers are the same in all lanes; the first lane of a warp stands for it.
    barrier();
    if (lane == 0) {
        farthest_of[warp] = farthest;
        scratch[warp] = all_mass;
        scratch[warps + warp] = squares;
    }
    barrier();
    if (threadIdx.x != 0) return;
    for (int other = 1; other < warps; ++other) {
        farthest = maximum(farthest, farthest_of[other]);
        all_mass += scratch[other];
        squares += scratch[warps + other];
    }
    of.reach[part * of.chunks + chunk] = farthest;
    if (chunk == 0) of.masses[2 * part] = all_mass, of.masses[2 * part + 1] = squares;
}

// The mean of a sample from its center, in dimension d.
DEVICE double mean_shift(const Statistics& statistics, int64_t b, int dim, int d, int which) {
    double sum = 0;
    for (int split = 0; split < statistics.parts; ++split)
        sum += statistics.sums[((b * statistics.parts + split) * 2 + which) * dim + d];
    return sum;
}

// A bound of all distances to the mean, which is `shift`, squared, from the center.
DEVICE double reached(const Statistics& statistics, int64_t b, double shift) {
    double farthest = 0;
    for (int chunk = 0; chunk < statistics.chunks; ++chunk) {
        double most = 0;
        for (int split = 0; split < statistics.parts; ++split)
            most =
                maximum(most, statistics.reach[(b * statistics.parts + split) * statistics.chunks + chunk]);
        farthest += most;
    }
    return sqrt(farthest) + sqrt(shift);
}

}  // namespace
}  // namespace fastmmd::cuda
