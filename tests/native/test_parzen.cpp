// parzen against the formula, by differences and by products: the minimum and the sums, samples in two parts,
// and the gradients.
#include <memory>

#include "kernel_formulas.hpp"

namespace fastmmd::test {
namespace {

// One, without a ladder, halving three times in a row, and so far apart that a tile says nothing to some.
const std::vector<double> sigma_lists[] = {{1}, {0.3, 1, 2.5}, {0.5, 1, 2, 4, 0.7}, {50, 0.02, 0.3}};

template <class T>
void check_minimum(const char* label, const std::string& name, T got, Number expected, Number bound) {
    CHECK(std::fabs(got - expected) <= bound, "%s %s: minimum %.9g, expected %.9Lg", label, name.c_str(),
          (double)got, expected);
}

// log sum_j exp(-r_j rate) of a point, from its state: 16 roundings of T in each exponential, times its
// condition.
template <class T>
void check_log_sum(const char* label, const std::string& name, double sigma, T minimum, double sum,
                   Number expected_minimum, const Sum& expected_sum) {
    const Number rate = 0.5L / ((Number)sigma * sigma), got = std::log((Number)sum) - minimum * rate;
    const Number expected = std::log(expected_sum.value) - expected_minimum * rate;
    const Number share =
        std::fabs(got - expected) / (16 * rounding<T> * expected_sum.size / expected_sum.value);
    margin(std::string(label) + (is_double<T> ? " log sum double" : " log sum float"), (double)share);
    CHECK(share <= 1, "%s %s: log sum %.12Lg, expected %.12Lg: %.3Lg of the bound", label, name.c_str(), got,
          expected, share);
}

struct Case {
    int64_t m, n;
    int dim;
    std::vector<double> sigmas, points, samples, grad;
    bool products, need_points, need_samples;

    std::string describe() const {
        return "m=" + std::to_string(m) + " n=" + std::to_string(n) + " D=" + std::to_string(dim) +
               " S=" + std::to_string(sigmas.size()) + (products ? " products" : "") +
               (need_points ? " points" : "") + (need_samples ? " samples" : "");
    }
};

struct Expected {
    Numbers nearest;  // [m]
    Sums sums;        // [S, m]: sum_j exp((nearest - r_j) rate)
    Sums grad_points, grad_samples;
};

Expected expect(const Case& c) {
    const int64_t count = (int64_t)c.sigmas.size();
    Numbers r(c.m * c.n);
    Expected e = {Numbers(c.m, INFINITY), Sums(count * c.m), Sums(c.m * c.dim), Sums(c.n * c.dim)};
    for (int64_t i = 0; i < c.m; ++i)
        for (int64_t j = 0; j < c.n; ++j) {
            for (int d = 0; d < c.dim; ++d) {
                const Number difference = (Number)c.points[i * c.dim + d] - c.samples[j * c.dim + d];
                r[i * c.n + j] += difference * difference;
            }
            e.nearest[i] = std::min(e.nearest[i], r[i * c.n + j]);
        }
    for (int64_t s = 0; s < count; ++s)
        for (int64_t i = 0; i < c.m; ++i) {
            const Number rate = 0.5L / ((Number)c.sigmas[s] * c.sigmas[s]);
            Sum& sum = e.sums[s * c.m + i];
            for (int64_t j = 0; j < c.n; ++j)
                sum += Sum(std::exp((e.nearest[i] - r[i * c.n + j]) * rate), 1 + r[i * c.n + j] * rate);
            // d/dp_i of grad (log sum_j exp(-r_ij rate)) = -grad share_ij rate 2 (p_i - s_j).
            for (int64_t j = 0; j < c.n; ++j) {
                const Number exponent = (e.nearest[i] - r[i * c.n + j]) * rate;
                const Number share = (Number)c.grad[s * c.m + i] * std::exp(exponent) / sum.value * 2 * rate;
                for (int d = 0; d < c.dim; ++d) {
                    const Number p = c.points[i * c.dim + d], q = c.samples[j * c.dim + d];
                    Sum term(-share * (p - q), 1 + (r[i * c.n + j] + e.nearest[i]) * rate);
                    if (c.products)
                        term.size *= std::max<Number>(1, (std::fabs(p) + std::fabs(q)) / std::fabs(p - q));
                    e.grad_points[i * c.dim + d] += term;
                    e.grad_samples[j * c.dim + d] += -1 * term;
                }
            }
        }
    return e;
}

template <class T> struct State {
    Array<T> minimum;
    Array<double> sums;
    Array<T> grad_points, grad_samples;

    explicit State(const Case& c)
        : minimum(std::vector<double>(c.m, INFINITY)),
          sums(std::vector<double>(c.m * c.sigmas.size(), 0)),
          grad_points(c.need_points ? c.m * c.dim : 0),
          grad_samples(c.need_samples ? c.n * c.dim : 0) {}

    bool same(const State& other) const {
        return same_bits(minimum, other.minimum) && same_bits(sums, other.sums) &&
               same_bits(grad_points, other.grad_points) && same_bits(grad_samples, other.grad_samples);
    }
};

template <class T>
std::unique_ptr<State<T>> call_parzen(const InstructionSet& set, const Case& c, int threads) {
    const Array<T> points(c.points), grad(c.grad), samples(c.samples);
    const Array<double> sigmas(c.sigmas);
    auto state = std::make_unique<State<T>>(c);
    const int64_t half = c.n / 2;
    bool far = false;
    for (const auto& [first, last] :
         {std::pair<int64_t, int64_t>(0, half), std::pair<int64_t, int64_t>(half, c.n)}) {
        if (first == last) continue;
        const Array<T> part(
            std::vector<double>(c.samples.begin() + first * c.dim, c.samples.begin() + last * c.dim));
        const bool done = set.operations->parzen({is_double<T>, threads, c.m, last - first, c.dim,
                                                  points.data(), part.data(), c.products,
                                                  (int)c.sigmas.size(), sigmas.data(), state->minimum.data(),
                                                  state->sums.data(), nullptr, nullptr, nullptr, &far});
        CHECK(done, "%s %s: no memory", set.name(), c.describe().c_str());
    }
    if (!c.need_points && !c.need_samples) return state;
    const bool done = set.operations->parzen(
        {is_double<T>, threads, c.m, c.n, c.dim, points.data(), samples.data(), c.products,
         (int)c.sigmas.size(), sigmas.data(), state->minimum.data(), state->sums.data(), grad.data(),
         or_null(state->grad_points), or_null(state->grad_samples), &far});
    CHECK(done, "%s %s: no memory", set.name(), c.describe().c_str());
    return state;
}

template <class T> void check_parzen(const Case& c, const Expected& e) {
    for (const InstructionSet& set : instruction_sets()) {
        const std::string name =
            std::string(set.name()) + (is_double<T> ? " double " : " float ") + c.describe();
        const auto state = call_parzen<T>(set, c, 1);
        for (int64_t i = 0; i < c.m; ++i) {
            check_minimum<T>("parzen", name, state->minimum[i], e.nearest[i],
                             16 * rounding<T> * e.nearest[i]);
            for (size_t s = 0; s < c.sigmas.size(); ++s)
                check_log_sum<T>("parzen", name, c.sigmas[s], state->minimum[i], state->sums[s * c.m + i],
                                 e.nearest[i], e.sums[s * c.m + i]);
        }
        check_close<T>("parzen grad_points", name, state->grad_points, e.grad_points, c.n, Roundings::own);
        check_close<T>("parzen grad_samples", name, state->grad_samples, e.grad_samples, c.m, Roundings::own);
        for (const int threads : team_sizes())
            CHECK(call_parzen<T>(set, c, threads)->same(*state), "%s: other bits on %d threads", name.c_str(),
                  threads);
    }
}

}  // namespace

TEST(parzen_differences) {
    const int64_t small[][2] = {{1, 1}, {1, 17}, {4, 3}, {9, 8}, {16, 15}, {17, 33}};
    const int64_t large[][2] = {{257, 33}, {65, 257}, {1, 515}, {255, 2}};
    Random random(7);
    int turn = 0;
    for (const std::vector<double>& sigmas : sigma_lists)
        for (const int dim : dims())
            for (size_t at = 0; at <= 6; ++at) {
                const auto& size = at < 6 ? small[at] : large[turn % 4];
                Case c = {size[0], size[1], dim, sigmas, {}, {}, {}, false, ++turn % 4 > 0, turn % 3 > 0};
                c.points = random_points(random, c.m, dim, 0);
                c.samples = random_points(random, c.n, dim, 0.25);
                for (size_t i = 0; i < sigmas.size() * c.m; ++i) c.grad.push_back(random.normal());
                const Expected expected = expect(c);
                check_parzen<float>(c, expected), check_parzen<double>(c, expected);
            }
}

TEST(parzen_products) {
    const int64_t sizes[][2] = {{1, 1}, {13, 17}, {12, 255}, {200, 33}, {3, 2100}, {25, 257}};
    const int many[] = {17, 48, 49, 79, 300, 784, 2048};
    Random random(8);
    int turn = 0;
    for (const std::vector<double>& sigmas : sigma_lists)
        for (const auto& size : sizes) {
            Case c = {size[0], size[1], many[turn % 7], {}, {}, {}, {}, true, ++turn % 4 > 0, turn % 3 > 0};
            for (const double sigma : sigmas) c.sigmas.push_back(sigma * std::sqrt(c.dim));
            c.points = random_points(random, c.m, c.dim, 0);
            c.samples = random_points(random, c.n, c.dim, 0.25);
            for (size_t i = 0; i < sigmas.size() * c.m; ++i) c.grad.push_back(random.normal());
            check_parzen<float>(c, expect(c)), check_parzen<double>(c, expect(c));
        }
}

}  // namespace fastmmd::test
