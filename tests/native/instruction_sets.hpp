// The instruction sets that this processor runs: every test goes through all of them.
#pragma once
#include <vector>

#include "../../csrc/cpu/capability.hpp"
#include "internals.hpp"

namespace fastmmd::test {

struct InstructionSet {
    const Operations* operations;
    const Internals* internals;
    const char* name() const { return operations->capability; }
};

const std::vector<InstructionSet>& instruction_sets();

}  // namespace fastmmd::test
