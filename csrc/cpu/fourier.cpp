// Random Fourier features: sums over a batch, functions of points, and the frequencies themselves.
//
// Angles are counted in half turns t = W x / pi, so the kernels make their frequencies with 1 / pi in them.
// The nearest integer to t is subtracted and its parity flips signs; sine and cosine of the rest are two
// polynomials. Where |t| may pass Format<T>::turns_limit, whole turns are taken off first (`far`).
#include "frequencies.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

constexpr double inverse_pi = 0.31830988618379067, pi = 3.1415926535897932;
constexpr int strip_points = 1024;  // points for which a strip of fourier_sum is worth its start
constexpr int chunk = 16;           // terms added in T before their sum goes on: equal ones round alike
template <class T> constexpr int sum_tile = 4 * lanes<T>;  // features of one task of fourier_sum

// sin(pi t) / rest = (-1)^n sinpi_polynomial(square), cos(pi t) = (-1)^n cospi_polynomial(square).
template <class T, int Count, bool Far>
FASTMMD_INLINE void reduce(const Vector<T>* t, HalfTurns<T>* turns, Vector<T>* square) {  // [Count] each
    for (int i = 0; i < Count; ++i) turns[i] = half_turns<T>(Far ? within_a_turn<T>(t[i]) : t[i]);
    for (int i = 0; i < Count; ++i) square[i] = turns[i].rest * turns[i].rest;
}

// t[i] = W x_i / pi for one vector of features. Even and odd dimensions apart: shorter chains.
template <class T, int Points>
FASTMMD_INLINE void project_points(const T* x,            // [Points, dim]
                                   const T* frequencies,  // [dim][lanes]
                                   int dim, Vector<T>* t) {
    Vector<T> even[Points] = {}, odd[Points] = {};
    int d = 0;
    for (; d + 2 <= dim; d += 2) {
        const Vector<T> first = load(frequencies + d * lanes<T>),
                        second = load(frequencies + (d + 1) * lanes<T>);
        for (int i = 0; i < Points; ++i) even[i] += broadcast(x[(int64_t)i * dim + d]) * first;
        for (int i = 0; i < Points; ++i) odd[i] += broadcast(x[(int64_t)i * dim + d + 1]) * second;
    }
    if (d < dim)
        for (int i = 0; i < Points; ++i)
            even[i] += broadcast(x[(int64_t)i * dim + d]) * load(frequencies + d * lanes<T>);
    for (int i = 0; i < Points; ++i) t[i] = even[i] + odd[i];
}

template <class T, int Points, bool Weighted, bool Far>
FASTMMD_INLINE void add_points(const Vector<T>* t,  // [Points]
                               const T* weights,    // [Points]
                               Vector<T>& cosines, Vector<T>& sines) {
    HalfTurns<T> turns[Points];
    Vector<T> square[Points], sine[Points], cosine[Points];
    reduce<T, Points, Far>(t, turns, square);
    for (int i = 0; i < Points; ++i) cosine[i] = cospi_polynomial<T>(square[i]);
    for (int i = 0; i < Points; ++i) sine[i] = sinpi_polynomial<T>(square[i]);
    for (int i = 0; i < Points; ++i) {
        if constexpr (Weighted) {
            const Vector<T> w = flip_sign<T>(broadcast(weights[i]), turns[i].sign);
            cosines += w * cosine[i];
            sines += w * turns[i].rest * sine[i];
        } else {
            cosines += flip_sign<T>(cosine[i], turns[i].sign);
            sines += flip_sign<T>(turns[i].rest, turns[i].sign) * sine[i];
        }
    }
}

// Points times one vector of features, added to sums; every weight counts as 1 without Weighted.
template <class T, bool Weighted, bool Far>
void sum_features(const T* x,            // [n, dim]
                  const T* weights,      // [n]
                  const T* frequencies,  // [dim][lanes]
                  int64_t n, int dim,
                  double* cosine_sums,  // [lanes]
                  double* sine_sums) {  // [lanes]
    constexpr int group = 4;
    Vector<T> t[group] = {};
    if (n >= group) project_points<T, group>(x, frequencies, dim, t);
    for (int64_t first = 0; first < n; first += chunk) {
        const int64_t end = smaller<int64_t>(first + chunk, n);
        Vector<T> cosines = {}, sines = {};
        int64_t i = first;
        for (; i + group <= end; i += group) {
            Vector<T> next[group];
            const int64_t later = smaller<int64_t>(i + group, n - group);
            project_points<T, group>(x + later * dim, frequencies, dim, next);
            add_points<T, group, Weighted, Far>(t, weights + i, cosines, sines);
            for (int j = 0; j < group; ++j) t[j] = next[j];
        }
        for (; i < end; ++i) {
            project_points<T, 1>(x + i * dim, frequencies, dim, t);
            add_points<T, 1, Weighted, Far>(t, weights + i, cosines, sines);
        }
        add_wide<T>(cosine_sums, cosines);
        add_wide<T>(sine_sums, sines);
    }
}

// The largest |value|; passes over NaN, which reaches every result that it concerns anyway.
template <class T>
T largest_size(const T* values,  // [count]
               int64_t count) {
    Vector<T> largest = {};
    for (int64_t i = 0; i < count; i += lanes<T>) {
        Vector<T> size = {};
        if (i + lanes<T> <= count) {
            size = load(values + i);
        } else {
            for (int lane = 0; lane < count - i; ++lane) size[lane] = values[i + lane];
        }
        size = size < Vector<T>{} ? -size : size;
        largest = size > largest ? size : largest;
    }
    T result = 0;
    for (int lane = 0; lane < lanes<T>; ++lane) result = larger(result, largest[lane]);
    return result;
}

// Whether |W x / pi| may pass the limit of half_turns for one of `width` features and |x_d| <= largest.
template <class T>
bool may_be_far(const T* frequencies,  // [dim][width]
                int width, int dim, T largest) {
    for (int k = 0; k < width; k += lanes<T>) {
        Vector<T> sum = {};
        for (int d = 0; d < dim; ++d) {
            const Vector<T> w = load(frequencies + (int64_t)d * width + k);
            sum += w < Vector<T>{} ? -w : w;
        }
        if (any<T>(~(sum * largest < broadcast(Format<T>::turns_limit / 2)))) return true;
    }
    return false;
}

template <class T>
bool all_equal(const T* values,  // [count]
               int64_t count) {
    bool equal = true;
    for (int64_t i = 0; i < count; ++i) equal &= values[i] == values[0];
    return equal;
}

template <class T> bool run(const FourierSum& task) {
    constexpr int width = sum_tile<T>;
    const int dim = task.dim;
    const int64_t count = task.features.count, tiles = blocks_of(count, width);
    // Few features: share out strips of the batch too. Their number depends on the sizes alone.
    const int64_t strips = task.batch * tiles >= 64
                               ? 1
                               : larger<int64_t>(1, smaller<int64_t>(most_strips, task.n / strip_points));
    const int64_t strip = round_up(blocks_of(task.n, strips), chunk);
    const int threads =
        useful_threads(task.threads, (double)task.batch * task.n * count * (dim + 10) / lanes<T>);
    const Buffer<T> frequencies((int64_t)threads * dim * lanes<T>), largest(task.batch),
        common(task.batch);  // the weight that all points share, or NaN
    const Buffer<double> partial(task.batch * tiles * strips * 2 *
                                 width);  // [batch][tiles][strips][2][width]
    if (!frequencies || !largest || !common || !partial) return false;

    parallel_for(task.batch, threads, [&](int64_t b, int) {
        const T* w = (const T*)task.weights + b * task.n;
        largest.get()[b] = largest_size((const T*)task.x + b * task.n * dim, task.n * dim);
        common.get()[b] = task.n > 0 && all_equal(w, task.n) ? w[0] : (T)NAN;
    });
    parallel_for(task.batch * tiles * strips, threads, [&](int64_t at, int thread) {
        const int64_t b = at / strips / tiles, tile = at / strips % tiles;
        const int64_t first = at % strips * strip, last = smaller<int64_t>(first + strip, task.n);
        const T* x = (const T*)task.x + b * task.n * dim;
        const T* weights = (const T*)task.weights + b * task.n;
        const T weight = common.get()[b];
        T* w = frequencies.get() + (int64_t)thread * dim * lanes<T>;
        double* sums = partial.get() + at * 2 * width;
        for (int k = 0; k < 2 * width; ++k) sums[k] = 0;
        for (int k = 0; k < width; k += lanes<T>) {
            make_frequencies<T>(task.features, tile * width + k, lanes<T>, dim, inverse_pi, w);
            const bool far = may_be_far(w, lanes<T>, dim, largest.get()[b]);
            const bool weighted = far || !(weight == weight);
            const auto sum = far        ? sum_features<T, true, true>
                             : weighted ? sum_features<T, true, false>
                                        : sum_features<T, false, false>;
            sum(x + first * dim, weights + first, w, last - first, dim, sums + k, sums + width + k);
            for (int lane = k; lane < k + lanes<T> && !weighted; ++lane) {
                sums[lane] *= weight;
                sums[width + lane] *= weight;
            }
        }
    });
    parallel_for(task.batch * tiles, threads, [&](int64_t at, int) {
        const int64_t b = at / tiles, first = at % tiles * width;
        const double* sums = partial.get() + at * strips * 2 * width;
        T* out = (T*)task.out + b * 2 * count;
        T scales[width];
        for (int k = 0; k < width; k += lanes<T>)
            store(scales + k, feature_scales<T>(task.features, first + k));
        for (int64_t k = 0; k < smaller<int64_t>(width, count - first); ++k) {
            double cosine = 0, sine = 0;
            for (int64_t i = 0; i < strips; ++i) {
                cosine += sums[i * 2 * width + k];
                sine += sums[i * 2 * width + width + k];
            }
            out[first + k] = (T)(scales[k] * cosine);
            out[count + first + k] = (T)(scales[k] * sine);
        }
    });
    return true;
}

constexpr int function_tile = 256;          // features whose frequencies fourier_function holds at a time
constexpr int64_t most_elements = 1 << 15;  // of the sums of one task of fourier_function, which has
constexpr int64_t fewest_points = 256, most_points = 2048;  // as many points as that allows
constexpr int dims_at_once = 4;                             // of a gradient

// Up to so many dimensions sums stay in registers, which then has room for fewer projections at once.
constexpr int unrolled = 6;
constexpr int group_of(int dim) { return dim ? 2 : 4; }

// f(x) = sum_k amplitude_k cos(pi (W_k x / pi + advance_k)) over one tile.
template <class T> struct FunctionTile {
    T* frequencies;  // [function_tile / chunk][dim][chunk]: W / pi
    T* amplitude;    // [function_tile]: 0 beyond the last feature
    T* advance;      // [function_tile]
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
bool make_function_tile(const Features& features, int64_t first, int dim,
                        const T* coefficients,  // [2 * count]
                        T largest, const FunctionTile<T>& tile) {
    bool far = false;
    for (int k = 0; k < function_tile; k += chunk) {
        T* w = tile.frequencies + (int64_t)k * dim;
        make_frequencies<T>(features, first + k, chunk, dim, inverse_pi, w);
        far |= may_be_far(w, chunk, dim, largest);
    }
    for (int k = 0; k < function_tile; k += lanes<T>) {
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
    const int64_t count = task.features.count, tiles = blocks_of(count, function_tile);
    const int64_t block = round_up(
        smaller(task.n, smaller(most_points, larger(fewest_points, most_elements / stride))), lanes<T>);
    const int64_t blocks = block ? blocks_of(task.n, block) : 0, tasks = task.batch * blocks;
    if (tasks == 0) return true;
    // Few points: share out strips of the features too. Their number depends on the sizes alone.
    const int64_t strips = larger<int64_t>(1, smaller<int64_t>(most_strips / tasks, tiles / 4));
    const int64_t strip = blocks_of(tiles, strips);
    const int threads =
        useful_threads(task.threads, (double)task.batch * task.n * count * (2 * dim + 10) / lanes<T>);
    const int64_t elements = (int64_t)(dim + 2) * function_tile + block * dim + (int64_t)stride * lanes<T>;
    const Buffer<T> scratch(threads * elements);
    const Buffer<double> totals(tasks * strips * block * stride);
    if (!scratch || !totals) return false;

    parallel_for(tasks * strips, threads, [&](int64_t at, int thread) {
        const int64_t b = at / strips / blocks, first = at / strips % blocks * block;
        const int64_t points = smaller<int64_t>(block, task.n - first), last = at % strips * strip + strip;
        T* memory = scratch.get() + thread * elements;
        const auto take = [&](int64_t count) { return (memory += count) - count; };
        T* frequencies = take((int64_t)dim * function_tile);
        T* amplitude = take(function_tile);
        const FunctionTile<T> tile = {frequencies, amplitude, take(function_tile)};
        T* columns = take(block * dim);
        T* sums = take((int64_t)stride * lanes<T>);
        const T* x = (const T*)task.x + (b * task.n + first) * dim;
        transpose_points(x, points, dim, columns);
        const T largest = largest_size(x, points * dim);
        double* total = totals.get() + at * block * stride;  // [vectors][1 + dim][lanes]
        for (int64_t i = 0; i < block * stride; ++i) total[i] = 0;
        for (int64_t t = at % strips * strip; t < smaller(last, tiles); ++t) {
            const int64_t feature = t * function_tile;
            const int used = (int)smaller<int64_t>(function_tile, round_up(count - feature, chunk));
            const bool far = make_function_tile<T>(
                task.features, feature, dim, (const T*)task.coefficients + b * 2 * count, largest, tile);
            const auto loop = function_loop<T>(dim, task.value != nullptr, task.grad != nullptr, far);
            for (int64_t i = 0; i < points; i += lanes<T>)
                loop(columns + i * dim, tile, used, dim, sums, total + i * stride);
        }
    });
    parallel_for(tasks, threads, [&](int64_t at, int) {
        const int64_t b = at / blocks, first = at % blocks * block;
        double* total = totals.get() + at * strips * block * stride;
        for (int64_t s = 1; s < strips; ++s)
            for (int64_t i = 0; i < block * stride; ++i) total[i] += total[s * block * stride + i];
        for (int64_t i = 0; i < smaller<int64_t>(block, task.n - first); ++i) {
            const double* sum = total + i / lanes<T> * lanes<T> * stride + i % lanes<T>;  // `lanes` apart
            const int64_t point = b * task.n + first + i;
            if (task.value) ((T*)task.value)[point] = (T)sum[0];
            if (task.grad)
                for (int64_t d = 0; d < dim; ++d)
                    ((T*)task.grad)[point * dim + d] = (T)(-pi * sum[(1 + d) * lanes<T>]);
        }
    });
    return true;
}

template <class T> bool run(const FourierFrequencies& task) {
    constexpr int width = sum_tile<T>;
    const int dim = task.dim;
    const int64_t count = task.features.count;
    const int threads = useful_threads(task.threads, (double)count * dim * 40 / lanes<T>);
    const Buffer<T> scratch((int64_t)threads * dim * width);
    if (!scratch) return false;
    parallel_for(blocks_of(count, width), threads, [&](int64_t tile, int thread) {
        T* w = scratch.get() + (int64_t)thread * dim * width;
        make_frequencies<T>(task.features, tile * width, width, dim, 1, w);
        for (int64_t k = 0; k < smaller<int64_t>(width, count - tile * width); ++k)
            for (int d = 0; d < dim; ++d)
                ((T*)task.out)[(tile * width + k) * dim + d] = w[(int64_t)d * width + k];
    });
    return true;
}

}  // namespace

bool fourier_sum(const FourierSum& task) { return task.is_double ? run<double>(task) : run<float>(task); }
bool fourier_function(const FourierFunction& task) {
    return task.is_double ? run<double>(task) : run<float>(task);
}
bool fourier_frequencies(const FourierFrequencies& task) {
    return task.is_double ? run<double>(task) : run<float>(task);
}

}  // namespace fastmmd::FASTMMD_ISA
