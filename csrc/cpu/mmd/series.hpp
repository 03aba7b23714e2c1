// Wide bandwidths of a Gaussian, folded into two polynomials. Where every r / (2 s^2) is at most
// `widest_reach`,
//
//   u(r)     = sum_s w_s (exp(-r / (2 s^2)) - 1)                        = r P(t)
//   slope(r) = sum_s steepness_s exp(-r / (2 s^2)), some minus steepness_s  = constant + r Q(t)
//
// with t = 2 r / reach - 1 in [-1, 1]: the cost no longer depends on the number of bandwidths. P and Q come
// from the Chebyshev series of exp(-z (1 + t)), whose coefficients are modified Bessel functions (Abramowitz
// and Stegun 9.6.34), divided by 1 + t and cut where what is left out is below the rounding of T.
#pragma once
#include <math.h>

namespace fastmmd::FASTMMD_ISA {

constexpr int most_terms = 24;  // of P and Q

template <class T> struct Series {
    int terms = 0;  // of P and Q each; 0: nothing is folded
    T scale;        // t = scale r - 1
    T constant;
    T p[most_terms], q[most_terms];
};

namespace {

// Powers of P and Q are of the size 1 / reach and 1 / reach^2, and smaller for wider bandwidths: they shall
// be normal numbers of T.
template <class T> constexpr double foldable_reach = sizeof(T) == 4 ? 1e12 : 1e30;  // and its reciprocal

// A polynomial rounds as its largest values do: at the far end, where the kernel is exp(-3.5) = 0.03, slopes
// have lost five bits. Beyond they would lose more.
constexpr double widest_reach = 3.5;
constexpr int series_terms = 32;  // of the Chebyshev series in double: beyond I_32(1.75) < 1e-30

// a[k] += weight times the Chebyshev coefficients of exp(-z (1 + t)), which are those of exp(-z (1 + t)) - 1
// but for a[0].
inline void add_exponential(double weight, double z, double* a) {  // [series_terms]
    const double scale = weight * exp(-z);
    double power = 1;  // (-z / 2)^k / k!
    for (int k = 0; k < series_terms; power *= -0.5 * z / ++k) {
        double term = 1, bessel = 1;
        for (int m = 1; term > 1e-18 * bessel; ++m) bessel += term *= 0.25 * z * z / (m * (double)(m + k));
        a[k] += (k ? 2 : 1) * scale * power * bessel;
    }
}

// Chebyshev coefficients of a function with a zero at t = -1 -> those of it over 1 + t, from the highest
// down: as t T_k = (T_{k+1} + T_{k-1}) / 2, the product of 1 + t and sum_k b_k T_k has a_k = b_k + (b_{k-1} +
// b_{k+1}) / 2 (b_0 counts twice in a_1). a[0] is not read: the zero determines it.
inline void divide_by_one_plus_t(double* a) {  // [series_terms]
    double above = 0, here = 0;
    for (int k = series_terms - 1; k >= 2; --k) {
        const double below = 2 * (a[k] - here) - above;
        a[k] = here;
        above = here, here = below;
    }
    a[0] = a[1] - here - 0.5 * above;
    a[1] = here;
}

// The fewest terms that leave out at most `tolerance` times `size`.
inline int terms_needed(const double* a, double size, double tolerance) {
    int terms = series_terms;
    for (double rest = 0; terms > 1; --terms) {
        rest += fabs(a[terms - 1]);
        if (!(rest <= tolerance * size)) break;
    }
    return terms;
}

// Chebyshev coefficients -> those of powers of t, times `factor`.
template <class T> void to_powers(const double* a, int terms, double factor, T* powers) {
    double sum[most_terms] = {}, before[most_terms] = {1}, here[most_terms] = {0, 1};  // T_{k-1}, T_k
    sum[0] = a[0];
    for (int k = 1; k < terms; ++k) {
        for (int i = 0; i <= k; ++i) sum[i] += a[k] * here[i];
        double next[most_terms] = {};
        for (int i = 0; i < terms - 1; ++i) next[i + 1] = 2 * here[i];
        for (int i = 0; i < terms; ++i) next[i] -= before[i], before[i] = here[i], here[i] = next[i];
    }
    for (int i = 0; i < terms; ++i) powers[i] = (T)(factor * sum[i]);
}

// Folds the given bandwidths; false where that takes too many terms, or more work than `budget` operations.
template <class T>
bool fold_series(const double* bandwidths,  // [count]
                 const double* weights,     // [count]: of u
                 const double* steepness,   // [count]: of the slope
                 const bool* shifted,       // [count]: the slope minus its value at r = 0
                 int count,
                 double reach,  // no r is larger
                 int budget, Series<T>& series) {
    double u[series_terms] = {}, slope[series_terms] = {}, u_size = 0, slope_size = 0, constant = 0;
    for (int s = 0; s < count; ++s) {
        const double z = 0.25 * reach / (bandwidths[s] * bandwidths[s]);  // so that r / (2 s^2) = z (1 + t)
        const double least = -0.5 * expm1(-2 * z);                        // of |u / (1 + t)|, at t = 1
        add_exponential(weights[s], z, u);
        add_exponential(steepness[s], z, slope);
        u_size += fabs(weights[s]) * least;
        slope_size += fabs(steepness[s]) * least;
        if (!shifted[s]) constant += steepness[s];
    }
    divide_by_one_plus_t(u);
    divide_by_one_plus_t(slope);
    const double tolerance = sizeof(T) == 4 ? 0x1p-24 : 0x1p-54;
    const int u_terms = terms_needed(u, u_size, tolerance),
              slope_terms = terms_needed(slope, slope_size, tolerance);
    const int terms = u_terms > slope_terms ? u_terms : slope_terms;
    if (terms > most_terms || 2 * terms + 3 > budget) return false;
    const double scale = 2 / reach;  // r P(t) with P = (u / (1 + t)) / (reach / 2)
    series.terms = terms;
    series.scale = (T)scale;
    series.constant = (T)constant;
    to_powers(u, terms, scale, series.p);
    to_powers(slope, terms, scale, series.q);
    return true;
}

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
