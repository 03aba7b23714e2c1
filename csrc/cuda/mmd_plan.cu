// The plan of mmd2 and witness, made on the device of what the data are: the ladder of bandwidths, for each
// rung whether it adds u or kappa and its slope as it is or minus its value at r = 0, a series in place of
// wide rungs; and what follows from these for all pairs alike, which the pairs' kernels leave out and
// finish_kernel adds.
#include "mmd_memory.cuh"

namespace fastmmd::cuda {
namespace {

constexpr int threads = 256, warps = threads / warp_size;
constexpr int lane_dims = 4;  // dimensions of a lane
constexpr int chunk_dims =
    warp_size * lane_dims;  // and of a block; the reach of more is bounded by the sum of its parts
constexpr int pairs = 64;   // that stand for all
constexpr double widest_reach =
    3.5;  // of r / (2 s^2) in the series; beyond, slopes at the far end would lose digits

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
    const MmdSample& sample = memory.samples[side];
    const Statistics& found = memory.statistics[side];
    const int split = blockIdx.z, chunk = blockIdx.y;
    if (split >= found.parts || sample.count == 0) return;
    const Segment segment = segment_of(sample, b);
    const int64_t n = segment.count;
    const int64_t per_split = ceil_divide(ceil_divide(n, statistics_rows), found.parts) * statistics_rows;
    const int64_t first = split * per_split, last = first + per_split < n ? first + per_split : n;
    const T* const points = (const T*)sample.points + segment.first * dim;  // [n, dim]
    const T* const mass = sample.mass ? (const T*)sample.mass + segment.first : nullptr;
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
    const int64_t part = b * found.parts + split;
    if (warp == 0)
#pragma unroll
        for (int q = 0; q < lane_dims; ++q) {
            if (d[q] >= dim) continue;
            found.sums[part * 2 * dim + d[q]] = total[q];
            found.sums[(part * 2 + 1) * dim + d[q]] = moment[q];
            if (split == 0) found.center[b * dim + d[q]] = middle[q];
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
    found.reach[part * found.chunks + chunk] = farthest;
    if (chunk == 0) found.masses[2 * part] = all_mass, found.masses[2 * part + 1] = squares;
}

// kappa'(r) / kappa'(0) of a smooth kernel at t = r / s^2; 0 for the others, whose slopes are never shifted.
DEVICE double relative_slope(KernelName name, double t, double alpha) {
    if (name == KernelName::gaussian) return exponentials(-0.5 * t).exp;
    if (name == KernelName::imq) return 1 / ((1 + t) * (1 + t));
    if (name == KernelName::rational_quadratic)
        return exponentials(-(alpha + 1) * logarithm_1p(0.5 * t / alpha)).exp;
    return 0;
}

// kappa(r) of a bounded kernel; 1 for the other one.
DEVICE double relative_value(KernelName name, double t, double alpha) {
    if (name == KernelName::gaussian) return exponentials(-0.5 * t).exp;
    if (name == KernelName::laplacian) return exponentials(-sqrt(t)).exp;
    if (name == KernelName::imq) return 1 / (1 + t);
    if (name == KernelName::rational_quadratic)
        return exponentials(-alpha * logarithm_1p(0.5 * t / alpha)).exp;
    return 1;
}

// x clamped to +- largest; NaN stays.
DEVICE double within(double x, double largest) { return x > largest ? largest : x < -largest ? -largest : x; }

// The mean of a sample from its center, in dimension d.
DEVICE double mean_shift(const Statistics& found, int64_t b, int dim, int d, int which) {
    double sum = 0;
    for (int split = 0; split < found.parts; ++split)
        sum += found.sums[((b * found.parts + split) * 2 + which) * dim + d];
    return sum;
}

// A bound of all distances to the mean, which is `shift`, squared, from the center.
DEVICE double reached(const Statistics& found, int64_t b, double shift) {
    double farthest = 0;
    for (int chunk = 0; chunk < found.chunks; ++chunk) {
        double most = 0;
        for (int split = 0; split < found.parts; ++split)
            most = maximum(most, found.reach[(b * found.parts + split) * found.chunks + chunk]);
        farthest += most;
    }
    return sqrt(farthest) + sqrt(shift);
}

// What a rung has before its place in the table is known; found by a warp, the same in all lanes.
struct Rung {
    double rate, weight, slope, squared;
    double typical_slope;  // relative to that at r = 0; only with products
    bool far, shifted;
};

template <class T>
DEVICE Rung rung_of(const Memory& memory, const Ladder& ladder, int s, double reach,
                    const double* r) {                              // r [pairs]
    constexpr double largest = sizeof(T) == 4 ? 3.4e38 : 1.79e308;  // times 0 is 0
    const int at = ladder.order[s];
    double bandwidth = ladder.kernel.bandwidth_values ? (double)((const T*)ladder.kernel.bandwidth_values)[at]
                                                      : ladder.kernel.bandwidths.values[at];
    double weight = ladder.kernel.weight_values ? (double)((const T*)ladder.kernel.weight_values)[at]
                                                : ladder.kernel.weights.values[at];
    if (!(bandwidth > 0)) bandwidth = nan("");
    const double squared = bandwidth * bandwidth, alpha = memory.alpha;
    double slope, rate;
    switch (memory.name) {
        case KernelName::gaussian: slope = rate = -0.5 / squared; break;
        case KernelName::laplacian: slope = -0.5 / bandwidth, rate = -1 / bandwidth; break;
        case KernelName::imq: slope = -1 / squared, rate = squared < 1e-37 ? 1e-37 : squared; break;
        case KernelName::rational_quadratic: slope = -0.5 / squared, rate = 0.5 / (alpha * squared); break;
        default: slope = 0 * bandwidth - 0.5, rate = 0 * bandwidth;
    }
    Rung rung;
    rung.squared = squared;
    rung.rate = within(rate, memory.name == KernelName::imq ? 1e37 : largest);  // its reciprocal is normal
    rung.slope = (double)(T)within(slope * weight, largest * 9.5e-7);           // room for masses
    rung.weight = (double)(T)within(weight, largest);
    double typical = 0, slopes = 0;
    for (int k = threadIdx.x % warp_size; k < pairs; k += warp_size) {
        typical += relative_value(memory.name, r[k] / squared, alpha);
        if (ladder.products) slopes += relative_slope(memory.name, r[k] / squared, alpha);
    }
    typical = warp_sum(typical);
    rung.typical_slope = warp_sum(slopes) / pairs;
    rung.far = typical < 0.5 * pairs;
    const bool alone = rung.far && has_powers(memory.name);
    rung.shifted = !alone && relative_slope(memory.name, reach / squared, alpha) > 0.5;
    return rung;
}

template <class T> DEVICE T rest_of(double x) { return (T)(x - (double)(T)x); }  // what rounding takes off

template <class T>
__global__ __launch_bounds__(threads, 1) void plan_kernel(const __grid_constant__ Memory memory,
                                                          const __grid_constant__ Ladder ladder) {
    SHARED(double, scratch, warps);
    SHARED(double, r, pairs);
    SHARED(Rung, rungs, most_listed);
    SHARED(double, values, 2 * series_terms);  // of the series at its nodes, over r
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size, dim = memory.dim,
              count = memory.count;
    const int64_t b = blockIdx.x;
    const bool two = memory.samples[1].count > 0;
    const Segment segments[2] = {segment_of(memory.samples[0], b), segment_of(memory.samples[two], b)};
    // Both means from the centers, and the moments.
    double shifts[2] = {}, apart = 0;
    for (int d = threadIdx.x; d < dim; d += threads) {
        double between = 0;
        for (int side = 0; side <= two; ++side) {
            const Statistics& found = memory.statistics[side];
            const double shift = mean_shift(found, b, dim, d, 0) / segments[side].count;
            memory.moment[(side * memory.batch + b) * dim + d] = mean_shift(found, b, dim, d, 1);
            shifts[side] += shift * shift;
            const double mean = found.center[b * dim + d] + shift;
            between = side == 0 ? mean : between - mean;
        }
        if (two) apart += between * between;
    }
    for (int side = 0; side <= two; ++side) shifts[side] = block_sum<threads>(shifts[side], scratch);
    apart = block_sum<threads>(apart, scratch);
    if (!two) shifts[1] = shifts[0];
    const double x_reach = reached(memory.statistics[0], b, shifts[0]);
    const double y_reach = two ? reached(memory.statistics[1], b, shifts[1]) : x_reach;
    double reach = maximum(x_reach + y_reach + sqrt(apart), 2 * maximum(x_reach, y_reach));
    reach = reach * reach * (1 + 1e-5);  // no squared distance is larger, even as it is rounded
    // Some pairs stand for all; which ones must not follow from an order that the points may have.
    const Segment &x = segments[0], &y = segments[1];
    const int dims = x.count > 0 && y.count > 0 ? dim : 0;
    for (int k = warp; k < pairs; k += warps) {
        const int64_t i = x.first + k * x.count / pairs,
                      j = y.first + (k * 37 + 11) % pairs * y.count / pairs;
        const T* const p = (const T*)memory.samples[0].points + i * dim;
        const T* const q = (const T*)memory.samples[two].points + j * dim;
        double sum = 0;
        for (int d = lane; d < dims; d += warp_size) sum += ((double)p[d] - q[d]) * ((double)p[d] - q[d]);
        sum = warp_sum(sum);
        if (lane == 0) r[k] = sum;
    }
    barrier();
    for (int s = warp; s < count; s += warps) {
        const Rung rung = rung_of<T>(memory, ladder, s, reach, r);
        if (lane == 0) rungs[s] = rung;
    }
    barrier();

    // Where all near bandwidths of a Gaussian are wide, they fold into a series (csrc/common/series.hpp),
    // from values at Chebyshev nodes. Not in double, nor for a sample alone, whose value meets one of another
    // origin; nor where sums per rung are wanted.
    const bool powers = has_powers(memory.name),
               may = sizeof(T) == 4 && two && memory.name == KernelName::gaussian;
    int close = 0, wide = 0, far = 0;
    for (int s = 0; s < count; ++s) {
        close += !rungs[s].far;
        wide += !rungs[s].far && reach <= 2 * widest_reach * rungs[s].squared;
        far += rungs[s].far && powers;
    }
    const bool folded = may && ladder.may_fold && wide == close && close > 1 && reach > 1e-30 && reach < 1e30;
    if (threadIdx.x < series_terms) {
        const double at = 0.5 * reach * (1 + ladder.nodes[threadIdx.x]);
        double value = 0, slope = 0;
        for (int s = 0; s < count; ++s) {
            if (rungs[s].far || !folded) continue;
            const double u = exponentials(at * (-0.5 / rungs[s].squared)).expm1 / at;
            value += rungs[s].weight * u;
            slope += rungs[s].slope * u;
        }
        values[threadIdx.x] = value;
        values[series_terms + threadIdx.x] = slope;
    }
    barrier();
    T* const series = (T*)memory.series + b * most_series;
    if (threadIdx.x < 2 * series_terms) {
        const int power = threadIdx.x % series_terms;
        double sum = 0;
        for (int k = 0; k < series_terms; ++k)
            sum += ladder.powers[power][k] * values[threadIdx.x - power + k];
        series[threadIdx.x] = (T)sum;
    }
    if (threadIdx.x == 0) series[2 * series_terms] = (T)(2 / reach);

    constexpr double largest = sizeof(T) == 4 ? 3.4e38 : 1.79e308, log2_e = Constants<double>::log2_e;
    T* const table = (T*)memory.table + b * table_columns * count;
    double* const per_rung = memory.per_rung + b * 2 * count;
    for (int s = threadIdx.x; s < count; s += threads) {
        const Rung& rung = rungs[s];
        const bool alone = rung.far && powers;
        const double most = within((sizeof(T) == 8 ? 708.0 : 87.0) / fabs(rung.rate), largest);
        auto set = [&](int column, int place, T value) { table[place * table_columns + column] = value; };
        set(rate, s, (T)rung.rate);
        set(low, s, rest_of<T>(rung.rate));
        set(limit, s, (T)most);
        set(weight, s, alone ? T(0) : (T)rung.weight);
        set(steepness, s, alone ? T(0) : (T)rung.slope);
        set(near, s, rung.far ? T(0) : T(1));
        set(plain, s, rung.shifted ? T(0) : T(1));
        set(follows, s, ladder.follows[s] ? T(1) : T(0));
        if (alone) {
            int place = 0;
            for (int other = 0; other < s; ++other) place += rungs[other].far;
            const double base_2 = within(rung.rate * log2_e, largest);
            set(far_rate, place, (T)base_2);
            set(far_low, place, rest_of<T>(base_2));
            set(far_limit, place, (T)most);
            set(far_weight, place, (T)rung.weight);
            set(far_steepness, place, (T)rung.slope);
            set(far_rung, place, (T)s);
        }
        const double bandwidth = sqrt(rung.squared);
        per_rung[s] = memory.name == KernelName::energy ? 0 * bandwidth : -2 / bandwidth * rung.slope;
        per_rung[count + s] = rung.far ? 1 : 0;
    }
    if (threadIdx.x != 0) return;

    // What tiles leave out of all slopes: the shifted rungs' at r = 0, and with products, which see slopes
    // that are much alike, a typical one.
    double shift = 0, start = 0, offset = 0, typical = 0;
    for (int s = 0; s < count; ++s) {
        const Rung& rung = rungs[s];
        if (rung.shifted) shift += rung.slope;
        if (folded && !rung.far && !rung.shifted) start += rung.slope;
        if (rung.far) offset += rung.weight;
        typical += rung.slope * (rung.typical_slope - rung.shifted);
    }
    shift += start;
    if (ladder.products) start -= typical;
    start = (double)(T)start;
    double* const terms = memory.terms + b * plan_terms;
    terms[plan_start] = start;
    terms[plan_shift] = shift - start;
    terms[plan_offset] = offset;
    terms[plan_far] = far;
    terms[plan_folded] = folded;
    terms[plan_approximate] = may && ladder.may_fold && ladder.normalized;
    for (int side = 0; side <= two; ++side) {
        const Statistics& found = memory.statistics[side];
        double mass = 0, squares = 0;
        for (int split = 0; split < found.parts; ++split) {
            mass += found.masses[2 * (b * found.parts + split)];
            squares += found.masses[2 * (b * found.parts + split) + 1];
        }
        double* const of_sample = memory.of_sample + (2 * b + side) * sample_terms;
        squares /= mass * mass;
        of_sample[sample_mass] = mass;
        const bool too_few = ladder.unbiased && segments[side].count == 1;
        of_sample[sample_scale] = !ladder.normalized ? 1 : too_few ? nan("") : 1 / mass;
        of_sample[sample_squares] = squares;
        of_sample[sample_factor] = ladder.unbiased ? 1 / (1 - squares) : 1;
    }
}

template <class T> Status plan(const Memory& memory, const Ladder& ladder, void* stream) {
    const Statistics *x = &memory.statistics[0], *y = &memory.statistics[1];
    const int parts = x->parts > y->parts ? x->parts : y->parts;
    const dim3 grid((unsigned)(2 * memory.batch), x->chunks, parts);
    const Status first = launch("statistics_kernel", statistics_kernel<T>, grid, threads, stream, memory);
    return first + launch("plan_kernel", plan_kernel<T>, dim3((unsigned)memory.batch), threads, stream,
                          memory, ladder);
}

// Chebyshev nodes, and the matrix that makes powers' coefficients of values at them.
void interpolate(Ladder& ladder) {
    double before[series_terms] = {}, here[series_terms] = {};  // coefficients of T_{k-1}, T_k
    const double pi = 3.14159265358979323846;
    for (int k = 0; k < series_terms; ++k) {
        double next[series_terms] = {};
        if (k == 0) next[0] = 1;
        for (int i = 0; k > 0 && i < series_terms; ++i) {
            if (i > 0) next[i] += (k == 1 ? 1 : 2) * here[i - 1];
            next[i] -= before[i];
        }
        for (int node = 0; node < series_terms; ++node) {
            const double angle = pi * (node + 0.5) / series_terms;
            ladder.nodes[node] = cos(angle);
            const double share = cos(k * angle) * (k == 0 ? 1.0 : 2.0) / series_terms;
            for (int i = 0; i < series_terms; ++i) ladder.powers[i][node] += share * next[i];
        }
        for (int i = 0; i < series_terms; ++i) before[i] = here[i], here[i] = next[i];
    }
}

}  // namespace

Status mmd_plan(const Mmd& call, void* workspace, void* stream) {
    Workspace space(workspace);
    const Memory memory = memory_of(call, space);
    Ladder ladder = {};
    ladder.normalized = call.normalized;
    ladder.unbiased = call.unbiased;
    ladder.products = call.products;
    ladder.may_fold = !has_rungs(call);
    ladder.kernel = call.kernel;
    interpolate(ladder);
    order_rungs(call.kernel, ladder.order, ladder.follows);
    if (call.batch == 0) return {};
    return call.is_double ? plan<double>(memory, ladder, stream) : plan<float>(memory, ladder, stream);
}

}  // namespace fastmmd::cuda
