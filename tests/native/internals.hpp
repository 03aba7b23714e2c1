// What the tests see of a kernel file's headers, through plain pointers: those headers have internal linkage
// and are compiled per instruction set, the tests once.
#pragma once
#include <cstdint>

namespace fastmmd::test {

struct Internals {
    int lanes[2];  // of float, of double

    // One Philox block per lane, in the lanes of float or of double.
    void (*philox)(bool is_double,
                   const uint32_t* counters,  // [4][lanes]
                   uint32_t key_low, uint32_t key_high,
                   uint32_t* out);  // [4][lanes]

    void (*plan_ladder)(const double* bandwidths, int count, int* order, bool* follows);

    // Helpers of simd.hpp on one vector, as doubles.
    void (*at_most)(bool is_double, const double* values, double limit, double* out);   // [lanes]
    void (*at_least)(bool is_double, const double* values, double limit, double* out);  // [lanes]
    void (*square_roots)(bool is_double, const double* values, double* out);            // [lanes]
    void (*add_wide)(bool is_double, const double* values, double* sums);               // [lanes]
    double (*sum_lanes)(bool is_double, const double* values);                          // [lanes]
    bool (*any_positive)(bool is_double, const double* values);                         // [lanes]

    // times[task] += 1 for every task; the largest thread number that came.
    int (*parallel_for)(int64_t tasks, int threads, int* times);
    // Threads for work of so many steps while the machine is known to be busy, or not.
    int (*useful_threads)(int threads, double steps, bool busy);
    // Whether so many nanoseconds of waiting after so many of work, twice, tell that the machine is busy.
    bool (*busy_after)(int64_t worked, int64_t waited, int64_t tasks, int threads);
    int64_t (*round_up)(int64_t value, int64_t multiple);
    int64_t (*blocks_of)(int64_t count, int64_t size);
    // The address of a fresh buffer of so many floats or doubles, written from end to end; 0 where there is
    // none.
    uintptr_t (*buffer)(bool is_double, int64_t count);
};

}  // namespace fastmmd::test

namespace fastmmd {
namespace baseline {
extern const test::Internals internals;
}
namespace avx2 {
extern const test::Internals internals;
}
namespace avx512 {
extern const test::Internals internals;
}
}  // namespace fastmmd
