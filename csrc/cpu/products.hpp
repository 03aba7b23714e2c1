// Matrix products of points in many dimensions, tile by tile: of a block of rows with some columns, p_i .
// q_j, and of what a kernel makes of these with the columns again, sum_j c_ij q_j.
//
// A register tile of register_rows rows and register_vectors vectors of columns takes a multiply-add for
// every product, two loads and register_rows broadcasts for all of them. What it reads is packed so that
// these are consecutive: rows once for a block; columns for every tile, some dimensions at a time, so that
// they stay in the second-level cache. Packing takes one operation where the products take as many as the
// block has rows.
//
// Points are packed about a center. Sums are in T over at most product_dims dimensions or product_columns
// columns, in an order that no division of the work changes.
#pragma once
#include "pairs.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

constexpr int register_rows = vector_bytes == 64 ? 12 : vector_bytes == 32 ? 6 : 4;  // 32 or 16 registers
constexpr int register_vectors = 2;
constexpr int product_columns = 256;
constexpr int product_dims = 256;
template <class T> constexpr int panel_columns = register_vectors * lanes<T>;
// Of the rows of a tile: no multiple of 1 KB, at which they would share the few sets of the first cache.
template <class T> constexpr int product_stride = product_columns + lanes<T>;

template <class T> struct Points {
    const T* points;  // [count, dim]
    int64_t count;
    int dim;
    const T* center;  // [dim, rounded up to the lanes]
    T typical = 0;    // squared norm about it, taken off norms: what remains keeps more digits

    // The last row is repeated behind it.
    const T* row(int64_t i) const { return points + smaller(i, count - 1) * dim; }

    // A vector of coordinates about the center; 0 behind the last dimension.
    FASTMMD_INLINE Vector<T> centered(const T* row, int64_t d) const {
        Vector<T> x;
        if (d + lanes<T> <= dim) {
            x = load(row + d);
        } else {
            T rest[lanes<T>] = {};
            for (int64_t at = d; at < dim; ++at) rest[at - d] = row[at];
            x = load(rest);
        }
        return x - load(center + d);
    }

    // |p_i - center|^2.
    double squared_norm(int64_t i) const {
        Wide<T> sum = {};
        for (int64_t d = 0; d < dim; d += lanes<T>) {
            const Wide<T> x = widen<T>(centered(row(i), d));
            sum += x * x;
        }
        return sum_halves<lanes<T>>(sum);
    }
};

// |p - q|^2 in double.
template <class T> double distance_of(const T* p, const T* q, int dim) {
    Wide<T> sum = {};
    int d = 0;
    for (; d + lanes<T> <= dim; d += lanes<T>) {
        const Wide<T> difference = widen<T>(load(p + d)) - widen<T>(load(q + d));
        sum += difference * difference;
    }
    double rest = 0;
    for (; d < dim; ++d) rest += ((double)p[d] - (double)q[d]) * ((double)p[d] - (double)q[d]);
    return sum_halves<lanes<T>>(sum) + rest;
}

// sums[i][v] += sum_k a[i][k] b[k][v], where a is broadcast and b has vectors of columns.
template <class T, int ByRow, int ByTerm, int Rows, int Vectors>
FASTMMD_INLINE void multiply(const T* a, const T* b,  // [terms][panel_columns]
                             int64_t terms, Vector<T> (&sums)[Rows][Vectors]) {
    for (int64_t k = 0; k < terms; ++k) {
        Vector<T> column[Vectors];
        FASTMMD_UNROLL for (int v = 0; v < Vectors; ++v) column[v] =
            load(b + k * panel_columns<T> + v * lanes<T>);
        FASTMMD_UNROLL for (int i = 0; i < Rows; ++i) {
            const Vector<T> row = broadcast(a[k * ByTerm + i * ByRow]);
            FASTMMD_UNROLL for (int v = 0; v < Vectors; ++v) sums[i][v] += row * column[v];
        }
    }
}

// body(rows, vectors) with constants: rows at least `rows` of a panel, exactly `vectors`.
template <class Body> FASTMMD_INLINE void with_panel(int rows, int vectors, const Body& body) {
    const auto with_rows = [&](auto vectors) {
        if (rows > register_rows / 2)
            body(Number<register_rows>(), vectors);
        else if (rows > 1)
            body(Number<register_rows / 2>(), vectors);
        else
            body(Number<1>(), vectors);
    };
    vectors == 2 ? with_rows(Number<2>()) : with_rows(Number<1>());
}

// The tiles of one block of rows, in memory that belongs to one thread.
template <class T> class ProductBlock {
  public:
    static int64_t padded(int dim) { return round_up(dim, lanes<T>); }
    static int64_t most_rows(int64_t rows) { return round_up(rows, register_rows); }
    // Elements that blocks of so many rows take; doubles: with gradients.
    static int64_t elements(int64_t rows, int dim) {
        return most_rows(rows) * (dim + product_stride<T> + 1) + product_columns * (packed_dims + 1) +
               4 * lanes<T>;
    }
    static int64_t doubles(int64_t rows, int dim) { return most_rows(rows) * padded(dim); }

    ProductBlock(T* elements, double* doubles, int64_t most, int dim)
        : dim_(dim),
          chunk_(round_up(blocks_of(dim, blocks_of(dim, product_dims)), lanes<T>)),
          r_(elements),
          row_norms_(r_ + most_rows(most) * product_stride<T>),
          column_norms_(row_norms_ + most_rows(most) + 2 * lanes<T>),
          packed_(column_norms_ + product_columns),
          rows_(packed_ + product_columns * packed_dims),
          gradient_(doubles) {}

    // |p - center|^2 - typical, NaN for a point with an infinity; of the columns of the last
    // multiply_columns.
    T row_norm(int i) const { return row_norms_[i]; }
    const T* column_norms() const { return column_norms_; }  // [used]
    T* row(int i) const { return r_ + (int64_t)i * product_stride<T>; }
    double* gradient(int i) const { return gradient_ + i * padded(dim_); }

    // Packs the rows.
    FASTMMD_ALONE void begin(const Points<T>& p, int64_t first, int count) {
        constexpr int groups = (register_rows + lanes<T> - 1) / lanes<T>;
        count_ = count;
        for (int row = 0; row < count; row += register_rows) {
            T* const panel = rows_ + (int64_t)row * dim_;
            Wide<T> norms[groups] = {};
            Vector<T> strange[groups] = {};
            for (int64_t d = 0; d < dim_; d += lanes<T>) {
                Vector<T> x[groups][lanes<T>];
                for (int g = 0; g < groups; ++g) {
                    for (int lane = 0; lane < lanes<T>; ++lane) {
                        const int i = row + g * lanes<T> + lane;
                        const bool there = g * lanes<T> + lane < register_rows && i < count;
                        x[g][lane] = there ? p.centered(p.row(first + i), d) : Vector<T>{};
                    }
                    transpose_lanes<T>(x[g]);
                    Vector<T> squares = {};
                    for (int at = 0; at < lanes<T>; ++at) {
                        squares += x[g][at] * x[g][at];
                        strange[g] += x[g][at] - x[g][at];
                    }
                    norms[g] += widen<T>(squares);
                }
                // Vectors reach beyond the rows, into what is stored after them.
                for (int64_t at = 0; at < smaller<int64_t>(lanes<T>, dim_ - d); ++at)
                    for (int g = 0; g < groups; ++g)
                        store(panel + (d + at) * register_rows + g * lanes<T>, x[g][at]);
            }
            for (int g = 0; g < groups; ++g) {
                norms[g] += widen<T>(strange[g]) - (double)p.typical;
                store(row_norms_ + row + g * lanes<T>, __builtin_convertvector(norms[g], Vector<T>));
            }
        }
    }

    // Clears what add_products adds to.
    void clear_gradient(int rows) const {
        memset(gradient_, 0, most_rows(rows) * padded(dim_) * sizeof(double));
    }

    // row(i)[j] = p_i . q_j for `used` columns from `first` on, a multiple of the lanes.
    void multiply_columns(const Points<T>& q, int64_t first, int used) {
        for (int64_t from = 0; from < dim_; from += chunk_) {
            const int64_t dims = smaller<int64_t>(chunk_, dim_ - from);
            pack_columns(q, first, used, from, dims);
            for (int j = 0; j < used; j += panel_columns<T>)
                for (int i = 0; i < count_; i += register_rows) {
                    const T *a = rows_ + (i * (int64_t)dim_ + from * register_rows), *b = packed_ + j * dims;
                    with_panel(count_ - i, smaller<int>(register_vectors, (used - j) / lanes<T>),
                               [&](auto rows, auto vectors) {
                                   multiply_panel<decltype(rows)::value, decltype(vectors)::value>(
                                       a, b, dims, from > 0, row(i) + j);
                               });
                }
        }
    }

    // gradient(i)[d] += factor sum_j c_ij q_j[d], where row(i) has the c_ij, 0 behind the last column.
    void add_products(const Points<T>& q, int64_t first, int used, double factor) const {
        for (int64_t d = 0; d < padded(dim_); d += panel_columns<T>) {
            const int vectors = (int)smaller<int64_t>(register_vectors, (padded(dim_) - d) / lanes<T>);
            pack_coordinates(q, first, used, d, vectors);
            for (int i = 0; i < count_; i += register_rows)
                with_panel(count_ - i, vectors, [&](auto rows, auto vectors) {
                    add_panel<decltype(rows)::value, decltype(vectors)::value>(row(i), used, factor,
                                                                               gradient(i) + d);
                });
        }
    }

  private:
    // Some dimensions of columns, to whose norms they are added.
    FASTMMD_ALONE void pack_columns(const Points<T>& q, int64_t first, int used, int64_t from, int64_t dims) {
        for (int j = 0; j < used; j += lanes<T>) {
            const T* of[lanes<T>];
            for (int lane = 0; lane < lanes<T>; ++lane) of[lane] = q.row(first + j + lane);
            T* const out = packed_ + j / panel_columns<T> * panel_columns<T> * dims + j % panel_columns<T>;
            Wide<T> norms = {};
            Vector<T> strange = {};
            for (int64_t d = 0; d < dims; d += lanes<T>) {
                Vector<T> x[lanes<T>], squares = {};
                FASTMMD_UNROLL for (int lane = 0; lane < lanes<T>; ++lane) {
                    x[lane] = q.centered(of[lane], from + d);
                    __builtin_prefetch(of[lane] + lanes<T> * q.dim + from + d);
                }
                transpose_lanes<T>(x);
                const int count = (int)smaller<int64_t>(lanes<T>, dims - d);
                for (int at = 0; at < count; ++at) {
                    store(out + (d + at) * panel_columns<T>, x[at]);
                    squares += x[at] * x[at];
                    strange += x[at] - x[at];
                }
                norms += widen<T>(squares);
            }
            norms += widen<T>(strange);
            double* const sums = column_sums_ + j;
            if (from) norms += load_wide<T>(sums);
            memcpy(sums, &norms, sizeof norms);
            norms -= (double)q.typical;
            store(column_norms_ + j, __builtin_convertvector(norms, Vector<T>));
        }
    }

    // One or two vectors of dimensions.
    FASTMMD_ALONE void pack_coordinates(const Points<T>& q, int64_t first, int used, int64_t from,
                                        int vectors) const {
        for (int j = 0; j < used; ++j)
            for (int v = 0; v < vectors; ++v)
                store(packed_ + j * panel_columns<T> + v * lanes<T>,
                      q.centered(q.row(first + j), from + v * lanes<T>));
    }

    template <int Rows, int Vectors>
    FASTMMD_ALONE static void multiply_panel(const T* a, const T* b, int64_t dims, bool add, T* r) {
        Vector<T> sums[Rows][Vectors] = {};
        multiply<T, 1, register_rows>(a, b, dims, sums);
        FASTMMD_UNROLL for (int i = 0; i < Rows; ++i) FASTMMD_UNROLL for (int v = 0; v < Vectors; ++v) {
            T* const at = r + i * product_stride<T> + v * lanes<T>;
            store(at, add ? load(at) + sums[i][v] : sums[i][v]);
        }
    }

    template <int Rows, int Vectors>
    FASTMMD_ALONE void add_panel(const T* c, int used, double factor, double* gradient) const {
        Vector<T> sums[Rows][Vectors] = {};
        multiply<T, product_stride<T>, 1>(c, packed_, used, sums);
        for (int i = 0; i < Rows; ++i)
            for (int v = 0; v < Vectors; ++v)
                add_to<T>(gradient + i * padded(dim_) + v * lanes<T>, factor * widen<T>(sums[i][v]));
    }

    static constexpr int64_t packed_dims = larger(product_dims, panel_columns<T>);

    const int dim_;
    const int64_t chunk_;                  // dimensions at a time
    T* const r_;                           // [rows][product_stride]
    T* const row_norms_;                   // [rows]
    T* const column_norms_;                // [product_columns]
    double column_sums_[product_columns];  // of squares
    T* const packed_;                      // columns
    T* const rows_;                        // [panels][dim][register_rows]
    double* const gradient_;
    int count_ = 0;
};

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
