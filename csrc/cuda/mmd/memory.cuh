// Where the kernels of mmd2 and witness leave what other kernels need. The algorithm and its numerics are
// those of fastmmd/backends/triton/mmd.
#pragma once
#include "../math.cuh"
#include "operations.hpp"

namespace fastmmd::cuda {
namespace {

constexpr int leaders =
    64;  // points whose mean is a sample's center: near enough for a tight bound of distances
constexpr int series_terms = 10;  // leave out less than float rounds, at the widest reach
constexpr int most_series = 2 * series_terms + 1;

// Of the one-pass kernel for few dimensions: threads of a block and rows of a thread, whose coordinates and
// sums are in registers. Of the other one: pairs of a tile in each direction.
constexpr int small_threads = 128, small_dims = FASTMMD_CUDA_DIMS, tile_size = 64;
FASTMMD_ANYWHERE constexpr int small_rows(int dim, bool gradient) {
    return dim <= 8 ? (gradient ? 2 : 4) : gradient ? 1 : 2;
}
constexpr int finish_threads = 256;
constexpr int64_t statistics_rows = 64;  // of a block of statistics_kernel, at least

// The points of a member of the batch.
struct Segment {
    int64_t first, count;
};
DEVICE Segment segment_of(const Sample& sample, int64_t b) {
    if (!sample.offsets) return {b * sample.count, sample.count};
    return {sample.offsets[b], sample.offsets[b + 1] - sample.offsets[b]};
}

// Blocks that do `size` numbers each, `width` for a point, of all members, and the first of member b. Sizes
// of members are unknown on the host: with offsets they have as many as they need, or one more.
FASTMMD_ANYWHERE inline int64_t blocks_of(const Sample& sample, int64_t batch, int64_t size,
                                          int64_t width = 1) {
    if (!sample.offsets) return batch * ceil_divide(sample.count * width, size);
    return sample.count * width / size + batch;
}
DEVICE int64_t first_block(const Sample& sample, int64_t b, int64_t size, int64_t width = 1) {
    if (!sample.offsets) return b * ceil_divide(sample.count * width, size);
    return sample.offsets[b] * width / size + b;
}

// The member of a block, and which of its blocks it is.
struct BlockOf {
    int64_t b, block;
};
DEVICE BlockOf block_of(const Sample& sample, int64_t batch, int64_t block, int64_t size, int64_t width = 1) {
    if (!sample.offsets) {
        const int64_t each = ceil_divide(sample.count * width, size);
        return {block / each, block % each};
    }
    int64_t b = 0;
    for (int64_t beyond = batch; b + 1 < beyond;) {
        const int64_t middle = (b + beyond) / 2;
        if (first_block(sample, middle, size, width) <= block)
            b = middle;
        else
            beyond = middle;
    }
    return {b, block - first_block(sample, b, size, width)};
}

FASTMMD_ANYWHERE inline int64_t points_of(const Sample& sample, int64_t batch) {
    return sample.offsets ? sample.count : batch * sample.count;
}

// Columns of the table [S, table_columns]. low: what rounding took off `rate`, which would shift all pairs
// alike. limit: an argument beyond which exp(rate argument) is nothing. follows: 1 where a rung comes from
// the one before by squaring. steepness: slope at r = 0 (of laplacian and energy its factor). near: 0 or 1.
// plain: 1 where a rung adds its slope as it is, 0 where minus that at r = 0. Far rungs of the exponential
// kernels count 0 here, and stand once more, packed, with powers of 2, in the columns far_...
enum Column {
    rate,
    low,
    limit,
    follows,
    weight,
    steepness,
    near,
    plain,
    far_rate,
    far_weight,
    far_steepness,
    far_rung,
    far_low,
    far_limit,
    table_columns = 16
};
// What a plan says of all pairs: start and shift of slopes, offset of values, number of far rungs, whether a
// series stands for the near ones (0 or 1), whether powers of 2 may be approximate.
enum PlanTerm { plan_start, plan_shift, plan_offset, plan_far, plan_folded, plan_approximate, plan_terms };
// Of a sample: sum of masses, 1 / that or 1 where not normalized, sum of squares of normalized weights,
// factor of the self-term.
enum SampleTerm { sample_mass, sample_scale, sample_squares, sample_factor, sample_terms };

// What statistics_kernel finds of a sample.
struct Statistics {
    int parts, chunks;
    double* center;  // [batch, dim]: mean of the first points
    double* reach;   // [batch, parts, chunks]: maximum of |p - center|^2 over the dimensions of a chunk
    double* sums;    // [batch, parts, 2, dim]: of p - center, of mass (p - center)
    double* masses;  // [batch, parts, 2]: of mass, of mass^2
};

// A sum over the pairs of two samples: what meets what, what of it is wanted, and where it goes.
struct Term {
    int rows, columns;  // 0 or 1
    bool half;          // rows are columns, and only the sum of all values matters: pairs i < j count twice
    double* values;     // [parts, batch, n], set by mmd_pairs, added to by mmd_tile in a workspace of zeros
    double* slopes;     // [parts, batch, n, dim]: of the gradient; left to the caller of mmd_tile; null: none
    int parts;
    int block;          // rows of one
    int64_t blocks;     // of all members
    double* rungs;      // [blocks, programs, 2, S]: sums of r slope, of u; null: not needed
    int64_t programs;   // of a block
    double* totals;     // [row blocks of finish_kernel]: sums of w_i value_i
    double* rows_done;  // [batch, n]: values in their units
};

struct Terms {
    int count = 0;
    Term terms[4];
};

// Everything between the kernels, and sizes.
struct Memory {
    int64_t batch;
    int dim;
    int count;  // S
    Family family;
    double alpha;
    Sample samples[2];
    Statistics statistics[2];
    void* table;        // [batch, S, table_columns]
    void* series;       // [batch, most_series]: coefficients of P, of Q, by rising powers, and 2 / reach
    double* terms;      // [batch, plan_terms]
    double* of_sample;  // [batch, 2, sample_terms]
    double* moment;     // [2, batch, dim]: sum_j mass_j (q_j - center)
    double* per_rung;   // [batch, 2, S]: derivative in the bandwidth over the slopes' sum; 1 for a far rung,
                        // else 0
};

DEVICE double of_sample(const Memory& memory, int64_t b, int side, SampleTerm term) {
    return memory.of_sample[(2 * b + side) * sample_terms + term];
}

// A row's weight: normalized, or its mass.
template <class T> DEVICE double row_weight(const Memory& memory, int64_t b, int side, int64_t i) {
    const Sample& sample = memory.samples[side];
    const double mass =
        sample.weights ? (double)((const T*)sample.weights)[segment_of(sample, b).first + i] : 1.0;
    return mass * of_sample(memory, b, side, sample_scale);
}

// Numbers of a call that travel with plan_kernel.
struct Ladder {
    bool normalized, unbiased, products, may_fold;
    Kernel kernel;
    uint8_t order[most_listed];                 // rung -> its bandwidth
    bool follows[most_listed];                  // rung s comes from rung s - 1 by squaring
    double nodes[series_terms];                 // in [-1, 1]
    double powers[series_terms][series_terms];  // values at the nodes -> coefficients of powers
};

// Whether a family's kernels are powers of one another, which have a ladder, and far rungs of their own.
FASTMMD_ANYWHERE inline bool has_powers(Family family) {
    return with_family(family, [](auto facts) { return is_exponential<decltype(facts)>; });
}

// The bandwidths in the ladder's order, where they are known: rung -> bandwidth, and which rung halves the
// one before.
inline void order_rungs(const Kernel& kernel, uint8_t* order, bool* follows) {  // [S] each
    int places[most_listed];
    for (int s = 0; s < kernel.count; ++s) places[s] = s, follows[s] = false;
    if (!kernel.bandwidths.tensor && !kernel.weights.tensor && has_powers(kernel.family))
        plan_ladder(kernel.bandwidths.list.values, kernel.count, places, follows);
    for (int s = 0; s < kernel.count; ++s) order[s] = (uint8_t)places[s];
}

inline Memory memory_of(const Mmd& call, Workspace& space) {
    Memory memory = {};
    memory.batch = call.batch;
    memory.dim = call.dim;
    memory.count = call.kernel.count;
    memory.family = call.kernel.family;
    memory.alpha = call.kernel.alpha;
    for (int side = 0; side < 2; ++side) {
        constexpr int64_t dims = 128;  // of a block of statistics_kernel
        memory.samples[side] = call.sample(side);
        Statistics& of = memory.statistics[side];
        const int64_t blocks = call.sample(side).offsets ? call.batch : 1;
        of.parts = splits_of(blocks, ceil_divide(call.sample(side).count, statistics_rows)).parts;
        of.chunks = (int)ceil_divide(call.dim, dims);
        of.center = space.take<double>(call.batch * call.dim);
        of.reach = space.take<double>(call.batch * of.parts * of.chunks);
        of.sums = space.take<double>(call.batch * of.parts * 2 * call.dim);
        of.masses = space.take<double>(call.batch * of.parts * 2);
    }
    const int64_t size = call.is_double ? 8 : 4;
    memory.table = space.take<char>(call.batch * table_columns * memory.count * size);
    memory.series = space.take<char>(call.batch * most_series * size);
    memory.terms = space.take<double>(call.batch * plan_terms);
    memory.of_sample = space.take<double>(call.batch * 2 * sample_terms);
    memory.moment = space.take<double>(2 * call.batch * call.dim);
    memory.per_rung = space.take<double>(call.batch * 2 * memory.count);
    return memory;
}

// Whether sums per rung are wanted.
inline bool has_rungs(const Mmd& call) { return call.grad_bandwidths || call.grad_kernel_weights; }

// Whether the one-pass kernel for few dimensions does it.
inline bool is_small(const Mmd& call) {
    return !call.is_double && call.dim <= small_dims && !has_rungs(call);
}

inline Term term_of(const Mmd& call, Workspace& space, int rows, int columns, bool gradient, bool half,
                    bool rungs) {
    Term term = {};
    term.rows = rows, term.columns = columns, term.half = half;
    const int64_t n = points_of(call.sample(rows), call.batch), m = call.sample(columns).count;
    term.block = call.products    ? 1
                 : is_small(call) ? small_threads * small_rows(call.dim, gradient)
                                  : tile_size;
    term.blocks = blocks_of(call.sample(rows), call.batch, term.block);
    // One or two blocks of the kernel for any number of dimensions fill a multiprocessor, and each split has
    // as many sums as there are coordinates.
    const Splits splits = splits_of(term.blocks, ceil_divide(m, tile_size), is_small(call) ? 1056 : 264);
    term.parts = call.products ? 1 : splits.parts;
    term.values = space.take<double>(term.parts * n);
    if (gradient) term.slopes = space.take<double>(term.parts * n * call.dim);
    if (rungs) {
        constexpr int64_t warps = 8;  // of a block of pairs_kernel; each has sums of its own
        term.programs = call.products ? 1 : term.parts * warps;
        term.rungs = space.take<double>(term.blocks * term.programs * 2 * call.kernel.count);
    }
    term.totals = space.take<double>(blocks_of(call.sample(rows), call.batch, finish_threads));
    term.rows_done = space.take<double>(n);
    return term;
}

// The terms of a call: each sample with itself, if masses are normalized and but for a fixed y, and the first
// with the second; the second with the first where that has a gradient or values of its own.
inline Terms terms_of(const Mmd& call, Workspace& space) {
    Terms terms;
    const bool two = call.y.count > 0, rungs = has_rungs(call);
    for (int side = 0; side <= (two && !call.fixed_y) && call.normalized; ++side) {
        const Sample& sample = call.sample(side);
        const bool half = !sample.grad_points && !sample.grad_weights;
        terms.terms[terms.count++] = term_of(call, space, side, side, sample.grad_points, half, rungs);
    }
    for (int side = 0; side <= 1 && two; ++side) {
        const Sample& sample = call.sample(side);
        const bool own = sample.grad_points || sample.grad_weights || sample.values;
        const bool first = side == 0 && (call.normalized || rungs);
        if (own || first)
            terms.terms[terms.count++] =
                term_of(call, space, side, 1 - side, sample.grad_points, false, side == 0 && rungs);
    }
    return terms;
}

}  // namespace
}  // namespace fastmmd::cuda
