// One member of mmd2 in many dimensions by matrix products: a task has a block of rows.
#pragma once
#include "layout.hpp"
#include "product_pairs.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

template <class T> class ProductRun {
    typedef ProductPairs<T> Pairs;

  public:
    ProductRun(const Mmd2& task, const Layout<T>& layout, const BlockMemory<T>& blocks, int64_t b,
               const Plan<T>& plan, const ProductSide<T>* sides, int shared, double* rung_sums)
        : task_(task),
          layout_(layout),
          own_(layout.member(b)),
          plan_(plan),
          sides_(sides),
          pairs_(plan, sides, blocks),
          rung_sums_(rung_sums),
          dim_(task.dim),
          shared_(shared) {}

    // Threads from the first one on. elements, doubles: ProductBlock's for each of all threads.
    void operator()(T* elements, double* doubles, int first_thread, int threads) const {
        const int64_t of_x = blocks(0), of_y = layout_.sides() == 2 && !task_.fixed_y ? blocks(1) : 0;
        parallel_for(of_x + of_y, threads, [&](int64_t at, int thread) {
            const int64_t own = first_thread + thread;
            const bool gradients = task_.gradients.x || task_.gradients.y;
            ProductBlock<T> block(
                elements + own * ProductBlock<T>::elements(Pairs::most_rows, dim_),
                gradients ? doubles + own * ProductBlock<T>::doubles(Pairs::most_rows, dim_) : nullptr,
                Pairs::most_rows, dim_);
            at < of_x ? run_block(0, at, block, (int)own) : run_block(1, at - of_x, block, (int)own);
        });
        if (rung_sums_) add_strips(rung_sums_, of_x + of_y, 2 * task_.kernel.count);
    }

  private:
    int shared(int side) const { return rung_sums_ || !needs_rows(side) ? Pairs::any_threads : shared_; }
    int64_t blocks(int side) const {
        return Pairs::blocks_of_side(own_.sides[side].count, dim_, shared(side));
    }
    T* grad_points(int side) const { return (T*)(side ? task_.gradients.y : task_.gradients.x); }
    bool needs_rows(int side) const {  // the value of every row
        return grad_points(side) || (side ? task_.gradients.y_weights : task_.gradients.x_weights);
    }

    void run_block(int side, int64_t at, ProductBlock<T>& block, int thread) const {
        const Side<T>& own = own_.sides[side];
        const int64_t size = Pairs::block_rows_of(own.count, dim_, shared(side)), first = at * size;
        const int rows = (int)smaller(size, own.count - first);
        double value[2][Pairs::most_rows] = {}, slopes[2][Pairs::most_rows] = {};
        double* const rung_sums =
            rung_sums_ ? rung_sums_ + (side * blocks(0) + at) * 2 * task_.kernel.count : nullptr;
        if (rung_sums) memset(rung_sums, 0, 2 * task_.kernel.count * sizeof(double));
        double factors[Pairs::most_rows];
        const auto meet = [&](int columns, double a, double* rung_sums, bool half) {
            const Side<T>& other = own_.sides[columns];
            for (int i = 0; i < rows; ++i) factors[i] = a * own.weight(first + i) * other.scale;
            const bool itself = columns == side;
            pairs_.meet(
                {side, columns, first, rows, grad_points(side) != nullptr, half,
                 (itself ? a : -1) * other.scale, value[!itself], slopes[!itself], rung_sums, factors},
                block, thread);
        };
        if (grad_points(side)) block.clear_gradient(rows);
        meet(side, own.a, rung_sums, !needs_rows(side));
        if (layout_.sides() == 2 && (side == 0 || needs_rows(1)))
            meet(1 - side, -2, side ? nullptr : rung_sums, false);
        for (int i = 0; i < rows; ++i) {
            own_.terms[side].value[first + i] = own.scale * value[0][i] - plan_.offset * own.moments.mass;
            if (double* const cross = layout_.sides() == 2 ? own_.cross_value(side) : nullptr) {
                const Side<T>& other = own_.sides[1 - side];
                cross[first + i] = other.scale * value[1][i] - plan_.offset * other.moments.mass;
            }
            if (grad_points(side)) finish(side, first, i, slopes[0][i], slopes[1][i], block.gradient(i));
        }
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
    const Member<T>& own_;
    const Plan<T>& plan_;
    const ProductSide<T>* const sides_;
    const Pairs pairs_;
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
          elements_(used_ ? threads * ProductBlock<T>::elements(ProductPairs<T>::most_rows, task.dim) : 0),
          doubles_(used_ && (task.gradients.x || task.gradients.y)
                       ? threads * ProductBlock<T>::doubles(ProductPairs<T>::most_rows, task.dim)
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
        own.columns = {own.count, task_.dim, tile_width<T>(own.count), nullptr, mass};
        of.alone = {own.points, own.count, task_.dim, nullptr};
        prepare_side(own.weights, own.scale, own.moments, centers_.get() + (4 * at + 2 * side) * length_,
                     sums_.get() + (2 * at + side) * length_, mass, far_.get() + staged, of);
    }

    // Member b by products of its sides, which are prepared; false: they do not allow it. `plan` makes its
    // plan.
    template <class MakePlan>
    bool run(int64_t b, ProductSide<T>* of, int64_t at, int first_thread, int threads,
             const BlockMemory<T>& blocks, const Plan<T>& plan, const MakePlan& make_plan,
             double* rung_sums) const {  // [2 * S]; null: not needed
        const int last = layout_.sides() - 1;
        find_middle(of, last + 1, centers_.get() + (4 * at + 1) * length_);
        double* const rungs = rung_sums ? rungs_.get() + at * this->rungs() : nullptr;
        const Moments* const moments[2] = {&layout_.side(b, 0).moments, &layout_.side(b, last).moments};
        if (!ProductPairs<T>::suits(of, last + 1, moments)) return false;
        const ProductRun<T> run(task_, layout_, blocks, b, plan, of, shared_, rungs);
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
            blocks += ProductPairs<T>::blocks_of_side(layout_.largest(side), task_.dim,
                                                      ProductPairs<T>::any_threads);
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
