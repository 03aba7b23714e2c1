// Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): ten rounds on a
// counter of four 32-bit words under a key of two. Words is uint32_t or a SIMD vector of uint32_t, LongWords
// the same lanes in 64 bits.
#pragma once
#include <stdint.h>

#ifndef FASTMMD_ANYWHERE
#define FASTMMD_ANYWHERE  // of functions that CUDA compiles for both sides
#endif

namespace fastmmd::FASTMMD_ISA {
namespace {

template <class Words, class LongWords>
FASTMMD_ANYWHERE inline void philox_multiply(Words word, uint32_t factor, Words& high, Words& low) {
    if constexpr (sizeof(Words) == sizeof(uint32_t)) {
        const LongWords product = (LongWords)word * factor;
        high = (Words)(product >> 32);
        low = (Words)product;
    } else {
        const LongWords product = __builtin_convertvector(word, LongWords) * (uint64_t)factor;
        high = __builtin_convertvector(product >> 32, Words);
        low = __builtin_convertvector(product, Words);
    }
}

template <class Words, class LongWords>
FASTMMD_ANYWHERE inline void philox(Words counter[4], uint32_t key_low, uint32_t key_high) {
    for (int round = 0; round < 10; ++round) {
        Words high0, low0, high1, low1;
        philox_multiply<Words, LongWords>(counter[0], 0xD2511F53u, high0, low0);
        philox_multiply<Words, LongWords>(counter[2], 0xCD9E8D57u, high1, low1);
        counter[0] = high1 ^ counter[1] ^ key_low;
        counter[2] = high0 ^ counter[3] ^ key_high;
        counter[1] = low1;
        counter[3] = low0;
        key_low += 0x9E3779B9u;
        key_high += 0xBB67AE85u;
    }
}

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
