// Parzen windows: running minimum and sums of exponentials over rows of squared distances, and their
// gradients.
//
// The nearest sample is the same for every sigma, so a point's state is one minimum and, per sigma, the sum
// of exp((minimum - r) rate) with rate = 1 / (2 sigma^2). Padding has r = inf and so adds nothing.
#pragma once
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

// Makes the sums of a point relative to another minimum, not above the one before.
template <class T>
void move_minimum(T before, T nearest, int count, const double* sigmas,
                  double* sums,  // [S], `stride` apart
                  int64_t stride) {
    if (nearest < before)
        for (int s = 0; s < count; ++s) {
            double& sum = sums[s * stride];
            if (sum != 0) sum *= exp(-((double)before - (double)nearest) * rate_of(sigmas[s]));
        }
}

// Adds one row's distances, of which the smallest is not above `at_most`, to the state of its point.
template <class T>
void update_point(const T* r,  // [used], padded
                  int64_t used, T at_most, int count,
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
    const T before = *minimum, nearest = smaller(before, smaller(here, at_most));
    *minimum = nearest;
    move_minimum(before, nearest, count, sigmas, sums, stride);
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

// Minimum of every point and its share in every rung, where points are columns; the padding has no share.
template <class T> class Shares {
  public:
    explicit Shares(const Parzen& task)
        : size_(task.grad_samples ? round_up(task.m, most_columns) : 0),
          minima_(size_),
          shares_(size_ * task.count) {}
    explicit operator bool() const { return minima_ && shares_; }

    void fill(const Parzen& task, const Rung<T>* rungs) const {
        for (int64_t j = 0; j < size_; ++j) {
            minima_.get()[j] = ((const T*)task.minimum)[smaller(j, task.m - 1)];
            for (int s = 0; s < task.count; ++s) {
                const int index = rungs[s].index;
                const int64_t at = index * task.m + j;
                shares_.get()[s * size_ + j] =
                    j < task.m ? (T)share_of(((const T*)task.grad)[at], task.sums[at], task.sigmas[index])
                               : T(0);
            }
        }
    }
    const T* minima(int64_t first) const { return minima_.get() + first; }
    const T* shares(int64_t first) const { return shares_.get() + first; }
    int64_t stride() const { return size_; }  // from one rung to the next

  private:
    static constexpr int64_t most_columns = tile_columns;  // of a tile
    const int64_t size_;
    const Buffer<T> minima_, shares_;
};

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
