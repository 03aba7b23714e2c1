// The Python module fastmmd._native: converts arguments and dispatches, nothing else. Tensors come as
// addresses (0: absent or not needed) whose owner keeps them alive during the call; the GIL is released
// meanwhile. Flags are py::bool_, which takes nothing but a bool: a number out of place is an error.
#include <omp.h>
#include <pthread.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "build_summary.hpp"
#include "cpu/capability.hpp"

namespace py = pybind11;
using namespace fastmmd;
using namespace fastmmd::host;

namespace {

typedef uintptr_t Address;
typedef std::vector<double> Numbers;

template <class T = void> T* at(Address address) { return reinterpret_cast<T*>(address); }

const Operations& operations() {
    static const Operations& chosen = choose_operations();
    return chosen;
}

// libgomp's threads do not exist in a forked child, and entering it there waits for them for ever.
std::atomic<bool> forked{false};

int usable_threads(int threads) { return forked || threads < 1 ? 1 : threads; }

void check(bool valid, const char* message) {
    if (!valid) throw std::invalid_argument(message);
}

void check_dim(int dim) { check(dim > 0, "dim: expected at least 1"); }

template <class Task> void call(bool (*operation)(const Task&), const Task& task) {
    bool done;
    {
        py::gil_scoped_release release;
        done = operation(task);
    }
    if (!done) throw std::bad_alloc();
}

Family family_of(const std::string& name) {
    for (int i = 0; i < family_count; ++i)
        if (with_family((Family)i, [](auto family) { return family.name; }) == name) return (Family)i;
    throw std::invalid_argument("kernel: got \"" + name + "\"");
}

Kernel kernel_of(const std::string& name, const Numbers& bandwidths, const Numbers& weights, double alpha) {
    check(bandwidths.size() == weights.size(), "kernel: bandwidths and weights differ in length");
    return {family_of(name), (int)bandwidths.size(), bandwidths.data(), weights.data(), alpha};
}

Features features_of(Address key, int64_t count, const Numbers& bandwidths, const Numbers& weights) {
    check(!bandwidths.empty() && bandwidths.size() == weights.size(),
          "features: bandwidths and weights differ in length or are empty");
    check(count > 0 && count % (int64_t)bandwidths.size() == 0,
          "count: expected a positive multiple of the number of bandwidths");
    return {at<const int64_t>(key), count, (int)bandwidths.size(), bandwidths.data(), weights.data()};
}

void check_offsets(const int64_t* offsets, int64_t batch, int64_t rows) {
    bool valid = offsets[0] == 0 && offsets[batch] <= rows;
    for (int64_t b = 0; b < batch; ++b) valid = valid && offsets[b] <= offsets[b + 1];
    check(valid, "offsets: expected numbers ascending from 0 to at most the number of rows");
}

void mmd2(py::bool_ is_double, int threads, int64_t batch, int64_t n, int64_t m, int dim, Address x,
          Address y, Address x_weights, Address y_weights, Address x_offsets, Address y_offsets,
          const std::string& kernel, const Numbers& bandwidths, const Numbers& weights, double alpha,
          py::bool_ unbiased, Address value, Address grad_x, Address grad_y, Address grad_x_weights,
          Address grad_y_weights, Address grad_bandwidths, Address grad_kernel_weights) {
    check_dim(dim);
    check(n > 0 && (y == 0) == (batch == 0 || m == 0), "n, m: expected at least one point");
    check((x_offsets == 0) == (y_offsets == 0) && (x_offsets == 0 || y != 0),
          "offsets: expected them for both samples or for none");
    if (x_offsets) {
        check_offsets(at<const int64_t>(x_offsets), batch, n);
        check_offsets(at<const int64_t>(y_offsets), batch, m);
    }
    call<Mmd2>(operations().mmd2, {is_double,
                                   usable_threads(threads),
                                   batch,
                                   n,
                                   m,
                                   dim,
                                   at(x),
                                   at(y),
                                   at(x_weights),
                                   at(y_weights),
                                   at<const int64_t>(x_offsets),
                                   at<const int64_t>(y_offsets),
                                   kernel_of(kernel, bandwidths, weights, alpha),
                                   unbiased,
                                   at<double>(value),
                                   at(grad_x),
                                   at(grad_y),
                                   at(grad_x_weights),
                                   at(grad_y_weights),
                                   at(grad_bandwidths),
                                   at(grad_kernel_weights)});
}

// count, points, norms, mass, slopes, grad, scale
typedef std::tuple<int64_t, Address, Address, Address, Address, Address, double> Side;

TileSide side_of(const Side& side) {
    const auto [count, points, norms, mass, slopes, grad, scale] = side;
    return {count, at(points), at(norms), at(mass), at<double>(slopes), at(grad), scale};
}

double mmd_tile(py::bool_ is_double, int threads, int dim, int64_t stride, Address products, const Side& rows,
                const Side& columns, py::bool_ diagonal, const std::string& kernel, const Numbers& bandwidths,
                const Numbers& weights, double alpha, double farthest_r, double typical_r, py::bool_ may_fold,
                double offset, double times, Address value, double rung_factor, Address grad_bandwidths,
                Address grad_kernel_weights) {
    check_dim(dim);
    check(stride % 16 == 0 && std::get<0>(columns) <= stride,
          "stride: expected a multiple of 16, the most lanes of a vector");
    double shift = 0;
    call<MmdTile>(operations().mmd_tile,
                  {is_double, usable_threads(threads), dim, stride, at(products), side_of(rows),
                   side_of(columns), diagonal, kernel_of(kernel, bandwidths, weights, alpha), farthest_r,
                   typical_r, may_fold, offset, times, at<double>(value), rung_factor,
                   at<double>(grad_bandwidths), at<double>(grad_kernel_weights), &shift});
    return shift;
}

void witness(py::bool_ is_double, int threads, int64_t p, int64_t n, int dim, Address points, Address samples,
             Address sample_weights, const std::string& kernel, const Numbers& bandwidths,
             const Numbers& weights, double alpha, Address value, Address grad, Address grad_points,
             Address grad_samples, Address grad_weights, Address grad_bandwidths,
             Address grad_kernel_weights) {
    check_dim(dim);
    check(p > 0 && n > 0, "p, n: expected at least one point");
    call<Witness>(operations().witness,
                  {is_double, usable_threads(threads), p, n, dim, at(points), at(samples), at(sample_weights),
                   kernel_of(kernel, bandwidths, weights, alpha), at(value), at(grad), at(grad_points),
                   at(grad_samples), at(grad_weights), at(grad_bandwidths), at(grad_kernel_weights)});
}

void fourier_sum(py::bool_ is_double, int threads, int64_t batch, int64_t n, int dim, Address x,
                 Address sample_weights, Address key, int64_t count, const Numbers& bandwidths,
                 const Numbers& weights, Address out) {
    check_dim(dim);
    call<FourierSum>(operations().fourier_sum,
                     {is_double, usable_threads(threads), batch, n, dim, at(x), at(sample_weights),
                      features_of(key, count, bandwidths, weights), at(out)});
}

void fourier_function(py::bool_ is_double, int threads, int64_t batch, int64_t n, int dim, Address x,
                      Address coefficients, Address key, int64_t count, const Numbers& bandwidths,
                      const Numbers& weights, Address value, Address grad) {
    check_dim(dim);
    call<FourierFunction>(operations().fourier_function,
                          {is_double, usable_threads(threads), batch, n, dim, at(x), at(coefficients),
                           features_of(key, count, bandwidths, weights), at(value), at(grad)});
}

void fourier_frequencies(py::bool_ is_double, int threads, int dim, Address key, int64_t count,
                         const Numbers& bandwidths, const Numbers& weights, Address out) {
    check_dim(dim);
    call<FourierFrequencies>(
        operations().fourier_frequencies,
        {is_double, usable_threads(threads), dim, features_of(key, count, bandwidths, weights), at(out)});
}

void parzen_tile(py::bool_ is_double, int threads, int64_t rows, int64_t columns, int64_t stride,
                 Address products, Address row_norms, Address column_norms, const Numbers& sigmas,
                 int64_t points, Address minimum, Address sums, Address grad) {
    check(stride % 16 == 0 && columns <= stride,
          "stride: expected a multiple of 16, the most lanes of a vector");
    call<ParzenTile>(operations().parzen_tile,
                     {is_double, usable_threads(threads), rows, columns, stride, at(products), at(row_norms),
                      at(column_norms), (int)sigmas.size(), sigmas.data(), points, at(minimum),
                      at<double>(sums), at(grad)});
}

void parzen_direct(py::bool_ is_double, int threads, int64_t m, int64_t n, int dim, Address points,
                   Address samples, const Numbers& sigmas, Address minimum, Address sums, Address grad,
                   Address grad_points, Address grad_samples) {
    check_dim(dim);
    call<ParzenDirect>(
        operations().parzen_direct,
        {is_double, usable_threads(threads), m, n, dim, at(points), at(samples), (int)sigmas.size(),
         sigmas.data(), at(minimum), at<double>(sums), at(grad), at(grad_points), at(grad_samples)});
}

void elementwise(const std::string& name, py::bool_ is_double, int64_t count, Address in, Address out) {
    const Elementwise task = {is_double, name.c_str(), count, at(in), at(out)};
    bool known;
    {
        py::gil_scoped_release release;
        known = operations().elementwise(task);
    }
    if (!known) throw std::invalid_argument("name: got \"" + name + "\"");
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    pthread_atfork(nullptr, nullptr, [] { forked = true; });
    module.doc() = "Compiled CPU kernels of fastmmd; see csrc/cpu/operations.hpp for the arguments.";
    module.attr("build_summary") = FASTMMD_BUILD_SUMMARY;
    module.def("capability", [] { return operations().capability; });
    module.def("capabilities", &usable_capabilities);
    module.def("openmp_threads", [] { return usable_threads(omp_get_max_threads()); });
    module.def("mmd2", &mmd2);
    module.def("mmd_tile", &mmd_tile);
    module.def("witness", &witness);
    module.def("fourier_sum", &fourier_sum);
    module.def("fourier_function", &fourier_function);
    module.def("fourier_frequencies", &fourier_frequencies);
    module.def("parzen_tile", &parzen_tile);
    module.def("parzen_direct", &parzen_direct);
    module.def("elementwise", &elementwise);
}
