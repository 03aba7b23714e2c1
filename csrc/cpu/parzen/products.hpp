// Parzen windows of many dimensions: distances |p|^2 + |q|^2 - 2 p.q by matrix products of points that come
// about their center.
//
// A narrow sigma shows what these round. Where that is over `tolerance` nats, pairs near enough to the
// minimum to matter ("close") are taken from the points themselves in double, exponentials included.
#pragma once
#include "../products.hpp"
#include "exponentials.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

constexpr double tolerance = 0.0002;
// A pair whose exponent is so far below the largest is nothing beside it.
constexpr double negligible = 20;
// Of |p|^2 + |q|^2, by which a product rounds.
template <class T> constexpr double product_error = sizeof(T) == 4 ? 0x1p-23 : 0x1p-52;
// Rows of a task at most; and tasks worth having: with fewer blocks of rows columns are shared out as well,
// in strips.
constexpr int64_t most_block_rows = 192, enough_tasks = 8;

// Of |p|^2 + |q|^2: beyond, a minimum is rounded by so many nats in T that sums relative to it overflow.
template <class T> constexpr double most_exponent = sizeof(T) == 4 ? 0x1p26 : 0x1p42;

// The close pairs of one row with a tile.
struct Close {
    int count = 0;
    int columns[product_columns];
    double r[product_columns];
};

template <class T> class ProductRun {
  public:
    explicit ProductRun(const Parzen& task)
        : task_(task),
          dim_(task.dim),
          threads_(useful_threads(task.threads,
                                  (double)task.m * task.n * (task.dim + 10 * task.count) / lanes<T>)),
          most_rows_(larger(block_rows_of(task.m), task.grad_samples ? block_rows_of(task.n) : 1)),
          elements_(round_up(ProductBlock<T>::elements(most_rows_, dim_), 64)),
          doubles_(task.grad ? round_up(ProductBlock<T>::doubles(most_rows_, dim_), 64) : 0),
          center_(round_up(dim_, lanes<T>)),
          blocks_(threads_ * elements_),
          gradients_(threads_ * doubles_),
          partial_minimum_(state_size()),
          partial_sums_(state_size() * (task.grad ? 0 : task.count)),
          partial_gradients_(gradient_size()),
          shares_(task),
          space_(task.sigmas, task.count, threads_) {
        for (int s = 0; s < task.count; ++s) largest_rate_ = larger(largest_rate_, rate_of(task.sigmas[s]));
    }

    bool run() {
        if (!center_ || !blocks_ || !gradients_ || !partial_minimum_ || !partial_sums_ ||
            !partial_gradients_ || !shares_ || !space_)
            return false;
        for (int64_t d = 0; d < round_up(dim_, lanes<T>); ++d) center_.get()[d] = 0;
        sides_[0] = {(const T*)task_.points, task_.m, dim_, center_.get()};
        sides_[1] = {(const T*)task_.samples, task_.n, dim_, center_.get()};
        if (!task_.grad || task_.grad_points) add_up(0);
        if (task_.grad_samples) {
            shares_.fill(task_, space_.rungs());
            add_up(1);
        }
        return true;
    }

  private:
    // By sizes alone.
    static int64_t block_rows_of(int64_t rows) {
        return round_up(blocks_of(rows, larger<int64_t>(blocks_of(rows, most_block_rows), 1)), register_rows);
    }
    static int64_t strips_of(int64_t rows, int64_t columns) {
        const int64_t blocks = larger<int64_t>(blocks_of(rows, most_block_rows), 1);
        return smaller(blocks_of(columns, product_columns), blocks_of(enough_tasks, blocks));
    }
    int64_t strips(int side) const {
        return side ? strips_of(task_.n, task_.m) : strips_of(task_.m, task_.n);
    }
    // Of all strips, where there are several.
    int64_t state_size() const { return !task_.grad && strips(0) > 1 ? strips(0) * task_.m : 0; }
    int64_t gradient_size() const {
        const int64_t of_points = task_.grad_points && strips(0) > 1 ? strips(0) * task_.m : 0,
                      of_samples = task_.grad_samples && strips(1) > 1 ? strips(1) * task_.n : 0;
        return larger(of_points, of_samples) * dim_;
    }

    // All rows of a side.
    void add_up(int side) {
        const int64_t rows = sides_[side].count, block = larger<int64_t>(block_rows_of(rows), 1),
                      count = strips(side), blocks = blocks_of(rows, block);
        for (int64_t i = 0; i < state_size(); ++i) partial_minimum_.get()[i] = (T)INFINITY;
        if (state_size()) memset(partial_sums_.get(), 0, state_size() * task_.count * sizeof(double));
        parallel_for(blocks * count, threads_, [&](int64_t at, int thread) {
            run_block(side, at / count * block, at % count, count, thread);
        });
        if (count > 1) task_.grad ? add_gradients(side) : add_states();
    }

    void run_block(int side, int64_t first, int64_t strip, int64_t strips, int thread) {
        const Points<T>&own = sides_[side], &other = sides_[1 - side];
        const int rows = (int)smaller(block_rows_of(own.count), own.count - first);
        ProductBlock<T> block(blocks_.get() + thread * elements_, gradients_.get() + thread * doubles_,
                              most_rows_, dim_);
        block.begin(own, first, rows);
        double sums[most_block_rows] = {};  // of coefficients
        Close close;
        if (task_.grad) block.clear_gradient(rows);
        const int64_t tiles = blocks_of(other.count, product_columns);
        for (int64_t tile = tiles * strip / strips; tile < tiles * (strip + 1) / strips; ++tile) {
            const int64_t column = tile * product_columns;
            const int columns = (int)smaller<int64_t>(product_columns, other.count - column),
                      used = (int)round_up(columns, lanes<T>);
            block.multiply_columns(other, column, used);
            T farthest = 0;
            for (int j = 0; j < columns; ++j) farthest = larger(farthest, block.column_norms()[j]);
            for (int i = 0; i < rows; ++i) {
                T* const r = block.row(i);
                const T before = side ? T(0) : *minimum_of(first + i, strip);
                distances(side, first + i, column, columns, block.row_norm(i), block.column_norms(), farthest,
                          before, r, close);
                if (task_.grad)
                    sums[i] += coefficients(side, first + i, column, columns, r, close, thread);
                else
                    update(first + i, strip, columns, r, close, thread);
            }
            if (task_.grad) block.add_products(other, column, used, 1);
        }
        if (!task_.grad) return;
        T* const grad = (T*)(side ? task_.grad_samples : task_.grad_points);
        for (int i = 0; i < rows; ++i) {
            const T* const point = own.row(first + i);
            const double* const sum = block.gradient(i);
            for (int d = 0; d < dim_; ++d) {
                const double value = sum[d] - sums[i] * (double)point[d];
                if (strips > 1)
                    partial_gradients_.get()[(strip * own.count + first + i) * dim_ + d] = value;
                else
                    grad[(first + i) * dim_ + d] = (T)value;
            }
        }
    }

    // Replaces the products of row i with a tile by squared distances, padded, close ones by inf.
    void distances(int side, int64_t i, int64_t column, int columns, T own_norm,
                   const T* norms,  // [columns, rounded up to the lanes]
                   T farthest,      // of them
                   T nearest,       // to a point; where samples are rows, points have minima of their own
                   T* r,            // [product_columns]
                   Close& close) const {
        const Vector<T> norm = broadcast(own_norm);
        for (int j = 0; j < columns; j += lanes<T>) {
            const Vector<T> distance = (norm + load(norms + j)) - load(r + j) * T(2);
            store(r + j, at_most<T>(at_least<T>(distance, T(0)), Format<T>::largest));
        }
        pad(r, columns);
        const double largest = (double)own_norm + (double)farthest, error = product_error<T> * largest;
        if (largest * largest_rate_ > most_exponent<T>)
            __atomic_store_n(task_.too_far, true, __ATOMIC_RELAXED);
        close.count = 0;
        if (!(error * largest_rate_ > tolerance)) return;
        double least_rate = largest_rate_;  // of those that show it
        for (int s = 0; s < task_.count; ++s) {
            const double rate = rate_of(task_.sigmas[s]);
            if (error * rate > tolerance) least_rate = smaller(least_rate, rate);
        }
        const double reach = 2 * error + negligible / least_rate;
        for (int j = 0; j < columns; ++j) nearest = smaller(r[j], nearest);
        for (int j = 0; j < columns; ++j) {
            const double least = side ? (double)*shares_.minima(column + j) : (double)nearest;
            if (!(r[j] <= least + reach)) continue;
            close.columns[close.count] = j;
            close.r[close.count++] = distance_of(sides_[side].row(i), sides_[1 - side].row(column + j), dim_);
            r[j] = (T)INFINITY;
        }
    }

    T* minimum_of(int64_t i, int64_t strip) const {
        return state_size() ? partial_minimum_.get() + strip * task_.m + i : (T*)task_.minimum + i;
    }
    double* sums_of(int64_t i, int64_t strip) const {
        return state_size() ? partial_sums_.get() + strip * task_.m * task_.count + i : task_.sums + i;
    }

    void update(int64_t i, int64_t strip, int columns, const T* r, const Close& close, int thread) {
        T* const minimum = minimum_of(i, strip);
        double *const sums = sums_of(i, strip), nearest_close = least_of(close);
        update_point<T>(r, columns, (T)nearest_close, task_.count, task_.sigmas, space_.rungs(), minimum,
                        sums, task_.m, space_.scratch(thread));
        for (int k = 0; k < close.count; ++k)
            for (int s = 0; s < task_.count; ++s)
                sums[s * task_.m] += exp(((double)*minimum - close.r[k]) * rate_of(task_.sigmas[s]));
    }

    static double least_of(const Close& close) {
        double least = INFINITY;
        for (int k = 0; k < close.count; ++k) least = smaller(least, close.r[k]);
        return least;
    }

    // Replaces distances by coefficients, 0 behind the last column; returns their sum.
    double coefficients(int side, int64_t i, int64_t column, int columns, T* r, const Close& close,
                        int thread) const {
        const int64_t m = task_.m;
        if (side)
            all_coefficients(r, columns, shares_.minima(column), space_.rungs(), task_.count,
                             shares_.shares(column), shares_.stride(), true);
        else
            point_coefficients<T>(r, columns, task_.count, task_.sigmas, space_.rungs(),
                                  ((const T*)task_.minimum)[i], task_.sums + i, (const T*)task_.grad + i, m,
                                  space_.scratch(thread));
        for (int k = 0; k < close.count; ++k) {
            const int64_t point = side ? column + close.columns[k] : i;
            double c = 0;
            for (int s = 0; s < task_.count; ++s)
                c += share_of(((const T*)task_.grad)[s * m + point], task_.sums[s * m + point],
                              task_.sigmas[s]) *
                     exp(((double)((const T*)task_.minimum)[point] - close.r[k]) * rate_of(task_.sigmas[s]));
            r[close.columns[k]] = (T)c;
        }
        for (int64_t j = columns; j < round_up(columns, lanes<T>); ++j) r[j] = 0;
        Wide<T> sum = {};
        for (int j = 0; j < columns; j += lanes<T>) sum += widen<T>(load(r + j));
        return sum_halves<lanes<T>>(sum);
    }

    // The strips of all points, in order.
    void add_states() {
        const int64_t m = task_.m;
        for (int64_t strip = 0; strip < strips(0); ++strip)
            for (int64_t i = 0; i < m; ++i) {
                T *const minimum = (T*)task_.minimum + i, of_strip = *minimum_of(i, strip);
                double *const sums = task_.sums + i, *const added = sums_of(i, strip);
                const T nearest = smaller(*minimum, of_strip);
                move_minimum(*minimum, nearest, task_.count, task_.sigmas, sums, m);
                move_minimum(of_strip, nearest, task_.count, task_.sigmas, added, m);
                *minimum = nearest;
                for (int s = 0; s < task_.count; ++s) sums[s * m] += added[s * m];
            }
    }

    void add_gradients(int side) {
        const int64_t size = sides_[side].count * dim_;
        T* const grad = (T*)(side ? task_.grad_samples : task_.grad_points);
        for (int64_t at = 0; at < size; ++at) {
            double sum = 0;
            for (int64_t strip = 0; strip < strips(side); ++strip)
                sum += partial_gradients_.get()[strip * size + at];
            grad[at] = (T)sum;
        }
    }

    const Parzen& task_;
    const int dim_, threads_;
    const int64_t most_rows_, elements_, doubles_;  // of a block, and what it takes
    const Buffer<T> center_, blocks_;
    const Buffer<double> gradients_;
    const Buffer<T> partial_minimum_;                        // [strips][m]
    const Buffer<double> partial_sums_, partial_gradients_;  // [strips][S, m], [strips][count, dim]
    const Shares<T> shares_;
    const Workspace<T> space_;
    Points<T> sides_[2];  // points, samples
    double largest_rate_ = 0;
};

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
