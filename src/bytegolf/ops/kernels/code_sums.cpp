// What followed each n-gram of a text, added up as vectors (ops/code_sums.py).
#include "common.h"

// For each position t of ids (size) and each length n = 2 … lengths + 1: the row of the n-gram that ends at t takes in
// codes[n − 2][ids[t + 1]] (width), and its count 1. The hash is that of model/embed.py: Σ (id + 1)·powers, and the
// highest `bits` bits of `mixer` times it; what lies before a token `bos` counts as nothing.
extern "C" void code_sums(i64, const void* ids, i64 size, const void* powers, i64 mixer, i64 bos, const void* codes,
                          i64 alphabet, i64 lengths, i64 bits, i64 width, void* sums, void* counts) {
  const i64 *id = (const i64*)ids, *power = (const i64*)powers;
  const float* code = (const float*)codes;
  // (why) A length has rows of its own, so no two threads add to one, and the order of the sums never changes.
#pragma omp parallel for schedule(static)
  for (i64 n = 0; n < lengths; n++) {
    float *sum = (float*)sums + ((n << bits) * width), *count = (float*)counts + (n << bits);
    const float* own = code + n * alphabet * width;
    for (i64 t = 0; t + 1 < size; t++) {
      uint64_t key = 0;
      for (i64 back = 0; back <= n + 1 && back <= t; back++) {
        key += uint64_t(id[t - back] + 1) * uint64_t(power[back]);
        if (id[t - back] == bos) break;
      }
      const i64 row = i64((key * uint64_t(mixer)) >> (64 - bits));
      const float* from = own + id[t + 1] * width;
      float* to = sum + row * width;
#pragma omp simd
      for (i64 d = 0; d < width; d++) to[d] += from[d];
      count[row] += 1;
    }
  }
}
