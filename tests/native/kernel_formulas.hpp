// The kernels by their formulas (docs/design.md, "Mathematics and numerics"), one pair at a time in long
// double, and what the tests of mmd2 and witness share.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "instruction_sets.hpp"

namespace fastmmd::test {

typedef long double Number;

// A sum and the size of its terms, the sum of their absolute values times their condition: what rounding
// errors are measured with.
struct Sum {
    Number value = 0, size = 0;

    Sum() {}
    Sum(Number term, Number condition = 1) : value(term), size(condition * std::fabs(term)) {}
    Sum& operator+=(const Sum& other) {
        value += other.value, size += other.size;
        return *this;
    }
    friend Sum operator*(Number factor, const Sum& sum) {
        Sum product;
        product.value = factor * sum.value, product.size = std::fabs(factor) * sum.size;
        return product;
    }
};

typedef std::vector<Number> Numbers;
typedef std::vector<Sum> Sums;

struct KernelCase {
    Family family;
    std::vector<double> bandwidths, weights;
    double alpha = 1;

    Kernel kernel(const Array<double>& bandwidth_array, const Array<double>& weight_array) const {
        return {family, (int)bandwidths.size(), bandwidth_array.data(), weight_array.data(), alpha};
    }
};

// For every kernel: ladders, lists without one, unsorted, duplicates, a single bandwidth.
inline std::vector<KernelCase> kernel_cases() {
    std::vector<KernelCase> cases;
    for (const Family family :
         {Family::gaussian, Family::laplacian, Family::imq, Family::rational_quadratic}) {
        cases.push_back({family, {2, 5, 10, 20, 40, 80}, {1, 1, 1, 1, 1, 1}});
        cases.push_back({family, {1.5, 4, 3, 1.5, 6}, {0.5, 2, 1, 0.25, 1.5}, 0.5});
        cases.push_back({family, {2.5}, {1}, 2.5});
    }
    cases.push_back({Family::energy, {1}, {1}});
    return cases;
}

// One rung at one squared distance: u = kappa(r) - kappa(0), kappa'(r) and d kappa / d bandwidth. At r = 0
// the slope of a kernel that is not smooth counts as 0. The two derivatives are proportional to an
// exponential, which multiplies the relative error of r by its exponent; u is not.
struct Rung {
    Number u, slope, by_bandwidth, exponent;
};

inline Rung rung_at(const KernelCase& kernel, int index, Number r) {
    const Number s = kernel.bandwidths[index], alpha = kernel.alpha, root = std::sqrt(r);
    switch (kernel.family) {
        case Family::gaussian: {
            const Number k = std::exp(-r / (2 * s * s));
            return {std::expm1(-r / (2 * s * s)), -k / (2 * s * s), k * r / (s * s * s), r / (2 * s * s)};
        }
        case Family::laplacian: {
            const Number k = std::exp(-root / s);
            return {std::expm1(-root / s), r > 0 ? -k / (2 * s * root) : 0, k * root / (s * s), root / s};
        }
        case Family::imq: {
            const Number c = s * s, sum = c + r;
            return {-r / sum, -c / (sum * sum), 2 * s * r / (sum * sum), 0};
        }
        case Family::rational_quadratic: {
            const Number logarithm = std::log1p(r / (2 * alpha * s * s)),
                         k = std::exp(-(alpha + 1) * logarithm);
            return {std::expm1(-alpha * logarithm), -k / (2 * s * s), k * r / (s * s * s), 0};
        }
        case Family::energy: return {-root, r > 0 ? -1 / (2 * root) : 0, 0, 0};
    }
    return {};
}

// Sums over all pairs of a sample's points p [n, dim] with another's q [m, dim].
struct PairSums {
    Sums u;                        // [n]: sum_j mass_j k(p_i, q_j)
    Sums gradient;                 // [n, dim]: sum_j mass_j k'(r) 2 (p_i - q_j)
    Sums by_bandwidth, by_weight;  // [S]: sum_i factor_i sum_j mass_j of each rung's derivatives
};

inline PairSums pair_sums(const KernelCase& kernel, int dim, const double* p, int64_t n, const double* q,
                          int64_t m, const Numbers& factor, const Numbers& mass) {
    const int count = (int)kernel.bandwidths.size();
    PairSums sums = {Sums(n), Sums(n * dim), Sums(count), Sums(count)};
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < m; ++j) {
            Number r = 0;
            for (int d = 0; d < dim; ++d) {
                const Number difference = (Number)p[i * dim + d] - q[j * dim + d];
                r += difference * difference;
            }
            Sum u, slope;
            for (int s = 0; s < count; ++s) {
                const Rung rung = rung_at(kernel, s, r);
                const Number weight = kernel.weights[s], both = factor[i] * mass[j];
                u += weight * rung.u;
                slope += Sum(weight * rung.slope, 1 + rung.exponent);
                sums.by_bandwidth[s] += Sum(both * weight * rung.by_bandwidth, 1 + rung.exponent);
                sums.by_weight[s] += both * rung.u;
            }
            sums.u[i] += mass[j] * u;
            for (int d = 0; d < dim; ++d)
                sums.gradient[i * dim + d] +=
                    mass[j] * 2 * ((Number)p[i * dim + d] - (Number)q[j * dim + d]) * slope;
        }
    return sums;
}

// Dimensions around those whose loops are unrolled, and beyond a chunk of them: all with FASTMMD_TEST_FULL=1.
inline std::vector<int> dims() {
    const char* const full = std::getenv("FASTMMD_TEST_FULL");
    return sanitized || !full || std::strcmp(full, "1") ? std::vector<int>{1, 6, 17, 50}
                                                        : std::vector<int>{1, 3, 6, 16, 17, 40, 50};
}

// Points of about unit spread; the second equals the first.
inline std::vector<double> random_points(Random& random, int64_t count, int dim, double shift) {
    std::vector<double> points(count * dim);
    for (double& x : points) x = (double)(float)(shift + random.normal());
    if (count > 1)
        for (int d = 0; d < dim; ++d) points[dim + d] = points[d];
    return points;
}

// Which terms a number's roundings are as large as: those of its own sum, or also those of the largest
// number. The latter holds for mmd2 and witness, whose gradients take parts from the moments of all points,
// and which add k in place of k - k(0) where that is what a typical pair has more digits in.
enum class Roundings { own, shared };

// Every number is within its bound: 16 roundings of T in each term (the distance, the exponential, the
// squarings of the ladder, the weight), 2 of what is shared, 4 standard deviations of the roundings of so
// many additions in double, as a random walk, and the rounding of the result.
template <class T, class Result>
void check_close(const std::string& label, const std::string& name, const Array<Result>& got,
                 const Sums& expected, int64_t additions, Roundings roundings) {
    Number shared_size = 0, worst = 0;
    for (size_t i = 0; roundings == Roundings::shared && i < got.size(); ++i)
        shared_size = std::max(shared_size, expected[i].size);
    const Number walk = 4 * std::sqrt((Number)additions) * 0x1p-53L;
    size_t place = 0;
    bool sensitive = false, zero = true;
    for (size_t i = 0; i < got.size(); ++i) {
        const Number size = std::fabs(expected[i].value);
        const Number bound = (16 * rounding<T> + walk) * expected[i].size +
                             (2 * rounding<T> + walk) * shared_size + 2 * rounding<Result> * size;
        const Number error = std::fabs((Number)got[i] - expected[i].value);
        const Number share = error == 0 ? 0 : error / bound;
        if (!(share <= worst)) worst = share, place = i;
        sensitive |= bound < 1e-3L * size;
        zero &= expected[i].value == 0;
    }
    const std::string full = label + (is_double<T> ? " double" : " float");
    margin(full, (double)worst);
    CHECK(worst <= 1, "%s: %s[%zu]: %.17Lg, expected %.17Lg: %.3Lg of the bound", name.c_str(), full.c_str(),
          place, (Number)got[place], expected[place].value, worst);
    if (!zero) sensitivity(full, sensitive);
}

template <class T> bool same_bits(const Array<T>& a, const Array<T>& b) {
    return a.size() == b.size() && !std::memcmp(a.data(), b.data(), a.size() * sizeof(T));
}

// Null for an output that is not asked for.
template <class T> T* or_null(const Array<T>& array) { return array.size() ? array.data() : nullptr; }

}  // namespace fastmmd::test
