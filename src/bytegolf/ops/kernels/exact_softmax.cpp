// Probabilities in fp64 from fp32 logits, the same bits on every CPU: no library's exponential is asked.
#include "exact_lanes.h"

namespace {

// e^x for x ≤ 0, to about one unit in the last place: 2^n·e^r as ``fast_exp`` has it, with the series up to r¹³/13!.
// ln 2 is taken off in two parts, the first of which has 21 zero bits at its end, so that n times it is exact.
double exponential(double x) {
  x = x < -700 ? -700 : x;
  const double n = std::nearbyint(x * 1.4426950408889634);
  double r = std::fma(n, -6.93147180369123816490e-01, x);
  r = std::fma(n, -1.90821492927058770002e-10, r);
  constexpr double FACTORIALS[] = {6227020800.0, 479001600.0, 39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0,
                                   720.0,        120.0,       24.0,       6.0,       2.0,      1.0,     1.0};
  double sum = 0;
  for (const double factorial : FACTORIALS) sum = std::fma(sum, r, 1 / factorial);
  return sum * __builtin_bit_cast(double, (static_cast<i64>(n) + 1023) << 52);
}

}  // namespace

// p (rows, columns) of the logits from column `first` on, of rows of `stride` logits.
extern "C" void exact_softmax(i64, const void* logits, i64 rows, i64 stride, i64 first, void* p) {
  const i64 columns = stride - first;
  for (i64 r = 0; r < rows; r++) {
    const float* z = static_cast<const float*>(logits) + r * stride + first;
    double* out = static_cast<double*>(p) + r * columns;
    const double top = *std::max_element(z, z + columns);
    for (i64 c = 0; c < columns; c++) out[c] = exponential(double(z[c]) - top);
    double sum = 0;
    for (i64 c = 0; c < columns; c++) sum += out[c];
    for (i64 c = 0; c < columns; c++) out[c] /= sum;
  }
}
