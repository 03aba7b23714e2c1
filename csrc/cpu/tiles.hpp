// Pairs of points, tile by tile. The grammar of all kernel files:
//
//   row i      a point that receives sums; rows are read as they come, [rows, dim]
//   column j   a point that is summed over; columns are staged in tiles of `width`, coordinate-major:
//   [dim][width] d          a dimension, s or rung a bandwidth, b a member of the batch, t a tile r squared
//   distances of one row to a tile's columns, [width] mass       weight of a column, [width]; 0 in the
//   padding, which repeats the last column c          coefficients: mass times slope, [width]
//
// Sums run in T over the lanes of one tile and in double across tiles, in a fixed order.
#pragma once
#include "parallel.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

constexpr int tile_columns = 256;

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
    return (int)smaller<int64_t>(tile_columns, round_up(count, lanes<T>));
}

// Elements of `coordinates` and `mass` that staging `count` columns takes.
template <class T> constexpr int64_t staged_size(int64_t count, int64_t dim) {
    return round_up(count, tile_width<T>(count)) * dim;
}

template <class T>
Columns<T> stage(const T* points,   // [count, dim]
                 const T* weights,  // [count] or null: ones
                 int64_t count, int dim,
                 T* coordinates,  // [staged_size(count, dim)]
                 T* mass) {       // [staged_size(count, 1)]
    const Columns<T> columns = {count, dim, tile_width<T>(count), coordinates, mass};
    const int width = columns.width;
    for (int64_t t = 0; t < columns.tiles(); ++t) {
        T* tile = coordinates + t * dim * width;
        for (int64_t j = 0; j < width; ++j) {
            const int64_t source = smaller(t * width + j, count - 1);
            for (int64_t d = 0; d < dim; ++d) tile[d * width + j] = points[source * dim + d];
            mass[t * width + j] = t * width + j >= count ? T(0) : weights ? weights[source] : T(1);
        }
    }
    return columns;
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
        constexpr int block = 4 * lanes<T>;  // four independent sums hide the latency of the additions
        int j = 0;
        for (; j + block <= used; j += block) {
            Vector<T> sum[4] = {};
            for (int d = 0; d < dim; ++d) {
                const Vector<T> p = broadcast(point[d]);
                for (int v = 0; v < 4; ++v) {
                    const Vector<T> difference = p - load(tile + (int64_t)d * width + j + v * lanes<T>);
                    sum[v] += difference * difference;
                }
            }
            for (int v = 0; v < 4; ++v) store(r + j + v * lanes<T>, sum[v]);
        }
        for (; j < used; j += lanes<T>) {
            Vector<T> sum = {};
            for (int d = 0; d < dim; ++d) {
                const Vector<T> difference = broadcast(point[d]) - load(tile + (int64_t)d * width + j);
                sum += difference * difference;
            }
            store(r + j, sum);
        }
    }
}

// gradient[d] += sum_j c[j] (point[d] - column j [d]).
template <class T, int Dim>
void add_differences(const T* point,  // [dim]
                     const T* tile,   // [dim][width]
                     const T* c,      // [width]
                     int dim, int width, int used,
                     double* gradient) {  // [dim]
    if constexpr (Dim > 0) {
        Vector<T> sum[Dim] = {};
        for (int j = 0; j < used; j += lanes<T>) {
            const Vector<T> coefficient = load(c + j);
            for (int d = 0; d < Dim; ++d)
                sum[d] += coefficient * (broadcast(point[d]) - load(tile + d * width + j));
        }
        for (int d = 0; d < Dim; ++d) gradient[d] += sum_lanes<T>(sum[d]);
    } else {
        for (int d = 0; d < dim; ++d) {
            const Vector<T> p = broadcast(point[d]);
            const T* coordinate = tile + (int64_t)d * width;
            Vector<T> sum = {};
            for (int j = 0; j < used; j += lanes<T>) sum += load(c + j) * (p - load(coordinate + j));
            gradient[d] += sum_lanes<T>(sum);
        }
    }
}

// The two loops above for one number of dimensions: unrolled up to 16, looped beyond.
template <class T> struct PairLoops {
    void (*squared_distances)(const T*, const T*, int, int, int, T*);
    void (*add_differences)(const T*, const T*, const T*, int, int, int, double*);
};

constexpr int unrolled_dims = 16;

template <class T, int Dim = unrolled_dims> PairLoops<T> pair_loops(int dim) {
    if constexpr (Dim > 0) {
        if (dim < Dim) return pair_loops<T, Dim - 1>(dim);
        if (dim > Dim) return {squared_distances<T, 0>, add_differences<T, 0>};
    }
    return {squared_distances<T, Dim>, add_differences<T, Dim>};
}

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
