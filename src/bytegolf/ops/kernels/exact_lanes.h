// Arithmetic whose results do not depend on how work is grouped: 16 numbers at a time, every sum in one fixed order.
//
// A decoder must get an encoder's numbers to the last bit, whatever the number of rows, threads or registers. So:
//   - An output of a product is one chain of fused multiply-adds over the inputs, from the first to the last. Lanes and
//     rows are other outputs, never parts of one sum, and a vector of 8 or of 16 lanes makes no difference.
//   - A sum over the elements of one vector is 16 chains (element i goes to chain i modulo 16) and then a fixed tree.
//     An output of a matrix that is read where it lies (exact_rows.cpp) is 32 such chains.
//   - Sources that include this are named exact_*.cpp: native.py compiles them without reassociation and without
//     contractions of the compiler's own choice. Fused multiply-adds are written out.
//
// Rows of numbers are padded with zeros to a multiple of PANEL, which changes no sum.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "common.h"

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#endif

constexpr i64 LANES = 16, PANEL = 64;

inline i64 round_up(i64 n, i64 unit) { return (n + unit - 1) / unit * unit; }

#if defined(__AVX512F__)
struct Lanes { __m512 v; };
inline Lanes load(const float* x) { return {_mm512_loadu_ps(x)}; }
inline void store(float* x, Lanes a) { _mm512_storeu_ps(x, a.v); }
inline Lanes all(float x) { return {_mm512_set1_ps(x)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes add(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes mul(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
constexpr int WIDE = 4;  // vectors of a panel that a tile of several rows has sums for: 6 × 4 of 32 registers
#elif defined(__AVX2__) && defined(__FMA__)
struct Lanes { __m256 low, high; };
inline Lanes load(const float* x) { return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
inline void store(float* x, Lanes a) { _mm256_storeu_ps(x, a.low), _mm256_storeu_ps(x + 8, a.high); }
inline Lanes all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Lanes add(Lanes a, Lanes b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Lanes mul(Lanes a, Lanes b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
constexpr int WIDE = 1;  // 6 × 2 of 16 registers
#else
struct Lanes { float v[LANES]; };
#define EACH_LANE for (int l = 0; l < LANES; l++)
inline Lanes load(const float* x) { Lanes a; EACH_LANE a.v[l] = x[l]; return a; }
inline void store(float* x, Lanes a) { EACH_LANE x[l] = a.v[l]; }
inline Lanes all(float x) { Lanes a; EACH_LANE a.v[l] = x; return a; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { EACH_LANE c.v[l] = std::fma(a.v[l], b.v[l], c.v[l]); return c; }
inline Lanes add(Lanes a, Lanes b) { EACH_LANE a.v[l] += b.v[l]; return a; }
inline Lanes mul(Lanes a, Lanes b) { EACH_LANE a.v[l] *= b.v[l]; return a; }
constexpr int WIDE = 1;
#endif

// The sum of the lanes, by halves: lane l and l + 8, of these l and l + 4, and so on.
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
inline float total(__m256 x) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
#endif
#if defined(__AVX512F__)
inline float total(Lanes a) {
  const __m512d bits = _mm512_castps_pd(a.v);
  const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(bits, 1));
  return total(_mm256_add_ps(_mm512_castps512_ps256(a.v), high));
}
#elif defined(__AVX2__) && defined(__FMA__)
inline float total(Lanes a) { return total(_mm256_add_ps(a.low, a.high)); }
#else
inline float total(Lanes a) {
  float x[LANES];
  store(x, a);
  for (int half = LANES / 2; half; half /= 2)
    for (int l = 0; l < half; l++) x[l] += x[l + half];
  return x[0];
}
#endif

// n is a multiple of LANES, padded with zeros.
inline float dot(const float* x, const float* y, i64 n) {
  Lanes sum = all(0);
  for (i64 i = 0; i < n; i += LANES) sum = fma(load(x + i), load(y + i), sum);
  return total(sum);
}

// y = x / sqrt(mean(x²) + ε) over `width` numbers, padded to n.
inline void normalise(const float* x, float* y, i64 width, i64 n, float eps) {
  const Lanes scale = all(1.0f / std::sqrt(dot(x, x, n) / float(width) + eps));
  for (i64 i = 0; i < n; i += LANES) store(y + i, mul(load(x + i), scale));
}

// Memory for floats, zeros at first, on a cache line's boundary.
class Floats {
 public:
  Floats() = default;
  explicit Floats(i64 size) { resize(size); }
  Floats(const Floats& other) {
    resize(other.size_);
    std::copy_n(other.data(), size_, data());
  }
  Floats& operator=(const Floats& other) { return *this = Floats(other); }
  Floats(Floats&&) = default;
  Floats& operator=(Floats&&) = default;
  float* data() { return memory_.get(); }
  const float* data() const { return memory_.get(); }
  i64 size() const { return size_; }
  // What was there stays, what is new is zero.
  void resize(i64 size) {
    auto* fresh = static_cast<float*>(std::aligned_alloc(64, round_up(std::max<i64>(size, 1) * sizeof(float), 64)));
    const i64 kept = std::min(size, size_);
    if (kept) std::copy_n(memory_.get(), kept, fresh);
    std::fill(fresh + kept, fresh + size, 0.0f);
    memory_.reset(fresh);
    size_ = size;
  }

 private:
  struct Free { void operator()(float* p) const { std::free(p); } };
  std::unique_ptr<float[], Free> memory_;
  i64 size_ = 0;
};

// A matrix as products read it. A small model's is copied: panels of PANEL outputs, in each the PANEL weights of input 0,
// then those of input 1, … One row is so a product with a stream of memory that is read once from front to back; the
// last panel has zeros for outputs that are not there. A large model's is read where it lies, row by row: a copy would
// take its memory twice, and bf16 in fp32 its bandwidth twice.
struct Matrix {
  i64 outputs = 0, inputs = 0;
  Floats packed;
  enum Kept { PACKED, SINGLE, HALF, CODES } kept = PACKED;
  const void* there = nullptr;    // (outputs, inputs), where it lies: fp32, bf16, or int8 codes,
  const float* scales = nullptr;  // each output's, of codes

  Matrix() = default;
  static Matrix at(Kept kept, const void* there, const float* scales, i64 outputs, i64 inputs) {
    Matrix found;
    found.outputs = outputs, found.inputs = inputs, found.kept = kept, found.there = there, found.scales = scales;
    return found;
  }
  // `weight` is (outputs, inputs).
  Matrix(const float* weight, i64 outputs, i64 inputs)
      : outputs(outputs), inputs(inputs), packed(round_up(outputs, PANEL) * inputs) {
    for (i64 o = 0; o < outputs; o++)
      for (i64 i = 0; i < inputs; i++)
        packed.data()[(o / PANEL) * PANEL * inputs + i * PANEL + o % PANEL] = weight[o * inputs + i];
  }
};

// R rows by V vectors of a panel: all sums stay in registers.
template <int R, int V>
inline void tile(i64 inputs, const float* x, i64 x_row, const float* w, float* y, i64 y_row) {
  Lanes sums[R][V];
#pragma GCC unroll 6
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) sums[r][v] = all(0);
  for (i64 i = 0; i < inputs; i++) {
    Lanes b[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) b[v] = load(w + i * PANEL + v * LANES);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      const Lanes a = all(x[r * x_row + i]);
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) sums[r][v] = fma(a, b[v], sums[r][v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) store(y + r * y_row + v * LANES, sums[r][v]);
}

template <int R>
inline void panel(i64 inputs, const float* x, i64 x_row, const float* w, float* y, i64 y_row) {
  constexpr int V = R == 1 ? 4 : WIDE;
  for (i64 v = 0; v < PANEL / LANES; v += V) tile<R, V>(inputs, x, x_row, w + v * LANES, y + v * LANES, y_row);
}

void product_where_it_lies(const Matrix& m, const float* x, i64 x_row, i64 rows, float* y, i64 y_row);

// y = W·x for each of `rows` rows; writes whole panels.
inline void product(const Matrix& m, const float* x, i64 x_row, i64 rows, float* y, i64 y_row) {
  if (m.there) return product_where_it_lies(m, x, x_row, rows, y, y_row);
  constexpr i64 TILE = 6;
  for (i64 o = 0; o < m.outputs; o += PANEL) {
    const float* w = m.packed.data() + o * m.inputs;
    i64 r = 0;
    for (; r + TILE <= rows; r += TILE) panel<TILE>(m.inputs, x + r * x_row, x_row, w, y + r * y_row + o, y_row);
    const float* rest = x + r * x_row;
    float* to = y + r * y_row + o;
    switch (rows - r) {
      case 1: panel<1>(m.inputs, rest, x_row, w, to, y_row); break;
      case 2: panel<2>(m.inputs, rest, x_row, w, to, y_row); break;
      case 3: panel<3>(m.inputs, rest, x_row, w, to, y_row); break;
      case 4: panel<4>(m.inputs, rest, x_row, w, to, y_row); break;
      case 5: panel<5>(m.inputs, rest, x_row, w, to, y_row); break;
    }
  }
}
