// To chunks and back: the vectors at chunk starts; smoothed, at every position of their chunk, onto the residual.
//
// Legend: B sequences, L positions (length), C chunks that there is room for, D width.
#include "rows.h"

namespace {

template <typename T> void select(const T* x, const i64* starts, T* y, i64 batch, i64 length, i64 chunks, i64 width) {
  over_rows(runs_of(batch * chunks, width), batch * chunks, [=](int, i64 first, i64 last) {
    for (i64 r = first; r < last; r++) {
      const T* from = x + (r / chunks * length + starts[r]) * width;
      std::copy(from, from + width, y + r * width);
    }
  });
}

template <typename T>
void select_back(const T* g, const i64* chunk_of, const bool* boundary, T* dx, i64 batch, i64 length, i64 chunks,
                 i64 width) {
  over_rows(runs_of(batch * length, width), batch * length, [=](int, i64 first, i64 last) {
    for (i64 r = first; r < last; r++) {
      const T* from = g + (r / length * chunks + chunk_of[r]) * width;
      if (boundary[r]) std::copy(from, from + width, dx + r * width);
      else std::fill(dx + r * width, dx + (r + 1) * width, T(0));
    }
  });
}

// One sequence's recurrence over some of its channels: z̄_c = P_c·z_c + (1 − P_c)·z̄_{c−1}, and z̄_c = z_c where it
// starts afresh. P is p at the chunk's start, clamped to [least, 1 − least].
template <typename T> struct Smoothing {
  using W = Wide<T>;
  const T* z;            // (B, C, D)
  const W* p;            // (B, L)
  const bool* boundary;  // (B, L)
  const bool* fresh;     // (B, L) where a document starts, or null
  W* smoothed;           // (B, C, D)
  i64 batch, length, chunks, width;
  W least;

  static constexpr i64 SLICE = 256;
  i64 slices() const { return (width + SLICE - 1) / SLICE; }
  i64 from(i64 slice) const { return slice * SLICE; }
  i64 count(i64 slice) const { return std::min(SLICE, width - slice * SLICE); }
  bool restarts(i64 b, i64 t) const { return t == 0 || (fresh && fresh[b * length + t]); }
  W weight(i64 b, i64 t) const { return std::min(std::max(p[b * length + t], least), 1 - least); }
  bool clamped(i64 b, i64 t) const { return p[b * length + t] < least || p[b * length + t] > 1 - least; }
  i64 chunk(i64 b, i64 c, i64 slice) const { return (b * chunks + c) * width + from(slice); }
  i64 position(i64 b, i64 t, i64 slice) const { return (b * length + t) * width + from(slice); }

  // Calls work(b, slice) for every sequence and slice of channels.
  template <typename Work> void over(Work work) const {
#pragma omp parallel for schedule(static) if (batch * length * width > (i64(1) << 14))
    for (i64 task = 0; task < batch * slices(); task++) work(task / slices(), task % slices());
  }
};

template <typename T> void forward(const Smoothing<T>& s, const T* residual, T* out) {
  using W = Wide<T>;
  s.over([&](i64 b, i64 slice) {
    const i64 n = s.count(slice);
    W* now = nullptr;
    for (i64 t = 0, c = 0; t < s.length; t++) {
      if (s.boundary[b * s.length + t]) {
        const W* before = now;
        const T* z = s.z + s.chunk(b, c, slice);
        now = s.smoothed + s.chunk(b, c++, slice);
        const bool restarts = s.restarts(b, t);
        const W weight = restarts ? W(1) : s.weight(b, t);
        if (restarts) before = now, std::fill(now, now + n, W(0));  // 0·0, where there is no z̄ before
#pragma omp simd
        for (i64 d = 0; d < n; d++) now[d] = weight * wide(z[d]) + (1 - weight) * before[d];
      }
      const T* r = residual + s.position(b, t, slice);
      T* y = out + s.position(b, t, slice);
#pragma omp simd
      for (i64 d = 0; d < n; d++) y[d] = narrow<T>(now[d] + wide(r[d]));
    }
  });
}

// dp is (slices, B, L): what each slice of channels adds to it.
//
// From the last position back, with `sum` the gradient of the current chunk's z̄. An example with two chunks, of the
// positions 0–1 and 2–3, and g the gradients of their outputs:
//   t = 3, 2: sum = g₃ + g₂, all of z̄₁'s; at its start dz₁ = P·sum, dP = sum·(z₁ − z̄₀), and sum becomes (1 − P)·sum,
//             which is what z̄₀ gets through the recurrence
//   t = 1, 0: sum += g₁ + g₀, now all of z̄₀'s; it started afresh, so dz₀ = sum
// Besides, p is each position's confidence, with the gradient ±g·z̄ (its value is 1: straight-through).
template <typename T> void backward(const Smoothing<T>& s, const T* g, T* dz, Wide<T>* dp) {
  using W = Wide<T>;
  s.over([&](i64 b, i64 slice) {
    const i64 n = s.count(slice);
    i64 c = -1;
    for (i64 t = 0; t < s.length; t++) c += s.boundary[b * s.length + t];
    for (i64 spare = c + 1; spare < s.chunks; spare++) {
      T* z = dz + s.chunk(b, spare, slice);
      std::fill(z, z + n, T(0));
    }
    W sum[Smoothing<T>::SLICE] = {};  // the gradient of the current chunk's smoothed vector
    W* slopes = dp + (slice * s.batch + b) * s.length;
    for (i64 t = s.length - 1; t >= 0; t--) {
      const T* gt = g + s.position(b, t, slice);
      const W* now = s.smoothed + s.chunk(b, c, slice);
      W dot = 0;
#pragma omp simd reduction(+ : dot)
      for (i64 d = 0; d < n; d++) {
        dot += wide(gt[d]) * now[d];
        sum[d] += wide(gt[d]);
      }
      const bool opens = s.boundary[b * s.length + t];
      slopes[t] = opens ? dot : -dot;  // of the confidence, p or 1 − p
      if (!opens) continue;
      const bool restarts = s.restarts(b, t);
      const W weight = restarts ? W(1) : s.weight(b, t);
      const T* z = s.z + s.chunk(b, c, slice);
      T* out = dz + s.chunk(b, c, slice);
      if (!restarts && !s.clamped(b, t)) {
        const W* before = now - s.width;
        W slope = 0;
#pragma omp simd reduction(+ : slope)
        for (i64 d = 0; d < n; d++) slope += sum[d] * (wide(z[d]) - before[d]);
        slopes[t] += slope;
      }
#pragma omp simd
      for (i64 d = 0; d < n; d++) {
        out[d] = narrow<T>(weight * sum[d]);
        sum[d] *= 1 - weight;
      }
      c--;
    }
  });
}

template <typename T>
Smoothing<T> smoothing(const void* z, const void* p, const void* boundary, const void* fresh, const void* smoothed,
                       i64 batch, i64 length, i64 chunks, i64 width, double least) {
  using W = Wide<T>;
  return {(const T*)z, (const W*)p, (const bool*)boundary, (const bool*)fresh, (W*)smoothed, batch, length, chunks,
          width, W(least)};
}

}  // namespace

extern "C" void select_forward(i64 dtype, const void* x, const void* starts, void* y, i64 batch, i64 length,
                               i64 chunks, i64 width) {
  BY_DTYPE(dtype, select<T>((const T*)x, (const i64*)starts, (T*)y, batch, length, chunks, width));
}

extern "C" void select_backward(i64 dtype, const void* g, const void* chunk_of, const void* boundary, void* dx,
                                i64 batch, i64 length, i64 chunks, i64 width) {
  BY_DTYPE(dtype, select_back<T>((const T*)g, (const i64*)chunk_of, (const bool*)boundary, (T*)dx, batch, length,
                                 chunks, width));
}

extern "C" void dechunk_forward(i64 dtype, const void* z, const void* p, const void* boundary, const void* fresh,
                                void* smoothed, i64 batch, i64 length, i64 chunks, i64 width, double least,
                                const void* residual, void* out) {
  BY_DTYPE(dtype, forward<T>(smoothing<T>(z, p, boundary, fresh, smoothed, batch, length, chunks, width, least),
                             (const T*)residual, (T*)out));
}

extern "C" void dechunk_backward(i64 dtype, const void* z, const void* p, const void* boundary, const void* fresh,
                                 const void* smoothed, i64 batch, i64 length, i64 chunks, i64 width, double least,
                                 const void* g, void* dz, void* dp) {
  BY_DTYPE(dtype, backward<T>(smoothing<T>(z, p, boundary, fresh, smoothed, batch, length, chunks, width, least),
                              (const T*)g, (T*)dz, (Wide<T>*)dp));
}
