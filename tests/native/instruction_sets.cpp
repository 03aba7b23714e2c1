#include "instruction_sets.hpp"

#include <cstdlib>
#include <string>

namespace fastmmd::test {
namespace {

const Internals& internals_of(const std::string& capability) {
#ifdef FASTMMD_X86
    if (capability == "avx2") return avx2::internals;
    if (capability == "avx512") return avx512::internals;
#endif
    return baseline::internals;
}

std::vector<InstructionSet> find() {
    std::vector<InstructionSet> sets;
    for (const std::string& capability : usable_capabilities()) {
        setenv("FASTMMD_CPU_CAPABILITY", capability.c_str(), 1);
        sets.push_back({&choose_operations(), &internals_of(capability)});
    }
    unsetenv("FASTMMD_CPU_CAPABILITY");
    return sets;
}

}  // namespace

const std::vector<InstructionSet>& instruction_sets() {
    static const std::vector<InstructionSet> sets = find();
    return sets;
}

}  // namespace fastmmd::test
