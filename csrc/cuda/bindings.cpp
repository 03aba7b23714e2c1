// The Python module fastmmd._cuda: converts arguments and launches, nothing else. Tensors come as addresses
// (0: absent or not needed) whose owner keeps them alive until the stream is done; every launcher takes its
// workspace and the stream last. Flags are py::bool_, which takes nothing but a bool: a number out of place
// is an error.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
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

// count, offsets, points, mass, values, grad_points, grad_mass
typedef std::tuple<int64_t, Address, Address, Address, Address, Address, Address> Sample;

MmdSample sample_of(const Sample& sample) {
    const auto [count, offsets, points, mass, values, grad_points, grad_mass] = sample;
    return {count, at<int64_t>(offsets), at(points), at(mass), at(values), at(grad_points), at(grad_mass)};
}

KernelName name_of(const std::string& name) {
    static const std::map<std::string, KernelName> names = {
        {"gaussian", KernelName::gaussian}, {"laplacian", KernelName::laplacian},
        {"imq", KernelName::imq},           {"rational_quadratic", KernelName::rational_quadratic},
        {"energy", KernelName::energy},
    };
    const auto found = names.find(name);
    if (found == names.end()) throw std::invalid_argument("kernel: got \"" + name + "\"");
    return found->second;
}

// Each of bandwidths and weights is a list, or the address of as many numbers as `count` says.
Mmd make_mmd(py::bool_ is_double, int64_t batch, int dim, const Sample& x, const Sample& y,
             const std::string& kernel, double alpha, int count, const Numbers& bandwidths,
             const Numbers& weights, Address bandwidth_values, Address weight_values, py::bool_ normalized,
             py::bool_ unbiased, py::bool_ products, Address value, Address grad_bandwidths,
             Address grad_kernel_weights) {
    check(dim > 0 && count > 0, "dim, count: expected at least 1");
    check(count <= most_listed, "bandwidths: got more than 128");
    check(bandwidth_values || (int)bandwidths.size() == count, "bandwidths: not as many as count says");
    check(weight_values || (int)weights.size() == count, "weights: not as many as count says");
    check(std::get<0>(x) > 0, "samples: expected at least one point");
    check(!std::get<1>(x) == !std::get<1>(y) && !(std::get<1>(x) && products),
          "offsets: expected for both samples or none, and without products");
    return {is_double,
            batch,
            dim,
            {sample_of(x), sample_of(y)},
            {name_of(kernel), alpha, count, list_of(bandwidths), list_of(weights), at(bandwidth_values),
             at(weight_values)},
            normalized,
            unbiased,
            products,
            at<double>(value),
            at(grad_bandwidths),
            at(grad_kernel_weights)};
}

// rows, columns, half, and where in the workspace the slopes are (-1: none)
std::vector<std::tuple<int, int, bool, int64_t>> term_places(const Mmd& call) {
    char* const base = (char*)256;  // not null, which would mean that there is no memory yet
    const MmdTerms terms = mmd_terms(call, base);
    std::vector<std::tuple<int, int, bool, int64_t>> result;
    for (int t = 0; t < terms.count; ++t) {
        const MmdTerm& term = terms.terms[t];
        const int64_t slopes = term.slopes ? (char*)term.slopes - base : -1;
        result.emplace_back(term.rows, term.columns, term.half, slopes);
    }
    return result;
}

void run_tile(const Mmd& call, int term, int64_t member, int64_t row, int64_t column, int64_t rows,
              int64_t columns, int64_t stride, Address products, Address row_norms, Address column_norms,
              Address slope_sums, Address workspace, Address stream) {
    check(columns <= stride, "stride: expected at least as many as columns");
    const MmdTile tile = {term,
                          member,
                          row,
                          column,
                          rows,
                          columns,
                          stride,
                          at(products),
                          at(row_norms),
                          at(column_norms),
                          at<double>(slope_sums)};
    check(mmd_tile(call, tile, at(workspace), at(stream)));
}

template <Status (*LAUNCHER)(const Mmd&, void*, void*)>
void run_mmd(const Mmd& call, Address workspace, Address stream) {
    check(LAUNCHER(call, at(workspace), at(stream)));
}

void bind_mmd(py::module_& module) {
    py::class_<Mmd>(module, "Mmd")
        .def(py::init(&make_mmd))
        .def_property_readonly("workspace", &mmd_workspace)
        .def_property_readonly("terms", &term_places)
        .def("plan", &run_mmd<mmd_plan>)
        .def("pairs", &run_mmd<mmd_pairs>)
        .def("tile", &run_tile)
        .def("finish", &run_mmd<mmd_finish>);
}

// --- fourier ---

Features features_of(Address key, int64_t count, const Numbers& bandwidths, const Numbers& weights) {
    check(count > 0 && count < (1 << 30), "count: expected 1 to 2^30 - 1");
    check(!bandwidths.empty() && bandwidths.size() == weights.size(),
          "weights: expected one for each bandwidth");
    check(count % bandwidths.size() == 0, "count: expected a multiple of the number of bandwidths");
    return {at<int64_t>(key), (int)count, list_of(bandwidths), list_of(weights)};
}

FourierSum make_fourier_sum(py::bool_ is_double, int64_t batch, int64_t n, int dim, Address x,
                            Address sample_weights, Address key, int64_t count, const Numbers& bandwidths,
                            const Numbers& weights, Address out) {
    check(dim > 0, "dim: expected at least 1");
    return {is_double, batch, n, dim, at(x), at(sample_weights), features_of(key, count, bandwidths, weights),
            at(out)};
}

FourierFunction make_fourier_function(py::bool_ is_double, int64_t batch, int64_t n, int dim, Address x,
                                      Address coefficients, Address key, int64_t count,
                                      const Numbers& bandwidths, const Numbers& weights, double times,
                                      Address factor, Address value, Address gradient) {
    check(dim > 0, "dim: expected at least 1");
    return {is_double,
            batch,
            n,
            dim,
            at(x),
            at(coefficients),
            features_of(key, count, bandwidths, weights),
            times,
            at(factor),
            at(value),
            at(gradient)};
}

// A step of alpha where delta is 0.
FourierDiscrepancy make_fourier_discrepancy(py::bool_ is_double, py::bool_ alpha_is_double,
                                            int64_t draws_count, int64_t codes_count, int dim, Address draws,
                                            Address codes, Address alpha, double rate, Address key,
                                            int64_t count, const Numbers& bandwidths, const Numbers& weights,
                                            Address delta, Address coefficients) {
    check(dim > 0 && draws_count > 0 && codes_count > 0, "dim, draws, codes: expected at least 1");
    return {
        is_double, alpha_is_double, draws_count, codes_count, dim,
        at(draws), at(codes),       at(alpha),   rate,        features_of(key, count, bandwidths, weights),
        at(delta), at(coefficients)};
}

void run_fourier_frequencies(py::bool_ is_double, int dim, Address key, int64_t count,
                             const Numbers& bandwidths, const Numbers& weights, Address out, Address stream) {
    check(dim > 0, "dim: expected at least 1");
    const FourierFrequencies task = {is_double, dim, features_of(key, count, bandwidths, weights), at(out)};
    check(fourier_frequencies(task, at(stream)));
}

template <class Task, Status (*LAUNCHER)(const Task&, void*, void*)>
void run_fourier(const Task& task, Address workspace, Address stream) {
    check(LAUNCHER(task, at(workspace), at(stream)));
}

void bind_fourier(py::module_& module) {
    py::class_<FourierSum>(module, "FourierSum")
        .def(py::init(&make_fourier_sum))
        .def_property_readonly("workspace", &fourier_sum_workspace)
        .def("run", &run_fourier<FourierSum, fourier_sum>);
    py::class_<FourierFunction>(module, "FourierFunction")
        .def(py::init(&make_fourier_function))
        .def_property_readonly("workspace", &fourier_function_workspace)
        .def("run", &run_fourier<FourierFunction, fourier_function>);
    py::class_<FourierDiscrepancy>(module, "FourierDiscrepancy")
        .def(py::init(&make_fourier_discrepancy))
        .def_property_readonly("workspace", &fourier_discrepancy_workspace)
        .def("run", &run_fourier<FourierDiscrepancy, fourier_discrepancy>);
    module.def("fourier_frequencies", &run_fourier_frequencies);
}

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
    bind_mmd(module);
    bind_fourier(module);
    bind_parzen(module);
    module.def("unusable", &unusable, "Why kernels do not run on the current device; empty where they do.");
}
