// Sums of random Fourier features over a batch, and their frequencies.
#include "frequencies.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

constexpr int strip_points = 1024;  // points for which a strip of fourier_sum is worth its start
template <class T> constexpr int sum_tile = 4 * lanes<T>;  // features of one task of fourier_sum

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
bool fourier_frequencies(const FourierFrequencies& task) {
    return task.is_double ? run<double>(task) : run<float>(task);
}

}  // namespace fastmmd::FASTMMD_ISA
