// One member of mmd2 in many dimensions, panel of rows by panel: their slopes against all columns first, and
// then, from these, their gradients. Every sum belongs to one task, so its bits do not depend on the threads.
#pragma once
#include "layout.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

// Moments and masses of one sample, whose points serve as they are if their rows suit and they are finite.
template <class T>
void prepare_rows(Side<T>& own, int dim,
                  T* copy,    // [count][stride]
                  T* mass) {  // [count, rounded up to the lanes]
    const int64_t stride = row_stride<T>(dim);
    own.rows = {own.count, stride, round_up(dim, lanes<T>), own.points};
    double rest = 0;  // NaN where a point is not finite
    if (stride == dim) {
        find_row_moments(own.rows, own.weights, own.scale, own.moments);
        for (int d = 0; d < dim; ++d) rest += own.moments.mean[d] - own.moments.mean[d];
    }
    if (stride != dim || rest != 0) {
        fill_rows(own.points, own.count, dim, stride, copy);
        own.rows.points = copy;
        find_row_moments(own.rows, own.weights, own.scale, own.moments);
    }
    for (int64_t j = 0; j < round_up(own.count, lanes<T>); ++j)
        mass[j] = j >= own.count ? T(0) : own.weights ? own.weights[j] : T(1);
    own.columns = {own.count, dim, tile_width<T>(own.count), nullptr, mass};
}

template <class T> class WideRun {
  public:
    WideRun(const Mmd2& task, const Layout<T>& layout, const BlockMemory<T>& blocks, int64_t b,
            const Plan<T>& plan, double* rung_sums)
        : task_(task),
          layout_(layout),
          blocks_(blocks),
          own_(layout.member(b)),
          plan_(plan),
          rung_sums_(rung_sums),
          dim_(task.dim) {}

    // Threads from the first one on; `kept` are the slopes of a panel, of all terms.
    void operator()(T* kept, int first_thread, int threads) const {
        for (int64_t panel = 0; panel < layout_.panels(own_); ++panel) {
            Panel of_terms[4], of_sides[2];
            int64_t blocks = 0, slabs = 0;
            for (int i = 0; i < own_.term_count; ++i)
                blocks += (of_terms[i] = panel_of(own_.terms[i], panel)).tasks;
            for (int side = 0; side < layout_.sides(); ++side)
                slabs += (of_sides[side] = panel_of(side, panel)).tasks;
            parallel_for(blocks, threads, [&](int64_t at, int thread) {
                int i = 0;
                for (; at >= of_terms[i].tasks; ++i) at -= of_terms[i].tasks;
                run_strip(own_.terms[i], of_terms[i], at, kept, first_thread + thread);
            });
            parallel_for(slabs, threads, [&](int64_t at, int) {
                const int side = at >= of_sides[0].tasks;
                gradients(side, of_sides[side], side ? at - of_sides[0].tasks : at, kept);
            });
        }
    }

  private:
    T* grad_points(int side) const { return (T*)(side ? task_.gradients.y : task_.gradients.x); }

    // Blocks of rows of one term or side in one panel, and the tasks that these are.
    struct Panel {
        int64_t first, last, tasks;
    };

    // Without slopes to keep all blocks are in the first panel.
    Panel panel_of(const Term& term, int64_t panel) const {
        const int64_t size = layout_.panel(own_) / term.block;
        if (!term.keeps) return panel ? Panel{0, 0, 0} : Panel{0, term.blocks, term.strips};
        const int64_t first = smaller(panel * size, term.blocks), last = smaller(first + size, term.blocks);
        return {first, last, smaller(last - first, term.strips)};
    }

    Panel panel_of(int side, int64_t panel) const {
        const int64_t rows = layout_.block(own_, side), size = layout_.panel(own_) / rows;
        const int64_t blocks = grad_points(side) ? blocks_of(own_.sides[side].count, rows) : 0,
                      first = smaller(panel * size, blocks), last = smaller(first + size, blocks);
        return {first, last, (last - first) * blocks_of(round_up(task_.dim, lanes<T>), slab<T>)};
    }

    // Those blocks of a panel that belong to one strip.
    void run_strip(const Term& term, const Panel& panel, int64_t at, T* kept, int thread) const {
        int64_t strips = own_.first_strip;
        for (const Term* before = own_.terms; before != &term; ++before) strips += before->strips;
        for (int64_t block = panel.first + at; block < panel.last; block += term.strips) {
            double* rung_sums = rung_sums_ && &term - own_.terms < 3
                                    ? rung_sums_ + (strips + block % term.strips) * 2 * task_.kernel.count
                                    : nullptr;
            T* const slopes =
                term.keeps ? kept + term.kept + (block - panel.first) * term.block * term.stride : nullptr;
            run_block(term, block * term.block, slopes, rung_sums, blocks_.of(thread));
        }
    }

    void run_block(const Term& term, int64_t first, T* slopes, double* rung_sums,
                   const Block<T>& block) const {
        const Side<T>&own = own_.sides[term.rows], &other = own_.sides[term.columns];
        const int rows = (int)smaller<int64_t>(term.block, own.count - first);
        double value[large_block_rows] = {}, factors[large_block_rows];
        for (int i = 0; i < rows; ++i)
            factors[i] = (term.rows == term.columns ? own.a : -2) * own.weight(first + i) * other.scale;
        int64_t next;
        for (int64_t j = term.half ? first : 0; j < other.count; j = next) {
            const bool itself = term.half && j == first;  // both ways; columns behind it count twice
            next = smaller<int64_t>(j + (itself ? term.block : wide_columns), other.count);
            const int used = (int)round_up(next - j, lanes<T>);
            const T* mass = other.columns.mass + j;
            wide_distances(own.rows, first, rows, other.rows, j, used, block.r);
            for (int i = 0; i < rows; ++i) {
                T* r = block.r + i * wide_columns;
                const double times = term.half && !itself ? 2 : 1;
                if (rung_sums)
                    value[i] += times * plan_.evaluate_per_rung(plan_, mass, used, r, times * factors[i],
                                                                block.chunk, block.partial, rung_sums);
                else
                    value[i] +=
                        times * (slopes ? plan_.evaluate : plan_.evaluate_value)(plan_, mass, used, r);
                if (!slopes) continue;
                T* const kept = slopes + i * term.stride + j;
                for (int k = 0; k < used; k += lanes<T>) store(kept + k, load(r + k) * load(mass + k));
            }
            if (slopes && term.half && !itself) {  // the same pairs as the later rows see them
                const T* mine = own.columns.mass + first;
                T* const mirrored = slopes + (j - first) * term.stride + first;
                for (int64_t k = 0; k < next - j; ++k)
                    for (int i = 0; i < rows; ++i)
                        mirrored[k * term.stride + i] = block.r[i * wide_columns + k] * mine[i];
            }
        }
        for (int i = 0; i < rows; ++i)
            term.value[first + i] = other.scale * value[i] - plan_.offset * other.moments.mass;
    }

    // What point_gradients has, for a block of rows and some dimensions.
    void gradients(int side, const Panel& panel, int64_t at, const T* kept) const {
        const int sides = layout_.sides();
        const int64_t of_block = layout_.block(own_, side);
        const int64_t blocks = panel.last - panel.first, block = at % blocks, row = block * of_block;
        const int64_t first = (panel.first + block) * of_block, from = at / blocks * slab<T>;
        const Side<T>&own = own_.sides[side], &other = own_.sides[sides == 2 ? 1 - side : side];
        const int rows = (int)smaller<int64_t>(of_block, own.count - first),
                  width = (int)smaller<int64_t>(slab<T>, own.rows.length - from);
        alignas(64) double sums[large_block_rows * slab<T>];
        memset(sums, 0, rows * slab<T> * sizeof(double));
        const auto add = [&](const Term& term, const Side<T>& columns, double factor) {
            const T* const c = kept + term.kept;
            const bool by_columns = term.rows != side;  // x with y, seen from y
            const Coefficients<T> of = by_columns ? Coefficients<T>{c + row, 1, term.stride}
                                                  : Coefficients<T>{c + row * term.stride, term.stride, 1};
            add_wide_differences(own.rows, first, rows, columns.rows, of, factor, from, width, sums);
        };
        add(own_.terms[side], own, own.a * own.scale);
        const bool alone = side == 1 && own_.term_count == 4 && own_.terms[3].keeps;
        if (sides == 2) add(own_.terms[alone ? 3 : 2], other, -other.scale);
        const double shift = plan_.shift, self_shift = shift * own.a, cross_shift = sides == 2 ? shift : 0;
        T* grad = grad_points(side) + own.base * dim_;
        for (int64_t i = first; i < first + rows; ++i)
            for (int64_t d = from; d < smaller<int64_t>(from + width, dim_); d += lanes<T>) {
                const Halves<T> x = load_as_double(own.rows.row(i) + d);
                for (int64_t h = 0; h < Halves<T>::count; ++h) {
                    const int64_t at = d + h * lanes<double>,
                                  count = smaller<int64_t>(lanes<double>, dim_ - at);
                    Vector<double> sum = load(sums + (i - first) * slab<T> + at - from);
                    if (self_shift != 0) sum += self_shift * linear_of(own.moments, x.of[h], at);
                    if (cross_shift != 0) sum -= cross_shift * linear_of(other.moments, x.of[h], at);
                    const auto result =
                        __builtin_convertvector(4 * own.weight(i) * sum, Vector<T, lanes<double>>);
                    if (count == lanes<double>)
                        memcpy(grad + i * dim_ + at, &result, sizeof result);
                    else if (count > 0)
                        memcpy(grad + i * dim_ + at, &result, count * sizeof(T));
                }
            }
    }

    const Mmd2& task_;
    const Layout<T>& layout_;
    const BlockMemory<T>& blocks_;
    const Member<T>& own_;
    const Plan<T>& plan_;
    double* const rung_sums_;  // [strips][2 * S] of all members; null: not needed
    const int dim_;
};

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
