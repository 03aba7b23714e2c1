// The elementary functions on arrays: what the tests measure.
#include "calls.hpp"
#include "math.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

template <class T> Vector<T> sinpi_of(Vector<T> t) {
    Vector<T> sine, cosine;
    sincospi_of<T>(t, sine, cosine);
    return sine;
}

template <class T> Vector<T> cospi_of(Vector<T> t) {
    Vector<T> sine, cosine;
    sincospi_of<T>(t, sine, cosine);
    return cosine;
}

// The phase of cos(pi t) and sin(pi t), in half turns: t again, and the amplitude, 1 again.
template <class T> Vector<T> phase_of(Vector<T> t) {
    Vector<T> sine, cosine;
    sincospi_of<T>(t, sine, cosine);
    return wave_of<T>(cosine, sine).phase;
}

template <class T> Vector<T> exp2_of(Vector<T> x) { return near_exp2<T>(x, T(1)); }

template <class T> bool run(const Elementwise& task) {
    Vector<T> (*function)(Vector<T>) = nullptr;
    if (!strcmp(task.name, "exp")) function = exp_of<T>;
    if (!strcmp(task.name, "exp2")) function = exp2_of<T>;
    if (!strcmp(task.name, "expm1")) function = expm1_of<T>;
    if (!strcmp(task.name, "log")) function = log_of<T>;
    if (!strcmp(task.name, "log1p")) function = log1p_of<T>;
    if (!strcmp(task.name, "sinpi")) function = sinpi_of<T>;
    if (!strcmp(task.name, "cospi")) function = cospi_of<T>;
    if (!strcmp(task.name, "phase")) function = phase_of<T>;
    for (int64_t i = 0; function && i < task.count; i += lanes<T>) {
        const int used = task.count - i < lanes<T> ? (int)(task.count - i) : lanes<T>;
        T values[lanes<T>];
        for (int lane = 0; lane < lanes<T>; ++lane)
            values[lane] = ((const T*)task.in)[i + (lane < used ? lane : 0)];
        store<T>(values, function(load<T>(values)));
        memcpy((T*)task.out + i, values, used * sizeof(T));
    }
    return function != nullptr;
}

}  // namespace

bool elementwise(const Elementwise& task) { return task.is_double ? run<double>(task) : run<float>(task); }

}  // namespace fastmmd::FASTMMD_ISA
