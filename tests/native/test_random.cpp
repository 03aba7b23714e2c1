// Philox against the published vectors, frequencies against the formula: features of random Fourier methods
// are made from a seed, so every backend has to make the same ones.
#include "features.hpp"

namespace fastmmd::test {
namespace {

struct KnownAnswer {
    uint32_t counter[4], key[2], words[4];
};

// Random123, tests/kat_vectors: "philox4x32 10".
const KnownAnswer known_answers[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

}  // namespace

TEST(philox_plain_gives_the_published_vectors) {
    for (const KnownAnswer& known : known_answers) {
        uint32_t words[4] = {known.counter[0], known.counter[1], known.counter[2], known.counter[3]};
        philox(words, known.key[0], known.key[1]);
        for (int i = 0; i < 4; ++i) CHECK(words[i] == known.words[i], "word %d: %08x", i, words[i]);
    }
}

// The published counter in each lane, other counters in the others.
TEST(philox_vectors) {
    Random random(1);
    for (const InstructionSet& set : instruction_sets())
        for (const bool is_double : {false, true}) {
            const int lanes = set.internals->lanes[is_double];
            for (const KnownAnswer& known : known_answers)
                for (int place = 0; place < lanes; ++place) {
                    std::vector<uint32_t> counters(4 * lanes), words(4 * lanes);
                    for (uint32_t& word : counters) word = (uint32_t)random.word();
                    for (int i = 0; i < 4; ++i) counters[i * lanes + place] = known.counter[i];
                    set.internals->philox(is_double, counters.data(), known.key[0], known.key[1],
                                          words.data());
                    for (int i = 0; i < 4; ++i)
                        CHECK(words[i * lanes + place] == known.words[i], "%s lane %d word %d: %08x",
                              set.name(), place, i, words[i * lanes + place]);
                    for (int lane = 0; lane < lanes; ++lane) {
                        uint32_t expected[4];
                        for (int i = 0; i < 4; ++i) expected[i] = counters[i * lanes + lane];
                        philox(expected, known.key[0], known.key[1]);
                        for (int i = 0; i < 4; ++i)
                            CHECK(words[i * lanes + lane] == expected[i], "%s lane %d word %d", set.name(),
                                  lane, i);
                    }
                }
        }
}

namespace {

template <class T> void check_frequencies(const FeatureCase& c, int dim) {
    const std::vector<long double> expected = frequencies(c, dim);
    // The backends agree to 4e-6 before the division by the bandwidth; in double to as many units of 2^-53.
    const long double bound = 4e-6L * (is_double<T> ? 0x1p-29L : 1);
    for (const InstructionSet& set : instruction_sets())
        for (const int threads : {1, 2, 4}) {
            const FeatureArrays arrays(c);
            const Array<T> out(c.count * dim);
            CHECK(set.operations->fourier_frequencies(
                      {is_double<T>, threads, dim, arrays.features(), out.data()}),
                  "%s: no memory", set.name());
            long double largest = 0;
            for (int64_t k = 0; k < c.count; ++k)
                for (int d = 0; d < dim; ++d) {
                    const long double error =
                        std::fabs(out[k * dim + d] - expected[k * dim + d]) * c.bandwidth_of(k);
                    if (!(error <= largest)) largest = error;
                }
            margin(std::string("frequencies") + (is_double<T> ? " double " : " float ") + set.name(),
                   (double)(largest / bound));
            CHECK(largest <= bound, "%s: count %lld dim %d: error %.3Lg", set.name(), (long long)c.count, dim,
                  largest);
        }
}

}  // namespace

TEST(frequencies_are_philox_and_box_muller) {
    const int64_t keys[][2] = {{0, 0},
                               {-0x123456789ABCDEF, 42},
                               {5, (int64_t(1) << 32) - 20},
                               {5, std::numeric_limits<int64_t>::max() - 20},
                               {-1, -20}};
    for (const auto& key : keys)
        for (const int dim : {1, 2, 3, 4, 5, 6, 7, 8, 50})
            for (const int parts : {1, 3})
                for (const int64_t count : {1, 15, 16, 17, 64, 85}) {
                    const FeatureCase c = {{key[0], key[1]}, count * parts, parts};
                    check_frequencies<float>(c, dim), check_frequencies<double>(c, dim);
                }
}

TEST(frequencies_on_threads) {
    const FeatureCase c = {{7, 3}, 5001, 3};
    check_frequencies<float>(c, 6), check_frequencies<double>(c, 6);
}

}  // namespace fastmmd::test
