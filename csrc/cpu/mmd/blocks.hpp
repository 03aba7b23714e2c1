// What mmd2 and witness share: moments of a sample, and sums of rows over all columns.
#pragma once
#include "kernels.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

// What the plan and the linear part of the gradients need to know of one sample.
struct Moments {
    double* mean;     // [dim], every point alike
    double farthest;  // largest |x - mean|^2
    double spread;    // its mean over the points
    double mass;      // sum_j w_j
    double* moment;   // [dim]: sum_j w_j (x_j - mean)

    double linear(double x, int d) const { return mass * (x - mean[d]) - moment[d]; }  // sum_j w_j (x - x_j)
};

// body(coordinates, mass, live) for every vector of columns; `live` is 1, and 0 in the padding.
template <class T, class Body> void for_each_column(const Columns<T>& columns, const Body& body) {
    for (int64_t t = 0; t < columns.tiles(); ++t) {
        const int64_t left = columns.count - t * columns.width;
        for (int j = 0; j < columns.used(t); j += lanes<T>) {
            Wide<T> live = {};
            for (int lane = 0; lane < lanes<T>; ++lane) live[lane] = j + lane < left;
            body(columns.tile(t) + j, widen<T>(load(columns.mass + t * columns.width + j)), live);
        }
    }
}

template <class T>
void find_moments(const Columns<T>& columns,
                  double scale,  // of the weights
                  Moments& moments) {
    const int dim = columns.dim, width = columns.width;
    for (int d = 0; d < dim; ++d) moments.mean[d] = moments.moment[d] = 0;
    for (int d = 0; d < dim; ++d) {
        Wide<T> sum = {};
        for_each_column(columns, [&](const T* coordinates, Wide<T>, Wide<T> live) {
            sum += live * widen<T>(load(coordinates + (int64_t)d * width));
        });
        moments.mean[d] = sum_halves<lanes<T>>(sum) / (double)columns.count;
    }
    Wide<T> farthest = {}, total = {}, mass = {};
    for_each_column(columns, [&](const T* coordinates, Wide<T> weight, Wide<T> live) {
        Wide<T> squares = {};
        for (int d = 0; d < dim; ++d) {
            const Wide<T> spread = widen<T>(load(coordinates + (int64_t)d * width)) - moments.mean[d];
            squares += spread * spread;
        }
        farthest = squares > farthest ? squares : farthest;
        total += live * squares;
        mass += weight;
    });
    for (int d = 0; d < dim; ++d) {
        Wide<T> sum = {};
        for_each_column(columns, [&](const T* coordinates, Wide<T> weight, Wide<T>) {
            sum += weight * (widen<T>(load(coordinates + (int64_t)d * width)) - moments.mean[d]);
        });
        moments.moment[d] = scale * sum_halves<lanes<T>>(sum);
    }
    moments.mass = scale * sum_halves<lanes<T>>(mass);
    moments.spread = sum_halves<lanes<T>>(total) / (double)columns.count;
    moments.farthest = 0;
    for (int lane = 0; lane < lanes<T>; ++lane) moments.farthest = larger(moments.farthest, farthest[lane]);
}

inline Distances distances_between(const Moments& a, const Moments& b, int dim) {
    double r = 0;
    for (int d = 0; d < dim; ++d) r += (a.mean[d] - b.mean[d]) * (a.mean[d] - b.mean[d]);
    const double reach = sqrt(a.farthest) + sqrt(b.farthest) + sqrt(r);
    return {reach * reach, a.spread + b.spread + r};
}

// Rows are read in blocks; a tile's columns from one block on start at a multiple of it.
constexpr int block_rows = 16;
static_assert(tile_columns % block_rows == 0 && block_rows % lanes<float> == 0);

// Columns of one tile, from `first` on.
template <class T> struct Part {
    const T* coordinates;  // [dim][width]
    const T* mass;         // [used]
    int used;

    Part(const Columns<T>& columns, int64_t t, int first, int last)
        : coordinates(columns.tile(t) + first),
          mass(columns.mass + t * columns.width + first),
          used(last - first) {}
};

// One block of rows and its sums, in memory that belongs to one thread.
template <class T> struct Block {
    int rows;
    T* points;         // [rows, dim]: without infinities
    T* mass;           // [rows]
    T* r;              // [rows][tile_columns]: squared distances, then slopes
    T* chunk;          // [2 * S][lanes]
    double* partial;   // [2 * S][lanes]
    double* factors;   // [rows]: of the sums per rung
    double* value;     // [rows]: sum_j mass_j u
    double* gradient;  // [rows][dim][lanes]: sum_j mass_j slope_j (row - column)

    void begin(const T* source,   // [rows, dim]
               const T* weights,  // [rows] or null: ones
               int count, int dim) {
        rows = count;
        for (int64_t i = 0; i < (int64_t)rows * dim; ++i) points[i] = finite_or_nan(source[i]);
        for (int i = 0; i < rows; ++i) mass[i] = weights ? weights[i] : T(1);
        for (int i = 0; i < rows; ++i) value[i] = 0;
        memset(gradient, 0, sizeof(double) * rows * dim * lanes<T>);
    }
    double row_gradient(int i, int d, int dim) const {
        return sum_wide<T>(gradient + ((int64_t)i * dim + d) * lanes<T>);
    }
};

// What sum_part adds up besides the values.
struct Wanted {
    double times;      // how often the values count
    bool rows;         // gradients of the rows
    double* columns;   // [dim][width]: gradients of the columns; null: not needed
    double* per_rung;  // [2 * S]; null: not needed
};

// The pairs of a block with a part of a tile.
template <class T>
void sum_part(const Plan<T>& plan, const Block<T>& block, const Part<T>& part, int dim, int width,
              const Wanted& wanted) {
    const bool slopes = wanted.rows || wanted.columns;
    plan.loops.squared_distances(block.points, block.rows, part.coordinates, dim, width, part.used, block.r);
    for (int i = 0; i < block.rows; ++i) {
        T* r = block.r + i * tile_columns;
        if (wanted.per_rung)
            block.value[i] +=
                wanted.times * plan.evaluate_per_rung(plan, part.mass, part.used, r,
                                                      wanted.times * block.factors[i], block.chunk,
                                                      block.partial, wanted.per_rung);
        else
            block.value[i] +=
                wanted.times * (slopes ? plan.evaluate : plan.evaluate_value)(plan, part.mass, part.used, r);
        if (wanted.rows)
            plan.loops.add_row(block.points + (int64_t)i * dim, part.coordinates, part.mass, r, dim, width,
                               part.used, block.gradient + (int64_t)i * dim * lanes<T>);
    }
    if (wanted.columns)
        plan.loops.add_columns(block.points, block.mass, block.rows, part.coordinates, block.r, dim, width,
                               part.used, wanted.columns);
}

// Blocks for every thread; count is S.
template <class T> class BlockMemory {
  public:
    BlockMemory(int threads, int dim, int count)
        : dim_(dim),
          per_rung_(2 * (int64_t)count * lanes<T>),
          elements_(round_up((int64_t)block_rows * (tile_columns + dim + 1) + per_rung_, 64)),
          doubles_(round_up((int64_t)block_rows * (2 + dim * lanes<T>)+per_rung_, 64)),
          elements_of_all_(threads * elements_),
          doubles_of_all_(threads * doubles_) {}
    explicit operator bool() const { return elements_of_all_ && doubles_of_all_; }
    Block<T> of(int thread) const {
        T* at = elements_of_all_.get() + thread * elements_;
        double* wide = doubles_of_all_.get() + thread * doubles_;
        Block<T> block;
        block.rows = 0;
        block.r = at, at += block_rows * tile_columns;
        block.chunk = at, at += per_rung_;
        block.mass = at, at += block_rows;
        block.points = at;
        block.partial = wide, wide += per_rung_;
        block.gradient = wide, wide += (int64_t)block_rows * dim_ * lanes<T>;
        block.value = wide;
        block.factors = wide + block_rows;
        return block;
    }

  private:
    int dim_;
    int64_t per_rung_, elements_, doubles_;
    Buffer<T> elements_of_all_;
    Buffer<double> doubles_of_all_;
};

// Plans for every member of a batch.
template <class T> class PlanMemory {
  public:
    PlanMemory(int64_t batch, int count)
        : count_(count),
          plans_(batch),
          rungs_(batch * count),
          order_(batch * count),
          flags_(2 * batch * count),
          numbers_(3 * batch * count) {}
    explicit operator bool() const { return plans_ && rungs_ && order_ && flags_ && numbers_; }
    void make(int64_t b, const Kernel& kernel, int dim, const Distances& distances, bool per_rung,
              bool may_fold) const {
        bool* flags = flags_.get() + 2 * b * count_;
        double* numbers = numbers_.get() + 3 * b * count_;
        const PlanScratch scratch = {
            order_.get() + b * count_, flags, flags + count_, numbers, numbers + count_,
            numbers + 2 * count_};
        make_plan<T>(kernel, dim, distances, per_rung, may_fold, rungs_.get() + b * count_, scratch,
                     plans_.get()[b]);
    }
    const Plan<T>& operator[](int64_t b) const { return plans_.get()[b]; }

  private:
    int64_t count_;
    Buffer<Plan<T>> plans_;
    Buffer<Rung<T>> rungs_;
    Buffer<int> order_;
    Buffer<bool> flags_;
    Buffer<double> numbers_;
};

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
