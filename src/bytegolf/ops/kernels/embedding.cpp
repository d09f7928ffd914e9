// The gradient of an embedding: what reaches each row of the table, summed in the order of the positions.
#include "rows.h"

namespace {

// Each thread has its own columns of the table, so none waits and the order of the sums never changes. Shared out by
// positions, two threads would add to the row of a frequent byte at the same time.
template <typename T> void sum_rows(const T* g, const i64* ids, Wide<T>* table, i64 rows, i64 entries, i64 width) {
  using W = Wide<T>;
  over_rows(runs_of(width, rows), width, [=](int, i64 first, i64 last) {
    for (i64 v = 0; v < entries; v++) std::fill(table + v * width + first, table + v * width + last, W(0));
    for (i64 r = 0; r < rows; r++) {
      const T* in = g + r * width;
      W* out = table + ids[r] * width;
#pragma omp simd
      for (i64 d = first; d < last; d++) out[d] += wide(in[d]);
    }
  });
}

}  // namespace

extern "C" void embedding_backward(i64 dtype, const void* g, const void* ids, void* table, i64 rows, i64 entries,
                                   i64 width) {
  BY_DTYPE(dtype, sum_rows<T>((const T*)g, (const i64*)ids, (Wide<T>*)table, rows, entries, width));
}
