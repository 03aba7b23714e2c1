// Pairs of points, tile by tile. The names of all kernel files:
//
//   row i     a point that receives sums; rows are read as they come, [rows, dim]
//   column j  a point that is summed over; staged in tiles, coordinate-major: [dim][width]
//   used      columns of a tile that are read, a multiple of the lanes
//   d         a dimension
//   s, rung   a bandwidth
//   b         a member of the batch
//   t         a tile
//   v         a vector of several that are held at once
//   r         squared distances of one row to the columns of one tile, [width]
//   q         squared distance over squared bandwidth
//   mass      weight of a column, [width]; 0 in the padding, which repeats the last column
//   u, k      a kernel minus its value at r = 0, and the kernel; elsewhere k is a random feature
//   c         coefficients, mass times slope, [width]
//
// Sums run in T over the lanes of one tile and in double across tiles, in a fixed order. What would round
// too often in T runs in chunks: of `chunk_vectors`, whose sums go to double, or of `chunk_dims`.
#pragma once
#include "parallel.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

constexpr int tile_columns = 512;
constexpr int chunk_vectors = 8;
constexpr int group = 4;  // terms added in T, and groups of them, before the sum goes to double
constexpr int chunk_dims = 32;

template <class T> struct Columns {
    int64_t count;
    int dim, width;        // width: columns per tile, a multiple of the lanes
    const T* coordinates;  // [tiles][dim][width]
    const T* mass;         // [tiles][width]

    int64_t tiles() const { return blocks_of(count, width); }
    const T* tile(int64_t t) const { return coordinates + t * dim * width; }
    int used(int64_t t) const { return (int)round_up(smaller<int64_t>(width, count - t * width), lanes<T>); }
};

template <class T> constexpr int tile_width(int64_t count) {
    return (int)smaller<int64_t>(tile_columns, round_up(larger<int64_t>(count, 1), lanes<T>));
}

// NaN in place of infinities, which kernels that vanish far away would hide.
template <class T> constexpr T finite_or_nan(T value) { return value + (value - value); }

// Elements of `coordinates` and `mass` that staging `count` columns takes.
template <class T> constexpr int64_t staged_size(int64_t count, int64_t dim) {
    return round_up(count, tile_width<T>(count)) * dim;
}

template <class T>
Columns<T> stage(const T* points,   // [count, dim]
                 const T* weights,  // [count] or null: ones
                 int64_t count, int dim,
                 T* coordinates,  // [staged_size(count, dim)]
                 T* mass) {       // [staged_size(count, 1)] or null: not needed
    const Columns<T> columns = {count, dim, tile_width<T>(count), coordinates, mass};
    const int width = columns.width;
    for (int64_t t = 0; t < columns.tiles(); ++t) {
        T* tile = coordinates + t * dim * width;
        for (int64_t j = 0; j < width; ++j) {
            const int64_t source = smaller(t * width + j, count - 1);
            for (int64_t d = 0; d < dim; ++d) tile[d * width + j] = finite_or_nan(points[source * dim + d]);
            if (mass) mass[t * width + j] = t * width + j >= count ? T(0) : weights ? weights[source] : T(1);
        }
    }
    return columns;
}

}  // namespace

// Loops over the pairs of rows with a tile; `dim` and `width` are the tile's, `used` of its columns are read.
template <class T> struct PairLoops {
    // r[i][j] = |point i - column j|^2 by differences.
    void (*squared_distances)(const T* points,  // [rows, dim]
                              int rows,
                              const T* tile,  // [dim][width]
                              int dim, int width, int used,
                              T* r);  // [rows][tile_columns]
    // gradient[d] += sum_j c[j] (point[d] - column j [d]).
    void (*add_differences)(const T* point,  // [dim]
                            const T* tile,   // [dim][width]
                            const T* c,      // [used]
                            int dim, int width, int used,
                            double* gradient);  // [dim]
    // The same with c = mass slope, lane by lane.
    void (*add_row)(const T* point,  // [dim]
                    const T* tile,   // [dim][width]
                    const T* mass,   // [used]
                    const T* slope,  // [used]
                    int dim, int width, int used,
                    double* gradient);  // [dim][lanes]
    // For the columns: gradient[d][j] += sum_i mass[i] slope[i][j] (column j [d] - point i [d]).
    void (*add_columns)(const T* points,  // [rows, dim]
                        const T* mass,    // [rows]
                        int rows,
                        const T* tile,   // [dim][width]
                        const T* slope,  // [rows][tile_columns]
                        int dim, int width, int used,
                        double* gradient);  // [dim][width]
};

template <class T> PairLoops<T> pair_loops(int dim);  // pairs.cpp

}  // namespace fastmmd::FASTMMD_ISA
