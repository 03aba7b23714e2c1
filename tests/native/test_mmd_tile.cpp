// mmd_tile against the formula: what it adds up, and the slopes it leaves for the products that give
// gradients.
#include <memory>

#include "kernel_formulas.hpp"

namespace fastmmd::test {
namespace {

struct Case {
    KernelCase kernel;
    int64_t n = 1, m = 1, stride = 16;
    int dim = 1;
    bool diagonal = false, may_fold = false, row_sums = false, column_sums = false, rungs = false;
    double offset = 0, times = 1, rung_factor = 1, farthest = 0, typical = 0;
    std::vector<double> p, q, p_mass, q_mass, p_norms, q_norms, products;

    std::string describe() const {
        return std::string(host::name_of(kernel.family)) + " S=" + std::to_string(kernel.bandwidths.size()) +
               " n=" + std::to_string(n) + " m=" + std::to_string(m) + " D=" + std::to_string(dim) +
               (diagonal ? " diagonal" : "") + (may_fold ? " folded" : "") + (row_sums ? " rows" : "") +
               (column_sums ? " columns" : "") + (rungs ? " rungs" : "") + (offset != 0 ? " offset" : "");
    }
};

constexpr double before = 0.25;  // what the sums in double hold when the tile is added
constexpr double scale = -1.5;   // of the gradients of near pairs

template <class T> struct Outputs {
    Array<T> products, grad_p, grad_q;
    Array<double> value, slopes_p, slopes_q, bandwidths, kernel_weights, shift;

    explicit Outputs(const Case& c)
        : products(c.products),
          grad_p(std::vector<double>(c.row_sums ? c.n * c.dim : 0, 0)),
          grad_q(std::vector<double>(c.column_sums ? c.m * c.dim : 0, 0)),
          value(std::vector<double>(c.n, before)),
          slopes_p(std::vector<double>(c.row_sums ? c.n : 0, before)),
          slopes_q(std::vector<double>(c.column_sums ? c.m : 0, before)),
          bandwidths(std::vector<double>(c.rungs ? c.kernel.bandwidths.size() : 0, before)),
          kernel_weights(std::vector<double>(c.rungs ? c.kernel.bandwidths.size() : 0, before)),
          shift(1) {}

    bool same(const Outputs& other) const {
        return same_bits(products, other.products) && same_bits(grad_p, other.grad_p) &&
               same_bits(grad_q, other.grad_q) && same_bits(value, other.value) &&
               same_bits(slopes_p, other.slopes_p) && same_bits(slopes_q, other.slopes_q) &&
               same_bits(bandwidths, other.bandwidths) && same_bits(kernel_weights, other.kernel_weights) &&
               same_bits(shift, other.shift);
    }
};

template <class T> std::unique_ptr<Outputs<T>> call(const InstructionSet& set, const Case& c, int threads) {
    const Array<T> p(c.p), q(c.q), p_norms(c.p_norms), q_norms(c.q_norms), p_mass(c.p_mass), q_mass(c.q_mass);
    const Array<double> bandwidths(c.kernel.bandwidths), weights(c.kernel.weights);
    auto out = std::make_unique<Outputs<T>>(c);
    MmdTile task = {};
    task.is_double = is_double<T>, task.threads = threads;
    task.dim = c.dim, task.stride = c.stride;
    task.products = out->products.data();
    task.rows = {c.n,  p.data(), p_norms.data(), p_mass.data(), or_null(out->slopes_p), or_null(out->grad_p),
                 scale};
    task.columns = {
        c.m, q.data(), q_norms.data(), q_mass.data(), or_null(out->slopes_q), or_null(out->grad_q), scale};
    task.diagonal = c.diagonal;
    task.kernel = c.kernel.kernel(bandwidths, weights);
    task.farthest_r = c.farthest, task.typical_r = c.typical, task.may_fold = c.may_fold;
    task.offset = c.offset, task.times = c.times, task.rung_factor = c.rung_factor;
    task.value = out->value.data();
    task.bandwidths = or_null(out->bandwidths), task.kernel_weights = or_null(out->kernel_weights);
    task.shift = out->shift.data();
    CHECK(set.operations->mmd_tile(task), "%s %s: no memory", set.name(), c.describe().c_str());
    return out;
}

// The gradient that the products complete: of row i, scale sum_j m_j c_ij (p_i - q_j) with c = k' - left_out.
Sums expected_gradient(const Case& c, bool of_rows, Number left_out) {
    const int64_t n = of_rows ? c.n : c.m, m = of_rows ? c.m : c.n;
    const std::vector<double>&own = of_rows ? c.p : c.q, &other = of_rows ? c.q : c.p;
    const std::vector<double>& mass = of_rows ? c.q_mass : c.p_mass;
    Sums sums(n * c.dim);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < m; ++j) {
            Number r = 0;
            for (int d = 0; d < c.dim; ++d) {
                const Number difference = (Number)own[i * c.dim + d] - other[j * c.dim + d];
                r += difference * difference;
            }
            Sum slope(-left_out);
            for (size_t s = 0; s < c.kernel.bandwidths.size(); ++s) {
                const Rung rung = rung_at(c.kernel, (int)s, r);
                slope += Sum(c.kernel.weights[s] * rung.slope, 1 + rung.exponent);
            }
            for (int d = 0; d < c.dim; ++d) {
                const Number a = own[i * c.dim + d], b = other[j * c.dim + d];
                Sum term = mass[j] * scale * (a - b) * slope;
                term.size = std::fabs(mass[j] * scale) * (std::fabs(a) + std::fabs(b)) * slope.size;
                sums[i * c.dim + d] += term;
            }
        }
    return sums;
}

// What a caller makes of the tile: grad + scale (p_i sum_j m_j c_ij - sum_j c_ij m_j q_j).
template <class T> Array<double> completed_gradient(const Case& c, bool of_rows, const Outputs<T>& out) {
    const int64_t n = of_rows ? c.n : c.m, m = of_rows ? c.m : c.n;
    const std::vector<double>&own = of_rows ? c.p : c.q, &other = of_rows ? c.q : c.p;
    const std::vector<double>& mass = of_rows ? c.q_mass : c.p_mass;
    const Array<double>& slopes = of_rows ? out.slopes_p : out.slopes_q;
    const Array<T>& grad = of_rows ? out.grad_p : out.grad_q;
    std::vector<double> result(n * c.dim);
    for (int64_t i = 0; i < n; ++i)
        for (int d = 0; d < c.dim; ++d) {
            Number products = 0;
            for (int64_t j = 0; j < m; ++j)
                products += (Number)out.products[of_rows ? i * c.stride + j : j * c.stride + i] * mass[j] *
                            other[j * c.dim + d];
            result[i * c.dim + d] = (double)(grad[i * c.dim + d] +
                                             scale * (own[i * c.dim + d] * (slopes[i] - before) - products));
        }
    return Array<double>(result);
}

template <class T>
void check(const InstructionSet& set, const Case& c, const PairSums& sums, const Outputs<T>& out) {
    const std::string name = std::string(set.name()) + " " + c.describe();
    const int64_t additions = c.n + c.m;
    const auto added = [&](const Sums& expected, Number factor) {
        Sums total;
        for (const Sum& sum : expected) total.push_back(Sum(before)), total.back() += factor * sum;
        return total;
    };
    check_close<T>("mmd_tile value", name, out.value, added(sums.u, c.times), additions, Roundings::shared);
    check_close<T>("mmd_tile bandwidths", name, out.bandwidths,
                   added(sums.by_bandwidth, c.times * c.rung_factor), additions, Roundings::shared);
    check_close<T>("mmd_tile kernel_weights", name, out.kernel_weights,
                   added(sums.by_weight, c.times * c.rung_factor), additions, Roundings::shared);
    const Number left_out = c.offset + out.shift[0];
    for (const bool of_rows : {true, false})
        if (of_rows ? c.row_sums : c.column_sums)
            check_close<T>(of_rows ? "mmd_tile rows" : "mmd_tile columns", name,
                           completed_gradient(c, of_rows, out), expected_gradient(c, of_rows, left_out),
                           additions, Roundings::shared);
}

void check_case(const Case& c) {
    const Numbers factor(c.p_mass.begin(), c.p_mass.end()), mass(c.q_mass.begin(), c.q_mass.begin() + c.m);
    const PairSums sums = pair_sums(c.kernel, c.dim, c.p.data(), c.n, c.q.data(), c.m, factor, mass);
    for (const InstructionSet& set : instruction_sets()) {
        const auto narrow = call<float>(set, c, 1);
        const auto wide = call<double>(set, c, 1);
        check<float>(set, c, sums, *narrow);
        check<double>(set, c, sums, *wide);
        for (const int threads : team_sizes()) {
            CHECK(call<float>(set, c, threads)->same(*narrow), "%s float %s: other bits on %d threads",
                  set.name(), c.describe().c_str(), threads);
            CHECK(call<double>(set, c, threads)->same(*wide), "%s double %s: other bits on %d threads",
                  set.name(), c.describe().c_str(), threads);
        }
    }
}

// Points on a grid of 1/32, so that norms and products are exact in float: what is rounded is in the tile.
std::vector<double> grid_points(Random& random, int64_t count, int dim, double center) {
    std::vector<double> points(count * dim);
    for (double& x : points) x = std::nearbyint(32 * (center + random.normal())) / 32;
    return points;
}

Case make_case(Random& random, const KernelCase& kernel, int64_t n, int64_t m, int dim, double center) {
    Case c;
    c.kernel = kernel;
    c.diagonal = n == m;
    c.n = n, c.m = m, c.dim = dim;
    c.stride = (m + 15) / 16 * 16 + 16 * random.below(2);
    c.may_fold = random.below(2);
    c.row_sums = random.below(4) > 0;
    c.column_sums = !c.diagonal && random.below(4) > 0;
    c.rungs = random.below(3) == 0;
    c.offset = random.below(2) * -0.01, c.times = 1.0 + (double)random.below(2), c.rung_factor = 0.75;
    c.p = grid_points(random, n, dim, center);
    c.q = c.diagonal ? c.p : grid_points(random, m, dim, center);
    for (int d = 0; d < dim && m > 1; ++d) {  // a point that is on both sides, and two that are near
        c.q[d] = c.p[d];
        c.q[dim + d] = c.p[d] + (d % 8 == 0) / 32.0;
        if (c.diagonal) c.p[dim + d] = c.q[dim + d];
    }
    for (int64_t i = 0; i < n; ++i) c.p_mass.push_back(random.weight());
    for (int64_t j = 0; j < m; ++j) c.q_mass.push_back(c.diagonal ? c.p_mass[j] : random.weight());
    const auto product = [&](const double* a, const double* b) {
        double sum = 0;
        for (int d = 0; d < dim; ++d) sum += a[d] * b[d];
        return sum;
    };
    for (int64_t i = 0; i < n; ++i) c.p_norms.push_back(product(&c.p[i * dim], &c.p[i * dim]));
    for (int64_t j = 0; j < m; ++j) c.q_norms.push_back(product(&c.q[j * dim], &c.q[j * dim]));
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < c.stride; ++j) {
            c.products.push_back(j < m ? product(&c.p[i * dim], &c.q[j * dim]) : 0);
            if (j >= m) continue;
            const double r = c.p_norms[i] + c.q_norms[j] - 2 * c.products.back();
            c.farthest = std::max(c.farthest, r), c.typical += r / (double)(n * m);
        }
    c.q_mass.resize(c.stride, 0), c.q_norms.resize(c.stride, 0);
    return c;
}

}  // namespace

TEST(mmd_tile) {
    const int64_t sizes[][2] = {{1, 1}, {1, 5}, {7, 3}, {16, 16}, {17, 15}, {15, 33}, {33, 33}, {65, 40}};
    Random random(12);
    int turn = 0;
    for (const KernelCase& kernel : kernel_cases())
        for (const int dim : dims()) {  // half of the sizes in turn
            for (int i = (turn + turn / 4) % 2; i < 8; i += 2) {
                const double center = (i / 2 + turn / 2) % 2 ? 2.0 : 0.0;  // so far away most pairs are near
                check_case(make_case(random, kernel, sizes[i][0], sizes[i][1], dim, center));
            }
            ++turn;
        }
}

}  // namespace fastmmd::test
