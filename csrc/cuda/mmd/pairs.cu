// The sums over pairs of mmd2 and witness, distances by differences: in any number of dimensions, and per
// rung.
#include "small.cuh"

namespace fastmmd::cuda {
namespace {

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
