// The witness sum_j w_j u(p_i, s_j) and its gradients: rows of points against samples, and the mirror image.
#include "pairs.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

template <class T> class WitnessRun {
  public:
    explicit WitnessRun(const Witness& task)
        : task_(task),
          dim_(task.dim),
          count_(task.kernel.count),
          rows_(rows_per_task(dim_)),
          sizes_{task.p, task.n},
          blocks_{blocks_of(task.p, rows_), blocks_of(task.n, rows_)},
          per_rung_(task.grad_bandwidths || task.grad_kernel_weights),
          mirrored_(task.grad_samples || task.grad_weights),
          strips_(per_rung_ ? smaller<int64_t>(blocks_[0], most_strips) : blocks_[0]),
          threads_(choose_threads()),
          scratch_(threads_, 1, dim_, count_),
          coordinates_((staged(0) + staged(1)) * dim_),
          mass_(staged(0) + staged(1)),
          moments_(4 * dim_),
          rung_sums_(per_rung_ ? strips_ * 2 * count_ : 0),
          rungs_(count_),
          order_(count_),
          follows_(count_) {}

    bool run() {
        if (!scratch_ || !coordinates_ || !mass_ || !moments_ || !rung_sums_ || !rungs_ || !order_ ||
            !follows_)
            return false;
        prepare();
        if (task_.value || grad_points(0) || per_rung_)
            parallel_for(strips_, threads_, [&](int64_t strip, int thread) { run_strip(strip, thread); });
        if (mirrored_)
            parallel_for(blocks_[1], threads_,
                         [&](int64_t block, int thread) { run_block(1, block, nullptr, thread); });
        if (!per_rung_) return true;
        double* sums = rung_sums_.get();
        for (int64_t strip = 1; strip < strips_; ++strip)
            for (int s = 0; s < 2 * count_; ++s) sums[s] += sums[strip * 2 * count_ + s];
        rung_gradients(plan_, sums, (T*)task_.grad_bandwidths, (T*)task_.grad_kernel_weights);
        return true;
    }

  private:
    // Side 0: rows are points, with grad as their weight; side 1: rows are samples, with their weights.
    const T* points(int side) const { return (const T*)(side ? task_.samples : task_.points); }
    const T* weights(int side) const { return (const T*)(side ? task_.weights : task_.grad); }
    T* grad_points(int side) const { return (T*)(side ? task_.grad_samples : task_.grad_points); }
    // Rows of one side meet the other side's columns; without the mirror image the points are rows alone.
    int64_t staged(int side) const { return side || mirrored_ ? staged_size<T>(sizes_[side], 1) : 0; }

    int choose_threads() const {
        return useful_threads(task_.threads, (double)sizes_[0] * sizes_[1] * (dim_ + 4 * count_) / lanes<T>);
    }

    void prepare() {
        for (int side = 0; side < 2; ++side) {
            const int64_t place = side * staged(0);
            if (staged(side))
                columns_[side] = stage<T>(points(side), weights(side), sizes_[side], dim_,
                                          coordinates_.get() + place * dim_, mass_.get() + place);
            parts_[side].mean = moments_.get() + 2 * side * dim_;
            parts_[side].moment = parts_[side].mean + dim_;
            find_moments(points(side), weights(side), 1.0, sizes_[side], dim_,
                         side ? parts_[0].mean : nullptr, parts_[side]);
        }
        make_plan<T>(task_.kernel, dim_, farthest_distance(parts_[0], parts_[1], dim_), rungs_.get(),
                     order_.get(), follows_.get(), plan_);
    }

    // Every strips_-th block of points, one after the other: they share their sums per rung.
    void run_strip(int64_t strip, int thread) {
        double* rung_sums = per_rung_ ? rung_sums_.get() + strip * 2 * count_ : nullptr;
        if (rung_sums) memset(rung_sums, 0, 2 * count_ * sizeof(double));
        for (int64_t block = strip; block < blocks_[0]; block += strips_)
            run_block(0, block, rung_sums, thread);
    }

    void run_block(int side, int64_t block, double* rung_sums, int thread) {
        const int64_t first = block * rows_;
        const int rows = (int)smaller<int64_t>(rows_, sizes_[side] - first);
        const RowSums<T> sums = scratch_.of(thread, 0);
        T* grad = grad_points(side);
        double factors[most_rows] = {};
        for (int i = 0; i < rows; ++i) factors[i] = weights(side) ? (double)weights(side)[first + i] : 1;
        sum_rows(plan_, points(side) + first * dim_, rows, columns_[1 - side], grad != nullptr, factors,
                 rung_sums, sums);

        T* value = (T*)(side ? task_.grad_weights : task_.value);
        if (value)
            for (int i = 0; i < rows; ++i) value[first + i] = (T)sums.value[i];
        if (!grad) return;
        const Moments& other = parts_[1 - side];
        for (int i = 0; i < rows; ++i)
            for (int d = 0; d < dim_; ++d) {
                const int64_t at = (first + i) * dim_ + d;
                double sum = sums.gradient[(int64_t)i * dim_ + d];
                if (plan_.shift != 0)
                    sum += plan_.shift *
                           (other.mass * ((double)points(side)[at] - parts_[0].mean[d]) - other.moment[d]);
                grad[at] = (T)(2 * factors[i] * sum);
            }
    }

    const Witness& task_;
    const int dim_, count_, rows_;
    const int64_t sizes_[2], blocks_[2];
    const bool per_rung_, mirrored_;
    const int64_t strips_;
    const int threads_;
    const RowMemory<T> scratch_;
    const Buffer<T> coordinates_, mass_;
    const Buffer<double> moments_, rung_sums_;
    const Buffer<Rung<T>> rungs_;
    const Buffer<int> order_;
    const Buffer<bool> follows_;
    Columns<T> columns_[2];
    Moments parts_[2];
    Plan<T> plan_;
};

}  // namespace

bool witness(const Witness& task) {
    return task.is_double ? WitnessRun<double>(task).run() : WitnessRun<float>(task).run();
}

}  // namespace fastmmd::FASTMMD_ISA
