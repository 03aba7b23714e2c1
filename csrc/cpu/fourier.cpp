// Random Fourier features: sums over a batch, functions of points, and the frequencies themselves.
#include "frequencies.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

constexpr int function_tile = 256;    // features whose frequencies fourier_function holds at a time
constexpr int function_points = 128;  // points that use them
constexpr int strip_points = 1024;    // points for which a strip of fourier_sum is worth its start
constexpr int flush_points = 16;  // points added in T before the sum goes to double: equal ones round alike
template <class T>
constexpr int sum_tile = 4 * lanes<T>;  // features of one task of fourier_sum: four registers

// The points from `first` to `last` times one tile of features, added to sums.
template <class T>
void sum_features(const T* x,            // [n, dim]
                  const T* weights,      // [n]
                  const T* frequencies,  // [dim][sum_tile]
                  int64_t first, int64_t last, int dim,
                  double* sums) {  // [2][sum_tile]: cosines, sines
    constexpr int width = sum_tile<T>;
    for (int64_t begin = first; begin < last; begin += flush_points) {
        const int64_t end = smaller<int64_t>(begin + flush_points, last);
        Vector<T> cosines[4] = {}, sines[4] = {};
        for (int64_t i = begin; i < end; ++i) {
            Vector<T> angles[4];
            project(x + i * dim, frequencies, dim, width, angles);
            const Vector<T> w = broadcast(weights[i]);
            for (int v = 0; v < 4; ++v) {
                Vector<T> sine, cosine;
                sincos_of<T>(angles[v], sine, cosine);
                cosines[v] += w * cosine;
                sines[v] += w * sine;
            }
        }
        for (int v = 0; v < 4; ++v) {
            add_wide<T>(sums + v * lanes<T>, cosines[v]);
            add_wide<T>(sums + width + v * lanes<T>, sines[v]);
        }
    }
}

template <class T> bool run(const FourierSum& task) {
    constexpr int width = sum_tile<T>;
    const int dim = task.dim;
    const int64_t count = task.features.count, tiles = blocks_of(count, width);
    // Few features: share out strips of the batch too. Their number depends on the sizes alone.
    const int64_t strips = task.batch * tiles >= 64
                               ? 1
                               : larger<int64_t>(1, smaller<int64_t>(most_strips, task.n / strip_points));
    const int64_t strip = round_up(blocks_of(task.n, strips), flush_points);
    const int threads =
        useful_threads(task.threads, (double)task.batch * task.n * count * (dim + 20) / lanes<T>);
    const Buffer<T> frequencies((int64_t)threads * dim * width);
    const Buffer<double> partial(task.batch * tiles * strips * 2 *
                                 width);  // [batch][tiles][strips][2][width]
    if (!frequencies || !partial) return false;

    parallel_for(task.batch * tiles * strips, threads, [&](int64_t at, int thread) {
        const int64_t b = at / strips / tiles, tile = at / strips % tiles, first = at % strips * strip;
        T* w = frequencies.get() + (int64_t)thread * dim * width;
        double* sums = partial.get() + at * 2 * width;
        make_frequencies<T>(task.features, tile * width, width, dim, w);
        for (int k = 0; k < 2 * width; ++k) sums[k] = 0;
        sum_features<T>((const T*)task.x + b * task.n * dim, (const T*)task.weights + b * task.n, w, first,
                        smaller<int64_t>(first + strip, task.n), dim, sums);
    });
    parallel_for(task.batch * tiles, threads, [&](int64_t at, int) {
        const int64_t b = at / tiles, first = at % tiles * width;
        const double* sums = partial.get() + at * strips * 2 * width;
        T* out = (T*)task.out + b * 2 * count;
        for (int64_t k = 0; k < smaller<int64_t>(width, count - first); ++k) {
            double cosine = 0, sine = 0;
            for (int64_t i = 0; i < strips; ++i) {
                cosine += sums[i * 2 * width + k];
                sine += sums[i * 2 * width + width + k];
            }
            const double scale = feature_scale(task.features, first + k);
            out[first + k] = (T)(scale * cosine);
            out[count + first + k] = (T)(scale * sine);
        }
    });
    return true;
}

// What one thread of fourier_function holds besides its sums.
template <class T> struct FunctionScratch {
    T* frequencies;  // [dim][function_tile]
    T* cosine;       // [function_tile]: coefficients times scale, 0 beyond the last feature
    T* sine;         // [function_tile]
    T* derivative;   // [function_tile]: of the features' terms in their angles
};

// Adds the features of one tile at one point.
template <class T>
void add_features(const T* x,  // [dim]
                  const FunctionScratch<T>& tile, int used, int dim,
                  double* value,   // [1]
                  double* grad) {  // [dim] or null
    Wide<T> total = {};
    for (int k = 0; k < used; k += sum_tile<T>) {
        Vector<T> angles[4], sum = {};
        project(x, tile.frequencies + k, dim, function_tile, angles);
        for (int v = 0; v < 4; ++v) {
            Vector<T> sine, cosine;
            sincos_of<T>(angles[v], sine, cosine);
            const int place = k + v * lanes<T>;
            const Vector<T> a = load(tile.cosine + place), b = load(tile.sine + place);
            sum += a * cosine + b * sine;
            store(tile.derivative + place, b * cosine - a * sine);
        }
        total += widen<T>(sum);
    }
    *value += sum_halves<lanes<T>>(total);
    if (!grad) return;
    for (int d = 0; d < dim; ++d) {
        const T* w = tile.frequencies + (int64_t)d * function_tile;
        Vector<T> sum = {};
        for (int k = 0; k < used; k += lanes<T>) sum += load(tile.derivative + k) * load(w + k);
        grad[d] += sum_lanes<T>(sum);
    }
}

template <class T> bool run(const FourierFunction& task) {
    static_assert(function_tile % sum_tile<T> == 0);
    const int dim = task.dim, stride = 1 + dim;
    const int64_t count = task.features.count, blocks = blocks_of(task.n, function_points),
                  tasks = task.batch * blocks;
    const int64_t tiles = blocks_of(count, function_tile);
    if (tasks == 0) return true;
    // Few points: share out strips of the features too. Their number depends on the sizes alone.
    const int64_t strips = larger<int64_t>(1, smaller<int64_t>(most_strips / tasks, tiles / 4));
    const int64_t strip = blocks_of(tiles, strips);
    const int threads =
        useful_threads(task.threads, (double)task.batch * task.n * count * (2 * dim + 20) / lanes<T>);
    const int64_t elements = (int64_t)(dim + 3) * function_tile;
    const Buffer<T> scratch(threads * elements);
    const Buffer<double> scales(count), sums(tasks * strips * function_points * stride);
    if (!scratch || !scales || !sums) return false;
    parallel_for(tiles, threads, [&](int64_t t, int) {
        for (int64_t k = t * function_tile; k < smaller<int64_t>((t + 1) * function_tile, count); ++k)
            scales.get()[k] = feature_scale(task.features, k);
    });

    parallel_for(tasks * strips, threads, [&](int64_t at, int thread) {
        const int64_t b = at / strips / blocks, first = at / strips % blocks * function_points;
        const int64_t points = smaller<int64_t>(function_points, task.n - first),
                      last = at % strips * strip + strip;
        T* memory = scratch.get() + thread * elements;
        const FunctionScratch<T> tile = {memory, memory + (int64_t)dim * function_tile,
                                         memory + (int64_t)(dim + 1) * function_tile,
                                         memory + (int64_t)(dim + 2) * function_tile};
        const T* coefficients = (const T*)task.coefficients + b * 2 * count;
        double* sum = sums.get() + at * function_points * stride;  // [points][1 + dim]: value, gradient
        for (int64_t i = 0; i < points * stride; ++i) sum[i] = 0;
        for (int64_t t = at % strips * strip; t < smaller(last, tiles); ++t) {
            const int64_t feature = t * function_tile;
            const int used = (int)smaller<int64_t>(function_tile, round_up(count - feature, sum_tile<T>));
            make_frequencies<T>(task.features, feature, function_tile, dim, tile.frequencies);
            for (int k = 0; k < function_tile; ++k) {
                const bool inside = feature + k < count;
                const double scale = inside ? scales.get()[feature + k] : 0;
                tile.cosine[k] = inside ? (T)(scale * (double)coefficients[feature + k]) : T(0);
                tile.sine[k] = inside ? (T)(scale * (double)coefficients[count + feature + k]) : T(0);
            }
            for (int64_t i = 0; i < points; ++i)
                add_features<T>((const T*)task.x + (b * task.n + first + i) * dim, tile, used, dim,
                                sum + i * stride, task.grad ? sum + i * stride + 1 : nullptr);
        }
    });
    parallel_for(tasks, threads, [&](int64_t at, int) {
        const int64_t b = at / blocks, first = at % blocks * function_points;
        double* sum = sums.get() + at * strips * function_points * stride;
        for (int64_t i = 0; i < smaller<int64_t>(function_points, task.n - first); ++i) {
            for (int64_t s = 1; s < strips; ++s)
                for (int d = 0; d < stride; ++d)
                    sum[i * stride + d] += sum[(s * function_points + i) * stride + d];
            const int64_t point = b * task.n + first + i;
            if (task.value) ((T*)task.value)[point] = (T)sum[i * stride];
            if (task.grad)
                for (int d = 0; d < dim; ++d) ((T*)task.grad)[point * dim + d] = (T)sum[i * stride + 1 + d];
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
        make_frequencies<T>(task.features, tile * width, width, dim, w);
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
