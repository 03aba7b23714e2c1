#include "../bindings.hpp"

#include <pybind11/stl.h>

#include "operations.hpp"

namespace fastmmd::cuda {

inline void read_field(py::handle value, Kernel& kernel) {
    static const Fields<Kernel> table = Fields<Kernel>("Kernel")
                                            .FIELD(Kernel, family)
                                            .FIELD(Kernel, alpha)
                                            .FIELD(Kernel, count)
                                            .FIELD(Kernel, bandwidths)
                                            .FIELD(Kernel, weights);
    kernel = table.filled(value);
    expect(kernel.count > 0 && kernel.count <= most_listed, "count: expected 1 to 128");
    for (const Numbers* numbers : {&kernel.bandwidths, &kernel.weights})
        expect(numbers->tensor || numbers->list.count == kernel.count,
               "bandwidths, weights: expected as many as count says");
}

inline void read_field(py::handle value, Sample& sample) {
    static const Fields<Sample> table = Fields<Sample>("Sample")
                                            .FIELD(Sample, count)
                                            .FIELD(Sample, offsets)
                                            .FIELD(Sample, points)
                                            .FIELD(Sample, weights)
                                            .FIELD(Sample, values)
                                            .FIELD(Sample, grad_points)
                                            .FIELD(Sample, grad_weights);
    sample = table.filled(value);
}

namespace {

void check_mmd(const Mmd& call) {
    expect(call.dim > 0, "dim: expected at least 1");
    expect(call.x.count > 0, "x: expected at least one point");
    expect(!call.x.offsets == !call.y.offsets && !(call.x.offsets && call.products),
           "offsets: expected for both samples or none, and without products");
}

void run_tile(const Mmd& call, const Tile& tile, Address workspace, Address stream) {
    launched([&] { return mmd_tile(call, tile, (void*)workspace, (void*)stream); });
}

}  // namespace

void bind_mmd(py::module_& module) {
    py::class_<TermPlace>(module, "TermPlace")
        .def_readonly("rows", &TermPlace::rows)
        .def_readonly("columns", &TermPlace::columns)
        .def_readonly("half", &TermPlace::half)
        .def_readonly("slopes", &TermPlace::slopes);
    FilledClass<Tile>(module, "Tile",
                      [](const Tile& tile) {
                          expect(tile.columns <= tile.stride, "stride: expected at least as many as columns");
                      })
        .FIELD(Tile, term)
        .FIELD(Tile, member)
        .FIELD(Tile, row)
        .FIELD(Tile, column)
        .FIELD(Tile, rows)
        .FIELD(Tile, columns)
        .FIELD(Tile, stride)
        .FIELD(Tile, products)
        .FIELD(Tile, row_norms)
        .FIELD(Tile, column_norms)
        .FIELD(Tile, slope_sums);
    FilledClass<Mmd>(module, "Mmd", &check_mmd)
        .FIELD(Mmd, is_double)
        .FIELD(Mmd, batch)
        .FIELD(Mmd, dim)
        .FIELD(Mmd, x)
        .FIELD(Mmd, y)
        .FIELD(Mmd, kernel)
        .FIELD(Mmd, normalized)
        .FIELD(Mmd, unbiased)
        .FIELD(Mmd, fixed_y)
        .FIELD(Mmd, products)
        .FIELD(Mmd, value)
        .FIELD(Mmd, grad_bandwidths)
        .FIELD(Mmd, grad_kernel_weights)
        .def_property_readonly("workspace", &mmd_workspace)
        .def_property_readonly("terms", &mmd_terms)
        .def("plan", &run<mmd_plan, Mmd>)
        .def("pairs", &run<mmd_pairs, Mmd>)
        .def("tile", &run_tile)
        .def("finish", &run<mmd_finish, Mmd>);
}

}  // namespace fastmmd::cuda
