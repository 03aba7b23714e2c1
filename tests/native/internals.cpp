// Compiled per instruction set, as the kernels are: no std templates here.
#include "internals.hpp"

#include "../../csrc/common/ladder.hpp"
#include "../../csrc/common/philox.hpp"
#include "../../csrc/cpu/parallel.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

template <class T>
void philox_lanes(const uint32_t* counters, uint32_t key_low, uint32_t key_high, uint32_t* out) {
    typedef Vector<uint32_t, lanes<T>> Words;
    Words block[4];
    memcpy(block, counters, sizeof block);
    philox<Words, Vector<uint64_t, lanes<T>>>(block, key_low, key_high);
    memcpy(out, block, sizeof block);
}

void run_philox(bool is_double, const uint32_t* counters, uint32_t key_low, uint32_t key_high,
                uint32_t* out) {
    (is_double ? philox_lanes<double> : philox_lanes<float>)(counters, key_low, key_high, out);
}

void run_plan_ladder(const double* bandwidths, int count, int* order, bool* follows) {
    plan_ladder(bandwidths, count, order, follows);
}

template <class T> Vector<T> narrow(const double* values) {
    Vector<T> vector;
    for (int lane = 0; lane < lanes<T>; ++lane) vector[lane] = (T)values[lane];
    return vector;
}

template <class T> void spread(Vector<T> vector, double* out) {
    for (int lane = 0; lane < lanes<T>; ++lane) out[lane] = (double)vector[lane];
}

void run_at_most(bool is_double, const double* values, double limit, double* out) {
    if (is_double)
        spread<double>(at_most<double>(narrow<double>(values), limit), out);
    else
        spread<float>(at_most<float>(narrow<float>(values), (float)limit), out);
}

void run_at_least(bool is_double, const double* values, double limit, double* out) {
    if (is_double)
        spread<double>(at_least<double>(narrow<double>(values), limit), out);
    else
        spread<float>(at_least<float>(narrow<float>(values), (float)limit), out);
}

void run_square_roots(bool is_double, const double* values, double* out) {
    if (is_double)
        spread<double>(square_roots<double>(narrow<double>(values)), out);
    else
        spread<float>(square_roots<float>(narrow<float>(values)), out);
}

void run_add_wide(bool is_double, const double* values, double* sums) {
    if (is_double)
        add_wide<double>(sums, narrow<double>(values));
    else
        add_wide<float>(sums, narrow<float>(values));
}

double run_sum_lanes(bool is_double, const double* values) {
    return is_double ? sum_lanes<double>(narrow<double>(values)) : sum_lanes<float>(narrow<float>(values));
}

bool run_any_positive(bool is_double, const double* values) {
    return is_double ? any<double>(narrow<double>(values) > 0.0) : any<float>(narrow<float>(values) > 0.0f);
}

int run_parallel_for(int64_t tasks, int threads, int* times) {
    int seen[64] = {};
    parallel_for(tasks, threads, [&](int64_t task, int thread) {
        ++times[task];
        seen[thread] = 1;
    });
    int largest = 0;
    for (int thread = 0; thread < 64; ++thread) largest = seen[thread] ? thread : largest;
    return largest;
}

int run_useful_threads(int threads, double steps, bool busy) {
    one_thread_until = busy ? nanoseconds() + 1000000000 : 0;
    const int useful = useful_threads(threads, steps);
    one_thread_until = 0;
    return useful;
}

bool run_busy_after(int64_t worked, int64_t waited, int64_t tasks, int threads) {
    last_long_wait = one_thread_until = 0;
    note_wait(worked, waited, tasks, threads);
    const bool after_one = one_thread_until != 0;
    note_wait(worked, waited, tasks, threads);
    const bool busy = one_thread_until > nanoseconds() && !after_one;
    last_long_wait = one_thread_until = 0;
    return busy;
}

template <class T> uintptr_t fill_buffer(int64_t count) {
    const Buffer<T> buffer(count);
    if (!buffer) return 0;
    memset(buffer.get(), 0, count * sizeof(T));
    return (uintptr_t)buffer.get();
}

uintptr_t run_buffer(bool is_double, int64_t count) {
    return is_double ? fill_buffer<double>(count) : fill_buffer<float>(count);
}

int64_t run_round_up(int64_t value, int64_t multiple) { return round_up(value, multiple); }
int64_t run_blocks_of(int64_t count, int64_t size) { return blocks_of(count, size); }

}  // namespace

extern const test::Internals internals;
const test::Internals internals = {
    {lanes<float>, lanes<double>},
    run_philox,
    run_plan_ladder,
    run_at_most,
    run_at_least,
    run_square_roots,
    run_add_wide,
    run_sum_lanes,
    run_any_positive,
    run_parallel_for,
    run_useful_threads,
    run_busy_after,
    run_round_up,
    run_blocks_of,
    run_buffer,
};

}  // namespace fastmmd::FASTMMD_ISA
