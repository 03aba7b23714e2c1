// CUDA's vocabulary on the CPU, for tests: csrc/cuda compiled by a C++ compiler with this header before
// everything. Blocks run one after another. The threads of a block are fibers, each of which runs until a
// barrier, a shuffle or its end; only what the kernels use is here, and what CUDA leaves undefined is an
// error: a barrier that not all threads of the block reach, a shuffle that not all lanes take part in, too
// much shared memory. Shared arrays are heap blocks filled with NaN, so that AddressSanitizer sees accesses
// outside and results show what nobody wrote. FASTMMD_HOST_ORDER=reversed runs threads and blocks from the
// last to the first: what changes lacks a barrier.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <memory>
#include <mutex>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include "launcher.hpp"

#define FASTMMD_ON_HOST
#define DEVICE inline
#define FASTMMD_ANYWHERE
#define SHARED(type, name, count) \
    type* const name = (type*)fastmmd::cuda::host::shared_array(sizeof(type) * (count))
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace fastmmd::cuda::host {

constexpr size_t stack_size = 1 << 17, most_shared = 48 << 10;

[[noreturn]] inline void fail(const char* message) {
    fprintf(stderr, "CUDA on the host: %s; kernel %s, block %u %u %u, thread %u\n", message,
            getenv("FASTMMD_KERNEL"), blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
    abort();
}

#if defined(__x86_64__)
// Where a fiber or the scheduler left off: its stack, with the registers that calls preserve on top.
// swapcontext would make two system calls at each of so many switches, and AddressSanitizer clear a whole
// stack.
typedef void* Context;

extern "C" void fastmmd_switch(Context* from, Context to);
asm(R"(
    .text
    .type fastmmd_switch, @function
fastmmd_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size fastmmd_switch, . - fastmmd_switch
)");

inline void switch_context(Context& from, Context& to) { fastmmd_switch(&from, to); }
inline void make_context(Context& context, char* stack, void (*entry)()) {
    void** top = (void**)(((uintptr_t)stack + stack_size) & ~(uintptr_t)15);
    *--top = nullptr;  // a return address: entry never returns
    *--top = (void*)entry;
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    context = top;
}
#else
typedef ucontext_t Context;
inline void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }
inline void make_context(Context& context, char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = stack_size;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
#endif

enum class State { ready, at_barrier, at_shuffle, done };

struct Fiber {
    Context context;
    char* stack;
    State state;
    size_t arrays;  // declared so far
};

struct Block {
    std::vector<Fiber> fibers;
    Context scheduler;
    size_t current;
    std::vector<std::unique_ptr<char[]>> shared;
    std::vector<size_t> sizes;
    std::vector<uint64_t> exchanged;  // [2, threads]: the second half while some read the first
    std::vector<char> turns;          // [threads]: which half
    void (*run)(void*);
    void* kernel;
    void* scheduler_stack_bottom = nullptr;
    size_t scheduler_stack_size = 0;
};

inline std::mutex running_kernel;
inline Block* block = nullptr;
inline std::vector<std::unique_ptr<char[]>> stacks;  // of fibers, kept from one kernel to the next

inline void arrived(void* fake) {
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(fake, &bottom, &size);
    if (block->scheduler_stack_bottom == nullptr) {
        block->scheduler_stack_bottom = (void*)bottom;
        block->scheduler_stack_size = size;
    }
#else
    (void)fake;
#endif
}

// Back to the scheduler, to return in some later turn unless the fiber is done.
inline void leave(State state) {
    Fiber& fiber = block->fibers[block->current];
    fiber.state = state;
    void* fake = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(state == State::done ? nullptr : &fake, block->scheduler_stack_bottom,
                                   block->scheduler_stack_size);
#endif
    switch_context(fiber.context, block->scheduler);
    arrived(fake);
}

inline void fiber_main() {
    arrived(nullptr);
    block->run(block->kernel);
    leave(State::done);
}

inline void enter(size_t thread) {
    block->current = thread;
    threadIdx = dim3((unsigned)thread, 0, 0);
    Fiber& fiber = block->fibers[thread];
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber.stack, stack_size);
#endif
    switch_context(block->scheduler, fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

inline void* shared_array(size_t bytes) {
    Fiber& fiber = block->fibers[block->current];
    if (fiber.arrays == block->shared.size()) {
        block->shared.emplace_back(new char[bytes]);
        block->sizes.push_back(bytes);
        memset(block->shared.back().get(), 255, bytes);
        size_t total = 0;
        for (size_t size : block->sizes) total += size;
        if (total > most_shared) fail("more than 48 KB of shared memory");
    }
    if (block->sizes[fiber.arrays] != bytes) fail("threads declare different shared arrays");
    return block->shared[fiber.arrays++].get();
}

// Lets the fibers [first, last) go on if all of them wait for each other.
inline bool release(size_t first, size_t last, State state) {
    for (size_t thread = first; thread < last; ++thread)
        if (block->fibers[thread].state != state) return false;
    for (size_t thread = first; thread < last; ++thread) block->fibers[thread].state = State::ready;
    return true;
}

inline void run_block(bool reversed) {
    const size_t threads = block->fibers.size();
    block->shared.clear();
    block->sizes.clear();
    for (Fiber& fiber : block->fibers) {
        fiber.state = State::ready;
        fiber.arrays = 0;
#if defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(fiber.stack, stack_size);  // what its last run left
#endif
        make_context(fiber.context, fiber.stack, fiber_main);
    }
    for (size_t done = 0; done < threads;) {
        bool progress = false;
        done = 0;
        for (size_t turn = 0; turn < threads; ++turn) {
            const size_t thread = reversed ? threads - 1 - turn : turn;
            if (block->fibers[thread].state == State::ready) {
                enter(thread);
                progress = true;
            }
            done += block->fibers[thread].state == State::done;
        }
        for (size_t warp = 0; warp < threads; warp += 32)
            progress |= release(warp, warp + 32, State::at_shuffle);
        progress |= release(0, threads, State::at_barrier);
        if (!progress && done < threads) fail("not all threads reach a barrier, or not all lanes a shuffle");
    }
}

template <class Kernel> void run_grid(dim3 grid, int threads, Kernel& kernel) {
    if (threads % 32 != 0 || threads < 32 || threads > 1024) fail("threads of a block");
    const char* order = getenv("FASTMMD_HOST_ORDER");
    const bool reversed = order != nullptr && strcmp(order, "reversed") == 0;
    Block running;
    running.fibers = std::vector<Fiber>(threads);
    while (stacks.size() < (size_t)threads) stacks.emplace_back(new char[stack_size]);
    for (int thread = 0; thread < threads; ++thread) running.fibers[thread].stack = stacks[thread].get();
    running.exchanged.resize(2 * threads);
    running.turns.assign(threads, 0);
    running.run = [](void* what) { (*(Kernel*)what)(); };
    running.kernel = &kernel;
    block = &running;
    gridDim = grid;
    blockDim = dim3((unsigned)threads);
    const uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z;
    for (uint64_t number = 0; number < blocks; ++number) {
        const uint64_t at = reversed ? blocks - 1 - number : number;
        blockIdx = dim3(at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y);
        run_block(reversed);
    }
    block = nullptr;
}

}  // namespace fastmmd::cuda::host

namespace fastmmd::cuda {
namespace {

template <class... Parameters, class... Arguments>
Status launch(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads, void*,
              Arguments... arguments) {
    setenv("FASTMMD_KERNEL", name, 1);
    if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        return {9, name};  // cudaErrorInvalidConfiguration
    auto call = [&] { kernel((Parameters)arguments...); };
    std::lock_guard<std::mutex> one_at_a_time(host::running_kernel);
    host::run_grid(grid, threads, call);
    return {};
}

inline void barrier() { host::leave(host::State::at_barrier); }

template <class T> T shuffle_xor(T value, int mask) {
    static_assert(sizeof(T) <= 8);
    host::Block& block = *host::block;
    const size_t thread = block.current, threads = block.fibers.size();
    uint64_t* const half = block.exchanged.data() + (block.turns[thread] ^= 1) * threads;
    memcpy(&half[thread], &value, sizeof(T));
    host::leave(host::State::at_shuffle);
    memcpy(&value, &half[thread ^ (size_t)mask], sizeof(T));
    return value;
}

// As wrong as the special-function unit may be, always to the same side.
inline float exp2_approximate(float x) {
    const float value = x < -126 ? 0 : exp2f(x);
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits &= ~1u;
    float result;
    memcpy(&result, &bits, 4);
    return result;
}

inline void keep(float&) {}
inline float minimum(float a, float b) { return a < b || a != a ? a : b; }
inline float maximum(float a, float b) { return a > b || a != a ? a : b; }
template <class T> inline T plus(T a, T b) {
    asm volatile("" : "+m"(a), "+m"(b));  // a product has been rounded
    return a + b;
}
inline float square_root(float x) { return sqrtf(x); }
inline double square_root(double x) { return sqrt(x); }
inline float reciprocal_approximate(float x) { return 1 / x * (1 + 0x1p-23f); }
inline float inverse_root_approximate(float x) { return 1 / sqrtf(x) * (1 - 0x1p-22f); }

}  // namespace
}  // namespace fastmmd::cuda
