// Parzen windows in CUDA: what their launchers take. fastmmd/backends/calls.py says what they compute.
#pragma once
#include "../launcher.hpp"

namespace fastmmd::cuda {

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

// Squared norms of points; NaN where there is an infinity, at most a quarter of the largest number.
struct ParzenNorms {
    bool is_double;
    int64_t count;
    int dim;
    const void* points;  // [count, dim]
    void* norms;         // [count]
};
Status parzen_norms(const ParzenNorms&, void* stream);

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

}  // namespace fastmmd::cuda
