// Functions of points that are sums of random Fourier features, and their gradients.
#include "frequencies.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

constexpr int64_t fewest_features = 128, most_features = 256;  // whose frequencies a thread holds at a time
constexpr int64_t most_elements = 1 << 15;  // of the sums of one task of fourier_function, which has
constexpr int64_t fewest_points = 256, most_points = 2048;  // as many points as that allows
constexpr int dims_at_once = 4;                             // of a gradient

// Up to so many dimensions sums stay in registers, which then has room for fewer projections at once.
constexpr int unrolled = 6;
constexpr int group_of(int dim) { return dim ? 2 : 4; }

// f(x) = sum_k amplitude_k cos(pi (W_k x / pi + advance_k)) over one tile.
template <class T> struct FunctionTile {
    T* frequencies;  // [features / chunk][dim][chunk]: W / pi
    T* amplitude;    // [features]: 0 beyond the last feature
    T* advance;      // [features]
};

// t[k] = W_k x / pi + advance_k for one vector of points.
template <class T, int Dim, int Count>
FASTMMD_INLINE void project_features(const T* x,            // [dim][lanes]
                                     const T* frequencies,  // [dim][chunk], from the first of the features
                                     const T* advance,      // [Count]
                                     int dim, Vector<T>* t) {
    if constexpr (Dim) dim = Dim;
    Vector<T> even[Count], odd[Count] = {};
    for (int k = 0; k < Count; ++k) even[k] = broadcast(advance[k]);
    int d = 0;
    for (; d + 2 <= dim; d += 2) {
        const Vector<T> first = load(x + d * lanes<T>), second = load(x + (d + 1) * lanes<T>);
        for (int k = 0; k < Count; ++k) even[k] += first * broadcast(frequencies[d * chunk + k]);
        for (int k = 0; k < Count; ++k) odd[k] += second * broadcast(frequencies[(d + 1) * chunk + k]);
    }
    if (d < dim)
        for (int k = 0; k < Count; ++k)
            even[k] += load(x + d * lanes<T>) * broadcast(frequencies[d * chunk + k]);
    for (int k = 0; k < Count; ++k) t[k] = even[k] + odd[k];
}

// The features' values, added up, and the terms of the gradient over -pi.
template <class T, int Count, bool Value, bool Grad, bool Far>
FASTMMD_INLINE void add_waves(const Vector<T>* t,   // [Count]
                              const T* amplitudes,  // [Count]
                              Vector<T>& value,
                              Vector<T>* slopes) {  // [Count]
    HalfTurns<T> turns[Count];
    Vector<T> square[Count], sine[Count], cosine[Count];
    reduce<T, Count, Far>(t, turns, square);
    if constexpr (Value)
        for (int k = 0; k < Count; ++k) cosine[k] = cospi_polynomial<T>(square[k]);
    if constexpr (Grad)
        for (int k = 0; k < Count; ++k) sine[k] = sinpi_polynomial<T>(square[k]);
    for (int k = 0; k < Count; ++k) {
        const Vector<T> amplitude = flip_sign<T>(broadcast(amplitudes[k]), turns[k].sign);
        if constexpr (Value) value += amplitude * cosine[k];
        if constexpr (Grad) slopes[k] = amplitude * turns[k].rest * sine[k];
    }
}

// sums[d] += sum_k slopes[k] W_kd.
template <class T, int Dims, int Count>
FASTMMD_INLINE void add_gradient(const Vector<T>* slopes,  // [Count]
                                 const T* frequencies,     // [Dims][chunk], from the first of the features
                                 Vector<T>* sums) {        // [Dims]
    for (int k = 0; k < Count; ++k)
        for (int d = 0; d < Dims; ++d) sums[d] += slopes[k] * broadcast(frequencies[d * chunk + k]);
}

template <class T, int Dims>
FASTMMD_INLINE void add_chunk_gradient(const Vector<T>* slopes,  // [chunk]
                                       const T* frequencies,     // [Dims][chunk]
                                       T* sums) {                // [Dims][lanes]
    Vector<T> total[Dims] = {};
    add_gradient<T, Dims, chunk>(slopes, frequencies, total);
    for (int d = 0; d < Dims; ++d) store(sums + d * lanes<T>, load(sums + d * lanes<T>) + total[d]);
}

// One vector of points at the features of one tile. Sums run in T over a chunk and over the chunks of a tile.
template <class T, int Dim, bool Value, bool Grad, bool Far>
void add_features(const T* x,  // [dim][lanes]
                  const FunctionTile<T>& tile, int used, int dim,
                  T* sums,           // [1 + dim][lanes]
                  double* totals) {  // [1 + dim][lanes]: values, gradients over -pi
    constexpr int group = group_of(Dim);
    if constexpr (Dim) dim = Dim;
    for (int64_t i = 0; i < (1 + dim) * lanes<T>; ++i) sums[i] = 0;
    T* gradients = sums + lanes<T>;
    Vector<T> t[group] = {}, total = {};
    project_features<T, Dim, group>(x, tile.frequencies, tile.advance, dim, t);
    for (int first = 0; first < used; first += chunk) {
        const T* frequencies = tile.frequencies + (int64_t)first * dim;
        Vector<T> value = {}, gradient[Dim ? Dim : 1] = {}, slopes[Dim ? group : chunk];
        for (int k = 0; k < chunk; k += group) {
            const int later = smaller(first + k + group, used - group);
            Vector<T> next[group], *slope = Dim ? slopes : slopes + k;
            project_features<T, Dim, group>(
                x, tile.frequencies + (int64_t)(later / chunk) * chunk * dim + later % chunk,
                tile.advance + later, dim, next);
            add_waves<T, group, Value, Grad, Far>(t, tile.amplitude + first + k, value, slope);
            if constexpr (Grad && Dim) add_gradient<T, Dim, group>(slope, frequencies + k, gradient);
            for (int j = 0; j < group; ++j) t[j] = next[j];
        }
        total += value;
        if constexpr (Grad && Dim) {
            for (int d = 0; d < Dim; ++d)
                store(gradients + d * lanes<T>, load(gradients + d * lanes<T>) + gradient[d]);
        } else if constexpr (Grad) {
            int d = 0;
            for (; d + dims_at_once <= dim; d += dims_at_once)
                add_chunk_gradient<T, dims_at_once>(slopes, frequencies + d * chunk,
                                                    gradients + d * lanes<T>);
            for (; d < dim; ++d)
                add_chunk_gradient<T, 1>(slopes, frequencies + d * chunk, gradients + d * lanes<T>);
        }
    }
    store(sums, total);
    for (int64_t d = 0; d < (Grad ? 1 + dim : 1); ++d)
        add_wide<T>(totals + d * lanes<T>, load(sums + d * lanes<T>));
}

template <class T> using FunctionLoop = void (*)(const T*, const FunctionTile<T>&, int, int, T*, double*);

template <class T, int Dim = unrolled>
FunctionLoop<T> function_loop(int dim, bool value, bool grad, bool far) {
    if constexpr (Dim > 0) {
        if (dim < Dim || far) return function_loop<T, Dim - 1>(dim, value, grad, far);
        if (dim > Dim) return function_loop<T, 0>(dim, value, grad, far);
    } else if (far) {
        return add_features<T, 0, true, true, true>;
    }
    if (!grad) return add_features<T, Dim, true, false, false>;
    return value ? add_features<T, Dim, true, true, false> : add_features<T, Dim, false, true, false>;
}

// Returns whether a projection may pass the limit of half_turns.
template <class T>
bool make_function_tile(const Features& features, int64_t first, int used, int dim,
                        const T* coefficients,  // [2 * count]
                        T largest, const FunctionTile<T>& tile) {
    bool far = false;
    for (int k = 0; k < used; k += chunk) {
        T* w = tile.frequencies + (int64_t)k * dim;
        make_frequencies<T>(features, first + k, chunk, dim, inverse_pi, w);
        far |= may_be_far(w, chunk, dim, largest);
    }
    for (int k = 0; k < used; k += lanes<T>) {
        Vector<T> cosine = {}, sine = {};
        for (int64_t lane = 0; lane < smaller<int64_t>(lanes<T>, features.count - first - k); ++lane) {
            cosine[lane] = coefficients[first + k + lane];
            sine[lane] = coefficients[features.count + first + k + lane];
        }
        const Wave<T> wave = wave_of<T>(cosine, sine);
        store(tile.amplitude + k, wave.amplitude * feature_scales<T>(features, first + k));
        store(tile.advance + k, -wave.phase);
    }
    return far;
}

// Points as columns, [vectors][dim][lanes]; zeros in the padding.
template <class T>
void transpose_points(const T* x,  // [points, dim]
                      int64_t points, int dim, T* columns) {
    for (int64_t i = 0; i < round_up(points, lanes<T>); ++i)
        for (int64_t d = 0; d < dim; ++d)
            columns[(i / lanes<T> * dim + d) * lanes<T> + i % lanes<T>] = i < points ? x[i * dim + d] : T(0);
}

template <class T> bool run(const FourierFunction& task) {
    const int dim = task.dim, stride = 1 + dim;
    const int64_t count = task.features.count;
    const int64_t block = round_up(
        smaller(task.n, smaller(most_points, larger(fewest_points, most_elements / stride))), lanes<T>);
    const int64_t blocks = block ? blocks_of(task.n, block) : 0, tasks = task.batch * blocks;
    if (tasks == 0) return true;
    // Few points: share out strips of the features too. Their number depends on the sizes alone.
    const int64_t share = count / larger<int64_t>(1, most_strips / tasks);
    const int64_t width = smaller(most_features, larger(fewest_features, round_up(share, chunk)));
    const int64_t tiles = blocks_of(count, width);
    const int64_t strips = larger<int64_t>(1, smaller<int64_t>(most_strips / tasks, tiles));
    const int64_t strip = blocks_of(tiles, strips);
    const int threads =
        useful_threads(task.threads, (double)task.batch * task.n * count * (2 * dim + 10) / lanes<T>);
    const int64_t elements = (int64_t)(dim + 2) * width + (int64_t)stride * lanes<T>;
    const Buffer<T> scratch(threads * elements), columns(tasks * block * dim), largest(tasks);
    const Buffer<double> totals(tasks * strips * block * stride);
    if (!scratch || !columns || !largest || !totals) return false;

    parallel_for(tasks, threads, [&](int64_t at, int) {
        const int64_t first = at % blocks * block, points = smaller<int64_t>(block, task.n - first);
        const T* x = (const T*)task.x + (at / blocks * task.n + first) * dim;
        transpose_points(x, points, dim, columns.get() + at * block * dim);
        largest.get()[at] = largest_size(x, points * dim);
    });
    parallel_for(tasks * strips, threads, [&](int64_t at, int thread) {
        const int64_t b = at / strips / blocks, first = at / strips % blocks * block;
        const int64_t points = smaller<int64_t>(block, task.n - first), last = at % strips * strip + strip;
        T* memory = scratch.get() + thread * elements;
        const FunctionTile<T> tile = {memory, memory + dim * width, memory + (dim + 1) * width};
        T* sums = memory + (dim + 2) * width;
        const T* x = columns.get() + at / strips * block * dim;
        double* total = totals.get() + at * block * stride;  // [vectors][1 + dim][lanes]
        for (int64_t i = 0; i < block * stride; ++i) total[i] = 0;
        for (int64_t t = at % strips * strip; t < smaller(last, tiles); ++t) {
            const int64_t feature = t * width;
            const int used = (int)smaller(width, round_up(count - feature, chunk));
            const bool far = make_function_tile<T>(task.features, feature, used, dim,
                                                   (const T*)task.coefficients + b * 2 * count,
                                                   largest.get()[at / strips], tile);
            const auto loop = function_loop<T>(dim, task.value != nullptr, task.grad != nullptr, far);
            for (int64_t i = 0; i < points; i += lanes<T>)
                loop(x + i * dim, tile, used, dim, sums, total + i * stride);
        }
    });
    const int64_t slice = smaller(block, fewest_points), slices = blocks_of(block, slice);
    parallel_for(tasks * slices, threads, [&](int64_t at, int) {
        const int64_t part = at / slices, b = part / blocks, begin = at % slices * slice;
        for (int64_t i = begin; i < smaller(begin + slice, block); i += lanes<T>) {
            double* total = totals.get() + (part * strips * block + i) * stride;  // [1 + dim][lanes]
            for (int64_t s = 1; s < strips; ++s)
                for (int64_t k = 0; k < stride * lanes<T>; ++k) total[k] += total[s * block * stride + k];
            const int64_t first = part % blocks * block + i;
            for (int64_t lane = 0; lane < smaller<int64_t>(lanes<T>, task.n - first); ++lane) {
                const int64_t point = b * task.n + first + lane;
                if (task.value) ((T*)task.value)[point] = (T)total[lane];
                if (task.grad)
                    for (int64_t d = 0; d < dim; ++d)
                        ((T*)task.grad)[point * dim + d] = (T)(-pi * total[(1 + d) * lanes<T> + lane]);
            }
        }
    });
    return true;
}

}  // namespace

bool fourier_function(const FourierFunction& task) {
    return task.is_double ? run<double>(task) : run<float>(task);
}

}  // namespace fastmmd::FASTMMD_ISA
