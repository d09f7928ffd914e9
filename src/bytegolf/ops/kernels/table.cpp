// The update of an embedding table by row (ops/sparse_rmsprop.py): only rows with a gradient are touched.
#include <algorithm>
#include <utility>

#include "common.h"

namespace {

// A row's number in the table, and which of the gradients is its.
struct Entry {
  uint32_t row, from;
};

constexpr int DIGIT = 11;  // bits by which a pass sorts: 2,048 counters stay in the nearest cache

// The entries of `rows` in the order of their row, those of one row in the order in which they came.
//
// From the lowest digit to the highest, each pass keeps the order of the one before among equals: with two digits,
// 21 12 11 22 become 21 11 12 22 by the last, and 11 12 21 22 by the first.
std::vector<Entry> in_order(const i64* rows, i64 size) {
  std::vector<Entry> entries(size), other(size);
  uint32_t highest = 0;
  for (i64 i = 0; i < size; i++) {
    entries[i] = {(uint32_t)rows[i], (uint32_t)i};
    highest = std::max(highest, entries[i].row);
  }
  for (int shift = 0; shift < 32 && highest >> shift; shift += DIGIT) {
    i64 places[1 << DIGIT] = {};
    const uint32_t mask = (1 << DIGIT) - 1;
    for (const Entry& entry : entries) places[entry.row >> shift & mask]++;
    i64 begin = 0;
    for (i64& place : places) begin += std::exchange(place, begin);
    for (const Entry& entry : entries) other[places[entry.row >> shift & mask]++] = entry;
    entries.swap(other);
  }
  return entries;
}

constexpr i64 AHEAD = 12;  // entries by which memory is asked for what is far apart in it: two lines' time of waiting

}  // namespace

// gradients[i] (width) belongs to row rows[i], and those of one row are summed in their order. Fewer than 2³² rows.
// squares ← β·squares + (1 − β)·g²; counts ← counts + 1; table ← table − lr·g·√(1 − β^counts) / (√squares + ε).
extern "C" void row_adam(i64, void* table, void* squares, void* counts, const void* rows, const void* gradients,
                         i64 size, i64 width, double lr, double beta, double eps) {
  float *w = (float*)table, *v = (float*)squares, *n = (float*)counts;
  const std::vector<Entry> entries = in_order((const i64*)rows, size);
  const Entry* entry = entries.data();
  const float* g = (const float*)gradients;
  const float keep = (float)beta, take = (float)(1 - beta), tiny = (float)eps;
#pragma omp parallel
  {
    const i64 threads = omp_get_num_threads(), me = omp_get_thread_num();
    i64 at = size * me / threads, end = size * (me + 1) / threads;
    // A row belongs to the thread in whose share it starts, so no two write to one. Of the sorted rows 3 3 5 5 5 8 and
    // two threads, the shares are 3 3 5 and 5 5 8: the first goes on to the end of 5, the second begins at 8.
    while (at > 0 && at < size && entry[at].row == entry[at - 1].row) at++;
    std::vector<float> sum(width);
    while (at < end) {
      const i64 r = entry[at].row;
      std::memset(sum.data(), 0, width * sizeof(float));
      for (; at < size && entry[at].row == r; at++) {
        if (at + AHEAD < size) {
          const Entry& later = entry[at + AHEAD];
          __builtin_prefetch(g + later.from * width);
          __builtin_prefetch(w + later.row * width, 1);
          __builtin_prefetch(v + later.row * width, 1);
          __builtin_prefetch(n + later.row, 1);
        }
        const float* part = g + entry[at].from * width;
#pragma omp simd
        for (i64 d = 0; d < width; d++) sum[d] += part[d];
      }
      const float count = n[r] += 1;
      const float rate = (float)(lr * std::sqrt(1 - std::pow(beta, (double)count)));
      float *wr = w + r * width, *vr = v + r * width;
#pragma omp simd
      for (i64 d = 0; d < width; d++) {
        const float square = keep * vr[d] + take * sum[d] * sum[d];
        vr[d] = square;
        wr[d] -= rate * sum[d] / (std::sqrt(square) + tiny);
      }
    }
  }
}
