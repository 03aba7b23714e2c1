// Random Fourier features in CUDA: what their launchers take. fastmmd/backends/calls.py says what they
// compute.
#pragma once
#include "../launcher.hpp"

namespace fastmmd::cuda {

struct Features {
    const int64_t* key;  // [2]: seed, first feature
    int count;
    List bandwidths, kernel_weights;
};

struct FourierSum {
    bool is_double;
    int64_t batch, n;
    int dim;
    const void* x;        // [batch, n, dim]
    const void* weights;  // [batch, n]
    Features features;
    void* out;  // [batch, 2, count]
};

struct FourierFunction {
    bool is_double;
    int64_t batch, n;
    int dim;
    const void* x;             // [batch, n, dim]
    const void* coefficients;  // [batch, 2, count]
    Features features;
    double times;        // factor of the results
    const void* factor;  // [1], one more; null: 1
    void* value;         // [batch, n]
    void* gradient;      // [batch, n, dim]
};

struct FourierFrequencies {
    bool is_double;
    int dim;
    Features features;
    void* out;  // [count, dim]
};

// zeta = mean phi(draws) - mean phi(codes), and either delta = sum_k alpha_k |zeta_k|^2, or a step of alpha.
struct FourierDiscrepancy {
    bool is_double, alpha_is_double;
    int64_t draws_count, codes_count;
    int dim;
    const void* draws;  // [draws_count, dim]
    const void* codes;  // [codes_count, dim]
    void* alpha;        // [count]; moved where there is no delta
    double rate;        // alpha moves by it towards |zeta_k|^2 over its mean
    Features features;
    void* delta;   // [1]
    void* slopes;  // [2, count]: 2 alpha zeta; null: not needed
};

int64_t fourier_sum_workspace(const FourierSum&);
int64_t fourier_function_workspace(const FourierFunction&);
int64_t fourier_discrepancy_workspace(const FourierDiscrepancy&);
Status fourier_sum(const FourierSum&, void* workspace, void* stream);
Status fourier_function(const FourierFunction&, void* workspace, void* stream);
Status fourier_frequencies(const FourierFrequencies&, void* stream);
Status fourier_discrepancy(const FourierDiscrepancy&, void* workspace, void* stream);

}  // namespace fastmmd::cuda
