// A causal depthwise convolution with bias and silu, in one pass each way (ops/causal_conv.py).
//
//   h_t = b + Σ_k w_k·x_{t−K+1+k} per channel,  y = silu(h)
//
// Legend: B sequences, L positions, X channels, K taps. Rows of x lie `stride` elements apart; all else is contiguous.
#include <algorithm>

#include "common.h"

namespace {

template <typename T> struct Convolution {
  using W = Wide<T>;
  const T* x;
  const W *taps, *bias;  // (K, X), (X)
  const bool* first;     // (B, L) positions that see nothing before them, or null
  i64 batch, length, channels, count, stride;

  static constexpr i64 SLICE = 128;
  i64 slices() const { return (channels + SLICE - 1) / SLICE; }
  const T* at(i64 b, i64 t) const { return x + (b * length + t) * stride; }

  // Calls work(b, c0, n) for every sequence and slice of n channels from c0 on.
  template <typename Work> void over(Work work) const {
#pragma omp parallel for schedule(static) if (batch * length * channels > (i64(1) << 14))
    for (i64 task = 0; task < batch * slices(); task++) {
      const i64 c0 = task % slices() * SLICE;
      work(task / slices(), c0, std::min(SLICE, channels - c0));
    }
  }
  // How many taps besides its own see something at position t, given how many did at t − 1.
  i64 seen(i64 b, i64 t, i64 before) const {
    if (t == 0 || (first && first[b * length + t])) return 0;
    return std::min(before + 1, count - 1);
  }
  // h_t of n channels from c0 on
  void sum(i64 b, i64 t, i64 c0, i64 n, i64 seen, W* h) const {
    std::copy_n(bias + c0, n, h);
    for (i64 lag = 0; lag <= seen; lag++) {
      const T* past = at(b, t - lag) + c0;
      const W* w = taps + (count - 1 - lag) * channels + c0;
#pragma omp simd
      for (i64 c = 0; c < n; c++) h[c] += w[c] * wide(past[c]);
    }
  }
};

template <typename T> void forward(const Convolution<T>& p, T* y) {
  using W = Wide<T>;
  p.over([&](i64 b, i64 c0, i64 n) {
    W h[Convolution<T>::SLICE];
    for (i64 t = 0, seen = 0; t < p.length; t++) {
      seen = p.seen(b, t, seen);
      p.sum(b, t, c0, n, seen, h);
      T* to = y + (b * p.length + t) * p.channels + c0;
#pragma omp simd
      for (i64 c = 0; c < n; c++) to[c] = narrow<T>(h[c] * sigmoid(h[c]));
    }
  });
}

// d_taps (B, K, X) and d_bias (B, X): each sequence's own sums.
//
// With e = g·silu'(h), dw_k = Σ_t e_t·x_{t−lag} and dx_{t−lag} += w_k·e_t, where lag = K − 1 − k. Position t gets its
// last share from t + K − 1: a ring of K rows holds the sums that are not complete yet, t in row t mod K.
template <typename T>
void backward(const Convolution<T>& p, const T* g, T* dx, Wide<T>* d_taps, Wide<T>* d_bias) {
  using W = Wide<T>;
  constexpr i64 SLICE = Convolution<T>::SLICE;
  p.over([&](i64 b, i64 c0, i64 n) {
    const i64 K = p.count;
    std::vector<W> ring(K * SLICE, W(0)), sums((K + 1) * SLICE, W(0));
    W e[SLICE];
    const auto finish = [&](i64 t) {
      W* row = ring.data() + t % K * SLICE;
      T* to = dx + (b * p.length + t) * p.channels + c0;
#pragma omp simd
      for (i64 c = 0; c < n; c++) to[c] = narrow<T>(row[c]), row[c] = 0;
    };
    for (i64 t = 0, seen = 0; t < p.length; t++) {
      if (t >= K) finish(t - K);
      seen = p.seen(b, t, seen);
      p.sum(b, t, c0, n, seen, e);
      const T* gt = g + (b * p.length + t) * p.channels + c0;
      W* bias = sums.data() + K * SLICE;
#pragma omp simd
      for (i64 c = 0; c < n; c++) {
        const W s = sigmoid(e[c]);
        e[c] = wide(gt[c]) * s * (1 + e[c] * (1 - s));
        bias[c] += e[c];
      }
      for (i64 lag = 0; lag <= seen; lag++) {
        const T* past = p.at(b, t - lag) + c0;
        const W* w = p.taps + (K - 1 - lag) * p.channels + c0;
        W *row = ring.data() + (t - lag) % K * SLICE, *sum = sums.data() + (K - 1 - lag) * SLICE;
#pragma omp simd
        for (i64 c = 0; c < n; c++) {
          row[c] += w[c] * e[c];
          sum[c] += wide(past[c]) * e[c];
        }
      }
    }
    for (i64 t = std::max<i64>(0, p.length - K); t < p.length; t++) finish(t);
    for (i64 k = 0; k < K; k++) std::copy_n(sums.data() + k * SLICE, n, d_taps + (b * K + k) * p.channels + c0);
    std::copy_n(sums.data() + K * SLICE, n, d_bias + b * p.channels + c0);
  });
}

template <typename T>
Convolution<T> convolution(const void* x, const void* taps, const void* bias, const void* first, i64 batch, i64 length,
                           i64 channels, i64 count, i64 stride) {
  using W = Wide<T>;
  return {(const T*)x, (const W*)taps, (const W*)bias, (const bool*)first, batch, length, channels, count, stride};
}

}  // namespace

extern "C" void conv_forward(i64 dtype, const void* x, const void* taps, const void* bias, const void* first,
                             i64 batch, i64 length, i64 channels, i64 count, i64 stride, void* y) {
  BY_DTYPE(dtype, forward<T>(convolution<T>(x, taps, bias, first, batch, length, channels, count, stride), (T*)y));
}

extern "C" void conv_backward(i64 dtype, const void* x, const void* taps, const void* bias, const void* first,
                              i64 batch, i64 length, i64 channels, i64 count, i64 stride, const void* g, void* dx,
                              void* d_taps, void* d_bias) {
  BY_DTYPE(dtype, backward<T>(convolution<T>(x, taps, bias, first, batch, length, channels, count, stride),
                              (const T*)g, (T*)dx, (Wide<T>*)d_taps, (Wide<T>*)d_bias));
}
