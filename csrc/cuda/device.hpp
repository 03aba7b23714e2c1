// What the bindings ask of the device.
#pragma once
#include <string>

namespace fastmmd::cuda {

std::string error_text(int code);  // of a cudaError_t, with its name and, where there is one, a remedy
std::string unusable();  // why kernels do not run on the current device and what to do; empty where they do

}  // namespace fastmmd::cuda
