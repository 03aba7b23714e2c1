// The witness sum_j w_j u(p_i, s_j) and its gradients: rows of points against samples, and the mirror image.
#include "witness_products.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

template <class T> class WitnessRun {
  public:
    explicit WitnessRun(const Witness& task)
        : task_(task),
          dim_(task.dim),
          count_(task.kernel.count),
          sizes_{task.p, task.n},
          blocks_{blocks_of(task.p, block_rows), blocks_of(task.n, block_rows)},
          per_rung_(task.gradients.bandwidths || task.gradients.kernel_weights),
          strips_(per_rung_ ? smaller<int64_t>(blocks_[0], most_strips) : blocks_[0]),
          threads_(choose_threads()),
          memory_(threads_, dim_, count_),
          coordinates_((staged(0) + staged(1)) * dim_),
          mass_(staged(0) + staged(1)),
          moments_(4 * dim_),
          rung_sums_(per_rung_ ? strips_ * 2 * count_ : 0),
          plan_(1, count_) {}

    bool run() {
        if (!memory_ || !coordinates_ || !mass_ || !moments_ || !rung_sums_ || !plan_) return false;
        prepare();
        if (task_.value || grad_points(0) || per_rung_)
            parallel_for(strips_, threads_, [&](int64_t strip, int thread) { run_strip(strip, thread); });
        if (task_.gradients.samples || task_.gradients.weights)  // the mirror image
            parallel_for(blocks_[1], threads_,
                         [&](int64_t block, int thread) { run_block(1, block, nullptr, thread); });
        if (!per_rung_) return true;
        double* sums = rung_sums_.get();
        add_strips(sums, strips_, 2 * count_);
        rung_gradients(plan_[0], sums, (T*)task_.gradients.bandwidths, (T*)task_.gradients.kernel_weights);
        return true;
    }

  private:
    // Side 0: rows are points, with grad as their weight; side 1: rows are samples, with their weights.
    const T* points(int side) const { return (const T*)(side ? task_.samples : task_.points); }
    const T* weights(int side) const { return (const T*)(side ? task_.weights : task_.grad); }
    T* grad_points(int side) const { return (T*)(side ? task_.gradients.samples : task_.gradients.points); }
    int64_t staged(int side) const { return staged_size<T>(sizes_[side], 1); }

    int choose_threads() const {
        return useful_threads(task_.threads, (double)sizes_[0] * sizes_[1] * (dim_ + 4 * count_) / lanes<T>);
    }

    void prepare() {
        for (int side = 0; side < 2; ++side) {
            const int64_t place = side * staged(0);
            columns_[side] = stage<T>(points(side), weights(side), sizes_[side], dim_,
                                      coordinates_.get() + place * dim_, mass_.get() + place);
            parts_[side].mean = moments_.get() + 2 * side * dim_;
            parts_[side].moment = parts_[side].mean + dim_;
            find_moments(columns_[side], 1.0, parts_[side]);
        }
        plan_.make(0, task_.kernel, dim_, distances_between(parts_[0], parts_[1], dim_), per_rung_, true);
    }

    // Every strips_-th block of points, one after the other: they share their sums per rung.
    void run_strip(int64_t strip, int thread) {
        double* rung_sums = per_rung_ ? rung_sums_.get() + strip * 2 * count_ : nullptr;
        if (rung_sums) memset(rung_sums, 0, 2 * count_ * sizeof(double));
        for (int64_t block = strip; block < blocks_[0]; block += strips_)
            run_block(0, block, rung_sums, thread);
    }

    void run_block(int side, int64_t block, double* rung_sums, int thread) {
        const int64_t first = block * block_rows;
        const Columns<T>& columns = columns_[1 - side];
        T *grad = grad_points(side), *value = (T*)(side ? task_.gradients.weights : task_.value);
        Block<T> rows = memory_.of(thread);
        rows.begin(points(side) + first * dim_, weights(side) ? weights(side) + first : nullptr,
                   (int)smaller<int64_t>(block_rows, sizes_[side] - first), dim_);
        for (int i = 0; i < rows.rows; ++i) rows.factors[i] = (double)rows.mass[i];
        for (int64_t t = 0; t < columns.tiles(); ++t)
            sum_part(plan_[0], rows, Part<T>(columns, t, 0, columns.used(t)), dim_, columns.width,
                     {1, grad != nullptr, nullptr, rung_sums});

        const double shift = plan_[0].shift;
        for (int i = 0; i < rows.rows; ++i) {
            if (value) value[first + i] = (T)(rows.value[i] - plan_[0].offset * parts_[1 - side].mass);
            for (int d = 0; grad && d < dim_; ++d) {
                const int64_t at = (first + i) * dim_ + d;
                double sum = rows.row_gradient(i, d, dim_);
                if (shift != 0) sum += shift * parts_[1 - side].linear((double)points(side)[at], d);
                grad[at] = (T)(2 * rows.factors[i] * sum);
            }
        }
    }

    const Witness& task_;
    const int dim_, count_;
    const int64_t sizes_[2], blocks_[2];
    const bool per_rung_;
    const int64_t strips_;
    const int threads_;
    const BlockMemory<T> memory_;
    const Buffer<T> coordinates_, mass_;
    const Buffer<double> moments_, rung_sums_;
    const PlanMemory<T> plan_;
    Columns<T> columns_[2];
    Moments parts_[2];
};

template <class T> bool run(const Witness& task) {
    if (task.products) {
        const int threads = useful_threads(
            task.threads, (double)task.p * task.n * (task.dim + 4 * task.kernel.count) / lanes<T>);
        const BlockMemory<T> blocks(threads, 0, task.kernel.count);
        WitnessProducts<T> products(task, threads, blocks);
        if (!blocks || !products) return false;
        if (products.prepare()) {
            products.run();
            return true;
        }
    }
    return WitnessRun<T>(task).run();
}

}  // namespace

bool witness(const Witness& task) { return task.is_double ? run<double>(task) : run<float>(task); }

}  // namespace fastmmd::FASTMMD_ISA
