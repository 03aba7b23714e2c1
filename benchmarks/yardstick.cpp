// What the machine can do at most: independent float32 fused multiply-adds in registers, and STREAM's triad.
// Prints one line of JSON: GFLOP/s (a fused multiply-add counts two) and GB/s on `argv[1]` threads.
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#if defined(__AVX512F__)
enum { vector_bytes = 64 };
#elif defined(__AVX__)
enum { vector_bytes = 32 };
#else
enum { vector_bytes = 16 };
#endif
#if defined(__x86_64__)
#define IN_REGISTER "+x"
#else
#define IN_REGISTER "+w"
#endif
typedef float Vector __attribute__((vector_size(vector_bytes)));
enum { lanes = vector_bytes / sizeof(float), chains = 12 };

// Twelve sums that do not wait for one another hide the latency of the units; named, so that they stay in
// registers.
#define EACH_CHAIN(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define BEGIN(i) Vector sum##i = Vector{} + start * i;
#define STEP(i)              \
    sum##i = sum##i * a + b; \
    asm volatile("" : IN_REGISTER(sum##i));  // neither merged nor left out
#define ADD(i) total += sum##i;

static float multiply_add(long steps) {
    volatile float one = 1.0f, shrink = 0.999999f, small = 1e-6f;
    const float start = one;
    const Vector a = Vector{} + shrink, b = Vector{} + small;
    EACH_CHAIN(BEGIN)
    for (long step = 0; step < steps; ++step) {
        EACH_CHAIN(STEP)
    }
    Vector total = {};
    EACH_CHAIN(ADD)
    return total[0];
}

static double gigaflops(int threads) {
    const long steps = 1000000;
    double best = 1e9;
    volatile float sink = 0;
    for (int round = 0; round < 15; ++round) {
#pragma omp parallel num_threads(threads)
        {
#pragma omp barrier
            const double start = omp_get_wtime();
            const float total = multiply_add(steps);
#pragma omp barrier
#pragma omp master
            {
                sink = sink + total;
                const double seconds = omp_get_wtime() - start;
                if (seconds < best) best = seconds;
            }
        }
    }
    return 2.0 * steps * chains * lanes * threads / best * 1e-9;
}

static double gigabytes(int threads) {
    const long count = 1 << 25;  // three arrays of 128 MB: beyond every cache
    float* a = (float*)aligned_alloc(64, count * sizeof(float));
    float* b = (float*)aligned_alloc(64, count * sizeof(float));
    float* c = (float*)aligned_alloc(64, count * sizeof(float));
    if (!a || !b || !c) return 0;
    double best = 1e9;
    for (int round = -1; round < 8; ++round) {  // the first touches the pages
        const double start = omp_get_wtime();
#pragma omp parallel for num_threads(threads) schedule(static)
        for (long i = 0; i < count; ++i) {
            if (round < 0) b[i] = c[i] = 1.0f;
            a[i] = b[i] + 0.5f * c[i];
        }
        const double seconds = omp_get_wtime() - start;
        if (round >= 0 && seconds < best) best = seconds;
    }
    const double moved = 3.0 * count * sizeof(float);
    free(a), free(b), free(c);
    return moved / best * 1e-9;
}

int main(int argc, char** argv) {
    const int threads = argc > 1 ? atoi(argv[1]) : omp_get_max_threads();
    printf("{\"gflops\": %.1f, \"gigabytes\": %.1f}\n", gigaflops(threads), gigabytes(threads));
}
