// Polynomials shared by the CPU and CUDA code. V is float, double or a SIMD vector of T; every function is
// exact to well under half a unit in the last place of T on the stated interval before the rounding of its
// own evaluation.
#pragma once

#ifndef FASTMMD_ANYWHERE
#define FASTMMD_ANYWHERE  // of functions that CUDA compiles for both sides
#endif

namespace fastmmd::FASTMMD_ISA {
namespace {

template <class T> struct Constants;

template <> struct Constants<float> {
    static constexpr float log2_e = 1.44269504f;
    static constexpr float ln2_high = 0x1.62e3p-1f,
                           ln2_low = 0x1.2fefa2p-17f;  // n * ln2_high is exact for |n| < 2^9
};

template <> struct Constants<double> {
    static constexpr double log2_e = 1.4426950408889634;
    static constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
};

// expm1(r) for |r| <= ln(2) / 2: interpolation of (expm1(r) - r) / r^2 at Chebyshev nodes.
template <class T, class V> FASTMMD_ANYWHERE inline V expm1_polynomial(V r) {
    V q;
    if constexpr (sizeof(T) == 4) {
        q = r * 1.98910805e-4f + 1.39337307e-3f;
        q = q * r + 8.33331084e-3f;
        q = q * r + 4.16664642e-2f;
        q = q * r + 1.66666667e-1f;
        q = q * r + 0.5f;
    } else {
        q = r * 2.09147553258932022e-9 + 2.51053127296221018e-8;
        q = q * r + 2.75572734787185805e-7;
        q = q * r + 2.75572551700008874e-6;
        q = q * r + 2.48015873256774619e-5;
        q = q * r + 1.98412698750022788e-4;
        q = q * r + 1.38888888888837112e-3;
        q = q * r + 8.33333333332608312e-3;
        q = q * r + 4.16666666666666698e-2;
        q = q * r + 1.6666666666666671e-1;
        q = q * r + 0.5;
    }
    return r * r * q + r;
}

// sin(r) for |r| <= pi/4 (Cephes).
template <class T, class V> FASTMMD_ANYWHERE inline V sin_polynomial(V r) {
    const V z = r * r;
    V q;
    if constexpr (sizeof(T) == 4) {
        q = z * -1.9515295891e-4f + 8.3321608736e-3f;
        q = q * z - 1.6666654611e-1f;
    } else {
        q = z * 1.58962301576546568060e-10 - 2.50507477628578072866e-8;
        q = q * z + 2.75573136213857245213e-6;
        q = q * z - 1.98412698295895385996e-4;
        q = q * z + 8.33333333332211858878e-3;
        q = q * z - 1.66666666666666307295e-1;
    }
    return r * z * q + r;
}

// cos(r) for |r| <= pi/4 (Cephes).
template <class T, class V> FASTMMD_ANYWHERE inline V cos_polynomial(V r) {
    const V z = r * r;
    V q;
    if constexpr (sizeof(T) == 4) {
        q = z * 2.443315711809948e-5f - 1.388731625493765e-3f;
        q = q * z + 4.166664568298827e-2f;
    } else {
        q = z * -1.13585365213876817300e-11 + 2.08757008419747316778e-9;
        q = q * z - 2.75573141792967388112e-7;
        q = q * z + 2.48015872888517045348e-5;
        q = q * z - 1.38888888888730564116e-3;
        q = q * z + 4.16666666666665929218e-2;
    }
    return z * z * q + (T(1) - T(0.5) * z);
}

// log(1 + f) for sqrt(1/2) - 1 <= f <= sqrt(2) - 1, plus exponent * ln(2) (fdlibm's e_log.c).
template <class T, class V> FASTMMD_ANYWHERE inline V log_polynomial(V f, V exponent) {
    const V s = f / (f + T(2)), z = s * s, half_square = T(0.5) * f * f;
    V q;
    if constexpr (sizeof(T) == 4) {
        q = z * 0.24279078841f + 0.28498786688f;
        q = q * z + 0.40000972152f;
        q = q * z + 0.66666662693f;
    } else {
        q = z * 1.479819860511658591e-01 + 1.531383769920937332e-01;
        q = q * z + 1.818357216161805012e-01;
        q = q * z + 2.222219843214978396e-01;
        q = q * z + 2.857142874366239149e-01;
        q = q * z + 3.999999999940941908e-01;
        q = q * z + 6.666666666666735130e-01;
    }
    const V low = s * (half_square + z * q) + exponent * Constants<T>::ln2_low;
    return exponent * Constants<T>::ln2_high - ((half_square - low) - f);
}

// sin(pi f) / f for |f| <= 1/2, z = f^2: minimax in the absolute error of sin(pi f), 7.7e-9 (float, whose
// coefficients were rounded one by one and the others fitted again), 1.7e-19 (double).
template <class T, class V> FASTMMD_ANYWHERE inline V sinpi_polynomial(V z) {
    V q;
    if constexpr (sizeof(T) == 4) {
        q = z * 7.80204087e-2f - 5.98516999e-1f;
        q = q * z + 2.55012584f;
        q = q * z - 5.16771412f;
        q = q * z + 3.14159274f;
    } else {
        q = z * 7.6839403982554303e-7 - 2.1902021519819661e-5;
        q = q * z + 4.6629917057059183e-4;
        q = q * z - 7.3704303560238920e-3;
        q = q * z + 8.2145886553282657e-2;
        q = q * z - 5.9926452931745793e-1;
        q = q * z + 2.5501640398772413;
        q = q * z - 5.1677127800499686;
        q = q * z + 3.1415926535897932;
    }
    return q;
}

// cos(pi f) for |f| <= 1/2, z = f^2: minimax among those with 1 at 0, 5.5e-8 (float), 4.2e-18 (double).
template <class T, class V> FASTMMD_ANYWHERE inline V cospi_polynomial(V z) {
    V q;
    if constexpr (sizeof(T) == 4) {
        q = z * 2.20007196e-1f - 1.33206248f;
        q = q * z + 4.05844736f;
        q = q * z - 4.93479538f;
    } else {
        q = z * 4.1507502376256615e-6 - 1.0456780740766166e-4;
        q = q * z + 1.9295568179082351e-3;
        q = q * z - 2.5806888862681167e-2;
        q = q * z + 2.3533063014598705e-1;
        q = q * z - 1.3352627688446645;
        q = q * z + 4.0587121264165444;
        q = q * z - 4.9348022005446776;
    }
    return q * z + T(1);
}

// atan(q) / (pi q) for |q| <= 1, z = q^2: minimax in the absolute error of atan(q) / pi, 1.2e-8, for float
// and as the start of one step of Newton's method for double.
template <class T, class V> FASTMMD_ANYWHERE inline V atan_polynomial(V z) {
    V q = z * T(-1.290608927267e-3) + T(6.959196058743e-3);
    q = q * z - T(1.779744709782e-2);
    q = q * z + T(3.069206797128e-2);
    q = q * z - T(4.427254318310e-2);
    q = q * z + T(6.349189049205e-2);
    q = q * z - T(1.0609224193503e-1);
    return q * z + T(3.1830967469199e-1);
}

// 2^f for |f| <= 1/2, 1 at 0: minimax in the relative error, 3e-9 (float, fitted as above), or interpolation
// at Chebyshev nodes (double).
template <class T, class V> FASTMMD_ANYWHERE inline V exp2_polynomial(V f) {
    V q;
    if constexpr (sizeof(T) == 4) {
        q = f * 1.53264802e-4f + 1.33908074e-3f;
        q = q * f + 9.61850584e-3f;
        q = q * f + 5.55035993e-2f;
        q = q * f + 2.40226477e-1f;
        q = q * f + 6.93147182e-1f;
    } else {
        q = f * 2.5729324177362305e-11 + 4.4558179083360645e-10;
        q = q * f + 7.0548973041554995e-9;
        q = q * f + 1.0178057087733941e-7;
        q = q * f + 1.3215486808705563e-6;
        q = q * f + 1.5252733841556773e-5;
        q = q * f + 1.5403530393370734e-4;
        q = q * f + 1.333355814640647e-3;
        q = q * f + 9.61812910762848e-3;
        q = q * f + 5.5504108664821625e-2;
        q = q * f + 2.4022650695910072e-1;
        q = q * f + 6.931471805599453e-1;
    }
    return q * f + T(1);
}

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
