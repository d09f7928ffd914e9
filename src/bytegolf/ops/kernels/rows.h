// Rows shared out to threads in equal runs, each with its own partial sums, which are added in the order of the rows.
#pragma once

#include <algorithm>

#include "common.h"

// How many runs to cut `rows` of `width` elements into: one where a second thread would cost more to wake than it
// saves.
inline int runs_of(i64 rows, i64 width) {
  if (rows * width < (i64(1) << 14)) return 1;
  return int(std::min<i64>(rows, omp_get_max_threads()));
}

// Calls work(run, first, last) for the rows [first, last) of each run.
template <typename Work> inline void over_rows(int runs, i64 rows, Work work) {
#pragma omp parallel for schedule(static) num_threads(runs) if (runs > 1)
  for (int run = 0; run < runs; run++) work(run, rows * run / runs, rows * (run + 1) / runs);
}

// total[d] = Σ over runs of partial[run][d]. In the order of the runs and not of their ending, so that a sum is the
// same each time; with another number of threads it may differ in its last bits.
template <typename W> inline void add_runs(const std::vector<W>& partial, int runs, i64 size, W* total) {
  for (i64 d = 0; d < size; d++) total[d] = 0;
  for (int run = 0; run < runs; run++)
    for (i64 d = 0; d < size; d++) total[d] += partial[run * size + d];
}
