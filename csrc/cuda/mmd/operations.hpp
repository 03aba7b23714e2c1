// mmd2 and witness in CUDA: what their launchers take. fastmmd/backends/calls.py says what they compute.
#pragma once
#include <vector>

#include "../../common/families.hpp"
#include "../launcher.hpp"

namespace fastmmd::cuda {

// A sum of S kernels of one family.
struct Kernel {
    Family family;
    double alpha;
    int count;  // S
    Numbers bandwidths, weights;
};

// Weighted points and what is wanted of them. With offsets the members of the batch have sizes of their own:
// points are [count, dim], member b is those from offsets[b] to offsets[b + 1], others are in none and get
// nothing.
struct Sample {
    int64_t count;
    const int64_t* offsets;  // [batch + 1], for both samples or null
    const void* points;      // [batch, count, dim]
    const void* weights;     // [batch, count], as given; null: ones
    void* values;        // [batch, count]: sum_j weights_j u of the other sample; only where not normalized
    void* grad_points;   // [batch, count, dim]
    void* grad_weights;  // [batch, count]; only where normalized
};

// mmd2 with its gradients (normalized), or witness and the gradients of its product with the weights of x.
// Steps: mmd_plan; mmd_pairs, or mmd_tile for every tile of every term; mmd_finish.
struct Mmd {
    bool is_double;
    int64_t batch;
    int dim;
    Sample x, y;  // or points, samples; y with count 0: there is none
    Kernel kernel;
    bool normalized;
    bool unbiased;
    bool fixed_y;               // y's term with itself is left out; then no gradients but those of x
    bool products;              // distances come from matrix products, by mmd_tile; not with offsets
    double* value;              // [batch]
    void* grad_bandwidths;      // [batch, S]
    void* grad_kernel_weights;  // [batch, S]

    const Sample& sample(int side) const { return side == 0 ? x : y; }
};

int64_t mmd_workspace(const Mmd&);
Status mmd_plan(const Mmd&, void* workspace, void* stream);
Status mmd_pairs(const Mmd&, void* workspace, void* stream);
Status mmd_finish(const Mmd&, void* workspace, void* stream);

// A sum over the pairs of two samples, as the caller of mmd_tile sees it.
struct TermPlace {
    int rows, columns;  // 0: x, 1: y
    bool half;       // rows are columns and pairs i <= j stand for all: tiles below the diagonal are left out
    int64_t slopes;  // the gradient's sums [batch, n, dim], double, which the caller adds up: where in the
                     // workspace, in bytes; -1: not needed
};
std::vector<TermPlace> mmd_terms(const Mmd&);

// One tile of products of one term.
struct Tile {
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
Status mmd_tile(const Mmd&, const Tile&, void* workspace, void* stream);

}  // namespace fastmmd::cuda
