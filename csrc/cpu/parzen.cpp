// Parzen windows: running minimum and sums of exponentials over tiles of squared distances, and their
// gradients.
//
// The nearest sample is the same for every sigma, so a point's state is one minimum and, per sigma, the sum
// of exp((minimum - r) rate) with rate = 1 / (2 sigma^2). Padding has r = inf and so adds nothing.
#include "math.hpp"
#include "operations.hpp"
#include "tiles.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

inline double rate_of(double sigma) { return 0.5 / (sigma * sigma); }

template <class T>
void pad(T* r,  // [round_up(used, lanes)]
         int64_t used) {
    for (int64_t j = used; j < round_up(used, lanes<T>); ++j) r[j] = (T)INFINITY;
}

// Adds one row's distances to the state of its point.
template <class T>
void update_point(const T* r,  // [used], padded
                  int64_t used, int count,
                  const double* sigmas,  // [S]
                  T* minimum,            // [1]
                  double* sums,          // [S], `stride` apart
                  int64_t stride) {
    Vector<T> least = broadcast<T>((T)INFINITY);
    for (int64_t j = 0; j < used; j += lanes<T>) {
        const Vector<T> value = load(r + j);
        least = value < least ? value : least;  // passes over NaN, which reaches the sums below
    }
    const T before = *minimum;
    T nearest = before;
    for (int lane = 0; lane < lanes<T>; ++lane) nearest = least[lane] < nearest ? least[lane] : nearest;
    *minimum = nearest;
    for (int s = 0; s < count; ++s) {
        const double rate = rate_of(sigmas[s]);
        double& sum = sums[s * stride];
        if (nearest < before) sum = sum == 0 ? 0 : sum * exp(-((double)before - (double)nearest) * rate);
        Vector<T> total = {};
        for (int64_t j = 0; j < used; j += lanes<T>)
            total += exp_of<T>((broadcast(nearest) - load(r + j)) * (T)rate);
        sum += sum_lanes<T>(total);
    }
}

// Replaces one row's distances by c_j = sum_s share_s exp((minimum - r_j) rate_s), share = grad / (sums
// sigma^2).
template <class T>
void point_coefficients(T* r,  // [used], padded
                        int64_t used, int count,
                        const double* sigmas,  // [S]
                        T minimum,
                        const double* sums,  // [S], `stride` apart
                        const T* grad,       // [S], `stride` apart
                        int64_t stride) {
    for (int64_t j = 0; j < used; j += lanes<T>) {
        const Vector<T> excess = broadcast(minimum) - load(r + j);
        Vector<T> c = {};
        for (int s = 0; s < count; ++s) {
            const double rate = rate_of(sigmas[s]),
                         share = (double)grad[s * stride] / sums[s * stride] * 2 * rate;
            c += exp_of<T>(excess * (T)rate) * (T)share;
        }
        store(r + j, c);
    }
}

template <class T> bool run(const ParzenTile& task) {
    const int threads =
        useful_threads(task.threads, (double)task.rows * task.columns * (3 + 10 * task.count) / lanes<T>);
    constexpr int64_t block = 16;
    const T* column_norms = (const T*)task.column_norms;
    parallel_for(blocks_of(task.rows, block), threads, [&](int64_t at, int) {
        for (int64_t i = at * block; i < smaller<int64_t>((at + 1) * block, task.rows); ++i) {
            T* r = (T*)task.products + i * task.stride;
            const Vector<T> norm = broadcast(((const T*)task.row_norms)[i]);
            for (int64_t j = 0; j < task.columns; j += lanes<T>) {
                const Vector<T> distance = (norm + load(column_norms + j)) - load(r + j) * T(2);
                store(r + j, at_most<T>(at_least<T>(distance, T(0)), Format<T>::largest));
            }
            pad(r, task.columns);
            T* minimum = (T*)task.minimum + i;
            double* sums = task.sums + i;
            if (task.grad)
                point_coefficients<T>(r, task.columns, task.count, task.sigmas, *minimum, sums,
                                      (const T*)task.grad + i, task.points);
            else
                update_point<T>(r, task.columns, task.count, task.sigmas, minimum, sums, task.points);
        }
    });
    return true;
}

template <class T> class DirectRun {
  public:
    explicit DirectRun(const ParzenDirect& task)
        : task_(task),
          dim_(task.dim),
          loops_(pair_loops<T>(dim_)),
          threads_(choose_threads()),
          samples_(staged_size<T>(task.n, dim_)),
          points_(task.grad_samples ? staged_size<T>(task.m, dim_) : 0),
          minima_(task.grad_samples ? staged_size<T>(task.m, 1) : 0),
          shares_(task.grad_samples ? staged_size<T>(task.m, 1) * task.count : 0),
          point_((int64_t)threads_ * dim_),
          r_((int64_t)threads_ * tile_columns),
          sums_((int64_t)threads_ * dim_) {}

    bool run() {
        if (!samples_ || !points_ || !minima_ || !shares_ || !point_ || !r_ || !sums_) return false;
        if (!task_.grad || task_.grad_points) {
            const Columns<T> samples =
                stage<T>((const T*)task_.samples, nullptr, task_.n, dim_, samples_.get(), nullptr);
            parallel_for(blocks_of(task_.m, block), threads_, [&](int64_t at, int thread) {
                for (int64_t i = at * block; i < smaller<int64_t>((at + 1) * block, task_.m); ++i)
                    run_point(samples, i, thread);
            });
        }
        if (!task_.grad_samples) return true;
        stage_shares();
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
        loops_.squared_distances(point, columns.tile(t), dim_, columns.width, columns.used(t), r);
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
                update_point<T>(r, used, task_.count, task_.sigmas, minimum, task_.sums + i, task_.m);
                continue;
            }
            point_coefficients<T>(r, used, task_.count, task_.sigmas, *minimum, task_.sums + i,
                                  (const T*)task_.grad + i, task_.m);
            loops_.add_differences(point, samples.tile(t), r, dim_, samples.width, samples.used(t), sum);
        }
        if (!task_.grad_points) return;
        for (int d = 0; d < dim_; ++d) ((T*)task_.grad_points)[i * dim_ + d] = (T)-sum[d];
    }

    // Minimum and shares of every point, as columns; the padding has no share.
    void stage_shares() const {
        const int64_t size = staged_size<T>(task_.m, 1);
        for (int64_t j = 0; j < size; ++j) {
            minima_.get()[j] = ((const T*)task_.minimum)[smaller(j, task_.m - 1)];
            for (int s = 0; s < task_.count; ++s) {
                const int64_t at = s * task_.m + j;
                shares_.get()[s * size + j] = j < task_.m ? (T)((double)((const T*)task_.grad)[at] /
                                                                task_.sums[at] * 2 * rate_of(task_.sigmas[s]))
                                                          : T(0);
            }
        }
    }

    void run_sample(const Columns<T>& points, int64_t i, int thread) const {
        const int64_t size = staged_size<T>(task_.m, 1);
        const T* sample = row(task_.samples, i, thread);
        T* r = r_.get() + (int64_t)thread * tile_columns;
        double* sum = sums_.get() + (int64_t)thread * dim_;
        for (int d = 0; d < dim_; ++d) sum[d] = 0;
        for (int64_t t = 0; t < points.tiles(); ++t) {
            const int64_t first = t * points.width;
            distances(sample, points, t, r);
            for (int j = 0; j < points.used(t); j += lanes<T>) {
                const Vector<T> excess = load(minima_.get() + first + j) - load(r + j);
                Vector<T> c = {};
                for (int s = 0; s < task_.count; ++s)
                    c += exp_of<T>(excess * (T)rate_of(task_.sigmas[s])) *
                         load(shares_.get() + s * size + first + j);
                store(r + j, c);
            }
            loops_.add_differences(sample, points.tile(t), r, dim_, points.width, points.used(t), sum);
        }
        for (int d = 0; d < dim_; ++d) ((T*)task_.grad_samples)[i * dim_ + d] = (T)-sum[d];
    }

    const ParzenDirect& task_;
    const int dim_;
    const PairLoops<T> loops_;
    const int threads_;
    const Buffer<T> samples_, points_, minima_, shares_, point_, r_;
    const Buffer<double> sums_;
};

}  // namespace

bool parzen_tile(const ParzenTile& task) { return task.is_double ? run<double>(task) : run<float>(task); }

bool parzen_direct(const ParzenDirect& task) {
    return task.is_double ? DirectRun<double>(task).run() : DirectRun<float>(task).run();
}

}  // namespace fastmmd::FASTMMD_ISA
