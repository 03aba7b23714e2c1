// The sums over pairs of mmd2 and witness in few dimensions, without sums per rung: the kernel that most
// training meets.
#pragma once
#include "kernels.cuh"

namespace fastmmd::cuda {
namespace {

// What a kernel does: blockIdx.x is a member of the batch and a block of rows of a term, blockIdx.y a split.
struct Place {
    int term, split;
    int64_t b, block;       // of the member
    int64_t program;        // block among those of all members
    Segment rows, columns;  // of the member
    int64_t row;            // of values: the first of the block
    int64_t tile, behind;   // of columns: the first one of the split, and the one behind its last

    // Of a split beyond a term's, or of a block that a member does not need, nothing.
    DEVICE bool nothing(const Term& of) const { return split >= of.parts || block * of.block >= rows.count; }
};

DEVICE Place place_of(const Memory& memory, const Terms& terms) {
    Place place = {0, (int)blockIdx.y, 0, 0, blockIdx.x, {}, {}, 0, 0, 0};
    while (place.program >= terms.terms[place.term].blocks) place.program -= terms.terms[place.term++].blocks;
    const Term& term = terms.terms[place.term];
    const Sample &rows = memory.samples[term.rows], &columns = memory.samples[term.columns];
    const BlockOf block = block_of(rows, memory.batch, place.program, term.block);
    place.b = block.b, place.block = block.block;
    place.rows = segment_of(rows, place.b), place.columns = segment_of(columns, place.b);
    place.row = place.split * points_of(rows, memory.batch) + place.rows.first + place.block * term.block;
    const int64_t tiles = ceil_divide(place.columns.count, tile_size), each = ceil_divide(tiles, term.parts);
    place.tile = place.split * each;
    place.behind = place.tile + each < tiles ? place.tile + each : tiles;
    return place;
}

// How a tile of small_kernel is evaluated: with how many far rungs beside a series, or 0: in general; whether
// it crosses the diagonal where pairs on its two sides count differently.
template <int FAR, bool CROSSING> struct Way {
    static constexpr int far = FAR;
    static constexpr bool crossing = CROSSING;
};

// Numbers of a column in shared memory: coordinates, mass, nothing.
template <int D> constexpr int column_width = (D + 1 + 3) / 4 * 4;

// A thread's rows, the last row of all in place of those beyond.
template <int R, int D>
DEVICE void load_rows(const float* rows, int64_t first, int64_t n, float (&p)[R][D]) {  // rows [n, D]
#pragma unroll
    for (int a = 0; a < R; ++a) {
        const int64_t i = first + a * small_threads < n ? first + a * small_threads : n - 1;
#pragma unroll
        for (int d = 0; d < D; ++d) p[a][d] = checked(rows[i * D + d]);
    }
}

// Differences and squared distances of a thread's rows to a column.
template <int R, int D, bool KEEP>
DEVICE void distances(const float (&p)[R][D], const float* q, float (&difference)[R][D], float (&r)[R]) {
#pragma unroll
    for (int a = 0; a < R; ++a) {
        r[a] = 0;
#pragma unroll
        for (int d = 0; d < D; ++d) {
            difference[a][d] = p[a][d] - q[d];
            if (KEEP) keep(difference[a][d]);
            r[a] += difference[a][d] * difference[a][d];
        }
    }
}

// The columns j0 ... in shared memory. The padding has no mass, and repeats the last column, so that it is
// not farther away than any point, for which a series would not hold.
template <int D>
DEVICE void stage_columns(const float* columns,  // [m, D]
                          const float* mass,     // [m]; null: ones
                          int64_t j0, int64_t m, float times,
                          float* numbers) {  // [tile_size, column_width<D>]
    constexpr int width = column_width<D>;
    for (int e = threadIdx.x; e < tile_size * D; e += small_threads) {
        const int j = e / D, d = e % D;
        const int64_t there = j0 + j < m ? j0 + j : m - 1;
        numbers[j * width + d] = checked(columns[there * D + d]);
    }
    if (threadIdx.x < tile_size) {
        const int64_t j = j0 + threadIdx.x;
        numbers[threadIdx.x * width + D] = j < m ? times * (mass ? mass[j] : 1.0f) : 0.0f;
    }
}

// One pass for few dimensions. A thread has rows of its own, their coordinates and sums in registers, and
// walks over tiles of columns, which lie in shared memory and are read by all threads at once: nothing is
// exchanged.
template <int D, bool GRADIENT>
__global__ __launch_bounds__(small_threads,
                             GRADIENT ? 3 : 4) void small_kernel(const __grid_constant__ Memory memory,
                                                                 const __grid_constant__ Terms terms) {
    constexpr int R = small_rows(D, GRADIENT), width = column_width<D>;
    SHARED(float4, tile, tile_size * width / 4);
    const Place place = place_of(memory, terms);
    const Term& term = terms.terms[place.term];
    if (place.nothing(term)) return;
    const Sample &own = memory.samples[term.rows], &other = memory.samples[term.columns];
    const int64_t n = place.rows.count, m = place.columns.count;
    const float* const rows = (const float*)own.points + place.rows.first * D;          // [n, D]
    const float* const columns = (const float*)other.points + place.columns.first * D;  // [m, D]
    const float* const mass =
        other.weights ? (const float*)other.weights + place.columns.first : nullptr;  // [m]
    const Evaluator<float> evaluator(memory, place.b);
    NoRungs none;

    const int64_t first_row = place.block * small_threads * R, i0 = first_row + threadIdx.x;
    float p[R][D], lane_values[R], lane_slopes[R][D];
    Sum<float> values[R], slopes[R][D];
    load_rows(rows, i0, n, p);

    const bool fast = evaluator.fast();
    // Terms added in float before they go on in Sum: few, as mmd2 and its gradient are what is left when
    // these sums cancel; fewer where no series takes care of the near rungs.
    const int few = fast ? 16 : 4;
    auto add_columns = [&](auto way, int64_t j0, int first) {
        const FarRungs<way.far + (way.far == 0)> far(evaluator);
#pragma unroll 2
        for (int j = first; j < first + few; ++j) {
            float q[width];
#pragma unroll
            for (int k = 0; k < width / 4; ++k) {
                const float4 four = tile[j * (width / 4) + k];
                q[4 * k] = four.x, q[4 * k + 1] = four.y, q[4 * k + 2] = four.z, q[4 * k + 3] = four.w;
            }
            float r[R], total[R], slope[R], difference[R][D];
            distances<R, D, GRADIENT>(p, q, difference, r);
            if constexpr (way.far > 0)
                evaluate_folded(evaluator, far, r, total, slope);
            else
                evaluate(evaluator, r, total, slope, none);
#pragma unroll
            for (int a = 0; a < R; ++a) {
                float w = q[D];
                if (way.crossing) {
                    const int64_t i = i0 + a * small_threads;
                    w *= i < j0 + j ? 2 : i == j0 + j ? 1 : 0;
                }
                lane_values[a] += w * total[a];
                const float c = w * slope[a];
#pragma unroll
                for (int d = 0; GRADIENT && d < D; ++d) lane_slopes[a][d] += c * difference[a][d];
            }
        }
    };

    const int64_t start =
        term.half && place.tile < first_row / tile_size ? first_row / tile_size : place.tile;
    for (int64_t at = start; at < place.behind; ++at) {
        const int64_t j0 = at * tile_size;
        const bool crossing = term.half && j0 < first_row + small_threads * R;  // the diagonal
        barrier();
        stage_columns<D>(columns, mass, j0, m, term.half && !crossing ? 2 : 1, (float*)tile);
        barrier();
#pragma unroll 1
        for (int first = 0; first < tile_size; first += few) {
#pragma unroll
            for (int a = 0; a < R; ++a) {
                lane_values[a] = 0;
#pragma unroll
                for (int d = 0; GRADIENT && d < D; ++d) lane_slopes[a][d] = 0;
            }
            if (crossing && !GRADIENT)  // a sum of half the pairs has no gradient
                add_columns(Way<0, true>(), j0, first);
            else if (!fast)
                add_columns(Way<0, false>(), j0, first);
            else if (evaluator.far <= 1)
                add_columns(Way<1, false>(), j0, first);
            else
                add_columns(Way<most_far, false>(), j0, first);
#pragma unroll
            for (int a = 0; a < R; ++a) {
                values[a].add(lane_values[a]);
#pragma unroll
                for (int d = 0; GRADIENT && d < D; ++d) slopes[a][d].add(lane_slopes[a][d]);
            }
        }
    }
#pragma unroll
    for (int a = 0; a < R; ++a) {
        const int64_t i = i0 + a * small_threads;
        if (i >= n) continue;
        const int64_t row = place.row + threadIdx.x + a * small_threads;
        term.values[row] = values[a].total();
#pragma unroll
        for (int d = 0; GRADIENT && d < D; ++d) term.slopes[row * D + d] = slopes[a][d].total();
    }
}

}  // namespace
}  // namespace fastmmd::cuda
