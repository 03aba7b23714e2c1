// The kernels of mmd2 and witness on one tile of squared distances.
//
// k(r) = sum_s weights_s kappa(r; s). The kernels give u = kappa(r) - kappa(0) and the slope kappa'(r), the
// latter in units of a constant `steepness` per bandwidth (kappa'(0) where the kernel is smooth), as it is
// and minus its value at r = 0. Whichever of the two is smaller keeps more digits, so every rung says which
// one it adds; what the shifted ones leave out is linear in the points and is added in closed form (`shift`
// below). The farthest pair decides: there the closed form cancels against the sum, which would leave an
// outlier nothing but rounding, however close the other pairs are. For the value it is a typical pair: where
// the kernel is small, u = kappa - 1 would round it away, alike for all pairs, and kappa itself is added.
//
// The wide bandwidths of a Gaussian are folded into two polynomials (series.hpp), the others climb the
// ladder (common/ladder.hpp); sums per bandwidth take the ladder for all.
#pragma once
#include "../calls.hpp"
#include "../pairs.hpp"
#include "series.hpp"

namespace fastmmd::FASTMMD_ISA {

template <class T> struct Rung {
    T rate;       // what multiplies or offsets r, see the kernels
    T weight;     // of u
    T steepness;  // of the slope; the kernel's weight is in it
    T alpha;
    int squarings;  // 0: evaluate; else square the rung before so many times
    bool near;      // no argument of the exponential is out of range of near_exponential()
    bool shifted;   // adds the slope minus its value at r = 0
    bool far;       // adds the kernel instead of u
    bool alone;     // a Gaussian of which that is all: near, not shifted, and no rung climbs from or to it
    int index;      // of its bandwidth in the caller's list
    double shift;   // what the slope leaves out
    double by_bandwidth;  // d kappa / d bandwidth = by_bandwidth * r * slope, weight included
};

template <class T> struct Plan {
    int count;         // S
    int used;          // rungs that are not folded
    Rung<T>* rungs;    // [used]
    Series<T> series;  // the folded ones
    double shift;      // sum over shifted rungs of weight * kappa'(0)
    double offset;     // sum over far rungs of weight * kappa(0): what their sums exceed those of u by
    PairLoops<T> loops;
    // One row against one tile: returns sum_j mass_j (u_j + offset) and replaces the distances r by the
    // slopes.
    double (*evaluate)(const Plan& plan,
                       const T* mass,  // [used]
                       int used,
                       T* r);  // [used]
    // Returns the same and leaves the distances.
    double (*evaluate_value)(const Plan& plan, const T* mass, int used, T* r);
    // As `evaluate`, and rung s adds factor * sum_j mass_j r_j slope_j to sums[s] and factor * sum_j mass_j
    // u_j to sums[S + s]. Nothing may be folded.
    double (*evaluate_per_rung)(const Plan& plan, const T* mass, int used, T* r, double factor,
                                T* chunk,         // scratch [2 * S][lanes]
                                double* partial,  // scratch [2 * S][lanes]
                                double* sums);    // [2 * S]
};

// Scratch for make_plan, [S] each.
struct PlanScratch {
    int* order;
    bool *follows, *shifted;
    double *bandwidths, *weights, *steepness;
};

// Squared distances between the points that a plan is for.
struct Distances {
    double farthest, typical;
};

// Fills `plan`, with `rungs` [S]. For sums per rung nothing is folded or far; without `may_fold` nothing is
// rounded alike for all pairs.
template <class T>
void make_plan(const Kernel& kernel, int dim, const Distances& distances, bool per_rung, bool may_fold,
               Rung<T>* rungs, const PlanScratch& scratch, Plan<T>& plan);  // kernels.cpp

namespace {

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
