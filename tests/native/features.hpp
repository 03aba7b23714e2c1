// Random Fourier features by the plain formula (docs/design.md, "Random features"), one number at a time.
#pragma once
#include "arrays.hpp"
#include "instruction_sets.hpp"

namespace fastmmd::test {

inline void philox(uint32_t counter[4], uint32_t key_low, uint32_t key_high) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t first = (uint64_t)counter[0] * 0xD2511F53u,
                       second = (uint64_t)counter[2] * 0xCD9E8D57u;
        const uint32_t next[4] = {(uint32_t)(second >> 32) ^ counter[1] ^ key_low, (uint32_t)second,
                                  (uint32_t)(first >> 32) ^ counter[3] ^ key_high, (uint32_t)first};
        for (int i = 0; i < 4; ++i) counter[i] = next[i];
        key_low += 0x9E3779B9u;
        key_high += 0xBB67AE85u;
    }
}

struct FeatureCase {
    int64_t key[2];
    int64_t count;
    int parts;

    // Any will do, as long as they differ.
    double bandwidth_of(int64_t k) const { return 0.5 + 0.75 * (double)(k / (count / parts)); }
    double weight_of(int64_t k) const { return 1.5 - 0.5 * (double)(k / (count / parts)); }
    long double scale_of(int64_t k) const {
        return std::sqrt((long double)weight_of(k) / (long double)(count / parts));
    }
};

// What of a case the kernels read, in arrays of its own.
class FeatureArrays {
  public:
    explicit FeatureArrays(const FeatureCase& c)
        : case_(c),
          key_(std::vector<int64_t>(c.key, c.key + 2)),
          bandwidths_(c.parts),
          weights_(c.parts) {
        for (int s = 0; s < c.parts; ++s) {
            bandwidths_[s] = c.bandwidth_of(s * (c.count / c.parts));
            weights_[s] = c.weight_of(s * (c.count / c.parts));
        }
    }
    Features features() const {
        return {key_.data(), case_.count, case_.parts, bandwidths_.data(), weights_.data()};
    }

  private:
    const FeatureCase case_;
    const Array<int64_t> key_;
    const Array<double> bandwidths_, weights_;
};

inline std::vector<long double> frequencies(const FeatureCase& c, int dim) {  // [count, dim]
    std::vector<long double> out(c.count * dim);
    const long double turn = 2 * std::acos(-1.0L);
    for (int64_t k = 0; k < c.count; ++k)
        for (int d = 0; d < dim; ++d) {
            const uint64_t index = (uint64_t)c.key[1] + (uint64_t)k, seed = (uint64_t)c.key[0];
            uint32_t words[4] = {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)(d / 4), 0};
            philox(words, (uint32_t)seed, (uint32_t)(seed >> 32));
            const uint32_t* pair = words + d % 4 / 2 * 2;
            const long double radius =
                std::sqrt(-2 * std::log((2 * (long double)(pair[0] >> 9) + 1) * 0x1p-24L));
            const long double angle = turn * (long double)pair[1] * 0x1p-32L;
            out[k * dim + d] =
                radius * (d % 2 ? std::sin(angle) : std::cos(angle)) / (long double)c.bandwidth_of(k);
        }
    return out;
}

}  // namespace fastmmd::test
