// mmd2: every row against all columns, value and gradients in one pass.
#include "pairs.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

// One of the two samples in one member of the batch.
template <class T> struct Sample {
    const T* points;   // [count, dim]
    const T* weights;  // [count] or null: ones; as given, normalised here in double
    int64_t count;
    Columns<T> columns;
    Moments moments;
    double scale;   // 1 / sum of the weights
    double a;       // 1 / (1 - sum w^2) if unbiased, else 1
    double* self;   // [count]: sum_j w_j u(x_i, x_j)
    double* cross;  // [count]: the same over the other sample

    double weight(int64_t i) const { return weights ? (double)weights[i] * scale : scale; }
    double total(const double* sums) const {
        double sum = 0;
        for (int64_t i = 0; i < count; ++i) sum += weight(i) * sums[i];
        return sum;
    }
};

template <class T> class Mmd2Run {
  public:
    explicit Mmd2Run(const Mmd2& task)
        : task_(task),
          dim_(task.dim),
          count_(task.kernel.count),
          sides_(task.y ? 2 : 1),
          rows_(rows_per_task(dim_)),
          sizes_{task.n, task.y ? task.m : 0},
          staged_{staged_size<T>(task.n, 1), task.y ? staged_size<T>(task.m, 1) : 0},
          blocks_{blocks_of(sizes_[0], rows_), blocks_of(sizes_[1], rows_)},
          per_rung_(task.grad_bandwidths || task.grad_kernel_weights),
          strips_(per_rung_ ? smaller<int64_t>(blocks(), most_strips) : blocks()),
          threads_(choose_threads()),
          scratch_(threads_, 2, dim_, count_),
          coordinates_(task.batch * (staged_[0] + staged_[1]) * dim_),
          mass_(task.batch * (staged_[0] + staged_[1])),
          row_sums_(task.batch * 2 * (sizes_[0] + sizes_[1])),
          moments_(task.batch * 4 * dim_),
          rung_sums_(per_rung_ ? task.batch * strips_ * 2 * count_ : 0),
          samples_(task.batch * 2),
          plans_(task.batch),
          rungs_(task.batch * count_),
          order_(task.batch * count_),
          follows_(task.batch * count_) {}

    bool run() {
        if (!scratch_ || !coordinates_ || !mass_ || !row_sums_ || !moments_ || !rung_sums_ || !samples_ ||
            !plans_ || !rungs_ || !order_ || !follows_)
            return false;
        parallel_for(task_.batch, threads_, [&](int64_t b, int) { prepare(b); });
        parallel_for(task_.batch * strips_, threads_, [&](int64_t at, int thread) { run_strip(at, thread); });
        parallel_for(task_.batch, threads_, [&](int64_t b, int) { finish(b); });
        return true;
    }

  private:
    int64_t blocks() const { return blocks_[0] + blocks_[1]; }

    int choose_threads() const {
        const double points = (double)(sizes_[0] + sizes_[1]);
        return useful_threads(task_.threads,
                              (double)task_.batch * points * points * (dim_ + 4 * count_) / lanes<T>);
    }

    const T* points(int side) const { return (const T*)(side ? task_.y : task_.x); }
    const T* weights(int side) const { return (const T*)(side ? task_.y_weights : task_.x_weights); }
    T* grad_points(int side) const { return (T*)(side ? task_.grad_y : task_.grad_x); }
    T* grad_weights(int side) const { return (T*)(side ? task_.grad_y_weights : task_.grad_x_weights); }
    Sample<T>& sample(int64_t b, int side) const { return samples_.get()[2 * b + side]; }

    // Stages both samples of member b, finds their moments and plans the kernel.
    void prepare(int64_t b) {
        for (int side = 0; side < sides_; ++side) {
            Sample<T>& own = sample(b, side);
            const int64_t size = sizes_[side], place = b * (staged_[0] + staged_[1]) + side * staged_[0];
            own.points = points(side) + b * size * dim_;
            own.weights = weights(side) ? weights(side) + b * size : nullptr;
            own.count = size;
            own.columns = stage<T>(own.points, own.weights, size, dim_, coordinates_.get() + place * dim_,
                                   mass_.get() + place);
            double total = own.weights ? 0 : (double)size;
            if (own.weights)
                for (int64_t i = 0; i < size; ++i) total += (double)own.weights[i];
            own.scale = 1 / total;
            own.self = row_sums_.get() + 2 * (b * (sizes_[0] + sizes_[1]) + side * sizes_[0]);
            own.cross = own.self + size;
            own.moments.mean = moments_.get() + (4 * b + 2 * side) * dim_;
            own.moments.moment = own.moments.mean + dim_;
            find_moments(own.points, own.weights, own.scale, size, dim_,
                         side ? sample(b, 0).moments.mean : nullptr, own.moments);
            double squares = 0;
            for (int64_t i = 0; i < size; ++i) squares += own.weight(i) * own.weight(i);
            own.a = task_.unbiased ? 1 / (1 - squares) : 1;
        }
        const double farthest_r =
            farthest_distance(sample(b, 0).moments, sample(b, sides_ - 1).moments, dim_);
        make_plan<T>(task_.kernel, dim_, farthest_r, rungs_.get() + b * count_, order_.get() + b * count_,
                     follows_.get() + b * count_, plans_.get()[b]);
    }

    // Every strips_-th block of member b, one after the other: they share their sums per rung.
    void run_strip(int64_t at, int thread) {
        const int64_t b = at / strips_;
        double* rung_sums = per_rung_ ? rung_sums_.get() + at * 2 * count_ : nullptr;
        if (rung_sums) memset(rung_sums, 0, 2 * count_ * sizeof(double));
        for (int64_t block = at % strips_; block < blocks(); block += strips_)
            run_block(b, block, rung_sums, thread);
    }

    // The rows of one block against both samples.
    void run_block(int64_t b, int64_t block, double* rung_sums, int thread) {
        const int side = block < blocks_[0] ? 0 : 1;
        const Sample<T>& own = sample(b, side);
        const Sample<T>* other = sides_ == 2 ? &sample(b, 1 - side) : nullptr;
        const Plan<T>& plan = plans_.get()[b];
        const int64_t first = (block - (side ? blocks_[0] : 0)) * rows_;
        const int rows = (int)smaller<int64_t>(rows_, own.count - first);
        const T* block_points = own.points + first * dim_;
        const bool gradient = grad_points(side);
        const RowSums<T> self = scratch_.of(thread, 0), cross = scratch_.of(thread, 1);
        double factors[most_rows] = {};

        for (int i = 0; i < rows; ++i) factors[i] = own.a * own.weight(first + i) * own.scale;
        sum_rows(plan, block_points, rows, own.columns, gradient, factors, rung_sums, self);
        for (int i = 0; i < rows; ++i) own.self[first + i] = own.scale * self.value[i];

        // The value takes the cross term from the rows of x; those of y need it for their gradients alone.
        if (other && (side == 0 || gradient || grad_weights(1))) {
            for (int i = 0; i < rows; ++i) factors[i] = -2 * own.weight(first + i) * other->scale;
            sum_rows(plan, block_points, rows, other->columns, gradient, factors,
                     side == 0 ? rung_sums : nullptr, cross);
            for (int i = 0; i < rows; ++i) own.cross[first + i] = other->scale * cross.value[i];
        }
        if (gradient)
            point_gradients(own, other, first, rows, plan.shift, self, cross, sample(b, 0).moments.mean,
                            grad_points(side) + (b * own.count + first) * dim_);
    }

    // 4 w_i [a sum_j w_j k' (x_i - x_j) - sum_j v_j k' (x_i - y_j)], the slopes k' completed by what was
    // shifted away.
    void point_gradients(const Sample<T>& own, const Sample<T>* other, int64_t first, int rows, double shift,
                         const RowSums<T>& self, const RowSums<T>& cross,
                         const double* centre,  // [dim]
                         T* grad) const {       // [rows, dim]
        for (int i = 0; i < rows; ++i)
            for (int d = 0; d < dim_; ++d) {
                const int64_t at = (int64_t)i * dim_ + d;
                const double x = (double)own.points[first * dim_ + at] - centre[d];
                double sum = own.a * own.scale * self.gradient[at];
                if (other) sum -= other->scale * cross.gradient[at];
                if (shift != 0) {
                    sum += shift * own.a * (own.moments.mass * x - own.moments.moment[d]);
                    if (other) sum -= shift * (other->moments.mass * x - other->moments.moment[d]);
                }
                grad[at] = (T)(4 * own.weight(first + i) * sum);
            }
    }

    // Everything that sums over the rows of member b, in their order.
    void finish(int64_t b) {
        double value = 0;
        for (int side = 0; side < sides_; ++side) {
            const Sample<T>& own = sample(b, side);
            const double self = own.total(own.self);
            value += own.a * self;
            if (sides_ == 2 && side == 0) value -= 2 * own.total(own.cross);
            if (!grad_weights(side)) continue;
            // In the normalised weights first, then through their normalisation.
            for (int64_t i = 0; i < own.count; ++i) {
                double& g = own.self[i] *= 2 * own.a;
                if (sides_ == 2) g -= 2 * own.cross[i];
                if (task_.unbiased) g += 2 * own.a * own.a * own.weight(i) * self;
            }
            const double mean = own.total(own.self);
            T* grad = grad_weights(side) + b * own.count;
            for (int64_t i = 0; i < own.count; ++i) grad[i] = (T)((own.self[i] - mean) * own.scale);
        }
        task_.value[b] = value;
        if (!per_rung_) return;
        double* sums = rung_sums_.get() + b * strips_ * 2 * count_;
        for (int64_t strip = 1; strip < strips_; ++strip)
            for (int s = 0; s < 2 * count_; ++s) sums[s] += sums[strip * 2 * count_ + s];
        rung_gradients(plans_.get()[b], sums,
                       task_.grad_bandwidths ? (T*)task_.grad_bandwidths + b * count_ : nullptr,
                       task_.grad_kernel_weights ? (T*)task_.grad_kernel_weights + b * count_ : nullptr);
    }

    const Mmd2& task_;
    const int dim_, count_, sides_, rows_;
    const int64_t sizes_[2], staged_[2], blocks_[2];  // of x and of y
    const bool per_rung_;
    const int64_t strips_;  // tasks for each member of the batch
    const int threads_;
    const RowMemory<T> scratch_;
    const Buffer<T> coordinates_, mass_;
    const Buffer<double> row_sums_, moments_, rung_sums_;
    const Buffer<Sample<T>> samples_;
    const Buffer<Plan<T>> plans_;
    const Buffer<Rung<T>> rungs_;
    const Buffer<int> order_;
    const Buffer<bool> follows_;
};

}  // namespace

bool mmd2(const Mmd2& task) {
    return task.is_double ? Mmd2Run<double>(task).run() : Mmd2Run<float>(task).run();
}

}  // namespace fastmmd::FASTMMD_ISA
