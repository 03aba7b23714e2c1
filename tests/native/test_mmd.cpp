// mmd2 against its formula, one pair at a time: every kernel, gradient, weighting and estimator at odd sizes.
#include <memory>

#include "kernel_formulas.hpp"

namespace fastmmd::test {
namespace {

// Gradients that are asked for.
enum Needs { need_x = 1, need_y = 2, need_weights = 4, need_bandwidths = 8, need_kernel_weights = 16 };

struct Case {
    KernelCase kernel = {};
    int64_t batch = 1, n = 1, m = 0;  // m = 0: without y
    int dim = 1;
    bool x_weighted = false, y_weighted = false, unbiased = false;
    int needs = 0;
    int64_t product_points = -1;  // negative: by differences
    std::vector<double> x, y, x_weights, y_weights;
    std::vector<int64_t> x_offsets, y_offsets;  // empty: members of n and m points

    // The first row of member b, and the rows of all members and behind them.
    int64_t first(int side, int64_t b) const {
        const std::vector<int64_t>& offsets = side ? y_offsets : x_offsets;
        return offsets.empty() ? b * (side ? m : n) : offsets[b];
    }
    int64_t rows(int side) const { return (x_offsets.empty() ? batch : 1) * (side ? m : n); }
    bool wants(int need) const { return needs & need; }
    bool wants_weights(int side) const {
        return wants(need_weights) && (side ? y_weighted && m > 0 : x_weighted);
    }
    std::string describe() const {
        return std::string(host::name_of(kernel.family)) + " S=" + std::to_string(kernel.bandwidths.size()) +
               " batch=" + std::to_string(batch) + " n=" + std::to_string(n) + " m=" + std::to_string(m) +
               (x_offsets.empty() ? "" : " by offsets") + " D=" + std::to_string(dim) +
               (x_weighted ? " x weighted" : "") + (y_weighted ? " y weighted" : "") +
               (unbiased ? " unbiased" : "") + " needs=" + std::to_string(needs) +
               (product_points < 0 ? "" : " products");
    }
};

struct Expected {
    Sums value, grad_x, grad_y, grad_x_weights, grad_y_weights, grad_bandwidths, grad_kernel_weights;
};

// One of the two samples of a member of the batch.
struct Side {
    const double* points;
    int64_t count;
    Numbers w;                // normalized
    Number total = 0, a = 1;  // sum of the weights; 1 / (1 - sum w^2) if unbiased
    PairSums self = {}, cross = {};
    Sum self_total = {};
};

Side make_side(const Case& c, int at, int64_t b) {
    const std::vector<double>&points = at ? c.y : c.x, &weights = at ? c.y_weights : c.x_weights;
    const int64_t first = c.first(at, b), count = c.first(at, b + 1) - first;
    Side side = {points.data() + first * c.dim, count, Numbers(count, 1)};
    Number squares = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (!weights.empty()) side.w[i] = weights[first + i];
        side.total += side.w[i];
    }
    for (Number& w : side.w) w /= side.total, squares += w * w;
    if (c.unbiased) side.a = 1 / (1 - squares);
    return side;
}

// mmd2 = a_x w K_xx w + a_y v K_yy v - 2 w K_xy v.
Expected expect(const Case& c) {
    Expected e;
    const int count = (int)c.kernel.bandwidths.size();
    for (int64_t b = 0; b < c.batch; ++b) {
        Side sides[2] = {make_side(c, 0, b), make_side(c, 1, b)};
        const int present = c.m > 0 ? 2 : 1;
        Sum value;
        Sums by_bandwidth(count), by_weight(count);
        for (int at = 0; at < present; ++at) {
            Side& own = sides[at];
            const Side& other = sides[1 - at];
            own.self = pair_sums(c.kernel, c.dim, own.points, own.count, own.points, own.count, own.w, own.w);
            for (int64_t i = 0; i < own.count; ++i) own.self_total += own.w[i] * own.self.u[i];
            value += own.a * own.self_total;
            for (int s = 0; s < count; ++s) {
                by_bandwidth[s] += own.a * own.self.by_bandwidth[s];
                by_weight[s] += own.a * own.self.by_weight[s];
            }
            if (present == 1) continue;
            own.cross =
                pair_sums(c.kernel, c.dim, own.points, own.count, other.points, other.count, own.w, other.w);
            for (int64_t i = 0; at == 0 && i < own.count; ++i) value += -2 * own.w[i] * own.cross.u[i];
            for (int s = 0; at == 0 && s < count; ++s) {
                by_bandwidth[s] += -2 * own.cross.by_bandwidth[s];
                by_weight[s] += -2 * own.cross.by_weight[s];
            }
        }
        e.value.push_back(value);
        e.grad_bandwidths.insert(e.grad_bandwidths.end(), by_bandwidth.begin(), by_bandwidth.end());
        e.grad_kernel_weights.insert(e.grad_kernel_weights.end(), by_weight.begin(), by_weight.end());
        for (int at = 0; at < present; ++at) {
            const Side& own = sides[at];
            Sums& grad = at ? e.grad_y : e.grad_x;
            Sums& grad_weights = at ? e.grad_y_weights : e.grad_x_weights;
            Sums g(own.count);  // in the normalized weights
            Sum mean;
            for (int64_t i = 0; i < own.count; ++i) {
                for (int d = 0; d < c.dim; ++d) {
                    Sum sum = own.a * own.self.gradient[i * c.dim + d];
                    if (present == 2) sum += -1 * own.cross.gradient[i * c.dim + d];
                    grad.push_back(2 * own.w[i] * sum);
                }
                g[i] = 2 * own.a * own.self.u[i];
                if (present == 2) g[i] += -2 * own.cross.u[i];
                if (c.unbiased) g[i] += 2 * own.a * own.a * own.w[i] * own.self_total;
                mean += own.w[i] * g[i];
            }
            for (Sum& sum : g) {
                sum += -1 * mean;
                grad_weights.push_back(1 / own.total * sum);
            }
        }
    }
    e.grad_x.resize(c.rows(0) * c.dim), e.grad_x_weights.resize(c.rows(0));
    e.grad_y.resize(c.rows(1) * c.dim), e.grad_y_weights.resize(c.rows(1));
    return e;
}

// The outputs of one call; those that are not asked for are empty.
template <class T> struct Outputs {
    Array<double> value;
    Array<T> grad_x, grad_y, grad_x_weights, grad_y_weights, grad_bandwidths, grad_kernel_weights;

    explicit Outputs(const Case& c)
        : value(c.batch),
          grad_x(c.wants(need_x) ? c.rows(0) * c.dim : 0),
          grad_y(c.wants(need_y) ? c.rows(1) * c.dim : 0),
          grad_x_weights(c.wants_weights(0) ? c.rows(0) : 0),
          grad_y_weights(c.wants_weights(1) ? c.rows(1) : 0),
          grad_bandwidths(c.wants(need_bandwidths) ? c.batch * c.kernel.bandwidths.size() : 0),
          grad_kernel_weights(c.wants(need_kernel_weights) ? c.batch * c.kernel.bandwidths.size() : 0) {}

    bool same(const Outputs& other) const {
        return same_bits(value, other.value) && same_bits(grad_x, other.grad_x) &&
               same_bits(grad_y, other.grad_y) && same_bits(grad_x_weights, other.grad_x_weights) &&
               same_bits(grad_y_weights, other.grad_y_weights) &&
               same_bits(grad_bandwidths, other.grad_bandwidths) &&
               same_bits(grad_kernel_weights, other.grad_kernel_weights);
    }
};

template <class T> std::unique_ptr<Outputs<T>> call(const InstructionSet& set, const Case& c, int threads) {
    const Array<T> x(c.x), y(c.y), x_weights(c.x_weights), y_weights(c.y_weights);
    const Array<int64_t> x_offsets(c.x_offsets), y_offsets(c.y_offsets);
    const Array<double> bandwidths(c.kernel.bandwidths), weights(c.kernel.weights);
    auto out = std::make_unique<Outputs<T>>(c);
    Mmd2 task = {};
    task.is_double = is_double<T>, task.threads = threads;
    task.batch = c.batch, task.dim = c.dim;
    task.x = {c.n, x.data(), or_null(x_weights), or_null(x_offsets)};
    task.y = {c.m, or_null(y), or_null(y_weights), or_null(y_offsets)};
    task.kernel = c.kernel.kernel(bandwidths, weights);
    task.unbiased = c.unbiased;
    task.product_points = c.product_points;
    task.value = out->value.data();
    task.gradients = {or_null(out->grad_x),          or_null(out->grad_y),
                      or_null(out->grad_x_weights),  or_null(out->grad_y_weights),
                      or_null(out->grad_bandwidths), or_null(out->grad_kernel_weights)};
    const bool done = set.operations->mmd2(task);
    CHECK(done, "%s %s: no memory", set.name(), c.describe().c_str());
    return out;
}

template <class T>
void check(const InstructionSet& set, const Case& c, const Expected& e, const Outputs<T>& out) {
    const std::string name = std::string(set.name()) + " " + c.describe();
    const int64_t additions = c.n + c.m;
    check_close<T>("mmd2 value", name, out.value, e.value, additions, Roundings::shared);
    check_close<T>("mmd2 grad_x", name, out.grad_x, e.grad_x, additions, Roundings::shared);
    check_close<T>("mmd2 grad_y", name, out.grad_y, e.grad_y, additions, Roundings::shared);
    check_close<T>("mmd2 grad_x_weights", name, out.grad_x_weights, e.grad_x_weights, additions,
                   Roundings::shared);
    check_close<T>("mmd2 grad_y_weights", name, out.grad_y_weights, e.grad_y_weights, additions,
                   Roundings::shared);
    check_close<T>("mmd2 grad_bandwidths", name, out.grad_bandwidths, e.grad_bandwidths, additions,
                   Roundings::shared);
    check_close<T>("mmd2 grad_kernel_weights", name, out.grad_kernel_weights, e.grad_kernel_weights,
                   additions, Roundings::shared);
}

void check_case(const Case& c) {
    const Expected expected = expect(c);
    for (const InstructionSet& set : instruction_sets()) {
        const auto narrow = call<float>(set, c, 1);
        const auto wide = call<double>(set, c, 1);
        check<float>(set, c, expected, *narrow);
        check<double>(set, c, expected, *wide);
        for (const int threads : team_sizes()) {
            CHECK(call<float>(set, c, threads)->same(*narrow), "%s float %s: other bits on %d threads",
                  set.name(), c.describe().c_str(), threads);
            CHECK(call<double>(set, c, threads)->same(*wide), "%s double %s: other bits on %d threads",
                  set.name(), c.describe().c_str(), threads);
        }
    }
}

Case make_case(Random& random, const KernelCase& kernel, int64_t n, int64_t m, int dim) {
    constexpr int all = need_x | need_y | need_weights | need_bandwidths | need_kernel_weights;
    const int choices[] = {all,
                           all,
                           all,
                           all,
                           0,
                           need_x,
                           need_y,
                           need_x | need_y,
                           need_weights,
                           need_x | need_weights,
                           need_bandwidths,
                           need_kernel_weights};
    Case c;
    c.kernel = kernel;
    c.batch = n + m > 100 ? 1 : 1 + random.below(3);
    c.n = n, c.m = m, c.dim = dim;
    c.x_weighted = random.below(2);
    c.y_weighted = m > 0 && random.below(2);
    c.unbiased = n > 1 && m != 1 && random.below(2);
    c.needs = choices[random.below(12)];
    c.x = random_points(random, c.batch * n, dim, 0);
    c.y = random_points(random, c.batch * m, dim, 0.5);
    for (int d = 0; m > 0 && d < dim; ++d) c.y[d] = c.x[d];  // a point that both samples hold
    for (int64_t i = 0; c.x_weighted && i < c.batch * n; ++i) c.x_weights.push_back(random.weight());
    for (int64_t i = 0; c.y_weighted && i < c.batch * m; ++i) c.y_weights.push_back(random.weight());
    return c;
}

// Members of the given sizes in x and y, and three rows behind them.
Case make_members(Random& random, const KernelCase& kernel,
                  const std::vector<std::pair<int64_t, int64_t>>& sizes, int dim) {
    std::vector<int64_t> x_offsets = {0}, y_offsets = {0};
    for (const auto& size : sizes) {
        x_offsets.push_back(x_offsets.back() + size.first);
        y_offsets.push_back(y_offsets.back() + size.second);
    }
    const int64_t n = x_offsets.back() + 3, m = y_offsets.back() + 3;
    Case c = make_case(random, kernel, n, m, dim);
    c.batch = (int64_t)sizes.size();
    c.x.resize(n * dim), c.y.resize(m * dim);
    if (c.x_weighted) c.x_weights.resize(n);
    if (c.y_weighted) c.y_weights.resize(m);
    c.x_offsets = x_offsets, c.y_offsets = y_offsets;
    for (const auto& size : sizes) c.unbiased = c.unbiased && size.first != 1 && size.second != 1;
    return c;
}

}  // namespace

TEST(mmd2) {
    // One point, and around the lanes of every instruction set, half of them in turn; around a tile every
    // other time.
    const int64_t small[][2] = {{1, 1},   {1, 5},   {3, 4},   {5, 7},  {8, 9},
                                {15, 16}, {17, 15}, {31, 33}, {33, 1}, {16, 0}};
    const int64_t large[][2] = {{257, 0}, {64, 257}, {257, 65}, {255, 3}};
    Random random(4);
    int turn = 0;
    for (const KernelCase& kernel : kernel_cases())
        for (const int dim : dims()) {
            for (int i = (turn + turn / 4) % 2; i < 10; i += 2)
                check_case(make_case(random, kernel, small[i][0], small[i][1], dim));
            const auto& size = large[(turn / 2 + turn / 8) % 4];
            if ((turn + turn / 4) % 2) check_case(make_case(random, kernel, size[0], size[1], dim));
            ++turn;
        }
}

// More dimensions than one slab of a gradient and, from 512 on, than one chunk of squares takes.
TEST(mmd2_in_many_dimensions) {
    Random random(13);
    for (const KernelCase& kernel : kernel_cases())
        if (kernel.bandwidths.size() == (kernel.family == Family::gaussian ? 6u : 1u))
            for (const int dim : {128, 130, 528}) {
                check_case(make_case(random, kernel, 18, 21, dim));
                check_case(make_members(random, kernel, {{17, 5}, {2, 33}}, dim));
            }
}

TEST(mmd2_by_products) {
    const int sizes[][3] = {{1, 1, 17},   {13, 40, 48}, {12, 16, 49}, {30, 270, 33},
                            {20, 13, 79}, {9, 5, 300},  {7, 5, 784},  {3, 5, 2048}};
    Random random(14);
    const auto closer = [](Case& c) {  // kernels of many dimensions are normal numbers
        for (std::vector<double>* points : {&c.x, &c.y})
            for (double& x : *points) x *= c.dim > 1000 ? 0.0625 : c.dim > 100 ? 0.125 : 1;
    };
    for (const KernelCase& kernel : kernel_cases())
        if (kernel.family != Family::energy)
            for (const auto& size : sizes) {
                Case c = make_case(random, kernel, size[0], size[1], size[2]);
                c.product_points = 0;
                closer(c), check_case(c);
                c = make_members(random, kernel, {{17, 5}, {0, 0}, {2, 33}}, size[2]);
                c.product_points = 3;
                closer(c), check_case(c);
            }
}

// One sample spread out, the other in one place: the farthest pair lies within a sample.
TEST(mmd2_of_a_point_and_a_cloud) {
    Random random(9);
    for (const KernelCase& kernel : kernel_cases())
        for (const int dim : {1, 6, 17}) {
            Case c = make_case(random, kernel, 40, 24, dim);
            std::vector<double>& narrow = dim == 6 ? c.x : c.y;
            std::vector<double>& wide = dim == 6 ? c.y : c.x;
            for (double& x : narrow) x = (double)(float)(0.01 * x);
            for (double& x : wide) x = (double)(float)(4 * x);
            check_case(c);
        }
}

TEST(mmd2_of_members_of_unequal_sizes) {
    const std::vector<std::pair<int64_t, int64_t>> several = {{2, 33}, {0, 0}, {17, 5}, {0, 0}, {129, 2}};
    Random random(11);
    for (const KernelCase& kernel : kernel_cases())
        for (const int dim : {1, 6, 17}) check_case(make_members(random, kernel, several, dim));
    check_case(make_members(random, kernel_cases()[0], {{515, 261}, {1, 1}, {16, 700}}, 3));
    check_case(make_members(random, kernel_cases()[0], {{0, 0}}, 3));
}

// Without points on one side, or with a single one for "unbiased": NaN, and the members beside are not.
TEST(mmd2_of_members_that_have_no_value) {
    Random random(12);
    for (const bool unbiased : {false, true}) {
        Case c = make_members(random, kernel_cases()[0], {{0, 4}, {5, 4}, {3, 0}, {1, 6}}, 3);
        c.needs = need_x | need_y | need_bandwidths;
        c.unbiased = unbiased;
        for (const InstructionSet& set : instruction_sets()) {
            const auto out = call<float>(set, c, 2);
            for (int64_t b = 0; b < c.batch; ++b)
                CHECK(std::isnan(out->value[b]) == (b == 1   ? false
                                                    : b == 3 ? unbiased
                                                             : true),
                      "%s %s: member %d", set.name(), c.describe().c_str(), (int)b);
            for (int d = 0; d < c.dim; ++d) {
                CHECK(std::isfinite(out->grad_x[d]) && std::isfinite(out->grad_y[4 * c.dim + d]),
                      "%s: a gradient beside is not finite", set.name());
                CHECK(std::isnan(out->grad_x[5 * c.dim + d]) && std::isnan(out->grad_y[d]),
                      "%s: a gradient of a member without value", set.name());
            }
        }
    }
}

// Several tiles on either side, in their last one a few columns.
TEST(mmd2_of_several_tiles) {
    Random random(10);
    for (const KernelCase& kernel : kernel_cases())
        if (kernel.bandwidths.size() == (kernel.family == Family::gaussian ? 6u : 1u))
            check_case(make_case(random, kernel, 515, 261, 6));
}

}  // namespace fastmmd::test
