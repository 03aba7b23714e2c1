// Pairs of points in many dimensions: distances and gradients by differences, with the dimensions in the
// lanes.
//
// Points stay as they come, row after row, which saves staging them: beside so few pairs of so many
// dimensions it would cost as much as the sums. A few rows meet a few columns at once, in registers, so that
// every load serves several pairs, as in a matrix product; differences cost subtractions, which run beside
// the multiply-adds, and keep the digits that products lose.
#pragma once
#include "blocks.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

constexpr int rows_at_once = vector_bytes == 64 ? 4 : 2;  // 32 or 16 registers
constexpr int columns_at_once = 4;
constexpr int wide_columns = 64;    // columns of a tile of distances, and terms of a gradient added in T
constexpr int chunk_of_lanes = 32;  // squares that one lane adds up in T before the lanes are added
constexpr int vectors_at_once = vector_bytes == 64 ? 2 : 3;
constexpr int slab_vectors = 4 * vectors_at_once;  // dimensions at a time of the gradients of a block
static_assert(rows_at_once * columns_at_once % lanes<float> == 0);

template <class T> constexpr int slab = slab_vectors * lanes<T>;

// Of rows: the dimensions in whole vectors, but no multiple of 1 KB, at which rows would share the few sets
// of the first-level cache.
template <class T> constexpr int64_t row_stride(int64_t dim) {
    const int64_t stride = round_up(dim, lanes<T>);
    return stride * (int64_t)sizeof(T) % 1024 ? stride : stride + lanes<T>;
}

// Rows that begin at multiples of `stride` and have `length` elements, both multiples of the lanes; what lies
// behind the last dimension is 0.
template <class T> struct Rows {
    int64_t count, stride, length;
    const T* points;

    const T* row(int64_t i) const { return points + smaller(i, count - 1) * stride; }
};

// Copies points whose rows cannot serve as they are, NaN in place of infinities.
template <class T>
void fill_rows(const T* points,  // [count, dim]
               int64_t count, int dim, int64_t stride,
               T* rows) {  // [count][stride]
    for (int64_t i = 0; i < count; ++i) {
        for (int d = 0; d < dim; ++d) rows[i * stride + d] = finite_or_nan(points[i * dim + d]);
        for (int64_t d = dim; d < stride; ++d) rows[i * stride + d] = 0;
    }
}

// One vector in double, by halves: the compiler would keep sums of longer vectors in memory.
template <class T> struct Halves {
    static constexpr int count = lanes<T> / lanes<double>;
    Vector<double> of[count];
};

template <class T> FASTMMD_INLINE Halves<T> load_as_double(const T* source) {
    const Wide<T> value = widen<T>(load(source));
    Halves<T> halves;
    memcpy(halves.of, &value, sizeof value);
    return halves;
}

// target[lane] += factor * value[lane].
template <class T> FASTMMD_INLINE void add_scaled(double* target, double factor, Vector<T> value) {
    add_to<T>(target, factor * widen<T>(value));
}

// Means of `Vectors` of dimensions.
template <class T, int Vectors>
FASTMMD_INLINE void find_means(const Rows<T>& rows, int64_t first, double* mean) {
    constexpr int halves = Halves<T>::count;
    Vector<double> sums[Vectors * halves] = {};
    for (int64_t i = 0; i < rows.count; ++i) FASTMMD_UNROLL for (int v = 0; v < Vectors; ++v) {
            const Halves<T> x = load_as_double(rows.row(i) + first + v * lanes<T>);
            FASTMMD_UNROLL for (int h = 0; h < halves; ++h) sums[v * halves + h] += x.of[h];
        }
    for (int v = 0; v < Vectors * halves; ++v)
        store(mean + first + v * lanes<double>, sums[v] / (double)rows.count);
}

// As find_moments in blocks.hpp; the mean and the moment are [length].
template <class T>
void find_row_moments(const Rows<T>& rows,
                      const T* weights,  // [count] or null: ones
                      double scale,      // of the weights
                      Moments& moments) {
    constexpr int step = lanes<T>, halves = Halves<T>::count, several = 8 / halves;
    const int64_t length = rows.length;
    int64_t first = 0;
    for (; first + several * step <= length; first += several * step)
        find_means<T, several>(rows, first, moments.mean);
    for (; first < length; first += step) find_means<T, 1>(rows, first, moments.mean);
    memset(moments.moment, 0, length * sizeof(double));
    moments.farthest = moments.spread = moments.mass = 0;
    for (int64_t i = 0; i < rows.count; ++i) {
        const T* point = rows.row(i);
        const double weight = weights ? scale * (double)weights[i] : scale;
        Vector<double> sums[4] = {};
        const auto add = [&](int64_t d, int at) {
            const Halves<T> x = load_as_double(point + d);
            FASTMMD_UNROLL for (int h = 0; h < halves; ++h) {
                const Vector<double> spread = x.of[h] - load(moments.mean + d + h * lanes<double>);
                sums[at + h] += spread * spread;
            }
        };
        int64_t d = 0;
        for (; d + 4 / halves * step <= length; d += 4 / halves * step)
            FASTMMD_UNROLL for (int at = 0; at < 4; at += halves) add(d + at / halves * step, at);
        for (; d < length; d += step) add(d, 0);
        const double squares = sum_halves<lanes<double>>((sums[0] + sums[1]) + (sums[2] + sums[3]));
        moments.farthest = larger(moments.farthest, squares);
        moments.spread += squares / (double)rows.count;
        moments.mass += weight;
        for (d = 0; weights && d < length; d += step) {  // of equal weights the sum is 0
            const Wide<T> spread = widen<T>(load(point + d)) - load_wide<T>(moments.mean + d),
                          sum = load_wide<T>(moments.moment + d) + weight * spread;
            memcpy(moments.moment + d, &sum, sizeof sum);
        }
    }
}

// x[d] of one point -> sum_j w_j (x[d] - x_j[d]).
FASTMMD_INLINE Vector<double> linear_of(const Moments& moments, Vector<double> x, int64_t d) {
    return moments.mass * (x - load(moments.mean + d)) - load(moments.moment + d);
}

// As many vectors as lanes: lane i of the first becomes the sum of the lanes of vector i.
template <class T, int Half = lanes<T> / 2> FASTMMD_INLINE void add_lanes(Vector<T>* sums) {
    constexpr std::make_integer_sequence<int, lanes<T>> all = {};
    FASTMMD_UNROLL for (int i = 0; i < Half; ++i) sums[i] =
        halves_of<T, Half, false>(sums[i], sums[i + Half], all) +
        halves_of<T, Half, true>(sums[i], sums[i + Half], all);
    if constexpr (Half > 1) add_lanes<T, Half / 2>(sums);
}

// r[i][j] = |row i - column j|^2 for `used` columns from `first_column` on, a multiple of columns_at_once.
// Behind the last row or column it is repeated.
template <class T>
void wide_distances(const Rows<T>& rows, int64_t first_row, int row_count, const Rows<T>& columns,
                    int64_t first_column, int used,
                    T* r) {  // [row_count, rounded up][wide_columns]
    constexpr int pairs = rows_at_once * columns_at_once, chunk = chunk_of_lanes * lanes<T>;
    for (int64_t first = 0; first < rows.length; first += chunk) {
        const int64_t last = smaller<int64_t>(first + chunk, rows.length);
        for (int j = 0; j < used; j += columns_at_once) {
            const T* q[columns_at_once];
            for (int c = 0; c < columns_at_once; ++c) q[c] = columns.row(first_column + j + c);
            for (int i = 0; i < row_count; i += rows_at_once) {
                const T* p[rows_at_once];
                for (int c = 0; c < rows_at_once; ++c) p[c] = rows.row(first_row + i + c);
                Vector<T> sums[pairs] = {};
                for (int64_t d = first; d < last; d += lanes<T>) {
                    Vector<T> column[columns_at_once];
                    FASTMMD_UNROLL for (int c = 0; c < columns_at_once; ++c) column[c] = load(q[c] + d);
                    FASTMMD_UNROLL for (int a = 0; a < rows_at_once; ++a) {
                        const Vector<T> row = load(p[a] + d);
                        FASTMMD_UNROLL for (int c = 0; c < columns_at_once; ++c) {
                            const Vector<T> difference = row - column[c];
                            sums[a * columns_at_once + c] += difference * difference;
                        }
                    }
                }
                T totals[pairs];
                FASTMMD_UNROLL for (int at = 0; at < pairs; at += lanes<T>) {
                    add_lanes<T>(sums + at);
                    store(totals + at, sums[at]);
                }
                for (int a = 0; a < rows_at_once; ++a) {
                    T* of_row = r + (i + a) * wide_columns + j;
                    Vector<T, columns_at_once> sum, before;
                    memcpy(&sum, totals + a * columns_at_once, sizeof sum);
                    memcpy(&before, of_row, sizeof before);
                    if (first) sum += before;
                    memcpy(of_row, &sum, sizeof sum);
                }
            }
        }
    }
}

// sums[i][d] += factor * sum_j c_ij (row i [d] - column j [d]) for `RowCount` rows and `Vectors` of
// dimensions.
template <class T, int RowCount, int Vectors>
FASTMMD_INLINE void add_differences_of(const T* row, int64_t row_stride, const T* column,
                                       int64_t column_stride, int count, const T* c, int64_t by_row,
                                       int64_t by_column, double factor,
                                       double* sums) {  // [RowCount][slab]
    Vector<T> p[RowCount][Vectors], total[RowCount][Vectors] = {};
    for (int i = 0; i < RowCount; ++i)
        for (int v = 0; v < Vectors; ++v) p[i][v] = load(row + i * row_stride + v * lanes<T>);
    for (int j = 0; j < count; ++j) {
        Vector<T> q[Vectors];
        FASTMMD_UNROLL for (int v = 0; v < Vectors; ++v) q[v] =
            load(column + j * column_stride + v * lanes<T>);
        FASTMMD_UNROLL for (int i = 0; i < RowCount; ++i) {
            const Vector<T> coefficient = broadcast(c[i * by_row + j * by_column]);
            FASTMMD_UNROLL for (int v = 0; v < Vectors; ++v) total[i][v] += coefficient * (p[i][v] - q[v]);
        }
    }
    for (int i = 0; i < RowCount; ++i)
        for (int v = 0; v < Vectors; ++v)
            add_scaled<T>(sums + i * slab<T> + v * lanes<T>, factor, total[i][v]);
}

// The coefficients c_ij of a block of rows: mass of the column times slope.
template <class T> struct Coefficients {
    const T* c;
    int64_t by_row, by_column;  // elements from one to the next
};

// The same for a block of rows, `width` dimensions from `first` on, and all columns.
template <class T>
void add_wide_differences(const Rows<T>& rows, int64_t first_row, int row_count, const Rows<T>& columns,
                          const Coefficients<T>& of, double factor, int64_t first, int width,
                          double* sums) {  // [row_count][slab]
    const int64_t by_row = of.by_row, by_column = of.by_column;
    for (int64_t j = 0; j < columns.count; j += wide_columns) {
        const int count = (int)smaller<int64_t>(wide_columns, columns.count - j);
        const auto add = [&](auto row_count, auto vectors, int i, int d) {
            add_differences_of<T, decltype(row_count)::value, decltype(vectors)::value>(
                rows.row(first_row + i) + first + d, rows.stride, columns.row(j) + first + d, columns.stride,
                count, of.c + i * by_row + j * by_column, by_row, by_column, factor, sums + i * slab<T> + d);
        };
        for (int d = 0; d < width;) {
            const int left = (width - d) / lanes<T>;
            const int vectors = left < vectors_at_once        ? left
                                : left == vectors_at_once + 1 ? left / 2
                                                              : vectors_at_once;
            const auto add_rows = [&](auto row_count, int i) {
                if constexpr (vectors_at_once > 2)
                    if (vectors == 3) return add(row_count, Number<3>(), i, d);
                vectors == 2 ? add(row_count, Number<2>(), i, d) : add(row_count, Number<1>(), i, d);
            };
            int i = 0;
            for (; i + rows_at_once <= row_count; i += rows_at_once) add_rows(Number<rows_at_once>(), i);
            for (; i < row_count; ++i) add_rows(Number<1>(), i);
            d += vectors * lanes<T>;
        }
    }
}

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
