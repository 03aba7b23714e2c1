// Random Fourier features in few dimensions: all coordinates in registers.
//
// A sum: a thread holds features and their sums, and walks over rows, which its block keeps in shared memory.
// A function: a thread holds rows and their sums, and walks over features, which its block makes in shared
// memory, tile by tile. Where there are few rows or features the warps of a block share them out and add up
// in the end. Sums run in T over a tile and go on in Sum<T>.
#pragma once
#include "features.cuh"

namespace fastmmd::cuda {
namespace {

// One of the samples of a sum.
template <class T> struct Cloud {
    const T* points;  // [batch, count, dim]
    const T* masses;  // [batch, count]; null: all are `mass`
    T mass;
    int64_t count, tiles;  // tiles: of rows, ceil(count / tile)
};

template <class T> constexpr int tile_rows = sizeof(T) == 4 ? 256 : 128;
// Features of a tile of a function: few where many blocks share them out, for the warps of one block more.
template <int Held> constexpr int tile_features = Held > 1 ? 64 : 128;

// Whether kernels of Dim are for that many dimensions alone, and not for fewer too: fourier.cu's by_dim.
template <class T, int Dim> constexpr bool exact = sizeof(T) == 4 && Dim <= 6;

// Threads of a block, by what one of them holds: many, or one, where the warps share out the other side.
template <class T, int Held> constexpr int few_threads = Held > 1 ? 128 : 1024 / (int)sizeof(T) * 2;

// --- sums ---

// Frequencies of the block's features: [Dim][width].
template <class T, int Dim, int Width>
DEVICE void make_frequencies(const FeatureList& features, int first, T* w) {
    constexpr int blocks = (Dim + 3) / 4;
    for (int item = threadIdx.x; item < Width * blocks; item += blockDim.x) {
        const int k = first + item % Width, block = item / Width;
        const T inverse = (T)features.inverse.values[features.part_of(k)];
        T normals[4];
        make_normals<T>(features.key, k, block, normals);
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (4 * block + j < Dim) w[(4 * block + j) * Width + item % Width] = normals[j] * inverse;
    }
}

template <class T, int Dim, int Held>
__global__ void __launch_bounds__(few_threads<T, Held>, 1)
    few_sum_kernel(Cloud<T> first_cloud, Cloud<T> second_cloud, int dim, FeatureList features,
                   int64_t per_split,  // tiles
                   int blocks,         // of features
                   double* partial,    // [splits, batch, 2, count], not yet scaled, where there is no out
                   T* out) {           // [batch, 2, count]; null where there is more than one split
    constexpr int threads = few_threads<T, Held>, groups = threads / warp_size, width = warp_size * Held;
    constexpr int step = Held > 1 ? 2 : 4, rows = tile_rows<T>;  // step: rows at once
    typedef Pack<T, Dim + 1> Row;                                // coordinates and mass
    static_assert(rows % (groups * step) == 0);
    SHARED(T, w, Dim * width);
    SHARED(Row, tile, rows);
    SHARED(double, sums, groups * 2 * width);
    if (exact<T, Dim>) dim = Dim;
    const int lane = threadIdx.x % warp_size, group = threadIdx.x / warp_size;
    const int first = (int)(blockIdx.x % blocks) * width;
    const int64_t b = blockIdx.x / blocks;

    make_frequencies<T, Dim, width>(features, first, w);
    barrier();
    T frequency[Held][Dim];
#pragma unroll
    for (int h = 0; h < Held; ++h)
#pragma unroll
        for (int d = 0; d < Dim; ++d) frequency[h][d] = w[d * width + h * warp_size + lane];

    Sum<T> cosines[Held], sines[Held];
    const int64_t tiles = first_cloud.tiles + second_cloud.tiles;
    int64_t last_tile = (blockIdx.y + 1) * per_split;
    if (last_tile > tiles) last_tile = tiles;
    for (int64_t number = blockIdx.y * per_split; number < last_tile; ++number) {
        const bool in_first = number < first_cloud.tiles;
        const int64_t start = (in_first ? number : number - first_cloud.tiles) * rows;
        const int64_t count = in_first ? first_cloud.count : second_cloud.count;
        const T* points = in_first ? first_cloud.points : second_cloud.points;
        const T* masses = in_first ? first_cloud.masses : second_cloud.masses;
        const T mass = in_first ? first_cloud.mass : second_cloud.mass;
        const int here = count - start < rows ? (int)(count - start) : rows;
        barrier();                                          // what was read of the tile before
        for (int from = 0; from < rows; from += threads) {  // as often for every thread
            const int r = from + (int)threadIdx.x;
            if (threads > rows && r >= rows) break;
            const int64_t i = b * count + start + r;
            Row row = {};
            if (r < here) {
                T sick = 0;
#pragma unroll
                for (int d = 0; d < Dim; ++d) {
                    const T x = d < dim ? points[i * dim + d] : T(0);
                    sick += poison(x);
                    row.values[d] = x;
                }
                row.values[Dim] = (masses ? masses[i] : mass) + sick;
            }
            tile[r] = row;
        }
        barrier();
        T cosine_sum[Held] = {}, sine_sum[Held] = {};
        for (int r = group * step; r < here; r += groups * step)
#pragma unroll
            for (int j = 0; j < step; ++j) {
                const Row row = tile[r + j];
#pragma unroll
                for (int h = 0; h < Held; ++h) {
                    T t = row.values[0] * frequency[h][0];
#pragma unroll
                    for (int d = 1; d < Dim; ++d) t += row.values[d] * frequency[h][d];
                    const Angle<T> angle(t);
                    const T weight = angle.signed_by_turns(row.values[Dim]);
                    cosine_sum[h] += weight * cosine_of_rest(angle.square);
                    sine_sum[h] += weight * angle.rest * sine_over_rest(angle.square);
                }
            }
#pragma unroll
        for (int h = 0; h < Held; ++h) {
            cosines[h].add(cosine_sum[h]);
            sines[h].add(sine_sum[h]);
        }
    }

#pragma unroll
    for (int h = 0; h < Held; ++h) {
        sums[group * 2 * width + h * warp_size + lane] = cosines[h].total();
        sums[(group * 2 + 1) * width + h * warp_size + lane] = sines[h].total();
    }
    barrier();
    for (int at = threadIdx.x; at < 2 * width; at += threads) {
        const int k = first + at % width;
        if (k >= features.count) continue;
        double sum = 0;
        for (int g = 0; g < groups; ++g) sum += sums[g * 2 * width + at];
        const int64_t place = (b * 2 + at / width) * features.count + k;
        if (out)
            out[place] = (T)(features.scale.values[features.part_of(k)] * sum);
        else
            partial[blockIdx.y * (gridDim.x / blocks) * 2 * features.count + place] = sum;
    }
}

// --- functions ---

// Frequencies, advance and amplitude of a feature.
template <class T, int Dim> using PackedWave = Pack<T, Dim + 2>;

// The waves of a tile; those beyond the last feature have no amplitude.
template <class T, int Dim, int Width>
DEVICE void make_waves(const FeatureList& features, int first, const T* coefficients, bool gradient,
                       PackedWave<T, Dim>* waves) {  // [Width]
    constexpr int blocks = (Dim + 3) / 4;
    for (int item = threadIdx.x; item < Width * blocks; item += blockDim.x) {
        const int k = first + item % Width, block = item / Width, part = features.part_of(k);
        T* const values = waves[item % Width].values;
        const T inverse = (T)features.inverse.values[part];
        T normals[4];
        make_normals<T>(features.key, k, block, normals);
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (4 * block + j < Dim) values[4 * block + j] = normals[j] * inverse;
        if (block == 0) {
            const T scale = (T)features.scale.values[part];
            const bool there = k < features.count;
            const Wave<T> wave =
                wave_of<T>(there ? scale * coefficients[k] : T(0),
                           there ? scale * coefficients[features.count + k] : T(0), gradient);
            values[Dim] = wave.advance;
            values[Dim + 1] = wave.amplitude;
        }
    }
}

// cos(pi t) with the sign of its half turns in the amplitude. Of a gradient nobody sees the cosine's sine.
template <class T, bool Gradient> DEVICE T wave_at(T t, T amplitude) {
    const Angle<T> angle(t);
    const T cosine = Gradient ? cospi_polynomial<T>(angle.square) : cosine_of_rest(angle.square);
    return angle.signed_by_turns(amplitude) * cosine;
}

template <class T, int Dim, int Held, bool Gradient>
__global__ void __launch_bounds__(few_threads<T, Held>, 1)
    few_function_kernel(const T* points,        // [batch, n, dim]
                        const T* coefficients,  // [batch, 2, count]
                        const T* factor,        // [1]: of what goes to out; null: 1
                        double times,           // alike
                        int64_t n, int dim, FeatureList features,
                        int per_split,    // tiles of features
                        int64_t blocks,   // of rows
                        double* partial,  // [splits, batch, n, dim or 1] where there is no out
                        T* out) {         // [batch, n, dim or 1]; null where there is more than one split
    constexpr int threads = few_threads<T, Held>, groups = Held > 1 ? 1 : threads / warp_size;
    constexpr int lanes = threads / groups, results = Gradient ? Dim : 1;
    constexpr int width = tile_features<Held>;
    typedef PackedWave<T, Dim> Packed;
    SHARED(Packed, waves, width);
    SHARED(double, sums, groups > 1 ? threads : 1);
    if (exact<T, Dim>) dim = Dim;
    const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes;
    const int64_t b = blockIdx.x / blocks, first = blockIdx.x % blocks * lanes * Held;
    const T* const own_coefficients = coefficients + b * 2 * features.count;

    T x[Held][Dim];
    Sum<T> totals[Held][results];
#pragma unroll
    for (int h = 0; h < Held; ++h) {
        const int64_t i = first + h * lanes + lane;
        T sick = 0;
#pragma unroll
        for (int d = 0; d < Dim; ++d) {
            x[h][d] = i < n && d < dim ? points[(b * n + i) * dim + d] : T(0);
            sick += poison(x[h][d]);
        }
#pragma unroll
        for (int d = 0; d < results; ++d) totals[h][d].add(sick);
    }

    const int tiles = (features.count + width - 1) / width;
    const int last_tile = (int)(blockIdx.y + 1) * per_split < tiles ? (blockIdx.y + 1) * per_split : tiles;
    for (int tile = blockIdx.y * per_split; tile < last_tile; ++tile) {
        barrier();  // what was read of the waves before
        make_waves<T, Dim, width>(features, tile * width, own_coefficients, Gradient, waves);
        barrier();
        T tile_sums[Held][results] = {};
#pragma unroll 2
        for (int k = group; k < width; k += groups) {
            const Packed wave = waves[k];
            const T* const w = wave.values;
#pragma unroll
            for (int h = 0; h < Held; ++h) {
                T t = w[Dim];
#pragma unroll
                for (int d = 0; d < Dim; ++d) t += x[h][d] * w[d];
                const T value = wave_at<T, Gradient>(t, w[Dim + 1]);
                if constexpr (Gradient) {
#pragma unroll
                    for (int d = 0; d < Dim; ++d) tile_sums[h][d] += value * w[d];
                } else {
                    tile_sums[h][0] += value;
                }
            }
        }
#pragma unroll
        for (int h = 0; h < Held; ++h)
#pragma unroll
            for (int d = 0; d < results; ++d) totals[h][d].add(tile_sums[h][d]);
    }

    const double scaled = factor ? times * (double)*factor : times;
    const int columns = Gradient ? dim : 1;
    const int64_t split = blockIdx.y * (gridDim.x / blocks) * n * columns;
#pragma unroll
    for (int h = 0; h < Held; ++h) {
        const int64_t i = first + h * lanes + lane;
#pragma unroll
        for (int d = 0; d < results; ++d) {
            double sum = totals[h][d].total();
            if constexpr (groups > 1) {
                barrier();  // what was read before
                sums[threadIdx.x] = sum;
                barrier();
                sum = 0;
                if (group == 0)
                    for (int g = 0; g < groups; ++g) sum += sums[g * lanes + lane];
            }
            if (group > 0 || i >= n || d >= columns) continue;
            const int64_t place = (b * n + i) * columns + d;
            if (out)
                out[place] = (T)(scaled * sum);
            else
                partial[split + place] = sum;
        }
    }
}

}  // namespace
}  // namespace fastmmd::cuda
