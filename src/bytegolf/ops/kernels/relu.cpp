// y = relu(x)², and its gradient from y alone: 2·relu(x) = 2·√y, so that x need not be kept.
#include "rows.h"

namespace {

template <typename T> void forward(const T* x, T* y, i64 size) {
  using W = Wide<T>;
  over_rows(runs_of(size, 1), size, [=](int, i64 first, i64 last) {
#pragma omp simd
    for (i64 i = first; i < last; i++) {
      const W v = wide(x[i]), positive = v < W(0) ? W(0) : v;  // NaN goes through
      y[i] = narrow<T>(positive * positive);
    }
  });
}

template <typename T> void backward(const T* g, const T* y, T* dx, i64 size) {
  using W = Wide<T>;
  over_rows(runs_of(size, 1), size, [=](int, i64 first, i64 last) {
#pragma omp simd
    // y = 0 where x ≤ 0, so the root is 0 there too: no comparison is needed
    for (i64 i = first; i < last; i++) dx[i] = narrow<T>(W(2) * std::sqrt(wide(y[i])) * wide(g[i]));
  });
}

}  // namespace

extern "C" void relu_squared_forward(i64 dtype, const void* x, void* y, i64 size) {
  BY_DTYPE(dtype, forward<T>((const T*)x, (T*)y, size));
}

extern "C" void relu_squared_backward(i64 dtype, const void* g, const void* y, void* dx, i64 size) {
  BY_DTYPE(dtype, backward<T>((const T*)g, (const T*)y, (T*)dx, size));
}
