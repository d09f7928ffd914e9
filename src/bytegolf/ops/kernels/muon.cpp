// The two passes of a Muon step around its matrix products: over fp32 masters and gradients, bf16 in between.
#include "common.h"

// momentum ← μ·momentum + gradient; update ← gradient + μ·momentum (Nesterov). `size` elements each.
extern "C" void muon_gather(i64, void* momentum, const void* gradient, void* update, i64 size, double mu) {
  float* m = (float*)momentum;
  const float* g = (const float*)gradient;
  bf16* out = (bf16*)update;
  const float factor = (float)mu;  // in fp32 as PyTorch's own kernels take it
#pragma omp parallel for simd schedule(static)
  for (i64 i = 0; i < size; i++) {
    const float next = factor * m[i] + g[i];
    m[i] = next;
    out[i] = narrow<bf16>(g[i] + factor * next);
  }
}

// weight ← shrink·weight − rate·update.
extern "C" void muon_apply(i64, void* weight, const void* update, i64 size, double rate, double shrink) {
  float* w = (float*)weight;
  const bf16* u = (const bf16*)update;
  const float r = (float)rate, s = (float)shrink;
#pragma omp parallel for simd schedule(static)
  for (i64 i = 0; i < size; i++) w[i] = s * w[i] - r * wide(u[i]);
}
