// The Python module fastmmd._cuda: takes arguments and launches, nothing else.
#include "bindings.hpp"

#include "cuda_build_summary.hpp"

PYBIND11_MODULE(_cuda, module) {
    using namespace fastmmd::cuda;
    module.doc() =
        "Compiled CUDA kernels of fastmmd; csrc/cuda/*/operations.hpp has the fields of their tasks.";
    module.attr("build_summary") = FASTMMD_CUDA_BUILD_SUMMARY;
    bind_mmd(module);
    bind_fourier(module);
    bind_parzen(module);
    module.def("unusable", &unusable, "Why kernels do not run on the current device; empty where they do.");
}
