// How mmd2 divides its work: the members of a batch, the double sums of each, the strips of these that run in
// parallel, and where in memory what they add up is. All of it follows from sizes alone, so the order of the
// sums, and their bits, do not depend on the number of threads.
#pragma once
#include "wide.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

// One of the two samples in one member of the batch.
template <class T> struct Side {
    int64_t base, count;  // its rows in the arrays over all members
    int64_t staged;       // the same in coordinates and mass: the columns before its own
    const T* points;      // [count, dim]
    const T* weights;     // [count] or null: ones; as given, normalized here in double
    Columns<T> columns;
    Rows<T> rows;  // in many dimensions, in which columns have no coordinates
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
    int block;         // rows of one
    bool keeps;        // in many dimensions: slopes for the gradients in its rows
    int64_t kept;      // where, in those of the member: [panel_rows][stride]
    int64_t stride;    // the columns, rounded up to the lanes
    double* value;     // [count of rows]: sum_j w_j u
    double* gradient;  // [count of rows][dim]: sum_j mass_j slope_j (row - column)
    double* sums;      // [strips][tiles][dim][width]: the same of the columns
};

// One member of the batch. Members may differ in size, and then in the number of their tasks.
template <class T> struct Member {
    Side<T> sides[2];
    Term terms[4];  // x with itself; y with itself, x with y, y with x
    int term_count;
    int64_t strips;                   // of all terms
    int64_t first_strip, first_tile;  // tasks of the members before

    // The rows' values against the other sample, where there is a term with these rows.
    double* cross_value(int rows) const {
        for (int i = 0; i < term_count; ++i)
            if (terms[i].rows == rows && terms[i].columns != rows) return terms[i].value;
        return nullptr;
    }
};

// In many dimensions pairs are taken as wide.hpp does it: distances and slopes of a panel of rows against all
// columns, and then their gradients; in fewer of them, for not so many points.
constexpr int narrow_dims = 24, always_wide_dims = 48;
constexpr int64_t wide_points = 4096;
// Rows of a panel, of which the slopes against all columns are kept, and of a block: small blocks make more
// tasks, large ones read the columns less often.
constexpr int panel_rows = 256, small_panel_rows = 64, large_block_rows = 64;
constexpr int64_t small_panel_points = 8192;

template <class T> class Layout {
  public:
    explicit Layout(const Mmd2& task) : task_(task), members_(task.batch) {
        if (!members_) return;
        for (int64_t b = 0; b < task.batch; ++b) {
            for (int side = 0; side < sides(); ++side) {
                measure(b, side);
                largest_of_[side] = larger(largest_of_[side], this->side(b, side).count);
            }
            largest_ = larger(largest_, points(member(b)));
        }
        wide_ =
            products() || task.dim > always_wide_dims || (task.dim > narrow_dims && largest_ <= wide_points);
        for (int64_t b = 0; b < task.batch; ++b) list_terms(b);
    }
    explicit operator bool() const { return (bool)members_; }

    // By matrix products, some members at least, or one of them.
    bool products() const {
        return task_.product_points >= 0 && larger(largest_of_[0], largest_of_[1]) > task_.product_points;
    }
    bool products(int64_t b) const {
        const Member<T>& own = member(b);
        return products() && larger(own.sides[0].count, own.sides[sides() - 1].count) > task_.product_points;
    }
    // In many dimensions.
    bool wide() const { return wide_; }
    int64_t stride() const { return wide_ ? row_stride<T>(task_.dim) : task_.dim; }
    int64_t kept() const { return kept_; }  // slopes of a member, at most
    // One panel for either side: it sees every pair of a sample from both sides, so half of them are enough.
    bool in_one_panel(const Member<T>& own) const {
        return own.sides[0].count <= panel_rows && own.sides[sides() - 1].count <= panel_rows;
    }
    // The slopes of x with y serve y as well, where the masses in them are ones.
    bool shares(const Member<T>& own) const {
        return in_one_panel(own) && !task_.x.weights && !task_.y.weights;
    }
    int panel(const Member<T>& own) const {
        return points(own) <= small_panel_points ? panel_rows : small_panel_rows;
    }
    int block(const Member<T>& own, int side) const {
        return own.sides[side].count <= panel_rows || panel(own) < panel_rows ? block_rows : large_block_rows;
    }
    int64_t panels(const Member<T>& own) const {
        const int64_t x = task_.gradients.x ? own.sides[0].count : 0,
                      y = task_.gradients.y ? own.sides[1].count : 0;
        return larger<int64_t>(1, blocks_of(larger(x, y), panel(own)));
    }

    int64_t largest(int side) const { return largest_of_[side]; }  // points of a member
    int sides() const { return task_.y.points ? 2 : 1; }
    Member<T>& member(int64_t b) const { return members_.get()[b]; }
    Side<T>& side(int64_t b, int side) const { return member(b).sides[side]; }
    bool is_empty(int64_t b) const { return !side(b, 0).count || !side(b, sides() - 1).count; }

    // Of all members: columns as they are staged, sums of all terms, tasks, and steps of elementary work.
    int64_t staged(int side) const { return staged_[side]; }
    int64_t doubles() const { return doubles_; }
    int64_t strips() const { return strips_; }
    int64_t tiles() const { return tiles_; }
    double steps() const { return steps_; }

    // Gives every term its place in the sums [doubles()].
    void place(double* at) const {
        for (int64_t b = 0; b < task_.batch; ++b)
            for (int i = 0; i < member(b).term_count; ++i) {
                Term& term = member(b).terms[i];
                const int64_t rows = side(b, term.rows).count;
                term.value = at;
                term.gradient = at + rows;
                term.sums = term.gradient + (term.grad_rows ? rows * task_.dim : 0);
                at += doubles(member(b), term);
            }
    }

    // Of the columns' sums of one strip.
    int64_t column_sums(const Member<T>& own, const Term& term) const {
        return staged_size<T>(own.sides[term.columns].count, task_.dim);
    }

    // Adds up the strips' sums over the columns of tile t: [dim][width].
    const double* add_strips(const Member<T>& own, const Term& term, int64_t t, int width) const {
        const int64_t size = column_sums(own, term);
        double* total = term.sums + t * task_.dim * width;
        for (int64_t strip = 1; strip < term.strips; ++strip)
            for (int k = 0; k < task_.dim * width; ++k) total[k] += total[strip * size + k];
        return total;
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

  private:
    // Of both samples.
    int64_t points(const Member<T>& own) const {
        return own.sides[0].count + (sides() == 2 ? own.sides[1].count : 0);
    }

    void measure(int64_t b, int side) {
        const Sample& sample = side ? task_.y : task_.x;
        Side<T>& own = this->side(b, side);
        own.base = sample.offsets ? sample.offsets[b] : b * sample.count;
        own.count = sample.offsets ? sample.offsets[b + 1] - own.base : sample.count;
        own.staged = staged_[side];
        staged_[side] += staged_size<T>(own.count, 1);
    }

    void list_terms(int64_t b) {
        Member<T>& own = member(b);
        own.first_strip = strips_, own.first_tile = tiles_;
        own.term_count = 0;
        own.strips = 0;
        kept_of_member_ = 0;
        if (is_empty(b)) return;
        const bool grad_x = task_.gradients.x, grad_y = task_.gradients.y;
        const bool y_alone = wide_ && grad_y && !shares(own);
        add_term(own, 0, 0, grad_x, grad_x);
        if (sides() == 2) {
            add_term(own, 1, 1, grad_y, grad_y);
            add_term(own, 0, 1, grad_x, grad_y && !y_alone);
            if (task_.gradients.y_weights || y_alone)
                add_term(own, 1, 0, y_alone, false);  // the cross term by rows of y
        }
        kept_ = larger(kept_, kept_of_member_);
        double points = 0;
        for (int side = 0; side < sides(); ++side) {
            tiles_ += own.sides[side].tiles();
            points += (double)own.sides[side].count;
        }
        strips_ += own.strips;
        const double left_out = task_.fixed_y ? (double)own.sides[1].count : 0;
        const double pairs = (points * points - left_out * left_out) / 2;
        steps_ += pairs * (task_.dim + 2 * task_.kernel.count) / lanes<T>;
    }

    void add_term(Member<T>& own, int rows, int columns, bool grad_rows, bool grad_columns) {
        Term& term = own.terms[own.term_count++];
        const bool grad_weights = rows ? task_.gradients.y_weights : task_.gradients.x_weights;
        term.rows = rows;
        term.columns = columns;
        term.half = rows == columns && !grad_weights;  // which needs the value of every row
        term.grad_rows = grad_rows;
        term.grad_columns = grad_columns && (term.half || rows != columns);
        term.block = wide_ ? block(own, rows) : block_rows;
        const bool left_out = task_.fixed_y && rows == 1;
        term.blocks = left_out ? 0 : blocks_of(own.sides[rows].count, term.block);
        if (wide_) {
            term.keeps = grad_rows || grad_columns;
            term.half = term.half && (!term.keeps || in_one_panel(own));
            term.grad_rows = term.grad_columns = false;
            term.stride = round_up(own.sides[columns].count, lanes<T>);
            term.kept = kept_of_member_;
            if (term.keeps)
                kept_of_member_ += smaller<int64_t>(panel(own), term.blocks * term.block) * term.stride;
        }
        term.strips = smaller<int64_t>(term.blocks, most_strips);
        if (term.grad_columns) {  // sums that are worth adding up, and 16 MB of them
            const int64_t fit = ((int64_t)1 << 21) / (staged_[columns] * task_.dim);
            term.strips =
                larger<int64_t>(1, smaller(term.blocks / 4, smaller(term.strips, larger<int64_t>(4, fit))));
        }
        own.strips += term.strips;
        doubles_ += doubles(own, term);
    }

    int64_t doubles(const Member<T>& own, const Term& term) const {
        return own.sides[term.rows].count * (1 + (term.grad_rows ? task_.dim : 0)) +
               (term.grad_columns ? term.strips * column_sums(own, term) : 0);
    }

    const Mmd2& task_;
    bool wide_ = false;
    const Buffer<Member<T>> members_;
    int64_t staged_[2] = {}, doubles_ = 0, strips_ = 0, tiles_ = 0, kept_ = 0, kept_of_member_ = 0,
            largest_ = 0, largest_of_[2] = {};
    double steps_ = 0;
};

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
