// The Python module fastmmd._native: fills calls by field name and dispatches, nothing else. A function takes
// keyword arguments, which are the fields of its call in calls.hpp, with dicts for nested structs. Tensors
// come as addresses (0: absent or not needed) whose owner keeps them alive during the call; the GIL is
// released meanwhile.
#include <omp.h>
#include <pthread.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <new>
#include <stdexcept>
#include <string>

#include "build_summary.hpp"
#include "capability.hpp"
#include "fields.hpp"

namespace py = pybind11;
using namespace fastmmd;
using namespace fastmmd::host;

namespace {

const Operations& operations() {
    static const Operations& chosen = choose_operations();
    return chosen;
}

// libgomp's threads do not exist in a forked child, and entering it there waits for them for ever.
std::atomic<bool> forked{false};

int usable_threads(int threads) { return forked || threads < 1 ? 1 : threads; }

void check_dim(int dim) { check(dim > 0, "dim: expected at least 1"); }

template <class Call> void run(bool (*operation)(const Call&), const Call& call) {
    bool done;
    {
        py::gil_scoped_release release;
        done = operation(call);
    }
    if (!done) throw std::bad_alloc();
}

// --- the calls ---

template <class Call> Fields<Call> call_fields(const char* name) {
    Fields<Call> fields(name);
    fields.template field<&Call::is_double>("is_double").template field<&Call::threads>("threads");
    return fields;
}

template <class Call> Call filled(const Fields<Call>& table, const py::kwargs& fields) {
    Call call = table.filled(fields);
    call.threads = usable_threads(call.threads);
    return call;
}

void check_offsets(const Sample& sample, int64_t batch) {
    const int64_t* offsets = sample.offsets;
    bool valid = offsets[0] == 0 && offsets[batch] <= sample.count;
    for (int64_t b = 0; b < batch; ++b) valid = valid && offsets[b] <= offsets[b + 1];
    check(valid, "offsets: expected numbers ascending from 0 to at most the number of rows");
}

void mmd2(const py::kwargs& fields) {
    typedef KernelCall<Mmd2> Call;
    static const auto table = call_fields<Call>("mmd2")
                                  .FIELD(Call, batch)
                                  .FIELD(Call, dim)
                                  .FIELD(Call, x)
                                  .FIELD(Call, y)
                                  .field<&Call::kernel_fields>("kernel")
                                  .FIELD(Call, unbiased)
                                  .FIELD(Call, fixed_y)
                                  .FIELD(Call, product_points)
                                  .FIELD(Call, value)
                                  .FIELD(Call, gradients);
    Call call = filled(table, fields);
    const Sample &x = call.x, &y = call.y;
    check_dim(call.dim);
    check(x.count > 0 && !y.points == (call.batch == 0 || y.count == 0), "x, y: expected at least one point");
    check(!x.offsets == !y.offsets && (!x.offsets || y.points),
          "offsets: expected them for both samples or for none");
    if (x.offsets) check_offsets(x, call.batch), check_offsets(y, call.batch);
    call.kernel = call.kernel_fields.view();
    run<Mmd2>(operations().mmd2, call);
}

void witness(const py::kwargs& fields) {
    typedef KernelCall<Witness> Call;
    static const auto table = call_fields<Call>("witness")
                                  .FIELD(Call, p)
                                  .FIELD(Call, n)
                                  .FIELD(Call, dim)
                                  .FIELD(Call, points)
                                  .FIELD(Call, samples)
                                  .FIELD(Call, weights)
                                  .FIELD(Call, products)
                                  .field<&Call::kernel_fields>("kernel")
                                  .FIELD(Call, value)
                                  .FIELD(Call, grad)
                                  .FIELD(Call, gradients);
    Call call = filled(table, fields);
    check_dim(call.dim);
    check(call.p > 0 && call.n > 0, "p, n: expected at least one point");
    call.kernel = call.kernel_fields.view();
    run<Witness>(operations().witness, call);
}

void fourier_sum(const py::kwargs& fields) {
    typedef FeaturesCall<FourierSum> Call;
    static const auto table = call_fields<Call>("fourier_sum")
                                  .FIELD(Call, batch)
                                  .FIELD(Call, n)
                                  .FIELD(Call, dim)
                                  .FIELD(Call, x)
                                  .FIELD(Call, weights)
                                  .field<&Call::features_fields>("features")
                                  .FIELD(Call, out);
    Call call = filled(table, fields);
    check_dim(call.dim);
    call.features = call.features_fields.view();
    run<FourierSum>(operations().fourier_sum, call);
}

void fourier_function(const py::kwargs& fields) {
    typedef FeaturesCall<FourierFunction> Call;
    static const auto table = call_fields<Call>("fourier_function")
                                  .FIELD(Call, batch)
                                  .FIELD(Call, n)
                                  .FIELD(Call, dim)
                                  .FIELD(Call, x)
                                  .FIELD(Call, coefficients)
                                  .field<&Call::features_fields>("features")
                                  .FIELD(Call, value)
                                  .FIELD(Call, grad);
    Call call = filled(table, fields);
    check_dim(call.dim);
    call.features = call.features_fields.view();
    run<FourierFunction>(operations().fourier_function, call);
}

void fourier_frequencies(const py::kwargs& fields) {
    typedef FeaturesCall<FourierFrequencies> Call;
    static const auto table = call_fields<Call>("fourier_frequencies")
                                  .FIELD(Call, dim)
                                  .field<&Call::features_fields>("features")
                                  .FIELD(Call, out);
    Call call = filled(table, fields);
    check_dim(call.dim);
    call.features = call.features_fields.view();
    run<FourierFrequencies>(operations().fourier_frequencies, call);
}

bool parzen(const py::kwargs& fields) {
    typedef SigmasCall<Parzen> Call;
    static const auto table = call_fields<Call>("parzen")
                                  .FIELD(Call, m)
                                  .FIELD(Call, n)
                                  .FIELD(Call, dim)
                                  .FIELD(Call, points)
                                  .FIELD(Call, samples)
                                  .FIELD(Call, products)
                                  .field<&Call::sigma_numbers>("sigmas")
                                  .FIELD(Call, minimum)
                                  .FIELD(Call, sums)
                                  .FIELD(Call, grad)
                                  .FIELD(Call, grad_points)
                                  .FIELD(Call, grad_samples);
    Call call = filled(table, fields);
    check_dim(call.dim);
    call.count = (int)call.sigma_numbers.size(), call.sigmas = call.sigma_numbers.data();
    bool too_far = false;
    call.too_far = &too_far;
    run<Parzen>(operations().parzen, call);
    return !too_far;
}

// --- for tests ---

// The table of common/families.hpp at one bandwidth, alpha and q = r / s^2, for fastmmd/kernels.py's to be
// compared with.
py::dict family_facts(const std::string& name, double s, double alpha, double q) {
    return with_family(family_of(name.c_str()), [&](auto family) {
        typedef decltype(family) F;
        py::dict facts;
        facts["bounded"] = F::bounded, facts["smooth"] = F::smooth, facts["takes_root"] = F::takes_root;
        facts["has_bandwidths"] = F::has_bandwidths, facts["has_alpha"] = F::has_alpha;
        facts["squarings"] = F::squarings;
        facts["steepness"] = F::steepness(s);
        facts["rate"] = F::template rate<double>(s, alpha);
        facts["float_rate"] = F::template rate<float>(s, alpha);
        facts["value"] = F::template value<LibraryMath>(q, alpha);
        facts["relative_slope"] = F::template relative_slope<LibraryMath>(q, alpha);
        return facts;
    });
}

std::vector<std::string> family_names() {
    std::vector<std::string> names;
    for (int i = 0; i < family_count; ++i) names.push_back(host::name_of((Family)i));
    return names;
}

template <class T> py::dict limits() {
    py::dict limits;
    limits["rate"] = (double)Limits<T>::rate, limits["steepness"] = (double)Limits<T>::steepness;
    limits["argument"] = (double)Limits<T>::argument, limits["divisor"] = (double)Limits<T>::divisor;
    return limits;
}

void elementwise(const std::string& name, py::bool_ is_double, int64_t count, uintptr_t in, uintptr_t out) {
    const Elementwise task = {is_double, name.c_str(), count, (const void*)in, (void*)out};
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
    module.doc() = "Compiled CPU kernels of fastmmd; see csrc/cpu/calls.hpp for the arguments.";
    module.attr("build_summary") = FASTMMD_BUILD_SUMMARY;
    module.def("capability", [] { return operations().capability; });
    module.def("capabilities", &usable_capabilities);
    module.def("openmp_threads", [] { return usable_threads(omp_get_max_threads()); });
    module.def("mmd2", &mmd2);
    module.def("witness", &witness);
    module.def("fourier_sum", &fourier_sum);
    module.def("fourier_function", &fourier_function);
    module.def("fourier_frequencies", &fourier_frequencies);
    module.def("parzen", &parzen);
    module.def("elementwise", &elementwise);
    module.def("family_names", &family_names);
    module.def("family_facts", &family_facts, py::arg("family"), py::arg("s"), py::arg("alpha"),
               py::arg("q"));
    module.def("limits", [](py::bool_ is_double) { return is_double ? limits<double>() : limits<float>(); });
}
