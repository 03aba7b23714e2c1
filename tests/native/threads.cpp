// The threads of cpu/parallel.hpp in the build for ThreadSanitizer.
#ifdef FASTMMD_STD_THREADS
#include <cstdint>
#include <thread>
#include <vector>

namespace fastmmd {

// Tasks in turn, so that every thread surely gets some. Nothing but the start and the end of a thread orders
// them.
void run_on_threads(int64_t tasks, int threads, void (*body)(const void* context, int64_t task, int thread),
                    const void* context) {
    std::vector<std::thread> team;
    for (int thread = 0; thread < threads; ++thread)
        team.emplace_back([=] {
            for (int64_t task = thread; task < tasks; task += threads) body(context, task, thread);
        });
    for (std::thread& member : team) member.join();
}

}  // namespace fastmmd
#endif
