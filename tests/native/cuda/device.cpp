// csrc/cuda/device.cu where kernels run on the CPU.
#include "device.hpp"

namespace fastmmd::cuda {

std::string error_text(int code) { return "error " + std::to_string(code); }
std::string unusable() { return ""; }

}  // namespace fastmmd::cuda
