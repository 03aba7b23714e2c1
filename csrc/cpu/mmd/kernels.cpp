// The kernels, the plan of a sum of them, and its evaluation on squared distances.
#include "kernels.hpp"

#include "../../common/ladder.hpp"
#include "../math.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

// What the families' formulas need, on vectors.
template <class Element> struct VectorMath {
    typedef Element T;
    typedef Vector<T> V;
    static FASTMMD_INLINE V reciprocal(V x) { return T(1) / x; }
    static FASTMMD_INLINE V log1p(V x) { return log1p_of<T>(x); }
    static FASTMMD_INLINE Exponential<T> exponentials(V x) { return exponential<T>(x); }
    static FASTMMD_INLINE V at_most(V x, T limit) { return FASTMMD_ISA::at_most<T>(x, limit); }
};

// The arguments of a family at squared distances and, where they are roots, the reciprocals, 0 at 0.
template <class T, int N, class F>
FASTMMD_INLINE void arguments_of(const Vector<T>* distances, Vector<T>* argument, Vector<T>* inverse) {
    for (int v = 0; v < N; ++v) {
        if constexpr (F::takes_root) {
            argument[v] = square_roots<T>(distances[v]);
            inverse[v] = argument[v] > Vector<T>{} ? T(1) / argument[v] : Vector<T>{};
        } else {
            argument[v] = is_capped<F> ? at_most<T>(distances[v], (T)Limits<T>::argument) : distances[v];
        }
    }
}

// A family F on N vectors at once, whose chains of dependent operations overlap: begin(r) with the squared
// distances, next(rung) for each rung in order, then u(v), value(v), slope(v), shifted(v).
template <class T, int N, class F, bool = is_exponential<F>> struct Kappa {
    typedef Vector<T> V;
    V argument[N], inverse[N] = {};
    typename F::template At<VectorMath<T>> at[N];
    FASTMMD_INLINE void begin(const V* distances) { arguments_of<T, N, F>(distances, argument, inverse); }
    FASTMMD_INLINE void next(const Rung<T>& rung) {
        FASTMMD_UNROLL for (int v = 0; v < N; ++v) at[v] = {argument[v], inverse[v], rung.rate, rung.alpha};
    }
    FASTMMD_INLINE V u(int v) const { return at[v].u; }
    FASTMMD_INLINE V value(int v) const { return at[v].k; }
    FASTMMD_INLINE V slope(int v) const { return at[v].slope(); }
    FASTMMD_INLINE V shifted(int v) const { return at[v].shifted(); }
};

// An exponential climbs the ladder with u and k side by side. Squaring k doubles its relative error; u -> u
// (u + 2) multiplies that of u by 2 (1 + u) / (2 + u), at most 1 for -1 <= u <= 0, so u keeps its digits on
// every rung. 1 + u has the absolute error of a rounding: as good as k while k > 1/2, and better after some
// squarings, but worse the smaller k is. So k is 1 + u down to u = -1/2 and the square below, whose relative
// error stays within 23 (1 + r / (2 s^2)) roundings on every rung (docs/design.md, "The bandwidth ladder").
template <class T, int N, class F> struct Kappa<T, N, F, true> {
    typedef Vector<T> V;
    V argument[N], inverse[N] = {}, expm1[N] = {}, k[N] = {};
    FASTMMD_INLINE void begin(const V* distances) { arguments_of<T, N, F>(distances, argument, inverse); }
    FASTMMD_INLINE void next(const Rung<T>& rung) {
        if (rung.alone) {
            FASTMMD_UNROLL for (int v = 0; v < N; ++v) k[v] = near_exp2<T>(argument[v], rung.rate);
            return;
        }
        if (rung.squarings == 0 && rung.near) {
            FASTMMD_UNROLL for (int v = 0; v < N; ++v) set(v, near_exponential<T>(argument[v] * rung.rate));
        } else if (rung.squarings == 0) {
            FASTMMD_UNROLL for (int v = 0; v < N; ++v) set(v, exponential<T>(argument[v] * rung.rate));
        }
        if (rung.squarings == 0) return;
        for (int i = 0; i < rung.squarings; ++i) FASTMMD_UNROLL for (int v = 0; v < N; ++v) {
                expm1[v] = expm1[v] * expm1[v] + (expm1[v] + expm1[v]);
                k[v] = k[v] * k[v];
            }
        FASTMMD_UNROLL for (int v = 0; v < N; ++v) k[v] =
            expm1[v] > broadcast<T>(T(-0.5)) ? expm1[v] + T(1) : k[v];
    }
    FASTMMD_INLINE void set(int v, const Exponential<T>& e) { expm1[v] = e.expm1, k[v] = e.exp; }
    FASTMMD_INLINE V u(int v) const { return expm1[v]; }
    FASTMMD_INLINE V value(int v) const { return k[v]; }
    FASTMMD_INLINE V slope(int v) const { return F::takes_root ? k[v] * inverse[v] : k[v]; }
    FASTMMD_INLINE V shifted(int v) const { return F::smooth ? expm1[v] : slope(v); }
};

// sum_j mass_j u_j over a few vectors of squared distances r, which are replaced by the slopes.
template <class T, class F, bool Slopes, int Vectors>
FASTMMD_INLINE Vector<T> evaluate_vectors(const Plan<T>& plan, const T* mass, T* r) {
    Vector<T> distances[Vectors], u[Vectors] = {}, slope[Vectors] = {};
    for (int v = 0; v < Vectors; ++v) distances[v] = load(r + v * lanes<T>);
    if (plan.series.terms) {
        Vector<T> t[Vectors];
        const int last = plan.series.terms - 1;
        FASTMMD_UNROLL for (int v = 0; v < Vectors; ++v) {
            t[v] = distances[v] * plan.series.scale - T(1);
            u[v] = broadcast(plan.series.p[last]);
            slope[v] = broadcast(plan.series.q[last]);
        }
        for (int i = last - 1; i >= 0; --i) FASTMMD_UNROLL for (int v = 0; v < Vectors; ++v) {
                u[v] = u[v] * t[v] + plan.series.p[i];
                if constexpr (Slopes) slope[v] = slope[v] * t[v] + plan.series.q[i];
            }
        FASTMMD_UNROLL for (int v = 0; v < Vectors; ++v) {
            u[v] *= distances[v];
            slope[v] = slope[v] * distances[v] + plan.series.constant;
        }
    }
    Kappa<T, Vectors, F> kappa;
    kappa.begin(distances);
    for (int s = 0; s < plan.used; ++s) {
        const Rung<T>& rung = plan.rungs[s];
        kappa.next(rung);
        if (rung.far) {
            FASTMMD_UNROLL for (int v = 0; v < Vectors; ++v) u[v] += kappa.value(v) * rung.weight;
        } else {
            FASTMMD_UNROLL for (int v = 0; v < Vectors; ++v) u[v] += kappa.u(v) * rung.weight;
        }
        if constexpr (!Slopes) continue;
        if (rung.shifted) {
            FASTMMD_UNROLL for (int v = 0; v < Vectors; ++v) slope[v] += kappa.shifted(v) * rung.steepness;
        } else {
            FASTMMD_UNROLL for (int v = 0; v < Vectors; ++v) slope[v] += kappa.slope(v) * rung.steepness;
        }
    }
    Vector<T> sum = {};
    for (int v = 0; v < Vectors; ++v) {
        sum += load(mass + v * lanes<T>) * u[v];
        if constexpr (Slopes) store(r + v * lanes<T>, slope[v]);
    }
    return sum;
}

template <class T, class F, bool Slopes>
double evaluate(const Plan<T>& plan,
                const T* mass,  // [used]
                int used,
                T* r) {  // [used]
    Wide<T> total = {};  // in double early: what is left of mmd2 is a small difference of these sums
    int j = 0;
    for (; j + 4 * lanes<T> <= used; j += 4 * lanes<T>)
        total += widen<T>(evaluate_vectors<T, F, Slopes, 4>(plan, mass + j, r + j));
    for (; j < used; j += lanes<T>)
        total += widen<T>(evaluate_vectors<T, F, Slopes, 1>(plan, mass + j, r + j));
    return sum_halves<lanes<T>>(total);
}

template <class T, class F>
double evaluate_per_rung(const Plan<T>& plan,
                         const T* mass,  // [used]
                         int used,
                         T* r,  // [used]
                         double factor,
                         T* chunk,         // scratch [2 * S][lanes]
                         double* partial,  // scratch [2 * S][lanes]
                         double* sums) {   // [2 * S]
    constexpr int step = chunk_vectors * lanes<T>;
    const int count = plan.count;
    Wide<T> total = {};
    memset(partial, 0, 2 * count * sizeof(Wide<T>));
    for (int first = 0; first < used; first += step) {
        memset(chunk, 0, 2 * count * sizeof(Vector<T>));
        for (int j = first; j < smaller(first + step, used); j += lanes<T>) {
            const Vector<T> distances = load(r + j), weight = load(mass + j);
            const Vector<T> finite = at_most<T>(distances, (T)Limits<T>::argument);
            Kappa<T, 1, F> kappa;
            kappa.begin(&distances);
            Vector<T> u = {}, slope = {};
            for (int s = 0; s < count; ++s) {
                const Rung<T>& rung = plan.rungs[s];
                kappa.next(rung);
                u += kappa.u(0) * rung.weight;
                slope += (rung.shifted ? kappa.shifted(0) : kappa.slope(0)) * rung.steepness;
                T* by_slope = chunk + s * lanes<T>;
                T* by_u = chunk + (count + s) * lanes<T>;
                store(by_slope, load(by_slope) + weight * (finite * kappa.slope(0)));
                store(by_u, load(by_u) + weight * kappa.u(0));
            }
            total += widen<T>(weight * u);
            store(r + j, slope);
        }
        for (int s = 0; s < 2 * count; ++s) add_wide<T>(partial + s * lanes<T>, load(chunk + s * lanes<T>));
    }
    for (int s = 0; s < 2 * count; ++s) sums[s] += factor * sum_wide<T>(partial + s * lanes<T>);
    return sum_halves<lanes<T>>(total);
}

// Folds the bandwidths that are wide for squared distances up to `reach` into `plan.series`;
// returns the narrowest one that is, or infinity.
template <class T, class F>
double fold_wide(const Kernel& kernel, double reach, const PlanScratch& scratch, Plan<T>& plan) {
    const double narrowest_wide = sqrt(0.5 * reach / widest_reach);
    int count = 0;
    for (int i = 0; i < kernel.count; ++i) {
        const double s = kernel.bandwidths[i];
        if (!(s >= narrowest_wide)) continue;
        scratch.bandwidths[count] = s;
        scratch.weights[count] = kernel.weights[i];
        scratch.steepness[count] = -0.5 * kernel.weights[i] / (s * s);
        scratch.shifted[count] = F::template relative_slope<LibraryMath>(reach / (s * s), kernel.alpha) > 0.5;
        if (scratch.shifted[count]) plan.shift += scratch.steepness[count];
        ++count;
    }
    // An exponential takes about 16 operations, a rung of the ladder 12.
    const bool folded = count && fold_series<T>(scratch.bandwidths, scratch.weights, scratch.steepness,
                                                scratch.shifted, count, reach, 4 + 12 * count, plan.series);
    if (!folded) plan.shift = 0;
    return folded ? narrowest_wide : INFINITY;
}

// Rungs of a Gaussian that need the kernel alone take powers of 2: a rate that is rounded once more.
template <class T> void find_alone(Plan<T>& plan) {
    for (int i = 0; i < plan.used; ++i) {
        Rung<T>& rung = plan.rungs[i];
        const bool climbed = rung.squarings || (i + 1 < plan.used && plan.rungs[i + 1].squarings);
        rung.alone = rung.far && rung.near && !rung.shifted && !climbed;
        if (rung.alone) rung.rate = (T)(1.4426950408889634 * (double)rung.rate);
    }
}

// Rung of bandwidth `index` where nothing climbs to it.
template <class T, class F>
Rung<T> rung_of(const Kernel& kernel, int index, const Distances& distances, double reach, bool per_rung) {
    const double s = kernel.bandwidths[index] > 0 ? kernel.bandwidths[index] : NAN, w = kernel.weights[index],
                 alpha = kernel.alpha;
    const double rate = F::template rate<T>(s, alpha),
                 steepness = bounded_by(Limits<T>::steepness, w * F::steepness(s));
    const double farthest = distances.farthest / (s * s), typical = distances.typical / (s * s);
    Rung<T> rung = {};
    rung.rate = (T)rate;
    rung.weight = (T)w;
    rung.steepness = (T)steepness;
    rung.alpha = (T)alpha;
    rung.near = rate * (F::takes_root ? sqrt(reach) : reach) > (double)Format<T>::exp_smallest;
    rung.shifted = F::smooth && F::template relative_slope<LibraryMath>(farthest, alpha) > 0.5;
    rung.far = !per_rung && F::template value<LibraryMath>(typical, alpha) < 0.5;
    rung.index = index;
    rung.shift = rung.shifted ? steepness : 0;
    rung.by_bandwidth = F::has_bandwidths ? bounded_by(Limits<double>::steepness, -2 / s * steepness) : 0;
    return rung;
}

template <class T, class F>
void make_plan_of(const Kernel& kernel, const Distances& distances, bool per_rung, bool may_fold,
                  const PlanScratch& scratch, Plan<T>& plan) {
    plan.evaluate = evaluate<T, F, true>;
    plan.evaluate_value = evaluate<T, F, false>;
    plan.evaluate_per_rung = evaluate_per_rung<T, F>;
    const double reach = distances.farthest * (1 + 1e-5);  // distances as they are rounded
    double folded_from = INFINITY;
    if (is_foldable<F> && may_fold && !per_rung && reach > 1 / foldable_reach<T> && reach < foldable_reach<T>)
        folded_from = fold_wide<T, F>(kernel, reach, scratch, plan);
    plan_ladder(kernel.bandwidths, kernel.count, scratch.order, scratch.follows);
    bool after_folded = false;
    for (int i = 0; i < kernel.count; ++i) {
        const int index = scratch.order[i];
        if (kernel.bandwidths[index] >= folded_from) {
            after_folded = true;
            continue;
        }
        Rung<T>& rung = plan.rungs[plan.used++] = rung_of<T, F>(kernel, index, distances, reach, per_rung);
        rung.squarings = scratch.follows[i] && !after_folded ? F::squarings : 0;
        if (rung.far) plan.offset += rung.weight;
        plan.shift += rung.shift;
        after_folded = false;
    }
    if (is_foldable<F> && may_fold) find_alone(plan);
}

}  // namespace

template <class T>
void make_plan(const Kernel& kernel, int dim, const Distances& distances, bool per_rung, bool may_fold,
               Rung<T>* rungs, const PlanScratch& scratch, Plan<T>& plan) {
    plan = Plan<T>();
    plan.count = kernel.count;
    plan.rungs = rungs;
    plan.loops = pair_loops<T>(dim);
    with_family(kernel.family, [&](auto family) {
        make_plan_of<T, decltype(family)>(kernel, distances, per_rung, may_fold, scratch, plan);
    });
}

template void make_plan(const Kernel&, int, const Distances&, bool, bool, Rung<float>*, const PlanScratch&,
                        Plan<float>&);
template void make_plan(const Kernel&, int, const Distances&, bool, bool, Rung<double>*, const PlanScratch&,
                        Plan<double>&);

}  // namespace fastmmd::FASTMMD_ISA
