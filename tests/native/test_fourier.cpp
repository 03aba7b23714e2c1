// fourier_sum and fourier_function against phi(x) = scale [cos(W x), sin(W x)], one feature at a time.
#include "features.hpp"
#include "kernel_formulas.hpp"

namespace fastmmd::test {
namespace {

struct Case {
    FeatureCase features;
    int64_t batch, n;
    int dim;
    std::vector<double> x, weights, coefficients;

    std::string describe() const {
        return "batch=" + std::to_string(batch) + " n=" + std::to_string(n) + " D=" + std::to_string(dim) +
               " count=" + std::to_string(features.count) + " parts=" + std::to_string(features.parts);
    }
};

struct Expected {
    Sums sum;          // [batch, 2 * count]
    Sums value, grad;  // [batch, n], [batch, n, dim]
};

// The size of every term grows with the angle, whose rounding moves it: 1 + |W x|.
Expected expect(const Case& c) {
    const int64_t count = c.features.count;
    const int dim = c.dim;
    const std::vector<long double> w = frequencies(c.features, dim);
    Expected e = {Sums(c.batch * 2 * count), Sums(c.batch * c.n), Sums(c.batch * c.n * dim)};
    for (int64_t b = 0; b < c.batch; ++b)
        for (int64_t i = 0; i < c.n; ++i) {
            const double* x = c.x.data() + (b * c.n + i) * dim;
            const Number weight = c.weights[b * c.n + i];
            const double* coefficients = c.coefficients.data() + b * 2 * count;
            for (int64_t k = 0; k < count; ++k) {
                Number angle = 0, size = 1;
                for (int d = 0; d < dim; ++d) {
                    angle += w[k * dim + d] * x[d];
                    size += std::fabs(w[k * dim + d] * x[d]);
                }
                const Number cosine = c.features.scale_of(k) * std::cos(angle),
                             sine = c.features.scale_of(k) * std::sin(angle);
                const Number p = coefficients[k], q = coefficients[count + k];
                const Number scale = c.features.scale_of(k) * size;
                const auto term = [&](Number factor, Number value) {
                    Sum sum(factor * value);
                    sum.size = std::fabs(factor) * scale;
                    return sum;
                };
                e.sum[b * 2 * count + k] += term(weight, cosine);
                e.sum[b * 2 * count + count + k] += term(weight, sine);
                e.value[b * c.n + i] += term(p, cosine);
                e.value[b * c.n + i] += term(q, sine);
                for (int d = 0; d < dim; ++d) {
                    const Number frequency = w[k * dim + d];
                    Sum& grad = e.grad[(b * c.n + i) * dim + d];
                    // The frequency itself is as inexact as a unit of its distribution.
                    const Number inexact = std::fabs(frequency) + 1 / c.features.bandwidth_of(k);
                    Sum first = term(inexact * q, cosine), second = term(-inexact * p, sine);
                    first.value = frequency * q * cosine, second.value = -frequency * p * sine;
                    grad += first, grad += second;
                }
            }
        }
    return e;
}

template <class T> void check_case(const Case& c, const Expected& e) {
    const int64_t count = c.features.count;
    const Array<T> x(c.x), weights(c.weights), coefficients(c.coefficients);
    const FeatureArrays arrays(c.features);
    for (const InstructionSet& set : instruction_sets()) {
        const std::string name = std::string(set.name()) + " " + c.describe();
        const Array<T> first_sum(c.batch * 2 * count), first_value(c.batch * c.n),
            first_grad(c.batch * c.n * c.dim);
        for (const int threads : {1, 2, 4}) {
            const Array<T> own_sum(first_sum.size()), own_value(first_value.size()),
                own_grad(first_grad.size());
            const Array<T>&sum = threads == 1 ? first_sum : own_sum,
                  &value = threads == 1 ? first_value : own_value,
                  &grad = threads == 1 ? first_grad : own_grad;
            const bool summed =
                set.operations->fourier_sum({is_double<T>, threads, c.batch, c.n, c.dim, x.data(),
                                             weights.data(), arrays.features(), sum.data()});
            const bool evaluated = set.operations->fourier_function(
                {is_double<T>, threads, c.batch, c.n, c.dim, x.data(), coefficients.data(), arrays.features(),
                 value.data(), grad.data()});
            CHECK(summed && evaluated, "%s: no memory", name.c_str());
            if (threads == 1) continue;
            CHECK(same_bits(sum, first_sum) && same_bits(value, first_value) && same_bits(grad, first_grad),
                  "%s: other bits on %d threads", name.c_str(), threads);
        }
        check_close<T>("fourier_sum", name, first_sum, e.sum, c.n, Roundings::own);
        check_close<T>("fourier_function value", name, first_value, e.value, count, Roundings::own);
        check_close<T>("fourier_function grad", name, first_grad, e.grad, count, Roundings::own);

        // Either output alone has the same bits.
        const Array<T> value(first_value.size()), grad(first_grad.size());
        set.operations->fourier_function({is_double<T>, 1, c.batch, c.n, c.dim, x.data(), coefficients.data(),
                                          arrays.features(), value.data(), nullptr});
        set.operations->fourier_function({is_double<T>, 1, c.batch, c.n, c.dim, x.data(), coefficients.data(),
                                          arrays.features(), nullptr, grad.data()});
        CHECK(same_bits(value, first_value) && same_bits(grad, first_grad), "%s: other bits alone",
              name.c_str());
    }
}

enum Kind { ordinary, equal_weights, far_point };

void check_case(Random& random, int64_t batch, int64_t n, int dim, int64_t count, int parts, Kind kind) {
    Case c = {{{(int64_t)random.word(), (int64_t)random.word()}, count, parts}, batch, n, dim, {}, {}, {}};
    c.x = random_points(random, batch * n, dim, 0.25);
    for (int64_t i = 0; i < batch * n; ++i) c.weights.push_back((double)(float)(random.weight() / (double)n));
    if (kind == equal_weights && !c.weights.empty()) c.weights.assign(batch * n, c.weights[0]);
    // Its own results are bounded and no more; those of the other points stay as they are.
    if (kind == far_point && n > 1) c.x[dim] = (double)(float)1e20;
    for (int64_t k = 0; k < batch * 2 * count; ++k) c.coefficients.push_back(random.normal());
    const Expected expected = expect(c);
    check_case<float>(c, expected), check_case<double>(c, expected);
}

}  // namespace

TEST(fourier) {
    // Around the points that one sum holds and the features of one task, and beyond a tile of either.
    Random random(6);
    const int64_t sizes[][3] = {{1, 1, 1},     {1, 3, 15},  {2, 15, 16},  {3, 16, 17},
                                {1, 17, 63},   {2, 7, 64},  {1, 33, 65},  {1, 127, 3},
                                {1, 129, 129}, {2, 5, 257}, {1, 2, 1100}, {2, 0, 5}};
    for (const int dim : dims())
        for (const auto& size : sizes)
            for (const int parts : {1, 3})
                if (size[2] % parts == 0)
                    check_case(random, size[0], size[1], dim, size[2], parts, (Kind)random.below(2));
    for (const Kind kind : {ordinary, equal_weights}) {
        check_case(random, 1, 2500, 3, 20, 2, kind);  // shared out by strips of points
        check_case(random, 1, 3, 6, 3000, 3, kind);   // by strips of features
        check_case(random, 0, 3, 2, 4, 1, kind);
    }
}

TEST(fourier_far_away) {
    Random random(11);
    for (const int dim : {1, 6, 17})
        for (const int64_t n : {2, 17, 40}) check_case(random, 2, n, dim, 33, 1, far_point);
}

}  // namespace fastmmd::test
