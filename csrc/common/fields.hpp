// Structs that Python fills by field name, for the bindings. After
//
//     Fields<Sample> table("Sample");
//     table.FIELD(Sample, count).FIELD(Sample, points);
//
// table.filled(values) makes a Sample of a dict {"count": 3, "points": address}: of keyword arguments, or of
// a dict in place of a nested struct. FilledClass makes a Python class of the struct, Sample(count=3, ...),
// for what several calls share. All fields must be given and no others may be: a name that is missing or
// unknown, or a value of another type, is a TypeError that says which. Pointers are addresses, 0 for what is
// absent; None leaves a field as the struct initializes it.
#pragma once
#include <pybind11/pybind11.h>
#include <string.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "families.hpp"

#define FIELD(Struct, name) field<&Struct::name>(#name)  // of Fields<Struct> or FilledClass<Struct>

namespace fastmmd {

// Reads one field. A type that needs another conversion has an overload in its own namespace.
template <class T> void read_field(pybind11::handle value, T& field) {
    if constexpr (std::is_same_v<T, bool>) {
        if (!PyBool_Check(value.ptr())) throw pybind11::type_error("expected a bool");
        field = value.ptr() == Py_True;
    } else if constexpr (std::is_pointer_v<T>) {
        if (!PyLong_Check(value.ptr())) throw pybind11::type_error("expected an address");
        field = reinterpret_cast<T>(PyLong_AsVoidPtr(value.ptr()));
        if (PyErr_Occurred()) throw pybind11::error_already_set();
    } else {
        field = pybind11::cast<T>(value);
    }
}

inline Family family_of(const char* name) {
    for (int i = 0; i < family_count; ++i)
        if (!strcmp(host::name_of((Family)i), name)) return (Family)i;
    throw std::invalid_argument("unknown family");
}

inline void read_field(pybind11::handle value, Family& family) {
    const char* name = PyUnicode_AsUTF8(value.ptr());
    if (!name) throw pybind11::error_already_set();
    family = family_of(name);
}

template <class Struct> class Fields {
  public:
    explicit Fields(const char* type) : type_(type) {}

    template <auto MEMBER> Fields& field(const char* name) {
        const auto read = [](pybind11::handle value, Struct& to) { read_field(value, to.*MEMBER); };
        fields_.push_back({name, PyUnicode_InternFromString(name), read});
        return *this;
    }

    Struct filled(pybind11::handle values) const {
        if (!PyDict_Check(values.ptr()))
            throw pybind11::type_error("expected a dict of the fields of " + type_);
        Struct result{};
        size_t given = 0;
        for (const Field& field : fields_) {
            PyObject* const value = PyDict_GetItemWithError(values.ptr(), field.key);
            if (!value) break;
            ++given;
            if (value != Py_None) read(field, value, result);
        }
        if (given == fields_.size() && (Py_ssize_t)given == PyDict_Size(values.ptr())) return result;
        std::string expected, got;
        for (const Field& field : fields_) expected += std::string(" ") + field.name;
        for (const auto& item : pybind11::reinterpret_borrow<pybind11::dict>(values))
            got += " " + std::string(pybind11::str(item.first));
        throw pybind11::type_error(type_ + ": expected the fields" + expected + "; got" + got);
    }

  private:
    struct Field {
        const char* name;
        PyObject* key;  // interned, never released: tables outlive the interpreter
        void (*read)(pybind11::handle value, Struct& to);
    };

    void read(const Field& field, pybind11::handle value, Struct& to) const {
        try {
            field.read(value, to);
        } catch (const std::exception& error) {
            throw pybind11::type_error(type_ + "." + field.name + ": got " +
                                       std::string(pybind11::repr(value)) + ": " + error.what());
        }
    }

    std::string type_;
    std::vector<Field> fields_;
};

template <class Struct> class FilledClass : public pybind11::class_<Struct> {
  public:
    // check: throws std::invalid_argument where values do not go together.
    FilledClass(pybind11::module_& module, const char* name, void (*check)(const Struct&) = nullptr)
        : pybind11::class_<Struct>(module, name),
          table_(std::make_shared<Fields<Struct>>(name)) {
        this->def(pybind11::init([check, table = table_](const pybind11::kwargs& values) {
            Struct result = table->filled(values);
            if (check) check(result);
            return result;
        }));
    }

    template <auto MEMBER> FilledClass& field(const char* name) {
        table_->template field<MEMBER>(name);
        return *this;
    }

  private:
    std::shared_ptr<Fields<Struct>> table_;
};

}  // namespace fastmmd
