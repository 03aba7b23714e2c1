#include "capability.hpp"

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fastmmd {

int64_t one_thread_until = 0, last_long_wait = -((int64_t)1 << 40);

namespace {

#define FASTMMD_OPERATIONS(isa) \
    {#isa,                      \
     isa::mmd2,                 \
     isa::witness,              \
     isa::fourier_sum,          \
     isa::fourier_function,     \
     isa::fourier_frequencies,  \
     isa::parzen,               \
     isa::elementwise}

// Ascending.
const Operations compiled[] = {
    FASTMMD_OPERATIONS(baseline),
#ifdef FASTMMD_X86
    FASTMMD_OPERATIONS(avx2),
    FASTMMD_OPERATIONS(avx512),
#endif
};

bool runs_here(const std::string& capability) {
#ifdef FASTMMD_X86
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (capability == "avx2") return avx2;
    if (capability == "avx512")
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#endif
    return capability == "baseline";
}

}  // namespace

std::vector<std::string> usable_capabilities() {
    std::vector<std::string> usable;
    for (const Operations& operations : compiled)
        if (runs_here(operations.capability)) usable.push_back(operations.capability);
    return usable;
}

const Operations& choose_operations() {
    const char* variable = std::getenv("FASTMMD_CPU_CAPABILITY");
    const std::vector<std::string> usable = usable_capabilities();
    const std::string choice = variable && *variable ? variable : usable.back();
    for (const Operations& operations : compiled)
        if (operations.capability == choice && runs_here(choice)) return operations;
    std::string names;
    for (const std::string& name : usable) names += (names.empty() ? "" : ", ") + name;
    throw std::invalid_argument("FASTMMD_CPU_CAPABILITY: got \"" + choice +
                                "\"; this build on this processor runs " + names);
}

}  // namespace fastmmd
