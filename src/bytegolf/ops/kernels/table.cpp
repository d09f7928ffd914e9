// The update of an embedding table by row (ops/sparse_rmsprop.py): only rows with a gradient are touched.
#include "common.h"

// `rows` (size) is sorted; gradients[order[i]] (width) belongs to row rows[i], and those of one row are summed.
// squares ← β·squares + (1 − β)·g²; counts ← counts + 1; table ← table − lr·g·√(1 − β^counts) / (√squares + ε).
extern "C" void row_adam(i64, void* table, void* squares, void* counts, const void* rows, const void* order,
                         const void* gradients, i64 size, i64 width, double lr, double beta, double eps) {
  float *w = (float*)table, *v = (float*)squares, *n = (float*)counts;
  const i64 *row = (const i64*)rows, *from = (const i64*)order;
  const float* g = (const float*)gradients;
  const float keep = (float)beta, take = (float)(1 - beta), tiny = (float)eps;
#pragma omp parallel
  {
    const i64 threads = omp_get_num_threads(), me = omp_get_thread_num();
    i64 at = size * me / threads, end = size * (me + 1) / threads;
    // A row belongs to the thread in whose share it starts, so no two write to one. Of the sorted rows 3 3 5 5 5 8 and
    // two threads, the shares are 3 3 5 and 5 5 8: the first goes on to the end of 5, the second begins at 8.
    while (at > 0 && at < size && row[at] == row[at - 1]) at++;
    std::vector<float> sum(width);
    while (at < end) {
      const i64 r = row[at];
      std::memset(sum.data(), 0, width * sizeof(float));
      for (; at < size && row[at] == r; at++) {
        const float* part = g + from[at] * width;
#pragma omp simd
        for (i64 d = 0; d < width; d++) sum[d] += part[d];
      }
      const float count = n[r] += 1;
      const float rate = (float)(lr * std::sqrt(1 - std::pow(beta, (double)count)));
      float *wr = w + r * width, *vr = v + r * width;
#pragma omp simd
      for (i64 d = 0; d < width; d++) {
        const float square = keep * vr[d] + take * sum[d] * sum[d];
        vr[d] = square;
        wr[d] -= rate * sum[d] / (std::sqrt(square) + tiny);
      }
    }
  }
}
