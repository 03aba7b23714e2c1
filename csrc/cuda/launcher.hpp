// What all launchers share. Pointers in their structs are device memory unless stated, null where something
// is absent or not needed; points are [..., count, dim], contiguous, all float or all double. Launchers start
// kernels on a stream and wait for nothing, so that a graph may capture them. Memory between kernels is the
// caller's: `workspace`, of the size that `*_workspace` gives.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace fastmmd::cuda {

constexpr int most_splits = 32;  // partial results of an ordered reduction

// What a launcher returns: 0, or the CUDA error of a kernel and its name.
struct Status {
    int code = 0;
    const char* kernel = "";
};

// The first error of several launches.
inline Status operator+(Status a, Status b) { return a.code ? a : b; }

// Hands out parts of a workspace, or counts what they need where there is none yet.
class Workspace {
  public:
    explicit Workspace(void* base) : base_((char*)base) {}
    template <class T> T* take(int64_t count) {
        char* const part = base_ ? base_ + used_ : nullptr;
        used_ += (count * (int64_t)sizeof(T) + 255) / 256 * 256;
        return (T*)part;
    }
    int64_t used() const { return used_; }

  private:
    char* base_;
    int64_t used_ = 0;
};

constexpr int most_listed = 128;  // numbers that travel with a launch

// Numbers from the host, which travel as arguments of kernels.
struct List {
    int count = 0;
    double values[most_listed];
};

// Numbers from the host, or a tensor's, whose values the host does not read.
struct Numbers {
    const void* tensor = nullptr;
    List list;  // unread where there is a tensor
};

}  // namespace fastmmd::cuda
