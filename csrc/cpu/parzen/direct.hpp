// Parzen windows of few dimensions: distances by differences.
#pragma once
#include "exponentials.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

template <class T> class DirectRun {
  public:
    explicit DirectRun(const Parzen& task)
        : task_(task),
          dim_(task.dim),
          loops_(pair_loops<T>(dim_)),
          threads_(choose_threads()),
          samples_(staged_size<T>(task.n, dim_)),
          points_(task.grad_samples ? staged_size<T>(task.m, dim_) : 0),
          shares_(task),
          point_((int64_t)threads_ * dim_),
          r_((int64_t)threads_ * tile_columns),
          sums_((int64_t)threads_ * dim_),
          space_(task.sigmas, task.count, threads_) {}

    bool run() {
        if (!samples_ || !points_ || !shares_ || !point_ || !r_ || !sums_ || !space_) return false;
        if (!task_.grad || task_.grad_points) {
            const Columns<T> samples =
                stage<T>((const T*)task_.samples, nullptr, task_.n, dim_, samples_.get(), nullptr);
            parallel_for(blocks_of(task_.m, block), threads_, [&](int64_t at, int thread) {
                for (int64_t i = at * block; i < smaller<int64_t>((at + 1) * block, task_.m); ++i)
                    run_point(samples, i, thread);
            });
        }
        if (!task_.grad_samples) return true;
        shares_.fill(task_, space_.rungs());
        const Columns<T> points =
            stage<T>((const T*)task_.points, nullptr, task_.m, dim_, points_.get(), nullptr);
        parallel_for(blocks_of(task_.n, block), threads_, [&](int64_t at, int thread) {
            for (int64_t i = at * block; i < smaller<int64_t>((at + 1) * block, task_.n); ++i)
                run_sample(points, i, thread);
        });
        return true;
    }

  private:
    static constexpr int64_t block = 16;

    int choose_threads() const {
        return useful_threads(task_.threads,
                              (double)task_.m * task_.n * (2 * dim_ + 10 * task_.count) / lanes<T>);
    }

    // The squared distances of one row to tile t, padded; returns how many columns it has.
    int64_t distances(const T* point, const Columns<T>& columns, int64_t t, T* r) const {
        loops_.squared_distances(point, 1, columns.tile(t), dim_, columns.width, columns.used(t), r);
        for (int j = 0; j < columns.used(t); j += lanes<T>)
            store(r + j, at_most<T>(load(r + j), Format<T>::largest));
        const int64_t used = smaller<int64_t>(columns.width, columns.count - t * columns.width);
        pad(r, used);
        return used;
    }

    // Row i without infinities, in memory of this thread.
    const T* row(const void* rows, int64_t i, int thread) const {
        T* point = point_.get() + (int64_t)thread * dim_;
        for (int d = 0; d < dim_; ++d) point[d] = finite_or_nan(((const T*)rows)[i * dim_ + d]);
        return point;
    }

    void run_point(const Columns<T>& samples, int64_t i, int thread) const {
        const T* point = row(task_.points, i, thread);
        T* r = r_.get() + (int64_t)thread * tile_columns;
        double* sum = sums_.get() + (int64_t)thread * dim_;
        T* minimum = (T*)task_.minimum + i;
        for (int d = 0; d < dim_; ++d) sum[d] = 0;
        for (int64_t t = 0; t < samples.tiles(); ++t) {
            const int64_t used = distances(point, samples, t, r);
            if (!task_.grad) {
                update_point<T>(r, used, (T)INFINITY, task_.count, task_.sigmas, space_.rungs(), minimum,
                                task_.sums + i, task_.m, space_.scratch(thread));
                continue;
            }
            point_coefficients<T>(r, used, task_.count, task_.sigmas, space_.rungs(), *minimum,
                                  task_.sums + i, (const T*)task_.grad + i, task_.m, space_.scratch(thread));
            loops_.add_differences(point, samples.tile(t), r, dim_, samples.width, samples.used(t), sum);
        }
        if (!task_.grad_points) return;
        for (int d = 0; d < dim_; ++d) ((T*)task_.grad_points)[i * dim_ + d] = (T)-sum[d];
    }

    void run_sample(const Columns<T>& points, int64_t i, int thread) const {
        const T* sample = row(task_.samples, i, thread);
        T* r = r_.get() + (int64_t)thread * tile_columns;
        double* sum = sums_.get() + (int64_t)thread * dim_;
        for (int d = 0; d < dim_; ++d) sum[d] = 0;
        for (int64_t t = 0; t < points.tiles(); ++t) {
            const int64_t first = t * points.width;
            distances(sample, points, t, r);
            all_coefficients(r, points.used(t), shares_.minima(first), space_.rungs(), task_.count,
                             shares_.shares(first), shares_.stride(), true);
            loops_.add_differences(sample, points.tile(t), r, dim_, points.width, points.used(t), sum);
        }
        for (int d = 0; d < dim_; ++d) ((T*)task_.grad_samples)[i * dim_ + d] = (T)-sum[d];
    }

    const Parzen& task_;
    const int dim_;
    const PairLoops<T> loops_;
    const int threads_;
    const Buffer<T> samples_, points_;
    const Shares<T> shares_;
    const Buffer<T> point_, r_;
    const Buffer<double> sums_;
    const Workspace<T> space_;
};

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
