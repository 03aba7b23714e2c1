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

constexpr int tile_columns = 256;
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

// r[j] = |point - column j|^2 for `Vectors` vectors of columns and any number of dimensions.
template <class T, int Vectors>
FASTMMD_INLINE void sum_squares(const T* point,    // [dim]
                                const T* columns,  // [dim][width], from the first of the columns
                                int dim, int width,
                                T* r) {  // [Vectors * lanes]
    Vector<T> total[Vectors] = {};
    for (int first = 0; first < dim; first += chunk_dims) {
        Vector<T> sum[Vectors] = {};
        for (int d = first; d < smaller(first + chunk_dims, dim); ++d) {
            const Vector<T> p = broadcast(point[d]);
            for (int v = 0; v < Vectors; ++v) {
                const Vector<T> difference = p - load(columns + (int64_t)d * width + v * lanes<T>);
                sum[v] += difference * difference;
            }
        }
        for (int v = 0; v < Vectors; ++v) total[v] += sum[v];
    }
    for (int v = 0; v < Vectors; ++v) store(r + v * lanes<T>, total[v]);
}

// r[j] = |point - column j|^2 by differences. Dim = 0: any number of dimensions.
template <class T, int Dim>
void squared_distances(const T* point,  // [dim]
                       const T* tile,   // [dim][width]
                       int dim, int width, int used,
                       T* r) {  // [width]
    if constexpr (Dim > 0) {
        Vector<T> p[Dim];
        for (int d = 0; d < Dim; ++d) p[d] = broadcast(point[d]);
        for (int j = 0; j < used; j += lanes<T>) {
            Vector<T> sum = {};
            for (int d = 0; d < Dim; ++d) {
                const Vector<T> difference = p[d] - load(tile + d * width + j);
                sum += difference * difference;
            }
            store(r + j, sum);
        }
    } else {
        int j = 0;
        for (; j + 4 * lanes<T> <= used; j += 4 * lanes<T>)  // four sums hide the latency of the additions
            sum_squares<T, 4>(point, tile + j, dim, width, r + j);
        for (; j < used; j += lanes<T>) sum_squares<T, 1>(point, tile + j, dim, width, r + j);
    }
}

// gradient[d] += sum_j c[j] (point[d] - column j [d]).
template <class T, int Dim>
void add_differences(const T* point,  // [dim]
                     const T* tile,   // [dim][width]
                     const T* c,      // [width]
                     int dim, int width, int used,
                     double* gradient) {  // [dim]
    constexpr int step = chunk_vectors * lanes<T>;
    if constexpr (Dim > 0) {
        double total[Dim][lanes<T>] = {};
        for (int first = 0; first < used; first += step) {
            Vector<T> sum[Dim] = {};
            for (int j = first; j < smaller(first + step, used); j += lanes<T>) {
                const Vector<T> coefficient = load(c + j);
                for (int d = 0; d < Dim; ++d)
                    sum[d] += coefficient * (broadcast(point[d]) - load(tile + d * width + j));
            }
            for (int d = 0; d < Dim; ++d) add_wide<T>(total[d], sum[d]);
        }
        for (int d = 0; d < Dim; ++d) gradient[d] += sum_wide<T>(total[d]);
    } else {
        for (int d = 0; d < dim; ++d) {
            const Vector<T> p = broadcast(point[d]);
            const T* coordinate = tile + (int64_t)d * width;
            double total[lanes<T>] = {};
            for (int first = 0; first < used; first += step) {
                Vector<T> sum = {};
                for (int j = first; j < smaller(first + step, used); j += lanes<T>)
                    sum += load(c + j) * (p - load(coordinate + j));
                add_wide<T>(total, sum);
            }
            gradient[d] += sum_wide<T>(total);
        }
    }
}

// gradient[d] += sum_j mass[j] slope[j] (point[d] - column j [d]), lane by lane.
template <class T, int Dim>
void add_row(const T* point,  // [dim]
             const T* tile,   // [dim][width]
             const T* mass,   // [used]
             const T* slope,  // [used]
             int dim, int width, int used,
             double* gradient) {  // [dim][lanes]
    constexpr int step = group * lanes<T>, flush = group * step;
    for (int first = 0; first < used; first += flush) {
        const int last = smaller(first + flush, used);
        if constexpr (Dim > 0) {
            Vector<T> total[Dim] = {};
            for (int begin = first; begin < last; begin += step) {
                Vector<T> sum[Dim] = {};
                for (int j = begin; j < smaller(begin + step, last); j += lanes<T>) {
                    const Vector<T> c = load(mass + j) * load(slope + j);
                    for (int d = 0; d < Dim; ++d)
                        sum[d] += c * (broadcast(point[d]) - load(tile + d * width + j));
                }
                for (int d = 0; d < Dim; ++d) total[d] += sum[d];
            }
            for (int d = 0; d < Dim; ++d) add_wide<T>(gradient + d * lanes<T>, total[d]);
        } else {
            for (int d = 0; d < dim; ++d) {
                const Vector<T> p = broadcast(point[d]);
                const T* coordinate = tile + (int64_t)d * width;
                Vector<T> total = {};
                for (int begin = first; begin < last; begin += step) {
                    Vector<T> sum = {};
                    for (int j = begin; j < smaller(begin + step, last); j += lanes<T>)
                        sum += load(mass + j) * load(slope + j) * (p - load(coordinate + j));
                    total += sum;
                }
                add_wide<T>(gradient + d * lanes<T>, total);
            }
        }
    }
}

// The same for the columns: gradient[d][j] += sum_i mass[i] slope[i][j] (column j [d] - point i [d]).
template <class T, int Dim>
void add_columns(const T* points,  // [rows, dim]
                 const T* mass,    // [rows]
                 int rows,
                 const T* tile,   // [dim][width]
                 const T* slope,  // [rows][tile_columns]
                 int dim, int width, int used,
                 double* gradient) {  // [dim][width]
    constexpr int flush = group * group;
    for (int j = 0; j < used; j += lanes<T>)
        for (int first = 0; first < rows; first += flush) {
            const int last = smaller(first + flush, rows);
            if constexpr (Dim > 0) {
                Vector<T> column[Dim], total[Dim] = {};
                for (int d = 0; d < Dim; ++d) column[d] = load(tile + d * width + j);
                for (int begin = first; begin < last; begin += group) {
                    Vector<T> sum[Dim] = {};
                    for (int i = begin; i < smaller(begin + group, last); ++i) {
                        const Vector<T> c = load(slope + i * tile_columns + j) * mass[i];
                        for (int d = 0; d < Dim; ++d) sum[d] += c * (column[d] - points[i * Dim + d]);
                    }
                    for (int d = 0; d < Dim; ++d) total[d] += sum[d];
                }
                for (int d = 0; d < Dim; ++d) add_wide<T>(gradient + d * width + j, total[d]);
            } else {
                for (int d = 0; d < dim; ++d) {
                    const Vector<T> column = load(tile + (int64_t)d * width + j);
                    Vector<T> total = {};
                    for (int begin = first; begin < last; begin += group) {
                        Vector<T> sum = {};
                        for (int i = begin; i < smaller(begin + group, last); ++i)
                            sum += load(slope + i * tile_columns + j) * mass[i] *
                                   (column - points[(int64_t)i * dim + d]);
                        total += sum;
                    }
                    add_wide<T>(gradient + (int64_t)d * width + j, total);
                }
            }
        }
}

// The loops above for one number of dimensions: unrolled up to 16, looped beyond.
template <class T> struct PairLoops {
    void (*squared_distances)(const T*, const T*, int, int, int, T*);
    void (*add_differences)(const T*, const T*, const T*, int, int, int, double*);
    void (*add_row)(const T*, const T*, const T*, const T*, int, int, int, double*);
    void (*add_columns)(const T*, const T*, int, const T*, const T*, int, int, int, double*);
};

constexpr int unrolled_dims = 16;

template <class T, int Dim = unrolled_dims> PairLoops<T> pair_loops(int dim) {
    if constexpr (Dim > 0) {
        if (dim < Dim) return pair_loops<T, Dim - 1>(dim);
        if (dim > Dim) return pair_loops<T, 0>(0);
    }
    return {squared_distances<T, Dim>, add_differences<T, Dim>, add_row<T, Dim>, add_columns<T, Dim>};
}

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
