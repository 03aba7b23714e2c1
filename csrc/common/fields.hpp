// Structs that Python fills by field name, for the bindings. After
//
//     Fields<Sample>(module, "Sample").field<&Sample::count>("count").field<&Sample::points>("points");
//
// Python writes Sample(count=3, points=address). All fields must be given and no others may be: a name that
// is missing or unknown, or a value of another type, is a TypeError that says which. Pointers are addresses,
// 0 for what is absent; None leaves a field as the struct initializes it.
#pragma once
#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <type_traits>
#include <vector>

namespace fastmmd {

// Reads one field. A type that needs another conversion has an overload in its own namespace.
template <class T> void read_field(pybind11::handle value, T& field) {
    if constexpr (std::is_same_v<T, bool>) {
        if (!PyBool_Check(value.ptr())) throw pybind11::type_error("expected a bool");
        field = value.ptr() == Py_True;
    } else if constexpr (std::is_pointer_v<T>) {
        field = reinterpret_cast<T>(pybind11::cast<uintptr_t>(value));
    } else {
        field = pybind11::cast<T>(value);
    }
}

template <class Struct> class Fields : public pybind11::class_<Struct> {
  public:
    // check: throws std::invalid_argument where values do not go together.
    Fields(pybind11::module_& module, const char* name, void (*check)(const Struct&) = nullptr)
        : pybind11::class_<Struct>(module, name),
          table_(std::make_shared<Table>(Table{name, {}})) {
        this->def(pybind11::init([check, table = table_](const pybind11::kwargs& values) {
            Struct result = table->filled(values);
            if (check) check(result);
            return result;
        }));
    }

    template <auto MEMBER> Fields& field(const char* name) {
        const auto read = [](pybind11::handle value, Struct& to) { read_field(value, to.*MEMBER); };
        table_->fields.push_back(
            {pybind11::reinterpret_steal<pybind11::str>(PyUnicode_InternFromString(name)), read});
        return *this;
    }

  private:
    struct Field {
        pybind11::str name;
        void (*read)(pybind11::handle value, Struct& to);
    };

    struct Table {
        std::string type;
        std::vector<Field> fields;

        Struct filled(const pybind11::dict& values) const {
            Struct result{};
            size_t given = 0;
            for (const Field& field : fields) {
                PyObject* const value = PyDict_GetItemWithError(values.ptr(), field.name.ptr());
                if (!value) break;
                ++given;
                if (value != Py_None) read(field, value, result);
            }
            if (given == fields.size() && given == values.size()) return result;
            std::string expected, got;
            for (const Field& field : fields) expected += " " + std::string(field.name);
            for (const auto& item : values) got += " " + std::string(pybind11::str(item.first));
            throw pybind11::type_error(type + ": expected the fields" + expected + "; got" + got);
        }

        void read(const Field& field, pybind11::handle value, Struct& to) const {
            try {
                field.read(value, to);
            } catch (const std::exception& error) {
                throw pybind11::type_error(type + "." + std::string(field.name) + ": got " +
                                           std::string(pybind11::repr(value)) + ": " + error.what());
            }
        }
    };
    std::shared_ptr<Table> table_;
};

}  // namespace fastmmd
