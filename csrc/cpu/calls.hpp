// The calls that the bindings hand to the kernels: plain pointers and sizes, named as in
// fastmmd/backends/calls.py. Arrays are contiguous and of one type, float or double (`is_double`), unless
// said otherwise; null means "absent" for an input and "not needed" for an output. Every function is compiled
// once per instruction set and returns false when memory ran out (elementwise: when it knows no such name).
#pragma once
#include <stdint.h>

#include "../common/families.hpp"

namespace fastmmd {

struct Kernel {
    Family family;
    int count;                 // S
    const double* bandwidths;  // [S]
    const double* weights;     // [S]
    double alpha;              // rational_quadratic only
};

// Weighted points: members of `count` points each or, with offsets, of unequal sizes in rows that they share:
// member b is the rows from offsets[b] up to offsets[b + 1], rows from offsets[batch] on are of none.
struct Sample {
    int64_t count;           // of a member; with offsets the rows of all. 0 without the sample
    const void* points;      // [batch, count, dim]; with offsets [count, dim]. Null: no sample
    const void* weights;     // [batch, count], [count], normalized here in double; null: 1 / count
    const int64_t* offsets;  // [batch + 1], ascending from 0, or null
};

// An array for each differentiable input.
struct Mmd2Inputs {
    void* x;               // as x.points
    void* y;               // as y.points
    void* x_weights;       // as x.weights
    void* y_weights;       // as y.weights
    void* bandwidths;      // [batch, S]
    void* kernel_weights;  // [batch, S]
};

struct Mmd2 {
    bool is_double;
    int threads;
    int64_t batch;
    int dim;
    Sample x, y;  // without y: the self-term of x alone; offsets for both or none
    Kernel kernel;
    bool unbiased;
    bool fixed_y;  // y's term with itself is left out; then no gradients but those of x and its weights
    // Members with more points in a sample take matrix products where their data allow it; negative: none.
    int64_t product_points;
    double* value;  // [batch]
    Mmd2Inputs gradients;
};

struct WitnessInputs {
    void* points;          // [p, dim]
    void* samples;         // [n, dim]
    void* weights;         // [n]
    void* bandwidths;      // [S]
    void* kernel_weights;  // [S]
};

// sum_j weights_j u(points_i, samples_j), or, with `grad` given, the gradients of its product with grad.
struct Witness {
    bool is_double;
    int threads;
    int64_t p, n;
    int dim;
    const void* points;   // [p, dim]
    const void* samples;  // [n, dim]
    const void* weights;  // [n], signed
    bool products;        // by matrix products where the data allow it, for many dimensions
    Kernel kernel;
    void* value;       // [p]
    const void* grad;  // [p] or null: value only
    WitnessInputs gradients;
};

// Random Fourier features; S bandwidths share `count` in equal consecutive parts.
struct Features {
    const int64_t* key;  // [2]: seed, first feature index
    int64_t count;
    int parts;                     // S
    const double* bandwidths;      // [S]
    const double* kernel_weights;  // [S]
};

struct FourierSum {
    bool is_double;
    int threads;
    int64_t batch, n;
    int dim;
    const void* x;        // [batch, n, dim]
    const void* weights;  // [batch, n]
    Features features;
    void* out;  // [batch, 2 * count], cosines first
};

struct FourierFunction {
    bool is_double;
    int threads;
    int64_t batch, n;
    int dim;
    const void* x;             // [batch, n, dim]
    const void* coefficients;  // [batch, 2 * count]
    Features features;
    void* value;  // [batch, n]
    void* grad;   // [batch, n, dim]
};

struct FourierFrequencies {
    bool is_double;
    int threads;
    int dim;
    Features features;
    void* out;  // [count, dim]
};

// Parzen windows: the state of points, to which samples are added, or with `grad` its gradients.
struct Parzen {
    bool is_double;
    int threads;
    int64_t m, n;
    int dim;
    const void* points;    // [m, dim]
    const void* samples;   // [n, dim]
    bool products;         // distances by products, for many dimensions; else by differences
    int count;             // S
    const double* sigmas;  // [S]: their squares and the reciprocals of these are normal numbers
    void* minimum;         // [m]
    double* sums;          // [S, m]
    const void* grad;      // [S, m]; null: forward
    void* grad_points;     // [m, dim]
    void* grad_samples;    // [n, dim]
    bool* too_far;  // [1]: set where points are too far apart for products in this type; the rest is void
};

// An elementary function of math.hpp on an array, for tests.
struct Elementwise {
    bool is_double;
    const char* name;  // "exp", "exp2", "expm1", "log", "log1p", "sinpi", "cospi", "phase"
    int64_t count;
    const void* in;  // [count]
    void* out;       // [count]
};

#define FASTMMD_DECLARE(isa)                             \
    namespace isa {                                      \
    bool mmd2(const Mmd2&);                              \
    bool witness(const Witness&);                        \
    bool fourier_sum(const FourierSum&);                 \
    bool fourier_function(const FourierFunction&);       \
    bool fourier_frequencies(const FourierFrequencies&); \
    bool parzen(const Parzen&);                          \
    bool elementwise(const Elementwise&);                \
    }

FASTMMD_DECLARE(baseline)
FASTMMD_DECLARE(avx2)
FASTMMD_DECLARE(avx512)
#undef FASTMMD_DECLARE

}  // namespace fastmmd
