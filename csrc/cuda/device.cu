#include "device.cuh"
#include "device.hpp"

namespace fastmmd::cuda {
namespace {

__global__ void probe_kernel() {}

}  // namespace

std::string error_text(int code) {
    const cudaError_t error = (cudaError_t)code;
    return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
}

std::string unusable() {
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, (const void*)probe_kernel);
    if (error == cudaSuccess) return "";
    cudaGetLastError();  // or the next launch reports it
    int device = 0, major = 0, minor = 0;
    std::string where;
    if (error == cudaErrorNoKernelImageForDevice && cudaGetDevice(&device) == cudaSuccess &&
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess)
        where = "; reinstall with CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES=" + std::to_string(major) +
                std::to_string(minor);
    return error_text(error) + where;
}

}  // namespace fastmmd::cuda
