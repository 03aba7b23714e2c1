// mmd2: every pair of points once, value and gradients in one pass.
#include "finish.hpp"
#include "product_run.hpp"
#include "wide_run.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

template <class T> class Mmd2Run {
  public:
    explicit Mmd2Run(const Mmd2& task)
        : task_(task),
          dim_(task.dim),
          count_(task.kernel.count),
          per_rung_(task.gradients.bandwidths || task.gradients.kernel_weights),
          layout_(task),
          threads_(useful_threads(task.threads, layout_.steps())),
          outer_(task.batch >= threads_ ? threads_ : 1),
          blocks_(threads_, layout_.wide() ? 0 : dim_, count_),
          coordinates_((layout_.staged(0) + layout_.staged(1)) * layout_.stride()),
          mass_(layout_.staged(0) + layout_.staged(1)),
          sums_(layout_.doubles()),
          moments_(task.batch * 4 * layout_.stride()),
          rung_sums_(per_rung_ ? layout_.strips() * 2 * count_ : 0),
          kept_(outer_ * layout_.kept()),
          plans_(task.batch, count_),
          products_(task, layout_, threads_, outer_),
          finish_(task, layout_, plans_, per_rung_ ? rung_sums_.get() : nullptr) {}

    bool run() {
        if (!layout_ || !blocks_ || !coordinates_ || !mass_ || !sums_ || !moments_ || !rung_sums_ || !kept_ ||
            !plans_ || !products_)
            return false;
        const int sides = layout_.sides();
        layout_.place(sums_.get());
        if (layout_.wide()) {
            // Members side by side, or one after another by all threads.
            parallel_for(task_.batch, outer_, [&](int64_t b, int thread) { run_wide(b, thread); });
            finish_.clear_behind();
            return true;
        }
        parallel_for(task_.batch * sides, beside(6),
                     [&](int64_t i, int) { prepare(i / sides, (int)(i % sides)); });
        parallel_for(task_.batch, beside(1), [&](int64_t b, int) { plan(b); });
        parallel_for(layout_.strips(), threads_, [&](int64_t at, int thread) { run_strip(at, thread); });
        parallel_for(layout_.tiles(), beside(most_strips), [&](int64_t at, int) {
            const int64_t b = layout_.member_of(at, &Member<T>::first_tile);
            const int64_t t = at - layout_.member(b).first_tile, of_x = layout_.side(b, 0).tiles();
            const int side = t >= of_x;
            if (grad_points(side)) point_gradients(b, side, side ? t - of_x : t);
        });
        parallel_for(task_.batch, beside(1), [&](int64_t b, int) { finish_(b); });
        finish_.clear_behind();
        return true;
    }

  private:
    // Threads for so many steps with every coordinate, and some with every member.
    int beside(double steps, int threads) const {
        const int64_t coordinates = (layout_.staged(0) + layout_.staged(1)) * dim_;
        return threads_beside(threads, steps * coordinates / lanes<T> + 1e3 * (double)task_.batch);
    }
    int beside(double steps) const { return beside(steps, threads_); }

    const Sample& sample(int side) const { return side ? task_.y : task_.x; }
    T* grad_points(int side) const { return (T*)(side ? task_.gradients.y : task_.gradients.x); }

    // Finds what one sample of member b counts.
    void weigh(int64_t b, int side) {
        Side<T>& own = layout_.side(b, side);
        const int64_t size = own.count;
        const T* weights = (const T*)sample(side).weights;
        own.points = (const T*)sample(side).points + own.base * dim_;
        own.weights = weights ? weights + own.base : nullptr;
        own.moments.mean = moments_.get() + (4 * b + 2 * side) * layout_.stride();
        own.moments.moment = own.moments.mean + layout_.stride();
        double total = own.weights ? 0 : (double)size;
        if (own.weights)
            for (int64_t i = 0; i < size; ++i) total += (double)own.weights[i];
        own.scale = 1 / total;
        double squares = 0;
        for (int64_t i = 0; i < size; ++i) squares += own.weight(i) * own.weight(i);
        own.a = !task_.unbiased ? 1 : size > 1 ? 1 / (1 - squares) : NAN;
    }

    int64_t place(const Side<T>& own, int side) const { return own.staged + (side ? layout_.staged(0) : 0); }

    // Stages one sample of member b and finds its moments.
    void prepare(int64_t b, int side) {
        if (layout_.is_empty(b)) return;
        weigh(b, side);
        Side<T>& own = layout_.side(b, side);
        const int64_t size = own.count, at = place(own, side);
        T* const mass = mass_.get() + at;
        T* const staged = coordinates_.get() + at * layout_.stride();
        if (layout_.wide()) return prepare_rows(own, dim_, staged, mass);
        own.columns = stage<T>(own.points, own.weights, size, dim_, staged, mass);
        find_moments(own.columns, own.scale, own.moments);
    }

    // One member in many dimensions, by the thread that it is for or, with `outer_` 1, by all.
    void run_wide(int64_t b, int outer) {
        const int threads = outer_ > 1 ? 1 : threads_, sides = layout_.sides();
        if (layout_.products(b) && !layout_.is_empty(b) && run_products(b, outer, threads)) return finish_(b);
        parallel_for(sides, beside(6, threads), [&](int64_t side, int) { prepare(b, (int)side); });
        plan(b);
        if (layout_.is_empty(b)) return finish_(b);
        clear_rungs(b);
        const WideRun<T> run(task_, layout_, blocks_, b, plans_[b], per_rung_ ? rung_sums_.get() : nullptr);
        run(kept_.get() + outer * layout_.kept(), outer, threads);
        finish_(b);
    }

    void clear_rungs(int64_t b) {
        const Member<T>& own = layout_.member(b);
        if (per_rung_)
            memset(rung_sums_.get() + own.first_strip * 2 * count_, 0,
                   own.strips * 2 * count_ * sizeof(double));
    }

    // One member by products; false: the data do not allow it, and nothing was done.
    bool run_products(int64_t b, int outer, int threads) {
        ProductSide<T> of[2];
        parallel_for(layout_.sides(), beside(6, threads), [&](int64_t side, int) {
            weigh(b, (int)side);
            const int64_t at = place(layout_.side(b, (int)side), (int)side);
            products_.prepare(b, (int)side, outer, at, mass_.get() + at, of[side]);
        });
        clear_rungs(b);
        double* const rungs =
            per_rung_ ? rung_sums_.get() + layout_.member(b).first_strip * 2 * count_ : nullptr;
        return products_.run(b, of, outer, outer, threads, blocks_, plans_[b], [&] { plan(b); }, rungs);
    }

    void plan(int64_t b) {
        if (layout_.is_empty(b)) return;
        const Moments &x = layout_.side(b, 0).moments, &y = layout_.side(b, layout_.sides() - 1).moments;
        Distances distances = distances_between(x, y, dim_);
        const Moments* samples[2] = {&x, &y};
        for (const Moments* own : samples)
            distances.farthest = larger(distances.farthest, distances_between(*own, *own, dim_).farthest);
        // The rounded coefficients of the folded kernel are a kernel that is off by 2^-25, for all pairs
        // alike. That cancels between the terms, but not where one of them is computed elsewhere: beside the
        // self-term of x alone in closed form, of a fixed y by a call of its own.
        plans_.make(b, task_.kernel, dim_, distances, per_rung_, task_.y.points && !task_.fixed_y);
    }

    void run_strip(int64_t at, int thread) {
        const int64_t b = layout_.member_of(at, &Member<T>::first_strip);
        const Member<T>& own = layout_.member(b);
        double* rung_sums = per_rung_ ? rung_sums_.get() + at * 2 * count_ : nullptr;
        if (rung_sums) memset(rung_sums, 0, 2 * count_ * sizeof(double));
        int64_t strip = at - own.first_strip;
        const Term* term = own.terms;
        for (; strip >= term->strips; ++term) strip -= term->strips;
        if (term - own.terms == 3) rung_sums = nullptr;  // counted by the rows of x
        const int64_t size = layout_.column_sums(own, *term);
        double* sums = term->grad_columns ? term->sums + strip * size : nullptr;
        if (sums) memset(sums, 0, size * sizeof(double));
        for (int64_t block = strip; block < term->blocks; block += term->strips)
            run_block(b, *term, block * block_rows, sums, rung_sums, blocks_.of(thread));
    }

    void run_block(int64_t b, const Term& term, int64_t first, double* sums, double* rung_sums,
                   Block<T> block) {
        const Side<T>&own = layout_.side(b, term.rows), &other = layout_.side(b, term.columns);
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

    // 4 w_i [a sum_j w_j k' (x_i - x_j) - sum_j v_j k' (x_i - y_j)] for one tile of points, the slopes k'
    // completed by what was shifted away.
    void point_gradients(int64_t b, int side, int64_t t) const {
        const int sides = layout_.sides();
        const Member<T>& member = layout_.member(b);
        const Side<T>&own = member.sides[side], &other = member.sides[sides == 2 ? 1 - side : side];
        const Term &self = member.terms[side], *cross = sides == 2 ? &member.terms[2] : nullptr;
        const int width = own.columns.width;
        const double* self_sums = self.grad_columns ? layout_.add_strips(member, self, t, width) : nullptr;
        const double* cross_sums =
            cross && side == 1 ? layout_.add_strips(member, *cross, t, width) : nullptr;
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

    const Mmd2& task_;
    const int dim_, count_;
    const bool per_rung_;
    const Layout<T> layout_;
    const int threads_, outer_;  // of all, and those that take a member each
    const BlockMemory<T> blocks_;
    const Buffer<T> coordinates_, mass_;
    const Buffer<double> sums_, moments_, rung_sums_;
    const Buffer<T> kept_;  // slopes
    const PlanMemory<T> plans_;
    const Products<T> products_;
    const Finish<T> finish_;
};

}  // namespace

bool mmd2(const Mmd2& task) {
    return task.is_double ? Mmd2Run<double>(task).run() : Mmd2Run<float>(task).run();
}

}  // namespace fastmmd::FASTMMD_ISA
