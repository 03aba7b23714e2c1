// One tile of mmd2's matrix products: the kernels on it and the sums over its columns. A warp has a row.
#include "kernels.cuh"

namespace fastmmd::cuda {
namespace {

constexpr int threads = 256, warps = threads / warp_size, together = 4;  // pairs of a lane at a time

template <class T>
__global__ __launch_bounds__(threads, 2) void tile_kernel(const __grid_constant__ Memory memory,
                                                          const __grid_constant__ Term term,
                                                          const __grid_constant__ Tile tile) {
    const int lane = threadIdx.x % warp_size;
    const int64_t row = (int64_t)blockIdx.x * warps + threadIdx.x / warp_size, b = tile.member;
    if (row >= tile.rows) return;
    const Sample &own = memory.samples[term.rows], &other = memory.samples[term.columns];
    const int64_t i = tile.row + row;
    T* const products = (T*)tile.products + row * tile.stride;
    const T* const norms = (const T*)tile.column_norms;
    const T norm = ((const T*)tile.row_norms)[row];
    const T* const mass = other.weights ? (const T*)other.weights + b * other.count + tile.column : nullptr;
    const bool same = term.rows == term.columns;
    const Evaluator<T> evaluator(memory, b);
    NoRungs none;
    WarpRungs<T, together> rungs;  // of the row
    T row_share = 0;
    if (term.rungs) {
        rungs.sums = term.rungs + (b * own.count + i) * 2 * memory.count;
        rungs.count = memory.count;
        row_share = (T)row_weight<T>(memory, b, term.rows, i);
    }
    Sum<T> value, slopes;
    for (int64_t first = 0; first < tile.columns; first += warp_size * together) {
        T r[together], w[together], total[together], slope[together];
        int64_t j[together];
#pragma unroll
        for (int a = 0; a < together; ++a) {
            j[a] = first + a * warp_size + lane;
            const bool there = j[a] < tile.columns;
            const int64_t column = tile.column + j[a];
            w[a] = there ? (mass ? mass[j[a]] : T(1)) : T(0);
            if (term.half) w[a] *= i < column ? T(2) : i == column ? T(1) : T(0);
            r[a] = there ? (norm + norms[j[a]]) - 2 * products[j[a]] : T(0);
            // A point is nowhere away from itself, where products round.
            if (r[a] < 0 || (same && i == column)) r[a] = 0;
            rungs.shares[a] = w[a] * row_share;
            rungs.finite[a] = minimum(r[a], T(1e30));  // inf * 0 at far pairs is 0
        }
        if (term.rungs)
            evaluate(evaluator, r, total, slope, rungs);
        else
            evaluate(evaluator, r, total, slope, none);
        T values = 0, sums = 0;
#pragma unroll
        for (int a = 0; a < together; ++a) {
            const T c = same && i == tile.column + j[a] ? T(0) : w[a] * slope[a];
            values += w[a] * total[a];
            sums += c;
            if (tile.slope_sums && j[a] < tile.stride) products[j[a]] = c;
        }
        value.add(values);
        slopes.add(sums);
    }
    const double all_values = warp_sum(value.total()), all_slopes = warp_sum(slopes.total());
    if (lane != 0) return;
    term.values[b * own.count + i] += all_values;
    if (tile.slope_sums) tile.slope_sums[row] += all_slopes;
}

}  // namespace

Status mmd_tile(const Mmd& call, const Tile& tile, void* workspace, void* stream) {
    Workspace space(workspace);
    const Memory memory = memory_of(call, space);
    const Term term = terms_of(call, space).terms[tile.term];
    const dim3 grid((unsigned)ceil_divide(tile.rows, warps));
    return launch("tile_kernel", call.is_double ? tile_kernel<double> : tile_kernel<float>, grid, threads,
                  stream, memory, term, tile);
}

}  // namespace fastmmd::cuda
