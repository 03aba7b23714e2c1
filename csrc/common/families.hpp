// The kernel families of mmd2 and witness: the one table of the compiled code, for the host, for every
// instruction set and for devices. fastmmd/kernels.py is the same table for Python, and says what else adding
// a family takes; tests/test_kernels.py compares the two.
//
// A family is a struct of facts and formulas; with_family() is the only switch. kappa(r; s) is a function of
// the squared distance r and the bandwidth s, in truth of q = r / s^2 alone (times a power of s), with
// kappa(0) = 1 if bounded, else 0. So d kappa / d s = -2 r / s kappa'(r) follows from the slope.
//
//   bounded      kappa(0) = 1 and kappa vanishes far away
//   smooth       kappa'(0) is finite; the slopes of the others count as 0 at r = 0
//   takes_root   computed from sqrt(r), the argument, in place of r; its slope has a factor 1 / sqrt(r)
//   squarings    of a function exp(rate * argument): how often the kernel of bandwidth s is squared to get
//   that
//                of s / 2 (common/ladder.hpp); 0 for the others, which have `At` instead
//   rate         what multiplies the argument, or (imq) is added to it
//   steepness    the unit of the slope: kappa'(0) if smooth
//   value, relative_slope   kappa and kappa'(r) / kappa'(0) at q, in double: for plans, which decide by them.
//                The slope is only asked of smooth families: that of the others is never shifted to r = 0.
//   At<Math>     a family that is no exponential, at one argument: u = kappa - kappa(0), k = kappa, slope()
//                in units of the steepness, and shifted(), the slope minus its value at 0, where there is
//                one. Math gives T, V (T or a vector of it) and reciprocal, exponentials, log1p, at_most.
#pragma once
#include <math.h>

#ifndef FASTMMD_ANYWHERE
#define FASTMMD_ANYWHERE  // of functions that CUDA compiles for both sides
#endif

#ifndef FASTMMD_ISA
#define FASTMMD_ISA host  // bindings and tests, which are compiled once
#endif

namespace fastmmd {

enum class Family { gaussian, laplacian, imq, rational_quadratic, energy };
constexpr int family_count = 5;

}  // namespace fastmmd

namespace fastmmd::FASTMMD_ISA {
namespace {

// Bounds that keep every kernel finite, with value 0 for u at r = 0, whatever the bandwidth and the distance.
// `T` is what the kernels are evaluated in.
template <class T> struct Limits;
template <> struct Limits<float> {
    // Rates of tiny bandwidths: inf times r = 0 would be NaN, the largest number times 0 is 0.
    static constexpr double rate = 0x1.fffffep127;
    // Slopes alike, with room for masses (they are multiplied by, and summed).
    static constexpr double steepness = rate * 0x1p-20;
    // r of a family with a quotient: inf / inf would be NaN; r / r is 1 as far away it should be.
    static constexpr double argument = 1e30;
    // imq's c = s^2 from 1 / divisor to divisor. u = -r / (c + r) and kappa = c / (c + r) are computed with
    // the reciprocal of c + r, which at r = 0 is 1 / c. Both must be normal numbers of T: a subnormal one
    // loses digits or, on a device, becomes 0, and 1 / 0 * 0 is NaN. The normal numbers whose reciprocals are
    // normal are 2^-126 ... 2^126 (float), 2^-1022 ... 2^1022 (double); a factor of 2 is left for reciprocals
    // that are a unit in the last place off. `argument` is below half a unit in the last place of the
    // divisor, so c + r stays in that range too.
    static constexpr double divisor = 0x1p125;
};
template <> struct Limits<double> {
    static constexpr double rate = 0x1.fffffffffffffp1023;
    static constexpr double steepness = rate * 0x1p-20;
    static constexpr double argument = 1e300;
    static constexpr double divisor = 0x1p1021;
};

// |value| at most `limit`; NaN stays NaN.
FASTMMD_ANYWHERE inline double bounded_by(double limit, double value) {
    return value > limit ? limit : value < -limit ? -limit : value;
}

struct FamilyDefaults {
    static constexpr bool bounded = true, smooth = true, takes_root = false;
    static constexpr bool has_bandwidths = true, has_alpha = false;
    static constexpr int squarings = 0;
};

// exp(-r / (2 s^2))
struct Gaussian : FamilyDefaults {
    static constexpr const char* name = "gaussian";
    static constexpr int squarings = 2;
    template <class T> FASTMMD_ANYWHERE static double rate(double s, double) {
        return bounded_by(Limits<T>::rate, -0.5 / (s * s));
    }
    FASTMMD_ANYWHERE static double steepness(double s) { return -0.5 / (s * s); }
    template <class Math> FASTMMD_ANYWHERE static double value(double q, double) {
        return Math::exp(-0.5 * q);
    }
    template <class Math> FASTMMD_ANYWHERE static double relative_slope(double q, double) {
        return Math::exp(-0.5 * q);
    }
};

// exp(-sqrt(r) / s)
struct Laplacian : FamilyDefaults {
    static constexpr const char* name = "laplacian";
    static constexpr bool smooth = false, takes_root = true;
    static constexpr int squarings = 1;
    template <class T> FASTMMD_ANYWHERE static double rate(double s, double) {
        return bounded_by(Limits<T>::rate, -1 / s);
    }
    FASTMMD_ANYWHERE static double steepness(double s) { return -0.5 / s; }
    template <class Math> FASTMMD_ANYWHERE static double value(double q, double) {
        return Math::exp(-Math::root(q));
    }
    template <class Math> FASTMMD_ANYWHERE static double relative_slope(double, double) { return 0; }
};

// c / (c + r), c = s^2
struct InverseMultiquadric : FamilyDefaults {
    static constexpr const char* name = "imq";
    template <class T> FASTMMD_ANYWHERE static double rate(double s, double) {
        constexpr double least = 1 / Limits<T>::divisor;
        const double c = s * s;
        return c < least ? least : bounded_by(Limits<T>::divisor, c);
    }
    FASTMMD_ANYWHERE static double steepness(double s) { return -1 / (s * s); }
    template <class Math> FASTMMD_ANYWHERE static double value(double q, double) { return 1 / (1 + q); }
    template <class Math> FASTMMD_ANYWHERE static double relative_slope(double q, double) {
        return 1 / ((1 + q) * (1 + q));
    }
    template <class Math> struct At {
        typedef typename Math::T T;
        typedef typename Math::V V;
        V u, k;
        FASTMMD_ANYWHERE At() {}
        FASTMMD_ANYWHERE At(V r, V, T c, T) {
            const V inverse = Math::reciprocal(r + c);
            u = -r * inverse;
            k = inverse * c;
        }
        FASTMMD_ANYWHERE V slope() const { return k * k; }
        FASTMMD_ANYWHERE V shifted() const { return u * (k + T(1)); }  // k^2 - 1
    };
};

// (1 + t)^-alpha, t = r / (2 alpha s^2)
struct RationalQuadratic : FamilyDefaults {
    static constexpr const char* name = "rational_quadratic";
    static constexpr bool has_alpha = true;
    template <class T> FASTMMD_ANYWHERE static double rate(double s, double alpha) {
        return bounded_by(Limits<T>::rate, 0.5 / (alpha * s * s));
    }
    FASTMMD_ANYWHERE static double steepness(double s) { return -0.5 / (s * s); }
    template <class Math> FASTMMD_ANYWHERE static double value(double q, double alpha) {
        return Math::exp(-alpha * Math::log1p(0.5 * q / alpha));
    }
    template <class Math> FASTMMD_ANYWHERE static double relative_slope(double q, double alpha) {
        return Math::exp(-(alpha + 1) * Math::log1p(0.5 * q / alpha));
    }
    template <class Math> struct At {
        typedef typename Math::T T;
        typedef typename Math::V V;
        V u, k, t, inverse;
        FASTMMD_ANYWHERE At() {}
        FASTMMD_ANYWHERE At(V r, V, T rate, T alpha) {
            t = Math::at_most(r * rate, (T)Limits<T>::argument);
            const auto both = Math::exponentials(Math::log1p(t) * -alpha);
            u = both.expm1, k = both.exp;
            inverse = Math::reciprocal(t + T(1));
        }
        FASTMMD_ANYWHERE V slope() const { return k * inverse; }
        FASTMMD_ANYWHERE V shifted() const { return (u - t) * inverse; }  // (k - (1 + t)) / (1 + t)
    };
};

// -sqrt(r), which has no bandwidth: s = 1, or NaN
struct Energy : FamilyDefaults {
    static constexpr const char* name = "energy";
    static constexpr bool bounded = false, smooth = false, takes_root = true, has_bandwidths = false;
    template <class T> FASTMMD_ANYWHERE static double rate(double s, double) { return 0 * s; }
    FASTMMD_ANYWHERE static double steepness(double s) { return 0 * s - 0.5; }
    template <class Math> FASTMMD_ANYWHERE static double value(double, double) { return 1; }  // never small
    template <class Math> FASTMMD_ANYWHERE static double relative_slope(double, double) { return 0; }
    template <class Math> struct At {
        typedef typename Math::T T;
        typedef typename Math::V V;
        V u, k, inverse;
        FASTMMD_ANYWHERE At() {}
        FASTMMD_ANYWHERE At(V root, V inverse, T, T) : u(-root), k(-root), inverse(inverse) {}
        FASTMMD_ANYWHERE V slope() const { return inverse; }
        FASTMMD_ANYWHERE V shifted() const { return inverse; }  // never asked for
    };
};

template <class F> constexpr bool is_exponential = F::squarings > 0;
// Arguments are at most Limits<T>::argument.
template <class F> constexpr bool is_capped = F::bounded && !is_exponential<F>;
// Wide bandwidths fold into polynomials in r (cpu/mmd/series.hpp).
template <class F> constexpr bool is_foldable = is_exponential<F> && !F::takes_root;

// body(F()) with the family's struct.
template <class Body> FASTMMD_ANYWHERE inline auto with_family(Family family, const Body& body) {
    switch (family) {
        case Family::gaussian: return body(Gaussian());
        case Family::laplacian: return body(Laplacian());
        case Family::imq: return body(InverseMultiquadric());
        case Family::rational_quadratic: return body(RationalQuadratic());
        default: return body(Energy());
    }
}

FASTMMD_ANYWHERE inline const char* name_of(Family family) {
    return with_family(family, [](auto family) { return family.name; });
}

// The C library's functions, for `value` and `relative_slope` on the host.
struct LibraryMath {
    static double exp(double x) { return ::exp(x); }
    static double log1p(double x) { return ::log1p(x); }
    static double root(double x) { return ::sqrt(x); }
};

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
