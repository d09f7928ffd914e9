// One position through a Mamba-2 mixer, between its two linear maps (ops/mamba_step.py): convolution, state, gated norm.
// The states are changed where they lie: at batch 1 a step is mostly the cost of reading weights and state once.
//
// Legend: R rows, I = H·P inner channels, N state, X = I + 2N channels of the convolution, K taps.
#include <algorithm>

#include "common.h"

namespace {

template <typename T> struct Step {
  using W = Wide<T>;
  const T* packed;                                     // (R, 2I + 2N + H): z, x, B, C, dt
  const i64* index;                                    // (R) each row's sequence in the states, or null: its own number
  const bool* first;                                   // (R) nothing came before
  const W *taps, *bias, *dt_bias, *a_log, *skip, *gain;  // (K, X), (X), (H), (H), (H), (I)
  T* inputs;                                           // (B, K − 1, X)
  W* state;                                            // (B, H, N, P)
  i64 rows, heads, width, size, count;
  W eps;

  i64 inner() const { return heads * width; }
  i64 channels() const { return inner() + 2 * size; }
  const T* at(i64 r) const { return packed + r * (2 * inner() + 2 * size + heads); }
  i64 sequence(i64 r) const { return index ? index[r] : r; }
};

// The channels behind the convolution, (X); the row's inputs move up by one.
template <typename T> void convolve(const Step<T>& p, i64 r, Wide<T>* out) {
  const i64 X = p.channels(), before = p.count - 1;
  const T* now = p.at(r) + p.inner();
  T* kept = p.inputs + p.sequence(r) * before * X;
  if (p.first[r]) std::memset(kept, 0, before * X * sizeof(T));
  std::copy_n(p.bias, X, out);
  for (i64 k = 0; k < p.count; k++) {
    const T* x = k < before ? kept + k * X : now;
    const Wide<T>* w = p.taps + k * X;
#pragma omp simd
    for (i64 c = 0; c < X; c++) out[c] += w[c] * wide(x[c]);
  }
#pragma omp simd
  for (i64 c = 0; c < X; c++) out[c] = wide(narrow<T>(out[c] * sigmoid(out[c])));
  if (!before) return;
  std::memmove(kept, kept + X, (before - 1) * X * sizeof(T));
  std::copy_n(now, X, kept + (before - 1) * X);
}

template <typename T> void scan(const Step<T>& p, i64 r, i64 h, const Wide<T>* channels, Wide<T>* y) {
  using W = Wide<T>;
  const W *x = channels + h * p.width, *b = channels + p.inner(), *c = b + p.size;
  const W raw = wide(p.at(r)[p.inner() + p.channels() + h]) + p.dt_bias[h];
  const W dt = raw > 20 ? raw : std::log1p(std::exp(raw)), a = std::exp(-std::exp(p.a_log[h]) * dt);
  W* s = p.state + (p.sequence(r) * p.heads + h) * p.size * p.width;
  if (p.first[r]) std::memset(s, 0, p.size * p.width * sizeof(W));
#pragma omp simd
  for (i64 i = 0; i < p.width; i++) y[i] = p.skip[h] * x[i];
  for (i64 n = 0; n < p.size; n++, s += p.width) {
    const W added = dt * b[n], read = c[n];
#pragma omp simd
    for (i64 i = 0; i < p.width; i++) {
      s[i] = a * s[i] + added * x[i];
      y[i] += read * s[i];
    }
  }
}

template <typename T> void step(const Step<T>& p, T* out) {
  using W = Wide<T>;
  std::vector<W> channels(p.rows * p.channels()), y(p.rows * p.inner());
#pragma omp parallel if (p.rows * p.inner() * p.size > (i64(1) << 17))
  {
#pragma omp for schedule(static)
    for (i64 r = 0; r < p.rows; r++) convolve(p, r, channels.data() + r * p.channels());
#pragma omp for schedule(static)
    for (i64 task = 0; task < p.rows * p.heads; task++) {
      const i64 r = task / p.heads, h = task % p.heads;
      scan(p, r, h, channels.data() + r * p.channels(), y.data() + r * p.inner() + h * p.width);
    }
  }
  for (i64 r = 0; r < p.rows; r++) {
    const i64 I = p.inner();
    const T* z = p.at(r);
    W *u = y.data() + r * I, sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < I; i++) {
      const W gate = wide(z[i]);
      u[i] = wide(narrow<T>(u[i])) * gate * sigmoid(gate);
      sum += u[i] * u[i];
    }
    const W scale = W(1) / std::sqrt(sum / W(I) + p.eps);
    T* to = out + r * I;
#pragma omp simd
    for (i64 i = 0; i < I; i++) to[i] = narrow<T>(u[i] * scale * p.gain[i]);
  }
}

}  // namespace

extern "C" void mamba_step(i64 dtype, const void* packed, const void* index, const void* first, const void* taps,
                           const void* bias, const void* dt_bias, const void* a_log, const void* skip,
                           const void* gain, void* inputs, void* state, i64 rows, i64 heads, i64 width, i64 size,
                           i64 count, double eps, void* out) {
  BY_DTYPE(dtype, using W = Wide<T>;
           step<T>({(const T*)packed, (const i64*)index, (const bool*)first, (const W*)taps, (const W*)bias,
                    (const W*)dt_bias, (const W*)a_log, (const W*)skip, (const W*)gain, (T*)inputs, (W*)state, rows,
                    heads, width, size, count, W(eps)},
                   (T*)out));
}
