// mmd2: every pair of points once, value and gradients in one pass.
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
    double scale;  // 1 / sum of the weights
    double a;      // 1 / (1 - sum w^2) if unbiased, else 1

    double weight(int64_t i) const { return weights ? (double)weights[i] * scale : scale; }
    double total(const double* sums) const {
        double sum = 0;
        for (int64_t i = 0; i < count; ++i) sum += weight(i) * sums[i];
        return sum;
    }
};

// One of the double sums: rows of one sample against columns of another or of the same one. Its blocks of
// rows are dealt out to strips, whose sums over rows are added up in order.
struct Term {
    int rows, columns;  // sides
    bool half;          // of one sample with itself: each pair once
    bool grad_rows;
    bool grad_columns;  // by sums over the rows of a strip
    int64_t blocks, strips;
    double* value;     // [batch][count of rows]: sum_j w_j u
    double* gradient;  // [batch][count of rows][dim]: sum_j mass_j slope_j (row - column)
    double* sums;      // [batch][strips][tiles][dim][width]: the same of the columns
};

template <class T> class Mmd2Run {
  public:
    explicit Mmd2Run(const Mmd2& task)
        : task_(task),
          dim_(task.dim),
          count_(task.kernel.count),
          sides_(task.y ? 2 : 1),
          sizes_{task.n, task.y ? task.m : 0},
          staged_{staged_size<T>(task.n, 1), task.y ? staged_size<T>(task.m, 1) : 0},
          per_rung_(task.grad_bandwidths || task.grad_kernel_weights),
          doubles_(set_terms()),
          threads_(choose_threads()),
          blocks_(threads_, dim_, count_),
          coordinates_(task.batch * (staged_[0] + staged_[1]) * dim_),
          mass_(task.batch * (staged_[0] + staged_[1])),
          sums_(doubles_),
          moments_(task.batch * 4 * dim_),
          rung_sums_(per_rung_ ? task.batch * strips_ * 2 * count_ : 0),
          samples_(task.batch * 2),
          plans_(task.batch, count_) {}

    bool run() {
        if (!blocks_ || !coordinates_ || !mass_ || !sums_ || !moments_ || !rung_sums_ || !samples_ || !plans_)
            return false;
        double* at = sums_.get();
        for (int i = 0; i < term_count_; ++i) at = place(terms_[i], at);
        parallel_for(task_.batch * sides_, threads_,
                     [&](int64_t i, int) { prepare(i / sides_, (int)(i % sides_)); });
        parallel_for(task_.batch, threads_, [&](int64_t b, int) { plan(b); });
        parallel_for(task_.batch * strips_, threads_, [&](int64_t at, int thread) { run_strip(at, thread); });
        const int64_t tiles[2] = {tiles_of(0), tiles_of(1)};
        parallel_for(task_.batch * (tiles[0] + tiles[1]), threads_, [&](int64_t at, int) {
            const int64_t b = at / (tiles[0] + tiles[1]), t = at % (tiles[0] + tiles[1]);
            const int side = t >= tiles[0];
            if (grad_points(side)) point_gradients(b, side, side ? t - tiles[0] : t);
        });
        parallel_for(task_.batch, threads_, [&](int64_t b, int) { finish(b); });
        return true;
    }

  private:
    // Lists the terms; returns how many doubles they need.
    int64_t set_terms() {
        term_count_ = 0;
        add_term(0, 0, grad_points(0), grad_points(0));
        if (task_.y) {
            add_term(1, 1, grad_points(1), grad_points(1));
            add_term(0, 1, grad_points(0), grad_points(1));
            if (grad_weights(1)) add_term(1, 0, false, false);  // their cross term by rows of y
        }
        int64_t doubles = strips_ = 0;
        for (int i = 0; i < term_count_; ++i) {
            const Term& term = terms_[i];
            strips_ += term.strips;
            doubles += task_.batch * (sizes_[term.rows] * (1 + (term.grad_rows ? dim_ : 0)) +
                                      (term.grad_columns ? term.strips * staged_[term.columns] * dim_ : 0));
        }
        return doubles;
    }

    void add_term(int rows, int columns, bool grad_rows, bool grad_columns) {
        Term& term = terms_[term_count_++];
        term.rows = rows;
        term.columns = columns;
        term.half = rows == columns && !grad_weights(rows);  // which need the value of every row
        term.grad_rows = grad_rows;
        term.grad_columns = grad_columns && (term.half || rows != columns);
        term.blocks = blocks_of(sizes_[rows], block_rows);
        term.strips = smaller<int64_t>(term.blocks, most_strips);
        if (term.grad_columns) {  // sums that are worth adding up, and 16 MB of them
            const int64_t fit =
                ((int64_t)1 << 21) / (larger<int64_t>(task_.batch, 1) * staged_[columns] * dim_);
            term.strips =
                larger<int64_t>(1, smaller(term.blocks / 4, smaller(term.strips, larger<int64_t>(4, fit))));
        }
    }

    double* place(Term& term, double* at) const {
        const int64_t rows = task_.batch * sizes_[term.rows];
        term.value = at, at += rows;
        term.gradient = at, at += term.grad_rows ? rows * dim_ : 0;
        term.sums = at,
        at += term.grad_columns ? task_.batch * term.strips * staged_[term.columns] * dim_ : 0;
        return at;
    }

    int choose_threads() const {
        const double points = (double)(sizes_[0] + sizes_[1]);
        return useful_threads(task_.threads,
                              (double)task_.batch * points * points * (dim_ + 2 * count_) / 2 / lanes<T>);
    }

    const T* points(int side) const { return (const T*)(side ? task_.y : task_.x); }
    const T* weights(int side) const { return (const T*)(side ? task_.y_weights : task_.x_weights); }
    T* grad_points(int side) const { return (T*)(side ? task_.grad_y : task_.grad_x); }
    T* grad_weights(int side) const { return (T*)(side ? task_.grad_y_weights : task_.grad_x_weights); }
    Sample<T>& sample(int64_t b, int side) const { return samples_.get()[2 * b + side]; }
    int64_t tiles_of(int side) const {
        return sizes_[side] ? blocks_of(sizes_[side], tile_width<T>(sizes_[side])) : 0;
    }
    const Term* cross(int rows) const {
        for (int i = 0; i < term_count_; ++i)
            if (terms_[i].rows == rows && terms_[i].columns != rows) return &terms_[i];
        return nullptr;
    }

    // Stages one sample of member b and finds its moments.
    void prepare(int64_t b, int side) {
        Sample<T>& own = sample(b, side);
        const int64_t size = sizes_[side], at = b * (staged_[0] + staged_[1]) + side * staged_[0];
        own.points = points(side) + b * size * dim_;
        own.weights = weights(side) ? weights(side) + b * size : nullptr;
        own.count = size;
        own.columns =
            stage<T>(own.points, own.weights, size, dim_, coordinates_.get() + at * dim_, mass_.get() + at);
        own.moments.mean = moments_.get() + (4 * b + 2 * side) * dim_;
        own.moments.moment = own.moments.mean + dim_;
        double total = own.weights ? 0 : (double)size;
        if (own.weights)
            for (int64_t i = 0; i < size; ++i) total += (double)own.weights[i];
        own.scale = 1 / total;
        double squares = 0;
        for (int64_t i = 0; i < size; ++i) squares += own.weight(i) * own.weight(i);
        own.a = task_.unbiased ? 1 / (1 - squares) : 1;
        find_moments(own.columns, own.scale, own.moments);
    }

    void plan(int64_t b) {
        const Moments &x = sample(b, 0).moments, &y = sample(b, sides_ - 1).moments;
        Distances distances = distances_between(x, y, dim_);
        const Moments* samples[2] = {&x, &y};
        for (const Moments* own : samples)
            distances.farthest = larger(distances.farthest, distances_between(*own, *own, dim_).farthest);
        // The rounded coefficients of the folded kernel are a kernel that is off by 2^-25, for all pairs
        // alike. That cancels between the terms; the self-term of x alone meets a closed form outside.
        plans_.make(b, task_.kernel, dim_, distances, per_rung_, task_.y);
    }

    void run_strip(int64_t at, int thread) {
        const int64_t b = at / strips_;
        double* rung_sums = per_rung_ ? rung_sums_.get() + at * 2 * count_ : nullptr;
        if (rung_sums) memset(rung_sums, 0, 2 * count_ * sizeof(double));
        int64_t strip = at % strips_;
        const Term* term = terms_;
        for (; strip >= term->strips; ++term) strip -= term->strips;
        if (term - terms_ == 3) rung_sums = nullptr;  // counted by the rows of x
        const int64_t size = staged_[term->columns] * dim_;
        double* sums = term->grad_columns ? term->sums + (b * term->strips + strip) * size : nullptr;
        if (sums) memset(sums, 0, size * sizeof(double));
        for (int64_t block = strip; block < term->blocks; block += term->strips)
            run_block(b, *term, block * block_rows, sums, rung_sums, blocks_.of(thread));
    }

    void run_block(int64_t b, const Term& term, int64_t first, double* sums, double* rung_sums,
                   Block<T> block) {
        const Sample<T>&own = sample(b, term.rows), &other = sample(b, term.columns);
        const Columns<T>& columns = other.columns;
        const Plan<T>& plan = plans_[b];
        block.begin(own.points + first * dim_, own.weights ? own.weights + first : nullptr,
                    (int)smaller<int64_t>(block_rows, own.count - first), dim_);
        for (int i = 0; i < block.rows; ++i)
            block.factors[i] = (term.rows == term.columns ? own.a : -2) * own.weight(first + i) * other.scale;

        // With half the pairs: first the block with itself, both ways, then all columns behind it, which
        // count twice.
        const int start = term.half ? (int)(first % columns.width) : 0;
        const int64_t first_tile = term.half ? first / columns.width : 0;
        int from = 0;
        if (term.half) {
            from = smaller(start + block_rows, columns.used(first_tile));
            sum_part(plan, block, Part<T>(columns, first_tile, start, from), dim_, columns.width,
                     {1, term.grad_rows, nullptr, rung_sums});
        }
        for (int64_t t = first_tile; t < columns.tiles(); ++t, from = 0) {
            const Part<T> part(columns, t, from, columns.used(t));
            double* of_part = sums ? sums + t * dim_ * columns.width + from : nullptr;
            if (part.used)
                sum_part(plan, block, part, dim_, columns.width,
                         {term.half ? 2.0 : 1.0, term.grad_rows, of_part, rung_sums});
        }
        const int64_t row = b * own.count + first;
        for (int i = 0; i < block.rows; ++i) {
            term.value[row + i] = other.scale * block.value[i] - plan.offset * other.moments.mass;
            if (term.grad_rows)
                for (int d = 0; d < dim_; ++d)
                    term.gradient[(row + i) * dim_ + d] = block.row_gradient(i, d, dim_);
        }
    }

    // Adds up the strips' sums over the columns of tile t: [dim][width].
    const double* add_strips(const Term& term, int64_t b, int64_t t, int width) const {
        const int64_t size = staged_[term.columns] * dim_;
        double* total = term.sums + b * term.strips * size + t * dim_ * width;
        for (int64_t strip = 1; strip < term.strips; ++strip)
            for (int k = 0; k < dim_ * width; ++k) total[k] += total[strip * size + k];
        return total;
    }

    // 4 w_i [a sum_j w_j k' (x_i - x_j) - sum_j v_j k' (x_i - y_j)] for one tile of points, the slopes k'
    // completed by what was shifted away.
    void point_gradients(int64_t b, int side, int64_t t) const {
        const Sample<T>&own = sample(b, side), &other = sample(b, sides_ == 2 ? 1 - side : side);
        const Term &self = terms_[side], *cross = sides_ == 2 ? &terms_[2] : nullptr;
        const int width = own.columns.width;
        const double* self_sums = self.grad_columns ? add_strips(self, b, t, width) : nullptr;
        const double* cross_sums = cross && side == 1 ? add_strips(*cross, b, t, width) : nullptr;
        const double shift = plans_[b].shift;
        const double self_shift = shift * own.a, cross_shift = cross ? shift : 0;
        for (int64_t i = t * width; i < smaller<int64_t>((t + 1) * width, own.count); ++i)
            for (int d = 0; d < dim_; ++d) {
                const int64_t at = (b * own.count + i) * dim_ + d, in_tile = d * width + i - t * width;
                const double x = (double)own.points[i * dim_ + d];
                double sum = self.gradient[at] + (self_sums ? self_sums[in_tile] : 0);
                sum *= own.a * own.scale;
                if (cross) sum -= other.scale * (cross_sums ? cross_sums[in_tile] : cross->gradient[at]);
                if (self_shift != 0) sum += self_shift * own.moments.linear(x, d);
                if (cross_shift != 0) sum -= cross_shift * other.moments.linear(x, d);
                grad_points(side)[at] = (T)(4 * own.weight(i) * sum);
            }
    }

    // Everything that sums over the rows of member b, in their order.
    void finish(int64_t b) {
        double value = 0;
        for (int side = 0; side < sides_; ++side) {
            const Sample<T>& own = sample(b, side);
            const Term* other = cross(side);
            double* of_self = terms_[side].value + b * own.count;
            const double* of_other = other ? other->value + b * own.count : nullptr;
            const double self = own.total(of_self);
            value += own.a * self;
            if (of_other && side == 0) value -= 2 * own.total(of_other);
            if (!grad_weights(side)) continue;
            // In the normalised weights first, then through their normalisation.
            for (int64_t i = 0; i < own.count; ++i) {
                double& g = of_self[i] *= 2 * own.a;
                if (of_other) g -= 2 * of_other[i];
                if (task_.unbiased) g += 2 * own.a * own.a * own.weight(i) * self;
            }
            const double mean = own.total(of_self);
            T* grad = grad_weights(side) + b * own.count;
            for (int64_t i = 0; i < own.count; ++i) grad[i] = (T)((of_self[i] - mean) * own.scale);
        }
        task_.value[b] = value;
        if (!per_rung_) return;
        double* sums = rung_sums_.get() + b * strips_ * 2 * count_;
        for (int64_t strip = 1; strip < strips_; ++strip)
            for (int s = 0; s < 2 * count_; ++s) sums[s] += sums[strip * 2 * count_ + s];
        rung_gradients(plans_[b], sums,
                       task_.grad_bandwidths ? (T*)task_.grad_bandwidths + b * count_ : nullptr,
                       task_.grad_kernel_weights ? (T*)task_.grad_kernel_weights + b * count_ : nullptr);
    }

    const Mmd2& task_;
    const int dim_, count_, sides_;
    const int64_t sizes_[2], staged_[2];  // of x and of y
    const bool per_rung_;
    int term_count_;
    Term terms_[4];   // x with itself; y with itself, x with y, y with x
    int64_t strips_;  // tasks for each member of the batch
    const int64_t doubles_;
    const int threads_;
    const BlockMemory<T> blocks_;
    const Buffer<T> coordinates_, mass_;
    const Buffer<double> sums_, moments_, rung_sums_;
    const Buffer<Sample<T>> samples_;
    const PlanMemory<T> plans_;
};

}  // namespace

bool mmd2(const Mmd2& task) {
    return task.is_double ? Mmd2Run<double>(task).run() : Mmd2Run<float>(task).run();
}

}  // namespace fastmmd::FASTMMD_ISA
