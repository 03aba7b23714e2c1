// The last step of mmd2: everything that sums over the rows of a member, in their order.
#pragma once
#include "layout.hpp"

namespace fastmmd::FASTMMD_ISA {
namespace {

template <class T> void fill(T* array, int64_t first, int64_t count, double value) {
    for (int64_t i = 0; array && i < count; ++i) array[first + i] = (T)value;
}

template <class T> class Finish {
  public:
    Finish(const Mmd2& task, const Layout<T>& layout, const PlanMemory<T>& plans, double* rung_sums)
        : task_(task),
          layout_(layout),
          plans_(plans),
          rung_sums_(rung_sums),
          dim_(task.dim),
          count_(task.kernel.count) {}

    // Everything that sums over the rows of member b, in their order.
    void operator()(int64_t b) const {
        const Member<T>& member = layout_.member(b);
        if (layout_.is_empty(b)) return empty(b);
        double value = 0;
        for (int side = 0; side < (task_.fixed_y ? 1 : layout_.sides()); ++side) {
            const Side<T>& own = member.sides[side];
            double* of_self = member.terms[side].value;
            const double* of_other = member.cross_value(side);
            const double self = own.total(of_self);
            value += own.a * self;
            if (of_other && side == 0) value -= 2 * own.total(of_other);
            if (!grad_weights(side)) continue;
            // In the normalized weights first, then through their normalization.
            for (int64_t i = 0; i < own.count; ++i) {
                double& g = of_self[i] *= 2 * own.a;
                if (of_other) g -= 2 * of_other[i];
                if (task_.unbiased) g += 2 * own.a * own.a * own.weight(i) * self;
            }
            const double mean = own.total(of_self);
            T* grad = grad_weights(side) + own.base;
            for (int64_t i = 0; i < own.count; ++i) grad[i] = (T)((of_self[i] - mean) * own.scale);
        }
        task_.value[b] = value;
        if (!rung_sums_) return;
        double* sums = rung_sums_ + member.first_strip * 2 * count_;
        add_strips(sums, member.strips, 2 * count_);
        T *bandwidths = (T*)task_.gradients.bandwidths, *weights = (T*)task_.gradients.kernel_weights;
        rung_gradients(plans_[b], sums, bandwidths ? bandwidths + b * count_ : nullptr,
                       weights ? weights + b * count_ : nullptr);
    }

    // Rows of no member have no gradient.
    void clear_behind() const {
        for (int side = 0; side < layout_.sides(); ++side) {
            const int64_t* offsets = sample(side).offsets;
            if (!offsets) continue;
            const int64_t first = offsets[task_.batch], count = sample(side).count - first;
            fill(grad_points(side), first * dim_, count * dim_, 0);
            fill(grad_weights(side), first, count, 0);
        }
    }

  private:
    // A member without points on one side is NaN, without any 0, and so are its gradients.
    void empty(int64_t b) const {
        const int sides = layout_.sides();
        const double value = layout_.side(b, 0).count == layout_.side(b, sides - 1).count ? 0 : NAN;
        task_.value[b] = value;
        for (int side = 0; side < sides; ++side) {
            const Side<T>& own = layout_.side(b, side);
            fill(grad_points(side), own.base * dim_, own.count * dim_, value);
            fill(grad_weights(side), own.base, own.count, value);
        }
        fill((T*)task_.gradients.bandwidths, b * count_, count_, value);
        fill((T*)task_.gradients.kernel_weights, b * count_, count_, value);
    }

    const Sample& sample(int side) const { return side ? task_.y : task_.x; }
    T* grad_points(int side) const { return (T*)(side ? task_.gradients.y : task_.gradients.x); }
    T* grad_weights(int side) const {
        return (T*)(side ? task_.gradients.y_weights : task_.gradients.x_weights);
    }

    const Mmd2& task_;
    const Layout<T>& layout_;
    const PlanMemory<T>& plans_;
    double* const rung_sums_;  // [strips][2 * S]; null: not needed
    const int dim_, count_;
};

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
