// Where memory runs out, every entry point says so and touches nothing.
#include "check.hpp"
#include "instruction_sets.hpp"

namespace fastmmd::test {

#if !FASTMMD_SANITIZED  // sanitizers end the program where memory runs out
TEST(memory_that_runs_out) {
    constexpr int64_t n = int64_t(1) << 46;  // points that no address space holds
    const double one[] = {1};
    const int64_t key[] = {0, 0};
    const Kernel kernel = {Family::gaussian, 1, one, one, 1};
    const Features features = {key, 4, 1, one, one};
    // Never read: the kernels ask for their memory first.
    char nothing;
    void* const data = &nothing;
    for (const InstructionSet& set : instruction_sets())
        for (const bool is_double : {false, true}) {
            const Operations& o = *set.operations;
            const Sample x = {n, data, nullptr, nullptr}, y = {5, data, nullptr, nullptr};
            const Mmd2Inputs gradients = {data, data, nullptr, nullptr, data, data};
            CHECK(!o.mmd2({is_double, 2, 1, 3, x, y, kernel, false, false, -1, (double*)data, gradients}),
                  "%s: mmd2", set.name());
            CHECK(!o.witness({is_double, 2, 5, n, 3, data, data, data, false, kernel, data, nullptr, {}}),
                  "%s: witness", set.name());
            CHECK(!o.fourier_sum({is_double, 2, n, 5, 3, data, data, features, data}), "%s: fourier_sum",
                  set.name());
            CHECK(!o.fourier_function({is_double, 2, 1, n, 3, data, data, features, data, data}),
                  "%s: fourier_function", set.name());
            bool far = false;
            CHECK(!o.parzen({is_double, 2, 5, n, 3, data, data, false, 1, one, data, (double*)data, nullptr,
                             nullptr, nullptr, &far}),
                  "%s: parzen", set.name());
        }
}
#endif

}  // namespace fastmmd::test
