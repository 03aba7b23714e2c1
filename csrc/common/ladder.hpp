// The bandwidth ladder. exp(-r / (2 s^2)) of bandwidth s is the fourth power of that of 2 s, two squarings;
// for exp(-sqrt(r) / s) it is the square. In the form u = k - 1 a squaring is u (u + 2). So of a chain of
// bandwidths that halve from one to the next only the largest needs an exponential.
#pragma once

namespace fastmmd::FASTMMD_ISA {
namespace {

// Puts the bandwidths into an order in which follows[i] says that rung i halves the bandwidth of rung i - 1.
inline void plan_ladder(const double* bandwidths,  // [count]
                        int count,
                        int* order,       // [count]: rung -> index of its bandwidth
                        bool* follows) {  // [count]
    for (int i = 0; i < count; ++i) {     // insertion sort, descending: count is small, NaN keeps its place
        int position = i;
        for (; position > 0 && bandwidths[order[position - 1]] < bandwidths[i]; --position)
            order[position] = order[position - 1];
        order[position] = i;
    }
    for (int first = 0; first < count;) {  // rungs before `first` are final; the rest is still descending
        follows[first] = false;
        int last = first;
        for (int i = last + 1; i < count; ++i) {
            if (bandwidths[order[i]] != 0.5 * bandwidths[order[last]]) continue;
            const int next = order[i];
            for (int j = i; j > last + 1; --j) order[j] = order[j - 1];
            order[++last] = next;
            follows[last] = true;
        }
        first = last + 1;
    }
}

}  // namespace
}  // namespace fastmmd::FASTMMD_ISA
