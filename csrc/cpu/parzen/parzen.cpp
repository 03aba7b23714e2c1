// Parzen windows: the state of points after some samples, and the gradients.
#include "direct.hpp"
#include "products.hpp"

namespace fastmmd::FASTMMD_ISA {

bool parzen(const Parzen& task) {
    if (task.products) return task.is_double ? ProductRun<double>(task).run() : ProductRun<float>(task).run();
    return task.is_double ? DirectRun<double>(task).run() : DirectRun<float>(task).run();
}

}  // namespace fastmmd::FASTMMD_ISA
