// native_tests [--margins] [WORD...]: runs the tests whose names contain one of the words, all without words.
// --margins prints how much of each bound was used.
#include <unistd.h>

#include <csignal>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>

#include "check.hpp"
#include "instruction_sets.hpp"

namespace fastmmd::test {
namespace {

int64_t checks = 0, failures = 0;
constexpr int64_t most_reports = 20;

const char* running = "";

// The pages behind the arrays end the program; sanitizers have reports of their own.
void report_fault(int) {
    const char* const parts[] = {running, ": touched memory behind an array; `make sanitize` says where\n"};
    for (const char* part : parts)
        if (write(STDOUT_FILENO, part, std::strlen(part)) < 0) break;
    _exit(1);
}

std::map<std::string, double>& margins() {
    static std::map<std::string, double> largest;
    return largest;
}

struct Tally {
    int64_t sensitive = 0, all = 0;
};

std::map<std::string, Tally>& tallies() {
    static std::map<std::string, Tally> by_name;
    return by_name;
}

double seconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

}  // namespace

std::vector<Test>& tests() {
    static std::vector<Test> all;
    return all;
}

void passed() { ++checks; }

void failed(const char* file, int line, const char* format, ...) {
    ++checks;
    if (++failures > most_reports) return;
    std::printf("%s:%d: ", file, line);
    va_list arguments;
    va_start(arguments, format);
    std::vprintf(format, arguments);
    va_end(arguments);
    std::printf("%s\n", failures == most_reports ? "\n(further failures are counted only)" : "");
}

void margin(const std::string& name, double share) {
    double& largest = margins()[name];
    if (!(share <= largest)) largest = share;
}

void sensitivity(const std::string& name, bool sensitive) {
    Tally& tally = tallies()[name];
    tally.sensitive += sensitive, ++tally.all;
}

int run(int count, char** words) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    if (!sanitized) std::signal(SIGSEGV, report_fault);
    bool with_margins = false;
    std::vector<const char*> wanted;
    for (int i = 1; i < count; ++i)
        if (!std::strcmp(words[i], "--margins"))
            with_margins = true;
        else
            wanted.push_back(words[i]);
    std::printf("instruction sets:");
    for (const InstructionSet& set : instruction_sets()) std::printf(" %s", set.name());
    std::printf("\n");

    int ran = 0;
    for (const Test& test : tests()) {
        bool chosen = wanted.empty();
        for (const char* word : wanted) chosen |= std::strstr(test.name, word) != nullptr;
        if (!chosen) continue;
        const int64_t checks_before = checks, failures_before = failures;
        const double begin = seconds();
        running = test.name;
        test.body();
        CHECK(checks > checks_before, "%s checked nothing", test.name);
        std::printf("%-6s %-58s %8lld checks %6.2f s\n", failures == failures_before ? "ok" : "FAILED",
                    test.name, (long long)(checks - checks_before), seconds() - begin);
        ++ran;
    }
    for (const auto& [name, tally] : tallies())  // over all tests together
        CHECK(!wanted.empty() || 4 * tally.sensitive >= 3 * tally.all,
              "%s: only %lld of %lld bounds would reject an error of a thousandth", name.c_str(),
              (long long)tally.sensitive, (long long)tally.all);
    if (with_margins)
        for (const auto& [name, share] : margins())
            std::printf("%-58s %5.2f of its bound\n", name.c_str(), share);
    std::printf("%d tests, %lld checks, %lld failed\n", ran, (long long)checks, (long long)failures);
    return ran > 0 && failures == 0 ? 0 : 1;
}

}  // namespace fastmmd::test

int main(int count, char** words) { return fastmmd::test::run(count, words); }
