// Which of the compiled instruction sets runs.
#pragma once
#include <string>
#include <vector>

#include "calls.hpp"

namespace fastmmd {

struct Operations {
    const char* capability;  // "baseline", "avx2" or "avx512"
    bool (*mmd2)(const Mmd2&);
    bool (*witness)(const Witness&);
    bool (*fourier_sum)(const FourierSum&);
    bool (*fourier_function)(const FourierFunction&);
    bool (*fourier_frequencies)(const FourierFrequencies&);
    bool (*parzen)(const Parzen&);
    bool (*elementwise)(const Elementwise&);
};

// The best that was compiled and that this processor has; FASTMMD_CPU_CAPABILITY=baseline|avx2|avx512
// overrides it. Throws std::invalid_argument for a choice that does not exist or cannot run here.
const Operations& choose_operations();

// What FASTMMD_CPU_CAPABILITY may say here, ascending.
std::vector<std::string> usable_capabilities();

}  // namespace fastmmd
