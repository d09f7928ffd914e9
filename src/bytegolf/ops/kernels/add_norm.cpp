// A pre-norm block's residual stream: r = x + h in the wide type, n = r·s·w with s = (mean(r²) + ε)^−½, in one pass each
// way (ops/add_norm.py).
//
// Legend: T dtype of activations, W of the stream and parameters; rows R, width D; all contiguous.
#include "rows.h"

namespace {

// h and total may be null: nothing is added, and r is not written.
template <typename T>
void forward(const Wide<T>* x, const T* h, const Wide<T>* gain, Wide<T>* total, T* normed, Wide<T>* scale, i64 rows,
             i64 width, double eps) {
  using W = Wide<T>;
  over_rows(runs_of(rows, width), rows, [=](int, i64 first, i64 last) {
    std::vector<W> buffer(width);
    for (i64 r = first; r < last; r++) {
      const W* xr = x + r * width;
      W* t = total ? total + r * width : buffer.data();
      W sum = 0;
      if (h) {
        const T* hr = h + r * width;
#pragma omp simd reduction(+ : sum)
        for (i64 d = 0; d < width; d++) {
          t[d] = xr[d] + wide(hr[d]);
          sum += t[d] * t[d];
        }
      } else {
#pragma omp simd reduction(+ : sum)
        for (i64 d = 0; d < width; d++) {
          t[d] = xr[d];
          sum += t[d] * t[d];
        }
      }
      const W s = scale[r] = W(1) / std::sqrt(sum / W(width) + W(eps));
      T* n = normed + r * width;
#pragma omp simd
      for (i64 d = 0; d < width; d++) n[d] = narrow<T>(t[d] * s * gain[d]);
    }
  });
}

// gt, gn: gradients of r and n (gt null: zero). dx = gt + s·(gn·w − r·s²·mean(gn·w·r)), dh the same in T (or null),
// dw = Σ gn·r·s.
template <typename T>
void backward(const Wide<T>* gt, const T* gn, const Wide<T>* total, const Wide<T>* gain, const Wide<T>* scale,
              Wide<T>* dx, T* dh, Wide<T>* d_gain, i64 rows, i64 width) {
  using W = Wide<T>;
  const int runs = runs_of(rows, width);
  std::vector<W> partial(runs * width, W(0));
  W* sums = partial.data();
  const std::vector<W> none(width, W(0));
  const W* zeros = none.data();
  over_rows(runs, rows, [=](int run, i64 first, i64 last) {
    W* own = sums + run * width;
    for (i64 r = first; r < last; r++) {
      const W *t = total + r * width, *g = gt ? gt + r * width : zeros, s = scale[r];
      const T* n = gn + r * width;
      W along = 0;
#pragma omp simd reduction(+ : along)
      for (i64 d = 0; d < width; d++) along += wide(n[d]) * gain[d] * t[d];
      const W mean = along / W(width) * s * s;
      W* to = dx + r * width;
#pragma omp simd
      for (i64 d = 0; d < width; d++) {
        own[d] += wide(n[d]) * t[d] * s;
        to[d] = g[d] + s * (wide(n[d]) * gain[d] - t[d] * mean);
      }
      if (!dh) continue;
      T* branch = dh + r * width;
#pragma omp simd
      for (i64 d = 0; d < width; d++) branch[d] = narrow<T>(to[d]);
    }
  });
  add_runs(partial, runs, width, d_gain);
}

}  // namespace

extern "C" void add_norm_forward(i64 dtype, const void* x, const void* h, const void* gain, void* total, void* normed,
                                 void* scale, i64 rows, i64 width, double eps) {
  BY_DTYPE(dtype, forward<T>((const Wide<T>*)x, (const T*)h, (const Wide<T>*)gain, (Wide<T>*)total, (T*)normed,
                             (Wide<T>*)scale, rows, width, eps));
}

extern "C" void add_norm_backward(i64 dtype, const void* gt, const void* gn, const void* total, const void* gain,
                                  const void* scale, void* dx, void* dh, void* d_gain, i64 rows, i64 width) {
  BY_DTYPE(dtype, backward<T>((const Wide<T>*)gt, (const T*)gn, (const Wide<T>*)total, (const Wide<T>*)gain,
                              (const Wide<T>*)scale, (Wide<T>*)dx, (T*)dh, (Wide<T>*)d_gain, rows, width));
}
