// The witness in many dimensions by matrix products.
#pragma once
#include "product_pairs.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

template <class T> class WitnessProducts {
    typedef ProductPairs<T> Pairs;

  public:
    WitnessProducts(const Witness& task, int threads, const BlockMemory<T>& memory)
        : task_(task),
          dim_(task.dim),
          count_(task.kernel.count),
          threads_(threads),
          sizes_{task.p, task.n},
          per_rung_(task.gradients.bandwidths || task.gradients.kernel_weights),
          length_(round_up(dim_, lanes<T>)),
          elements_(threads * ProductBlock<T>::elements(Pairs::most_rows, dim_)),
          doubles_(task.gradients.points || task.gradients.samples
                       ? threads * ProductBlock<T>::doubles(Pairs::most_rows, dim_)
                       : 0),
          mass_(task.p + task.n),
          centers_(4 * length_),
          sums_(2 * length_),
          moments_(4 * length_),
          far_(task.p + task.n),
          rungs_(per_rung_ ? blocks(0) * 2 * count_ : 0),
          memory_(memory),
          plan_(1, count_) {}
    explicit operator bool() const {
        return elements_ && doubles_ && mass_ && centers_ && sums_ && moments_ && far_ && rungs_ && plan_;
    }

    // Finds the moments; whether the data allow products.
    bool prepare() {
        parallel_for(2, threads_, [&](int64_t side, int) {
            const int64_t at = side ? sizes_[0] : 0;
            parts_[side].mean = moments_.get() + 2 * side * length_;
            parts_[side].moment = parts_[side].mean + length_;
            sides_[side].alone = {points((int)side), sizes_[side], dim_, nullptr};
            prepare_side(weights((int)side), 1.0, parts_[side], centers_.get() + 2 * side * length_,
                         sums_.get() + side * length_, mass_.get() + at, far_.get() + at, sides_[side]);
        });
        find_middle(sides_, 2, centers_.get() + length_);
        const Moments* const moments[2] = {parts_, parts_ + 1};
        return Pairs::suits(sides_, 2, moments);
    }

    void run() {
        plan_.make(0, task_.kernel, dim_, distances_between(parts_[0], parts_[1], dim_), per_rung_, true);
        const bool by_points = task_.value || task_.gradients.points || per_rung_,
                   by_samples = task_.gradients.samples || task_.gradients.weights;
        const int64_t of_points = by_points ? blocks(0) : 0, of_samples = by_samples ? blocks(1) : 0;
        const Pairs pairs(plan_[0], sides_, memory_);
        parallel_for(of_points + of_samples, threads_, [&](int64_t at, int thread) {
            at < of_points ? run_block(pairs, 0, at, thread) : run_block(pairs, 1, at - of_points, thread);
        });
        if (!per_rung_) return;
        double* sums = rungs_.get();
        add_strips(sums, of_points, 2 * count_);
        rung_gradients(plan_[0], sums, (T*)task_.gradients.bandwidths, (T*)task_.gradients.kernel_weights);
    }

  private:
    // Side 0: rows are points, with grad as their weight; side 1: rows are samples, with their weights.
    const T* points(int side) const { return (const T*)(side ? task_.samples : task_.points); }
    const T* weights(int side) const { return (const T*)(side ? task_.weights : task_.grad); }
    int shared(int side) const { return per_rung_ && side == 0 ? Pairs::any_threads : threads_; }
    int64_t blocks(int side) const { return Pairs::blocks_of_side(sizes_[side], dim_, shared(side)); }

    void run_block(const Pairs& pairs, int side, int64_t at, int thread) const {
        const int64_t size = Pairs::block_rows_of(sizes_[side], dim_, shared(side)), first = at * size;
        const int rows = (int)smaller(size, sizes_[side] - first);
        T *const grad = (T*)(side ? task_.gradients.samples : task_.gradients.points),
                 *const out = (T*)(side ? task_.gradients.weights : task_.value);
        double value[Pairs::most_rows] = {}, slopes[Pairs::most_rows] = {}, factors[Pairs::most_rows];
        for (int i = 0; i < rows; ++i) factors[i] = (double)sides_[side].mass[first + i];
        double* const rungs = per_rung_ && side == 0 ? rungs_.get() + at * 2 * count_ : nullptr;
        if (rungs) memset(rungs, 0, 2 * count_ * sizeof(double));
        ProductBlock<T> block(
            elements_.get() + thread * ProductBlock<T>::elements(Pairs::most_rows, dim_),
            grad ? doubles_.get() + thread * ProductBlock<T>::doubles(Pairs::most_rows, dim_) : nullptr,
            Pairs::most_rows, dim_);
        if (grad) block.clear_gradient(rows);
        pairs.meet({side, 1 - side, first, rows, grad != nullptr, false, 1, value, slopes, rungs, factors},
                   block, thread);
        const double shift = plan_[0].shift;
        const T* const center = sides_[side].together.center;
        for (int i = 0; i < rows; ++i) {
            if (out) out[first + i] = (T)(value[i] - plan_[0].offset * parts_[1 - side].mass);
            if (!grad) continue;
            const T* const point = points(side) + (first + i) * dim_;
            const double* const sums = block.gradient(i);
            for (int d = 0; d < dim_; ++d) {
                double sum = slopes[i] * (double)(point[d] - center[d]) - sums[d];
                if (shift != 0) sum += shift * parts_[1 - side].linear((double)point[d], d);
                grad[(first + i) * dim_ + d] = (T)(2 * factors[i] * sum);
            }
        }
    }

    const Witness& task_;
    const int dim_, count_, threads_;
    const int64_t sizes_[2];
    const bool per_rung_;
    const int64_t length_;
    const Buffer<T> elements_;
    const Buffer<double> doubles_;  // of ProductBlock
    const Buffer<T> mass_, centers_;
    const Buffer<double> sums_, moments_;
    const Buffer<bool> far_;
    const Buffer<double> rungs_;
    const BlockMemory<T>& memory_;
    const PlanMemory<T> plan_;
    ProductSide<T> sides_[2];
    Moments parts_[2];
};

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
