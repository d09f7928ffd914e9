// RMS norm over rows: y = x / sqrt(mean(x²) + ε).
#include "common.h"

namespace {

template <typename T>
void forward(const T* x, T* y, Wide<T>* scale, i64 rows, i64 width, double eps) {
  using W = Wide<T>;
#pragma omp parallel for schedule(static)
  for (i64 r = 0; r < rows; r++) {
    const T* in = x + r * width;
    T* out = y + r * width;
    W sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 d = 0; d < width; d++) sum += wide(in[d]) * wide(in[d]);
    W s = W(1) / std::sqrt(sum / W(width) + W(eps));
    scale[r] = s;
#pragma omp simd
    for (i64 d = 0; d < width; d++) out[d] = narrow<T>(wide(in[d]) * s);
  }
}

template <typename T>
void backward(const T* g, const T* y, const Wide<T>* scale, T* dx, i64 rows, i64 width) {
  using W = Wide<T>;
#pragma omp parallel for schedule(static)
  for (i64 r = 0; r < rows; r++) {
    const T *gr = g + r * width, *yr = y + r * width;
    W dot = 0;
#pragma omp simd reduction(+ : dot)
    for (i64 d = 0; d < width; d++) dot += wide(gr[d]) * wide(yr[d]);
    W mean = dot / W(width), s = scale[r];
#pragma omp simd
    for (i64 d = 0; d < width; d++) dx[r * width + d] = narrow<T>((wide(gr[d]) - wide(yr[d]) * mean) * s);
  }
}

}  // namespace

extern "C" void rms_norm_forward(i64 dtype, const void* x, void* y, void* scale, i64 rows, i64 width, double eps) {
  BY_DTYPE(dtype, forward<T>((const T*)x, (T*)y, (Wide<T>*)scale, rows, width, eps));
}

extern "C" void rms_norm_backward(i64 dtype, const void* g, const void* y, const void* scale, void* dx, i64 rows,
                                  i64 width) {
  BY_DTYPE(dtype, backward<T>((const T*)g, (const T*)y, (const Wide<T>*)scale, (T*)dx, rows, width));
}
