// Parzen windows: running minimum and sums of exponentials over squared distances, and their gradients.
//
//   minimum_i = min_j r_ij
//   sums_si   = sum_j exp((minimum_i - r_ij) t_s)          t_s = 1 / (2 sigma_s^2)
//   gradient of a point = sum_j c_ij (q_j - p_i)           c_ij = sum_s share_si exp((minimum_i - r_ij) t_s)
//
// A warp holds one row and walks over chunks of columns. Few rows share the columns out to splits, whose
// states another kernel merges in order.
#include "parzen_pairs.cuh"

namespace fastmmd::cuda {
namespace {

DEVICE int lane_of() { return threadIdx.x % warp_size; }
DEVICE int64_t row_of() { return (int64_t)blockIdx.x * warps + threadIdx.x / warp_size; }

// Squared norms; NaN for a point with an infinity, which would be far from everything and so disappear.
template <class T>
__global__ void __launch_bounds__(block_threads) norms_kernel(const T* points,  // [n, dim]
                                                              T* norms,         // [n]
                                                              int64_t n, int dim) {
    const int64_t i = row_of();
    if (i >= n) return;
    double sum = 0;
    for (int d = lane_of(); d < dim; d += warp_size) {
        const double x = checked(points[i * dim + d]);
        sum += x * x;
    }
    sum = warp_sum(sum);
    if (lane_of() == 0) norms[i] = (T)(sum > Format<T>::largest / 4 ? (double)Format<T>::largest / 4 : sum);
}

// Coordinates as columns.
template <class T>
__global__ void __launch_bounds__(block_threads) stage_kernel(const T* points,  // [n, dim]
                                                              T* columns,       // [dim, stride]
                                                              int64_t n, int64_t stride, int dim) {
    const int64_t j = (int64_t)blockIdx.x * block_threads + threadIdx.x;
    if (j >= stride) return;
    for (int d = 0; d < dim; ++d) columns[d * stride + j] = j < n ? checked(points[j * dim + d]) : T(0);
}

template <class T> DEVICE T sum_of(const T* k) {  // [group]
    return ((k[0] + k[1]) + (k[2] + k[3])) + ((k[4] + k[5]) + (k[6] + k[7]));
}

// Adds the columns of a split to the state of each row; with `fresh` to none.
template <class T, class Source>
__global__ void __launch_bounds__(block_threads)
    update_kernel(const __grid_constant__ Source source, const __grid_constant__ Rungs<T> rungs,
                  T* minimum,          // [n], or [splits, n] with `fresh`
                  double* sums,        // [S, state_stride], or [splits, S, n]
                  int64_t split_sums,  // from the sums of one split to the next
                  int64_t n, int64_t state_stride, int64_t split_chunks, bool fresh) {
    SHARED(double, all_totals, warps* most_listed);
    const int lane = lane_of();
    const int64_t i = row_of(), split = blockIdx.y;
    if (i >= n) return;
    double* const totals = all_totals + threadIdx.x / warp_size * most_listed;  // the lane s % 32 has s
    minimum += split * n + i;
    sums += split * split_sums + i;
    for (int s = lane; s < rungs.count; s += warp_size)
        totals[s] = fresh ? 0 : sums[rungs.index[s] * state_stride];
    T nearest = fresh ? (T)INFINITY : *minimum;
    const int64_t begin = split * split_chunks * chunk<T>, end = begin + split_chunks * chunk<T>;
    for (int64_t first = begin; first < end && first < source.m; first += chunk<T>) {
        T r[pairs<T>], least[pairs<T> / group];
        source.distances(i, first, lane, nearest, r);
        T here = least_of(r, least);
        const T before = nearest;
        nearest = lesser(before, here);
        here -= nearest;
#pragma unroll
        for (int u = 0; u < pairs<T>; ++u) r[u] -= nearest;
#pragma unroll
        for (int g = 0; g < pairs<T> / group; ++g) least[g] -= nearest;
        if (nearest < before)
            for (int s = lane; s < rungs.count; s += warp_size)
                totals[s] *= fall(before, nearest, rungs.rate[s]);
        for (int s = 0; s < rungs.count; s += 1 + rungs.powers[s]) {
            const T rate = rungs.rate[s];
            if (here * rate > Format<T>::negligible) continue;
            T parts[1 + most_powers] = {};
#pragma unroll
            for (int g = 0; g < pairs<T> / group; ++g) {
                if (least[g] * rate > Format<T>::negligible) continue;
                T k[group];
                exponentials(r + g * group, rate, k);
                parts[0] += sum_of(k);
#pragma unroll
                for (int power = 1; power <= most_powers; ++power) {
                    if (power > rungs.powers[s]) break;
                    fourth_powers(k);
                    parts[power] += sum_of(k);
                }
            }
#pragma unroll
            for (int power = 0; power <= most_powers; ++power) {
                if (power > rungs.powers[s]) break;
                const T sum = warp_sum(parts[power]);
                if (lane == (s + power) % warp_size) totals[s + power] += sum;
            }
        }
    }
    if (lane == 0) *minimum = nearest;
    for (int s = lane; s < rungs.count; s += warp_size) sums[rungs.index[s] * state_stride] = totals[s];
}

template <class T>
__global__ void __launch_bounds__(block_threads) merge_kernel(const __grid_constant__ Rungs<T> rungs,
                                                              const T* found,            // [parts, n]
                                                              const double* found_sums,  // [parts, S, n]
                                                              T* minimum,                // [n]
                                                              double* sums,              // [S, state_stride]
                                                              int64_t n, int64_t state_stride, int parts) {
    const int64_t i = (int64_t)blockIdx.x * block_threads + threadIdx.x;
    if (i >= n) return;
    const T before = minimum[i];
    T nearest = before;
    for (int part = 0; part < parts; ++part) nearest = lesser(nearest, found[part * n + i]);
    for (int s = 0; s < rungs.count; ++s) {
        const int index = rungs.index[s];
        double total = sums[index * state_stride + i] * fall(before, nearest, rungs.rate[s]);
        for (int part = 0; part < parts; ++part)
            total += found_sums[((int64_t)part * rungs.count + index) * n + i] *
                     fall(found[part * n + i], nearest, rungs.rate[s]);
        sums[index * state_stride + i] = total;
    }
    minimum[i] = nearest;
}

// share = gradient / (sums sigma^2) of one rung and point.
template <class T> DEVICE T share_of(T grad, double sum, T rate) {
    return (T)(grad / sum * (2 * 0.6931471805599453 * rate));
}

// c of the pairs of one group.
template <class T>
DEVICE void coefficients(const Rungs<T>& rungs,
                         const T* excess,  // [group]
                         T least,
                         const T* shares,  // [S, share_stride]: one for the row, or from each column on
                         int64_t share_stride, bool per_column,
                         T* c) {  // [group]
    T k[group];
#pragma unroll
    for (int u = 0; u < group; ++u) c[u] = 0;
    for (int s = 0; s < rungs.count; s += 1 + rungs.powers[s]) {
        const T rate = rungs.rate[s];
        if (least * rate > Format<T>::negligible) continue;
        exponentials(excess, rate, k);
        for (int power = 0; power <= rungs.powers[s]; ++power) {
            const T* const at = shares + (s + power) * share_stride;
            if (power) fourth_powers(k);
            if (per_column) {
#pragma unroll
                for (int u = 0; u < group; u += 4) {
                    const Quad<T> four = *(const Quad<T>*)(at + u * warp_size);
#pragma unroll
                    for (int v = 0; v < 4; ++v) c[u + v] += four.x[v] * k[u + v];
                }
            } else {
                const T share = *at;
#pragma unroll
                for (int u = 0; u < group; ++u) c[u] += share * k[u];
            }
        }
    }
}

// The shares of the block's rows, for its warps; all threads take part.
template <class T>
DEVICE void stage_shares(const Rungs<T>& rungs,
                         const T* grad,       // [S, state_stride]
                         const double* sums,  // [S, state_stride]
                         int64_t n, int64_t state_stride,
                         T* shares) {  // [warps, most_listed], shared
    const int64_t i = row_of();
    if (i < n)
        for (int s = lane_of(); s < rungs.count; s += warp_size) {
            const int64_t at = rungs.index[s] * state_stride + i;
            shares[threadIdx.x / warp_size * most_listed + s] = share_of(grad[at], sums[at], rungs.rate[s]);
        }
    barrier();
}

// Coefficients in place of the products of a tile.
template <class T>
__global__ void __launch_bounds__(block_threads)
    coefficients_kernel(const __grid_constant__ Products<T> source, const __grid_constant__ Rungs<T> rungs,
                        const T* minimum,    // [n]
                        const T* grad,       // [S, state_stride]
                        const double* sums,  // [S, state_stride]
                        int64_t n, int64_t state_stride, int64_t split_chunks) {
    SHARED(T, shares, warps * most_listed);
    stage_shares(rungs, grad, sums, n, state_stride, shares);
    const int lane = lane_of();
    const int64_t i = row_of();
    if (i >= n) return;
    const T* const own = shares + threadIdx.x / warp_size * most_listed;
    const T nearest = minimum[i];
    T* const out = (T*)source.products + i * source.stride;
    const int64_t begin = blockIdx.y * split_chunks * chunk<T>, end = begin + split_chunks * chunk<T>;
    for (int64_t first = begin; first < end && first < source.m; first += chunk<T>) {
        T r[pairs<T>], least[pairs<T> / group];
        source.distances(i, first, lane, nearest, r);
        least_of(r, least);
#pragma unroll
        for (int g = 0; g < pairs<T> / group; ++g) {
            T c[group];
#pragma unroll
            for (int u = 0; u < group; ++u) r[g * group + u] -= nearest;
            coefficients(rungs, r + g * group, least[g] - nearest, own, 1, false, c);
#pragma unroll
            for (int u = 0; u < group; u += 4) {
                const int64_t j = column(first, lane, g * group + u);
                if (j < source.m) *(Quad<T>*)(out + j) = {{c[u], c[u + 1], c[u + 2], c[u + 3]}};
            }
        }
    }
}

// Adds sum_j c_ij (q_j - p_i) over a tile to the gradient of row i, from the matrix product c q. The pairs
// with a point so far out that this loses digits, which `far` says and the product leaves out, by
// differences.
template <class T>
__global__ void __launch_bounds__(block_threads)
    gather_kernel(const T* c,             // [n, stride]
                  const T* products,      // [n, dim]: c q, q without the far ones
                  const T* rows,          // [n, dim]
                  const T* columns,       // [m, dim]
                  const T* row_norms,     // [n]
                  const T* column_norms,  // [m]
                  double* gradient,       // [n, dim]
                  T far, int64_t m, int64_t stride, int dim) {
    constexpr int at_once = 1024;
    SHARED(double, scratch, warps);
    SHARED(T, weights, at_once);
    const int64_t i = blockIdx.x;
    const bool row_far = row_norms[i] > far;
    c += i * stride;
    double near = 0, apart = 0;
    for (int64_t j = threadIdx.x; j < m; j += block_threads) {
        const T value = c[j];
        if (row_far || column_norms[j] > far)
            apart += value != 0;
        else
            near += value;
    }
    near = block_sum<block_threads>(near, scratch);
    apart = block_sum<block_threads>(apart, scratch);
    for (int d = threadIdx.x; d < dim; d += block_threads) {
        const int64_t at = i * dim + d;
        gradient[at] += (row_far ? 0 : (double)products[at]) - near * rows[at];
    }
    if (apart == 0) return;
    for (int64_t first = 0; first < m; first += at_once) {
        const int count = m - first < at_once ? (int)(m - first) : at_once;
        barrier();  // what was read of the weights before
        for (int j = threadIdx.x; j < count; j += block_threads)
            weights[j] = row_far || column_norms[first + j] > far ? c[first + j] : T(0);
        barrier();
        for (int d = threadIdx.x; d < dim; d += block_threads) {
            const T p = rows[i * dim + d];
            double sum = 0;
            for (int j = 0; j < count; ++j)
                if (weights[j] != 0) sum += (double)weights[j] * (columns[(first + j) * dim + d] - p);
            gradient[i * dim + d] += sum;
        }
    }
}

// Minima and shares of points that are columns; the padding has no share.
template <class T>
__global__ void __launch_bounds__(block_threads) shares_kernel(const __grid_constant__ Rungs<T> rungs,
                                                               const T* minimum,    // [m]
                                                               const T* grad,       // [S, m]
                                                               const double* sums,  // [S, m]
                                                               T* minima,           // [stride]
                                                               T* shares,           // [S, stride]
                                                               int64_t m, int64_t stride) {
    const int64_t j = (int64_t)blockIdx.x * block_threads + threadIdx.x;
    if (j >= stride) return;
    minima[j] = j < m ? minimum[j] : T(0);
    for (int s = 0; s < rungs.count; ++s) {
        const int64_t at = rungs.index[s] * m + j;
        shares[s * stride + j] = j < m ? share_of(grad[at], sums[at], rungs.rate[s]) : T(0);
    }
}

// sum_j c_ij (q_j - p_i) over the columns of a split, by differences.
template <class T, bool ROWS_ARE_POINTS>
__global__ void __launch_bounds__(block_threads)
    gradient_kernel(const __grid_constant__ Coordinates<T> source, const __grid_constant__ Rungs<T> rungs,
                    const T* minimum,     // [n], or [stride] where columns are points
                    const T* grad,        // [S, n]; unread where columns are points
                    const double* sums,   // [S, n]; unread where columns are points
                    const T* all_shares,  // [S, stride]; unread where rows are points
                    double* gradient,     // [splits, n, dim]
                    int64_t n, int64_t split_chunks) {
    SHARED(T, shares, warps * most_listed);
    if (ROWS_ARE_POINTS) stage_shares(rungs, grad, sums, n, n, shares);
    const int lane = lane_of();
    const int64_t i = row_of();
    if (i >= n) return;
    const int64_t begin = blockIdx.y * split_chunks * chunk<T>, end = begin + split_chunks * chunk<T>;
    double total = 0;  // of the dimension `lane`
    for (int64_t first = begin; first < end && first < source.m; first += chunk<T>) {
        T r[pairs<T>], least[pairs<T> / group];
        source.distances(i, first, lane, 0, r);
#pragma unroll
        for (int k = 0; k < pairs<T>; k += 4) {
            if (ROWS_ARE_POINTS) {
                const T nearest = minimum[i];
#pragma unroll
                for (int u = 0; u < 4; ++u) r[k + u] -= nearest;
            } else {
                const Quad<T> nearest = *(const Quad<T>*)(minimum + column(first, lane, k));
#pragma unroll
                for (int u = 0; u < 4; ++u) r[k + u] -= nearest.x[u];
            }
        }
        least_of(r, least);
#pragma unroll
        for (int g = 0; g < pairs<T> / group; ++g) {
            T c[group];
            if (ROWS_ARE_POINTS)
                coefficients(rungs, r + g * group, least[g], shares + threadIdx.x / warp_size * most_listed,
                             1, false, c);
            else
                coefficients(rungs, r + g * group, least[g], all_shares + column(first, lane, g * group),
                             source.stride, true, c);
#pragma unroll
            for (int u = 0; u < group; ++u) r[g * group + u] = c[u];
        }
        const T* at = source.columns + column(first, lane, 0);
        for (int d = 0; d < source.dim; ++d, at += source.stride) {
            const T p = checked(source.rows[i * source.dim + d]);
            T sum = 0;
#pragma unroll
            for (int k = 0; k < pairs<T>; k += 4) {
                const Quad<T> q = *(const Quad<T>*)(at + k * warp_size);
#pragma unroll
                for (int u = 0; u < 4; ++u) sum += r[k + u] * (q.x[u] - p);
            }
            sum = warp_sum(sum);
            if (lane == d) total += sum;
        }
    }
    if (lane < source.dim) gradient[(blockIdx.y * n + i) * source.dim + lane] = total;
}

template <class T>
__global__ void __launch_bounds__(block_threads) add_splits_kernel(const double* parts,  // [count, size]
                                                                   T* sums,              // [size]
                                                                   int64_t size, int count) {
    const int64_t at = (int64_t)blockIdx.x * block_threads + threadIdx.x;
    if (at >= size) return;
    double sum = 0;
    for (int part = 0; part < count; ++part) sum += parts[part * size + at];
    sums[at] = (T)sum;
}

unsigned blocks_for(int64_t threads) { return (unsigned)ceil_divide(threads, block_threads); }

// A row keeps a warp busy as a tile of rows keeps a block busy elsewhere.
template <class T> Splits splits_for(int64_t rows, int64_t columns) {
    return splits_of(rows, ceil_divide(columns, chunk<T>));
}

template <class T> int64_t padded(int64_t count) { return ceil_divide(count, chunk<T>) * chunk<T>; }

// The states of several splits.
template <class T> struct Found {
    T* minimum;    // [parts, n]
    double* sums;  // [parts, S, n]
    Found(Workspace& memory, int64_t n, int parts, int sigmas)
        : minimum(memory.take<T>(parts > 1 ? parts * n : 0)),
          sums(memory.take<double>(parts > 1 ? parts * n * sigmas : 0)) {}
};

template <class T, class Source>
Status update(const Source& source, int64_t n, const Rungs<T>& rungs, T* minimum, double* sums,
              int64_t state_stride, const Found<T>& found, void* stream) {
    const Splits splits = splits_for<T>(n, source.m);
    const bool several = splits.parts > 1;
    const dim3 grid((unsigned)ceil_divide(n, warps), (unsigned)splits.parts);
    const Status status =
        launch("parzen update", update_kernel<T, Source>, grid, block_threads, stream, source, rungs,
               several ? found.minimum : minimum, several ? found.sums : sums, rungs.count * n, n,
               several ? n : state_stride, splits.per_split, several);
    if (!several || status.code) return status;
    return launch("parzen merge", merge_kernel<T>, blocks_for(n), block_threads, stream, rungs, found.minimum,
                  found.sums, minimum, sums, n, state_stride, splits.parts);
}

template <class T> int64_t tile_memory(const ParzenTile& task) {
    Workspace memory(nullptr);
    Found<T>(memory, task.rows, splits_for<T>(task.rows, task.columns).parts, task.sigmas.count);
    return memory.used();
}

// The largest error of a logarithm from the rounding of products, and of differences of exponents beyond
// which terms are nothing.
constexpr double most_nats = 1e-3, most_exponent = 40;

template <class T> Status run_tile(const ParzenTile& task, void* workspace, void* stream) {
    const Rungs<T> rungs = rungs_of<T>(task.sigmas);
    double largest = 0;  // rate in nats
    for (int s = 0; s < rungs.count; ++s)
        if (rungs.rate[s] > largest) largest = rungs.rate[s];
    // Sums of products in a row round as a random walk does; about 4 bits of every 1000 additions.
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
                      Found<T>(memory, task.rows, splits.parts, rungs.count), stream);
    const dim3 grid((unsigned)ceil_divide(task.rows, warps), (unsigned)splits.parts);
    return launch("parzen coefficients", coefficients_kernel<T>, grid, block_threads, stream, source, rungs,
                  (const T*)task.minimum, (const T*)task.grad, task.sums, task.rows, task.points_in_all,
                  splits.per_split);
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
    Found<T> found;
    DirectMemory(Workspace& memory, const ParzenDirect& task)
        : samples(memory.take<T>(padded<T>(task.n) * task.dim)),
          points(memory.take<T>(task.grad_samples ? padded<T>(task.m) * task.dim : 0)),
          minima(memory.take<T>(task.grad_samples ? padded<T>(task.m) : 0)),
          shares(memory.take<T>(task.grad_samples ? padded<T>(task.m) * task.sigmas.count : 0)),
          gradient(memory.take<double>(
              larger(task.grad_points ? task.m * splits_for<T>(task.m, task.n).parts : 0,
                     task.grad_samples ? task.n * splits_for<T>(task.n, task.m).parts : 0) *
              task.dim)),
          found(memory, task.grad ? 0 : task.m, splits_for<T>(task.m, task.n).parts, task.sigmas.count) {}

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
                   update(samples, task.m, rungs, (T*)task.minimum, task.sums, task.m, memory.found, stream);
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

Status parzen_norms(bool is_double, int64_t count, int dim, const void* points, void* norms, void* stream) {
    const dim3 grid((unsigned)ceil_divide(count, warps));
    if (is_double)
        return launch("parzen norms", norms_kernel<double>, grid, block_threads, stream,
                      (const double*)points, (double*)norms, count, dim);
    return launch("parzen norms", norms_kernel<float>, grid, block_threads, stream, (const float*)points,
                  (float*)norms, count, dim);
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
