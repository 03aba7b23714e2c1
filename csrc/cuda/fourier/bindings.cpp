#include "../bindings.hpp"

#include "operations.hpp"

namespace fastmmd::cuda {

inline void read_field(py::handle value, Features& features) {
    static const Fields<Features> table = Fields<Features>("Features")
                                              .FIELD(Features, key)
                                              .FIELD(Features, count)
                                              .FIELD(Features, bandwidths)
                                              .FIELD(Features, kernel_weights);
    features = table.filled(value);
    const int parts = features.bandwidths.count;
    expect(features.count > 0 && features.count < (1 << 30), "count: expected 1 to 2^30 - 1");
    expect(parts > 0 && parts == features.kernel_weights.count,
           "kernel_weights: expected one for each bandwidth");
    expect(features.count % parts == 0, "count: expected a multiple of the number of bandwidths");
}

namespace {

template <class Task> void check_dim(const Task& task) { expect(task.dim > 0, "dim: expected at least 1"); }

void check_discrepancy(const FourierDiscrepancy& task) {
    check_dim(task);
    expect(task.draws_count > 0 && task.codes_count > 0, "draws, codes: expected at least one point");
}

}  // namespace

void bind_fourier(py::module_& module) {
    FilledClass<FourierSum>(module, "FourierSum", &check_dim<FourierSum>)
        .FIELD(FourierSum, is_double)
        .FIELD(FourierSum, batch)
        .FIELD(FourierSum, n)
        .FIELD(FourierSum, dim)
        .FIELD(FourierSum, x)
        .FIELD(FourierSum, weights)
        .FIELD(FourierSum, features)
        .FIELD(FourierSum, out)
        .def_property_readonly("workspace", &fourier_sum_workspace)
        .def("run", &run<fourier_sum, FourierSum>);
    FilledClass<FourierFunction>(module, "FourierFunction", &check_dim<FourierFunction>)
        .FIELD(FourierFunction, is_double)
        .FIELD(FourierFunction, batch)
        .FIELD(FourierFunction, n)
        .FIELD(FourierFunction, dim)
        .FIELD(FourierFunction, x)
        .FIELD(FourierFunction, coefficients)
        .FIELD(FourierFunction, features)
        .FIELD(FourierFunction, times)
        .FIELD(FourierFunction, factor)
        .FIELD(FourierFunction, value)
        .FIELD(FourierFunction, gradient)
        .def_property_readonly("workspace", &fourier_function_workspace)
        .def("run", &run<fourier_function, FourierFunction>);
    FilledClass<FourierDiscrepancy>(module, "FourierDiscrepancy", &check_discrepancy)
        .FIELD(FourierDiscrepancy, is_double)
        .FIELD(FourierDiscrepancy, alpha_is_double)
        .FIELD(FourierDiscrepancy, draws_count)
        .FIELD(FourierDiscrepancy, codes_count)
        .FIELD(FourierDiscrepancy, dim)
        .FIELD(FourierDiscrepancy, draws)
        .FIELD(FourierDiscrepancy, codes)
        .FIELD(FourierDiscrepancy, alpha)
        .FIELD(FourierDiscrepancy, rate)
        .FIELD(FourierDiscrepancy, features)
        .FIELD(FourierDiscrepancy, delta)
        .FIELD(FourierDiscrepancy, slopes)
        .def_property_readonly("workspace", &fourier_discrepancy_workspace)
        .def("run", &run<fourier_discrepancy, FourierDiscrepancy>);
    FilledClass<FourierFrequencies>(module, "FourierFrequencies", &check_dim<FourierFrequencies>)
        .FIELD(FourierFrequencies, is_double)
        .FIELD(FourierFrequencies, dim)
        .FIELD(FourierFrequencies, features)
        .FIELD(FourierFrequencies, out)
        .def("run", &run_without_workspace<fourier_frequencies, FourierFrequencies>);
}

}  // namespace fastmmd::cuda
