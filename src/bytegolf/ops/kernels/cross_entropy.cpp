// −log softmax(cap·tanh(z/cap))[target] a row, and its gradient in the same pass; cap 0 = no cap.
#include "rows.h"

namespace {

// ~2e-7 absolute; near 0, where (e^2x − 1)/(e^2x + 1) loses digits, the series. Both are worked out and one is chosen:
// a branch would keep the loop from vectorising.
inline float fast_tanh(float x) {
  const float square = x * x;
  float series = 62.0f / 2835;
  series = std::fma(series, square, -17.0f / 315);
  series = std::fma(series, square, 2.0f / 15);
  series = std::fma(series, square, -1.0f / 3);
  series = std::fma(series * square, x, x);
  const float quotient = 1.0f - 2.0f / (fast_exp(2.0f * x) + 1.0f);
  return square < 0.0625f ? series : quotient;
}
inline double fast_tanh(double x) { return std::tanh(x); }

// grad: d loss / d logits for a loss of weight 1 a row; null where it is not wanted.
template <typename T>
void forward(const T* logits, const i64* targets, Wide<T>* losses, T* grad, i64 rows, i64 width, double limit) {
  using W = Wide<T>;
  const W cap = W(limit), inverse = cap > 0 ? W(1) / cap : W(0);
  over_rows(runs_of(rows, 8 * width), rows, [=](int, i64 first, i64 last) {
    std::vector<W> buffer(2 * width, W(0));
    W *z = buffer.data(), *bend = z + width;  // bend: tanh, 0 without a cap
    for (i64 r = first; r < last; r++) {
      const T* in = logits + r * width;
      if (cap > 0) {
#pragma omp simd
        for (i64 v = 0; v < width; v++) {
          bend[v] = fast_tanh(wide(in[v]) * inverse);
          z[v] = cap * bend[v];
        }
      } else {
#pragma omp simd
        for (i64 v = 0; v < width; v++) z[v] = wide(in[v]);
      }
      W top = z[0], sum = 0;
#pragma omp simd reduction(max : top)
      for (i64 v = 0; v < width; v++) top = z[v] > top ? z[v] : top;
      const W aim = z[targets[r]];
#pragma omp simd reduction(+ : sum)
      for (i64 v = 0; v < width; v++) {
        z[v] = fast_exp(z[v] - top);
        sum += z[v];
      }
      losses[r] = std::log(sum) + top - aim;
      if (!grad) continue;
      // d loss / d z = softmax(z) − onehot(target); z holds the exponentials, of which `sum` are one whole, so that the
      // target's 1 is taken off as a `sum`. Then through the cap: d cap·tanh(x/cap) / dx = 1 − tanh².
      const W share = W(1) / sum;
      z[targets[r]] -= sum;
      T* out = grad + r * width;
#pragma omp simd
      for (i64 v = 0; v < width; v++) out[v] = narrow<T>(z[v] * share * (W(1) - bend[v] * bend[v]));
    }
  });
}

template <typename T> void backward(const T* grad, const Wide<T>* g, T* out, i64 rows, i64 width) {
  over_rows(runs_of(rows, width), rows, [=](int, i64 first, i64 last) {
    for (i64 r = first; r < last; r++) {
#pragma omp simd
      for (i64 v = 0; v < width; v++) out[r * width + v] = narrow<T>(wide(grad[r * width + v]) * g[r]);
    }
  });
}

}  // namespace

extern "C" void cross_entropy_forward(i64 dtype, const void* logits, const void* targets, void* losses, void* grad,
                                      i64 rows, i64 width, double cap) {
  BY_DTYPE(dtype, forward<T>((const T*)logits, (const i64*)targets, (Wide<T>*)losses, (T*)grad, rows, width, cap));
}

extern "C" void cross_entropy_backward(i64 dtype, const void* grad, const void* g, void* out, i64 rows, i64 width) {
  BY_DTYPE(dtype, backward<T>((const T*)grad, (const Wide<T>*)g, (T*)out, rows, width));
}
