// The kernels of mmd2 and witness on one tile of squared distances.
//
// k(r) = sum_s weights_s kappa(r; s). The kernels give u = kappa(r) - kappa(0) and the slope kappa'(r), the
// latter in units of a constant `steepness` per bandwidth (kappa'(0) where the kernel is smooth), as it is
// and minus its value at r = 0. Whichever of the two is smaller keeps more digits, so every rung says which
// one it adds; what the shifted ones leave out is linear in the points and is added in closed form (`shift`
// below). The farthest pair decides: there the closed form cancels against the sum, which would leave an
// outlier nothing but rounding, however close the other pairs are.
#pragma once
#include "../common/ladder.hpp"
#include "math.hpp"
#include "operations.hpp"
#include "tiles.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

template <class T> struct Rung {
    T rate;       // what multiplies or offsets r, see the kernels below
    T weight;     // of u
    T steepness;  // of the slope; the kernel's weight is in it
    T alpha;
    int squarings;        // 0: evaluate; else square the rung before so many times
    bool shifted;         // adds the slope minus its value at r = 0
    int index;            // of its bandwidth in the caller's list
    double by_bandwidth;  // d kappa / d bandwidth = by_bandwidth * r * slope, weight included
};

// Every kernel: begin(r) for a vector of squared distances, next(rung) for each rung in order, then u, slope,
// shifted.
template <class T> struct Gaussian {  // exp(rate r), rate = -1 / (2 s^2)
    typedef Vector<T> V;
    V r, u = {}, k = {};
    FASTMMD_INLINE void begin(V distances) { r = distances; }
    FASTMMD_INLINE void next(const Rung<T>& rung) {
        if (rung.squarings == 0) {
            const Exponential<T> e = exponential<T>(r * rung.rate);
            u = e.expm1, k = e.exp;
        }
        for (int i = 0; i < rung.squarings; ++i) {
            const V square = k * k;  // loses relative accuracy near 1, as 1 + u does near 0
            u = u * (u + T(2));
            k = u > broadcast<T>(T(-0.5)) ? u + T(1) : square;
        }
    }
    FASTMMD_INLINE V slope() const { return k; }
    FASTMMD_INLINE V shifted() const { return u; }
};

template <class T> struct Laplacian {  // exp(rate sqrt(r)), rate = -1 / s; slope in units of -1 / (2 s)
    typedef Vector<T> V;
    Gaussian<T> exponentials;
    V u, inverse;
    FASTMMD_INLINE void begin(V distances) {
        const V root = square_roots<T>(distances);
        inverse = root > V{} ? T(1) / root : V{};
        exponentials.begin(root);
    }
    FASTMMD_INLINE void next(const Rung<T>& rung) {
        exponentials.next(rung);
        u = exponentials.u;
    }
    FASTMMD_INLINE V slope() const { return exponentials.k * inverse; }
    FASTMMD_INLINE V shifted() const { return slope(); }
};

template <class T>
constexpr T far_away = sizeof(T) == 4 ? T(1e30) : T(1e300);  // its square overflows, r / r does not

template <class T> struct InverseMultiquadric {  // c / (c + r), rate = c = s^2
    typedef Vector<T> V;
    V r, u, k;
    FASTMMD_INLINE void begin(V distances) { r = at_most<T>(distances, far_away<T>); }
    FASTMMD_INLINE void next(const Rung<T>& rung) {
        const V inverse = T(1) / (r + rung.rate);
        u = -r * inverse;
        k = inverse * rung.rate;
    }
    FASTMMD_INLINE V slope() const { return k * k; }
    FASTMMD_INLINE V shifted() const { return u * (k + T(1)); }
};

template <class T> struct RationalQuadratic {  // (1 + q)^-alpha, q = rate r, rate = 1 / (2 alpha s^2)
    typedef Vector<T> V;
    V r, q, u, k, inverse;
    FASTMMD_INLINE void begin(V distances) { r = at_most<T>(distances, far_away<T>); }
    FASTMMD_INLINE void next(const Rung<T>& rung) {
        q = at_most<T>(r * rung.rate, far_away<T>);
        const Exponential<T> e = exponential<T>(log1p_of<T>(q) * -rung.alpha);
        u = e.expm1, k = e.exp;
        inverse = T(1) / (q + T(1));
    }
    FASTMMD_INLINE V slope() const { return k * inverse; }
    FASTMMD_INLINE V shifted() const { return (u - q) * inverse; }
};

template <class T> struct Energy {  // -sqrt(r); slope in units of -1/2
    typedef Vector<T> V;
    V u, inverse;
    FASTMMD_INLINE void begin(V distances) {
        const V root = square_roots<T>(distances);
        u = -root;
        inverse = root > V{} ? T(1) / root : V{};
    }
    FASTMMD_INLINE void next(const Rung<T>&) {}
    FASTMMD_INLINE V slope() const { return inverse; }
    FASTMMD_INLINE V shifted() const { return inverse; }
};

// One row against one tile: replaces the distances r by the coefficients c = mass * slope and returns
// sum_j mass_j u_j. With PerRung, rung s adds factor * sum_j mass_j r_j slope_j to sums[s] and factor * sum_j
// mass_j u_j to sums[S + s].
template <class T, template <class> class Kappa, bool PerRung>
double evaluate(const Rung<T>* rungs, int count,
                const T* mass,  // [used]
                int used,
                T* r,  // [used]: squared distances in, coefficients out
                double factor,
                T* chunk,         // scratch [2 * count][lanes]
                double* partial,  // scratch [2 * count][lanes]
                double* sums) {   // [2 * count]
    constexpr int step = PerRung ? chunk_vectors * lanes<T> : tile_columns;
    Wide<T> total = {};  // in double from the start: what is left of mmd2 is a small difference of these sums
    if constexpr (PerRung) memset(partial, 0, 2 * count * sizeof(Wide<T>));
    for (int first = 0; first < used; first += step) {
        if constexpr (PerRung) memset(chunk, 0, 2 * count * sizeof(Vector<T>));
        for (int j = first; j < smaller(first + step, used); j += lanes<T>) {
            const Vector<T> distances = load(r + j), weight = load(mass + j);
            Kappa<T> kappa;
            kappa.begin(distances);
            Vector<T> u = {}, slope = {};
            for (int s = 0; s < count; ++s) {
                const Rung<T>& rung = rungs[s];
                kappa.next(rung);
                u += kappa.u * rung.weight;
                slope += (rung.shifted ? kappa.shifted() : kappa.slope()) * rung.steepness;
                if constexpr (PerRung) {
                    T* by_slope = chunk + s * lanes<T>;
                    T* by_u = chunk + (count + s) * lanes<T>;
                    const Vector<T> finite = at_most<T>(distances, far_away<T>);
                    store(by_slope, load(by_slope) + weight * (finite * kappa.slope()));
                    store(by_u, load(by_u) + weight * kappa.u);
                }
            }
            total += widen<T>(weight * u);
            store(r + j, weight * slope);
        }
        if constexpr (PerRung)
            for (int s = 0; s < 2 * count; ++s)
                add_wide<T>(partial + s * lanes<T>, load(chunk + s * lanes<T>));
    }
    if constexpr (PerRung)
        for (int s = 0; s < 2 * count; ++s) sums[s] += factor * sum_wide<T>(partial + s * lanes<T>);
    return sum_halves<lanes<T>>(total);
}

template <class T> struct Plan {
    int count;       // S
    Rung<T>* rungs;  // [S]
    double shift;    // sum over shifted rungs of weight * kappa'(0)
    PairLoops<T> loops;
    double (*evaluate)(const Rung<T>*, int, const T*, int, T*, double, T*, double*, double*);
    double (*evaluate_per_rung)(const Rung<T>*, int, const T*, int, T*, double, T*, double*, double*);
};

template <class T, template <class> class Kappa> void set_kernel(Plan<T>& plan) {
    plan.evaluate = evaluate<T, Kappa, false>;
    plan.evaluate_per_rung = evaluate<T, Kappa, true>;
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

// |value| at most limit; NaN stays NaN.
inline double bounded(double value, double limit) {
    return value > limit ? limit : value < -limit ? -limit : value;
}

// Bandwidths that are tiny in T get the largest numbers that still give 0 at r = 0: inf would give NaN. The
// slopes leave room for masses.
template <class T> constexpr double steepest = (double)Format<T>::largest * 0x1p-20;
template <class T> constexpr double narrowest = sizeof(T) == 4 ? 0x1p-126 : 0x1p-1022;

// Fills `plan.rungs` [S] for samples whose squared distances are at most `farthest_r`.
template <class T>
void make_plan(const Kernel& kernel, int dim, double farthest_r, Rung<T>* rungs,
               int* order,     // scratch [S]
               bool* follows,  // scratch [S]
               Plan<T>& plan) {
    plan = {kernel.count, rungs, 0, pair_loops<T>(dim), nullptr, nullptr};
    int squarings = 0;
    switch (kernel.name) {
        case KernelName::gaussian: set_kernel<T, Gaussian>(plan), squarings = 2; break;
        case KernelName::laplacian: set_kernel<T, Laplacian>(plan), squarings = 1; break;
        case KernelName::imq: set_kernel<T, InverseMultiquadric>(plan); break;
        case KernelName::rational_quadratic: set_kernel<T, RationalQuadratic>(plan); break;
        case KernelName::energy: set_kernel<T, Energy>(plan); break;
    }
    plan_ladder(kernel.bandwidths, kernel.count, order, follows);
    for (int i = 0; i < kernel.count; ++i) {
        const int index = order[i];
        const double s = kernel.bandwidths[index] > 0 ? kernel.bandwidths[index] : NAN,
                     w = kernel.weights[index];
        double rate = 0, steepness = 0;
        switch (kernel.name) {
            case KernelName::gaussian: rate = steepness = -0.5 / (s * s); break;
            case KernelName::laplacian: rate = -1 / s, steepness = -0.5 / s; break;
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
        const bool shifted = relative_slope(kernel, s, farthest_r) > 0.5;
        const double by_bandwidth =
            kernel.name == KernelName::energy ? 0 : bounded(-2 / s * steepness, steepest<double>);
        rungs[i] = {(T)rate, (T)w,  (T)steepness, (T)kernel.alpha, follows[i] ? squarings : 0,
                    shifted, index, by_bandwidth};
        if (shifted) plan.shift += steepness;
    }
}

// Gradients in bandwidths and kernel weights, in the caller's order, from sums [2 * S] as `evaluate` leaves
// them.
template <class T>
void rung_gradients(const Plan<T>& plan, const double* sums,
                    T* bandwidths,        // [S] or null
                    T* kernel_weights) {  // [S] or null
    for (int s = 0; s < plan.count; ++s) {
        const Rung<T>& rung = plan.rungs[s];
        if (bandwidths) bandwidths[rung.index] = (T)(rung.by_bandwidth * sums[s]);
        if (kernel_weights) kernel_weights[rung.index] = (T)sums[plan.count + s];
    }
}

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
