// What all kernels share: bf16, the choice of an instance by dtype, sums, exponentials.
//
// Every kernel is an extern "C" function whose first argument is a dtype code (0 bf16, 1 fp32, 2 fp64: the dtype T of
// activations). Statistics and sums are in Wide<T>: fp32, or fp64 for fp64. Parameters' gradients are written as
// Wide<T>. Rows are shared out to threads in equal runs, so results do not depend on timing.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#else
inline int omp_get_max_threads() { return 1; }
inline int omp_get_thread_num() { return 0; }
inline int omp_get_num_threads() { return 1; }
#endif

using i64 = int64_t;

// A scalar type, not a struct: loops over structs do not vectorise.
enum bf16 : uint16_t {};

template <typename T> struct WideOf { using type = float; };
template <> struct WideOf<double> { using type = double; };
template <typename T> using Wide = typename WideOf<T>::type;

inline float wide(bf16 x) { return __builtin_bit_cast(float, static_cast<uint32_t>(x) << 16); }
inline float wide(float x) { return x; }
inline double wide(double x) { return x; }

// Rounds to the nearest T, ties to even; NaN stays NaN.
//
// bf16 is the upper half of an fp32. Adding 0x7fff carries into it where the lower half is above 0x8000, and adding its
// own last bit makes a tie carry only where that bit is 1:
//   0x3f808000, halfway between 0x3f80 (even) and 0x3f81: + 0x7fff + 0 = 0x3f80ffff, so 0x3f80
//   0x3f818000, halfway between 0x3f81 and 0x3f82 (even): + 0x7fff + 1 = 0x3f820000, so 0x3f82
// A NaN whose payload lies in the lower half alone would become infinity, hence the constant.
template <typename T> inline T narrow(Wide<T> x) { return x; }
template <> inline bf16 narrow<bf16>(float x) {
  const uint32_t u = __builtin_bit_cast(uint32_t, x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return static_cast<bf16>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// exp for x ≤ 0 or moderate x, branch-free so that loops over it vectorise: 2^n · polynomial, ~1e-7 relative.
//
// With n = round(x / ln 2) and r = x − n·ln 2 in [−0.347, 0.347], e^x = 2^n · e^r. ln 2 is taken off in two parts: the
// first, 0.693359375 = 355/512, has so few bits that n times it is exact, and the second is the rest. 2^n is made by
// writing n into the exponent's bits. Below −87, 2^n would leave the normal numbers: all of that counts as 2e-38.
inline float fast_exp(float x) {
  x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  float n = std::nearbyint(x * 1.44269504f);
  float r = std::fma(n, -0.693359375f, x);
  r = std::fma(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = std::fma(p, r, 1.3981999507e-3f);
  p = std::fma(p, r, 8.3334519073e-3f);
  p = std::fma(p, r, 4.1665795894e-2f);
  p = std::fma(p, r, 1.6666665459e-1f);
  p = std::fma(p, r, 5.0000001201e-1f);
  p = std::fma(p, r * r, r + 1.0f);
  return p * __builtin_bit_cast(float, (static_cast<int32_t>(n) + 127) << 23);
}
inline double fast_exp(double x) { return std::exp(x); }
template <typename W> inline W sigmoid(W x) { return W(1) / (W(1) + fast_exp(-x)); }

// Runs EXPRESSION with T standing for the dtype of `code`: BY_DTYPE(dtype, forward<T>((const T*)x, rows)).
#define BY_DTYPE(code, EXPRESSION)                         \
  do {                                                     \
    if ((code) == 0) { using T = bf16; EXPRESSION; }       \
    else if ((code) == 1) { using T = float; EXPRESSION; } \
    else { using T = double; EXPRESSION; }                 \
  } while (0)
