// The residual stream read by a norm, in one pass over the activations each way:
//
//   t = x + s₁·y₁ + s₂·y₂      (0 to 2 branches y with scales s a channel)
//   u = m₀·t + m₁·x₀           (or u = t where there is no mix)
//   n = u / sqrt(mean(u²) + ε)
//
// Legend: T dtype of activations, W of statistics and parameters; rows R, width D; all contiguous.
#include "rows.h"

namespace {

template <typename T> struct Inputs {
  const T *x, *y1, *y2, *x0;
  const Wide<T> *s1, *s2, *m0, *m1;
};

// A copy in local variables, from the element `at` of the activations on: what a loop must see to vectorise.
template <int BRANCHES, bool MIX, typename T> inline Inputs<T> row_of(const Inputs<T>& in, i64 at) {
  Inputs<T> row = in;
  row.x += at;
  if constexpr (BRANCHES > 0) row.y1 += at;
  if constexpr (BRANCHES > 1) row.y2 += at;
  if constexpr (MIX) row.x0 += at;
  return row;
}

template <int BRANCHES, typename T> inline Wide<T> joined(const Inputs<T>& in, i64 d) {
  Wide<T> t = wide(in.x[d]);
  if constexpr (BRANCHES > 0) t += in.s1[d] * wide(in.y1[d]);
  if constexpr (BRANCHES > 1) t += in.s2[d] * wide(in.y2[d]);
  return t;
}

template <int BRANCHES, bool MIX, typename T>
void forward(const Inputs<T> all, T* u, T* n, Wide<T>* scale, i64 rows, i64 width, double eps) {
  using W = Wide<T>;
  over_rows(runs_of(rows, width), rows, [=](int, i64 first, i64 last) {
    std::vector<W> buffer(width);
    W* row = buffer.data();
    for (i64 r = first; r < last; r++) {
      const i64 start = r * width;
      const Inputs<T> in = row_of<BRANCHES, MIX>(all, start);
      W sum = 0;
#pragma omp simd reduction(+ : sum)
      for (i64 d = 0; d < width; d++) {
        W t = joined<BRANCHES>(in, d);
        if constexpr (MIX) t = in.m0[d] * t + in.m1[d] * wide(in.x0[d]);
        row[d] = t;
        sum += t * t;
      }
      const W s = W(1) / std::sqrt(sum / W(width) + W(eps));
      scale[r] = s;
#pragma omp simd
      for (i64 d = 0; d < width; d++) n[start + d] = narrow<T>(row[d] * s);
      if (!u) continue;
#pragma omp simd
      for (i64 d = 0; d < width; d++) u[start + d] = narrow<T>(row[d]);
    }
  });
}

template <typename T> struct Gradients {
  T *x, *y1, *y2, *x0;
  Wide<T>* sums;  // of s₁, s₂, m₀, m₁: D each
};

// gu, gn: gradients of u and n; a null one is zero.
//
// With s = (mean(u²) + ε)^−½ and n = s·u, what arrives at u is g = gu + s·(gn − n·mean(gn·n)): a norm lets nothing
// through along n itself, as scaling u does not change it. From there on
//   dm₀ = Σ g·t, dm₁ = Σ g·x₀, dx₀ = m₁·g;  then with g·m₀:  dx = g, dyᵢ = sᵢ·g, dsᵢ = Σ g·yᵢ.
// t is worked out anew from x and the branches, which are kept for their own gradients anyway.
template <int BRANCHES, bool MIX, typename T>
void backward(const T* gu, const T* gn, const T* n, const Wide<T>* scale, const Inputs<T> all, const Gradients<T> out,
              i64 rows, i64 width) {
  using W = Wide<T>;
  const int runs = runs_of(rows, width);
  const std::vector<T> zeros(width, T(0));
  std::vector<W> partial(runs * 4 * width, W(0));
  W* sums = partial.data();
  const T* none = zeros.data();
  over_rows(runs, rows, [=](int run, i64 first, i64 last) {
    W *ds1 = sums + run * 4 * width, *ds2 = ds1 + width, *dm0 = ds2 + width, *dm1 = dm0 + width;
    for (i64 r = first; r < last; r++) {
      const i64 start = r * width;
      const Inputs<T> in = row_of<BRANCHES, MIX>(all, start);
      T *dx = out.x + start, *dy1 = out.y1 + start, *dy2 = out.y2 + start, *dx0 = out.x0 + start;
      const T *gur = gu ? gu + start : none, *gnr = gn ? gn + start : none, *nr = n + start;
      W dot = 0;
#pragma omp simd reduction(+ : dot)
      for (i64 d = 0; d < width; d++) dot += wide(gnr[d]) * wide(nr[d]);
      const W mean = dot / W(width), s = scale[r];
#pragma omp simd
      for (i64 d = 0; d < width; d++) {
        W g = wide(gur[d]) + (wide(gnr[d]) - wide(nr[d]) * mean) * s;
        if constexpr (MIX) {
          dm0[d] += g * joined<BRANCHES>(in, d);
          dm1[d] += g * wide(in.x0[d]);
          dx0[d] = narrow<T>(g * in.m1[d]);
          g *= in.m0[d];
        }
        dx[d] = narrow<T>(g);
        if constexpr (BRANCHES > 0) {
          ds1[d] += g * wide(in.y1[d]);
          dy1[d] = narrow<T>(g * in.s1[d]);
        }
        if constexpr (BRANCHES > 1) {
          ds2[d] += g * wide(in.y2[d]);
          dy2[d] = narrow<T>(g * in.s2[d]);
        }
      }
    }
  });
  add_runs(partial, runs, 4 * width, out.sums);
}

template <typename T>
Inputs<T> inputs(const void* x, const void* y1, const void* s1, const void* y2, const void* s2, const void* x0,
                 const void* mix, i64 width) {
  using W = Wide<T>;
  const W* m = (const W*)mix;
  return {(const T*)x,  (const T*)y1, (const T*)y2, (const T*)x0,
          (const W*)s1, (const W*)s2, m,            m ? m + width : m};
}

}  // namespace

// Runs CALL with B the number of branches and M whether there is a mix.
#define BY_SHAPE(y1, y2, mix, CALL)                                                        \
  do {                                                                                     \
    if (mix) {                                                                             \
      constexpr bool M = true;                                                             \
      if (y2) { constexpr int B = 2; CALL; } else if (y1) { constexpr int B = 1; CALL; }   \
      else { constexpr int B = 0; CALL; }                                                  \
    } else {                                                                               \
      constexpr bool M = false;                                                            \
      if (y2) { constexpr int B = 2; CALL; } else if (y1) { constexpr int B = 1; CALL; }   \
      else { constexpr int B = 0; CALL; }                                                  \
    }                                                                                      \
  } while (0)

extern "C" void residual_forward(i64 dtype, const void* x, const void* y1, const void* s1, const void* y2,
                                 const void* s2, const void* x0, const void* mix, void* u, void* n, void* scale,
                                 i64 rows, i64 width, double eps) {
  BY_DTYPE(dtype, BY_SHAPE(y1, y2, mix, (forward<B, M>(inputs<T>(x, y1, s1, y2, s2, x0, mix, width), (T*)u, (T*)n,
                                                       (Wide<T>*)scale, rows, width, eps))));
}

extern "C" void residual_backward(i64 dtype, const void* gu, const void* gn, const void* n, const void* scale,
                                  const void* x, const void* y1, const void* s1, const void* y2, const void* s2,
                                  const void* x0, const void* mix, void* dx, void* dy1, void* dy2, void* dx0,
                                  void* sums, i64 rows, i64 width) {
  BY_DTYPE(dtype, BY_SHAPE(y1, y2, mix, (backward<B, M>((const T*)gu, (const T*)gn, (const T*)n,
                                                        (const Wide<T>*)scale,
                                                        inputs<T>(x, y1, s1, y2, s2, x0, mix, width),
                                                        Gradients<T>{(T*)dx, (T*)dy1, (T*)dy2, (T*)dx0,
                                                                     (Wide<T>*)sums},
                                                        rows, width))));
}
