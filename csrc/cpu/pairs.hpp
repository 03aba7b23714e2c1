// What mmd2 and witness share: moments of a sample, and sums of rows over all columns.
#pragma once
#include "kernels.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

// What the plan and the linear part of the gradients need to know of one sample.
struct Moments {
    double* mean;     // [dim], every point alike
    double farthest;  // largest |x - mean|^2
    double mass;      // sum_j w_j
    double* moment;   // [dim]: sum_j w_j (x_j - centre)
};

template <class T>
void find_moments(const T* points,   // [count, dim]
                  const T* weights,  // [count] or null: ones
                  double scale,      // of the weights
                  int64_t count, int dim,
                  const double* centre,  // [dim]; null: the mean found here
                  Moments& moments) {
    for (int d = 0; d < dim; ++d) moments.mean[d] = moments.moment[d] = 0;
    for (int64_t i = 0; i < count; ++i)
        for (int d = 0; d < dim; ++d) moments.mean[d] += (double)points[i * dim + d];
    for (int d = 0; d < dim; ++d) moments.mean[d] /= (double)count;
    if (!centre) centre = moments.mean;

    moments.mass = moments.farthest = 0;
    for (int64_t i = 0; i < count; ++i) {
        const double w = weights ? (double)weights[i] * scale : scale;
        double squares = 0;
        moments.mass += w;
        for (int d = 0; d < dim; ++d) {
            const double x = (double)points[i * dim + d], spread = x - moments.mean[d];
            squares += spread * spread;
            moments.moment[d] += w * (x - centre[d]);
        }
        moments.farthest = larger(moments.farthest, squares);
    }
}

// A bound of the squared distances between the points of two samples.
inline double farthest_distance(const Moments& a, const Moments& b, int dim) {
    double r = 0;
    for (int d = 0; d < dim; ++d) r += (a.mean[d] - b.mean[d]) * (a.mean[d] - b.mean[d]);
    const double reach = sqrt(a.farthest) + sqrt(b.farthest) + sqrt(r);
    return reach * reach;
}

// Rows per task: enough for a tile to be worth fetching, few enough to share out.
constexpr int most_rows = 32;
constexpr int rows_per_task(int dim) { return dim <= 64 ? most_rows : 8; }

// One set of sums of one task's rows, in memory that belongs to one thread.
template <class T> struct RowSums {
    T* points;         // [rows, dim]: the rows, without infinities
    T* r;              // [tile_columns]
    T* chunk;          // [2 * S][lanes]
    double* partial;   // [2 * S][lanes]
    double* value;     // [rows]: sum_j mass_j u
    double* gradient;  // [rows, dim]: sum_j c_j (row - column)
};

// Memory for `sets` of them per thread; count is S.
template <class T> class RowMemory {
  public:
    RowMemory(int threads, int sets, int dim, int count)
        : sets_(sets),
          rows_(rows_per_task(dim)),
          doubles_((int64_t)rows_ * (dim + 1)),
          partials_(2 * (int64_t)count * lanes<T>),
          elements_(tile_columns + partials_ + (int64_t)rows_ * dim),
          staging_(threads * elements_),
          partial_(threads * partials_),
          sums_(threads * sets * doubles_) {}
    explicit operator bool() const { return staging_ && partial_ && sums_; }
    RowSums<T> of(int thread, int set) const {
        T* r = staging_.get() + thread * elements_;
        double* value = sums_.get() + ((int64_t)thread * sets_ + set) * doubles_;
        return {r + tile_columns + partials_,        r,     r + tile_columns,
                partial_.get() + thread * partials_, value, value + rows_};
    }

  private:
    int sets_, rows_;
    int64_t doubles_, partials_, elements_;
    Buffer<T> staging_;
    Buffer<double> partial_, sums_;
};

// Sums of `rows` points over all columns, into out.value and, if asked for, out.gradient.
template <class T>
void sum_rows(const Plan<T>& plan,
              const T* points,  // [rows, dim]
              int rows, const Columns<T>& columns, bool gradient,
              const double* factors,  // [rows]: of the sums per rung; null without them
              double* rung_sums,      // [2 * S], added to; null: not needed
              const RowSums<T>& out) {
    const int dim = columns.dim;
    const auto evaluate = rung_sums ? plan.evaluate_per_rung : plan.evaluate;
    for (int i = 0; i < rows; ++i) out.value[i] = 0;
    for (int64_t i = 0; i < (int64_t)rows * dim; ++i) {
        out.points[i] = finite_or_nan(points[i]);
        if (gradient) out.gradient[i] = 0;
    }
    for (int64_t t = 0; t < columns.tiles(); ++t) {
        const T* tile = columns.tile(t);
        const T* mass = columns.mass + t * columns.width;
        const int used = columns.used(t);
        for (int i = 0; i < rows; ++i) {
            const T* point = out.points + (int64_t)i * dim;
            plan.loops.squared_distances(point, tile, dim, columns.width, used, out.r);
            out.value[i] += evaluate(plan.rungs, plan.count, mass, used, out.r, rung_sums ? factors[i] : 0,
                                     out.chunk, out.partial, rung_sums);
            if (gradient)
                plan.loops.add_differences(point, tile, out.r, dim, columns.width, used,
                                           out.gradient + (int64_t)i * dim);
        }
    }
}

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
