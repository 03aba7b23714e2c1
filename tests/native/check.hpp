// The harness of the C++ test program: TEST registers, CHECK counts and reports, main.cpp runs.
#pragma once
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace fastmmd::test {

struct Test {
    const char* name;
    void (*body)();
};

std::vector<Test>& tests();

struct Registration {
    Registration(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

#define TEST(name)                                            \
    static void name();                                       \
    static const Registration registered_##name(#name, name); \
    static void name()

void passed();
__attribute__((format(printf, 3, 4))) void failed(const char* file, int line, const char* format, ...);

// The message, in printf's manner, is made only where the condition is false.
#define CHECK(condition, ...) ((condition) ? passed() : failed(__FILE__, __LINE__, __VA_ARGS__))

// How much of a bound was used, the largest over all calls with this name; `--margins` prints them.
void margin(const std::string& name, double share);

// Whether a comparison would have noticed an error of a thousandth. Not all can, where the expectation is
// almost zero; the program fails if less than three in four of one name do.
void sensitivity(const std::string& name, bool sensitive);

// Under a sanitizer: the same code paths with fewer arguments.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FASTMMD_SANITIZED 1
#else
#define FASTMMD_SANITIZED 0
#endif
constexpr bool sanitized = FASTMMD_SANITIZED;

}  // namespace fastmmd::test
