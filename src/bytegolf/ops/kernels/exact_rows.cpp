// Products with a matrix where it lies, row by row, in fp32, bf16 or int8 codes: weights are read once, whatever the
// number of inputs to them, and never written down in another dtype.
//
// A bf16 is the upper half of an fp32. So of 32 weights, read as 16 pairs, a shift gives the even ones and a mask the odd
// ones, exactly; x is put in the same order first, once per call. (why) Not AVX-512's own products of bf16: they would
// round x to bf16, and at one position the processor waits for memory anyway.
//
// Codes become fp32 as they are, and a row's scale multiplies its sum. (why) Not the processor's products of bytes: they
// would round x as well, and a byte a weight is read as fast as this works.
#include "exact_lanes.h"

namespace {

constexpr i64 BLOCK = 2 * LANES;

struct Pair { Lanes first, second; };

// The weights of a block in the order in which ``arrange`` puts x.
inline Pair block(const float* w) { return {load(w), load(w + LANES)}; }

using i8 = signed char;

#if defined(__AVX512F__)
inline Lanes codes(const i8* w) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w))))};
}
inline Pair block(const bf16* w) {
  const __m512i pairs = _mm512_loadu_si512(w), odd = _mm512_set1_epi32(int(0xffff0000));
  return {{_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16))}, {_mm512_castsi512_ps(_mm512_and_si512(pairs, odd))}};
}
#elif defined(__AVX2__) && defined(__FMA__)
inline __m256 eight(const i8* w) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(w))));
}
inline Lanes codes(const i8* w) { return {eight(w), eight(w + LANES / 2)}; }
inline __m256i pairs(const bf16* w) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)); }
inline __m256 even(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline __m256 odd(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(int(0xffff0000))));
}
inline Pair block(const bf16* w) {
  const __m256i low = pairs(w), high = pairs(w + LANES);
  return {{even(low), even(high)}, {odd(low), odd(high)}};
}
#else
inline Lanes codes(const i8* w) {
  Lanes found;
  EACH_LANE found.v[l] = w[l];
  return found;
}
inline Pair block(const bf16* w) {
  Pair found;
  EACH_LANE found.first.v[l] = wide(w[2 * l]), found.second.v[l] = wide(w[2 * l + 1]);
  return found;
}
#endif

inline Pair block(const i8* w) { return {codes(w), codes(w + LANES)}; }

// `x` in whole blocks, with zeros behind its end.
void arrange(const float* x, i64 inputs, float* to, bool pairs) {
  for (i64 i = 0; i < round_up(inputs, BLOCK); i++) {
    const i64 place = i % BLOCK, from = i / BLOCK * BLOCK + (pairs ? place % LANES * 2 + place / LANES : place);
    to[i] = from < inputs ? x[from] : 0.0f;
  }
}

// The weights, from some row on, and the scales of codes.
template <typename W>
struct Part {
  const W* weight;
  const float* scale;
  Part from(i64 row, i64 inputs) const { return {weight + row * inputs, scale ? scale + row : nullptr}; }
};

// R rows of x by O rows of the matrix: all sums stay in registers.
template <int R, int O, typename W>
inline void tile(Part<W> part, i64 inputs, const float* x, i64 x_row, float* y, i64 y_row) {
  const W* w = part.weight;
  constexpr i64 AHEAD = 1024;  // bytes: what the processor fetches by itself ends with a page
  Lanes sums[R][O][2];
  W last[O][BLOCK] = {};  // behind a row's end lies the next row, or nothing
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int o = 0; o < O; o++) sums[r][o][0] = sums[r][o][1] = all(0);
  const auto take = [&](const W* from, i64 stride, i64 i) {
    Pair weights[O];
#pragma GCC unroll 8
    for (int o = 0; o < O; o++) {
      weights[o] = block(from + o * stride);
      __builtin_prefetch(reinterpret_cast<const char*>(from + o * stride) + AHEAD);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const Lanes first = load(x + r * x_row + i), second = load(x + r * x_row + i + LANES);
#pragma GCC unroll 8
      for (int o = 0; o < O; o++) {
        sums[r][o][0] = fma(weights[o].first, first, sums[r][o][0]);
        sums[r][o][1] = fma(weights[o].second, second, sums[r][o][1]);
      }
    }
  };
  const i64 whole = inputs / BLOCK * BLOCK;
  for (i64 i = 0; i < whole; i += BLOCK) take(w + i, inputs, i);
  if (whole < inputs) {
    for (int o = 0; o < O; o++) std::copy_n(w + o * inputs + whole, inputs - whole, last[o]);
    take(last[0], BLOCK, whole);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int o = 0; o < O; o++) {
      const float sum = total(add(sums[r][o][0], sums[r][o][1]));
      y[r * y_row + o] = part.scale ? sum * part.scale[o] : sum;
    }
}

// (why) One row of x takes one row of the matrix at a time: a single stream of memory is read fastest. Several rows take
// six, for work in registers: 12 sums of two vectors.
template <int O, typename W>
inline void strip(Part<W> w, i64 inputs, const float* x, i64 x_row, i64 rows, float* y, i64 y_row) {
  i64 r = 0;
  for (; r + 2 <= rows; r += 2) tile<2, O>(w, inputs, x + r * x_row, x_row, y + r * y_row, y_row);
  if (r < rows) tile<1, O>(w, inputs, x + r * x_row, x_row, y + r * y_row, y_row);
}

template <typename W>
void run(const Matrix& m, i64 first, i64 outputs, const float* x, i64 x_row, i64 rows, float* y, i64 y_row) {
  constexpr i64 O = 6;
  const Part<W> w = Part<W>{static_cast<const W*>(m.there), m.scales}.from(first, m.inputs);
  i64 o = 0;
  if (rows > 1)
    for (; o + O <= outputs; o += O) strip<O>(w.from(o, m.inputs), m.inputs, x, x_row, rows, y + o, y_row);
  for (; o < outputs; o++) strip<1>(w.from(o, m.inputs), m.inputs, x, x_row, rows, y + o, y_row);
}

// Weights of which a thread's share is worth a wait for the others: a tenth of a millisecond of reading.
constexpr i64 SHARED = i64(1) << 21;

}  // namespace

void product_where_it_lies(const Matrix& m, const float* x, i64 x_row, i64 rows, float* y, i64 y_row) {
  const i64 wide = round_up(m.inputs, BLOCK), outputs = m.outputs, inputs = m.inputs;
  Floats arranged(rows * wide);
  for (i64 r = 0; r < rows; r++) {
    arrange(x + r * x_row, inputs, arranged.data() + r * wide, m.kept == Matrix::HALF);
    std::fill(y + r * y_row + outputs, y + r * y_row + round_up(outputs, PANEL), 0.0f);
  }
  const i64 threads = outputs * inputs < SHARED ? 1 : omp_get_max_threads();
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (i64 part = 0; part < threads; part++) {
    const i64 from = outputs * part / threads, count = outputs * (part + 1) / threads - from;
    const float* from_x = arranged.data();
    if (m.kept == Matrix::HALF) run<bf16>(m, from, count, from_x, wide, rows, y + from, y_row);
    if (m.kept == Matrix::SINGLE) run<float>(m, from, count, from_x, wide, rows, y + from, y_row);
    if (m.kept == Matrix::CODES) run<i8>(m, from, count, from_x, wide, rows, y + from, y_row);
  }
}

// y (rows, outputs) in fp32 of x (rows, inputs) in fp32 and a matrix of bf16, or of codes where there are scales
// (ops/stored_product.py).
extern "C" void exact_stored_product(i64, const void* weight, const void* scales, i64 outputs, i64 inputs, const void* x,
                                     i64 rows, void* y) {
  const Matrix m =
      Matrix::at(scales ? Matrix::CODES : Matrix::HALF, weight, static_cast<const float*>(scales), outputs, inputs);
  const i64 padded = round_up(outputs, PANEL);
  if (padded == outputs)
    return product_where_it_lies(m, static_cast<const float*>(x), inputs, rows, static_cast<float*>(y), outputs);
  Floats found(rows * padded);
  product_where_it_lies(m, static_cast<const float*>(x), inputs, rows, found.data(), padded);
  for (i64 r = 0; r < rows; r++)
    std::copy_n(found.data() + r * padded, outputs, static_cast<float*>(y) + r * outputs);
}
