// One tile of mmd2 whose products come from BLAS: squared distances |p|^2 + |q|^2 - 2 p.q, the kernel on
// them, and the slopes left in the tile for the products that give the gradients:
//
//   sum_j c_ij (p_i - q_j) = p_i sum_j c_ij - (c @ q)_i
//
// Both cancel where a pair is much nearer to each other than to the origin. Those pairs ("near") are done by
// differences, distance and gradient alike, and leave 0 in the tile, so that every other pair keeps its
// distance to a few roundings and its two gradient terms are of the size of their difference.
#include "blocks.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

// Of |p|^2 + |q|^2, whose roundings r = |p|^2 + |q|^2 - 2 p.q inherits: those of a pair that is not near are
// at most 1 / 0.4 = 2.5 times as large relative to r.
constexpr double near = 0.4;

// sum_d (p_d - q_d)^2.
template <class T> T difference_squared(const T* p, const T* q, int dim) {  // [dim] each
    Vector<T> sums[4] = {};
    int d = 0;
    for (; d + 4 * lanes<T> <= dim; d += 4 * lanes<T>)
        for (int v = 0; v < 4; ++v) {
            const Vector<T> difference = load(p + d + v * lanes<T>) - load(q + d + v * lanes<T>);
            sums[v] += difference * difference;
        }
    double rest = 0;
    for (; d < dim; ++d) rest += ((double)p[d] - (double)q[d]) * ((double)p[d] - (double)q[d]);
    return (T)(sum_lanes<T>((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest);
}

template <class T> class TileRun {
  public:
    explicit TileRun(const MmdTile& task)
        : task_(task),
          rows_((int)task.rows.count),
          columns_((int)task.columns.count),
          used_((int)round_up(columns_, lanes<T>)),
          stride_(task.stride),
          slopes_(task.rows.slopes || task.columns.slopes),
          per_rung_(task.bandwidths),
          blocks_(blocks_of(rows_, block_rows)),
          strips_(smaller<int64_t>(blocks_, most_strips)),
          threads_(useful_threads(task.threads,
                                  (double)rows_ * columns_ * (8 + 8 * task.kernel.count) / lanes<T>)),
          plan_(1, task.kernel.count),
          near_count_(rows_),
          near_columns_(rows_ * stride_),
          near_slopes_(slopes_ ? rows_ * stride_ : 0),
          column_sums_(task.columns.slopes ? strips_ * stride_ : 0),
          rung_sums_(per_rung_ ? strips_ * 2 * task.kernel.count : 0),
          chunk_(per_rung_ ? (int64_t)threads_ * 2 * task.kernel.count * lanes<T> : 0),
          partial_(per_rung_ ? (int64_t)threads_ * 2 * task.kernel.count * lanes<T> : 0) {}

    bool run() {
        if (!plan_ || !near_count_ || !near_columns_ || !near_slopes_ || !column_sums_ || !rung_sums_ ||
            !chunk_ || !partial_)
            return false;
        plan_.make(0, task_.kernel, task_.dim, {task_.farthest_r, task_.typical_r}, per_rung_,
                   task_.may_fold);
        mass_ = 0;
        for (int j = 0; j < columns_; ++j) mass_ += (double)((const T*)task_.columns.mass)[j];
        *task_.shift = plan_[0].shift;
        parallel_for(strips_, threads_, [&](int64_t strip, int thread) { run_strip(strip, thread); });
        if (task_.columns.slopes)
            for (int64_t strip = 0; strip < strips_; ++strip)
                for (int j = 0; j < columns_; ++j)
                    task_.columns.slopes[j] += column_sums_.get()[strip * stride_ + j];
        if (per_rung_) add_rungs();
        return !slopes_ || add_near();
    }

  private:
    static constexpr int slice = 2 * lanes<T>;  // dimensions at a time of the gradients of near pairs

    // Every strips_-th block of rows.
    void run_strip(int64_t strip, int thread) const {
        const int count = task_.kernel.count;
        double* column_sums = task_.columns.slopes ? column_sums_.get() + strip * stride_ : nullptr;
        double* rung_sums = per_rung_ ? rung_sums_.get() + strip * 2 * count : nullptr;
        if (column_sums) memset(column_sums, 0, stride_ * sizeof(double));
        if (rung_sums) memset(rung_sums, 0, 2 * count * sizeof(double));
        for (int64_t block = strip; block < blocks_; block += strips_)
            for (int i = (int)block * block_rows; i < smaller((int)(block + 1) * block_rows, rows_); ++i) {
                T* r = (T*)task_.products + i * stride_;
                distances(i, r);
                const T* mass = (const T*)task_.columns.mass;
                const Plan<T>& plan = plan_[0];
                double value;
                if (per_rung_)
                    value = plan.evaluate_per_rung(plan, mass, used_, r, rung_factor(i),
                                                   chunk_.get() + (int64_t)thread * 2 * count * lanes<T>,
                                                   partial_.get() + (int64_t)thread * 2 * count * lanes<T>,
                                                   rung_sums);
                else
                    value = (slopes_ ? plan.evaluate : plan.evaluate_value)(plan, mass, used_, r);
                task_.value[i] += task_.times * (value - plan.offset * mass_);
                if (slopes_) slopes(i, r, column_sums);
            }
    }

    double rung_factor(int i) const {
        return task_.times * task_.rung_factor * (double)((const T*)task_.rows.mass)[i];
    }

    // Replaces the products of row i by squared distances and lists its near columns.
    void distances(int i, T* r) const {  // [used]
        const Vector<T> norm = broadcast(((const T*)task_.rows.norms)[i]);
        const T* norms = (const T*)task_.columns.norms;
        Bits<T> any_near = {};
        for (int j = 0; j < used_; j += lanes<T>) {
            const Vector<T> both = norm + load(norms + j), distance = both - load(r + j) * T(2);
            any_near |= distance < both * T(near);
            store(r + j, distance);
        }
        int count = 0;
        int* columns = near_columns_.get() + i * stride_;
        if (any<T>(any_near))
            for (int j = 0; j < columns_; ++j) {
                if (!(r[j] < (norm[0] + norms[j]) * T(near)) || (task_.diagonal && i == j)) continue;
                columns[count++] = j;
                r[j] = difference_squared((const T*)task_.rows.points + (int64_t)i * task_.dim,
                                          (const T*)task_.columns.points + (int64_t)j * task_.dim, task_.dim);
            }
        near_count_.get()[i] = count;
        if (task_.diagonal) r[i] = r[i] == r[i] ? T(0) : r[i];
    }

    // Finishes the slopes of row i and adds them up.
    void slopes(int i, T* slope, double* column_sums) const {
        const T offset = (T)task_.offset, row_mass = ((const T*)task_.rows.mass)[i];
        const T* mass = (const T*)task_.columns.mass;
        const int* columns = near_columns_.get() + i * stride_;
        T* near_slopes = near_slopes_.get() + i * stride_;
        for (int k = 0; k < near_count_.get()[i]; ++k) {
            near_slopes[k] = slope[columns[k]] - offset;
            slope[columns[k]] = offset;
        }
        if (task_.diagonal && slope[i] == slope[i]) slope[i] = offset;  // p_i - p_i = 0
        Wide<T> sum = {};
        for (int j = 0; j < used_; j += lanes<T>) {
            const Vector<T> c = load(slope + j) - offset;
            store(slope + j, c);
            sum += widen<T>(c * load(mass + j));
            if (column_sums) add_wide<T>(column_sums + j, c * row_mass);
        }
        if (task_.rows.slopes) task_.rows.slopes[i] += sum_halves<lanes<T>>(sum);
    }

    void add_rungs() const {
        const int count = task_.kernel.count;
        double* sums = rung_sums_.get();
        for (int64_t strip = 1; strip < strips_; ++strip)
            for (int s = 0; s < 2 * count; ++s) sums[s] += sums[strip * 2 * count + s];
        for (int s = 0; s < count; ++s) {
            const Rung<T>& rung = plan_[0].rungs[s];
            task_.bandwidths[rung.index] += rung.by_bandwidth * sums[s];
            task_.kernel_weights[rung.index] += sums[count + s];
        }
    }

    // Gradients of the near pairs, a few dimensions of all of them at a time.
    bool add_near() const {
        int64_t total = 0;
        for (int i = 0; i < rows_; ++i) total += near_count_.get()[i];
        if (!total) return true;
        const int64_t slices = blocks_of(task_.dim, slice);
        const int threads = useful_threads(task_.threads, (double)total * task_.dim / lanes<T>);
        const Buffer<double> sums(task_.columns.grad ? (int64_t)threads * columns_ * slice : 0);
        if (!sums) return false;
        parallel_for(slices, threads, [&](int64_t at, int thread) {
            double* own = task_.columns.grad ? sums.get() + (int64_t)thread * columns_ * slice : nullptr;
            const int first = (int)at * slice;
            if (task_.dim - first >= slice)
                add_slice<slice>(first, slice, own);
            else
                add_slice<0>(first, task_.dim - first, own);
        });
        return true;
    }

    template <int Width>
    void add_slice(int first, int count,
                   double* column_sums) const {  // [columns][count]
        const int width = Width ? Width : count, dim = task_.dim;
        const T *row_mass = (const T*)task_.rows.mass, *mass = (const T*)task_.columns.mass;
        if (column_sums) memset(column_sums, 0, (int64_t)columns_ * width * sizeof(double));
        for (int64_t i = 0; i < rows_; ++i) {
            const T* p = (const T*)task_.rows.points + i * dim + first;
            double sums[slice] = {};
            for (int k = 0; k < near_count_.get()[i]; ++k) {
                const int64_t j = near_columns_.get()[i * stride_ + k];
                const T* q = (const T*)task_.columns.points + j * dim + first;
                const double slope = (double)near_slopes_.get()[i * stride_ + k],
                             by_row = slope * (double)mass[j], by_column = slope * (double)row_mass[i];
                for (int d = 0; d < width; ++d) sums[d] += by_row * (double)(p[d] - q[d]);
                if (column_sums)
                    for (int d = 0; d < width; ++d)
                        column_sums[j * width + d] += by_column * (double)(q[d] - p[d]);
            }
            if (!task_.rows.grad) continue;
            T* grad = (T*)task_.rows.grad + i * dim + first;
            for (int d = 0; d < width; ++d) grad[d] += (T)(task_.rows.scale * sums[d]);
        }
        if (!column_sums) return;
        for (int64_t j = 0; j < columns_; ++j) {
            T* grad = (T*)task_.columns.grad + j * dim + first;
            for (int d = 0; d < width; ++d) grad[d] += (T)(task_.columns.scale * column_sums[j * width + d]);
        }
    }

    const MmdTile& task_;
    const int rows_, columns_, used_;
    const int64_t stride_;
    const bool slopes_, per_rung_;
    const int64_t blocks_, strips_;
    const int threads_;
    const PlanMemory<T> plan_;
    const Buffer<int> near_count_, near_columns_;  // [rows], [rows][stride]
    const Buffer<T> near_slopes_;                  // [rows][stride]
    const Buffer<double> column_sums_, rung_sums_;
    const Buffer<T> chunk_;
    const Buffer<double> partial_;
    double mass_;  // of all columns
};

}  // namespace

bool mmd_tile(const MmdTile& task) {
    return task.is_double ? TileRun<double>(task).run() : TileRun<float>(task).run();
}

}  // namespace fastmmd::FASTMMD_ISA
