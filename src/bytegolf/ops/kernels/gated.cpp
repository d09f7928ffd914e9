// Gates by silu: of a SwiGLU MLP (ops/swiglu.py), and of Mamba-2's output in front of its norm (ops/gated_norm.py).
//
// Legend: R rows, H or I width. Rows of z lie `stride` elements apart; all else is contiguous.
#include "rows.h"

namespace {

// x: (R, 2H), values then gates.
template <typename T> void glu(const T* x, T* y, i64 rows, i64 width) {
  over_rows(runs_of(rows, width), rows, [=](int, i64 first, i64 last) {
    for (i64 r = first; r < last; r++) {
      const T *v = x + 2 * r * width, *g = v + width;
      T* to = y + r * width;
#pragma omp simd
      for (i64 i = 0; i < width; i++) {
        const Wide<T> gate = wide(g[i]);
        to[i] = narrow<T>(wide(v[i]) * gate * sigmoid(gate));
      }
    }
  });
}

template <typename T> void glu_back(const T* dy, const T* x, T* dx, i64 rows, i64 width) {
  using W = Wide<T>;
  over_rows(runs_of(rows, width), rows, [=](int, i64 first, i64 last) {
    for (i64 r = first; r < last; r++) {
      const T *v = x + 2 * r * width, *g = v + width, *d = dy + r * width;
      T *dv = dx + 2 * r * width, *dg = dv + width;
#pragma omp simd
      for (i64 i = 0; i < width; i++) {
        const W gate = wide(g[i]), s = sigmoid(gate), slope = wide(d[i]);
        dv[i] = narrow<T>(slope * gate * s);
        dg[i] = narrow<T>(slope * wide(v[i]) * s * (1 + gate * (1 - s)));
      }
    }
  });
}

// u = y·silu(z), n = u·s·w with s = (mean(u²) + ε)^−½; s is kept.
template <typename T>
void norm(const T* y, const T* z, i64 stride, const Wide<T>* gain, T* out, Wide<T>* scale, i64 rows, i64 width,
          double eps) {
  using W = Wide<T>;
  over_rows(runs_of(rows, width), rows, [=](int, i64 first, i64 last) {
    std::vector<W> buffer(width);
    W* u = buffer.data();
    for (i64 r = first; r < last; r++) {
      const T *yr = y + r * width, *zr = z + r * stride;
      W sum = 0;
#pragma omp simd reduction(+ : sum)
      for (i64 i = 0; i < width; i++) {
        const W gate = wide(zr[i]);
        u[i] = wide(yr[i]) * gate * sigmoid(gate);
        sum += u[i] * u[i];
      }
      const W s = scale[r] = W(1) / std::sqrt(sum / W(width) + W(eps));
      T* to = out + r * width;
#pragma omp simd
      for (i64 i = 0; i < width; i++) to[i] = narrow<T>(u[i] * s * gain[i]);
    }
  });
}

// With h = g·w what arrives at u·s: du = s·(h − u·s²·mean(h·u)), dw = Σ g·u·s; then dy = du·silu(z), dz = du·y·silu'(z).
template <typename T>
void norm_back(const T* g, const T* y, const T* z, i64 stride, const Wide<T>* gain, const Wide<T>* scale, T* dy, T* dz,
               Wide<T>* d_gain, i64 rows, i64 width) {
  using W = Wide<T>;
  const int runs = runs_of(rows, width);
  std::vector<W> partial(runs * width, W(0));
  W* sums = partial.data();
  over_rows(runs, rows, [=](int run, i64 first, i64 last) {
    std::vector<W> us(width), gates(width);
    W *u = us.data(), *silu = gates.data(), *own = sums + run * width;
    for (i64 r = first; r < last; r++) {
      const T *yr = y + r * width, *zr = z + r * stride, *gr = g + r * width;
      W along = 0;
#pragma omp simd reduction(+ : along)
      for (i64 i = 0; i < width; i++) {
        const W gate = wide(zr[i]);
        silu[i] = gate * sigmoid(gate);
        u[i] = wide(yr[i]) * silu[i];
        along += wide(gr[i]) * gain[i] * u[i];
      }
      const W s = scale[r], mean = along / W(width) * s * s;
      T *dyr = dy + r * width, *dzr = dz + r * width;
#pragma omp simd
      for (i64 i = 0; i < width; i++) {
        const W d = s * (wide(gr[i]) * gain[i] - u[i] * mean), gate = wide(zr[i]), sig = sigmoid(gate);
        own[i] += wide(gr[i]) * u[i] * s;
        dyr[i] = narrow<T>(d * silu[i]);
        dzr[i] = narrow<T>(d * wide(yr[i]) * sig * (1 + gate * (1 - sig)));
      }
    }
  });
  add_runs(partial, runs, width, d_gain);
}

}  // namespace

extern "C" void swiglu_forward(i64 dtype, const void* x, void* y, i64 rows, i64 width) {
  BY_DTYPE(dtype, glu<T>((const T*)x, (T*)y, rows, width));
}

extern "C" void swiglu_backward(i64 dtype, const void* dy, const void* x, void* dx, i64 rows, i64 width) {
  BY_DTYPE(dtype, glu_back<T>((const T*)dy, (const T*)x, (T*)dx, rows, width));
}

extern "C" void gated_norm_forward(i64 dtype, const void* y, const void* z, i64 stride, const void* gain, void* out,
                                   void* scale, i64 rows, i64 width, double eps) {
  BY_DTYPE(dtype, norm<T>((const T*)y, (const T*)z, stride, (const Wide<T>*)gain, (T*)out, (Wide<T>*)scale, rows, width,
                          eps));
}

extern "C" void gated_norm_backward(i64 dtype, const void* g, const void* y, const void* z, i64 stride,
                                    const void* gain, const void* scale, void* dy, void* dz, void* d_gain, i64 rows,
                                    i64 width) {
  BY_DTYPE(dtype, norm_back<T>((const T*)g, (const T*)y, (const T*)z, stride, (const Wide<T>*)gain,
                               (const Wide<T>*)scale, (T*)dy, (T*)dz, (Wide<T>*)d_gain, rows, width));
}
