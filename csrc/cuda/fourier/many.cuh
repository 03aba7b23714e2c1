// Random Fourier features in many dimensions: tiles of rows times features, whose angles are products of
// matrices, in chunks of dimensions.
//
// A warp has four features, and a lane the rows quad * lane ... of both halves of the tile: what it reads of
// shared memory is 16 bytes at a time, rows without conflicts, frequencies the same for all lanes.
#pragma once
#include "few.cuh"

namespace fastmmd::cuda {
namespace {

constexpr int many_threads = 256, many_features = 32, chunk_dims = 32, own_features = 4;
template <class T> constexpr int quad = 16 / (int)sizeof(T);
template <class T> constexpr int own_rows = 2 * quad<T>;
template <class T> constexpr int many_rows = warp_size * own_rows<T>;
template <class T> constexpr int row_stride = many_rows<T> + quad<T>;
template <class T> using Line = Pack<T, quad<T>>;
template <class T> constexpr int row_lines = chunk_dims * row_stride<T> / quad<T>;

// Number j of a lane's rows, in the tile.
template <class T> DEVICE int row_of(int lane, int j) {
    return j / quad<T> * (many_rows<T> / 2) + lane * quad<T> + j % quad<T>;
}

// Frequencies of the chunk first_dim ..., one call of Philox to a thread: [chunk_dims][many_features], or
// transposed.
template <class T, bool Transposed>
DEVICE void make_chunk(const FeatureList& features, int first_feature, int first_dim, T* w) {
    static_assert(many_threads == many_features * chunk_dims / 4);
    const int k = threadIdx.x % many_features, d = threadIdx.x / many_features * 4;
    const T inverse = (T)features.inverse.values[features.part_of(first_feature + k)];
    T normals[4];
    make_normals<T>(features.key, first_feature + k, (first_dim + d) / 4, normals);
#pragma unroll
    for (int j = 0; j < 4; ++j)
        w[Transposed ? k * chunk_dims + d + j : (d + j) * many_features + k] = normals[j] * inverse;
}

// acc[j][f] += left[d][rows of the lane] * right[d][four of the warp], for d < depth.
template <class T>
DEVICE void multiply(const T* left,   // [depth][row_stride]
                     const T* right,  // [depth][32]
                     int depth, T (*acc)[own_features]) {
    typedef Pack<T, own_features> Columns;
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
#pragma unroll 4
    for (int d = 0; d < depth; ++d) {
        const Columns columns = *(const Columns*)(right + d * 32 + warp * own_features);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const Line<T> rows =
                *(const Line<T>*)(left + d * row_stride<T> + row_of<T>(lane, half * quad<T>));
#pragma unroll
            for (int j = 0; j < quad<T>; ++j)
#pragma unroll
                for (int f = 0; f < own_features; ++f)
                    acc[half * quad<T> + j][f] += rows.values[j] * columns.values[f];
        }
    }
}

// Half turns of the rows first_row ... and the thread's features; rows beyond n count as 0.
template <class T>
DEVICE void many_angles(const T* points,  // [n, dim]
                        int64_t n, int dim, int64_t first_row, const FeatureList& features, int first_feature,
                        T* rows,                 // [chunk_dims][row_stride]
                        T* w,                    // [chunk_dims][many_features]
                        T (*t)[own_features]) {  // [own_rows]
#pragma unroll
    for (int j = 0; j < own_rows<T>; ++j)
#pragma unroll
        for (int f = 0; f < own_features; ++f) t[j][f] = 0;
    for (int first_dim = 0; first_dim < dim; first_dim += chunk_dims) {
        barrier();  // what was read of the last chunk
        make_chunk<T, false>(features, first_feature, first_dim, w);
        for (int at = threadIdx.x; at < many_rows<T> * chunk_dims; at += many_threads) {
            const int64_t i = first_row + at / chunk_dims;
            const int d = first_dim + at % chunk_dims;
            rows[at % chunk_dims * row_stride<T> + at / chunk_dims] =
                i < n && d < dim ? points[i * dim + d] : T(0);
        }
        barrier();
        multiply<T>(rows, w, chunk_dims, t);
    }
}

template <class T>
__global__ void __launch_bounds__(many_threads)
    many_sum_kernel(Cloud<T> first_cloud, Cloud<T> second_cloud, int dim, FeatureList features,
                    int64_t per_split,  // tiles
                    int blocks,         // of features
                    double* partial,    // [splits, batch, 2, count], not yet scaled, where there is no out
                    T* out) {           // [batch, 2, count]; null where there is more than one split
    SHARED(Line<T>, line_of_rows, row_lines<T>);
    SHARED(Line<T>, line_of_w, chunk_dims * many_features / quad<T>);
    T *const rows = line_of_rows->values, *const w = line_of_w->values;
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
    const int first = (int)(blockIdx.x % blocks) * many_features;
    const int64_t b = blockIdx.x / blocks, tiles = first_cloud.tiles + second_cloud.tiles;
    Sum<T> cosines[own_features], sines[own_features];
    int64_t last_tile = (blockIdx.y + 1) * per_split;
    if (last_tile > tiles) last_tile = tiles;
    for (int64_t number = blockIdx.y * per_split; number < last_tile; ++number) {
        const bool in_first = number < first_cloud.tiles;
        const int64_t start = (in_first ? number : number - first_cloud.tiles) * many_rows<T>;
        const int64_t count = in_first ? first_cloud.count : second_cloud.count;
        const T* points = (in_first ? first_cloud.points : second_cloud.points) + b * count * dim;
        const T* masses = in_first ? first_cloud.masses : second_cloud.masses;
        const T mass = in_first ? first_cloud.mass : second_cloud.mass;
        T t[own_rows<T>][own_features], cosine_sum[own_features] = {}, sine_sum[own_features] = {};
        many_angles<T>(points, count, dim, start, features, first, rows, w, t);
#pragma unroll
        for (int j = 0; j < own_rows<T>; ++j) {
            const int64_t i = start + row_of<T>(lane, j);
            const T own_mass = i < count ? (masses ? masses[b * count + i] : mass) : T(0);
#pragma unroll
            for (int f = 0; f < own_features; ++f) {
                const Angle<T> angle(t[j][f]);
                const T weight = angle.signed_by_turns(own_mass) + poison(t[j][f]);
                cosine_sum[f] += weight * cosine_of_rest(angle.square);
                sine_sum[f] += weight * angle.rest * sine_over_rest(angle.square);
            }
        }
#pragma unroll
        for (int f = 0; f < own_features; ++f) {
            cosines[f].add(cosine_sum[f]);
            sines[f].add(sine_sum[f]);
        }
    }
#pragma unroll
    for (int f = 0; f < own_features; ++f) {
        const double cosine = warp_sum(cosines[f].total()), sine = warp_sum(sines[f].total());
        const int k = first + warp * own_features + f;
        if (lane > 1 || k >= features.count) continue;
        const int64_t place = (b * 2 + lane) * features.count + k;
        const double sum = lane ? sine : cosine;
        if (out)
            out[place] = (T)(features.scale.values[features.part_of(k)] * sum);
        else
            partial[blockIdx.y * (gridDim.x / blocks) * 2 * features.count + place] = sum;
    }
}

template <class T, bool Gradient>
__global__ void __launch_bounds__(many_threads)
    many_function_kernel(const T* points,        // [batch, n, dim]
                         const T* coefficients,  // [batch, 2, count]
                         const T* factor,        // [1]: of a value that goes to out; null: 1
                         double times,           // alike
                         int64_t n, int dim, FeatureList features,
                         int per_split,    // tiles of features
                         int64_t blocks,   // of rows
                         double* partial,  // [splits, batch, n, dim or 1] where there is no out
                         T* out) {         // [batch, n]; null for gradients and more than one split
    SHARED(Line<T>, line_of_rows, row_lines<T>);
    SHARED(Line<T>, line_of_w, chunk_dims * many_features / quad<T>);
    T *const rows = line_of_rows->values, *const w = line_of_w->values;  // rows: later slopes, or values
    SHARED(Wave<T>, waves, many_features);
    static_assert(many_features <= chunk_dims && chunk_dims == 32);
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
    const int64_t b = blockIdx.x / blocks, first = blockIdx.x % blocks * many_rows<T>;
    points += b * n * dim;
    coefficients += b * 2 * features.count;
    if (partial) partial += (blockIdx.y * (gridDim.x / blocks) + b) * n * (Gradient ? dim : 1);

    Sum<T> values[own_rows<T>];
    const int tiles = (features.count + many_features - 1) / many_features,
              first_tile = blockIdx.y * per_split;
    const int last_tile = first_tile + per_split < tiles ? first_tile + per_split : tiles;
    for (int tile = first_tile; tile < last_tile; ++tile) {
        T t[own_rows<T>][own_features];
        many_angles<T>(points, n, dim, first, features, tile * many_features, rows, w, t);
        if (threadIdx.x < many_features) {
            const int k = tile * many_features + (int)threadIdx.x;
            const bool there = k < features.count;
            const T scale = (T)features.scale.values[features.part_of(k)];
            waves[threadIdx.x] =
                wave_of<T>(there ? scale * coefficients[k] : T(0),
                           there ? scale * coefficients[features.count + k] : T(0), Gradient);
        }
        barrier();
#pragma unroll
        for (int f = 0; f < own_features; ++f) {
            const Wave<T> wave = waves[warp * own_features + f];
#pragma unroll
            for (int j = 0; j < own_rows<T>; ++j)
                t[j][f] = wave_at<T, Gradient>(t[j][f] + wave.advance, wave.amplitude) + poison(t[j][f]);
        }
        if constexpr (!Gradient) {
#pragma unroll
            for (int j = 0; j < own_rows<T>; ++j) values[j].add((t[j][0] + t[j][1]) + (t[j][2] + t[j][3]));
        } else {
#pragma unroll
            for (int f = 0; f < own_features; ++f)
#pragma unroll
                for (int j = 0; j < own_rows<T>; ++j)
                    rows[(warp * own_features + f) * row_stride<T> + row_of<T>(lane, j)] = t[j][f];
            for (int first_dim = 0; first_dim < dim; first_dim += chunk_dims) {
                barrier();  // slopes are there, and what was read of w
                make_chunk<T, true>(features, tile * many_features, first_dim, w);
                barrier();
                T sums[own_rows<T>][own_features] = {};  // four dimensions to a warp
                multiply<T>(rows, w, many_features, sums);
#pragma unroll
                for (int j = 0; j < own_rows<T>; ++j)
#pragma unroll
                    for (int f = 0; f < own_features; ++f) {
                        const int64_t i = first + row_of<T>(lane, j);
                        const int d = first_dim + warp * own_features + f;
                        if (i >= n || d >= dim) continue;
                        const double before = tile > first_tile ? partial[i * dim + d] : 0.0;
                        partial[i * dim + d] = before + sums[j][f];
                    }
            }
        }
    }
    if constexpr (!Gradient) {
        static_assert(sizeof(T) * chunk_dims * row_stride<T> >=
                      sizeof(double) * many_rows<T> * (many_threads / warp_size));
        double* const of_warps = (double*)rows;  // [warps][many_rows]
        barrier();                               // what was read of the last tile
#pragma unroll
        for (int j = 0; j < own_rows<T>; ++j)
            of_warps[warp * many_rows<T> + row_of<T>(lane, j)] = values[j].total();
        barrier();
        const double scaled = factor ? times * (double)*factor : times;
        for (int r = threadIdx.x; r < many_rows<T> && first + r < n; r += many_threads) {
            double sum = 0;
            for (int other = 0; other < many_threads / warp_size; ++other)
                sum += of_warps[other * many_rows<T> + r];
            if (out)
                out[b * n + first + r] = (T)(scaled * sum);
            else
                partial[first + r] = sum;
        }
    }
}

}  // namespace
}  // namespace fastmmd::cuda
