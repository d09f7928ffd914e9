// Mamba-2's recurrence and its gradients (ops/ssd.py): S_t = a_t·S_{t−1} + x_t⊗B_t, y_t = S_t·C_t, one S per head, where
// x here is dt·x already.
//
// All four passes are one loop over positions, `scan`, which differs in what drives the state and what reads it:
//
//   result      driven by      read by   lanes of a vector   time
//   y           B_t  ⊗ x_t     C_t       head width          forward
//   dC          x_t  ⊗ B_t     g_t       state               forward       (S again, with its axes swapped)
//   dB          g_t  ⊗ C_t     x_t       state               backward      dS_t = a_{t+1}·dS_{t+1} + g_t⊗C_t
//   dx          C_t  ⊗ g_t     B_t       head width          backward
//
// A tile of the state stays in registers while time runs over a block of positions: three operations per number of the
// state, and no sum across lanes.
//
// The gradient of log a_t is a_t·⟨dS_t, S_{t−1}⟩, which would need both states at every position. With w(u, s) what
// input s contributes to the loss through output u, it is the sum of w over u ≥ t > s, and so
//   Σ_{u ≥ t} (Σ_s w(u, s) − Σ_v w(v, u)) = Σ_{u ≥ t} (C_u·dC_u − B_u·dB_u).
// Example with positions 0 1 2 and t = 1: (w₁₀ + w₁₁) − (w₁₁ + w₂₁) + (w₂₀ + w₂₁ + w₂₂) − w₂₂ = w₁₀ + w₂₀: the pairs
// on both sides of t. Pairs of a position with itself cancel, and are mostly the largest: dB and dC are read before the
// position drives the state, so that they are not in them, and its own share is added afterwards. The sum starts anew in
// each block of positions, from ⟨a·dS, S⟩ at its end, so that its rounding does not grow with the length.
//
// Legend: B sequences, L positions, H heads, P head width, N state, C = H·P + 2N channels; axes are padded to SUB.
#include <algorithm>

#include "tile.h"

namespace {

constexpr i64 TIME = 64;  // positions of a block

inline i64 padded(i64 n) { return (n + SUB - 1) / SUB * SUB; }

// V vectors of lanes and N rows of a state, over `steps` positions from t on, in the direction `by`. EARLY: the state is
// read before the position's own share is added.
template <bool EARLY, typename W, int V, int N>
inline void scan_tile(i64 steps, i64 t, i64 by, const W* keep, const W* drive, const W* read, i64 rows, const W* along,
                      W* out, i64 lanes, W* state) {
  using Vector = typename VectorOf<W>::type;
  constexpr i64 LANES = sizeof(Vector) / sizeof(W);
  Vector s[N][V];
#pragma GCC unroll 8
  for (int n = 0; n < N; n++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) std::memcpy(&s[n][v], state + n * lanes + v * LANES, sizeof(Vector));
  for (i64 step = 0; step < steps; step++, t += by) {
    Vector x[V], y[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
      std::memcpy(&x[v], along + t * lanes + v * LANES, sizeof(Vector));
      std::memcpy(&y[v], out + t * lanes + v * LANES, sizeof(Vector));
    }
    const W k = keep[t];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
      const W d = drive[t * rows + n], r = read[t * rows + n];
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) {
        if constexpr (EARLY) {
          s[n][v] *= k;
          y[v] += s[n][v] * r;
          s[n][v] += x[v] * d;
        } else {
          s[n][v] = s[n][v] * k + x[v] * d;
          y[v] += s[n][v] * r;
        }
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) std::memcpy(out + t * lanes + v * LANES, &y[v], sizeof(Vector));
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; n++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) std::memcpy(state + n * lanes + v * LANES, &s[n][v], sizeof(Vector));
}

#ifdef __AVX512F__
constexpr int WIDE_TILE = 4, TILE_ROWS = 4;  // 16 vectors of state, 8 of x and y, of 32 registers
#else
constexpr int WIDE_TILE = 2, TILE_ROWS = 4;  // 8 and 4 of 16
#endif

// state (rows, lanes) ← keep_t·state + drive_t⊗along_t, out_t += read_t·state, for all positions of a block;
// drive and read are (TIME, rows), along and out (TIME, lanes).
template <bool EARLY, typename W>
void scan(i64 steps, bool backward, const W* keep, const W* drive, const W* read, i64 rows, const W* along, W* out,
          i64 lanes, W* state) {
  constexpr i64 LANES = VECTOR_BYTES / i64(sizeof(W));
  const i64 from = backward ? steps - 1 : 0, by = backward ? -1 : 1;
  i64 l = 0;
  for (; l + WIDE_TILE * LANES <= lanes; l += WIDE_TILE * LANES)
    for (i64 r = 0; r < rows; r += TILE_ROWS)
      scan_tile<EARLY, W, WIDE_TILE, TILE_ROWS>(steps, from, by, keep, drive + r, read + r, rows, along + l, out + l, lanes,
                                         state + r * lanes + l);
  for (; l < lanes; l += LANES)
    for (i64 r = 0; r < rows; r += TILE_ROWS)
      scan_tile<EARLY, W, 1, TILE_ROWS>(steps, from, by, keep, drive + r, read + r, rows, along + l, out + l, lanes,
                                 state + r * lanes + l);
}

template <typename T> struct Problem {
  using W = Wide<T>;
  const T* channels;          // (B, L, C)
  const W *dt, *decay, *skip; // (B, L, H), (B, L, H), (H)
  const bool* first;          // (B, L) where the state is 0 before, or null
  i64 batch, length, heads, width, state;

  i64 row() const { return heads * width + 2 * state; }
  i64 blocks() const { return (length + TIME - 1) / TIME; }
  const T* at(i64 b, i64 t) const { return channels + (b * length + t) * row(); }
  i64 step(i64 b, i64 t, i64 h) const { return (b * length + t) * heads + h; }
  i64 output(i64 b, i64 t, i64 h) const { return ((b * length + t) * heads + h) * width; }
  // a_t: what is kept of the state before; 0 where a document begins, and behind the end.
  W kept(i64 b, i64 t, i64 h) const {
    if (t >= length || (first && first[b * length + t])) return 0;
    return std::exp(decay[step(b, t, h)]);
  }
};

template <typename W> inline W dot(const W* x, const W* y, i64 n) {
  W sum = 0;
#pragma omp simd reduction(+ : sum)
  for (i64 i = 0; i < n; i++) sum += x[i] * y[i];
  return sum;
}

// A block of positions of one head, widened and padded.
template <typename T> struct Block {
  using W = Wide<T>;
  i64 lanes, states;  // P and N, padded
  Buffer<W> x, g, b, c, y, d_b, d_c;
  W keep[TIME], later[TIME];  // a_t and a_{t+1}

  void start(const Problem<T>& p) {
    lanes = padded(p.width), states = padded(p.state);
    for (Buffer<W>* each : {&x, &g, &y}) clear(each->of(TIME * lanes), TIME * lanes);
    for (Buffer<W>* each : {&b, &c, &d_b, &d_c}) clear(each->of(TIME * states), TIME * states);
  }
  static void clear(W* x, i64 n) { std::memset(x, 0, n * sizeof(W)); }
  // x_t·g_t: how position t's own input drives its own output
  W own(i64 t) { return dot(x.of(0) + t * lanes, g.of(0) + t * lanes, lanes); }

  void read(const Problem<T>& p, i64 sequence, i64 h, i64 from, i64 steps, const T* d_out) {
    for (i64 t = 0; t < steps; t++) {
      const T* row = p.at(sequence, from + t);
      const T *values = row + h * p.width, *inputs = row + p.heads * p.width, *outputs = inputs + p.state;
      const W dt = p.dt[p.step(sequence, from + t, h)];
      W *xt = x.of(0) + t * lanes, *bt = b.of(0) + t * states, *ct = c.of(0) + t * states;
#pragma omp simd
      for (i64 i = 0; i < p.width; i++) xt[i] = dt * wide(values[i]);
#pragma omp simd
      for (i64 n = 0; n < p.state; n++) bt[n] = wide(inputs[n]), ct[n] = wide(outputs[n]);
      keep[t] = p.kept(sequence, from + t, h);
      later[t] = p.kept(sequence, from + t + 1, h);
      if (!d_out) continue;
      const T* gt = d_out + p.output(sequence, from + t, h);
      W* to = g.of(0) + t * lanes;
#pragma omp simd
      for (i64 i = 0; i < p.width; i++) to[i] = wide(gt[i]);
    }
  }
};

// before, after: (B, H, N, P) or null
template <typename T> void forward(const Problem<T>& p, const Wide<T>* before, Wide<T>* after, T* out) {
  using W = Wide<T>;
#pragma omp parallel if (p.batch * p.heads > 1 && p.length * p.width * p.state > (i64(1) << 14))
  {
    thread_local Block<T> block;
    thread_local Buffer<W> states;
    block.start(p);
    W* state = states.of(block.states * block.lanes);
#pragma omp for schedule(static)
    for (i64 task = 0; task < p.batch * p.heads; task++) {
      const i64 b = task / p.heads, h = task % p.heads;
      Block<T>::clear(state, block.states * block.lanes);
      if (before)
        for (i64 n = 0; n < p.state; n++)
          std::copy_n(before + (task * p.state + n) * p.width, p.width, state + n * block.lanes);
      for (i64 from = 0; from < p.length; from += TIME) {
        const i64 steps = std::min(TIME, p.length - from);
        block.read(p, b, h, from, steps, nullptr);
        W* y = block.y.of(0);
        for (i64 t = 0; t < steps; t++) {
          const T* x = p.at(b, from + t) + h * p.width;
#pragma omp simd
          for (i64 i = 0; i < p.width; i++) y[t * block.lanes + i] = p.skip[h] * wide(x[i]);
        }
        scan<false>(steps, false, block.keep, block.b.of(0), block.c.of(0), block.states, block.x.of(0), y, block.lanes,
             state);
        for (i64 t = 0; t < steps; t++) {
          T* to = out + p.output(b, from + t, h);
#pragma omp simd
          for (i64 i = 0; i < p.width; i++) to[i] = narrow<T>(y[t * block.lanes + i]);
        }
      }
      if (after)
        for (i64 n = 0; n < p.state; n++)
          std::copy_n(state + n * block.lanes, p.width, after + (task * p.state + n) * p.width);
    }
  }
}

template <typename T> struct Gradients {
  using W = Wide<T>;
  const T* d_out;     // (B, L, H, P)
  i64 groups;         // into which heads are shared out, each with sums of its own
  T* d_x;             // (B, L, H, P)
  W* d_inputs;        // (G, B, L, 2N): of B and C
  W *d_dt, *d_decay;  // (B, L, H)
  W* d_skip;          // (B, H)
};

// What a thread keeps of one head: S and dS with their axes either way, S at the ends of blocks, C·dC − B·dB.
template <typename W> struct Memory {
  Buffer<W> swapped, ends, d_swapped, d_state, slopes;
};

// dC and S at the ends of blocks, in the order of time.
template <typename T>
void backward_states(const Problem<T>& p, const Gradients<T>& grads, Block<T>& block, Memory<Wide<T>>& m, i64 b, i64 h,
                     Wide<T>* sums) {
  using W = Wide<T>;
  const i64 size = block.lanes * block.states;
  W* state = m.swapped.of(size);
  Block<T>::clear(state, size);
  for (i64 number = 0; number < p.blocks(); number++) {
    const i64 from = number * TIME, steps = std::min(TIME, p.length - from);
    block.read(p, b, h, from, steps, grads.d_out);
    W* d_c = block.d_c.of(0);
    Block<T>::clear(d_c, TIME * block.states);
    scan<true>(steps, false, block.keep, block.x.of(0), block.g.of(0), block.lanes, block.b.of(0), d_c, block.states, state);
    std::copy_n(state, size, m.ends.of(0) + number * size);
    for (i64 t = 0; t < steps; t++) {
      W* to = sums + (from + t) * 2 * p.state + p.state;
      const W *row = d_c + t * block.states, *input = block.b.of(0) + t * block.states;
      const W own = block.own(t);
#pragma omp simd
      for (i64 n = 0; n < p.state; n++) to[n] += row[n] + own * input[n];
      m.slopes.of(0)[from + t] = dot(block.c.of(0) + t * block.states, row, block.states);
    }
  }
}

// dB, dx and all that follows from them, backward in time.
template <typename T>
void backward_inputs(const Problem<T>& p, const Gradients<T>& grads, Block<T>& block, Memory<Wide<T>>& m, i64 b, i64 h,
                     Wide<T>* sums) {
  using W = Wide<T>;
  const i64 size = block.lanes * block.states;
  W *d_swapped = m.d_swapped.of(size), *d_state = m.d_state.of(size);
  double d_skip = 0;  // of many positions
  Block<T>::clear(d_swapped, size);
  Block<T>::clear(d_state, size);
  for (i64 number = p.blocks() - 1; number >= 0; number--) {
    const i64 from = number * TIME, steps = std::min(TIME, p.length - from);
    block.read(p, b, h, from, steps, grads.d_out);
    double slope = block.later[steps - 1] * dot(d_swapped, m.ends.of(0) + number * size, size);
    W *d_b = block.d_b.of(0), *d_x = block.y.of(0);
    Block<T>::clear(d_b, TIME * block.states);
    Block<T>::clear(d_x, TIME * block.lanes);
    scan<true>(steps, true, block.later, block.g.of(0), block.x.of(0), block.lanes, block.c.of(0), d_b, block.states,
         d_swapped);
    scan<false>(steps, true, block.later, block.c.of(0), block.b.of(0), block.states, block.g.of(0), d_x, block.lanes,
         d_state);
    for (i64 t = steps - 1; t >= 0; t--) {
      const i64 step = p.step(b, from + t, h);
      W* to = sums + (from + t) * 2 * p.state;
      const W *row = d_b + t * block.states, *output = block.c.of(0) + t * block.states, own = block.own(t);
      const W *dx = d_x + t * block.lanes, *g = block.g.of(0) + t * block.lanes;
#pragma omp simd
      for (i64 n = 0; n < p.state; n++) to[n] += row[n] + own * output[n];
      slope += m.slopes.of(0)[from + t] - dot(block.b.of(0) + t * block.states, row, block.states);
      const bool begins = p.first && p.first[b * p.length + from + t];
      if (begins) slope = 0;  // nothing before it counts, through no position from here on
      grads.d_decay[step] = W(slope);
      const T* x = p.at(b, from + t) + h * p.width;
      T* out = grads.d_x + p.output(b, from + t, h);
      const W dt = p.dt[step], skip = p.skip[h];
      W d_dt = 0, along = 0;
#pragma omp simd reduction(+ : d_dt, along)
      for (i64 i = 0; i < p.width; i++) {
        const W value = wide(x[i]);
        d_dt += dx[i] * value;
        along += g[i] * value;
        out[i] = narrow<T>(dt * dx[i] + skip * g[i]);
      }
      grads.d_dt[step] = d_dt;
      d_skip += along;
    }
  }
  grads.d_skip[b * p.heads + h] = W(d_skip);
}

template <typename T> void backward(const Problem<T>& p, const Gradients<T>& grads) {
  using W = Wide<T>;
#pragma omp parallel if (p.batch * grads.groups > 1)
  {
    thread_local Block<T> block;
    thread_local Memory<W> memory;
    block.start(p);
    memory.ends.of(p.blocks() * block.lanes * block.states);
    memory.slopes.of(p.length);
#pragma omp for schedule(static)
    for (i64 task = 0; task < p.batch * grads.groups; task++) {
      const i64 b = task / grads.groups, group = task % grads.groups;
      W* sums = grads.d_inputs + (group * p.batch + b) * p.length * 2 * p.state;
      std::memset(sums, 0, p.length * 2 * p.state * sizeof(W));
      for (i64 h = p.heads * group / grads.groups; h < p.heads * (group + 1) / grads.groups; h++) {
        backward_states(p, grads, block, memory, b, h, sums);
        backward_inputs(p, grads, block, memory, b, h, sums);
      }
    }
  }
}

template <typename T>
Problem<T> problem(const void* channels, const void* dt, const void* decay, const void* skip, const void* first,
                   i64 batch, i64 length, i64 heads, i64 width, i64 state) {
  using W = Wide<T>;
  return {(const T*)channels, (const W*)dt, (const W*)decay, (const W*)skip, (const bool*)first, batch, length, heads,
          width, state};
}

}  // namespace

extern "C" void ssd_forward(i64 dtype, const void* channels, const void* dt, const void* decay, const void* skip,
                            const void* first, i64 batch, i64 length, i64 heads, i64 width, i64 state,
                            const void* before, void* after, void* out) {
  BY_DTYPE(dtype, forward<T>(problem<T>(channels, dt, decay, skip, first, batch, length, heads, width, state),
                             (const Wide<T>*)before, (Wide<T>*)after, (T*)out));
}

extern "C" void ssd_backward(i64 dtype, const void* channels, const void* dt, const void* decay, const void* skip,
                             const void* first, i64 batch, i64 length, i64 heads, i64 width, i64 state,
                             const void* d_out, i64 groups, void* d_x, void* d_inputs, void* d_dt, void* d_decay,
                             void* d_skip) {
  BY_DTYPE(dtype, backward<T>(problem<T>(channels, dt, decay, skip, first, batch, length, heads, width, state),
                              {(const T*)d_out, groups, (T*)d_x, (Wide<T>*)d_inputs, (Wide<T>*)d_dt,
                               (Wide<T>*)d_decay, (Wide<T>*)d_skip}));
}
