// The helpers of cpu/simd.hpp and cpu/parallel.hpp.
#include <cmath>
#include <limits>

#include "arrays.hpp"
#include "instruction_sets.hpp"

namespace fastmmd::test {
namespace {

bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

}  // namespace

TEST(vector_helpers) {
    const double inf = std::numeric_limits<double>::infinity(),
                 nan = std::numeric_limits<double>::quiet_NaN();
    const double edges[] = {-inf, -3, 0, 2.5, 3, 7, inf, nan};
    for (const InstructionSet& set : instruction_sets())
        for (const bool is_double : {false, true}) {
            const Internals& internals = *set.internals;
            const int lanes = internals.lanes[is_double];
            std::vector<double> values(lanes), out(lanes);
            for (int turn = 0; turn < 8; ++turn) {
                for (int lane = 0; lane < lanes; ++lane) values[lane] = edges[(lane + turn) % 8];
                internals.at_most(is_double, values.data(), 2.5, out.data());
                for (int lane = 0; lane < lanes; ++lane)
                    CHECK(same(out[lane], values[lane] > 2.5 ? 2.5 : values[lane]), "%s at_most(%g) = %g",
                          set.name(), values[lane], out[lane]);
                internals.at_least(is_double, values.data(), 2.5, out.data());
                for (int lane = 0; lane < lanes; ++lane)
                    CHECK(same(out[lane], values[lane] < 2.5 ? 2.5 : values[lane]), "%s at_least(%g) = %g",
                          set.name(), values[lane], out[lane]);
                internals.square_roots(is_double, values.data(), out.data());
                for (int lane = 0; lane < lanes; ++lane) {
                    const double root = is_double ? std::sqrt(values[lane]) : std::sqrt((float)values[lane]);
                    CHECK(same(out[lane], root), "%s sqrt(%g) = %g", set.name(), values[lane], out[lane]);
                }
            }
            for (int place = 0; place < lanes; ++place) {
                std::vector<double> one(lanes, -1.0);
                CHECK(!internals.any_positive(is_double, one.data()), "%s: any of none", set.name());
                one[place] = 1;
                CHECK(internals.any_positive(is_double, one.data()), "%s: any misses lane %d", set.name(),
                      place);
            }
        }
}

// Sums run in double: 2^-20 beside 2^20 is not lost.
TEST(sums_of_lanes_are_double) {
    for (const InstructionSet& set : instruction_sets())
        for (const bool is_double : {false, true}) {
            const int lanes = set.internals->lanes[is_double];
            std::vector<double> values(lanes), sums(lanes);
            double total = 0;
            for (int lane = 0; lane < lanes; ++lane) {
                values[lane] = lane % 2 ? 0x1p-20 * (lane + 1) : 0x1p20 * (lane + 1);
                sums[lane] = 3 * (lane + 1);
                total += values[lane];
            }
            CHECK(set.internals->sum_lanes(is_double, values.data()) == total, "%s", set.name());
            set.internals->add_wide(is_double, values.data(), sums.data());
            for (int lane = 0; lane < lanes; ++lane)
                CHECK(sums[lane] == 3 * (lane + 1) + values[lane], "%s lane %d: %.17g", set.name(), lane,
                      sums[lane]);
        }
}

TEST(parallel_for_runs_every_task_once) {
    for (const InstructionSet& set : instruction_sets())
        for (const int threads : {1, 2, 3, 4, 8})
            for (const int64_t tasks : {0, 1, 2, 3, 7, 100, 1000}) {
                const Array<int> times(std::vector<int>(tasks, 0));
                const int largest = set.internals->parallel_for(tasks, threads, times.data());
                CHECK(largest < threads && (tasks == 0 || largest < tasks), "%s: thread %d of %d", set.name(),
                      largest, threads);
                for (int64_t task = 0; task < tasks; ++task)
                    CHECK(times[task] == 1, "%s: task %lld ran %d times", set.name(), (long long)task,
                          times[task]);
            }
}

#ifndef FASTMMD_STD_THREADS
TEST(threads_of_busy_machines) {
    constexpr double tiny = 1e4, short_work = 1e6, long_work = 1e7;
    constexpr int64_t millisecond = 1000000;
    for (const InstructionSet& set : instruction_sets()) {
        const test::Internals& internals = *set.internals;
        for (const bool busy : {false, true}) {
            CHECK(internals.useful_threads(4, tiny, busy) == 1, "%s", set.name());
            CHECK(internals.useful_threads(4, short_work, busy) == (busy ? 1 : 4), "%s", set.name());
            CHECK(internals.useful_threads(4, long_work, busy) == 4, "%s", set.name());
        }
        CHECK(internals.busy_after(millisecond, 4 * millisecond, 8, 4), "%s", set.name());
        CHECK(!internals.busy_after(millisecond / 4, millisecond / 2, 8, 4), "%s: a short wait", set.name());
        CHECK(!internals.busy_after(9 * millisecond, 4 * millisecond, 8, 4), "%s: more work", set.name());
        CHECK(!internals.busy_after(millisecond, 4 * millisecond, 7, 4), "%s: one large task", set.name());
    }
}
#endif

TEST(buffers) {
    for (const InstructionSet& set : instruction_sets()) {
        for (const bool is_double : {false, true}) {
            for (const int64_t count : {0, 1, 15, 16, 17, 1000}) {
                const uintptr_t address = set.internals->buffer(is_double, count);
                CHECK(address != 0 && address % 64 == 0, "%s: %lld elements at %#llx", set.name(),
                      (long long)count, (unsigned long long)address);
            }
            CHECK(sanitized || set.internals->buffer(is_double, int64_t(1) << 58) == 0,
                  "%s: memory out of nowhere", set.name());
        }
        for (const int64_t multiple : {1, 4, 16})
            for (int64_t value = 0; value < 100; ++value) {
                const int64_t blocks = set.internals->blocks_of(value, multiple);
                CHECK(blocks * multiple >= value && (blocks - 1) * multiple < value,
                      "%s: %lld blocks of %lld", set.name(), (long long)blocks, (long long)multiple);
                CHECK(set.internals->round_up(value, multiple) == blocks * multiple, "%s", set.name());
            }
    }
}

}  // namespace fastmmd::test
