// The kernels, the plan of a sum of them, and its evaluation on squared distances.
#include "kernels.hpp"

#include "../common/ladder.hpp"
#include "math.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

// Every kernel, on N vectors at once, whose chains of dependent operations overlap: begin(r) with the squared
// distances, next(rung) for each rung in order, then u[v], value(v), slope(v), shifted(v).
template <class T, int N> struct Gaussian {  // exp(rate r), rate = -1 / (2 s^2)
    typedef Vector<T> V;
    V r[N], u[N] = {}, k[N] = {};
    FASTMMD_INLINE void begin(const V* distances) {
        for (int v = 0; v < N; ++v) r[v] = distances[v];
    }
    FASTMMD_INLINE void next(const Rung<T>& rung) {
        if (rung.alone) {
            FASTMMD_UNROLL for (int v = 0; v < N; ++v) k[v] = near_exp2<T>(r[v], rung.rate);
            return;
        }
        if (rung.squarings == 0 && rung.near) {
            FASTMMD_UNROLL for (int v = 0; v < N; ++v) set(v, near_exponential<T>(r[v] * rung.rate));
        } else if (rung.squarings == 0) {
            FASTMMD_UNROLL for (int v = 0; v < N; ++v) set(v, exponential<T>(r[v] * rung.rate));
        }
        if (rung.squarings == 0) return;
        for (int i = 0; i < rung.squarings; ++i) FASTMMD_UNROLL for (int v = 0; v < N; ++v) {
                u[v] = u[v] * u[v] + (u[v] + u[v]);
                k[v] = k[v] * k[v];  // loses relative accuracy near 1, as 1 + u does near 0
            }
        FASTMMD_UNROLL for (int v = 0; v < N; ++v) k[v] = u[v] > broadcast<T>(T(-0.5)) ? u[v] + T(1) : k[v];
    }
    FASTMMD_INLINE void set(int v, const Exponential<T>& e) { u[v] = e.expm1, k[v] = e.exp; }
    FASTMMD_INLINE V value(int v) const { return k[v]; }
    FASTMMD_INLINE V slope(int v) const { return k[v]; }
    FASTMMD_INLINE V shifted(int v) const { return u[v]; }
};

template <class T, int N>
struct Laplacian {  // exp(rate sqrt(r)), rate = -1 / s; slope in units of -1 / (2 s)
    typedef Vector<T> V;
    Gaussian<T, N> exponentials;
    V inverse[N], *u = exponentials.u;
    FASTMMD_INLINE void begin(const V* distances) {
        V root[N];
        for (int v = 0; v < N; ++v) {
            root[v] = square_roots<T>(distances[v]);
            inverse[v] = root[v] > V{} ? T(1) / root[v] : V{};
        }
        exponentials.begin(root);
    }
    FASTMMD_INLINE void next(const Rung<T>& rung) { exponentials.next(rung); }
    FASTMMD_INLINE V value(int v) const { return exponentials.k[v]; }
    FASTMMD_INLINE V slope(int v) const { return exponentials.k[v] * inverse[v]; }
    FASTMMD_INLINE V shifted(int v) const { return slope(v); }
};

template <class T>
constexpr T far_away = sizeof(T) == 4 ? T(1e30) : T(1e300);  // its square overflows, r / r does not

template <class T, int N> struct InverseMultiquadric {  // c / (c + r), rate = c = s^2
    typedef Vector<T> V;
    V r[N], u[N], k[N];
    FASTMMD_INLINE void begin(const V* distances) {
        for (int v = 0; v < N; ++v) r[v] = at_most<T>(distances[v], far_away<T>);
    }
    FASTMMD_INLINE void next(const Rung<T>& rung) {
        FASTMMD_UNROLL for (int v = 0; v < N; ++v) {
            const V inverse = T(1) / (r[v] + rung.rate);
            u[v] = -r[v] * inverse;
            k[v] = inverse * rung.rate;
        }
    }
    FASTMMD_INLINE V value(int v) const { return k[v]; }
    FASTMMD_INLINE V slope(int v) const { return k[v] * k[v]; }
    FASTMMD_INLINE V shifted(int v) const { return u[v] * (k[v] + T(1)); }
};

template <class T, int N> struct RationalQuadratic {  // (1 + q)^-alpha, q = rate r, rate = 1 / (2 alpha s^2)
    typedef Vector<T> V;
    V r[N], q[N], u[N], k[N], inverse[N];
    FASTMMD_INLINE void begin(const V* distances) {
        for (int v = 0; v < N; ++v) r[v] = at_most<T>(distances[v], far_away<T>);
    }
    FASTMMD_INLINE void next(const Rung<T>& rung) {
        FASTMMD_UNROLL for (int v = 0; v < N; ++v) {
            q[v] = at_most<T>(r[v] * rung.rate, far_away<T>);
            const Exponential<T> e = exponential<T>(log1p_of<T>(q[v]) * -rung.alpha);
            u[v] = e.expm1, k[v] = e.exp;
            inverse[v] = T(1) / (q[v] + T(1));
        }
    }
    FASTMMD_INLINE V value(int v) const { return k[v]; }
    FASTMMD_INLINE V slope(int v) const { return k[v] * inverse[v]; }
    FASTMMD_INLINE V shifted(int v) const { return (u[v] - q[v]) * inverse[v]; }
};

template <class T, int N> struct Energy {  // -sqrt(r); slope in units of -1/2
    typedef Vector<T> V;
    V u[N], inverse[N];
    FASTMMD_INLINE void begin(const V* distances) {
        for (int v = 0; v < N; ++v) {
            const V root = square_roots<T>(distances[v]);
            u[v] = -root;
            inverse[v] = root > V{} ? T(1) / root : V{};
        }
    }
    FASTMMD_INLINE void next(const Rung<T>&) {}
    FASTMMD_INLINE V value(int v) const { return u[v]; }
    FASTMMD_INLINE V slope(int v) const { return inverse[v]; }
    FASTMMD_INLINE V shifted(int v) const { return inverse[v]; }
};

// sum_j mass_j u_j over a few vectors of squared distances r, which are replaced by the slopes.
template <class T, template <class, int> class Kappa, bool Slopes, int Vectors>
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
    Kappa<T, Vectors> kappa;
    kappa.begin(distances);
    for (int s = 0; s < plan.used; ++s) {
        const Rung<T>& rung = plan.rungs[s];
        kappa.next(rung);
        if (rung.far) {
            FASTMMD_UNROLL for (int v = 0; v < Vectors; ++v) u[v] += kappa.value(v) * rung.weight;
        } else {
            FASTMMD_UNROLL for (int v = 0; v < Vectors; ++v) u[v] += kappa.u[v] * rung.weight;
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

template <class T, template <class, int> class Kappa, bool Slopes>
double evaluate(const Plan<T>& plan,
                const T* mass,  // [used]
                int used,
                T* r) {  // [used]
    Wide<T> total = {};  // in double early: what is left of mmd2 is a small difference of these sums
    int j = 0;
    for (; j + 4 * lanes<T> <= used; j += 4 * lanes<T>)
        total += widen<T>(evaluate_vectors<T, Kappa, Slopes, 4>(plan, mass + j, r + j));
    for (; j < used; j += lanes<T>)
        total += widen<T>(evaluate_vectors<T, Kappa, Slopes, 1>(plan, mass + j, r + j));
    return sum_halves<lanes<T>>(total);
}

template <class T, template <class, int> class Kappa>
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
            const Vector<T> finite = at_most<T>(distances, far_away<T>);
            Kappa<T, 1> kappa;
            kappa.begin(&distances);
            Vector<T> u = {}, slope = {};
            for (int s = 0; s < count; ++s) {
                const Rung<T>& rung = plan.rungs[s];
                kappa.next(rung);
                u += kappa.u[0] * rung.weight;
                slope += (rung.shifted ? kappa.shifted(0) : kappa.slope(0)) * rung.steepness;
                T* by_slope = chunk + s * lanes<T>;
                T* by_u = chunk + (count + s) * lanes<T>;
                store(by_slope, load(by_slope) + weight * (finite * kappa.slope(0)));
                store(by_u, load(by_u) + weight * kappa.u[0]);
            }
            total += widen<T>(weight * u);
            store(r + j, slope);
        }
        for (int s = 0; s < 2 * count; ++s) add_wide<T>(partial + s * lanes<T>, load(chunk + s * lanes<T>));
    }
    for (int s = 0; s < 2 * count; ++s) sums[s] += factor * sum_wide<T>(partial + s * lanes<T>);
    return sum_halves<lanes<T>>(total);
}

template <class T, template <class, int> class Kappa> void set_kernel(Plan<T>& plan) {
    plan.evaluate = evaluate<T, Kappa, true>;
    plan.evaluate_value = evaluate<T, Kappa, false>;
    plan.evaluate_per_rung = evaluate_per_rung<T, Kappa>;
}

// kappa'(r) / kappa'(0) of a smooth kernel; 0 for the others, whose slopes are never shifted.
inline double relative_slope(const Kernel& kernel, double s, double r) {
    const double q = r / (s * s);
    switch (kernel.name) {
        case KernelName::gaussian: return exp(-0.5 * q);
        case KernelName::imq: return 1 / ((1 + q) * (1 + q));
        case KernelName::rational_quadratic: return pow(1 + 0.5 * q / kernel.alpha, -kernel.alpha - 1);
        default: return 0;
    }
}

// kappa(r) of a bounded kernel; 1 for the other one.
inline double value_at(const Kernel& kernel, double s, double r) {
    const double q = r / (s * s);
    switch (kernel.name) {
        case KernelName::gaussian: return exp(-0.5 * q);
        case KernelName::laplacian: return exp(-sqrt(q));
        case KernelName::imq: return 1 / (1 + q);
        case KernelName::rational_quadratic: return pow(1 + 0.5 * q / kernel.alpha, -kernel.alpha);
        default: return 1;
    }
}

// |value| at most limit; NaN stays NaN.
inline double bounded(double value, double limit) {
    return value > limit ? limit : value < -limit ? -limit : value;
}

// Bandwidths that are tiny in T get the largest numbers that still give 0 at r = 0: inf would give NaN. The
// slopes leave room for masses.
template <class T> constexpr double steepest = (double)Format<T>::largest * 0x1p-20;
template <class T> constexpr double narrowest = sizeof(T) == 4 ? 0x1p-126 : 0x1p-1022;

// Folds the bandwidths of a Gaussian that are wide for squared distances up to `reach` into `plan.series`;
// returns the narrowest one that is, or infinity.
template <class T>
double fold_wide(const Kernel& kernel, double reach, const PlanScratch& scratch, Plan<T>& plan) {
    const double narrowest_wide = sqrt(0.5 * reach / widest_reach);
    int count = 0;
    for (int i = 0; i < kernel.count; ++i) {
        const double s = kernel.bandwidths[i];
        if (!(s >= narrowest_wide)) continue;
        scratch.bandwidths[count] = s;
        scratch.weights[count] = kernel.weights[i];
        scratch.steepness[count] = -0.5 * kernel.weights[i] / (s * s);
        scratch.shifted[count] = relative_slope(kernel, s, reach) > 0.5;
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

}  // namespace

template <class T>
void make_plan(const Kernel& kernel, int dim, const Distances& distances, bool per_rung, bool may_fold,
               Rung<T>* rungs, const PlanScratch& scratch, Plan<T>& plan) {
    plan = Plan<T>();
    plan.count = kernel.count;
    plan.rungs = rungs;
    plan.loops = pair_loops<T>(dim);
    int squarings = 0;
    switch (kernel.name) {
        case KernelName::gaussian: set_kernel<T, Gaussian>(plan), squarings = 2; break;
        case KernelName::laplacian: set_kernel<T, Laplacian>(plan), squarings = 1; break;
        case KernelName::imq: set_kernel<T, InverseMultiquadric>(plan); break;
        case KernelName::rational_quadratic: set_kernel<T, RationalQuadratic>(plan); break;
        case KernelName::energy: set_kernel<T, Energy>(plan); break;
    }
    const double reach = distances.farthest * (1 + 1e-5);  // distances as they are rounded
    double folded_from = INFINITY;
    if (may_fold && !per_rung && kernel.name == KernelName::gaussian && reach > 1e-30 && reach < 1e30)
        folded_from = fold_wide(kernel, reach, scratch, plan);
    plan_ladder(kernel.bandwidths, kernel.count, scratch.order, scratch.follows);
    bool after_folded = false;
    for (int i = 0; i < kernel.count; ++i) {
        const int index = scratch.order[i];
        const double s = kernel.bandwidths[index] > 0 ? kernel.bandwidths[index] : NAN,
                     w = kernel.weights[index];
        if (s >= folded_from) {
            after_folded = true;
            continue;
        }
        double rate = 0, steepness = 0, argument = reach;
        switch (kernel.name) {
            case KernelName::gaussian: rate = steepness = -0.5 / (s * s); break;
            case KernelName::laplacian: rate = -1 / s, steepness = -0.5 / s, argument = sqrt(reach); break;
            case KernelName::imq:
                rate = s * s < narrowest<T> ? narrowest<T> : s * s, steepness = -1 / (s * s);
                break;
            case KernelName::rational_quadratic:
                rate = 0.5 / (kernel.alpha * s * s), steepness = -0.5 / (s * s);
                break;
            case KernelName::energy: steepness = -0.5; break;
        }
        rate = bounded(rate, (double)Format<T>::largest);
        steepness = bounded(w * steepness, steepest<T>);
        Rung<T>& rung = rungs[plan.used++];
        rung = Rung<T>();
        rung.rate = (T)rate;
        rung.weight = (T)w;
        rung.steepness = (T)steepness;
        rung.alpha = (T)kernel.alpha;
        rung.squarings = scratch.follows[i] && !after_folded ? squarings : 0;
        rung.near = rate * argument > (double)Format<T>::exp_smallest;
        rung.shifted = relative_slope(kernel, s, distances.farthest) > 0.5;
        rung.far = !per_rung && value_at(kernel, s, distances.typical) < 0.5;
        if (rung.far) plan.offset += rung.weight;
        rung.index = index;
        rung.by_bandwidth =
            kernel.name == KernelName::energy ? 0 : bounded(-2 / s * steepness, steepest<double>);
        if (rung.shifted) plan.shift += steepness;
        after_folded = false;
    }
    if (may_fold && kernel.name == KernelName::gaussian) find_alone(plan);
}

template void make_plan(const Kernel&, int, const Distances&, bool, bool, Rung<float>*, const PlanScratch&,
                        Plan<float>&);
template void make_plan(const Kernel&, int, const Distances&, bool, bool, Rung<double>*, const PlanScratch&,
                        Plan<double>&);

}  // namespace fastmmd::FASTMMD_ISA
