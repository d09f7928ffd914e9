// Integer frequencies of a softmax: what entropy coding and mixing work on (mixing/frequencies.py).
#include <algorithm>

#include "common.h"

namespace {

constexpr i64 TOTAL = 1 << 24;

// One row. cap·tanh(z/cap) is cap − 2·cap/(e^(2z/cap) + 1).
template <typename T> void row(const T* logits, uint32_t* out, float* e, i64 size, float cap) {
  float top = -INFINITY;
  if (cap > 0) {
#pragma omp simd
    for (i64 i = 0; i < size; i++) e[i] = cap - 2 * cap / (fast_exp(float(wide(logits[i])) * (2 / cap)) + 1);
  } else {
    for (i64 i = 0; i < size; i++) e[i] = float(wide(logits[i]));
  }
#pragma omp simd reduction(max : top)
  for (i64 i = 0; i < size; i++) top = std::max(top, e[i]);
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (i64 i = 0; i < size; i++) {
    e[i] = fast_exp(e[i] - top);
    sum += e[i];
  }
  // rounded down, and 1 at least; the likeliest gets what is left, e = 1 at it
  const float scale = float(TOTAL - size) / sum;
  i64 left = TOTAL, best = 0;
#pragma omp simd reduction(+ : left)
  for (i64 i = 0; i < size; i++) {
    out[i] = uint32_t(int32_t(e[i] * scale)) + 1;
    left -= out[i];
  }
  while (best + 1 < size && e[best] != 1.0f) best++;
  out[best] = uint32_t(i64(out[best]) + left);
}

}  // namespace

// `out` (rows, size) from logits before the softcap `cap` (0: there is none).
extern "C" void frequencies(i64 dtype, const void* logits, void* out, i64 rows, i64 size, double cap) {
  std::vector<float> e(size);
  for (i64 r = 0; r < rows; r++) {
    BY_DTYPE(dtype, row<T>((const T*)logits + r * size, (uint32_t*)out + r * size, e.data(), size, (float)cap));
  }
}
