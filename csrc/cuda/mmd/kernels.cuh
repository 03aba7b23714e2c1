// The kernels of mmd2 and witness on squared distances, as a plan says: common/families.hpp has the formulas.
#pragma once
#include "memory.cuh"

namespace fastmmd::cuda {
namespace {

constexpr int most_far = 4;  // of evaluate_folded

// The kernels' table and terms for one member of the batch.
template <class T> struct Evaluator {
    Family family;
    int count, far;
    bool folded, approximate;
    T start, alpha;
    const T* table;  // [S, table_columns]
    T p[series_terms], q[series_terms], scale;

    DEVICE Evaluator(const Memory& memory, int64_t b) {
        const double* terms = memory.terms + b * plan_terms;
        family = memory.family;
        count = memory.count;
        far = (int)terms[plan_far];
        folded = terms[plan_folded] > 0;
        approximate = terms[plan_approximate] > 0;
        start = (T)terms[plan_start];
        alpha = (T)memory.alpha;
        table = (const T*)memory.table + b * table_columns * count;
        if constexpr (sizeof(T) == 4) {
            const T* series = (const T*)memory.series + b * most_series;
#pragma unroll
            for (int k = 0; k < series_terms; ++k) p[k] = series[k], q[k] = series[series_terms + k];
            scale = series[2 * series_terms];
        }
    }

    DEVICE T at(int column, int s) const { return table[s * table_columns + column]; }
    // Whether evaluate_folded does it.
    DEVICE bool fast() const { return sizeof(T) == 4 && folded && approximate && far <= most_far; }
};

// Leaves the sums per rung alone.
struct NoRungs {
    template <class T, int R> DEVICE void add(int, T, const T (&)[R], const T (&)[R]) {}
};

// A warp's sums per rung, in memory: of r slope and of u, weighted.
template <class T, int SIZE> struct WarpRungs {
    double* sums;  // [2, S]
    int count;
    T shares[SIZE], finite[SIZE];  // of the pairs that are evaluated: weights, distances

    template <int R> DEVICE void add(int s, T times, const T (&slopes)[R], const T (&term)[R]) {
        T by_slope = 0, by_value = 0;
#pragma unroll
        for (int a = 0; a < R; ++a) {
            by_slope += shares[a] * (finite[a] * slopes[a]);
            by_value += shares[a] * term[a];
        }
        const T slope = warp_sum(by_slope) * times, value = warp_sum(by_value) * times;
        if (threadIdx.x % warp_size == 0) sums[s] += slope, sums[count + s] += value;
    }
};

// The slope of a family of roots has a factor 1 / sqrt(r).
template <class F, class T> DEVICE T with_root(T slope, T inverse) {
    return F::takes_root ? slope * inverse : slope;
}

// exp(rate argument) - 1 of the near rungs of an exponential family F, one from another by squaring where it
// can be: with u = k - 1 the square k^2 - 1 is u (u + 2). `inverse`: of the root, 1 where there is none.
template <class F, class T, int R, class Rungs>
DEVICE void ladder(const Evaluator<T>& e, const T (&argument)[R], const T (&inverse)[R], T (&total)[R],
                   T (&slope)[R], Rungs& rungs) {
    T u[R];
#pragma unroll
    for (int a = 0; a < R; ++a) u[a] = 0;
    for (int s = 0; s < e.count; ++s) {
        if (e.at(follows, s) > 0) {
#pragma unroll
            for (int a = 0; a < R; ++a)
#pragma unroll
                for (int times = 0; times < F::squarings; ++times) u[a] = u[a] * u[a] + (u[a] + u[a]);
        } else if (e.at(near, s) > 0) {  // else it counts nothing
            const T high = e.at(rate, s), rest = e.at(low, s), most = e.at(limit, s);
#pragma unroll
            for (int a = 0; a < R; ++a) {
                const T x = minimum(argument[a], most);
                u[a] = exponentials(x * high + x * rest).expm1;
            }
        }
        const T w = e.at(weight, s), steep = e.at(steepness, s), one = e.at(plain, s);
        T slopes[R];
#pragma unroll
        for (int a = 0; a < R; ++a) {
            total[a] += w * u[a];
            slope[a] += steep * (u[a] + one);  // exactly 0 where kappa is
            slopes[a] = with_root<F>(u[a] + 1, inverse[a]);
        }
        rungs.add(s, e.at(near, s), slopes, u);
    }
}

// What far rungs of an exponential family add: powers of 2.
template <class F, class T, int R, class Rungs>
DEVICE void far_rungs(const Evaluator<T>& e, const T (&argument)[R], const T (&inverse)[R], T (&total)[R],
                      T (&slope)[R], Rungs& rungs) {
    for (int s = 0; s < e.far; ++s) {
        const T high = e.at(far_rate, s), w = e.at(far_weight, s), steep = e.at(far_steepness, s);
        T kappa[R], slopes[R];
        if (sizeof(T) == 4 && e.approximate) {
#pragma unroll
            for (int a = 0; a < R; ++a) kappa[a] = exp2_approximate((float)(argument[a] * high));
        } else {
            const T rest = e.at(far_low, s), most = e.at(far_limit, s);
#pragma unroll
            for (int a = 0; a < R; ++a) kappa[a] = power_of_2(minimum(argument[a], most), high, rest);
        }
#pragma unroll
        for (int a = 0; a < R; ++a) {
            total[a] += w * kappa[a];
            slope[a] += steep * kappa[a];
            slopes[a] = with_root<F>(kappa[a], inverse[a]);
        }
        rungs.add((int)e.at(far_rung, s), T(1), slopes, kappa);
    }
}

// The rungs of a family that is no exponential.
template <class F, class T, int R, class Rungs>
DEVICE void other_rungs(const Evaluator<T>& e, const T (&argument)[R], const T (&inverse)[R], T (&total)[R],
                        T (&slope)[R], Rungs& rungs) {
    for (int s = 0; s < e.count; ++s) {
        const T by = e.at(rate, s), w = e.at(weight, s), steep = e.at(steepness, s);
        const bool is_near = e.at(near, s) > 0, is_plain = e.at(plain, s) > 0;
        T slopes[R], term[R];
#pragma unroll
        for (int a = 0; a < R; ++a) {
            const typename F::template At<ThreadMath<T>> kappa(argument[a], inverse[a], by, e.alpha);
            slopes[a] = kappa.slope();
            term[a] = is_near ? kappa.u : kappa.k;
            total[a] += w * term[a];
            slope[a] += steep * (is_plain ? slopes[a] : kappa.shifted());
        }
        rungs.add(s, T(1), slopes, term);
    }
}

// Wide bandwidths of a Gaussian: u = r P(t), slope = r Q(t), t = 2 r / reach - 1.
template <class T, int R>
DEVICE void add_series(const Evaluator<T>& e, const T (&r)[R], T (&total)[R], T (&slope)[R]) {
#pragma unroll
    for (int a = 0; a < R; ++a) {
        const T t = r[a] * e.scale - 1;
        T values = e.p[series_terms - 1], slopes = e.q[series_terms - 1];
#pragma unroll
        for (int k = series_terms - 2; k >= 0; --k) {
            values = values * t + e.p[k];
            slopes = slopes * t + e.q[k];
        }
        total[a] = r[a] * values;
        slope[a] += r[a] * slopes;
    }
}

// Up to FAR far rungs in registers; those that are not there count nothing.
template <int FAR> struct FarRungs {
    float rate[FAR], weight[FAR], steepness[FAR];

    DEVICE explicit FarRungs(const Evaluator<float>& e) {
#pragma unroll
        for (int s = 0; s < FAR; ++s) {
            rate[s] = s < e.far ? e.at(far_rate, s) : 0;
            weight[s] = s < e.far ? e.at(far_weight, s) : 0;
            steepness[s] = s < e.far ? e.at(far_steepness, s) : 0;
        }
    }
};

// `evaluate` where wide bandwidths fold, powers may be approximate and at most FAR rungs are far, without a
// branch: what most training meets.
template <int FAR, int R>
DEVICE void evaluate_folded(const Evaluator<float>& e, const FarRungs<FAR>& far, const float (&r)[R],
                            float (&total)[R], float (&slope)[R]) {
#pragma unroll
    for (int a = 0; a < R; ++a) slope[a] = e.start;
    add_series(e, r, total, slope);
#pragma unroll
    for (int s = 0; s < FAR; ++s)
#pragma unroll
        for (int a = 0; a < R; ++a) {
            const float kappa = exp2_approximate(r[a] * far.rate[s]);
            total[a] += far.weight[s] * kappa;
            slope[a] += far.steepness[s] * kappa;
        }
}

template <class F, class T, int R, class Rungs>
DEVICE void evaluate_family(const Evaluator<T>& e, const T (&r)[R], T (&total)[R], T (&slope)[R],
                            Rungs& rungs) {
    T argument[R], inverse[R];
#pragma unroll
    for (int a = 0; a < R; ++a) {
        total[a] = 0, slope[a] = e.start, argument[a] = r[a], inverse[a] = 1;
        if (is_capped<F>) argument[a] = minimum(r[a], (T)Limits<T>::argument);
        if (F::takes_root) {
            const Root<T> both = root_of(r[a]);
            argument[a] = both.root, inverse[a] = both.inverse;
        }
    }
    if constexpr (is_exponential<F>) {
        if (is_foldable<F> && sizeof(T) == 4 && e.folded)
            add_series(e, r, total, slope);
        else
            ladder<F>(e, argument, inverse, total, slope, rungs);
        far_rungs<F>(e, argument, inverse, total, slope, rungs);
#pragma unroll
        for (int a = 0; a < R; ++a) slope[a] = with_root<F>(slope[a], inverse[a]);
    } else {
        other_rungs<F>(e, argument, inverse, total, slope, rungs);
    }
}

// The kernels at R squared distances:
//   total = sum_s weight_s kappa_s(r)          of a far rung, weight_s u_s(r) of a near one
//   slope = sum_s weight_s kappa_s'(r) - shift
template <class T, int R, class Rungs>
DEVICE void evaluate(const Evaluator<T>& e, const T (&r)[R], T (&total)[R], T (&slope)[R], Rungs& rungs) {
    with_family(e.family, [&](auto family) { evaluate_family<decltype(family)>(e, r, total, slope, rungs); });
}

}  // namespace
}  // namespace fastmmd::cuda
