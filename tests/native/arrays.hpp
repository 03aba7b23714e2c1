// Arguments for the kernels: memory of exactly the bytes that are needed, and reproducible numbers.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "check.hpp"

#if !FASTMMD_SANITIZED
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace fastmmd::test {

// Memory of so many bytes. What lies behind the last one cannot be touched: under a sanitizer that is its
// business, elsewhere there begins a page without rights.
class Memory {
  public:
    explicit Memory(size_t bytes) : bytes_(bytes) {
#if FASTMMD_SANITIZED
        start_ = std::malloc(bytes);
        if (!start_) std::abort();
#else
        const size_t page = (size_t)sysconf(_SC_PAGESIZE);
        used_ = (bytes + page - 1) / page * page;
        pages_ = mmap(nullptr, used_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pages_ == MAP_FAILED || mprotect((char*)pages_ + used_, page, PROT_NONE)) std::abort();
        mapped_ = used_ + page;
        start_ = (char*)pages_ + used_ - bytes;
#endif
    }
    ~Memory() {
#if FASTMMD_SANITIZED
        std::free(start_);
#else
        munmap(pages_, mapped_);
#endif
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    void* start() const { return start_; }
    size_t bytes() const { return bytes_; }

  private:
    void* start_ = nullptr;
    size_t bytes_;
#if !FASTMMD_SANITIZED
    void* pages_;
    size_t used_, mapped_;
#endif
};

// An array of T, filled with NaN or with the given numbers.
template <class T> class Array {
  public:
    explicit Array(size_t count) : memory_(count * sizeof(T)), count_(count) {
        for (size_t i = 0; i < count; ++i) data()[i] = std::numeric_limits<T>::quiet_NaN();
    }
    template <class Number>
    explicit Array(const std::vector<Number>& numbers)
        : memory_(numbers.size() * sizeof(T)),
          count_(numbers.size()) {
        for (size_t i = 0; i < count_; ++i) data()[i] = (T)numbers[i];
    }
    T* data() const { return (T*)memory_.start(); }
    T& operator[](size_t i) const { return data()[i]; }
    size_t size() const { return count_; }

  private:
    Memory memory_;
    size_t count_;
};

// SplitMix64 and numbers that float holds exactly, so that float and double kernels get the same ones.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t word() {
        uint64_t z = state_ += 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }
    int64_t below(int64_t count) { return (int64_t)(word() % (uint64_t)count); }
    double uniform() { return ((double)(word() >> 41) + 0.5) * 0x1p-23; }  // in (0, 1)
    double normal() {
        return (double)(float)(std::sqrt(-2 * std::log(uniform())) * std::cos(6.283185307179586 * uniform()));
    }
    double weight() { return (double)(float)(0.2 + uniform()); }

  private:
    uint64_t state_;
};

// Threads that have to give the bits that one gives.
inline std::vector<int> team_sizes() { return sanitized ? std::vector<int>{4} : std::vector<int>{2, 4}; }

template <class T> constexpr bool is_double = sizeof(T) == 8;
template <class T>
constexpr double rounding = is_double<T> ? 0x1p-53 : 0x1p-24;  // half a unit in the last place of 1

}  // namespace fastmmd::test
