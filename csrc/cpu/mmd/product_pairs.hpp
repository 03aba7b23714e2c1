// Pairs of many dimensions by matrix products. A block of rows meets all columns, tile by tile: distances,
// the kernel on them, and the slopes with the coordinates again, while they are in the cache:
//
//   r_ij                   = |p_i|^2 + |q_j|^2 - 2 p_i . q_j
//   sum_j c_ij (p_i - q_j) = p_i sum_j c_ij - sum_j c_ij q_j
//
// Both cancel where points are much nearer to each other than to the center: a sample meets itself about its
// own mean, and the other one about the middle of both means. Pairs that are near even so, and points so far
// out that they would drown others in a sum of T, are taken by differences.
#pragma once
#include "product_side.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

// Of |p|^2 + |q|^2, whose roundings r inherits: those of a pair that is not near are at most 1 / 0.4 = 2.5
// times as large relative to r.
constexpr double near_pair = 0.4;
// Pairs of which some are near stand for all; with more of them differences are faster.
constexpr int sampled_pairs = 128, most_near_pairs = 12;

// A block of rows of one side and all columns of one side.
struct Meeting {
    int rows, columns;  // sides
    int64_t first;      // row
    int count;
    bool gradient;
    bool half;                   // columns from the block on, those behind it twice
    double factor;               // of gradients
    double* value;               // [count], added to: sum_j mass_j u
    double* slopes;              // [count], added to: factor sum_j mass_j c_ij
    double* rung_sums;           // [2 * S], added to; null: not needed
    const double* rung_factors;  // [count]: of these
};

// The pairs of two samples, or of one.
template <class T> class ProductPairs {
  public:
    static constexpr int most_rows = 192, any_threads = 8;

    // Rows of a block: few blocks pack less, and as many as threads, or a multiple, keep these busy. Where
    // they decide on the order of sums, of those per rung and of half of the pairs, `threads` is any_threads.
    static int64_t block_rows_of(int64_t rows, int dim, int threads) {
        const int64_t fit = larger<int64_t>(24, smaller<int64_t>(most_rows, ((int64_t)1 << 18) / dim));
        return smaller<int64_t>(
            most_rows, round_up(blocks_of(rows, round_up(blocks_of(rows, fit), threads)), register_rows));
    }
    static int64_t blocks_of_side(int64_t rows, int dim, int threads) {
        return rows ? blocks_of(rows, block_rows_of(rows, dim, threads)) : 0;
    }

    ProductPairs(const Plan<T>& plan, const ProductSide<T>* sides, const BlockMemory<T>& blocks)
        : plan_(plan),
          sides_(sides),
          blocks_(blocks),
          dim_(sides[0].alone.dim) {}

    // Whether products pay: all numbers finite, no norm near the largest number, and few pairs near.
    static bool suits(const ProductSide<T>* sides, int count, const Moments* const* moments) {
        int near = 0;
        for (int side = 0; side < count; ++side) {
            // The spread of points that are not finite is not.
            if (!(moments[side]->spread >= 0 && moments[side]->farthest < 1e-4 * (double)Format<T>::largest))
                return false;
            const Points<T>& p = sides[side].alone;
            for (int k = 0; k < sampled_pairs; ++k) {
                const int64_t i = k * p.count / sampled_pairs,
                              j = (k * 37 + 11) % sampled_pairs * p.count / sampled_pairs;
                near += i != j && distance_of(p.row(i), p.row(j), p.dim) <
                                      near_pair * (p.squared_norm(i) + p.squared_norm(j));
            }
        }
        return near <= count * most_near_pairs;
    }

    // Leaves sum_j factor mass_j c_ij q_j in the block's gradient, about the center that the two have
    // together.
    void meet(const Meeting& of, ProductBlock<T>& block, int thread) const {
        const bool itself = of.rows == of.columns;
        const ProductSide<T>&own = sides_[of.rows], &other = sides_[of.columns];
        const Points<T>&p = itself ? own.alone : own.together, &q = itself ? other.alone : other.together;
        block.begin(p, of.first, of.count);
        int64_t next;
        for (int64_t j = of.half ? of.first : 0; j < q.count; j = next) {
            const bool once = of.half && j == of.first;
            next = smaller<int64_t>(j + (once ? of.count : product_columns), q.count);
            const int columns = (int)(next - j), used = (int)round_up(columns, lanes<T>);
            T mass[product_columns] = {};
            memcpy(mass, other.mass + j, columns * sizeof(T));
            block.multiply_columns(q, j, used);
            for (int i = 0; i < of.count; ++i)
                run_row(of, i, j, columns, mass, of.half && !once ? 2 : 1, block, thread);
            if (of.gradient) block.add_products(q, j, used, of.factor);
        }
    }

  private:
    // One row with a tile: leaves mass times slope, 0 for pairs that it has taken by differences.
    void run_row(const Meeting& of, int i, int64_t column, int columns,
                 const T* mass,  // [product_columns], 0 behind the last
                 double times, ProductBlock<T>& block, int thread) const {
        T* const r = block.row(i);
        const int used = (int)round_up(columns, lanes<T>);
        const int64_t itself = of.rows == of.columns ? of.first + i - column : -1;  // column of the point
        int near[product_columns];
        const int near_count = distances(of, i, column, columns, itself, block, near);
        const Block<T> scratch = blocks_.of(thread);
        if (of.rung_sums)
            of.value[i] += times * plan_.evaluate_per_rung(plan_, mass, used, r, times * of.rung_factors[i],
                                                           scratch.chunk, scratch.partial, of.rung_sums);
        else
            of.value[i] +=
                times * (of.gradient ? plan_.evaluate : plan_.evaluate_value)(plan_, mass, used, r);
        if (!of.gradient) return;
        Wide<T> sum = {};
        for (int k = 0; k < near_count; ++k) {
            add_difference(of, i, column + near[k], of.factor * (double)mass[near[k]] * (double)r[near[k]],
                           block.gradient(i));
            r[near[k]] = 0;
        }
        if (itself >= 0 && itself < columns && r[itself] == r[itself]) r[itself] = 0;  // p_i - p_i = 0
        for (int j = 0; j < used; j += lanes<T>) {
            const Vector<T> c = load(r + j) * load(mass + j);
            store(r + j, c);
            sum += widen<T>(c);
        }
        of.slopes[i] += of.factor * sum_halves<lanes<T>>(sum);
    }

    // Replaces the products of row i by squared distances, and lists the columns that are taken by
    // differences.
    int distances(const Meeting& of, int i, int64_t column, int columns, int64_t itself,
                  ProductBlock<T>& block,
                  int* near) const {  // [product_columns]
        const ProductSide<T>& other = sides_[of.columns];
        T* const r = block.row(i);
        const T* const norms = block.column_norms();
        const bool alone = of.rows == of.columns;
        const T own_norm = block.row_norm(i);
        const T typical =
            alone ? other.alone.typical * 2 : sides_[of.rows].together.typical + other.together.typical;
        const Vector<T> norm = broadcast(own_norm);
        Bits<T> any_near = {};
        for (int j = 0; j < columns; j += lanes<T>) {
            const Vector<T> both = norm + load(norms + j);
            const Vector<T> distance = (both - load(r + j) * T(2)) + typical;
            any_near |= distance < (both + typical) * T(near_pair);
            store(r + j, at_least<T>(distance, T(0)));  // that of the padding may be below
        }
        int count = 0;
        if (any<T>(any_near) || other.any_far) {
            const T* const p = sides_[of.rows].alone.row(of.first + i);
            for (int j = 0; j < columns; ++j) {
                const bool taken =
                    r[j] < (own_norm + norms[j] + typical) * T(near_pair) || other.far[column + j];
                if (!taken || j == itself) continue;
                near[count++] = j;
                r[j] = (T)distance_of(p, other.alone.row(column + j), dim_);
            }
        }
        if (itself >= 0 && itself < columns) r[itself] = r[itself] == r[itself] ? T(0) : r[itself];
        return count;
    }

    // gradient[d] -= factor (p_i - q_j)[d]: what is left out of p_i sum_j c_ij - gradient.
    void add_difference(const Meeting& of, int i, int64_t j, double factor, double* gradient) const {
        const T *const p = sides_[of.rows].alone.row(of.first + i), *const q =
                                                                        sides_[of.columns].alone.row(j);
        int d = 0;
        for (; d + lanes<T> <= dim_; d += lanes<T>) {
            const Wide<T> sum =
                load_wide<T>(gradient + d) - factor * (widen<T>(load(p + d)) - widen<T>(load(q + d)));
            memcpy(gradient + d, &sum, sizeof sum);
        }
        for (; d < dim_; ++d) gradient[d] -= factor * ((double)p[d] - (double)q[d]);
    }

    const Plan<T>& plan_;
    const ProductSide<T>* const sides_;
    const BlockMemory<T>& blocks_;
    const int dim_;
};

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
