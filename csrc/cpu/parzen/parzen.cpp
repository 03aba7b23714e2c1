// Parzen windows: running minimum and sums of exponentials over tiles of squared distances, and their
// gradients.
//
// The nearest sample is the same for every sigma, so a point's state is one minimum and, per sigma, the sum
// of exp((minimum - r) rate) with rate = 1 / (2 sigma^2). Padding has r = inf and so adds nothing.
#include "../../common/ladder.hpp"
#include "../calls.hpp"
#include "../math.hpp"
#include "../pairs.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

constexpr int vectors_at_once = 4;  // independent exponentials, which hide each other's latency
// Fourth powers in a row that start from one exponential. Each makes relative errors four times as large:
// after two they are still as small as those that the distances bring.
constexpr int most_powers = 2;
// Exponentials of 2^-vanishing and below count as this one, a normal number: others are slow.
template <class T> constexpr int vanishing = sizeof(T) == 4 ? 124 : 1000;

// One sigma; those in a row that halve from one to the next are powers of one exponential.
template <class T> struct Rung {
    int index;     // of the sigma
    bool follows;  // the rung before, whose sigma is twice this one
    T scale;       // log2(e) / (2 sigma^2)
    T limit;       // of excesses, where the exponential vanishes
};

inline double rate_of(double sigma) { return 0.5 / (sigma * sigma); }

template <class T> bool plan_rungs(const double* sigmas, int count,
                                   Rung<T>* rungs) {  // [count]
    const Buffer<int> order(count);
    const Buffer<bool> follows(count);
    if (!order || !follows) return false;
    plan_ladder(sigmas, count, order.get(), follows.get());
    for (int s = 0, powers = 0; s < count; ++s) {
        const double scale = 1.4426950408889634 * rate_of(sigmas[order.get()[s]]);
        powers = follows.get()[s] && powers < most_powers ? powers + 1 : 0;
        rungs[s] = {order.get()[s], powers > 0, (T)scale, (T)(-vanishing<T> / scale)};
    }
    return true;
}

// The rungs to which excesses of `largest` and below, or NaN, add something.
template <class T> int choose_rungs(const Rung<T>* rungs, int count, T largest,
                                    Rung<T>* chosen) {  // [count]
    int kept = 0;
    bool keep = true;
    for (int s = 0; s < count; ++s) {
        if (!rungs[s].follows) keep = !(largest < rungs[s].limit);
        if (keep) chosen[kept++] = rungs[s];
    }
    return kept;
}

// k = exp(excess rate); comes in with that of the rung before.
template <class T, int Count>
FASTMMD_INLINE void climb(const Rung<T>& rung, const Vector<T>* excess, Vector<T>* k) {  // [Count] each
    for (int v = 0; v < Count; ++v) {
        if (rung.follows) {
            constexpr T least = sizeof(T) == 4 ? T(0x1p-31) : T(0x1p-250);  // its fourth power vanishes
            const Vector<T> base = at_least<T>(k[v], least), square = base * base;
            k[v] = square * square;
        } else {
            k[v] = near_exp2<T>(at_least<T>(excess[v], rung.limit), rung.scale);
        }
    }
}

template <class T>
void pad(T* r,  // [round_up(used, lanes)]
         int64_t used) {
    for (int64_t j = used; j < round_up(used, lanes<T>); ++j) r[j] = (T)INFINITY;
}

template <class T, int Count>
FASTMMD_INLINE void add_exponentials(const T* r,  // [Count * lanes]
                                     T nearest, const Rung<T>* rungs, int count,
                                     T* totals) {  // [count][lanes]
    Vector<T> excess[Count], k[Count] = {};
    for (int v = 0; v < Count; ++v) excess[v] = broadcast(nearest) - load(r + v * lanes<T>);
    for (int s = 0; s < count; ++s) {
        climb<T, Count>(rungs[s], excess, k);
        Vector<T> total = k[0];
        for (int v = 1; v < Count; ++v) total += k[v];
        store(totals + s * lanes<T>, load(totals + s * lanes<T>) + total);
    }
}

// What one thread holds besides.
template <class T> struct Scratch {
    Rung<T>* chosen;  // [S]
    T* totals;        // [S][lanes]
};

// Adds one row's distances to the state of its point.
template <class T>
void update_point(const T* r,  // [used], padded
                  int64_t used, int count,
                  const double* sigmas,  // [S]
                  const Rung<T>* rungs,  // [S]
                  T* minimum,            // [1]
                  double* sums,          // [S], `stride` apart
                  int64_t stride, const Scratch<T>& scratch) {
    Vector<T> least = broadcast<T>((T)INFINITY);
    Bits<T> missing = {};
    for (int64_t j = 0; j < used; j += lanes<T>) {
        const Vector<T> value = load(r + j);
        least = value < least ? value : least;  // passes over NaN, which reaches the sums below
        missing |= value != value;
    }
    T here = least[0];
    for (int lane = 1; lane < lanes<T>; ++lane) here = smaller(here, least[lane]);
    const T before = *minimum, nearest = smaller(before, here);
    *minimum = nearest;
    if (nearest < before)
        for (int s = 0; s < count; ++s) {
            double& sum = sums[s * stride];
            if (sum != 0) sum *= exp(-((double)before - (double)nearest) * rate_of(sigmas[s]));
        }
    const T largest = any<T>(missing) ? (T)NAN : nearest - here;
    const int kept = choose_rungs(rungs, count, largest, scratch.chosen);
    for (int k = 0; k < kept * lanes<T>; ++k) scratch.totals[k] = 0;
    constexpr int step = vectors_at_once * lanes<T>;
    int64_t j = 0;
    for (; j + step <= used; j += step)
        add_exponentials<T, vectors_at_once>(r + j, nearest, scratch.chosen, kept, scratch.totals);
    for (; j < used; j += lanes<T>)
        add_exponentials<T, 1>(r + j, nearest, scratch.chosen, kept, scratch.totals);
    for (int s = 0; s < kept; ++s)
        sums[scratch.chosen[s].index * stride] += sum_lanes<T>(load(scratch.totals + s * lanes<T>));
}

// Replaces distances by c_j = sum_s share_s exp((minimum_j - r_j) rate_s), share = grad / (sums sigma^2);
// vectors of minima and shares are `step` apart.
template <class T, int Count>
FASTMMD_INLINE void coefficients(T* r,              // [Count * lanes]
                                 const T* minimum,  // [Count * lanes] or, with step = 0, [lanes]
                                 const Rung<T>* rungs, int count,
                                 const T* shares,  // as minimum for each rung, `stride` apart
                                 int64_t stride, int step) {
    Vector<T> excess[Count], k[Count] = {}, c[Count] = {};
    for (int v = 0; v < Count; ++v) excess[v] = load(minimum + v * step) - load(r + v * lanes<T>);
    for (int s = 0; s < count; ++s) {
        climb<T, Count>(rungs[s], excess, k);
        for (int v = 0; v < Count; ++v) c[v] += k[v] * load(shares + s * stride + v * step);
    }
    for (int v = 0; v < Count; ++v) store(r + v * lanes<T>, c[v]);
}

template <class T>
void all_coefficients(T* r,  // [used], padded
                      int64_t used, const T* minimum, const Rung<T>* rungs, int count, const T* shares,
                      int64_t stride, bool per_column) {
    const int step = per_column ? lanes<T> : 0;
    constexpr int at_once = vectors_at_once;
    int64_t j = 0;
    for (; j + at_once * lanes<T> <= used; j += at_once * lanes<T>)
        coefficients<T, at_once>(r + j, minimum + (per_column ? j : 0), rungs, count,
                                 shares + (per_column ? j : 0), stride, step);
    for (; j < used; j += lanes<T>)
        coefficients<T, 1>(r + j, minimum + (per_column ? j : 0), rungs, count, shares + (per_column ? j : 0),
                           stride, step);
}

inline double share_of(double grad, double sum, double sigma) { return grad / sum * 2 * rate_of(sigma); }

// The coefficients of one row, whose point has one minimum and one share per sigma.
template <class T>
void point_coefficients(T* r,  // [used], padded
                        int64_t used, int count,
                        const double* sigmas,  // [S]
                        const Rung<T>* rungs,  // [S]
                        T minimum,
                        const double* sums,  // [S], `stride` apart
                        const T* grad,       // [S], `stride` apart
                        int64_t stride, const Scratch<T>& scratch) {
    for (int s = 0; s < count; ++s) {
        const int at = rungs[s].index;
        const double share = share_of(grad[at * stride], sums[at * stride], sigmas[at]);
        store(scratch.totals + s * lanes<T>, broadcast((T)share));
    }
    alignas(vector_bytes) T minima[lanes<T>];
    store(minima, broadcast(minimum));
    all_coefficients(r, used, minima, rungs, count, scratch.totals, lanes<T>, false);
}

// The plan of a call and the scratch of its threads.
template <class T> class Workspace {
  public:
    Workspace(const double* sigmas, int count, int threads)
        : count_(count),
          rungs_((int64_t)(1 + threads) * count),
          totals_((int64_t)threads * count * lanes<T>),
          planned_(rungs_ && totals_ && plan_rungs(sigmas, count, rungs_.get())) {}

    explicit operator bool() const { return planned_; }
    const Rung<T>* rungs() const { return rungs_.get(); }
    Scratch<T> scratch(int thread) const {
        return {rungs_.get() + (int64_t)(1 + thread) * count_,
                totals_.get() + (int64_t)thread * count_ * lanes<T>};
    }

  private:
    const int count_;
    const Buffer<Rung<T>> rungs_;
    const Buffer<T> totals_;
    const bool planned_;
};

template <class T> bool run(const ParzenTile& task) {
    const int threads =
        useful_threads(task.threads, (double)task.rows * task.columns * (3 + 10 * task.count) / lanes<T>);
    constexpr int64_t block = 16;
    const T* column_norms = (const T*)task.column_norms;
    const Workspace<T> space(task.sigmas, task.count, threads);
    if (!space) return false;
    parallel_for(blocks_of(task.rows, block), threads, [&](int64_t at, int thread) {
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
                point_coefficients<T>(r, task.columns, task.count, task.sigmas, space.rungs(), *minimum, sums,
                                      (const T*)task.grad + i, task.points, space.scratch(thread));
            else
                update_point<T>(r, task.columns, task.count, task.sigmas, space.rungs(), minimum, sums,
                                task.points, space.scratch(thread));
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
          sums_((int64_t)threads_ * dim_),
          space_(task.sigmas, task.count, threads_) {}

    bool run() {
        if (!samples_ || !points_ || !minima_ || !shares_ || !point_ || !r_ || !sums_ || !space_)
            return false;
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
                update_point<T>(r, used, task_.count, task_.sigmas, space_.rungs(), minimum, task_.sums + i,
                                task_.m, space_.scratch(thread));
                continue;
            }
            point_coefficients<T>(r, used, task_.count, task_.sigmas, space_.rungs(), *minimum,
                                  task_.sums + i, (const T*)task_.grad + i, task_.m, space_.scratch(thread));
            loops_.add_differences(point, samples.tile(t), r, dim_, samples.width, samples.used(t), sum);
        }
        if (!task_.grad_points) return;
        for (int d = 0; d < dim_; ++d) ((T*)task_.grad_points)[i * dim_ + d] = (T)-sum[d];
    }

    // Minimum of every point and its share in every rung, as columns; the padding has no share.
    void stage_shares() const {
        const int64_t size = staged_size<T>(task_.m, 1);
        for (int64_t j = 0; j < size; ++j) {
            minima_.get()[j] = ((const T*)task_.minimum)[smaller(j, task_.m - 1)];
            for (int s = 0; s < task_.count; ++s) {
                const int index = space_.rungs()[s].index;
                const int64_t at = index * task_.m + j;
                shares_.get()[s * size + j] =
                    j < task_.m ? (T)share_of(((const T*)task_.grad)[at], task_.sums[at], task_.sigmas[index])
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
            all_coefficients(r, points.used(t), minima_.get() + first, space_.rungs(), task_.count,
                             shares_.get() + first, size, true);
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
    const Workspace<T> space_;
};

}  // namespace

bool parzen_tile(const ParzenTile& task) { return task.is_double ? run<double>(task) : run<float>(task); }

bool parzen_direct(const ParzenDirect& task) {
    return task.is_double ? DirectRun<double>(task).run() : DirectRun<float>(task).run();
}

}  // namespace fastmmd::FASTMMD_ISA
