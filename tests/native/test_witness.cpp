// witness and its gradients against the formula, one pair at a time.
#include <memory>

#include "kernel_formulas.hpp"

namespace fastmmd::test {
namespace {

struct Case {
    KernelCase kernel;
    int64_t p, n;
    int dim;
    int needs;  // of points, samples, weights, bandwidths, kernel weights: one bit each
    std::vector<double> points, samples, weights, grad;
    bool products = false;

    std::string describe() const {
        return std::string(host::name_of(kernel.family)) + " S=" + std::to_string(kernel.bandwidths.size()) +
               " p=" + std::to_string(p) + " n=" + std::to_string(n) + " D=" + std::to_string(dim) +
               " needs=" + std::to_string(needs) + (products ? " products" : "");
    }
};

struct Expected {
    Sums value, grad_points, grad_samples, grad_weights, grad_bandwidths, grad_kernel_weights;
};

// value_i = sum_j weights_j u(p_i, s_j), and the gradients of sum_i grad_i value_i.
Expected expect(const Case& c) {
    const Numbers grad(c.grad.begin(), c.grad.end()), weights(c.weights.begin(), c.weights.end());
    const double *points = c.points.data(), *samples = c.samples.data();
    const PairSums forward = pair_sums(c.kernel, c.dim, points, c.p, samples, c.n, grad, weights);
    const PairSums mirrored = pair_sums(c.kernel, c.dim, samples, c.n, points, c.p, weights, grad);
    Expected e = {forward.u,  forward.gradient,     mirrored.gradient,
                  mirrored.u, forward.by_bandwidth, forward.by_weight};
    for (size_t i = 0; i < e.grad_points.size(); ++i) e.grad_points[i] = grad[i / c.dim] * e.grad_points[i];
    for (size_t j = 0; j < e.grad_samples.size(); ++j)
        e.grad_samples[j] = weights[j / c.dim] * e.grad_samples[j];
    return e;
}

template <class T> struct Outputs {
    Array<T> value, grad_points, grad_samples, grad_weights, grad_bandwidths, grad_kernel_weights;

    explicit Outputs(const Case& c)
        : value(c.p),
          grad_points(c.needs & 1 ? c.p * c.dim : 0),
          grad_samples(c.needs & 2 ? c.n * c.dim : 0),
          grad_weights(c.needs & 4 ? c.n : 0),
          grad_bandwidths(c.needs & 8 ? c.kernel.bandwidths.size() : 0),
          grad_kernel_weights(c.needs & 16 ? c.kernel.bandwidths.size() : 0) {}

    bool same(const Outputs& other) const {
        return same_bits(value, other.value) && same_bits(grad_points, other.grad_points) &&
               same_bits(grad_samples, other.grad_samples) && same_bits(grad_weights, other.grad_weights) &&
               same_bits(grad_bandwidths, other.grad_bandwidths) &&
               same_bits(grad_kernel_weights, other.grad_kernel_weights);
    }
};

// Two calls, as the operators make them: the value, then the gradients.
template <class T> std::unique_ptr<Outputs<T>> call(const InstructionSet& set, const Case& c, int threads) {
    const Array<T> points(c.points), samples(c.samples), weights(c.weights), grad(c.grad);
    const Array<double> bandwidths(c.kernel.bandwidths), kernel_weights(c.kernel.weights);
    auto out = std::make_unique<Outputs<T>>(c);
    Witness task = {};
    task.is_double = is_double<T>, task.threads = threads;
    task.p = c.p, task.n = c.n, task.dim = c.dim;
    task.points = points.data(), task.samples = samples.data(), task.weights = weights.data();
    task.kernel = c.kernel.kernel(bandwidths, kernel_weights);
    task.products = c.products;
    task.value = out->value.data();
    CHECK(set.operations->witness(task), "%s %s: no memory", set.name(), c.describe().c_str());
    task.value = nullptr, task.grad = grad.data();
    task.gradients.points = or_null(out->grad_points), task.gradients.samples = or_null(out->grad_samples);
    task.gradients.weights = or_null(out->grad_weights);
    task.gradients.bandwidths = or_null(out->grad_bandwidths);
    task.gradients.kernel_weights = or_null(out->grad_kernel_weights);
    CHECK(set.operations->witness(task), "%s %s: no memory", set.name(), c.describe().c_str());
    return out;
}

template <class T>
void check(const InstructionSet& set, const Case& c, const Expected& e, const Outputs<T>& out) {
    const std::string name = std::string(set.name()) + " " + c.describe();
    const int64_t additions = c.p + c.n;
    check_close<T>("witness value", name, out.value, e.value, additions, Roundings::shared);
    check_close<T>("witness grad_points", name, out.grad_points, e.grad_points, additions, Roundings::shared);
    check_close<T>("witness grad_samples", name, out.grad_samples, e.grad_samples, additions,
                   Roundings::shared);
    check_close<T>("witness grad_weights", name, out.grad_weights, e.grad_weights, additions,
                   Roundings::shared);
    check_close<T>("witness grad_bandwidths", name, out.grad_bandwidths, e.grad_bandwidths, additions,
                   Roundings::shared);
    check_close<T>("witness grad_kernel_weights", name, out.grad_kernel_weights, e.grad_kernel_weights,
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

}  // namespace

namespace {

Case make_case(Random& random, const KernelCase& kernel, int64_t p, int64_t n, int dim, double scale) {
    const int needs[] = {1, 2, 4, 8, 16, 31, 31, 31};
    Case c = {kernel, p, n, dim, needs[random.below(8)], {}, {}, {}, {}};
    c.points = random_points(random, c.p, dim, 0);
    c.samples = random_points(random, c.n, dim, 0.5);
    for (std::vector<double>* points : {&c.points, &c.samples})
        for (double& x : *points) x *= scale;
    for (int d = 0; d < dim; ++d) c.samples[d] = c.points[d];
    for (int64_t j = 0; j < c.n; ++j) c.weights.push_back(random.normal());
    for (int64_t i = 0; i < c.p; ++i) c.grad.push_back(random.normal());
    return c;
}

}  // namespace

TEST(witness) {
    const int64_t small[][2] = {{1, 1}, {1, 17}, {4, 3}, {9, 8}, {16, 15}, {33, 31}};
    const int64_t large[][2] = {{257, 33}, {65, 257}, {1, 257}, {255, 1}};
    Random random(5);
    int turn = 0;
    for (const KernelCase& kernel : kernel_cases())
        for (const int dim : dims())
            for (size_t at = 0; at <= 6; ++at) {
                const auto& size = at < 6 ? small[at] : large[turn++ % 4];
                check_case(make_case(random, kernel, size[0], size[1], dim, 1));
            }
}

TEST(witness_by_products) {
    const int sizes[][3] = {{1, 17, 17}, {13, 40, 48}, {30, 270, 33}, {20, 13, 79}, {9, 5, 300}};
    Random random(6);
    for (const KernelCase& kernel : kernel_cases())
        if (kernel.family != Family::energy)
            for (const auto& size : sizes) {
                Case c = make_case(random, kernel, size[0], size[1], size[2], size[2] > 100 ? 0.25 : 1);
                c.products = true;
                check_case(c);
            }
}

}  // namespace fastmmd::test
