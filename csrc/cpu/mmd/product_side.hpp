// Samples as matrix products take them: about which center, and which points are outliers.
#pragma once
#include "../math.hpp"
#include "../products.hpp"
#include "blocks.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

// Of the mean squared distance from the center: a point beyond is an outlier.
constexpr double outlier = 16;
constexpr int trims = 2;  // times that the center is found again without outliers

// One sample as products take it.
template <class T> struct ProductSide {
    Points<T> alone, together;  // about its own center, and about that of both samples
    const T* mass;              // [count, rounded up to the lanes], 0 behind the last
    const bool* far;            // [count]: outliers
    bool any_far;
};

// As find_moments in blocks.hpp; the mean and the moment are [dim, rounded up to the lanes].
template <class T>
void find_point_moments(const Points<T>& points,  // about the origin
                        const T* weights,         // [count] or null: ones
                        double scale,             // of the weights
                        Moments& moments) {
    const int64_t length = round_up(points.dim, lanes<T>);
    const auto each = [&](int64_t i, const auto& body) {
        for (int64_t d = 0; d < length; d += lanes<T>) body(d, widen<T>(points.centered(points.row(i), d)));
    };
    memset(moments.mean, 0, length * sizeof(double));
    memset(moments.moment, 0, length * sizeof(double));
    for (int64_t i = 0; i < points.count; ++i)
        each(i, [&](int64_t d, Wide<T> x) { add_to<T>(moments.mean + d, x); });
    for (int64_t d = 0; d < length; ++d) moments.mean[d] /= (double)points.count;
    moments.farthest = moments.spread = moments.mass = 0;
    for (int64_t i = 0; i < points.count; ++i) {
        const double weight = weights ? scale * (double)weights[i] : scale;
        Wide<T> squares = {};
        each(i, [&](int64_t d, Wide<T> x) {
            const Wide<T> spread = x - load_wide<T>(moments.mean + d);
            squares += spread * spread;
            if (weights) add_to<T>(moments.moment + d, weight * spread);  // of equal weights the sum is 0
        });
        const double square = sum_halves<lanes<T>>(squares);
        moments.farthest = larger(moments.farthest, square);
        moments.spread += square / (double)points.count;
        moments.mass += weight;
    }
}

// Multiples of a power of 2 near the standard deviation of a dimension: most coordinates about them are
// exact, and the rest of the mean adds little to norms.
template <class T> void round_center(const double* mean, int64_t length, double variance, T* center) {
    int exponent;
    frexp(sqrt(variance), &exponent);
    const double grain = ldexp(1.0, exponent);
    for (int64_t d = 0; d < length; ++d)
        center[d] = variance > 0 ? (T)(rint(mean[d] / grain) * grain) : (T)mean[d];
}

// The mean of a sample without its outliers, as far as numbers of T go, and which these are.
template <class T>
void find_center(const Moments& moments,
                 double* sums,  // scratch [dim, rounded up to the lanes]
                 T* center,     // alike; 0 behind the last dimension
                 bool* far,     // [count]
                 ProductSide<T>& side) {
    const Points<T> origin = side.alone;
    const int64_t count = origin.count, length = round_up(origin.dim, lanes<T>);
    memset(far, 0, count * sizeof(bool));
    round_center(moments.mean, length, moments.spread / origin.dim, center);
    side.alone.center = center;
    side.far = far;
    side.any_far = moments.farthest > outlier * moments.spread;
    double spread = moments.spread;
    for (int trim = 0; side.any_far && trim < trims; ++trim) {
        for (int64_t i = 0; i < count; ++i) far[i] |= side.alone.squared_norm(i) > outlier * spread;
        memset(sums, 0, length * sizeof(double));
        double used = 0;
        for (int64_t i = 0; i < count; ++i) {
            if (far[i]) continue;
            used += 1;
            for (int64_t d = 0; d < length; d += lanes<T>)
                add_to<T>(sums + d, widen<T>(origin.centered(origin.row(i), d)));
        }
        for (int64_t d = 0; d < length; ++d) sums[d] /= used;
        round_center(sums, length, spread / origin.dim, center);
        spread = 0;
        for (int64_t i = 0; i < count; ++i)
            if (!far[i]) spread += side.alone.squared_norm(i) / used;
    }
}

// The median of some squared norms, in so few digits that sums of two are exact.
template <class T> T typical_norm(const Points<T>& points) {
    constexpr int64_t most = 15;
    const int used = (int)smaller(points.count, most);
    double norms[most];
    for (int k = 0; k < used; ++k) {
        const double norm = points.squared_norm(k * points.count / used);
        int at = k;
        for (; at > 0 && norms[at - 1] > norm; --at) norms[at] = norms[at - 1];
        norms[at] = norm;
    }
    int exponent;
    const double digits = frexp(norms[used / 2], &exponent);
    return norms[used / 2] < (double)Format<T>::largest ? (T)ldexp(floor(digits * 256), exponent - 8) : T(0);
}

// Finds what `side` has beside its points, whose moments it leaves in `moments`.
template <class T>
void prepare_side(const T* weights,  // [count] or null: ones
                  double scale,      // of the weights
                  Moments& moments,
                  T* centers,    // [2][dim, rounded up to the lanes]; the second is scratch
                  double* sums,  // scratch, alike
                  T* mass,       // [count]
                  bool* far,     // [count]
                  ProductSide<T>& side) {
    const int64_t length = round_up(side.alone.dim, lanes<T>);
    T* const origin = centers + length;
    for (int64_t d = 0; d < length; ++d) origin[d] = 0;
    for (int64_t j = 0; j < side.alone.count; ++j) mass[j] = weights ? weights[j] : T(1);
    side.alone.center = origin;
    side.mass = mass;
    find_point_moments(side.alone, weights, scale, moments);
    find_center(moments, sums, centers, far, side);
}

// The center in the middle of one or two sides, which are prepared, and their typical norms.
template <class T>
void find_middle(ProductSide<T>* sides, int count,
                 T* middle) {  // [dim, rounded up to the lanes]
    const T *const x = sides[0].alone.center, *const y = sides[count - 1].alone.center;
    for (int64_t d = 0; d < round_up(sides[0].alone.dim, lanes<T>); ++d) middle[d] = (x[d] + y[d]) / 2;
    for (int side = 0; side < count; ++side) {
        Points<T>&alone = sides[side].alone, &together = sides[side].together;
        together = alone;
        together.center = middle;
        alone.typical = typical_norm(alone);
        together.typical = typical_norm(together);
    }
}

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
