// The planner of the bandwidth ladder: which bandwidths take an exponential, which follow by squaring.
#include <algorithm>
#include <limits>
#include <map>

#include "arrays.hpp"
#include "instruction_sets.hpp"

namespace fastmmd::test {
namespace {

struct Ladder {
    std::vector<double> rungs;  // the bandwidths in the planned order
    std::vector<bool> follows;
    int exponentials = 0;
};

std::string describe(const std::vector<double>& bandwidths) {
    std::string text;
    for (const double s : bandwidths) text += (text.empty() ? "" : ", ") + std::to_string(s);
    return "(" + text + ")";
}

// Plans, and checks what holds for every list: a permutation, in which whoever follows halves the rung
// before.
Ladder plan(const InstructionSet& set, const std::vector<double>& bandwidths) {
    const size_t count = bandwidths.size();
    const std::string name = describe(bandwidths);
    const Array<double> in(bandwidths);
    const Array<int> order(std::vector<int>(count, -1));
    const Memory follows_memory(count);
    bool* const follows = (bool*)follows_memory.start();
    set.internals->plan_ladder(in.data(), (int)count, order.data(), follows);
    Ladder ladder;
    std::vector<int> times(count, 0);
    for (size_t i = 0; i < count; ++i) {
        CHECK(order[i] >= 0 && order[i] < (int)count && times[order[i]]++ == 0,
              "%s %s: rung %zu is bandwidth %d", set.name(), name.c_str(), i, order[i]);
        ladder.rungs.push_back(bandwidths[order[i]]);
        ladder.follows.push_back(follows[i]);
        ladder.exponentials += !follows[i];
        CHECK(!follows[i] || (i > 0 && ladder.rungs[i] == 0.5 * ladder.rungs[i - 1]),
              "%s %s: rung %zu follows", set.name(), name.c_str(), i);
    }
    return ladder;
}

void check_plan(const std::vector<double>& bandwidths, const std::vector<double>& rungs,
                const std::vector<bool>& follows) {
    for (const InstructionSet& set : instruction_sets()) {
        const Ladder ladder = plan(set, bandwidths);
        const std::string name = describe(bandwidths);
        CHECK(ladder.rungs == rungs, "%s %s: order %s", set.name(), name.c_str(),
              describe(ladder.rungs).c_str());
        CHECK(ladder.follows == follows, "%s %s: %d exponentials", set.name(), name.c_str(),
              ladder.exponentials);
    }
}

// The fewest: of each value, as many as find no partner among its doubles.
int fewest_exponentials(const std::vector<double>& bandwidths) {
    std::map<double, int> times;
    for (const double s : bandwidths) ++times[s];
    int exponentials = 0;
    for (const auto& [s, count] : times) {
        const auto twice = times.find(2 * s);
        exponentials += std::max(0, count - (twice == times.end() ? 0 : twice->second));
    }
    return exponentials;
}

}  // namespace

TEST(ladder_of_the_papers_takes_two_exponentials) {
    check_plan({2, 5, 10, 20, 40, 80}, {80, 40, 20, 10, 5, 2}, {false, true, true, true, true, false});
}

TEST(ladder_of_other_lists) {
    check_plan({1}, {1}, {false});
    check_plan({}, {}, {});
    check_plan({20, 2, 80, 10, 5, 40}, {80, 40, 20, 10, 5, 2},
               {false, true, true, true, true, false});  // unsorted
    check_plan({1, 1, 1}, {1, 1, 1}, {false, false, false});
    check_plan({1, 2, 1, 2}, {2, 1, 2, 1}, {false, true, false, true});
    check_plan({8, 4, 1}, {8, 4, 1}, {false, true, false});  // a gap ends a chain
    check_plan({8, 6, 4, 3, 2}, {8, 4, 2, 6, 3},
               {false, true, true, false, true});                        // two chains, interleaved
    check_plan({0.3, 0.1, 0.2}, {0.3, 0.2, 0.1}, {false, false, true});  // 0.1 is half of 0.2 in binary
    check_plan({1, 0.5 + 1e-16}, {1, 0.5 + 1e-16}, {false, 0.5 + 1e-16 == 0.5});  // exact halves only
    check_plan({1e300, 5e-324, 1e-323}, {1e300, 1e-323, 5e-324}, {false, false, true});
}

TEST(ladder_is_the_shortest) {
    Random random(2);
    for (int trial = 0; trial < 3000; ++trial) {
        std::vector<double> bandwidths(random.below(40));
        for (double& s : bandwidths)
            s = std::ldexp(1.0 + 0.25 * (double)random.below(4), (int)random.below(trial % 10 + 1));
        for (const InstructionSet& set : instruction_sets()) {
            const int exponentials = plan(set, bandwidths).exponentials,
                      fewest = fewest_exponentials(bandwidths);
            CHECK(exponentials == fewest, "%s %s: %d exponentials, %d would do", set.name(),
                  describe(bandwidths).c_str(), exponentials, fewest);
        }
    }
}

// Values that come from tensors are unchecked: whatever they are, the plan is a plan.
TEST(ladder_of_anything) {
    const double values[] = {std::numeric_limits<double>::quiet_NaN(),
                             std::numeric_limits<double>::infinity(),
                             0,
                             -0.0,
                             -1,
                             -0.5,
                             2,
                             1,
                             0.5,
                             5e-324};
    Random random(3);
    for (int trial = 0; trial < 3000; ++trial) {
        std::vector<double> bandwidths(1 + random.below(12));
        for (double& s : bandwidths) s = values[random.below(10)];
        for (const InstructionSet& set : instruction_sets()) {
            const Ladder ladder = plan(set, bandwidths);
            for (size_t i = 0; i < bandwidths.size(); ++i)
                CHECK(!std::isnan(ladder.rungs[i]) || !ladder.follows[i], "%s: NaN follows", set.name());
        }
    }
}

TEST(ladder_of_many) {
    std::vector<double> bandwidths;
    for (int i = 0; i < 1000; ++i)
        bandwidths.push_back(std::ldexp(1.0 + 0.001 * (i % 50), i / 50 * (i % 2 ? 1 : -1)));
    for (const InstructionSet& set : instruction_sets())
        CHECK(plan(set, bandwidths).exponentials == fewest_exponentials(bandwidths), "%s", set.name());
}

}  // namespace fastmmd::test
