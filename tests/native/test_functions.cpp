// The elementary functions of cpu/math.hpp against the C library in the next wider type, in units in the last
// place.
#include <cmath>
#include <cstring>

#include "arrays.hpp"
#include "instruction_sets.hpp"

namespace fastmmd::test {
namespace {

template <class T> struct Wider;
template <> struct Wider<float> {
    typedef double type;
    typedef uint32_t bits;
    static constexpr int digits = 24, smallest_exponent = -126;
};
template <> struct Wider<double> {
    typedef long double type;
    typedef uint64_t bits;
    static constexpr int digits = 53, smallest_exponent = -1022;
};
template <class T> using Wide = typename Wider<T>::type;

// The distance between neighboring numbers of T around `value`; below the normal numbers that of the
// subnormal ones.
template <class T> Wide<T> spacing(Wide<T> value) {
    int exponent;
    std::frexp(value, &exponent);  // value = m 2^exponent with 1/2 <= m < 1; 0 for 0
    const int smallest = Wider<T>::smallest_exponent;
    if (value == 0 || exponent - 1 < smallest) exponent = smallest + 1;
    return std::ldexp((Wide<T>)1, exponent - Wider<T>::digits);
}

template <class T>
std::vector<T> evaluate(const InstructionSet& set, const char* name, const std::vector<T>& in) {
    const Array<T> arguments(in), results(in.size());
    const bool known = set.operations->elementwise(
        {is_double<T>, name, (int64_t)in.size(), arguments.data(), results.data()});
    CHECK(known, "%s: no function %s", set.name(), name);
    return std::vector<T>(results.data(), results.data() + in.size());
}

// |result - f(x)| <= ulps * spacing(f(x)) + absolute.
struct Bound {
    double ulps, absolute;
};

template <class T> struct Function {
    const char* name;
    Wide<T> (*exact)(Wide<T>);
    Bound bound;
};

// The error of a result as a share of its bound.
template <class T> Wide<T> share_of(const Bound& bound, T result, Wide<T> expected) {
    return std::fabs((Wide<T>)result - expected) /
           ((Wide<T>)bound.ulps * spacing<T>(expected) + (Wide<T>)bound.absolute);
}

template <class T>
void check_accuracy(const InstructionSet& set, const Function<T>& function, const std::vector<T>& arguments,
                    const std::vector<Wide<T>>& expected) {
    const std::vector<T> results = evaluate<T>(set, function.name, arguments);
    Wide<T> largest = -1;
    size_t worst = 0;
    for (size_t i = 0; i < arguments.size(); ++i) {
        const Wide<T> share = share_of<T>(function.bound, results[i], expected[i]);
        if (!(share <= largest)) largest = share, worst = i;
    }
    margin(std::string(function.name) + (is_double<T> ? " double " : " float ") + set.name(),
           (double)largest);
    CHECK(largest <= 1, "%s %s(%a) = %a, expected %.17Lg: %.3Lg of the bound", set.name(), function.name,
          (double)arguments[worst], (double)results[worst], (long double)expected[worst],
          (long double)largest);
}

template <class T> void check_accuracy(const Function<T>& function, const std::vector<T>& arguments) {
    std::vector<Wide<T>> expected(arguments.size());
    for (size_t i = 0; i < arguments.size(); ++i) expected[i] = function.exact((Wide<T>)arguments[i]);
    for (const InstructionSet& set : instruction_sets())
        check_accuracy<T>(set, function, arguments, expected);
}

template <class T> typename Wider<T>::bits bits_of(T value) {
    typename Wider<T>::bits bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

template <class T> T from_bits(typename Wider<T>::bits bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Arguments from low to high, times sign, equally spaced in their bits, so that every binade has its share. 0
// <= low.
template <class T> void check_range(const Function<T>& function, T low, T high, T sign) {
    typedef typename Wider<T>::bits Bits;
    const uint64_t first = bits_of(low), last = bits_of(high);
    const uint64_t count = sanitized ? 10'000 : 200'000;
    const uint64_t step = (last - first) / count < 1 ? 1 : (last - first) / count;
    constexpr size_t piece = 1 << 16;
    std::vector<T> arguments;
    for (uint64_t at = first; at <= last; at += step) {
        arguments.push_back(sign * from_bits<T>((Bits)at));
        if (arguments.size() == piece) check_accuracy<T>(function, arguments), arguments.clear();
    }
    arguments.push_back(sign * high);
    check_accuracy<T>(function, arguments);
}

template <class T> constexpr T smallest = std::numeric_limits<T>::denorm_min();
template <class T> constexpr T normal = std::numeric_limits<T>::min();
template <class T> constexpr T largest = std::numeric_limits<T>::max();
template <class T> constexpr T infinity = std::numeric_limits<T>::infinity();
template <class T> constexpr T nan = std::numeric_limits<T>::quiet_NaN();

// The limits that cpu/math.hpp states.
template <class T> constexpr T exp_largest = is_double<T> ? T(709) : T(88);
template <class T> constexpr T exp_smallest = is_double<T> ? T(-708.396) : T(-87.3365);

// The functions with their bounds: in units in the last place of the result, of which a rounding is a half.
template <class T> struct Functions {
    typedef Wide<T> W;
    static constexpr W pi = 3.141592653589793238462643383279502884L;

    // The last sum; the polynomial and the reduced argument, both at most half as large as the result.
    Function<T> exp = {"exp", [](W x) -> W { return std::exp(x); }, {1.25, 0}};
    // The same, but where the scale is 1/2 the result is as small as they are.
    Function<T> expm1 = {"expm1", [](W x) -> W { return std::expm1(x); }, {2, 0}};
    // fdlibm's.
    Function<T> log = {"log", [](W x) -> W { return std::log(x); }, {1, 0}};
    // The logarithm and the sum with its correction.
    Function<T> log1p = {"log1p", [](W x) -> W { return std::log1p(x); }, {1.5, 0}};

    // In half turns and absolute: the polynomial, its last rounding, those of -4.93 z + 1 and of z.
    Function<T> sinpi = {
        "sinpi", [](W t) { return std::sin(pi * std::remainder(t, W(2))); }, {0, 4 * rounding<T>}};
    Function<T> cospi = {
        "cospi", [](W t) { return std::cos(pi * std::remainder(t, W(2))); }, {0, 4 * rounding<T>}};
    // Of those two, t again: what their errors turn it by, the quotient, the polynomial, the last rounding.
    Function<T> phase = {"phase", [](W t) { return t; }, {0, 4 * rounding<T>}};
};

template <class T> void check_ranges() {
    const Functions<T> f;
    check_range<T>(f.exp, 0, exp_largest<T>, 1);
    check_range<T>(f.exp, 0, -exp_smallest<T>, -1);
    check_range<T>(f.expm1, 0, exp_largest<T>, 1);
    check_range<T>(f.expm1, 0, largest<T>, -1);
    check_range<T>(f.log, normal<T>, largest<T>, 1);
    check_range<T>(f.log, T(0.5), T(2), 1);
    check_range<T>(f.log1p, 0, largest<T> / 2, 1);
    for (const T sign : {T(1), T(-1)}) {
        for (const Function<T>& function : {f.sinpi, f.cospi}) {
            check_range<T>(function, 0, 1, sign);
            check_range<T>(function, 1, 10'000, sign);
            check_range<T>(function, 10'000, largest<T>, sign);
        }
        check_range<T>(f.phase, 0, T(0.9999), sign);
    }
}

// `argument` in each lane of a vector of ordinary arguments: its result, and that the others keep theirs.
template <class T> void check_edge(const Function<T>& function, T argument, T expected) {
    constexpr int count = 16;
    for (int place = 0; place < count; ++place) {
        std::vector<T> arguments(count);
        for (int i = 0; i < count; ++i) arguments[i] = T(0.25) + T(0.03125) * T(i);
        arguments[place] = argument;
        for (const InstructionSet& set : instruction_sets()) {
            const std::vector<T> results = evaluate<T>(set, function.name, arguments);
            const T result = results[place];
            CHECK(result == expected || (result != result && expected != expected),
                  "%s %s(%a) = %a, expected %a, in place %d", set.name(), function.name, (double)argument,
                  (double)result, (double)expected, place);
            for (int i = 0; i < count; ++i)
                CHECK(i == place ||
                          share_of<T>(function.bound, results[i], function.exact((Wide<T>)arguments[i])) <= 1,
                      "%s %s(%a) = %a beside %a", set.name(), function.name, (double)arguments[i],
                      (double)results[i], (double)argument);
        }
    }
}

template <class T> void check_edges() {
    const Functions<T> f;
    for (const T zero : {T(0), T(-0.0)}) {
        check_edge<T>(f.exp, zero, 1);
        check_edge<T>(f.expm1, zero, 0);
        check_edge<T>(f.sinpi, zero, 0);
        check_edge<T>(f.cospi, zero, 1);
        check_edge<T>(f.phase, zero, 0);
    }
    check_edge<T>(f.log, 1, 0);
    check_edge<T>(f.log1p, 0, 0);
    for (const T tiny : {smallest<T>, normal<T> / 4, std::nextafter(normal<T>, T(0)), normal<T>}) {
        for (const T x : {tiny, -tiny}) {
            check_edge<T>(f.exp, x, 1);
            check_edge<T>(f.expm1, x, x);
            check_edge<T>(f.cospi, x, 1);
        }
        check_edge<T>(f.log1p, tiny, tiny);
    }
    // No subnormal results: exp is 0 from its limit on, expm1 is -1 long before.
    for (const T x :
         {std::nextafter(exp_smallest<T>, -infinity<T>), 2 * exp_smallest<T>, -largest<T>, -infinity<T>}) {
        check_edge<T>(f.exp, x, 0);
        check_edge<T>(f.expm1, x, -1);
    }
    for (const T x :
         {std::nextafter(exp_largest<T>, infinity<T>), largest<T>, infinity<T>}) {  // taken as the limit
        for (const Function<T>& function : {f.exp, f.expm1})
            check_edge<T>(function, x,
                          evaluate<T>(instruction_sets()[0], function.name, {exp_largest<T>})[0]);
    }
    for (const T x : {infinity<T>, -infinity<T>, nan<T>}) {
        for (const Function<T>& function : {f.sinpi, f.cospi, f.phase}) check_edge<T>(function, x, nan<T>);
    }
    const T even = 2 / rounding<T>;  // from here on all numbers are even
    for (const T sign : {T(1), T(-1)}) {
        for (const T n : {T(1), T(2), T(3), T(4095), even / 2 - 1, even, largest<T>}) {
            check_edge<T>(f.sinpi, sign * n, 0);
            check_edge<T>(f.cospi, sign * n, std::fmod(n, T(2)) == 0 ? T(1) : T(-1));
        }
        check_accuracy<T>(
            f.phase, {sign * smallest<T>, sign * normal<T>, sign * T(0.25), sign * T(0.5), sign * T(0.75)});
    }
    check_edge<T>(f.exp, nan<T>, nan<T>);
    check_edge<T>(f.expm1, nan<T>, nan<T>);
    check_edge<T>(f.log1p, nan<T>, nan<T>);
}

template <class T> void check_counts() {
    const Functions<T> f;
    for (int count = 1; count <= 33; ++count) {
        std::vector<T> arguments(count);
        for (int i = 0; i < count; ++i) arguments[i] = T(i + 1) / 8;
        for (const Function<T>& function : {f.exp, f.expm1, f.log, f.log1p, f.sinpi, f.cospi})
            check_accuracy<T>(function, arguments);
    }
    for (const InstructionSet& set : instruction_sets())
        CHECK(!set.operations->elementwise({is_double<T>, "tan", 0, nullptr, nullptr}), "%s knows tan",
              set.name());
}

}  // namespace

TEST(functions_float) { check_ranges<float>(); }
TEST(functions_double) { check_ranges<double>(); }
TEST(functions_edges) { check_edges<float>(), check_edges<double>(); }
TEST(functions_counts) { check_counts<float>(), check_counts<double>(); }

}  // namespace fastmmd::test
