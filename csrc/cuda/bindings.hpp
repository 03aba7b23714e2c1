// What the bindings of all operations share. Tensors come as addresses, whose owner keeps them alive until
// the stream is done. Each task is a struct that Python fills by field name (common/fields.hpp), with a
// property `workspace` where it needs one, and methods that launch, which take the workspace and the stream
// last.
#pragma once
#include <stdexcept>
#include <string>

#include "../common/fields.hpp"
#include "device.hpp"
#include "launcher.hpp"

namespace fastmmd::cuda {

namespace py = pybind11;
typedef uintptr_t Address;

void bind_mmd(py::module_&);
void bind_fourier(py::module_&);
void bind_parzen(py::module_&);

inline void expect(bool valid, const char* message) {
    if (!valid) throw std::invalid_argument(message);
}

// Launches without the interpreter's lock: while one waits for room in a full queue, other threads run.
template <class Launch> void launched(Launch launch) {
    Status status;
    {
        py::gil_scoped_release release;
        status = launch();
    }
    if (status.code == 0) return;
    throw std::runtime_error(std::string("CUDA kernel ") + status.kernel + ": " + error_text(status.code));
}

inline void read_field(py::handle value, List& list) {
    const auto numbers =
        py::reinterpret_steal<py::object>(PySequence_Fast(value.ptr(), "expected numbers or an address"));
    if (!numbers) throw py::error_already_set();
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(numbers.ptr());
    expect(count <= most_listed, "expected at most 128 numbers");
    list.count = (int)count;
    for (int s = 0; s < list.count; ++s) {
        list.values[s] = PyFloat_AsDouble(PySequence_Fast_GET_ITEM(numbers.ptr(), s));
        if (list.values[s] == -1 && PyErr_Occurred()) throw py::error_already_set();
    }
}

// The address of a tensor's, or a sequence.
inline void read_field(py::handle value, Numbers& numbers) {
    if (PyLong_Check(value.ptr()))
        numbers.tensor = (const void*)py::cast<Address>(value);
    else
        read_field(value, numbers.list);
}

template <auto LAUNCHER, class Task> void run(const Task& task, Address workspace, Address stream) {
    launched([&] { return LAUNCHER(task, (void*)workspace, (void*)stream); });
}
template <auto LAUNCHER, class Task> void run_without_workspace(const Task& task, Address stream) {
    launched([&] { return LAUNCHER(task, (void*)stream); });
}

}  // namespace fastmmd::cuda
