// The sums over pairs of mmd2 and witness, distances by differences.
#include "kernels.cuh"

namespace fastmmd::cuda {
namespace {

// What a kernel does: blockIdx.x is a member of the batch and a block of rows of a term, blockIdx.y a split.
struct Place {
    int term, split;
    int64_t b, block;       // of the member
    int64_t program;        // block among those of all members
    Segment rows, columns;  // of the member
    int64_t row;            // of values: the first of the block
    int64_t tile, behind;   // of columns: the first one of the split, and the one behind its last

    // Of a split beyond a term's, or of a block that a member does not need, nothing.
    DEVICE bool nothing(const Term& of) const { return split >= of.parts || block * of.block >= rows.count; }
};

DEVICE Place place_of(const Memory& memory, const Terms& terms) {
    Place place = {0, (int)blockIdx.y, 0, 0, blockIdx.x, {}, {}, 0, 0, 0};
    while (place.program >= terms.terms[place.term].blocks) place.program -= terms.terms[place.term++].blocks;
    const Term& term = terms.terms[place.term];
    const Sample &rows = memory.samples[term.rows], &columns = memory.samples[term.columns];
    const BlockOf block = block_of(rows, memory.batch, place.program, term.block);
    place.b = block.b, place.block = block.block;
    place.rows = segment_of(rows, place.b), place.columns = segment_of(columns, place.b);
    place.row = place.split * points_of(rows, memory.batch) + place.rows.first + place.block * term.block;
    const int64_t tiles = ceil_divide(place.columns.count, tile_size), each = ceil_divide(tiles, term.parts);
    place.tile = place.split * each;
    place.behind = place.tile + each < tiles ? place.tile + each : tiles;
    return place;
}

// How a tile of small_kernel is evaluated: with how many far rungs beside a series, or 0: in general; whether
// it crosses the diagonal where pairs on its two sides count differently.
template <int FAR, bool CROSSING> struct Way {
    static constexpr int far = FAR;
    static constexpr bool crossing = CROSSING;
};

// Numbers of a column in shared memory: coordinates, mass, nothing.
template <int D> constexpr int column_width = (D + 1 + 3) / 4 * 4;

// A thread's rows, the last row of all in place of those beyond.
template <int R, int D>
DEVICE void load_rows(const float* rows, int64_t first, int64_t n, float (&p)[R][D]) {  // rows [n, D]
#pragma unroll
    for (int a = 0; a < R; ++a) {
        const int64_t i = first + a * small_threads < n ? first + a * small_threads : n - 1;
#pragma unroll
        for (int d = 0; d < D; ++d) p[a][d] = checked(rows[i * D + d]);
    }
}

// Differences and squared distances of a thread's rows to a column.
template <int R, int D, bool KEEP>
DEVICE void distances(const float (&p)[R][D], const float* q, float (&difference)[R][D], float (&r)[R]) {
#pragma unroll
    for (int a = 0; a < R; ++a) {
        r[a] = 0;
#pragma unroll
        for (int d = 0; d < D; ++d) {
            difference[a][d] = p[a][d] - q[d];
            if (KEEP) keep(difference[a][d]);
            r[a] += difference[a][d] * difference[a][d];
        }
    }
}

// The columns j0 ... in shared memory. The padding has no mass, and repeats the last column, so that it is
// not farther away than any point, for which a series would not hold.
template <int D>
DEVICE void stage_columns(const float* columns,  // [m, D]
                          const float* mass,     // [m]; null: ones
                          int64_t j0, int64_t m, float times,
                          float* numbers) {  // [tile_size, column_width<D>]
    constexpr int width = column_width<D>;
    for (int e = threadIdx.x; e < tile_size * D; e += small_threads) {
        const int j = e / D, d = e % D;
        const int64_t there = j0 + j < m ? j0 + j : m - 1;
        numbers[j * width + d] = checked(columns[there * D + d]);
    }
    if (threadIdx.x < tile_size) {
        const int64_t j = j0 + threadIdx.x;
        numbers[threadIdx.x * width + D] = j < m ? times * (mass ? mass[j] : 1.0f) : 0.0f;
    }
}

// One pass for few dimensions. A thread has rows of its own, their coordinates and sums in registers, and
// walks over tiles of columns, which lie in shared memory and are read by all threads at once: nothing is
// exchanged.
template <int D, bool GRADIENT>
__global__ __launch_bounds__(small_threads,
                             GRADIENT ? 3 : 4) void small_kernel(const __grid_constant__ Memory memory,
                                                                 const __grid_constant__ Terms terms) {
    constexpr int R = small_rows(D, GRADIENT);
    constexpr int width = column_width<D>;
    SHARED(float4, tile, tile_size * width / 4);
    const Place place = place_of(memory, terms);
    const Term& term = terms.terms[place.term];
    if (place.nothing(term)) return;
    const Sample &own = memory.samples[term.rows], &other = memory.samples[term.columns];
    const int64_t n = place.rows.count, m = place.columns.count;
    const float* const rows = (const float*)own.points + place.rows.first * D;          // [n, D]
    const float* const columns = (const float*)other.points + place.columns.first * D;  // [m, D]
    const float* const mass =
        other.weights ? (const float*)other.weights + place.columns.first : nullptr;  // [m]
    const Evaluator<float> evaluator(memory, place.b);
    NoRungs none;

    const int64_t first_row = place.block * small_threads * R, i0 = first_row + threadIdx.x;
    float p[R][D], lane_values[R], lane_slopes[R][D];
    Sum<float> values[R], slopes[R][D];
    load_rows(rows, i0, n, p);

    const bool fast = evaluator.fast();
    // Terms added in float before they go on in Sum: few, as mmd2 and its gradient are what is left when
    // these sums cancel; fewer where no series takes care of the near rungs.
    const int few = fast ? 16 : 4;
    auto add_columns = [&](auto way, int64_t j0, int first) {
        const FarRungs<way.far + (way.far == 0)> far(evaluator);
#pragma unroll 2
        for (int j = first; j < first + few; ++j) {
            float q[width];
#pragma unroll
            for (int k = 0; k < width / 4; ++k) {
                const float4 four = tile[j * (width / 4) + k];
                q[4 * k] = four.x, q[4 * k + 1] = four.y, q[4 * k + 2] = four.z, q[4 * k + 3] = four.w;
            }
            float r[R], total[R], slope[R], difference[R][D];
            distances<R, D, GRADIENT>(p, q, difference, r);
            if constexpr (way.far > 0)
                evaluate_folded(evaluator, far, r, total, slope);
            else
                evaluate(evaluator, r, total, slope, none);
#pragma unroll
            for (int a = 0; a < R; ++a) {
                float w = q[D];
                if (way.crossing) {
                    const int64_t i = i0 + a * small_threads;
                    w *= i < j0 + j ? 2 : i == j0 + j ? 1 : 0;
                }
                lane_values[a] += w * total[a];
                const float c = w * slope[a];
#pragma unroll
                for (int d = 0; GRADIENT && d < D; ++d) lane_slopes[a][d] += c * difference[a][d];
            }
        }
    };

    const int64_t start =
        term.half && place.tile < first_row / tile_size ? first_row / tile_size : place.tile;
    for (int64_t at = start; at < place.behind; ++at) {
        const int64_t j0 = at * tile_size;
        const bool crossing = term.half && j0 < first_row + small_threads * R;  // the diagonal
        barrier();
        stage_columns<D>(columns, mass, j0, m, term.half && !crossing ? 2 : 1, (float*)tile);
        barrier();
#pragma unroll 1
        for (int first = 0; first < tile_size; first += few) {
#pragma unroll
            for (int a = 0; a < R; ++a) {
                lane_values[a] = 0;
#pragma unroll
                for (int d = 0; GRADIENT && d < D; ++d) lane_slopes[a][d] = 0;
            }
            if (crossing && !GRADIENT)  // a sum of half the pairs has no gradient
                add_columns(Way<0, true>(), j0, first);
            else if (!fast)
                add_columns(Way<0, false>(), j0, first);
            else if (evaluator.far <= 1)
                add_columns(Way<1, false>(), j0, first);
            else
                add_columns(Way<most_far, false>(), j0, first);
#pragma unroll
            for (int a = 0; a < R; ++a) {
                values[a].add(lane_values[a]);
#pragma unroll
                for (int d = 0; GRADIENT && d < D; ++d) slopes[a][d].add(lane_slopes[a][d]);
            }
        }
    }
#pragma unroll
    for (int a = 0; a < R; ++a) {
        const int64_t i = i0 + a * small_threads;
        if (i >= n) continue;
        const int64_t row = place.row + threadIdx.x + a * small_threads;
        term.values[row] = values[a].total();
#pragma unroll
        for (int d = 0; GRADIENT && d < D; ++d) term.slopes[row * D + d] = slopes[a][d].total();
    }
}

// --- any number of dimensions, and sums per rung ---

constexpr int threads = 256, side = 4, lanes = tile_size / side;  // a thread has side x side pairs of a tile
constexpr int chunk = 8;                                          // dimensions at a time
constexpr int stride = tile_size + 4;  // of a dimension in shared memory: a warp stores to 32 banks

// Stages dimensions first_d ... of tile_size points in shared memory [chunk, stride]; 0 in the padding.
template <class T>
DEVICE void stage(const T* points, int64_t first, int64_t count, int dim, int first_d,
                  T* staged) {  // points [count, dim]
    for (int e = threadIdx.x; e < tile_size * chunk; e += threads) {
        const int d = e % chunk, k = e / chunk;
        const int64_t i = first + k < count ? first + k : count - 1;
        staged[d * stride + k] = first_d + d < dim ? checked(points[i * dim + first_d + d]) : T(0);
    }
}

// The points of a tile.
template <class T> struct Sides {
    const T *rows, *columns;  // [n, dim], [m, dim]
    int64_t n, m, first_row, first_column;
    int dim;

    // Dimensions d0 ... in shared memory; all threads take part.
    DEVICE void staged(int d0, T* left, T* right) const {
        barrier();  // what was read of the dimensions before
        stage(rows, first_row, n, dim, d0, left);
        stage(columns, first_column, m, dim, d0, right);
        barrier();
    }
};

// Squared distances of the thread's pairs.
template <class T> DEVICE void add_distances(const Sides<T>& sides, T* left, T* right, T (&r)[side][side]) {
    const int tx = threadIdx.x % lanes, ty = threadIdx.x / lanes;
    for (int d0 = 0; d0 < sides.dim; d0 += chunk) {
        sides.staged(d0, left, right);
#pragma unroll
        for (int d = 0; d < chunk; ++d) {
            T own[side], other[side];
#pragma unroll
            for (int a = 0; a < side; ++a) {
                own[a] = left[d * stride + ty + a * lanes];
                other[a] = right[d * stride + tx + a * lanes];
            }
#pragma unroll
            for (int a = 0; a < side; ++a)
#pragma unroll
                for (int k = 0; k < side; ++k) r[a][k] += (own[a] - other[k]) * (own[a] - other[k]);
        }
    }
}

// sum_j c_ij (p_i - q_j) over a tile. A thread adds up the slopes of its rows in its own dimensions, across
// tiles in memory.
template <class T>
DEVICE void add_slopes(const Sides<T>& sides,
                       const T* c,  // [tile_size, tile_size + 1], shared
                       T* left, T* right, bool first,
                       double* slopes) {  // [rows, dim]; set by the first tile
    for (int d0 = 0; d0 < sides.dim; d0 += chunk) {
        sides.staged(d0, left, right);
        for (int e = threadIdx.x; e < tile_size * chunk; e += threads) {
            const int k = e % tile_size, d = e / tile_size;
            const T own = left[d * stride + k];
            T sums[4] = {};  // short chains: they wait for less, and round less
#pragma unroll 4
            for (int j = 0; j < tile_size; j += 4)
#pragma unroll
                for (int q = 0; q < 4; ++q)
                    sums[q] += c[k * (tile_size + 1) + j + q] * (own - right[d * stride + j + q]);
            if (sides.first_row + k >= sides.n || d0 + d >= sides.dim) continue;
            double* const to = slopes + k * sides.dim + d0 + d;
            const double sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
            *to = first ? sum : *to + sum;
        }
    }
}

template <class T, bool RUNGS>
__global__ __launch_bounds__(threads, 1) void pairs_kernel(const __grid_constant__ Memory memory,
                                                           const __grid_constant__ Terms terms) {
    SHARED(T, left, chunk * stride);
    SHARED(T, right, chunk * stride);
    SHARED(T, c, tile_size * (tile_size + 1));
    const Place place = place_of(memory, terms);
    const Term& term = terms.terms[place.term];
    if (place.nothing(term)) return;
    const Sample &sample = memory.samples[term.rows], &others = memory.samples[term.columns];
    const int64_t n = place.rows.count, m = place.columns.count;
    const int dim = memory.dim;
    const T* const p = (const T*)sample.points + place.rows.first * dim;     // [n, dim]
    const T* const q = (const T*)others.points + place.columns.first * dim;  // [m, dim]
    const T* const mass = others.weights ? (const T*)others.weights + place.columns.first : nullptr;  // [m]
    const Evaluator<T> evaluator(memory, place.b);
    const int tx = threadIdx.x % lanes, ty = threadIdx.x / lanes;
    const int64_t first_row = place.block * tile_size, row = place.row;
    NoRungs none;
    WarpRungs<T, side> rungs;
    if (RUNGS && term.rungs) {
        const int64_t program = place.program * term.programs + place.split * (threads / warp_size);
        rungs.sums = term.rungs + (program + threadIdx.x / warp_size) * 2 * memory.count;
        rungs.count = memory.count;
        if (threadIdx.x % warp_size == 0)
            for (int s = 0; s < 2 * memory.count; ++s) rungs.sums[s] = 0;
    }

    Sum<T> values[side];
    const int64_t start = term.half && place.tile < place.block ? place.block : place.tile;
    for (int64_t at = start; at < place.behind; ++at) {
        const int64_t first_column = at * tile_size;
        const Sides<T> sides = {p, q, n, m, first_row, first_column, dim};
        T r[side][side] = {};
        add_distances(sides, left, right, r);
        barrier();  // c has been read
#pragma unroll
        for (int a = 0; a < side; ++a) {
            const int64_t i = first_row + ty + a * lanes;
            T w[side], total[side], slope[side], value = 0;
#pragma unroll
            for (int k = 0; k < side; ++k) {
                const int64_t j = first_column + tx + k * lanes;
                w[k] = j < m ? (mass ? mass[j] : T(1)) : T(0);
                if (term.half) w[k] *= i < j ? T(2) : i == j ? T(1) : T(0);
            }
            if (RUNGS && term.rungs) {
                const T own = i < n ? (T)row_weight<T>(memory, place.b, term.rows, i) : T(0);
#pragma unroll
                for (int k = 0; k < side; ++k) {
                    rungs.shares[k] = w[k] * own;
                    rungs.finite[k] = minimum(r[a][k], T(1e30));  // inf * 0 at far pairs is 0
                }
                evaluate(evaluator, r[a], total, slope, rungs);
            } else {
                evaluate(evaluator, r[a], total, slope, none);
            }
#pragma unroll
            for (int k = 0; k < side; ++k) {
                value += w[k] * total[k];
                c[(ty + a * lanes) * (tile_size + 1) + tx + k * lanes] = w[k] * slope[k];
            }
            values[a].add(value);
        }
        if (!term.slopes) continue;
        add_slopes(sides, c, left, right, at == start, term.slopes + row * dim);
    }
#pragma unroll
    for (int a = 0; a < side; ++a) {
        const int64_t k = ty + a * lanes;
        double value = values[a].total();
#pragma unroll
        for (int mask = lanes / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
        if (tx == 0 && first_row + k < n) term.values[row + k] = value;
    }
    if (!term.slopes || start < place.behind) return;  // a split without tiles
    for (int64_t e = threadIdx.x; e < tile_size * (int64_t)dim; e += threads)
        if (first_row + e / dim < n) term.slopes[row * dim + e] = 0;
}

// --- launches ---

template <bool GRADIENT, int D = 1>
Status small(const Memory& memory, const Terms& terms, dim3 grid, void* stream) {
    if (memory.dim == D)
        return launch("small_kernel", small_kernel<D, GRADIENT>, grid, small_threads, stream, memory, terms);
    if constexpr (D < small_dims) return small<GRADIENT, D + 1>(memory, terms, grid, stream);
    return {};
}

// The terms whose gradient is wanted, or not, and the grid for all of them.
dim3 chosen(const Terms& all, bool gradient, Terms& terms) {
    int64_t blocks = 0;
    int parts = 1;
    for (int t = 0; t < all.count; ++t) {
        const Term& term = all.terms[t];
        if ((term.slopes != nullptr) != gradient) continue;
        terms.terms[terms.count++] = term;
        blocks += term.blocks;
        if (term.parts > parts) parts = term.parts;
    }
    return dim3((unsigned)blocks, (unsigned)parts);
}

}  // namespace

Status mmd_pairs(const Mmd& call, void* workspace, void* stream) {
    Workspace space(workspace);
    const Memory memory = memory_of(call, space);
    const Terms all = terms_of(call, space);
    Status status;
    for (const bool gradient : {true, false}) {
        Terms terms;
        const dim3 grid = chosen(all, gradient, terms);
        if (is_small(call)) {
            status = status + (gradient ? small<true> : small<false>)(memory, terms, grid, stream);
        } else {
            const bool rungs = has_rungs(call);
            const auto kernel = call.is_double
                                    ? rungs ? pairs_kernel<double, true> : pairs_kernel<double, false>
                                : rungs ? pairs_kernel<float, true>
                                        : pairs_kernel<float, false>;
            status = status + launch("pairs_kernel", kernel, grid, threads, stream, memory, terms);
        }
    }
    return status;
}

}  // namespace fastmmd::cuda
