// Random Fourier features: sums over a batch, functions and their gradients, frequencies, and the adversary's
// discrepancy.
#include "many.cuh"
#include "operations.hpp"

namespace fastmmd::cuda {
namespace {

constexpr int few_dims = 16;         // all coordinates in registers
constexpr int filling_blocks = 132;  // of which all multiprocessors of an H200 have one
constexpr int worth_holding = 64;  // blocks whose threads hold several results: fewer instructions for a pair
constexpr int merge_threads = 256, discrepancy_threads = 512;

// --- small kernels ---

// Partial results, added up in order.
template <class T>
__global__ void merge_kernel(const double* partial,  // [splits, size]
                             int splits, int64_t size,
                             FeatureList features,  // whose scale counts, [.., count]; count 0: none
                             const T* factor,       // [1]; null: 1
                             double times,
                             T* out) {  // [size]
    const int64_t at = (int64_t)blockIdx.x * merge_threads + threadIdx.x;
    if (at >= size) return;
    double sum = 0;
    for (int split = 0; split < splits; ++split) sum += partial[split * size + at];
    if (features.count) times *= features.scale.values[features.part_of((int)(at % features.count))];
    if (factor) times *= (double)*factor;
    out[at] = (T)(times * sum);
}

template <class T>
__global__ void frequencies_kernel(int dim, FeatureList features,
                                   T* out) {  // [count, dim]
    const int64_t item = (int64_t)blockIdx.x * merge_threads + threadIdx.x;
    const int blocks = (dim + 3) / 4, k = (int)(item / blocks), first = (int)(item % blocks) * 4;
    if (k >= features.count) return;
    const T inverse = (T)features.inverse.values[features.part_of(k)];
    T normals[4];
    make_normals<T>(features.key, k, first / 4, normals);
    for (int j = 0; j < 4 && first + j < dim; ++j) out[(int64_t)k * dim + first + j] = normals[j] * inverse;
}

struct Zeta {
    double cosine, sine;

    DEVICE Zeta(const double* partial,  // [splits, 2, count]
                int splits, const FeatureList& features, int k)
        : cosine(0),
          sine(0) {
        for (int split = 0; split < splits; ++split) {
            const double* const sums = partial + (int64_t)split * 2 * features.count;
            cosine += sums[k];
            sine += sums[features.count + k];
        }
        const double scale = features.scale.values[features.part_of(k)];
        cosine *= scale;
        sine *= scale;
    }
    DEVICE double square() const { return cosine * cosine + sine * sine; }
};

// In one block, whose threads share out the features.
template <class T>
__global__ void __launch_bounds__(discrepancy_threads)
    discrepancy_kernel(const double* partial,  // [splits, 2, count]
                       int splits, FeatureList features,
                       const T* alpha,     // [count]
                       T* delta,           // [1]
                       T* coefficients) {  // [2, count]; null: not needed
    SHARED(double, scratch, discrepancy_threads / warp_size);
    double sum = 0;
    for (int k = threadIdx.x; k < features.count; k += discrepancy_threads) {
        const Zeta zeta(partial, splits, features, k);
        const double weight = (double)alpha[k];
        sum += weight * zeta.square();
        if (coefficients == nullptr) continue;
        coefficients[k] = (T)(2 * weight * zeta.cosine);
        coefficients[features.count + k] = (T)(2 * weight * zeta.sine);
    }
    sum = block_sum<discrepancy_threads>(sum, scratch);
    if (threadIdx.x == 0) *delta = (T)sum;
}

template <class Alpha>
__global__ void __launch_bounds__(discrepancy_threads)
    ascent_kernel(double* partial,  // [splits, 2, count]; squares take the place of the first
                  int splits, FeatureList features, double least, double rate,
                  Alpha* alpha) {  // [count]
    SHARED(double, scratch, discrepancy_threads / warp_size);
    double sum = 0;
    for (int k = threadIdx.x; k < features.count; k += discrepancy_threads)
        sum += partial[k] = Zeta(partial, splits, features, k).square();
    double mean = block_sum<discrepancy_threads>(sum, scratch) / features.count;
    if (mean < least) mean = least;
    for (int k = threadIdx.x; k < features.count; k += discrepancy_threads) {
        const double target = partial[k] / mean, before = (double)alpha[k];
        alpha[k] =
            (Alpha)(rate < 0.5 ? before + rate * (target - before) : target - (1 - rate) * (target - before));
    }
}

// --- choices, by sizes alone ---

FeatureList list_of(const Features& features, double unit) {
    FeatureList list;
    const int parts = features.bandwidths.count;
    list.key = features.key;
    list.count = features.count;
    list.part = features.count / parts;
    list.inverse.count = list.scale.count = parts;
    for (int s = 0; s < parts; ++s) {
        list.inverse.values[s] = 1 / (unit * features.bandwidths.values[s]);
        list.scale.values[s] = sqrt(features.kernel_weights.values[s] / list.part);
    }
    return list;
}
constexpr double pi = 3.1415926535897932;

// Parts of the tiles, each of at least `least`, so that there are `wanted` blocks.
Splits parts_of(int64_t blocks, int64_t tiles, int64_t least, int64_t wanted) {
    int64_t parts = ceil_divide(wanted, blocks < 1 ? 1 : blocks);
    if (parts > most_splits) parts = most_splits;
    if (parts > tiles / least) parts = tiles / least;
    if (parts < 1) parts = 1;
    const int64_t per_split = tiles < 1 ? 1 : ceil_divide(tiles, parts);
    return {(int)ceil_divide(tiles < 1 ? 1 : tiles, per_split), per_split};
}

struct Plan {
    bool held;       // threads hold several features of a sum, or rows of a function
    int64_t tile;    // rows of a tile of a sum, features of one of a function
    int64_t blocks;  // of one member of the batch, and one split
    Splits splits;
    bool merged;  // partial results go to memory
};

template <class T>
Plan sum_plan(int64_t batch, int64_t first, int64_t second, int dim, int64_t count, bool merged) {
    Plan plan;
    plan.tile = dim <= few_dims ? tile_rows<T> : many_rows<T>;
    const int64_t tiles = ceil_divide(first, plan.tile) + ceil_divide(second, plan.tile);
    const int64_t most = tiles < most_splits ? tiles : most_splits;
    plan.held = dim <= few_dims && sizeof(T) == 4 && batch * ceil_divide(count, 128) * most >= worth_holding;
    plan.blocks = ceil_divide(count, plan.held ? 128 : 32);
    // A launch to merge takes as long as some eight tiles of one block.
    const bool worthwhile = merged || plan.held || dim > few_dims;
    plan.splits =
        parts_of(batch * plan.blocks, tiles, worthwhile ? 1 : 8, (plan.held ? 4 : 2) * filling_blocks);
    plan.merged = merged || plan.splits.parts > 1;
    return plan;
}

// Rows that a thread holds, with their sums.
constexpr int held_rows(int dim, bool gradient) { return gradient && dim > 6 ? 2 : 4; }

template <class T> Plan function_plan(int64_t batch, int64_t n, int dim, int64_t count, bool gradient) {
    Plan plan;
    const bool few = dim <= few_dims;
    const int64_t held = few_threads<T, 4> * held_rows(dim, gradient),
                  parts = ceil_divide(count, tile_features<4>);
    const int64_t most = parts < most_splits ? parts : most_splits;
    plan.held = few && sizeof(T) == 4 && batch * ceil_divide(n, held) * most >= worth_holding;
    plan.tile = !few ? many_features : plan.held ? tile_features<4> : tile_features<1>;
    plan.blocks = ceil_divide(n, plan.held ? held : few ? warp_size : many_rows<T>);
    const int64_t least = plan.held ? 1 : few ? 8 : 4, wanted = plan.held ? 4 : few ? 1 : 2;
    plan.splits =
        parts_of(batch * plan.blocks, ceil_divide(count, plan.tile), least, wanted * filling_blocks);
    plan.merged = plan.splits.parts > 1 || (gradient && !few);
    return plan;
}

// --- launches ---

template <int Value> struct Constant {
    static constexpr int value = Value;
};

// run(Constant<Dim>) for the least Dim of which kernels exist; the others' coordinates are 0.
template <class T, class Run> Status by_dim(int dim, const Run& run) {
    if constexpr (sizeof(T) == 4) {
        switch (dim) {
            case 1: return run(Constant<1>());
            case 2: return run(Constant<2>());
            case 3: return run(Constant<3>());
            case 4: return run(Constant<4>());
            case 5: return run(Constant<5>());
            case 6: return run(Constant<6>());
        }
        if (dim <= 8) return run(Constant<8>());
        if (dim <= 10) return run(Constant<10>());
        if (dim <= 12) return run(Constant<12>());
    } else {
        if (dim <= 3) return run(Constant<3>());
        if (dim <= 8) return run(Constant<8>());
    }
    return run(Constant<few_dims>());
}

template <class T>
Status launch_sum(const Plan& plan, int64_t batch, Cloud<T> first, Cloud<T> second, int dim,
                  const FeatureList& features, double* partial, T* out, void* stream) {
    first.tiles = ceil_divide(first.count, plan.tile);
    second.tiles = ceil_divide(second.count, plan.tile);
    const dim3 grid((unsigned)(batch * plan.blocks), plan.splits.parts);
    const auto start = [&](auto kernel, int threads) {
        return launch("fourier_sum", kernel, grid, threads, stream, first, second, dim, features,
                      plan.splits.per_split, (int)plan.blocks, partial, out);
    };
    if (dim > few_dims) return start(many_sum_kernel<T>, many_threads);
    return by_dim<T>(dim, [&](auto constant) {
        constexpr int Dim = decltype(constant)::value;
        if constexpr (sizeof(T) == 4)
            if (plan.held) return start(few_sum_kernel<T, Dim, 4>, few_threads<T, 4>);
        return start(few_sum_kernel<T, Dim, 1>, few_threads<T, 1>);
    });
}

template <class T>
Status launch_merge(const double* partial, int splits, int64_t size, const FeatureList& features,
                    const void* factor, double times, void* out, void* stream) {
    return launch("fourier_merge", merge_kernel<T>, dim3((unsigned)ceil_divide(size, merge_threads)),
                  merge_threads, stream, partial, splits, size, features, (const T*)factor, times, (T*)out);
}

template <class T> Plan plan_of(const FourierSum& task) {
    return sum_plan<T>(task.batch, task.n, 0, task.dim, task.features.count, false);
}

double* take_partial(Workspace& workspace, const Plan& plan, int64_t size) {
    return plan.merged ? workspace.take<double>(plan.splits.parts * size) : nullptr;
}

template <class T> Status run(const FourierSum& task, void* memory, void* stream, int64_t* used) {
    const Plan plan = plan_of<T>(task);
    const int64_t size = task.batch * 2 * task.features.count;
    Workspace workspace(memory);
    double* const partial = take_partial(workspace, plan, size);
    if (used) return *used = workspace.used(), Status();
    const FeatureList features = list_of(task.features, pi);
    const Cloud<T> cloud = {(const T*)task.x, (const T*)task.weights, T(0), task.n, 0};
    const Status status = launch_sum<T>(plan, task.batch, cloud, Cloud<T>{}, task.dim, features, partial,
                                        plan.merged ? nullptr : (T*)task.out, stream);
    if (!plan.merged) return status;
    return status + launch_merge<T>(partial, plan.splits.parts, size, features, nullptr, 1, task.out, stream);
}

template <class T, bool Gradient>
Status run_function(const FourierFunction& task, Workspace& workspace, bool count_only, void* result,
                    void* stream) {
    const Plan plan = function_plan<T>(task.batch, task.n, task.dim, task.features.count, Gradient);
    const int64_t size = task.batch * task.n * (Gradient ? task.dim : 1);
    double* const partial = take_partial(workspace, plan, size);
    if (count_only || size == 0) return {};
    FeatureList features = list_of(task.features, pi);
    const dim3 grid((unsigned)(task.batch * plan.blocks), plan.splits.parts);
    const auto start = [&](auto kernel, int threads) {
        return launch("fourier_function", kernel, grid, threads, stream, (const T*)task.x,
                      (const T*)task.coefficients, (const T*)task.factor, task.times, task.n, task.dim,
                      features, (int)plan.splits.per_split, plan.blocks, partial,
                      plan.merged ? nullptr : (T*)result);
    };
    const Status status =
        task.dim > few_dims
            ? start(many_function_kernel<T, Gradient>, many_threads)
            : by_dim<T>(task.dim, [&](auto constant) {
                  constexpr int Dim = decltype(constant)::value, held = held_rows(Dim, Gradient);
                  if constexpr (sizeof(T) == 4)
                      if (plan.held)
                          return start(few_function_kernel<T, Dim, held, Gradient>, few_threads<T, held>);
                  return start(few_function_kernel<T, Dim, 1, Gradient>, few_threads<T, 1>);
              });
    if (!plan.merged) return status;
    features.count = 0;  // their scale is in the coefficients already
    return status + launch_merge<T>(partial, plan.splits.parts, size, features, task.factor, task.times,
                                    result, stream);
}

template <class T> Status run(const FourierFunction& task, void* memory, void* stream, int64_t* used) {
    Workspace workspace(memory);
    Status status;
    if (task.value)
        status = status + run_function<T, false>(task, workspace, used != nullptr, task.value, stream);
    if (task.gradient)
        status = status + run_function<T, true>(task, workspace, used != nullptr, task.gradient, stream);
    if (used) *used = workspace.used();
    return status;
}

template <class T> Status run(const FourierDiscrepancy& task, void* memory, void* stream, int64_t* used) {
    const int64_t size = 2 * (int64_t)task.features.count;
    const Plan plan = sum_plan<T>(1, task.draws_count, task.codes_count, task.dim, task.features.count, true);
    Workspace workspace(memory);
    double* const partial = take_partial(workspace, plan, size);
    if (used) return *used = workspace.used(), Status();
    const FeatureList features = list_of(task.features, pi);
    const Cloud<T> draws = {(const T*)task.draws, nullptr, T(1.0 / task.draws_count), task.draws_count, 0};
    const Cloud<T> codes = {(const T*)task.codes, nullptr, T(-1.0 / task.codes_count), task.codes_count, 0};
    const Status status =
        launch_sum<T>(plan, 1, draws, codes, task.dim, features, partial, (T*)nullptr, stream);
    const dim3 one(1);
    if (task.delta)
        return status + launch("fourier_discrepancy", discrepancy_kernel<T>, one, discrepancy_threads, stream,
                               partial, plan.splits.parts, features, (const T*)task.alpha, (T*)task.delta,
                               (T*)task.slopes);
    const double least = sizeof(T) == 4 ? 0x1p-126 : 0x1p-1022;
    const auto ascend = [&](auto kernel, auto* alpha) {
        return launch("fourier_ascent", kernel, one, discrepancy_threads, stream, partial, plan.splits.parts,
                      features, least, task.rate, alpha);
    };
    return status + (task.alpha_is_double ? ascend(ascent_kernel<double>, (double*)task.alpha)
                                          : ascend(ascent_kernel<float>, (float*)task.alpha));
}

template <class Task> Status dispatch(const Task& task, void* memory, void* stream, int64_t* used) {
    return task.is_double ? run<double>(task, memory, stream, used) : run<float>(task, memory, stream, used);
}
template <class Task> int64_t size_of(const Task& task) {
    int64_t used = 0;
    dispatch(task, nullptr, nullptr, &used);
    return used;
}

template <class T> Status run(const FourierFrequencies& task, void* stream) {
    const int64_t items = (int64_t)task.features.count * ((task.dim + 3) / 4);
    return launch("fourier_frequencies", frequencies_kernel<T>,
                  dim3((unsigned)ceil_divide(items, merge_threads)), merge_threads, stream, task.dim,
                  list_of(task.features, 1), (T*)task.out);
}

}  // namespace

int64_t fourier_sum_workspace(const FourierSum& task) { return size_of(task); }
int64_t fourier_function_workspace(const FourierFunction& task) { return size_of(task); }
int64_t fourier_discrepancy_workspace(const FourierDiscrepancy& task) { return size_of(task); }

Status fourier_sum(const FourierSum& task, void* workspace, void* stream) {
    return dispatch(task, workspace, stream, nullptr);
}
Status fourier_function(const FourierFunction& task, void* workspace, void* stream) {
    return dispatch(task, workspace, stream, nullptr);
}
Status fourier_discrepancy(const FourierDiscrepancy& task, void* workspace, void* stream) {
    return dispatch(task, workspace, stream, nullptr);
}
Status fourier_frequencies(const FourierFrequencies& task, void* stream) {
    return task.is_double ? run<double>(task, stream) : run<float>(task, stream);
}

}  // namespace fastmmd::cuda
