#include "device.cuh"
#include "device.hpp"

namespace fastmmd::cuda {
namespace {

__global__ void probe_kernel() {}

std::string version_text(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string remedy(cudaError_t error) {
    int device = 0, major = 0, minor = 0, driver = 0;
    const bool missing = error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction;
    if (missing && cudaGetDevice(&device) == cudaSuccess &&
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess)
        return "; reinstall with CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES=" + std::to_string(major) +
               std::to_string(minor);
    if (error == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess)
        return driver == 0 ? "; no NVIDIA driver was found"
                           : "; the driver is for CUDA " + version_text(driver) +
                                 ", fastmmd was built with " + version_text(CUDART_VERSION) +
                                 ": update the driver, or reinstall with an nvcc of CUDA " +
                                 version_text(driver) + " or older";
    return "";
}

}  // namespace

std::string error_text(int code) {
    const cudaError_t error = (cudaError_t)code;
    return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")" + remedy(error);
}

std::string unusable() {
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, (const void*)probe_kernel);
    if (error == cudaSuccess) return "";
    cudaGetLastError();  // or the next launch reports it
    return error_text((int)error);
}

}  // namespace fastmmd::cuda
