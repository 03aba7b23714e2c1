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

ParzenTile make_parzen_tile(py::bool_ is_double, int64_t rows, int64_t columns, int64_t stride, int dim,
                            Address products, Address points, Address samples, Address point_norms,
                            Address sample_norms, const Numbers& sigmas, int64_t points_in_all,
                            Address minimum, Address sums, Address grad) {
    check(columns <= stride && stride % 4 == 0, "stride: expected a multiple of 4, at least columns");
    check(!sigmas.empty(), "sigmas: expected at least one");
    return {is_double,       rows,          columns,     stride,           dim,
            at(products),    at(points),    at(samples), at(point_norms),  at(sample_norms),
            list_of(sigmas), points_in_all, at(minimum), at<double>(sums), at(grad)};
}

ParzenDirect make_parzen_direct(py::bool_ is_double, int64_t m, int64_t n, int dim, Address points,
                                Address samples, const Numbers& sigmas, Address minimum, Address sums,
                                Address grad, Address grad_points, Address grad_samples) {
    check(dim > 0 && dim <= 32, "dim: expected 1 to 32");
    check(!sigmas.empty(), "sigmas: expected at least one");
    return {is_double,
            m,
            n,
            dim,
            at(points),
            at(samples),
            list_of(sigmas),
            at(minimum),
            at<double>(sums),
            at(grad),
            at(grad_points),
            at(grad_samples)};
}

template <class Task, Status (*LAUNCHER)(const Task&, void*, void*)>
void run_parzen(const Task& task, Address workspace, Address stream) {
    check(LAUNCHER(task, at(workspace), at(stream)));
}

void gather(py::bool_ is_double, int64_t rows, int64_t columns, int64_t stride, int dim, Address coefficients,
            Address products, Address row_points, Address column_points, Address row_norms,
            Address column_norms, double far, Address gradient, Address stream) {
    const ParzenGather task = {is_double,
                               rows,
                               columns,
                               stride,
                               dim,
                               at(coefficients),
                               at(products),
                               at(row_points),
                               at(column_points),
                               at(row_norms),
                               at(column_norms),
                               far,
                               at<double>(gradient)};
    check(parzen_gather(task, at(stream)));
}

void norms(py::bool_ is_double, int64_t count, int dim, Address points, Address norms, Address stream) {
    check(parzen_norms(is_double, count, dim, at(points), at(norms), at(stream)));
}

void bind_parzen(py::module_& module) {
    py::class_<ParzenTile>(module, "ParzenTile")
        .def(py::init(&make_parzen_tile))
        .def_property_readonly("workspace", &parzen_tile_workspace)
        .def("run", &run_parzen<ParzenTile, parzen_tile>);
    py::class_<ParzenDirect>(module, "ParzenDirect")
        .def(py::init(&make_parzen_direct))
        .def_property_readonly("workspace", &parzen_direct_workspace)
        .def("run", &run_parzen<ParzenDirect, parzen_direct>);
    module.def("parzen_gather", &gather);
    module.def("parzen_norms", &norms);
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
    module.doc() = "Compiled CUDA kernels of fastmmd; see csrc/cuda/operations.hpp for the arguments.";
    module.attr("build_summary") = FASTMMD_CUDA_BUILD_SUMMARY;
    bind_parzen(module);
    module.def("unusable", &unusable, "Why kernels do not run on the current device; empty where they do.");
}
