// Parzen windows: running minimum and sums of exponentials over squared distances, and their gradients.
//
//   minimum_i = min_j r_ij
//   sums_si   = sum_j exp((minimum_i - r_ij) t_s)          t_s = 1 / (2 sigma_s^2)
//   gradient of a point = sum_j c_ij (q_j - p_i)           c_ij = sum_s share_si exp((minimum_i - r_ij) t_s)
//
// A warp holds one row and walks over chunks of columns. Few rows share the columns out to splits, whose
// states another kernel merges in order.
#include "gradient.cuh"
#include "operations.hpp"
#include "sums.cuh"

namespace fastmmd::cuda {
namespace {

unsigned blocks_for(int64_t threads) { return (unsigned)ceil_divide(threads, block_threads); }

// A row keeps a warp busy as a tile of rows keeps a block busy elsewhere.
template <class T> Splits splits_for(int64_t rows, int64_t columns) {
    return splits_of(rows, ceil_divide(columns, chunk<T>));
}

template <class T> int64_t padded(int64_t count) { return ceil_divide(count, chunk<T>) * chunk<T>; }

// The states of several splits.
template <class T> struct States {
    T* minimum;    // [parts, n]
    double* sums;  // [parts, S, n]
    States(Workspace& memory, int64_t n, int parts, int sigmas)
        : minimum(memory.take<T>(parts > 1 ? parts * n : 0)),
          sums(memory.take<double>(parts > 1 ? parts * n * sigmas : 0)) {}
};

template <class T, class Source>
Status update(const Source& source, int64_t n, const Rungs<T>& rungs, T* minimum, double* sums,
              int64_t state_stride, const States<T>& states, void* stream) {
    const Splits splits = splits_for<T>(n, source.m);
    const bool several = splits.parts > 1;
    const dim3 grid((unsigned)ceil_divide(n, warps), (unsigned)splits.parts);
    const Status status =
        launch("parzen update", update_kernel<T, Source>, grid, block_threads, stream, source, rungs,
               several ? states.minimum : minimum, several ? states.sums : sums, rungs.count * n, n,
               several ? n : state_stride, splits.per_split, several);
    if (!several || status.code) return status;
    return launch("parzen merge", merge_kernel<T>, blocks_for(n), block_threads, stream, rungs,
                  states.minimum, states.sums, minimum, sums, n, state_stride, splits.parts);
}

template <class T> int64_t tile_memory(const ParzenTile& task) {
    Workspace memory(nullptr);
    States<T>(memory, task.rows, splits_for<T>(task.rows, task.columns).parts, task.sigmas.count);
    return memory.used();
}

// Products are precise enough where their rounding moves an exponent by so many nats. Where it moves it by x
// times as many, pairs matter up to exp(-10 x) of the nearest: N smaller ones move a logarithm by less than
// ln(N) / 10 times as many.
constexpr double most_nats = 1e-3, most_exponent = 10;

template <class T> Status run_tile(const ParzenTile& task, void* workspace, void* stream) {
    const Rungs<T> rungs = rungs_of<T>(task.sigmas);
    double largest = 0;  // rate in nats
    for (int s = 0; s < rungs.count; ++s)
        if (rungs.rate[s] > largest) largest = rungs.rate[s];
    // Products of near points add up as a random walk rounds: measured at 784 dimensions, 7 units of the
    // norms' sum.
    const double nats = most_nats * Format<T>::unit / Format<float>::unit;
    const double error = Format<T>::unit * (1 + sqrt((double)task.dim) / 4);  // of the norms' sum
    const double limit = nats / (error * 0.6931471805599453 * largest), margin = most_exponent * error / nats;
    const Products<T> source = {(const T*)task.products,
                                (const T*)task.points,
                                (const T*)task.samples,
                                (const T*)task.point_norms,
                                (const T*)task.sample_norms,
                                task.columns,
                                task.stride,
                                task.dim,
                                (T)(limit < 1e37 ? limit : 1e37),
                                (T)(margin < 0.25 ? margin : 0.25)};
    Workspace memory(workspace);
    const Splits splits = splits_for<T>(task.rows, task.columns);
    if (!task.grad)
        return update(source, task.rows, rungs, (T*)task.minimum, task.sums, task.points_in_all,
                      States<T>(memory, task.rows, splits.parts, rungs.count), stream);
    const dim3 grid((unsigned)ceil_divide(task.rows, warps), (unsigned)splits.parts);
    return launch("parzen coefficients", coefficients_kernel<T>, grid, block_threads, stream, source, rungs,
                  (const T*)task.minimum, (const T*)task.grad, task.sums, task.rows, task.points_in_all,
                  splits.per_split);
}

template <class T> Status run_norms(const ParzenNorms& task, void* stream) {
    return launch("parzen norms", norms_kernel<T>, (unsigned)ceil_divide(task.count, warps), block_threads,
                  stream, (const T*)task.points, (T*)task.norms, task.count, task.dim);
}

template <class T> Status run_gather(const ParzenGather& task, void* stream) {
    return launch("parzen gather", gather_kernel<T>, (unsigned)task.rows, block_threads, stream,
                  (const T*)task.coefficients, (const T*)task.products, (const T*)task.row_points,
                  (const T*)task.column_points, (const T*)task.row_norms, (const T*)task.column_norms,
                  task.gradient, (T)task.far, task.columns, task.stride, task.dim);
}

// What a call by differences needs between its kernels.
template <class T> struct DirectMemory {
    T *samples, *points;  // [dim, padded]
    T *minima, *shares;   // [padded], [S, padded]
    double* gradient;     // [splits, n, dim], first of the points, then of the samples
    States<T> states;
    DirectMemory(Workspace& memory, const ParzenDirect& task)
        : samples(memory.take<T>(padded<T>(task.n) * task.dim)),
          points(memory.take<T>(task.grad_samples ? padded<T>(task.m) * task.dim : 0)),
          minima(memory.take<T>(task.grad_samples ? padded<T>(task.m) : 0)),
          shares(memory.take<T>(task.grad_samples ? padded<T>(task.m) * task.sigmas.count : 0)),
          gradient(memory.take<double>(
              larger(task.grad_points ? task.m * splits_for<T>(task.m, task.n).parts : 0,
                     task.grad_samples ? task.n * splits_for<T>(task.n, task.m).parts : 0) *
              task.dim)),
          states(memory, task.grad ? 0 : task.m, splits_for<T>(task.m, task.n).parts, task.sigmas.count) {}

  private:
    static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
};

template <class T, bool ROWS_ARE_POINTS>
Status gradient(const Coordinates<T>& source, int64_t n, const Rungs<T>& rungs, const ParzenDirect& task,
                const DirectMemory<T>& memory, void* out, void* stream) {
    const Splits splits = splits_for<T>(n, source.m);
    const dim3 grid((unsigned)ceil_divide(n, warps), (unsigned)splits.parts);
    const Status status =
        launch("parzen gradient", gradient_kernel<T, ROWS_ARE_POINTS>, grid, block_threads, stream, source,
               rungs, ROWS_ARE_POINTS ? (const T*)task.minimum : memory.minima, (const T*)task.grad,
               task.sums, memory.shares, memory.gradient, n, splits.per_split);
    if (status.code) return status;
    return launch("parzen sums of splits", add_splits_kernel<T>, blocks_for(n * source.dim), block_threads,
                  stream, memory.gradient, (T*)out, n * source.dim, splits.parts);
}

template <class T> Status stage(const void* points, T* columns, int64_t count, int dim, void* stream) {
    const int64_t stride = padded<T>(count);
    return launch("parzen stage", stage_kernel<T>, blocks_for(stride), block_threads, stream,
                  (const T*)points, columns, count, stride, dim);
}

template <class T> Status run_direct(const ParzenDirect& task, void* workspace, void* stream) {
    const Rungs<T> rungs = rungs_of<T>(task.sigmas);
    Workspace space(workspace);
    const DirectMemory<T> memory(space, task);
    Status status;
    if (!task.grad || task.grad_points) {
        status = stage<T>(task.samples, memory.samples, task.n, task.dim, stream);
        const Coordinates<T> samples = {(const T*)task.points, memory.samples, task.n, padded<T>(task.n),
                                        task.dim};
        if (!task.grad)
            return status +
                   update(samples, task.m, rungs, (T*)task.minimum, task.sums, task.m, memory.states, stream);
        status = status + gradient<T, true>(samples, task.m, rungs, task, memory, task.grad_points, stream);
    }
    if (!task.grad_samples) return status;
    const int64_t stride = padded<T>(task.m);
    status = status + stage<T>(task.points, memory.points, task.m, task.dim, stream);
    status = status + launch("parzen shares", shares_kernel<T>, blocks_for(stride), block_threads, stream,
                             rungs, (const T*)task.minimum, (const T*)task.grad, task.sums, memory.minima,
                             memory.shares, task.m, stride);
    const Coordinates<T> points = {(const T*)task.samples, memory.points, task.m, stride, task.dim};
    return status + gradient<T, false>(points, task.n, rungs, task, memory, task.grad_samples, stream);
}

template <class T> int64_t direct_memory(const ParzenDirect& task) {
    Workspace memory(nullptr);
    DirectMemory<T>(memory, task);
    return memory.used();
}

}  // namespace

Status parzen_norms(const ParzenNorms& task, void* stream) {
    return task.is_double ? run_norms<double>(task, stream) : run_norms<float>(task, stream);
}

int64_t parzen_tile_workspace(const ParzenTile& task) {
    return task.is_double ? tile_memory<double>(task) : tile_memory<float>(task);
}

Status parzen_tile(const ParzenTile& task, void* workspace, void* stream) {
    return task.is_double ? run_tile<double>(task, workspace, stream)
                          : run_tile<float>(task, workspace, stream);
}

Status parzen_gather(const ParzenGather& task, void* stream) {
    return task.is_double ? run_gather<double>(task, stream) : run_gather<float>(task, stream);
}

int64_t parzen_direct_workspace(const ParzenDirect& task) {
    return task.is_double ? direct_memory<double>(task) : direct_memory<float>(task);
}

Status parzen_direct(const ParzenDirect& task, void* workspace, void* stream) {
    return task.is_double ? run_direct<double>(task, workspace, stream)
                          : run_direct<float>(task, workspace, stream);
}

}  // namespace fastmmd::cuda
