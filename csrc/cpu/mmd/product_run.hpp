// One member of mmd2 in many dimensions by matrix products. A task has a block of rows and meets all columns,
// tile by tile: distances, the kernel on them, and the slopes with the coordinates again, while they are in
// the cache:
//
//   r_ij                   = |p_i|^2 + |q_j|^2 - 2 p_i . q_j
//   sum_j c_ij (p_i - q_j) = p_i sum_j c_ij - sum_j c_ij q_j
//
// Both cancel where points are much nearer to each other than to the center: a sample meets itself about its
// own mean, and the other one about the middle of both means. Pairs that are near even so, and points so far
// out that they would drown others in a sum of T, are taken by differences.
#pragma once
#include "layout.hpp"
#include "product_side.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

// Of |p|^2 + |q|^2, whose roundings r inherits: those of a pair that is not near are at most 1 / 0.4 = 2.5
// times as large relative to r.
constexpr double near_pair = 0.4;
// Pairs of which some are near stand for all; with more of them differences are faster.
constexpr int sampled_pairs = 128, most_near_pairs = 12;

template <class T> class ProductRun {
  public:
    static constexpr int most_rows = 192, any_threads = 8;

    // Rows of a block: few blocks pack less, and as many as threads, or twice, keep these busy. They change
    // the order of no sum but that of sums per rung, for which `threads` is a constant.
    static int64_t block_rows_of(int64_t rows, int dim, int threads) {
        const int64_t fit = larger<int64_t>(24, smaller<int64_t>(most_rows, ((int64_t)1 << 18) / dim));
        return smaller<int64_t>(
            most_rows, round_up(blocks_of(rows, round_up(blocks_of(rows, fit), threads)), register_rows));
    }
    static int64_t blocks_of_side(int64_t rows, int dim, int threads) {
        return rows ? blocks_of(rows, block_rows_of(rows, dim, threads)) : 0;
    }

    ProductRun(const Mmd2& task, const Layout<T>& layout, const BlockMemory<T>& blocks, int64_t b,
               const Plan<T>& plan, const ProductSide<T>* sides, int shared, double* rung_sums)
        : task_(task),
          layout_(layout),
          blocks_(blocks),
          own_(layout.member(b)),
          plan_(plan),
          sides_(sides),
          rung_sums_(rung_sums),
          dim_(task.dim),
          shared_(shared) {}

    // Whether products pay: all numbers finite, no norm near the largest number, and few pairs near.
    bool suits() const {
        const int count = layout_.sides();
        for (int side = 0; side < count; ++side) {
            const Moments& moments =
                own_.sides[side].moments;  // the spread of points that are not finite is not
            if (!(moments.spread >= 0 && moments.farthest < 1e-4 * (double)Format<T>::largest)) return false;
        }
        int near = 0;
        for (int side = 0; side < count; ++side)
            for (int k = 0; k < sampled_pairs; ++k) {
                const Points<T>& p = sides_[side].alone;
                const int64_t i = k * p.count / sampled_pairs,
                              j = (k * 37 + 11) % sampled_pairs * p.count / sampled_pairs;
                near += i != j && is_near(p, i, j);
            }
        return near <= count * most_near_pairs;
    }

    // Threads from the first one on. elements, doubles: ProductBlock's for each of all threads.
    void operator()(T* elements, double* doubles, int first_thread, int threads) const {
        const int64_t of_x = blocks(0), of_y = layout_.sides() == 2 && !task_.fixed_y ? blocks(1) : 0;
        parallel_for(of_x + of_y, threads, [&](int64_t at, int thread) {
            const int64_t own = first_thread + thread;
            const bool gradients = task_.gradients.x || task_.gradients.y;
            ProductBlock<T> block(
                elements + own * ProductBlock<T>::elements(most_rows, dim_),
                gradients ? doubles + own * ProductBlock<T>::doubles(most_rows, dim_) : nullptr, most_rows,
                dim_);
            at < of_x ? run_block(0, at, block, (int)own) : run_block(1, at - of_x, block, (int)own);
        });
        if (!rung_sums_) return;
        for (int64_t at = 1; at < of_x + of_y; ++at)
            for (int s = 0; s < 2 * task_.kernel.count; ++s)
                rung_sums_[s] += rung_sums_[at * 2 * task_.kernel.count + s];
    }

  private:
    int shared(int side) const { return rung_sums_ || !needs_rows(side) ? any_threads : shared_; }
    int64_t blocks(int side) const { return blocks_of_side(own_.sides[side].count, dim_, shared(side)); }
    T* grad_points(int side) const { return (T*)(side ? task_.gradients.y : task_.gradients.x); }
    bool needs_rows(int side) const {  // the value of every row
        return grad_points(side) || (side ? task_.gradients.y_weights : task_.gradients.x_weights);
    }

    bool is_near(const Points<T>& points, int64_t i, int64_t j) const {
        return distance_of(points.row(i), points.row(j), dim_) <
               near_pair * (points.squared_norm(i) + points.squared_norm(j));
    }

    // The double sum of a block of rows and all columns of one side.
    struct Meeting {
        int rows, columns;  // sides
        int64_t first;      // row
        int count;
        double factor;  // of gradients
        double rung_factor;
        double* rung_sums;  // [2 * S]; null: not needed
        double* value;      // [count]
        double* slopes;     // [count]: factor sum_j mass_j c_ij
        bool half;          // columns from the block on, those behind it twice
    };

    void run_block(int side, int64_t at, ProductBlock<T>& block, int thread) const {
        const Side<T>& own = own_.sides[side];
        const int64_t size = block_rows_of(own.count, dim_, shared(side)), first = at * size;
        const int rows = (int)smaller(size, own.count - first);
        double value[2][most_rows] = {}, slopes[2][most_rows] = {};
        double* const rung_sums =
            rung_sums_ ? rung_sums_ + (side * blocks(0) + at) * 2 * task_.kernel.count : nullptr;
        if (rung_sums) memset(rung_sums, 0, 2 * task_.kernel.count * sizeof(double));
        meet({side, side, first, rows, own.a * own.scale, own.a, rung_sums, value[0], slopes[0],
              !needs_rows(side)},
             block, thread);
        if (layout_.sides() == 2 && (side == 0 || needs_rows(1))) {
            const double scale = own_.sides[1 - side].scale;
            meet({side, 1 - side, first, rows, -scale, -2, side ? nullptr : rung_sums, value[1], slopes[1],
                  false},
                 block, thread);
        }
        for (int i = 0; i < rows; ++i) {
            own_.terms[side].value[first + i] = own.scale * value[0][i] - plan_.offset * own.moments.mass;
            if (double* const cross = layout_.sides() == 2 ? own_.cross_value(side) : nullptr) {
                const Side<T>& other = own_.sides[1 - side];
                cross[first + i] = other.scale * value[1][i] - plan_.offset * other.moments.mass;
            }
            if (grad_points(side)) finish(side, first, i, slopes[0][i], slopes[1][i], block.gradient(i));
        }
    }

    void meet(const Meeting& of, ProductBlock<T>& block, int thread) const {
        const bool itself = of.rows == of.columns, gradient = grad_points(of.rows);
        const ProductSide<T>&own = sides_[of.rows], &other = sides_[of.columns];
        const Points<T>&p = itself ? own.alone : own.together, &q = itself ? other.alone : other.together;
        block.begin(p, of.first, of.count);
        if (gradient && itself) block.clear_gradient();
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
            if (gradient) block.add_products(q, j, used, of.factor);
        }
    }

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
            of.value[i] += times * plan_.evaluate_per_rung(plan_, mass, used, r,
                                                           times * of.rung_factor *
                                                               own_.sides[of.rows].weight(of.first + i) *
                                                               own_.sides[of.columns].scale,
                                                           scratch.chunk, scratch.partial, of.rung_sums);
        else
            of.value[i] +=
                times * (grad_points(of.rows) ? plan_.evaluate : plan_.evaluate_value)(plan_, mass, used, r);
        if (!grad_points(of.rows)) return;
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

    // 4 w_i times the sums over both samples, completed by what the slopes leave out.
    void finish(int side, int64_t first, int i, double self_slopes, double cross_slopes,
                const double* gradient) const {
        const Side<T>&own = own_.sides[side], &other = own_.sides[1 - side];
        const bool two = layout_.sides() == 2;
        const Points<T>&alone = sides_[side].alone, &together = sides_[side].together;
        const T* const point = alone.row(first + i);
        T* const grad = grad_points(side) + (own.base + first + i) * dim_;
        const double self_shift = plan_.shift * own.a, factor = 4 * own.weight(first + i);
        for (int d = 0; d < dim_; ++d) {
            double sum = self_slopes * (double)(point[d] - alone.center[d]) - gradient[d];
            if (two) sum += cross_slopes * (double)(point[d] - together.center[d]);
            if (plan_.shift != 0) {
                sum += self_shift * own.moments.linear((double)point[d], d);
                if (two) sum -= plan_.shift * other.moments.linear((double)point[d], d);
            }
            grad[d] = (T)(factor * sum);
        }
    }

    const Mmd2& task_;
    const Layout<T>& layout_;
    const BlockMemory<T>& blocks_;
    const Member<T>& own_;
    const Plan<T>& plan_;
    const ProductSide<T>* const sides_;
    double* const rung_sums_;  // [blocks of both sides][2 * S]; null: not needed
    const int dim_, shared_;   // threads for which blocks are made
};

// The memory of products for members that run side by side.
template <class T> class Products {
  public:
    Products(const Mmd2& task, const Layout<T>& layout, int threads, int side_by_side)
        : task_(task),
          layout_(layout),
          shared_(side_by_side > 1 ? 1 : threads),
          length_(round_up(task.dim, lanes<T>)),
          used_(layout.products()),
          elements_(used_ ? threads * ProductBlock<T>::elements(ProductRun<T>::most_rows, task.dim) : 0),
          doubles_(used_ && (task.gradients.x || task.gradients.y)
                       ? threads * ProductBlock<T>::doubles(ProductRun<T>::most_rows, task.dim)
                       : 0),
          centers_(used_ ? side_by_side * 4 * length_ : 0),
          sums_(used_ ? side_by_side * 2 * length_ : 0),
          far_(used_ ? layout.staged(0) + layout.staged(1) : 0),
          rungs_(used_ && (task.gradients.bandwidths || task.gradients.kernel_weights)
                     ? side_by_side * rungs()
                     : 0) {}
    explicit operator bool() const { return elements_ && doubles_ && centers_ && sums_ && far_ && rungs_; }

    // Finds moments and masses of one sample of member b, whose place among the members side by side is `at`.
    void prepare(int64_t b, int side, int64_t at, int64_t staged, T* mass, ProductSide<T>& of) const {
        Side<T>& own = layout_.side(b, side);
        T* const centers = centers_.get() + at * 4 * length_;
        T* const origin = centers + (2 + side) * length_;
        for (int64_t d = 0; d < length_; ++d) origin[d] = 0;
        for (int64_t j = 0; j < own.count; ++j) mass[j] = own.weights ? own.weights[j] : T(1);
        own.columns = {own.count, task_.dim, tile_width<T>(own.count), nullptr, mass};
        of.alone = {own.points, own.count, task_.dim, origin};
        of.mass = mass;
        find_point_moments(of.alone, own.weights, own.scale, own.moments);
        find_center(own.moments, sums_.get() + (2 * at + side) * length_, centers + side * length_,
                    far_.get() + staged, of);
    }

    // Member b by products of its sides, which are prepared; false: they do not allow it. `plan` makes its
    // plan.
    template <class MakePlan>
    bool run(int64_t b, ProductSide<T>* of, int64_t at, int first_thread, int threads,
             const BlockMemory<T>& blocks, const Plan<T>& plan, const MakePlan& make_plan,
             double* rung_sums) const {  // [2 * S]; null: not needed
        T* const middle = centers_.get() + (4 * at + 2) * length_;
        const int last = layout_.sides() - 1;
        const T *const x = of[0].alone.center, *const y = of[last].alone.center;
        for (int64_t d = 0; d < length_; ++d) middle[d] = (x[d] + y[d]) / 2;
        for (int side = 0; side <= last; ++side) {
            of[side].together = of[side].alone;
            of[side].together.center = middle;
            of[side].alone.typical = typical_norm(of[side].alone);
            of[side].together.typical = typical_norm(of[side].together);
        }
        double* const rungs = rung_sums ? rungs_.get() + at * this->rungs() : nullptr;
        const ProductRun<T> run(task_, layout_, blocks, b, plan, of, shared_, rungs);
        if (!run.suits()) return false;
        make_plan();
        run(elements_.get(), doubles_.get(), first_thread, threads);
        if (rung_sums) memcpy(rung_sums, rungs, 2 * task_.kernel.count * sizeof(double));
        return true;
    }

  private:
    // Sums per rung of all blocks of a member.
    int64_t rungs() const {
        int64_t blocks = 0;
        for (int side = 0; side < 2; ++side)
            blocks +=
                ProductRun<T>::blocks_of_side(layout_.largest(side), task_.dim, ProductRun<T>::any_threads);
        return blocks * 2 * task_.kernel.count;
    }

    const Mmd2& task_;
    const Layout<T>& layout_;
    const int shared_;
    const int64_t length_;
    const bool used_;
    const Buffer<T> elements_;
    const Buffer<double> doubles_;  // of ProductBlock
    const Buffer<T> centers_;       // [side by side][4][length]
    const Buffer<double> sums_;     // [side by side][2][length]
    const Buffer<bool> far_;
    const Buffer<double> rungs_;
};

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
