// What calls nest, as Python fills it: dicts with the names of fastmmd/backends/calls.py.
#pragma once
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "../common/fields.hpp"
#include "calls.hpp"

namespace fastmmd {

typedef std::vector<double> Numbers;

inline void check(bool valid, const char* message) {
    if (!valid) throw std::invalid_argument(message);
}

// pybind11's own conversion takes several times as long, which a tiny call notices.
inline void read_field(pybind11::handle value, Numbers& numbers) {
    const auto items = pybind11::reinterpret_steal<pybind11::object>(
        PySequence_Fast(value.ptr(), "expected a sequence of numbers"));
    if (!items) throw pybind11::error_already_set();
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(items.ptr());
    numbers.resize(count);
    for (Py_ssize_t i = 0; i < count; ++i)
        numbers[i] = PyFloat_AsDouble(PySequence_Fast_GET_ITEM(items.ptr(), i));
    if (PyErr_Occurred()) throw pybind11::error_already_set();
}

struct KernelFields {
    Family family;
    Numbers bandwidths, weights;
    double alpha;

    Kernel view() const {
        check(bandwidths.size() == weights.size(), "kernel: bandwidths and weights differ in length");
        return {family, (int)bandwidths.size(), bandwidths.data(), weights.data(), alpha};
    }
};

struct FeaturesFields {
    const int64_t* key;
    int64_t count;
    Numbers bandwidths, kernel_weights;

    Features view() const {
        check(!bandwidths.empty() && bandwidths.size() == kernel_weights.size(),
              "features: bandwidths and kernel_weights differ in length or are empty");
        check(count > 0 && count % (int64_t)bandwidths.size() == 0,
              "count: expected a positive multiple of the number of bandwidths");
        return {key, count, (int)bandwidths.size(), bandwidths.data(), kernel_weights.data()};
    }
};

// A call with what it points to.
template <class Call> struct KernelCall : Call {
    KernelFields kernel_fields;
};
template <class Call> struct FeaturesCall : Call {
    FeaturesFields features_fields;
};
template <class Call> struct SigmasCall : Call {
    Numbers sigma_numbers;
};

inline void read_field(pybind11::handle value, KernelFields& kernel) {
    static const auto table = Fields<KernelFields>("Kernel")
                                  .FIELD(KernelFields, family)
                                  .FIELD(KernelFields, bandwidths)
                                  .FIELD(KernelFields, weights)
                                  .FIELD(KernelFields, alpha);
    kernel = table.filled(value);
}

inline void read_field(pybind11::handle value, FeaturesFields& features) {
    static const auto table = Fields<FeaturesFields>("Features")
                                  .FIELD(FeaturesFields, key)
                                  .FIELD(FeaturesFields, count)
                                  .FIELD(FeaturesFields, bandwidths)
                                  .FIELD(FeaturesFields, kernel_weights);
    features = table.filled(value);
}

inline void read_field(pybind11::handle value, Sample& sample) {
    static const auto table = Fields<Sample>("Sample")
                                  .FIELD(Sample, count)
                                  .FIELD(Sample, points)
                                  .FIELD(Sample, weights)
                                  .FIELD(Sample, offsets);
    sample = table.filled(value);
}

inline void read_field(pybind11::handle value, Mmd2Inputs& gradients) {
    static const auto table = Fields<Mmd2Inputs>("Mmd2Inputs")
                                  .FIELD(Mmd2Inputs, x)
                                  .FIELD(Mmd2Inputs, y)
                                  .FIELD(Mmd2Inputs, x_weights)
                                  .FIELD(Mmd2Inputs, y_weights)
                                  .FIELD(Mmd2Inputs, bandwidths)
                                  .FIELD(Mmd2Inputs, kernel_weights);
    gradients = table.filled(value);
}

inline void read_field(pybind11::handle value, WitnessInputs& gradients) {
    static const auto table = Fields<WitnessInputs>("WitnessInputs")
                                  .FIELD(WitnessInputs, points)
                                  .FIELD(WitnessInputs, samples)
                                  .FIELD(WitnessInputs, weights)
                                  .FIELD(WitnessInputs, bandwidths)
                                  .FIELD(WitnessInputs, kernel_weights);
    gradients = table.filled(value);
}

}  // namespace fastmmd
