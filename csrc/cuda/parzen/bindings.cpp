#include "../bindings.hpp"

#include "operations.hpp"

namespace fastmmd::cuda {
namespace {

void check_tile(const ParzenTile& task) {
    expect(task.columns <= task.stride && task.stride % 4 == 0,
           "stride: expected a multiple of 4, at least columns");
    expect(task.sigmas.count > 0, "sigmas: expected at least one");
}

void check_direct(const ParzenDirect& task) {
    expect(task.dim > 0 && task.dim <= 32, "dim: expected 1 to 32");
    expect(task.sigmas.count > 0, "sigmas: expected at least one");
}

}  // namespace

void bind_parzen(py::module_& module) {
    FilledClass<ParzenTile>(module, "ParzenTile", &check_tile)
        .FIELD(ParzenTile, is_double)
        .FIELD(ParzenTile, rows)
        .FIELD(ParzenTile, columns)
        .FIELD(ParzenTile, stride)
        .FIELD(ParzenTile, dim)
        .FIELD(ParzenTile, products)
        .FIELD(ParzenTile, points)
        .FIELD(ParzenTile, samples)
        .FIELD(ParzenTile, point_norms)
        .FIELD(ParzenTile, sample_norms)
        .FIELD(ParzenTile, sigmas)
        .FIELD(ParzenTile, points_in_all)
        .FIELD(ParzenTile, minimum)
        .FIELD(ParzenTile, sums)
        .FIELD(ParzenTile, grad)
        .def_property_readonly("workspace", &parzen_tile_workspace)
        .def("run", &run<parzen_tile, ParzenTile>);
    FilledClass<ParzenDirect>(module, "ParzenDirect", &check_direct)
        .FIELD(ParzenDirect, is_double)
        .FIELD(ParzenDirect, m)
        .FIELD(ParzenDirect, n)
        .FIELD(ParzenDirect, dim)
        .FIELD(ParzenDirect, points)
        .FIELD(ParzenDirect, samples)
        .FIELD(ParzenDirect, sigmas)
        .FIELD(ParzenDirect, minimum)
        .FIELD(ParzenDirect, sums)
        .FIELD(ParzenDirect, grad)
        .FIELD(ParzenDirect, grad_points)
        .FIELD(ParzenDirect, grad_samples)
        .def_property_readonly("workspace", &parzen_direct_workspace)
        .def("run", &run<parzen_direct, ParzenDirect>);
    FilledClass<ParzenGather>(module, "ParzenGather")
        .FIELD(ParzenGather, is_double)
        .FIELD(ParzenGather, rows)
        .FIELD(ParzenGather, columns)
        .FIELD(ParzenGather, stride)
        .FIELD(ParzenGather, dim)
        .FIELD(ParzenGather, coefficients)
        .FIELD(ParzenGather, products)
        .FIELD(ParzenGather, row_points)
        .FIELD(ParzenGather, column_points)
        .FIELD(ParzenGather, row_norms)
        .FIELD(ParzenGather, column_norms)
        .FIELD(ParzenGather, far)
        .FIELD(ParzenGather, gradient)
        .def("run", &run_without_workspace<parzen_gather, ParzenGather>);
    FilledClass<ParzenNorms>(module, "ParzenNorms")
        .FIELD(ParzenNorms, is_double)
        .FIELD(ParzenNorms, count)
        .FIELD(ParzenNorms, dim)
        .FIELD(ParzenNorms, points)
        .FIELD(ParzenNorms, norms)
        .def("run", &run_without_workspace<parzen_norms, ParzenNorms>);
}

}  // namespace fastmmd::cuda
