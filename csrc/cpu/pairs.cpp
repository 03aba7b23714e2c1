// The loops over pairs, for every number of dimensions: unrolled up to 16 (Dim > 0), looped beyond (Dim = 0).
#include "pairs.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

constexpr int unrolled_dims = 16;
constexpr int paired_dims =
    vector_bytes == 64 ? 12 : 6;  // coordinates of two points, held in 32 or 16 registers

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

// Those of `Rows` points, which share the loads.
template <class T, int Dim, int Rows>
FASTMMD_INLINE void unrolled_distances(const T* points,  // [Rows, Dim]
                                       const T* tile,    // [Dim][width]
                                       int width, int used,
                                       T* r) {  // [Rows][tile_columns]
    Vector<T> p[Rows][Dim];
    for (int i = 0; i < Rows; ++i)
        for (int d = 0; d < Dim; ++d) p[i][d] = broadcast(points[i * Dim + d]);
    for (int j = 0; j < used; j += lanes<T>) {
        Vector<T> sum[Rows] = {};
        FASTMMD_UNROLL for (int d = 0; d < Dim; ++d) {
            const Vector<T> column = load(tile + d * width + j);
            FASTMMD_UNROLL for (int i = 0; i < Rows; ++i) {
                const Vector<T> difference = p[i][d] - column;
                sum[i] += difference * difference;
            }
        }
        FASTMMD_UNROLL for (int i = 0; i < Rows; ++i) store(r + i * tile_columns + j, sum[i]);
    }
}

template <class T, int Dim>
void squared_distances(const T* points,  // [rows, dim]
                       int rows,
                       const T* tile,  // [dim][width]
                       int dim, int width, int used,
                       T* r) {  // [rows][tile_columns]
    int i = 0;
    if constexpr (Dim > 0 && Dim <= paired_dims)
        for (; i + 2 <= rows; i += 2)
            unrolled_distances<T, Dim, 2>(points + i * Dim, tile, width, used, r + i * tile_columns);
    for (; i < rows; ++i) {
        T* of_row = r + i * tile_columns;
        if constexpr (Dim > 0) {
            unrolled_distances<T, Dim, 1>(points + i * Dim, tile, width, used, of_row);
        } else {
            const T* point = points + (int64_t)i * dim;
            int j = 0;
            for (; j + 4 * lanes<T> <= used;
                 j += 4 * lanes<T>)  // four sums hide the latency of the additions
                sum_squares<T, 4>(point, tile + j, dim, width, of_row + j);
            for (; j < used; j += lanes<T>) sum_squares<T, 1>(point, tile + j, dim, width, of_row + j);
        }
    }
}

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
            Vector<T> p[Dim], total[Dim] = {};
            for (int d = 0; d < Dim; ++d) p[d] = broadcast(point[d]);
            for (int begin = first; begin < last; begin += step) {
                Vector<T> sum[Dim] = {};
                const auto add = [&](int j) {
                    const Vector<T> c = load(mass + j) * load(slope + j);
                    FASTMMD_UNROLL for (int d = 0; d < Dim; ++d) sum[d] +=
                        c * (p[d] - load(tile + d * width + j));
                };
                if (begin + step <= last) {
                    FASTMMD_UNROLL for (int i = 0; i < group; ++i) add(begin + i * lanes<T>);
                } else {
                    for (int j = begin; j < last; j += lanes<T>) add(j);
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
                    const auto add = [&](int i) {
                        const Vector<T> c = load(slope + i * tile_columns + j) * mass[i];
                        FASTMMD_UNROLL for (int d = 0; d < Dim; ++d) sum[d] +=
                            c * (column[d] - points[i * Dim + d]);
                    };
                    if (begin + group <= last) {
                        FASTMMD_UNROLL for (int i = 0; i < group; ++i) add(begin + i);
                    } else {
                        for (int i = begin; i < last; ++i) add(i);
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

template <class T, int Dim> PairLoops<T> choose(int dim) {
    if constexpr (Dim > 0)
        if (dim != Dim) return choose<T, Dim - 1>(dim);
    return {squared_distances<T, Dim>, add_differences<T, Dim>, add_row<T, Dim>, add_columns<T, Dim>};
}

}  // namespace

template <class T> PairLoops<T> pair_loops(int dim) {
    return choose<T, unrolled_dims>(dim <= unrolled_dims ? dim : 0);
}

template PairLoops<float> pair_loops(int);
template PairLoops<double> pair_loops(int);

}  // namespace fastmmd::FASTMMD_ISA
