// The operations in CUDA: what their launchers take and give. Pointers are device memory unless stated;
// points are [..., count, dim], contiguous, all float or all double. Launchers start kernels on a stream and
// wait for nothing; they may be captured in a graph. Memory between kernels is the caller's: `workspace`,
// whose size
// `*_workspace` gives. Null pointers are what is absent or not needed. fastmmd/backends/specs.py says what
// the operations compute.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace fastmmd::cuda {

constexpr int most_splits = 32;  // partial results of an ordered reduction

// What a launcher returns: 0, or the CUDA error of a kernel and its name.
struct Status {
    int code = 0;
    const char* kernel = "";
};

// The first error of several launches.
inline Status operator+(Status a, Status b) { return a.code ? a : b; }

// Hands out parts of a workspace, or counts what they need where there is none yet.
class Workspace {
  public:
    explicit Workspace(void* base) : base_((char*)base) {}
    template <class T> T* take(int64_t count) {
        char* const part = base_ ? base_ + used_ : nullptr;
        used_ += (count * (int64_t)sizeof(T) + 255) / 256 * 256;
        return (T*)part;
    }
    int64_t used() const { return used_; }

  private:
    char* base_;
    int64_t used_ = 0;
};

constexpr int most_listed = 128;  // numbers that travel with a launch

// Numbers from the host, which travel as arguments of kernels.
struct List {
    int count = 0;
    double values[most_listed];
};

// --- mmd ---

enum class KernelName { gaussian, laplacian, imq, rational_quadratic, energy };

// A sum of S kernels, with S numbers each from the host or on the device.
struct Kernel {
    KernelName name;
    double alpha;
    int count;                     // S
    List bandwidths, weights;      // in their own order; unread where the next are given
    const void* bandwidth_values;  // [S]
    const void* weight_values;     // [S]
};

// One sample. Without masses all are 1. With offsets the members of the batch have sizes of their own: points
// are [count, dim], member b is those from offsets[b] to offsets[b + 1], others are in none and get nothing.
struct MmdSample {
    int64_t count;
    const int64_t* offsets;  // [batch + 1], for both samples or null
    const void* points;      // [batch, count, dim]
    const void* mass;        // [batch, count]
    void* values;            // [batch, count]: sum_j mass_j u of the other sample; only where not normalized
    void* grad_points;       // [batch, count, dim]
    void* grad_mass;         // [batch, count]; only where normalized
};

// mmd2 with its gradients (normalized), or witness and the gradients of its product with the first sample's
// masses: specs.Backend. Steps: mmd_plan; mmd_pairs, or mmd_tile for every tile of every term; mmd_finish.
struct Mmd {
    bool is_double;
    int64_t batch;
    int dim;
    MmdSample samples[2];  // x, y or points, samples; the second with count 0: there is none
    Kernel kernel;
    bool normalized;
    bool unbiased;
    bool products;              // distances come from matrix products, by mmd_tile; not with offsets
    double* value;              // [batch]
    void* grad_bandwidths;      // [batch, S]
    void* grad_kernel_weights;  // [batch, S]
};

int64_t mmd_workspace(const Mmd&);
Status mmd_plan(const Mmd&, void* workspace, void* stream);
Status mmd_pairs(const Mmd&, void* workspace, void* stream);
Status mmd_finish(const Mmd&, void* workspace, void* stream);

// A sum over the pairs of two samples: what meets what, and what of it is wanted.
struct MmdTerm {
    int rows, columns;  // 0 or 1
    bool half;       // rows are columns, and only the sum of all values matters: pairs i <= j, others twice
    double* values;  // [parts, batch, n], set by mmd_pairs, added to by mmd_tile in a workspace of zeros
    double*
        slopes;  // [parts, batch, n, dim]: gradient's sums, left to the caller of mmd_tile; null: not needed
    int parts;
};
struct MmdTerms {
    int count = 0;
    MmdTerm terms[4];
};
MmdTerms mmd_terms(const Mmd&, void* workspace);

// One tile of products of one term.
struct MmdTile {
    int term;
    int64_t member;         // of the batch
    int64_t row, column;    // the first of each
    int64_t rows, columns;  // points of the tile
    int64_t stride;         // from one row of products to the next
    void* products;  // [rows, stride]: p.q of centered points; the slopes times the columns' masses stay here
    const void* row_norms;     // [rows]: |p|^2, NaN for a point with an infinity
    const void* column_norms;  // [columns]
    double* slope_sums;        // [rows], added to: sums over the columns of what stays; null: not needed
};
Status mmd_tile(const Mmd&, const MmdTile&, void* workspace, void* stream);

// --- parzen ---

// Adds one tile of products, points by samples, to the state of the points; or, with grad, leaves in it the
// coefficients of the gradient, sum_s grad_si / (sums_si sigma_s^2) exp(-(r_ij - minimum_i) / (2 sigma_s^2)).
struct ParzenTile {
    bool is_double;
    int64_t rows, columns;  // points and samples of the tile
    int64_t stride;         // from one row of products to the next, a multiple of 4
    int dim;
    void* products;            // [rows, stride]: p.q
    const void* points;        // [rows, dim]
    const void* samples;       // [columns, dim]
    const void* point_norms;   // [rows]: by parzen_norms
    const void* sample_norms;  // [stride]
    List sigmas;
    int64_t points_in_all;  // M, of which these rows are some
    void* minimum;          // [rows]
    double* sums;           // [S, M], from the first row on
    const void* grad;       // [S, M], alike; null: the state
};
int64_t parzen_tile_workspace(const ParzenTile&);
Status parzen_tile(const ParzenTile&, void* workspace, void* stream);

// Adds a tile's sum_j c_ij (q_j - p_i) to the gradient of its rows.
struct ParzenGather {
    bool is_double;
    int64_t rows, columns;
    int64_t stride;  // from one row of coefficients to the next
    int dim;
    const void* coefficients;   // [rows, stride]: c
    const void* products;       // [rows, dim]: c q, with 0 in place of the q that are far
    const void* row_points;     // [rows, dim]: p
    const void* column_points;  // [columns, dim]: q
    const void* row_norms;      // [rows]
    const void* column_norms;   // [columns]
    double far;                 // squared norm beyond which pairs go by differences
    double* gradient;           // [rows, dim]
};
Status parzen_gather(const ParzenGather&, void* stream);

// Squared norms [count] of points [count, dim]; NaN where there is an infinity, at most a quarter of the
// largest number.
Status parzen_norms(bool is_double, int64_t count, int dim, const void* points, void* norms, void* stream);

// Both steps of all samples by differences, for few dimensions (up to 32).
struct ParzenDirect {
    bool is_double;
    int64_t m, n;
    int dim;
    const void* points;   // [m, dim]
    const void* samples;  // [n, dim]
    List sigmas;
    void* minimum;       // [m]
    double* sums;        // [S, m]
    const void* grad;    // [S, m]; null: the state is updated
    void* grad_points;   // [m, dim]
    void* grad_samples;  // [n, dim]
};
int64_t parzen_direct_workspace(const ParzenDirect&);
Status parzen_direct(const ParzenDirect&, void* workspace, void* stream);

// --- fourier ---

// Random features: specs.FeatureSpec.
struct Features {
    const int64_t* key;  // [2]: seed, first feature
    int count;
    List bandwidths, weights;
};

struct FourierSum {
    bool is_double;
    int64_t batch, n;
    int dim;
    const void* x;               // [batch, n, dim]
    const void* sample_weights;  // [batch, n]
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
    void* delta;         // [1]
    void* coefficients;  // [2, count]: 2 alpha zeta; null: not needed
};

int64_t fourier_sum_workspace(const FourierSum&);
int64_t fourier_function_workspace(const FourierFunction&);
int64_t fourier_discrepancy_workspace(const FourierDiscrepancy&);
Status fourier_sum(const FourierSum&, void* workspace, void* stream);
Status fourier_function(const FourierFunction&, void* workspace, void* stream);
Status fourier_frequencies(const FourierFrequencies&, void* stream);
Status fourier_discrepancy(const FourierDiscrepancy&, void* workspace, void* stream);

}  // namespace fastmmd::cuda
