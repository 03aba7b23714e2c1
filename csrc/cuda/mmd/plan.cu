// The plan of mmd2 and witness, made on the device of what the data are: the ladder of bandwidths, for each
// rung whether it adds u or kappa and its slope as it is or minus its value at r = 0, a series in place of
// wide rungs; and what follows from these for all pairs alike, which the pairs' kernels leave out and
// finish_kernel adds. Nothing of it reaches the host, which need not wait and may capture it in a graph.
//
// - mmd2 is what is left when its three means cancel, so each pair's rounding has to be small beside what the
//   pair contributes to the difference. For a rung that is near (kappa > 1/2 for typical pairs) u = kappa - 1
//   is the smaller number, for one that is far kappa is; both differ by a constant, which multiplies the sum
//   of masses: `offset`, taken off in double. Any choice is exact, so a poor sample of pairs costs digits
//   only.
// - Where a rung's slope at the farthest pair is still over half of that at r = 0, slope - slope(0) is the
//   smaller number. The rest, slope(0) sum_j m_j (x_i - q_j), needs no pairs: it is slope(0) times
//   M (x_i - center) - moment, M the sum of masses and moment = sum_j m_j (q_j - center): `shift`.
// - Matrix products sum slopes times coordinates, and round as the largest: with them a typical slope is left
//   out of all rungs in the same way.
#include "statistics.cuh"

namespace fastmmd::cuda {
namespace {

constexpr int sampled = 64;  // pairs that stand for all
// Of r / (2 s^2) in the series. There ten terms leave out 9e-9 of the largest value, a seventh of what float
// rounds (nine 1.1e-7), and the slopes at the far end have lost no digits yet.
constexpr double widest_reach = 3.5;

// What a rung has before its place in the table is known; made by a warp, the same in all lanes.
struct Rung {
    double rate, weight, slope, squared;
    double by_bandwidth;   // d kappa / d bandwidth over r slope, times the weighted steepness
    double typical_slope;  // relative to that at r = 0; only with products
    bool far, shifted;
};

// What holds for all rungs.
struct Whole {
    double reach;   // no squared distance is larger
    bool powers;    // the family is exponential: far rungs are powers of 2
    bool may_fold;  // the kind of call for which a series is made
    bool folded;    // the near rungs are a series
    int far;        // far rungs that are powers of 2
};

template <class T> DEVICE double number_of(const Numbers& numbers, int at) {
    return numbers.tensor ? (double)((const T*)numbers.tensor)[at] : numbers.list.values[at];
}

template <class T, class F>
DEVICE Rung rung_of_family(const Memory& memory, const Ladder& ladder, int s, double reach,
                           const double* r) {  // r [sampled]
    typedef ThreadMath<double> Math;
    const int at = ladder.order[s];
    double bandwidth = number_of<T>(ladder.kernel.bandwidths, at);
    const double weight = number_of<T>(ladder.kernel.weights, at), alpha = memory.alpha;
    if (!(bandwidth > 0)) bandwidth = nan("");
    Rung rung;
    rung.squared = bandwidth * bandwidth;
    rung.rate = F::template rate<T>(bandwidth, alpha);
    rung.slope = (double)(T)bounded_by(Limits<T>::steepness, F::steepness(bandwidth) * weight);
    rung.weight = (double)(T)bounded_by(Limits<T>::rate, weight);
    rung.by_bandwidth = F::has_bandwidths ? -2 / sqrt(rung.squared) * rung.slope : 0 * sqrt(rung.squared);
    double typical = 0, slopes = 0;
    for (int k = threadIdx.x % warp_size; k < sampled; k += warp_size) {
        typical += F::template value<Math>(r[k] / rung.squared, alpha);
        // A point beside itself, in a sample's own term, would outweigh slopes that are tiny elsewhere.
        if (ladder.products && r[k] > 0)
            slopes += F::template relative_slope<Math>(r[k] / rung.squared, alpha);
    }
    typical = warp_sum(typical);
    rung.typical_slope = warp_sum(slopes) / sampled;
    rung.far = typical < 0.5 * sampled;
    const bool alone = rung.far && is_exponential<F>;
    rung.shifted = !alone && F::template relative_slope<Math>(reach / rung.squared, alpha) > 0.5;
    return rung;
}

template <class T>
DEVICE Rung rung_of(const Memory& memory, const Ladder& ladder, int s, double reach, const double* r) {
    return with_family(memory.family, [&](auto family) {
        return rung_of_family<T, decltype(family)>(memory, ladder, s, reach, r);
    });
}

// The largest squared distance between any two points, or a bit more, and the moments. By the triangle
// inequality over the samples' means: of a point of x from one of y at most x_reach + apart + y_reach, of two
// points of one sample twice its reach.
DEVICE double reach_of(const Memory& memory, int64_t b, const Segment* segments, bool two, double* scratch) {
    const int dim = memory.dim;
    double shifts[2] = {}, apart = 0;  // squared: of the means from the centers, and from each other
    for (int d = threadIdx.x; d < dim; d += threads) {
        double between = 0;
        for (int side = 0; side <= two; ++side) {
            const Statistics& of = memory.statistics[side];
            const double shift = mean_shift(of, b, dim, d, 0) / segments[side].count;
            memory.moment[(side * memory.batch + b) * dim + d] = mean_shift(of, b, dim, d, 1);
            shifts[side] += shift * shift;
            const double mean = of.center[b * dim + d] + shift;
            between = side == 0 ? mean : between - mean;
        }
        if (two) apart += between * between;
    }
    for (int side = 0; side <= two; ++side) shifts[side] = block_sum<threads>(shifts[side], scratch);
    apart = block_sum<threads>(apart, scratch);
    if (!two) shifts[1] = shifts[0];
    const double x_reach = reached(memory.statistics[0], b, shifts[0]);
    const double y_reach = two ? reached(memory.statistics[1], b, shifts[1]) : x_reach;
    const double reach = maximum(x_reach + y_reach + sqrt(apart), 2 * maximum(x_reach, y_reach));
    return reach * reach * (1 + 1e-5);  // distances as they are rounded
}

// Squared distances of pairs that stand for all, spread over both samples. The order of one is that of k, of
// the other a permutation (37 and 64 have no common factor), so that an order which the points may have does
// not decide.
template <class T>
DEVICE void sample_pairs(const Memory& memory, const Segment& x, const Segment& y, bool two,
                         double* r) {  // [sampled]
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size, dim = memory.dim;
    const int dims = x.count > 0 && y.count > 0 ? dim : 0;
    for (int k = warp; k < sampled; k += warps) {
        const int64_t i = x.first + k * x.count / sampled,
                      j = y.first + (k * 37 + 11) % sampled * y.count / sampled;
        const T* const p = (const T*)memory.samples[0].points + i * dim;
        const T* const q = (const T*)memory.samples[two].points + j * dim;
        double sum = 0;
        for (int d = lane; d < dims; d += warp_size) sum += ((double)p[d] - q[d]) * ((double)p[d] - q[d]);
        sum = warp_sum(sum);
        if (lane == 0) r[k] = sum;
    }
}

// Where all near bandwidths of a Gaussian are wide, they fold into a series, whose cost does not depend on
// their number: u(r) = r P(t), slope(r) - slope(0) = r Q(t) with t = 2 r / reach - 1. cpu/mmd/series.hpp has
// the mathematics; here P and Q come from values at Chebyshev nodes, one thread each. Not in double, which
// would take more terms than it saves; nor for a sample alone or beside a fixed one, where the value meets
// one of another origin; nor where sums per rung are wanted.
template <class T>
DEVICE Whole whole_of(const Memory& memory, const Ladder& ladder, const Rung* rungs, double reach, bool two) {
    const bool foldable =
        with_family(memory.family, [](auto family) { return is_foldable<decltype(family)>; });
    Whole whole = {reach, has_powers(memory.family), sizeof(T) == 4 && two && foldable, false, 0};
    int close = 0, wide = 0;
    for (int s = 0; s < memory.count; ++s) {
        close += !rungs[s].far;
        wide += !rungs[s].far && reach <= 2 * widest_reach * rungs[s].squared;
        whole.far += rungs[s].far && whole.powers;
    }
    const bool sane = reach > 1e-12 && reach < 1e12;  // or powers in float would be none (cpu/mmd/series.hpp)
    whole.folded = whole.may_fold && ladder.may_fold && wide == close && close > 1 && sane;
    return whole;
}

template <class T>
DEVICE void write_series(const Memory& memory, const Ladder& ladder, const Rung* rungs, const Whole& whole,
                         int64_t b,
                         double* values) {  // [2, series_terms], shared: at the nodes, over r
    if (threadIdx.x < series_terms) {
        const double at = 0.5 * whole.reach * (1 + ladder.nodes[threadIdx.x]);
        double value = 0, slope = 0;
        for (int s = 0; s < memory.count; ++s) {
            if (rungs[s].far || !whole.folded) continue;
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
    if (threadIdx.x == 0) series[2 * series_terms] = (T)(2 / whole.reach);
}

template <class T> DEVICE T rest_of(double x) { return (T)(x - (double)(T)x); }  // what rounding takes off

// The rungs' rows of the table, one thread each; far ones packed.
template <class T>
DEVICE void write_table(const Memory& memory, const Ladder& ladder, const Rung* rungs, const Whole& whole,
                        int64_t b) {
    constexpr double log2_e = Constants<double>::log2_e;
    const int count = memory.count;
    T* const table = (T*)memory.table + b * table_columns * count;
    double* const per_rung = memory.per_rung + b * 2 * count;
    for (int s = threadIdx.x; s < count; s += threads) {
        const Rung& rung = rungs[s];
        const bool alone = rung.far && whole.powers;
        const double most = bounded_by(Limits<T>::rate, (sizeof(T) == 8 ? 708.0 : 87.0) / fabs(rung.rate));
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
            const double base_2 = bounded_by(Limits<T>::rate, rung.rate * log2_e);
            set(far_rate, place, (T)base_2);
            set(far_low, place, rest_of<T>(base_2));
            set(far_limit, place, (T)most);
            set(far_weight, place, (T)rung.weight);
            set(far_steepness, place, (T)rung.slope);
            set(far_rung, place, (T)s);
        }
        per_rung[s] = rung.by_bandwidth;
        per_rung[count + s] = rung.far ? 1 : 0;
    }
}

// What tiles leave out of all slopes and values; by one thread.
template <class T>
DEVICE void write_terms(const Memory& memory, const Ladder& ladder, const Rung* rungs, const Whole& whole,
                        int64_t b) {
    double shift = 0, start = 0, offset = 0, typical = 0;
    for (int s = 0; s < memory.count; ++s) {
        const Rung& rung = rungs[s];
        if (rung.shifted) shift += rung.slope;
        if (whole.folded && !rung.far && !rung.shifted) start += rung.slope;
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
    terms[plan_far] = whole.far;
    terms[plan_folded] = whole.folded;
    terms[plan_approximate] = whole.may_fold && ladder.may_fold && ladder.normalized;
}

// What masses sum to; by one thread.
DEVICE void write_sample_terms(const Memory& memory, const Ladder& ladder, int64_t b, int side,
                               int64_t count) {
    const Statistics& of = memory.statistics[side];
    double mass = 0, squares = 0;
    for (int split = 0; split < of.parts; ++split) {
        mass += of.masses[2 * (b * of.parts + split)];
        squares += of.masses[2 * (b * of.parts + split) + 1];
    }
    double* const terms = memory.of_sample + (2 * b + side) * sample_terms;
    squares /= mass * mass;
    terms[sample_mass] = mass;
    const bool too_few = ladder.unbiased && count == 1;
    terms[sample_scale] = !ladder.normalized ? 1 : too_few ? nan("") : 1 / mass;
    terms[sample_squares] = squares;
    terms[sample_factor] = ladder.unbiased ? 1 / (1 - squares) : 1;
}

// A block for each member of the batch.
template <class T>
__global__ __launch_bounds__(threads, 1) void plan_kernel(const __grid_constant__ Memory memory,
                                                          const __grid_constant__ Ladder ladder) {
    SHARED(double, scratch, warps);
    SHARED(double, r, sampled);
    SHARED(Rung, rungs, most_listed);
    SHARED(double, values, 2 * series_terms);
    const int64_t b = blockIdx.x;
    const bool two = memory.samples[1].count > 0;
    const Segment segments[2] = {segment_of(memory.samples[0], b), segment_of(memory.samples[two], b)};
    const double reach = reach_of(memory, b, segments, two, scratch);
    sample_pairs<T>(memory, segments[0], segments[1], two, r);
    barrier();
    for (int s = threadIdx.x / warp_size; s < memory.count; s += warps) {
        const Rung rung = rung_of<T>(memory, ladder, s, reach, r);
        if (threadIdx.x % warp_size == 0) rungs[s] = rung;
    }
    barrier();
    const Whole whole = whole_of<T>(memory, ladder, rungs, reach, two);
    write_series<T>(memory, ladder, rungs, whole, b, values);
    write_table<T>(memory, ladder, rungs, whole, b);
    if (threadIdx.x != 0) return;
    write_terms<T>(memory, ladder, rungs, whole, b);
    for (int side = 0; side <= two; ++side) write_sample_terms(memory, ladder, b, side, segments[side].count);
}

template <class T> Status plan(const Memory& memory, const Ladder& ladder, void* stream) {
    const Statistics *x = &memory.statistics[0], *y = &memory.statistics[1];
    const int parts = x->parts > y->parts ? x->parts : y->parts;
    const dim3 grid((unsigned)(2 * memory.batch), x->chunks, parts);
    const Status first = launch("statistics_kernel", statistics_kernel<T>, grid, threads, stream, memory);
    return first + launch("plan_kernel", plan_kernel<T>, dim3((unsigned)memory.batch), threads, stream,
                          memory, ladder);
}

// Chebyshev nodes, and the matrix that makes powers' coefficients of values at them: the coefficient of T_k
// is the mean over the nodes of f T_k, doubled for k > 0, and T_k + 1 = 2 t T_k - T_k - 1 in powers of t.
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
    ladder.may_fold = !has_rungs(call) && !call.fixed_y;
    ladder.kernel = call.kernel;
    interpolate(ladder);
    order_rungs(call.kernel, ladder.order, ladder.follows);
    if (call.batch == 0) return {};
    return call.is_double ? plan<double>(memory, ladder, stream) : plan<float>(memory, ladder, stream);
}

}  // namespace fastmmd::cuda
