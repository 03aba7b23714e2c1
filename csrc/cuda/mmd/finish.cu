// mmd2 and witness: the last step of their sums, and the launchers. It adds the parts of all splits in order,
// with what the plan left out of all pairs alike (plan.cu), and differentiates through the weights:
//
//   value = f_x S_xx + f_y S_yy - 2 S_xy,  S_xy = sum_i w_i v_i,  v_i = sum_j w'_j u_ij,
//   w_i = m_i / M of the masses m_i, f = 1 / (1 - sum_i w_i^2) if unbiased, else 1.
//
// So in a weight of x: g_i = 2 (f v_i^xx - v_i^xy) + 2 f^2 S_xx w_i, the last if unbiased; and in its mass,
// through the normalization, (g_i - sum_k w_k g_k) / M, where
// sum_k w_k g_k = 2 (f S_xx - S_xy) + 2 f^2 S_xx sum_k w_k^2.
#include "memory.cuh"

namespace fastmmd::cuda {
namespace {

// The outputs, and what the last kernels read of a call besides.
struct Outputs {
    bool normalized, unbiased;
    double* value;
    void *grad_bandwidths, *grad_kernel_weights;
};

// What a term's sums count in all sums over its rows, and in mmd2.
DEVICE double row_factor(const Memory& memory, const Term& term, int64_t b) {
    if (term.rows == term.columns) return of_sample(memory, b, term.rows, sample_factor);
    return -1;
}

// The rows' values: sums over all splits in their units, with what the pairs' kernels left out.
template <class T>
DEVICE void finish_values(const Memory& memory, const Terms& terms, int64_t program, int side,
                          double* scratch) {
    const Sample& sample = memory.samples[side];
    const auto [b, block] = block_of(sample, memory.batch, program, finish_threads);
    const Segment segment = segment_of(sample, b);
    const int64_t n = segment.count, i = block * finish_threads + threadIdx.x, at = segment.first + i;
    const int64_t all = points_of(sample, memory.batch);
    const double offset = memory.terms[b * plan_terms + plan_offset];
    for (int t = 0; t < terms.count; ++t) {
        const Term& term = terms.terms[t];
        if (term.rows != side) continue;
        double value = 0, share = 0;
        if (i < n) {
            for (int split = 0; split < term.parts; ++split) value += term.values[split * all + at];
            value -= offset * of_sample(memory, b, term.columns, sample_mass);
            value *= of_sample(memory, b, term.columns, sample_scale);
            term.rows_done[at] = value;
            share = row_weight<T>(memory, b, side, i) * value;
            T* const values = (T*)sample.values;  // [batch, n]
            if (values) values[at] = (T)value;
        }
        share = block_sum<finish_threads>(share, scratch);
        if (threadIdx.x == 0) term.totals[program] = share;
    }
}

// The gradient in the rows' coordinates.
template <class T>
DEVICE void finish_gradient(const Memory& memory, const Terms& terms, const Outputs& outputs, int64_t program,
                            int side) {
    const Sample& sample = memory.samples[side];
    const int64_t dim = memory.dim;
    const auto [b, block] = block_of(sample, memory.batch, program, finish_threads, dim);
    const Segment segment = segment_of(sample, b);
    const int64_t e = block * finish_threads + threadIdx.x;  // of [n, dim]
    if (e >= segment.count * dim) return;
    const int64_t i = e / dim, d = e % dim, at = segment.first * dim + e;
    const int64_t all = points_of(sample, memory.batch) * dim;
    const double x = ((const T*)sample.points)[at], shift = memory.terms[b * plan_terms + plan_shift];
    double total = 0;
    for (int t = 0; t < terms.count; ++t) {
        const Term& term = terms.terms[t];
        if (term.rows != side || !term.slopes) continue;
        double sum = 0;
        for (int split = 0; split < term.parts; ++split) sum += term.slopes[split * all + at];
        const double center = memory.statistics[term.columns].center[b * dim + d];
        const double moment = memory.moment[(term.columns * memory.batch + b) * dim + d];
        sum += shift * (of_sample(memory, b, term.columns, sample_mass) * (x - center) - moment);
        total += (outputs.normalized ? row_factor(memory, term, b) : 1) *
                 of_sample(memory, b, term.columns, sample_scale) * sum;
    }
    const double times = (outputs.normalized ? 4 : 2) * row_weight<T>(memory, b, side, i);
    ((T*)sample.grad_points)[at] = (T)(times * total);
}

// Blocks up to `row_blocks` do rows, the others elements of gradients; blockIdx.y is a sample.
template <class T>
__global__ __launch_bounds__(finish_threads) void finish_kernel(const __grid_constant__ Memory memory,
                                                                const __grid_constant__ Terms terms,
                                                                const __grid_constant__ Outputs outputs) {
    SHARED(double, scratch, finish_threads / warp_size);
    const int side = blockIdx.y;
    const Sample& sample = memory.samples[side];
    const int64_t row_blocks = blocks_of(sample, memory.batch, finish_threads);
    const int64_t element_blocks =
        sample.grad_points ? blocks_of(sample, memory.batch, finish_threads, memory.dim) : 0;
    if (blockIdx.x < row_blocks)
        finish_values<T>(memory, terms, blockIdx.x, side, scratch);
    else if (blockIdx.x < row_blocks + element_blocks)
        finish_gradient<T>(memory, terms, outputs, blockIdx.x - row_blocks, side);
}

// The sum over a member's numbers, `each` from every block of `size` rows, the same in all threads.
template <class Number>
DEVICE double member_sum(const Sample& rows, int64_t b, int64_t size, int64_t each, double* scratch,
                         Number number) {
    const int64_t first = first_block(rows, b, size) * each;
    const int64_t count = ceil_divide(segment_of(rows, b).count, size) * each;
    double sum = 0;
    for (int64_t k = threadIdx.x; k < count; k += finish_threads) sum += number(first + k);
    return block_sum<finish_threads>(sum, scratch);
}

// A result of a member: with offsets 0 where it has no points, NaN where it has some on one side only.
DEVICE double result_of(const Memory& memory, int64_t b, double result) {
    if (!memory.samples[0].offsets) return result;
    const bool x = segment_of(memory.samples[0], b).count > 0, y = segment_of(memory.samples[1], b).count > 0;
    return x && y ? result : x || y ? nan("") : 0;
}

// Blocks of total_kernel for a sample: its masses' gradients, or one of the first sample for each member.
FASTMMD_ANYWHERE inline int64_t total_blocks(const Memory& memory, int side) {
    const Sample& sample = memory.samples[side];
    if (sample.grad_weights) return blocks_of(sample, memory.batch, finish_threads);
    return side == 0 ? memory.batch : 0;
}

// The value, the gradients in bandwidths and kernel weights (a member's first block), and those in masses.
template <class T>
__global__ __launch_bounds__(finish_threads, 2) void total_kernel(const __grid_constant__ Memory memory,
                                                                  const __grid_constant__ Terms terms,
                                                                  const __grid_constant__ Outputs outputs) {
    SHARED(double, scratch, finish_threads / warp_size);
    const int side = blockIdx.y;
    const Sample& sample = memory.samples[side];
    if (blockIdx.x >= total_blocks(memory, side)) return;
    BlockOf place = {blockIdx.x, 0};
    if (sample.grad_weights) place = block_of(sample, memory.batch, blockIdx.x, finish_threads);
    const auto [b, block] = place;
    double value = 0, self = 0, cross = 0;
    for (int t = 0; t < terms.count; ++t) {
        const Term& term = terms.terms[t];
        const double total = member_sum(memory.samples[term.rows], b, finish_threads, 1, scratch,
                                        [&](int64_t k) { return term.totals[k]; });
        if (term.rows == term.columns) value += row_factor(memory, term, b) * total;
        if (term.rows == 0 && term.columns == 1) value -= 2 * total;
        if (term.rows == side) (term.rows == term.columns ? self : cross) += total;
    }
    if (block == 0 && side == 0) {
        if (threadIdx.x == 0 && outputs.value) outputs.value[b] = result_of(memory, b, value);
        for (int k = 0; k < 2 * memory.count; ++k) {
            const int s = k % memory.count;
            const bool of_weights = k >= memory.count;
            T* const to = (T*)(of_weights ? outputs.grad_kernel_weights : outputs.grad_bandwidths);
            if (!to) continue;
            double gradient = 0;
            for (int t = 0; t < terms.count; ++t) {
                const Term& term = terms.terms[t];
                if (!term.rungs) continue;
                double sum =
                    member_sum(memory.samples[term.rows], b, term.block, term.programs, scratch,
                               [&](int64_t program) { return term.rungs[program * 2 * memory.count + k]; });
                if (of_weights) {  // far rungs added kappa, not u
                    const double far = memory.per_rung[(2 * b + 1) * memory.count + s];
                    const double rows = outputs.normalized ? 1 : of_sample(memory, b, term.rows, sample_mass);
                    sum -= far * of_sample(memory, b, term.columns, sample_mass) * rows;
                } else {
                    sum *= memory.per_rung[2 * b * memory.count + s];
                }
                const double times = term.rows == term.columns ? row_factor(memory, term, b)
                                     : outputs.normalized      ? -2
                                                               : 1;
                gradient += times * of_sample(memory, b, term.columns, sample_scale) * sum;
            }
            if (threadIdx.x == 0) to[b * memory.count + s] = (T)result_of(memory, b, gradient);
        }
    }
    const Segment segment = segment_of(sample, b);
    const int64_t i = block * finish_threads + threadIdx.x, at = segment.first + i;
    if (!sample.grad_weights || i >= segment.count) return;
    // g_i and its mean, as above.
    const double factor = of_sample(memory, b, side, sample_factor), w = row_weight<T>(memory, b, side, i);
    const double through = outputs.unbiased ? 2 * factor * factor * self : 0;
    double mean = 2 * (factor * self - cross) + through * of_sample(memory, b, side, sample_squares),
           gradient = through * w;
    for (int t = 0; t < terms.count; ++t) {
        const Term& term = terms.terms[t];
        if (term.rows == side) gradient += 2 * row_factor(memory, term, b) * term.rows_done[at];
    }
    ((T*)sample.grad_weights)[at] = (T)((gradient - mean) * of_sample(memory, b, side, sample_scale));
}

template <class T>
Status finish(const Memory& memory, const Terms& terms, const Outputs& outputs, void* stream) {
    const int samples = memory.samples[1].count > 0 ? 2 : 1;
    int64_t blocks = 0, rows = 0;
    for (int side = 0; side < samples; ++side) {
        const Sample& sample = memory.samples[side];
        int64_t all = blocks_of(sample, memory.batch, finish_threads);
        if (sample.grad_points) all += blocks_of(sample, memory.batch, finish_threads, memory.dim);
        if (all > blocks) blocks = all;
        if (total_blocks(memory, side) > rows) rows = total_blocks(memory, side);
    }
    const dim3 grid((unsigned)blocks, samples), last((unsigned)rows, samples);
    const Status first =
        launch("finish_kernel", finish_kernel<T>, grid, finish_threads, stream, memory, terms, outputs);
    return first +
           launch("total_kernel", total_kernel<T>, last, finish_threads, stream, memory, terms, outputs);
}

}  // namespace

int64_t mmd_workspace(const Mmd& call) {
    Workspace space(nullptr);
    memory_of(call, space);
    terms_of(call, space);
    return space.used();
}

std::vector<TermPlace> mmd_terms(const Mmd& call) {
    char* const base = (char*)256;  // not null, which would mean that there is no memory yet
    Workspace space(base);
    memory_of(call, space);
    const Terms terms = terms_of(call, space);
    std::vector<TermPlace> places;
    for (int t = 0; t < terms.count; ++t) {
        const Term& term = terms.terms[t];
        places.push_back({term.rows, term.columns, term.half, term.slopes ? (char*)term.slopes - base : -1});
    }
    return places;
}

Status mmd_finish(const Mmd& call, void* workspace, void* stream) {
    Workspace space(workspace);
    const Memory memory = memory_of(call, space);
    const Terms terms = terms_of(call, space);
    const Outputs outputs = {call.normalized, call.unbiased, call.value, call.grad_bandwidths,
                             call.grad_kernel_weights};
    return (call.is_double ? finish<double> : finish<float>)(memory, terms, outputs, stream);
}

}  // namespace fastmmd::cuda
