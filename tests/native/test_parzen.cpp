// parzen_tile and parzen_direct against the formula: the minimum and the sums, samples in two parts, and the
// gradients.
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

// --- parzen_direct

struct Case {
    int64_t m, n;
    int dim;
    std::vector<double> sigmas, points, samples, grad;
    bool need_points, need_samples;

    std::string describe() const {
        return "m=" + std::to_string(m) + " n=" + std::to_string(n) + " D=" + std::to_string(dim) +
               " S=" + std::to_string(sigmas.size()) + (need_points ? " points" : "") +
               (need_samples ? " samples" : "");
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
                    const Number difference = (Number)c.points[i * c.dim + d] - c.samples[j * c.dim + d];
                    const Sum term(-share * difference, 1 + (r[i * c.n + j] + e.nearest[i]) * rate);
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
std::unique_ptr<State<T>> call_direct(const InstructionSet& set, const Case& c, int threads) {
    const Array<T> points(c.points), grad(c.grad), samples(c.samples);
    const Array<double> sigmas(c.sigmas);
    auto state = std::make_unique<State<T>>(c);
    const int64_t half = c.n / 2;
    for (const auto& [first, last] :
         {std::pair<int64_t, int64_t>(0, half), std::pair<int64_t, int64_t>(half, c.n)}) {
        if (first == last) continue;
        const Array<T> part(
            std::vector<double>(c.samples.begin() + first * c.dim, c.samples.begin() + last * c.dim));
        const bool done = set.operations->parzen_direct({is_double<T>, threads, c.m, last - first, c.dim,
                                                         points.data(), part.data(), (int)c.sigmas.size(),
                                                         sigmas.data(), state->minimum.data(),
                                                         state->sums.data(), nullptr, nullptr, nullptr});
        CHECK(done, "%s %s: no memory", set.name(), c.describe().c_str());
    }
    if (!c.need_points && !c.need_samples) return state;
    const bool done = set.operations->parzen_direct(
        {is_double<T>, threads, c.m, c.n, c.dim, points.data(), samples.data(), (int)c.sigmas.size(),
         sigmas.data(), state->minimum.data(), state->sums.data(), grad.data(), or_null(state->grad_points),
         or_null(state->grad_samples)});
    CHECK(done, "%s %s: no memory", set.name(), c.describe().c_str());
    return state;
}

template <class T> void check_direct(const Case& c, const Expected& e) {
    for (const InstructionSet& set : instruction_sets()) {
        const std::string name =
            std::string(set.name()) + (is_double<T> ? " double " : " float ") + c.describe();
        const auto state = call_direct<T>(set, c, 1);
        for (int64_t i = 0; i < c.m; ++i) {
            check_minimum<T>("parzen_direct", name, state->minimum[i], e.nearest[i],
                             16 * rounding<T> * e.nearest[i]);
            for (size_t s = 0; s < c.sigmas.size(); ++s)
                check_log_sum<T>("parzen_direct", name, c.sigmas[s], state->minimum[i],
                                 state->sums[s * c.m + i], e.nearest[i], e.sums[s * c.m + i]);
        }
        check_close<T>("parzen_direct grad_points", name, state->grad_points, e.grad_points, c.n,
                       Roundings::own);
        check_close<T>("parzen_direct grad_samples", name, state->grad_samples, e.grad_samples, c.m,
                       Roundings::own);
        for (const int threads : team_sizes())
            CHECK(call_direct<T>(set, c, threads)->same(*state), "%s: other bits on %d threads", name.c_str(),
                  threads);
    }
}

// --- parzen_tile: the distances are what the norms and products that it is given make them, rounded.

struct TileCase {
    int64_t rows, columns, stride, points;  // points: the stride of sums and grad
    std::vector<double> sigmas, products, row_norms, column_norms, grad;

    std::string describe() const {
        return "rows=" + std::to_string(rows) + " columns=" + std::to_string(columns) +
               " stride=" + std::to_string(stride) + " S=" + std::to_string(sigmas.size());
    }
    Number r(int64_t i, int64_t j) const {
        const Number r = (Number)row_norms[i] + column_norms[j] - 2 * (Number)products[i * stride + j];
        return r < 0 ? 0 : r;
    }
    Number size(int64_t i, int64_t j) const {
        return (Number)row_norms[i] + column_norms[j] + 2 * std::fabs((Number)products[i * stride + j]);
    }
};

template <class T> struct Tile {
    Array<T> products, minimum;
    Array<double> sums;

    explicit Tile(const TileCase& c)
        : products(c.products),
          minimum(std::vector<double>(c.rows, INFINITY)),
          sums(std::vector<double>((c.sigmas.size() - 1) * c.points + c.rows, 0)) {}
    bool same(const Tile& other) const {
        return same_bits(products, other.products) && same_bits(minimum, other.minimum) &&
               same_bits(sums, other.sums);
    }
};

// Forward, and backward on fresh products.
template <class T>
std::unique_ptr<Tile<T>> call_tile(const InstructionSet& set, const TileCase& c, int threads) {
    const Array<T> row_norms(c.row_norms), column_norms(c.column_norms), grad(c.grad), forward(c.products);
    const Array<double> sigmas(c.sigmas);
    auto tile = std::make_unique<Tile<T>>(c);
    ParzenTile task = {is_double<T>,
                       threads,
                       c.rows,
                       c.columns,
                       c.stride,
                       forward.data(),
                       row_norms.data(),
                       column_norms.data(),
                       (int)c.sigmas.size(),
                       sigmas.data(),
                       c.points,
                       tile->minimum.data(),
                       tile->sums.data(),
                       nullptr};
    CHECK(set.operations->parzen_tile(task), "%s %s: no memory", set.name(), c.describe().c_str());
    task.products = tile->products.data(), task.grad = grad.data();
    CHECK(set.operations->parzen_tile(task), "%s %s: no memory", set.name(), c.describe().c_str());
    return tile;
}

template <class T> void check_tile(const TileCase& c) {
    for (const InstructionSet& set : instruction_sets()) {
        const std::string name =
            std::string(set.name()) + (is_double<T> ? " double " : " float ") + c.describe();
        const auto tile = call_tile<T>(set, c, 1);
        for (int64_t i = 0; i < c.rows; ++i) {
            Number nearest = INFINITY, error = 0;
            for (int64_t j = 0; j < c.columns; ++j) {
                nearest = std::min(nearest, c.r(i, j));
                error = std::max(error, 2 * rounding<T> * c.size(i, j));
            }
            check_minimum<T>("parzen_tile", name, tile->minimum[i], nearest, error);
            Sums coefficients(c.columns);
            for (size_t s = 0; s < c.sigmas.size(); ++s) {
                const Number rate = 0.5L / ((Number)c.sigmas[s] * c.sigmas[s]);
                const auto exponential = [&](int64_t j) { return std::exp((nearest - c.r(i, j)) * rate); };
                Sum sum;
                for (int64_t j = 0; j < c.columns; ++j) sum += Sum(exponential(j), 1 + c.size(i, j) * rate);
                check_log_sum<T>("parzen_tile", name, c.sigmas[s], tile->minimum[i],
                                 tile->sums[s * c.points + i], nearest, sum);
                for (int64_t j = 0; j < c.columns; ++j)
                    coefficients[j] += Sum(c.grad[s * c.points + i] * exponential(j) / sum.value * 2 * rate,
                                           1 + c.size(i, j) * rate);
            }
            Array<T> row(c.columns);
            for (int64_t j = 0; j < c.columns; ++j) row[j] = tile->products[i * c.stride + j];
            check_close<T>("parzen_tile coefficients", name, row, coefficients, 1, Roundings::own);
        }
        for (const int threads : team_sizes())
            CHECK(call_tile<T>(set, c, threads)->same(*tile), "%s: other bits on %d threads", name.c_str(),
                  threads);
    }
}

}  // namespace

TEST(parzen_direct) {
    const int64_t small[][2] = {{1, 1}, {1, 17}, {4, 3}, {9, 8}, {16, 15}, {17, 33}};
    const int64_t large[][2] = {{257, 33}, {65, 257}, {1, 515}, {255, 2}};
    Random random(7);
    int turn = 0;
    for (const std::vector<double>& sigmas : sigma_lists)
        for (const int dim : dims())
            for (size_t at = 0; at <= 6; ++at) {
                const auto& size = at < 6 ? small[at] : large[turn % 4];
                Case c = {size[0], size[1], dim, sigmas, {}, {}, {}, ++turn % 4 > 0, turn % 3 > 0};
                c.points = random_points(random, c.m, dim, 0);
                c.samples = random_points(random, c.n, dim, 0.25);
                for (size_t i = 0; i < sigmas.size() * c.m; ++i) c.grad.push_back(random.normal());
                const Expected expected = expect(c);
                check_direct<float>(c, expected), check_direct<double>(c, expected);
            }
}

TEST(parzen_tile) {
    const int64_t sizes[][3] = {{1, 1, 16},   {3, 15, 16},    {16, 16, 16},  {17, 17, 32},
                                {33, 31, 48}, {15, 257, 272}, {64, 250, 256}};
    Random random(8);
    for (const std::vector<double>& sigmas : sigma_lists)
        for (const int dim : {3, 50})
            for (const auto& size : sizes) {
                TileCase c = {size[0], size[1], size[2], size[0] + random.below(5), sigmas, {}, {}, {}, {}};
                const std::vector<double> points = random_points(random, c.rows, dim, 0),
                                          samples = random_points(random, c.stride, dim, 0);
                const auto product = [&](const double* a, const double* b) {
                    double sum = 0;
                    for (int d = 0; d < dim; ++d) sum += a[d] * b[d];
                    return (double)(float)sum;
                };
                for (int64_t i = 0; i < c.rows; ++i)
                    c.row_norms.push_back(product(&points[i * dim], &points[i * dim]));
                for (int64_t j = 0; j < c.stride; ++j)
                    c.column_norms.push_back(product(&samples[j * dim], &samples[j * dim]));
                for (int64_t i = 0; i < c.rows; ++i)
                    for (int64_t j = 0; j < c.stride; ++j)
                        c.products.push_back(product(&points[i * dim], &samples[j * dim]));
                // Only what the tile's own rows need: the last sigma's row ends with them.
                for (size_t i = 0; i < (sigmas.size() - 1) * c.points + c.rows; ++i)
                    c.grad.push_back(random.normal());
                check_tile<float>(c), check_tile<double>(c);
            }
}

}  // namespace fastmmd::test
