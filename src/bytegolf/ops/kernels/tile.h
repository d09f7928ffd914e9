// Products of tiles small enough to stay in the cache, and what is done to their results.
//
// Operands consist of cells, the unit along a product's inner axis: two bf16 in 32 bits where the CPU multiplies such
// pairs (AVX-512 BF16), else one Wide number. Results and all else are Wide. Axes are padded to multiples of SUB.
//
// A cell of two bf16 holds neighbours along the *inner* axis of the product, since the CPU's instruction adds a pair of
// products to each sum: sum += a₀·b₀ + a₁·b₁. The same numbers are so packed differently for different products:
//   pack_row:    x[0] x[1] | x[2] x[3] | …        the inner axis runs along the row (a query's width)
//   pack_across: (row 0, row 1)[0], (row 0, row 1)[1], …   it runs down the rows (positions that are summed over)
#pragma once

#include <cstdlib>

#include "common.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

constexpr i64 SUB = 16;

template <typename T> struct CellOf { using type = Wide<T>; };
#ifdef __AVX512BF16__
template <> struct CellOf<bf16> { using type = uint32_t; };
#endif
template <typename T> using Cell = typename CellOf<T>::type;

template <typename C> struct WideOfCell { using type = C; };
template <> struct WideOfCell<uint32_t> { using type = float; };
template <typename C> using Sum = typename WideOfCell<C>::type;

// Numbers in a cell.
template <typename C> constexpr i64 IN_CELL = 1;
template <> constexpr i64 IN_CELL<uint32_t> = 2;

#ifdef __AVX512F__
constexpr int VECTOR_BYTES = 64, ROWS = 8;  // 8 × 2 sums of 32 registers
#elif defined __AVX__
constexpr int VECTOR_BYTES = 32, ROWS = 4;  // 4 × 2 sums of 16 registers
#else
constexpr int VECTOR_BYTES = 16, ROWS = 4;
#endif
template <typename W> struct VectorOf;
template <> struct VectorOf<float> { typedef float type __attribute__((vector_size(VECTOR_BYTES))); };
template <> struct VectorOf<double> { typedef double type __attribute__((vector_size(VECTOR_BYTES))); };

template <typename W> inline typename VectorOf<W>::type multiply_add(typename VectorOf<W>::type sum, W a, const W* b) {
  typename VectorOf<W>::type v;
  std::memcpy(&v, b, sizeof v);
  return sum + a * v;
}
#ifdef __AVX512BF16__
inline VectorOf<float>::type multiply_add(VectorOf<float>::type sum, uint32_t a, const uint32_t* b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)_mm512_loadu_si512(b));
}
#endif

// ROWS rows and V vectors of columns of a product. All ROWS·V sums stay in registers over the whole inner axis: per
// step V vectors of b are loaded and ROWS numbers of a broadcast, for ROWS·V multiply-adds.
template <typename C, int V>
inline void micro(i64 steps, const C* a, i64 a_row, i64 a_step, const C* b, i64 b_step, Sum<C>* c, i64 c_row,
                  bool add) {
  using Vector = typename VectorOf<Sum<C>>::type;
  constexpr i64 LANES = sizeof(Vector) / sizeof(Sum<C>);
  Vector sums[ROWS][V] = {};
  if (add) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) std::memcpy(&sums[r][v], c + r * c_row + v * LANES, sizeof(Vector));
  }
  for (i64 s = 0; s < steps; s++) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
      for (int v = 0; v < V; v++)
        sums[r][v] = multiply_add(sums[r][v], a[r * a_row + s * a_step], b + s * b_step + v * LANES);
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) std::memcpy(c + r * c_row + v * LANES, &sums[r][v], sizeof(Vector));
}

// C = A·B, or C += A·B: `steps` cells along the inner axis; rows and columns are multiples of SUB. A's cells lie at any
// two strides; B's columns are contiguous.
template <typename C>
void product(i64 rows, i64 columns, i64 steps, const C* a, i64 a_row, i64 a_step, const C* b, i64 b_step, Sum<C>* c,
             i64 c_row, bool add) {
  constexpr i64 LANES = VECTOR_BYTES / sizeof(Sum<C>);
  i64 n = 0;
  for (; n + 2 * LANES <= columns; n += 2 * LANES)
    for (i64 r = 0; r < rows; r += ROWS)
      micro<C, 2>(steps, a + r * a_row, a_row, a_step, b + n, b_step, c + r * c_row + n, c_row, add);
  for (; n < columns; n += LANES)
    for (i64 r = 0; r < rows; r += ROWS)
      micro<C, 1>(steps, a + r * a_row, a_row, a_step, b + n, b_step, c + r * c_row + n, c_row, add);
}

// n numbers (a multiple of SUB) as cells along this row.
template <typename W> inline void pack_row(const W* x, W* y, i64 n) { std::memcpy(y, x, n * sizeof(W)); }

// Rows of n numbers as cells across rows: [rows / IN_CELL][n].
template <typename W> inline void pack_across(const W* x, i64 x_row, i64 rows, i64 n, W* y, i64 y_row) {
  for (i64 r = 0; r < rows; r++) std::memcpy(y + r * y_row, x + r * x_row, n * sizeof(W));
}

#ifdef __AVX512BF16__
inline __m256i as_bf16(const float* x) { return (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x)); }

inline void pack_row(const float* x, uint32_t* y, i64 n) {
  for (i64 i = 0; i < n; i += SUB) _mm256_storeu_si256((__m256i*)(y + i / 2), as_bf16(x + i));
}

inline void pack_across(const float* x, i64 x_row, i64 rows, i64 n, uint32_t* y, i64 y_row) {
  for (i64 r = 0; r < rows; r += 2, y += y_row, x += 2 * x_row)
    for (i64 i = 0; i < n; i += SUB) {
      const __m512i low = _mm512_cvtepu16_epi32(as_bf16(x + i)), high = _mm512_cvtepu16_epi32(as_bf16(x + x_row + i));
      _mm512_storeu_si512(y + i, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}
#endif

// 2^x for x ≤ 1 or so, exactly 0 below 2^−126: the Taylor series to 2e-6 for bf16 cells, 1e-8 for fp32.
//
// 2^x = 2^n · 2^f with n = round(x), f in [−½, ½]. The coefficients are ln(2)^k / k!; two more where they can be seen.
// Exactly 0, because a score that the mask hid must leave nothing behind, whatever its value.
template <typename C> inline float exp2_of(float x) {
  const float n = std::nearbyint(x < -126.0f ? -126.0f : x), f = x - n;
  // the compiler contracts p·f + c where the CPU can; std::fma would call a function elsewhere
  float p = 1.3333558e-3f;
  if (IN_CELL<C> == 1) p = (1.5252734e-5f * f + 1.5403530e-4f) * f + p;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  const float y = p * __builtin_bit_cast(float, (static_cast<int32_t>(n) + 127) << 23);
  return x < -126.0f ? 0.0f : y;
}
template <typename C> inline double exp2_of(double x) { return std::exp2(x); }

// Memory that a thread keeps from call to call, since fresh pages cost more than the work on them; aligned to a vector.
template <typename X> class Buffer {
 public:
  X* of(i64 n) {
    if (n > size_) {
      std::free(data_);
      const size_t bytes = (n * sizeof(X) + 63) / 64 * 64;
      data_ = static_cast<X*>(std::aligned_alloc(64, bytes));
      size_ = n;
    }
    return data_;
  }
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

 private:
  X* data_ = nullptr;
  i64 size_ = 0;
};
