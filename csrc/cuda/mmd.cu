// mmd2 and witness: the last step of their sums, and the launchers. mmd_plan.cu, mmd_pairs.cu and mmd_tile.cu
// come before it.
#include "mmd_memory.cuh"

namespace fastmmd::cuda {
namespace {

// The outputs, and what the last kernels read of a call besides.
struct Outputs {
    bool normalised, unbiased;
    double* value;
    void *grad_bandwidths, *grad_kernel_weights;
    uint8_t order[most_listed];  // rung -> its bandwidth
};

// What a term's sums count in all sums over its rows, and in mmd2.
DEVICE double row_factor(const Memory& memory, const Term& term, int64_t b) {
    if (term.rows == term.columns) return of_sample(memory, b, term.rows, sample_factor);
    return -1;
}

// The rows' values: sums over all splits in their units, with what the pairs' kernels left out.
template <class T>
DEVICE void finish_values(const Memory& memory, const Terms& terms, int64_t b, int64_t block, int side,
                          double* scratch) {
    const int64_t n = memory.samples[side].count, i = block * finish_threads + threadIdx.x;
    const double offset = memory.terms[b * plan_terms + plan_offset];
    for (int t = 0; t < terms.count; ++t) {
        const Term& term = terms.terms[t];
        if (term.rows != side) continue;
        double value = 0, share = 0;
        if (i < n) {
            for (int split = 0; split < term.parts; ++split)
                value += term.values[(split * memory.batch + b) * n + i];
            value -= offset * of_sample(memory, b, term.columns, sample_mass);
            value *= of_sample(memory, b, term.columns, sample_scale);
            term.rows_done[b * n + i] = value;
            share = row_weight<T>(memory, b, side, i) * value;
            T* const values = (T*)memory.samples[side].values;  // [batch, n]
            if (values) values[b * n + i] = (T)value;
        }
        share = block_sum<finish_threads>(share, scratch);
        if (threadIdx.x == 0) term.totals[b * (ceil_divide(n, finish_threads)) + block] = share;
    }
}

// The gradient in the rows' coordinates: element e of [n, dim].
template <class T>
DEVICE void finish_gradient(const Memory& memory, const Terms& terms, const Outputs& outputs, int64_t b,
                            int64_t e, int side) {
    const int64_t n = memory.samples[side].count, dim = memory.dim;
    if (e >= n * dim) return;
    const int64_t i = e / dim, d = e % dim, at = b * n * dim + e;
    const double x = ((const T*)memory.samples[side].points)[at],
                 shift = memory.terms[b * plan_terms + plan_shift];
    double total = 0;
    for (int t = 0; t < terms.count; ++t) {
        const Term& term = terms.terms[t];
        if (term.rows != side || !term.slopes) continue;
        double sum = 0;
        for (int split = 0; split < term.parts; ++split)
            sum += term.slopes[split * memory.batch * n * dim + at];
        const double centre = memory.statistics[term.columns].centre[b * dim + d];
        const double moment = memory.moment[(term.columns * memory.batch + b) * dim + d];
        sum += shift * (of_sample(memory, b, term.columns, sample_mass) * (x - centre) - moment);
        total += (outputs.normalised ? row_factor(memory, term, b) : 1) *
                 of_sample(memory, b, term.columns, sample_scale) * sum;
    }
    const double times = (outputs.normalised ? 4 : 2) * row_weight<T>(memory, b, side, i);
    ((T*)memory.samples[side].grad_points)[at] = (T)(times * total);
}

// Blocks up to `row_blocks` do rows, the others elements of gradients; blockIdx.y is a sample.
template <class T>
__global__ __launch_bounds__(finish_threads) void finish_kernel(const __grid_constant__ Memory memory,
                                                                const __grid_constant__ Terms terms,
                                                                const __grid_constant__ Outputs outputs) {
    SHARED(double, scratch, finish_threads / warp_size);
    const int side = blockIdx.y;
    const MmdSample& sample = memory.samples[side];
    const int64_t row_blocks = ceil_divide(sample.count, finish_threads);
    const int64_t element_blocks =
        sample.grad_points ? ceil_divide(sample.count * memory.dim, finish_threads) : 0;
    const int64_t all = row_blocks + element_blocks, b = blockIdx.x / (all > 0 ? all : 1);
    if (b >= memory.batch) return;
    const int64_t block = blockIdx.x % all;
    if (block < row_blocks)
        finish_values<T>(memory, terms, b, block, side, scratch);
    else
        finish_gradient<T>(memory, terms, outputs, b, (block - row_blocks) * finish_threads + threadIdx.x,
                           side);
}

// The sum over a term's rows, the same in all threads.
DEVICE double term_total(const Memory& memory, const Term& term, int64_t b, double* scratch) {
    const int64_t blocks = ceil_divide(memory.samples[term.rows].count, finish_threads);
    double sum = 0;
    for (int64_t block = threadIdx.x; block < blocks; block += finish_threads)
        sum += term.totals[b * blocks + block];
    return block_sum<finish_threads>(sum, scratch);
}

// The value, the gradients in bandwidths and kernel weights (blocks of index 0), and those in masses.
template <class T>
__global__ __launch_bounds__(finish_threads, 2) void total_kernel(const __grid_constant__ Memory memory,
                                                                  const __grid_constant__ Terms terms,
                                                                  const __grid_constant__ Outputs outputs) {
    SHARED(double, scratch, finish_threads / warp_size);
    const int side = blockIdx.y;
    const int64_t b = blockIdx.x % memory.batch, block = blockIdx.x / memory.batch;
    double value = 0, self = 0, cross = 0;
    for (int t = 0; t < terms.count; ++t) {
        const Term& term = terms.terms[t];
        const double total = term_total(memory, term, b, scratch);
        if (term.rows == term.columns) value += row_factor(memory, term, b) * total;
        if (term.rows == 0 && term.columns == 1) value -= 2 * total;
        if (term.rows == side) (term.rows == term.columns ? self : cross) += total;
    }
    if (block == 0 && side == 0) {
        if (threadIdx.x == 0 && outputs.value) outputs.value[b] = value;
        for (int k = 0; k < 2 * memory.count; ++k) {
            const int s = k % memory.count;
            const bool of_weights = k >= memory.count;
            T* const to = (T*)(of_weights ? outputs.grad_kernel_weights : outputs.grad_bandwidths);
            if (!to) continue;
            double gradient = 0;
            for (int t = 0; t < terms.count; ++t) {
                const Term& term = terms.terms[t];
                if (!term.rungs) continue;
                double sum = 0;
                for (int64_t program = threadIdx.x; program < term.programs; program += finish_threads)
                    sum += term.rungs[(b * term.programs + program) * 2 * memory.count + k];
                sum = block_sum<finish_threads>(sum, scratch);
                if (of_weights) {  // far rungs added kappa, not u
                    const double far = memory.per_rung[(2 * b + 1) * memory.count + s];
                    const double rows = outputs.normalised ? 1 : of_sample(memory, b, term.rows, sample_mass);
                    sum -= far * of_sample(memory, b, term.columns, sample_mass) * rows;
                } else {
                    sum *= memory.per_rung[2 * b * memory.count + s];
                }
                const double times = term.rows == term.columns ? row_factor(memory, term, b)
                                     : outputs.normalised      ? -2
                                                               : 1;
                gradient += times * of_sample(memory, b, term.columns, sample_scale) * sum;
            }
            if (threadIdx.x == 0) to[b * memory.count + outputs.order[s]] = (T)gradient;
        }
    }
    const MmdSample& sample = memory.samples[side];
    const int64_t n = sample.count, i = block * finish_threads + threadIdx.x;
    if (!sample.grad_mass || i >= n) return;
    // Through the normalisation, and through the factor of the self-term.
    const double factor = of_sample(memory, b, side, sample_factor), w = row_weight<T>(memory, b, side, i);
    const double through = outputs.unbiased ? 2 * factor * factor * self : 0;
    double mean = 2 * (factor * self - cross) + through * of_sample(memory, b, side, sample_squares),
           gradient = through * w;
    for (int t = 0; t < terms.count; ++t) {
        const Term& term = terms.terms[t];
        if (term.rows == side) gradient += 2 * row_factor(memory, term, b) * term.rows_done[b * n + i];
    }
    ((T*)sample.grad_mass)[b * n + i] = (T)((gradient - mean) * of_sample(memory, b, side, sample_scale));
}

template <class T>
Status finish(const Memory& memory, const Terms& terms, const Outputs& outputs, void* stream) {
    int64_t blocks = 0, rows = 1;
    for (const MmdSample& sample : memory.samples) {
        const int64_t row_blocks = ceil_divide(sample.count, finish_threads);
        const int64_t all =
            row_blocks + (sample.grad_points ? ceil_divide(sample.count * memory.dim, finish_threads) : 0);
        if (all > blocks) blocks = all;
        if (sample.grad_mass && row_blocks > rows) rows = row_blocks;
    }
    const int samples = memory.samples[1].count > 0 ? 2 : 1;
    const dim3 grid((unsigned)(blocks * memory.batch), samples),
        last((unsigned)(rows * memory.batch), samples);
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

MmdTerms mmd_terms(const Mmd& call, void* workspace) {
    Workspace space(workspace);
    memory_of(call, space);
    const Terms terms = terms_of(call, space);
    MmdTerms result;
    for (result.count = 0; result.count < terms.count; ++result.count)
        result.terms[result.count] = terms.terms[result.count];
    return result;
}

Status mmd_finish(const Mmd& call, void* workspace, void* stream) {
    Workspace space(workspace);
    const Memory memory = memory_of(call, space);
    const Terms terms = terms_of(call, space);
    Outputs outputs = {
        call.normalised, call.unbiased, call.value, call.grad_bandwidths, call.grad_kernel_weights, {}};
    bool follows[most_listed];
    order_rungs(call.kernel, outputs.order, follows);
    return (call.is_double ? finish<double> : finish<float>)(memory, terms, outputs, stream);
}

}  // namespace fastmmd::cuda
