// mmd2: every pair of points once, value and gradients in one pass.
#include "pairs.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

// One of the two samples in one member of the batch.
template <class T> struct Sample {
    int64_t base, count;  // its rows in the arrays over all members
    int64_t staged;       // the same in coordinates and mass: the columns before its own
    const T* points;      // [count, dim]
    const T* weights;     // [count] or null: ones; as given, normalized here in double
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
    int64_t tiles() const { return blocks_of(count, tile_width<T>(count)); }
};

// One of the double sums: rows of one sample against columns of another or of the same one. Its blocks of
// rows are dealt out to strips, whose sums over rows are added up in order.
struct Term {
    int rows, columns;  // sides
    bool half;          // of one sample with itself: each pair once
    bool grad_rows;
    bool grad_columns;  // by sums over the rows of a strip
    int64_t blocks, strips;
    double* value;     // [count of rows]: sum_j w_j u
    double* gradient;  // [count of rows][dim]: sum_j mass_j slope_j (row - column)
    double* sums;      // [strips][tiles][dim][width]: the same of the columns
};

// One member of the batch. Members may differ in size, and then in the number of their tasks.
template <class T> struct Member {
    Sample<T> samples[2];
    Term terms[4];  // x with itself; y with itself, x with y, y with x
    int term_count;
    int64_t strips;                   // of all terms
    int64_t first_strip, first_tile;  // tasks of the members before
};

template <class T> class Mmd2Run {
  public:
    explicit Mmd2Run(const Mmd2& task)
        : task_(task),
          dim_(task.dim),
          count_(task.kernel.count),
          sides_(task.y ? 2 : 1),
          per_rung_(task.grad_bandwidths || task.grad_kernel_weights),
          members_(task.batch),
          totals_(lay_out()),
          threads_(useful_threads(task.threads, totals_.steps)),
          blocks_(threads_, dim_, count_),
          coordinates_((totals_.staged[0] + totals_.staged[1]) * dim_),
          mass_(totals_.staged[0] + totals_.staged[1]),
          sums_(totals_.doubles),
          moments_(task.batch * 4 * dim_),
          rung_sums_(per_rung_ ? totals_.strips * 2 * count_ : 0),
          plans_(task.batch, count_) {}

    bool run() {
        if (!members_ || !blocks_ || !coordinates_ || !mass_ || !sums_ || !moments_ || !rung_sums_ || !plans_)
            return false;
        double* at = sums_.get();
        for (int64_t b = 0; b < task_.batch; ++b)
            for (int i = 0; i < member(b).term_count; ++i) at = place(member(b), member(b).terms[i], at);
        parallel_for(task_.batch * sides_, threads_,
                     [&](int64_t i, int) { prepare(i / sides_, (int)(i % sides_)); });
        parallel_for(task_.batch, threads_, [&](int64_t b, int) { plan(b); });
        parallel_for(totals_.strips, threads_, [&](int64_t at, int thread) { run_strip(at, thread); });
        parallel_for(totals_.tiles, threads_, [&](int64_t at, int) {
            const int64_t b = member_of(at, &Member<T>::first_tile);
            const int64_t t = at - member(b).first_tile, of_x = member(b).samples[0].tiles();
            const int side = t >= of_x;
            if (grad_points(side)) point_gradients(b, side, side ? t - of_x : t);
        });
        parallel_for(task_.batch, threads_, [&](int64_t b, int) { finish(b); });
        for (int side = 0; side < sides_; ++side) clear_behind(side);
        return true;
    }

  private:
    struct Totals {
        int64_t staged[2], doubles, strips, tiles;
        double steps;  // of elementary work
    };

    // Sets the sizes of all members and lists their terms.
    Totals lay_out() {
        Totals totals = {};
        if (!members_) return totals;
        for (int64_t b = 0; b < task_.batch; ++b)
            for (int side = 0; side < sides_; ++side) {
                Sample<T>& own = sample(b, side);
                const int64_t *offsets = side ? task_.y_offsets : task_.x_offsets,
                              size = side ? task_.m : task_.n;
                own.base = offsets ? offsets[b] : b * size;
                own.count = offsets ? offsets[b + 1] - own.base : size;
                own.staged = totals.staged[side];
                totals.staged[side] += staged_size<T>(own.count, 1);
            }
        for (int64_t b = 0; b < task_.batch; ++b) {
            Member<T>& own = member(b);
            own.first_strip = totals.strips, own.first_tile = totals.tiles;
            own.term_count = 0;
            own.strips = 0;
            if (is_empty(b)) continue;
            add_term(own, totals, 0, 0, grad_points(0), grad_points(0));
            if (sides_ == 2) {
                add_term(own, totals, 1, 1, grad_points(1), grad_points(1));
                add_term(own, totals, 0, 1, grad_points(0), grad_points(1));
                if (grad_weights(1))
                    add_term(own, totals, 1, 0, false, false);  // the cross term by rows of y
            }
            double points = 0;
            for (int side = 0; side < sides_; ++side) {
                totals.tiles += own.samples[side].tiles();
                points += (double)own.samples[side].count;
            }
            totals.strips += own.strips;
            totals.steps += points * points * (dim_ + 2 * count_) / 2 / lanes<T>;
        }
        return totals;
    }

    void add_term(Member<T>& own, Totals& totals, int rows, int columns, bool grad_rows, bool grad_columns) {
        Term& term = own.terms[own.term_count++];
        term.rows = rows;
        term.columns = columns;
        term.half = rows == columns && !grad_weights(rows);  // which need the value of every row
        term.grad_rows = grad_rows;
        term.grad_columns = grad_columns && (term.half || rows != columns);
        term.blocks = blocks_of(own.samples[rows].count, block_rows);
        term.strips = smaller<int64_t>(term.blocks, most_strips);
        if (term.grad_columns) {  // sums that are worth adding up, and 16 MB of them
            const int64_t fit = ((int64_t)1 << 21) / (totals.staged[columns] * dim_);
            term.strips =
                larger<int64_t>(1, smaller(term.blocks / 4, smaller(term.strips, larger<int64_t>(4, fit))));
        }
        own.strips += term.strips;
        totals.doubles += doubles(own, term);
    }

    // Of the columns' sums of one strip.
    int64_t column_sums(const Member<T>& own, const Term& term) const {
        return staged_size<T>(own.samples[term.columns].count, dim_);
    }
    int64_t doubles(const Member<T>& own, const Term& term) const {
        return own.samples[term.rows].count * (1 + (term.grad_rows ? dim_ : 0)) +
               (term.grad_columns ? term.strips * column_sums(own, term) : 0);
    }
    double* place(const Member<T>& own, Term& term, double* at) const {
        const int64_t rows = own.samples[term.rows].count;
        term.value = at;
        term.gradient = at + rows;
        term.sums = term.gradient + (term.grad_rows ? rows * dim_ : 0);
        return at + doubles(own, term);
    }

    const T* points(int side) const { return (const T*)(side ? task_.y : task_.x); }
    const T* weights(int side) const { return (const T*)(side ? task_.y_weights : task_.x_weights); }
    T* grad_points(int side) const { return (T*)(side ? task_.grad_y : task_.grad_x); }
    T* grad_weights(int side) const { return (T*)(side ? task_.grad_y_weights : task_.grad_x_weights); }
    Member<T>& member(int64_t b) const { return members_.get()[b]; }
    Sample<T>& sample(int64_t b, int side) const { return member(b).samples[side]; }
    bool is_empty(int64_t b) const { return !sample(b, 0).count || !sample(b, sides_ - 1).count; }
    const Term* cross(const Member<T>& own, int rows) const {
        for (int i = 0; i < own.term_count; ++i)
            if (own.terms[i].rows == rows && own.terms[i].columns != rows) return &own.terms[i];
        return nullptr;
    }

    // The member of a task, the last one before which there are at most `at` of its kind.
    int64_t member_of(int64_t at, int64_t Member<T>::* first) const {
        int64_t b = 0;
        for (int64_t end = task_.batch; end - b > 1;) {
            const int64_t middle = b + (end - b) / 2;
            (member(middle).*first <= at ? b : end) = middle;
        }
        return b;
    }

    // Stages one sample of member b and finds its moments.
    void prepare(int64_t b, int side) {
        if (is_empty(b)) return;
        Sample<T>& own = sample(b, side);
        const int64_t size = own.count, at = own.staged + (side ? totals_.staged[0] : 0);
        own.points = points(side) + own.base * dim_;
        own.weights = weights(side) ? weights(side) + own.base : nullptr;
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
        own.a = !task_.unbiased ? 1 : size > 1 ? 1 / (1 - squares) : NAN;
        find_moments(own.columns, own.scale, own.moments);
    }

    void plan(int64_t b) {
        if (is_empty(b)) return;
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
        const int64_t b = member_of(at, &Member<T>::first_strip);
        const Member<T>& own = member(b);
        double* rung_sums = per_rung_ ? rung_sums_.get() + at * 2 * count_ : nullptr;
        if (rung_sums) memset(rung_sums, 0, 2 * count_ * sizeof(double));
        int64_t strip = at - own.first_strip;
        const Term* term = own.terms;
        for (; strip >= term->strips; ++term) strip -= term->strips;
        if (term - own.terms == 3) rung_sums = nullptr;  // counted by the rows of x
        const int64_t size = column_sums(own, *term);
        double* sums = term->grad_columns ? term->sums + strip * size : nullptr;
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
        for (int i = 0; i < block.rows; ++i) {
            term.value[first + i] = other.scale * block.value[i] - plan.offset * other.moments.mass;
            if (term.grad_rows)
                for (int d = 0; d < dim_; ++d)
                    term.gradient[(first + i) * dim_ + d] = block.row_gradient(i, d, dim_);
        }
    }

    // Adds up the strips' sums over the columns of tile t: [dim][width].
    const double* add_strips(const Member<T>& own, const Term& term, int64_t t, int width) const {
        const int64_t size = column_sums(own, term);
        double* total = term.sums + t * dim_ * width;
        for (int64_t strip = 1; strip < term.strips; ++strip)
            for (int k = 0; k < dim_ * width; ++k) total[k] += total[strip * size + k];
        return total;
    }

    // 4 w_i [a sum_j w_j k' (x_i - x_j) - sum_j v_j k' (x_i - y_j)] for one tile of points, the slopes k'
    // completed by what was shifted away.
    void point_gradients(int64_t b, int side, int64_t t) const {
        const Sample<T>&own = sample(b, side), &other = sample(b, sides_ == 2 ? 1 - side : side);
        const Term &self = member(b).terms[side], *cross = sides_ == 2 ? &member(b).terms[2] : nullptr;
        const int width = own.columns.width;
        const double* self_sums = self.grad_columns ? add_strips(member(b), self, t, width) : nullptr;
        const double* cross_sums = cross && side == 1 ? add_strips(member(b), *cross, t, width) : nullptr;
        const double shift = plans_[b].shift;
        const double self_shift = shift * own.a, cross_shift = cross ? shift : 0;
        T* grad = grad_points(side) + own.base * dim_;
        for (int64_t i = t * width; i < smaller<int64_t>((t + 1) * width, own.count); ++i)
            for (int d = 0; d < dim_; ++d) {
                const int64_t at = i * dim_ + d, in_tile = d * width + i - t * width;
                const double x = (double)own.points[i * dim_ + d];
                double sum = self.gradient[at] + (self_sums ? self_sums[in_tile] : 0);
                sum *= own.a * own.scale;
                if (cross) sum -= other.scale * (cross_sums ? cross_sums[in_tile] : cross->gradient[at]);
                if (self_shift != 0) sum += self_shift * own.moments.linear(x, d);
                if (cross_shift != 0) sum -= cross_shift * other.moments.linear(x, d);
                grad[at] = (T)(4 * own.weight(i) * sum);
            }
    }

    // Everything that sums over the rows of member b, in their order.
    void finish(int64_t b) {
        const Member<T>& member = this->member(b);
        if (is_empty(b)) return finish_empty(b);
        double value = 0;
        for (int side = 0; side < sides_; ++side) {
            const Sample<T>& own = member.samples[side];
            const Term* other = cross(member, side);
            double* of_self = member.terms[side].value;
            const double* of_other = other ? other->value : nullptr;
            const double self = own.total(of_self);
            value += own.a * self;
            if (of_other && side == 0) value -= 2 * own.total(of_other);
            if (!grad_weights(side)) continue;
            // In the normalized weights first, then through their normalization.
            for (int64_t i = 0; i < own.count; ++i) {
                double& g = of_self[i] *= 2 * own.a;
                if (of_other) g -= 2 * of_other[i];
                if (task_.unbiased) g += 2 * own.a * own.a * own.weight(i) * self;
            }
            const double mean = own.total(of_self);
            T* grad = grad_weights(side) + own.base;
            for (int64_t i = 0; i < own.count; ++i) grad[i] = (T)((of_self[i] - mean) * own.scale);
        }
        task_.value[b] = value;
        if (!per_rung_) return;
        double* sums = rung_sums_.get() + member.first_strip * 2 * count_;
        for (int64_t strip = 1; strip < member.strips; ++strip)
            for (int s = 0; s < 2 * count_; ++s) sums[s] += sums[strip * 2 * count_ + s];
        rung_gradients(plans_[b], sums,
                       task_.grad_bandwidths ? (T*)task_.grad_bandwidths + b * count_ : nullptr,
                       task_.grad_kernel_weights ? (T*)task_.grad_kernel_weights + b * count_ : nullptr);
    }

    // A member without points on one side is NaN, without any 0, and so are its gradients.
    void finish_empty(int64_t b) const {
        const double value = sample(b, 0).count == sample(b, sides_ - 1).count ? 0 : NAN;
        task_.value[b] = value;
        for (int side = 0; side < sides_; ++side) {
            const Sample<T>& own = sample(b, side);
            fill(grad_points(side), own.base * dim_, own.count * dim_, value);
            fill(grad_weights(side), own.base, own.count, value);
        }
        fill((T*)task_.grad_bandwidths, b * count_, count_, value);
        fill((T*)task_.grad_kernel_weights, b * count_, count_, value);
    }

    // Rows of no member have no gradient.
    void clear_behind(int side) const {
        const int64_t* offsets = side ? task_.y_offsets : task_.x_offsets;
        if (!offsets) return;
        const int64_t first = offsets[task_.batch], count = (side ? task_.m : task_.n) - first;
        fill(grad_points(side), first * dim_, count * dim_, 0);
        fill(grad_weights(side), first, count, 0);
    }

    static void fill(T* array, int64_t first, int64_t count, double value) {
        for (int64_t i = 0; array && i < count; ++i) array[first + i] = (T)value;
    }

    const Mmd2& task_;
    const int dim_, count_, sides_;
    const bool per_rung_;
    const Buffer<Member<T>> members_;
    const Totals totals_;
    const int threads_;
    const BlockMemory<T> blocks_;
    const Buffer<T> coordinates_, mass_;
    const Buffer<double> sums_, moments_, rung_sums_;
    const PlanMemory<T> plans_;
};

}  // namespace

bool mmd2(const Mmd2& task) {
    return task.is_double ? Mmd2Run<double>(task).run() : Mmd2Run<float>(task).run();
}

}  // namespace fastmmd::FASTMMD_ISA
