// Threads and scratch memory for the kernels.
#pragma once
#include <stdlib.h>
#include <time.h>

#include "simd.hpp"

// The build for ThreadSanitizer defines FASTMMD_STD_THREADS: it does not see how libgomp, which is not
// instrumented, makes threads wait for each other, and takes every use of a result for a race.
#ifdef FASTMMD_STD_THREADS
namespace fastmmd {
// body(context, task, thread) for every task in [0, tasks), on new threads; tests/native/threads.cpp.
void run_on_threads(int64_t tasks, int threads, void (*body)(const void* context, int64_t task, int thread),
                    const void* context);
}  // namespace fastmmd
#else
#include <omp.h>
#endif

namespace fastmmd {
// On a machine that is busy with other work a thread may wait for its turn longer than what it has to do
// takes, and all wait for it. Until then (nanoseconds of the monotonic clock) short work takes one thread,
// which changes no result. Written and read by any thread.
extern int64_t one_thread_until, last_long_wait;  // capability.cpp
}  // namespace fastmmd

namespace fastmmd::FASTMMD_ISA {
namespace {

inline int64_t nanoseconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * (int64_t)1000000000 + now.tv_nsec;
}

// What one thread has waited for others, after working itself. A task that is larger than the rest explains
// no wait where there are several for each thread; and one wait says nothing, as it may be the clock's
// interrupt.
inline void note_wait(int64_t worked, int64_t waited, int64_t tasks, int threads) {
    constexpr int64_t millisecond = 1000000;
    if (waited < millisecond || waited < worked || tasks < 2 * threads) return;
    const int64_t now = nanoseconds();
    if (now - __atomic_exchange_n(&last_long_wait, now, __ATOMIC_RELAXED) < 1000 * millisecond)
        __atomic_store_n(&one_thread_until, now + 300 * millisecond, __ATOMIC_RELAXED);
}

// body(task, thread) for every task in [0, tasks). Which thread runs a task must not matter to its result.
template <class Body> void parallel_for(int64_t tasks, int threads, const Body& body) {
    if (threads > tasks) threads = (int)tasks;
    if (threads <= 1) {  // not even a team of one: in a forked child libgomp must not be entered
        for (int64_t task = 0; task < tasks; ++task) body(task, 0);
        return;
    }
#ifdef FASTMMD_STD_THREADS
    run_on_threads(
        tasks, threads,
        [](const void* context, int64_t task, int thread) { (*(const Body*)context)(task, thread); }, &body);
#else
    const int64_t start = nanoseconds();
    int64_t done = start;  // of this thread
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t task = 0; task < tasks; ++task) body(task, omp_get_thread_num());
        if (omp_get_thread_num() == 0) done = nanoseconds();
    }
    note_wait(done - start, nanoseconds() - done, tasks, threads);
#endif
}

// Threads worth their start for this many elementary steps: below about ten microseconds one is faster, and
// on a busy machine below about four milliseconds.
inline int useful_threads(int threads, double steps) {
#ifdef FASTMMD_STD_THREADS
    (void)steps;  // all that could be shared is, however small
    return threads;
#else
    constexpr double tiny = 2e4, small = 3e6;
    if (steps < tiny) return 1;
    const bool busy =
        steps < small && threads > 1 && nanoseconds() < __atomic_load_n(&one_thread_until, __ATOMIC_RELAXED);
    return busy ? 1 : threads;
#endif
}

// Threads for a step of a call before or after its main one: every step waits for all threads, which it has
// to be worth.
inline int threads_beside(int threads, double steps) { return steps < 1e6 ? 1 : threads; }

// Partial results of an ordered reduction: at most so many strips, whose number depends on the sizes alone.
constexpr int most_strips = 32;

// Adds what [strips][size] has behind the first strip to it, in order.
inline void add_strips(double* sums, int64_t strips, int64_t size) {
    for (int64_t strip = 1; strip < strips; ++strip)
        for (int64_t at = 0; at < size; ++at) sums[at] += sums[strip * size + at];
}

constexpr int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}
constexpr int64_t blocks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }
template <class V> constexpr V smaller(V a, V b) { return a < b ? a : b; }
template <class V> constexpr V larger(V a, V b) { return a < b ? b : a; }

// Uninitialized memory aligned for vectors and cache lines; null where there is none left.
template <class T> class Buffer {
  public:
    explicit Buffer(int64_t count) {
        void* memory =
            nullptr;  // of exactly so many bytes, which aligned_alloc rounds up: sanitizers see its end
        const bool allocated = !posix_memalign(&memory, 64, larger<int64_t>(count, 1) * sizeof(T));
        data_ = allocated ? (T*)memory : nullptr;
    }
    ~Buffer() { free(data_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    T* get() const { return data_; }
    explicit operator bool() const { return data_ != nullptr; }

  private:
    T* data_;
};

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
