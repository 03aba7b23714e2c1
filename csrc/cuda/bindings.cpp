// The Python module fastmmd._cuda: converts arguments and launches, nothing else. Tensors come as addresses
// (0: absent or not needed) whose owner keeps them alive until the stream is done; every launcher takes its
// workspace and the stream last. Flags are py::bool_, which takes nothing but a bool: a number out of place
// is an error.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_build_summary.hpp"
#include "device.hpp"
#include "operations.hpp"

namespace py = pybind11;
using namespace fastmmd::cuda;

namespace {

typedef uintptr_t Address;
typedef std::vector<double> Numbers;

template <class T = void> T* at(Address address) { return reinterpret_cast<T*>(address); }

void check(bool valid, const char* message) {
    if (!valid) throw std::invalid_argument(message);
}

void check(Status status) {
    if (status.code == 0) return;
    throw std::runtime_error(std::string("CUDA kernel ") + status.kernel + ": " + error_text(status.code));
}

List list_of(const Numbers& numbers) {
    check(numbers.size() <= (size_t)most_listed, "bandwidths: got more than 128 numbers");
    List list;
    list.count = (int)numbers.size();
    for (int s = 0; s < list.count; ++s) list.values[s] = numbers[s];
    return list;
}

// --- mmd ---

// --- fourier ---

// --- parzen ---

}  // namespace

PYBIND11_MODULE(_cuda, module) {
    module.doc() = "Compiled CUDA kernels of fastmmd; see csrc/cuda/operations.hpp for the arguments.";
    module.attr("build_summary") = FASTMMD_CUDA_BUILD_SUMMARY;
    module.def("unusable", &unusable, "Why kernels do not run on the current device; empty where they do.");
}
