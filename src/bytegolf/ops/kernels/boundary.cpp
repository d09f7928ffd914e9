// The router's p_t = ½(1 − cos(q_t, k_{t−1})) in [0, 1], and p = 1 at the start of each sequence.
//
// Legend: B·L rows in sequences of L (length), D width.
#include "rows.h"

namespace {

template <typename W> struct Pair {
  W dot, q, k;  // q·k, |q|, |k|; the lengths at least ε
};

template <typename T> Pair<Wide<T>> measure(const T* q, const T* k, i64 width, double eps) {
  using W = Wide<T>;
  W dot = 0, qq = 0, kk = 0;
#pragma omp simd reduction(+ : dot, qq, kk)
  for (i64 d = 0; d < width; d++) {
    const W a = wide(q[d]), b = wide(k[d]);
    dot += a * b;
    qq += a * a;
    kk += b * b;
  }
  const W least = W(eps), nq = std::sqrt(qq), nk = std::sqrt(kk);
  return {dot, nq < least ? least : nq, nk < least ? least : nk};
}

template <typename T>
void forward(const T* q, const T* k, Wide<T>* p, i64 rows, i64 length, i64 width, double eps) {
  using W = Wide<T>;
  over_rows(runs_of(rows, width), rows, [=](int, i64 first, i64 last) {
    for (i64 r = first; r < last; r++) {
      p[r] = 1;
      if (r % length == 0) continue;
      const auto pair = measure(q + r * width, k + (r - 1) * width, width, eps);
      const W free = W(0.5) * (1 - pair.dot / (pair.q * pair.k));
      p[r] = free < 0 ? W(0) : (free > 1 ? W(1) : free);
    }
  });
}

// With c = q·k / (|q||k|), dc/dq = k / (|q||k|) − c·q / |q|²: what k adds across q, less what of it lies along q, since
// a longer q has the same cosine. p = ½(1 − c) turns the sign and halves.
// Row r pairs q_r with k_{r−1}; so the last k of a sequence and its first q are in no pair, and their gradients zero.
template <typename T>
void backward(const Wide<T>* g, const T* q, const T* k, T* dq, T* dk, i64 rows, i64 length, i64 width, double eps) {
  using W = Wide<T>;
  over_rows(runs_of(rows, width), rows, [=](int, i64 first, i64 last) {
    for (i64 r = first; r < last; r++) {
      if (r % length == length - 1) std::fill(dk + r * width, dk + (r + 1) * width, T(0));
      if (r % length == 0) {
        std::fill(dq + r * width, dq + (r + 1) * width, T(0));
        continue;
      }
      const T *qr = q + r * width, *kr = k + (r - 1) * width;
      T *dqr = dq + r * width, *dkr = dk + (r - 1) * width;
      const auto pair = measure(qr, kr, width, eps);
      const W cosine = pair.dot / (pair.q * pair.k), free = W(0.5) * (1 - cosine);
      const W slope = free < 0 || free > 1 ? W(0) : W(-0.5) * g[r];
      const W across = slope / (pair.q * pair.k);
      // a length held up at ε does not depend on its vector
      const W along_q = pair.q > W(eps) ? slope * cosine / (pair.q * pair.q) : W(0);
      const W along_k = pair.k > W(eps) ? slope * cosine / (pair.k * pair.k) : W(0);
#pragma omp simd
      for (i64 d = 0; d < width; d++) {
        const W a = wide(qr[d]), b = wide(kr[d]);
        dqr[d] = narrow<T>(across * b - along_q * a);
        dkr[d] = narrow<T>(across * a - along_k * b);
      }
    }
  });
}

}  // namespace

extern "C" void boundary_forward(i64 dtype, const void* q, const void* k, void* p, i64 rows, i64 length, i64 width,
                                 double eps) {
  BY_DTYPE(dtype, forward<T>((const T*)q, (const T*)k, (Wide<T>*)p, rows, length, width, eps));
}

extern "C" void boundary_backward(i64 dtype, const void* g, const void* q, const void* k, void* dq, void* dk,
                                  i64 rows, i64 length, i64 width, double eps) {
  BY_DTYPE(dtype, backward<T>((const Wide<T>*)g, (const T*)q, (const T*)k, (T*)dq, (T*)dk, rows, length, width, eps));
}
