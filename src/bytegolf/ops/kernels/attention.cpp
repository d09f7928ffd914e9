// Causal attention of grouped heads, full or to a window, from the packed projection to the merged heads.
//
// One task is a sequence and a key/value head. Keys and values are normalised, rotated and laid out for the products
// once; queries come in tiles of TILE positions of one head, whose scores against a tile of keys never leave the cache
// (FlashAttention, arXiv 2307.08691: running maximum in the forward pass, scores made anew in the backward pass).
// Blocks of SUB × SUB scores that the mask hides altogether are skipped. Scores are in units of log 2.
#include <algorithm>

#include "tile.h"

namespace {

constexpr i64 TILE = 64;
// Scores lie in [−bound, bound]. Up to this bound weights 2^(score − bound) lie above 2^−80, so a total of them is a
// normal fp32 number even where every score is the lowest, and no maximum need be looked for.
constexpr int MOST_BOUND = 40;
constexpr double LOG2_E = 1.4426950408889634, LN_2 = 0.6931471805599453;

template <typename T> struct Problem {
  using W = Wide<T>;
  const T* packed;       // (B, L, (H + 2G)·K): queries, keys, values
  const W *cos, *sin;    // (≥ L, turned/2)
  const W* gain;         // (H)
  const int32_t* ids;    // (B, L) each position's document, or null
  i64 batch, length, heads, groups, width, window;
  i64 turned;            // how many dimensions of a head are rotated, its first ones
  bool normed;           // whether q and k are normalised
  double eps;

  i64 shared() const { return heads / groups; }
  i64 padded() const { return (width + SUB - 1) / SUB * SUB; }
  i64 tiles() const { return (length + TILE - 1) / TILE; }
  i64 row() const { return (heads + 2 * groups) * width; }
  const T* at(i64 b, i64 position, i64 head) const { return packed + (b * length + position) * row() + head * width; }
  // A later position, as far as there is one.
  i64 ahead(i64 position, i64 by) const { return std::min(position + by, length - 1); }
  i64 reach() const { return window > 0 && window < length ? window : length; }
  i64 first_tile(i64 i0) const { return i0 + 1 > reach() ? (i0 + 1 - reach()) / TILE : 0; }

  // The columns of the key tile at j0 that SUB queries from i on may see, [from, to) in whole blocks.
  // A window of 20, queries 32 … 47, the tile at 0: query 32 sees the keys 13 … 32 and query 47 the keys 28 … 47, so
  // columns 13 … 47, in blocks of 16 from 0 to 48.
  void columns(i64 i, i64 j0, i64& from, i64& to) const {
    from = i - reach() + 1 - j0;
    from = from < 0 ? 0 : from / SUB * SUB;
    to = i + SUB - j0 < TILE ? i + SUB - j0 : TILE;
  }
  // The rows of the query tile at i0 that may see SUB keys from j on: the same blocks, read the other way.
  // A window of 20, keys 16 … 31, the tile at 0: key 16 is seen from queries 16 … 35 and key 31 from 31 … 50, so rows
  // 16 … 50, in blocks from 16 to 64.
  void rows(i64 j, i64 i0, i64& from, i64& to) const {
    from = j > i0 ? j - i0 : 0;
    to = (j + SUB - 1 + reach() - i0 + SUB - 1) / SUB * SUB;
    to = to < TILE ? to : TILE;
    const i64 filled = (length - i0 + SUB - 1) / SUB * SUB;
    to = to < filled ? to : filled;
  }
};

// Runs EXPRESSION with K standing for the head width: as a constant where it is a usual one, for shorter loops.
#define BY_WIDTH(width, ...)                           \
  do {                                                        \
    if ((width) == 64) { constexpr i64 K = 64; __VA_ARGS__; }  \
    else if ((width) == 32) { constexpr i64 K = 32; __VA_ARGS__; } \
    else { const i64 K = (width); __VA_ARGS__; }               \
  } while (0)

template <typename T> inline Wide<T> inverse_rms(const T* x, i64 K, double eps) {
  using W = Wide<T>;
  W sum = 0;
#pragma omp simd reduction(+ : sum)
  for (i64 d = 0; d < K; d++) sum += wide(x[d]) * wide(x[d]);
  return W(1) / std::sqrt(sum / W(K) + W(eps));
}

// y = factor · rotated(normalised(x)), or without the norm; dimensions from p.turned on are not rotated.
template <typename T, typename W = Wide<T>>
inline void turn_some(const Problem<T>& p, i64 K, i64 half, const T* __restrict x, i64 position, W scale,
                      W* __restrict y) {
  const W *__restrict cos = p.cos + position * half, *__restrict sin = p.sin + position * half;
#pragma omp simd
  for (i64 d = 0; d < half; d++) {
    const W u = wide(x[d]) * scale, v = wide(x[d + half]) * scale;
    y[d] = u * cos[d] + v * sin[d];
    y[d + half] = v * cos[d] - u * sin[d];
  }
}

template <typename T, typename W = Wide<T>>
inline void turn(const Problem<T>& p, i64 K, const T* __restrict x, i64 position, W factor, W* __restrict y) {
  if (p.normed && p.turned == K) {  // S0's: with a constant length, and no branch within
    turn_some(p, K, K / 2, x, position, inverse_rms(x, K, p.eps) * factor, y);
    return;
  }
  const W scale = p.normed ? inverse_rms(x, K, p.eps) * factor : factor;
  turn_some(p, K, p.turned / 2, x, position, scale, y);
#pragma omp simd
  for (i64 d = p.turned; d < K; d++) y[d] = wide(x[d]) * scale;
}

// The gradient of x from g, that of turn's result; g is overwritten. Returns the gradient of the factor.
//
// Rotated back by the same angle, g is the gradient of factor·s·x with s = 1/rms(x), and `dot` = Σ g·s·x that of the
// factor. Through the norm: dx = factor·s·(g − s·x·mean(g·s·x)); without one s = 1 and dx = factor·g.
template <typename T, typename W = Wide<T>>
inline W turn_back(const Problem<T>& p, i64 K, const T* __restrict x, i64 position, W factor, W* __restrict g,
                   T* __restrict dx) {
  const i64 turned = p.normed && p.turned == K ? K : p.turned, half = turned / 2;
  const W *__restrict cos = p.cos + position * half, *__restrict sin = p.sin + position * half;
  const W scale = p.normed ? inverse_rms(x, K, p.eps) : W(1);
  W dot = 0;
#pragma omp simd reduction(+ : dot)
  for (i64 d = 0; d < half; d++) {
    const W u = g[d] * cos[d] - g[d + half] * sin[d], v = g[d + half] * cos[d] + g[d] * sin[d];
    dot += u * wide(x[d]) + v * wide(x[d + half]);
    g[d] = u;
    g[d + half] = v;
  }
#pragma omp simd reduction(+ : dot)
  for (i64 d = turned; d < K; d++) dot += g[d] * wide(x[d]);
  dot *= scale;
  const W mean = p.normed ? dot / W(K) * scale : W(0), outer = scale * factor;
#pragma omp simd
  for (i64 d = 0; d < K; d++) dx[d] = narrow<T>((g[d] - wide(x[d]) * mean) * outer);
  return dot;
}

// Rows of one head lie far apart, where no prefetcher of the CPU's own finds them.
template <typename T> inline void prefetch(const T* x, i64 K) {
  for (i64 d = 0; d < K; d += 64 / i64(sizeof(T))) __builtin_prefetch(x + d);
}

template <typename T, typename W = Wide<T>> void widen(const T* x, i64 n, W* y) {
#pragma omp simd
  for (i64 d = 0; d < n; d++) y[d] = wide(x[d]);
}

template <typename C> void transpose(const C* x, i64 x_row, i64 columns, C* y) {
  for (i64 k = 0; k < columns; k++)
    for (i64 r = 0; r < TILE; r++) y[k * TILE + r] = x[r * x_row + k];
}

// A task's and a tile's operands. "along": cells along the head width; "across": along positions; "turned":
// along the head width and transposed, [K cells][TILE].
template <typename T> struct Workspace {
  using C = Cell<T>;
  using W = Wide<T>;
  i64 width, cells;  // padded head width, in numbers and in cells
  i64 tile;          // cells of a tile of keys
  Buffer<C> keys_turned, keys_across, values_turned, values_across;
  Buffer<W> d_keys, d_values;
  Buffer<W> rows, query_sums;
  Buffer<C> along, q_along, q_across, g_along, g_across;
  alignas(64) W scores[SUB * TILE], d_weights[SUB * TILE];
  alignas(64) C weights_along[SUB * TILE], weights_across[TILE * TILE], d_scores_across[TILE * TILE];
  alignas(64) W most[TILE], total[TILE * SUB], log_total[TILE], dot[TILE];

  void start(const Problem<T>& p, bool backward) {
    width = p.padded(), cells = width / IN_CELL<C>, tile = TILE * cells;
    const i64 n = p.tiles() * tile;
    keys_turned.of(n), values_across.of(n);
    rows.of(TILE * width), query_sums.of(TILE * width);
    along.of(tile), q_along.of(tile);
    if (!backward) return;
    keys_across.of(n), values_turned.of(n);
    d_keys.of(p.tiles() * TILE * width), d_values.of(p.tiles() * TILE * width);
    q_across.of(tile), g_along.of(tile), g_across.of(tile);
  }

  // Fills the padding of `rows` behind `count` rows; each row's own padding is zero from the first filling on.
  W* cleared(i64 count) {
    W* x = rows.of(0);
    if (count < TILE) std::memset(x + count * width, 0, (TILE - count) * width * sizeof(W));
    return x;
  }

  void pack_along(const W* x, C* y) {
    for (i64 r = 0; r < TILE; r++) pack_row(x + r * width, y + r * cells, width);
  }

  void lay_out_keys(const Problem<T>& p, i64 b, i64 g, bool backward) {
    W* x = rows.of(0);
    std::memset(x, 0, TILE * width * sizeof(W));
    for (i64 t = 0; t < p.tiles(); t++) {
      const i64 j0 = t * TILE, count = std::min(TILE, p.length - j0);
      cleared(count);
      BY_WIDTH(p.width, for (i64 r = 0; r < count; r++) {
        prefetch(p.at(b, p.ahead(j0 + r, SUB), p.heads + g), K);
        turn(p, K, p.at(b, j0 + r, p.heads + g), j0 + r, W(1), x + r * width);
      });
      pack_along(x, along.of(0));
      transpose(along.of(0), cells, cells, keys_turned.of(0) + t * tile);
      if (backward) pack_across(x, width, TILE, width, keys_across.of(0) + t * tile, width);
      for (i64 r = 0; r < count; r++) {
        prefetch(p.at(b, p.ahead(j0 + r, SUB), p.heads + p.groups + g), p.width);
        widen(p.at(b, j0 + r, p.heads + p.groups + g), p.width, x + r * width);
      }
      pack_across(x, width, TILE, width, values_across.of(0) + t * tile, width);
      if (!backward) continue;
      pack_along(x, along.of(0));
      transpose(along.of(0), cells, cells, values_turned.of(0) + t * tile);
    }
  }

  void lay_out_queries(const Problem<T>& p, i64 b, i64 h, i64 i0, i64 count, bool backward) {
    W* x = cleared(count);
    const W factor = p.gain[h] * W(LOG2_E / std::sqrt(double(p.width)));
    BY_WIDTH(p.width, for (i64 r = 0; r < count; r++) {
      prefetch(p.at(b, p.ahead(i0 + r, TILE), h), K);
      turn(p, K, p.at(b, i0 + r, h), i0 + r, factor, x + r * width);
    });
    pack_along(x, q_along.of(0));
    if (backward) pack_across(x, width, TILE, width, q_across.of(0), width);
  }

  // Scores of SUB queries from row r of the tile at i0 against the columns [from, to) of the key tile at j0.
  void score(const Problem<T>& p, i64 b, i64 i0, i64 r, i64 j0, i64 from, i64 to) {
    product(SUB, to - from, p.width / IN_CELL<C>, q_along.of(0) + r * cells, cells, i64(1),
            keys_turned.of(0) + j0 * cells + from, TILE, scores + from, TILE, false);
    for (i64 c = from; c < to; c += SUB) {
      // Distances of queries to keys in this block lie in [behind − 15, behind + 15]. If all of them are ≥ 0 and within
      // the window there is nothing to hide: most blocks of a long sequence go this way.
      const i64 behind = i0 + r - j0 - c;  // of the block's first query and key
      if (behind >= SUB - 1 && behind + SUB - 1 < p.reach()) continue;
      for (i64 k = 0; k < SUB; k++) {
        W* s = scores + k * TILE + c;
        const int32_t last = int32_t(behind + k), least = int32_t(behind + k - p.reach() + 1);
#pragma omp simd
        for (int32_t l = 0; l < int32_t(SUB); l++) s[l] = (l >= least) & (l <= last) ? s[l] : NEVER;
      }
    }
    if (!p.ids) return;
    const int32_t* ids = p.ids + b * p.length;
    const i64 keys = std::min(to, p.length - j0), queries = std::min(SUB, p.length - i0 - r);
    for (i64 k = 0; k < queries; k++) {
      W* s = scores + k * TILE;
      const int32_t id = ids[i0 + r + k];
      for (i64 c = from; c < keys; c++) s[c] = ids[j0 + c] == id ? s[c] : NEVER;
    }
  }
  static constexpr W NEVER = W(-1e30);

  // Makes row r's scores s count in its running maximum, and brings what it has summed so far down to that.
  // Scores 1 and 3, then 5 (in log 2): below the maximum 3 the total is 2^−2 + 2^0 = 1.25. The new maximum 5 shrinks it
  // by 2^−2 to 0.3125, and the caller adds 2^0: 1.3125 = 2^−4 + 2^−2 + 2^0, as if 5 had been known from the start.
  void raise(i64 r, i64 from, i64 to, const W* s, W* sum) {
    W most_ = most[r];
#pragma omp simd reduction(max : most_)
    for (i64 c = from; c < to; c++) most_ = s[c] > most_ ? s[c] : most_;
    if (most_ == most[r]) return;
    const W shrink = exp2_of<C>(most[r] - most_);
    most[r] = most_;
    for (i64 c = 0; c < SUB; c++) total[r * SUB + c] *= shrink;
    for (i64 d = 0; d < width; d++) sum[d] *= shrink;
  }
};

template <typename T>
void forward_tile(const Problem<T>& p, Workspace<T>& w, i64 b, i64 h, i64 i0, T* out, Wide<T>* log_total) {
  using W = Wide<T>;
  using C = Cell<T>;
  const i64 count = std::min(TILE, p.length - i0);
  w.lay_out_queries(p, b, h, i0, count, false);
  W* sums = w.query_sums.of(0);
  std::memset(sums, 0, TILE * w.width * sizeof(W));
  std::memset(w.total, 0, sizeof w.total);
  // |q| and |k| are known (√K each, by the norm): no score is above `bound`. Where it is low, so that no total can be
  // too small for fp32, it stands for the maximum. Else that starts above NEVER: a tile without a visible key adds
  // nothing.
  const W bound = std::abs(p.gain[h]) * W(LOG2_E * std::sqrt(double(p.width)));
  const bool bounded = p.normed && bound <= MOST_BOUND;
  for (i64 r = 0; r < TILE; r++) w.most[r] = bounded ? bound : W(-1e29);
  for (i64 t = p.first_tile(i0); t * TILE <= i0; t++) {
    for (i64 r = 0; r < count; r += SUB) {
      i64 from, to;
      p.columns(i0 + r, t * TILE, from, to);
      if (from >= to) continue;
      w.score(p, b, i0, r, t * TILE, from, to);
      for (i64 k = 0; k < SUB; k++) {
        W *s = w.scores + k * TILE, *total = w.total + (r + k) * SUB;
        if (!bounded) w.raise(r + k, from, to, s, sums + (r + k) * w.width);
        const W most = w.most[r + k];
        for (i64 c = from; c < to; c += SUB)
#pragma omp simd
          for (i64 l = 0; l < SUB; l++) total[l] += s[c + l] = exp2_of<C>(s[c + l] - most);
        pack_row(s + from, w.weights_along + (k * TILE + from) / IN_CELL<C>, to - from);
      }
      product(SUB, w.width, (to - from) / IN_CELL<C>, w.weights_along + from / IN_CELL<C>, TILE / IN_CELL<C>, i64(1),
              w.values_across.of(0) + t * w.tile + from / IN_CELL<C> * w.width, w.width, sums + r * w.width, w.width,
              true);
    }
  }
  for (i64 r = 0; r < count; r++) {
    W total = 0;
    for (i64 c = 0; c < SUB; c++) total += w.total[r * SUB + c];
    // all that the backward pass needs to have the weights again: weight = 2^(score − log_total)
    log_total[(b * p.heads + h) * p.length + i0 + r] = w.most[r] + std::log2(total);
    T* o = out + ((b * p.length + i0 + r) * p.heads + h) * p.width;
    const W scale = W(1) / total;
#pragma omp simd
    for (i64 d = 0; d < p.width; d++) o[d] = narrow<T>(sums[r * w.width + d] * scale);
  }
}

// Calls body(workspace, b, g), with the keys of b and g laid out, for each sequence and key/value head: one task each.
template <typename T, typename Body> void each_group(const Problem<T>& p, bool backward, const Body& body) {
#pragma omp parallel
  {
    thread_local Workspace<T> w;
    w.start(p, backward);
#pragma omp for schedule(dynamic, 1)
    for (i64 task = 0; task < p.batch * p.groups; task++) {
      const i64 b = task / p.groups, g = task % p.groups;
      w.lay_out_keys(p, b, g, backward);
      body(w, b, g);
    }
  }
}

template <typename T> void forward(const Problem<T>& p, T* out, Wide<T>* log_total) {
  each_group(p, false, [&](Workspace<T>& w, i64 b, i64 g) {
    for (i64 i0 = 0; i0 < p.length; i0 += TILE)
      for (i64 h = g * p.shared(); h < (g + 1) * p.shared(); h++) forward_tile(p, w, b, h, i0, out, log_total);
  });
}

// What the backward pass reads besides the problem, and writes.
template <typename T> struct Gradients {
  const T *out, *d_out;     // (B, L, H, K)
  const Wide<T>* log_total; // (B, H, L)
  T* d_packed;
  Wide<T>* d_gain;          // (B, H)
};

// The gradients of one tile of queries of head h. With weights w = softmax(scores), o = Σ w_j·v_j and g the gradient
// of o:  dv_j += w_j·g,  dw_j = g·v_j,  d score_j = w_j·(dw_j − Σ_k w_k·dw_k).  The sum is g·o, one product per query
// (`dot`) that is known before any score is: so every tile of keys can be finished by itself.
template <typename T>
void backward_tile(const Problem<T>& p, Workspace<T>& w, const Gradients<T>& gradients, i64 b, i64 h, i64 i0) {
  using W = Wide<T>;
  using C = Cell<T>;
  constexpr i64 IN = IN_CELL<C>;
  const i64 count = std::min(TILE, p.length - i0);
  w.lay_out_queries(p, b, h, i0, count, true);
  W* x = w.cleared(count);
  for (i64 r = 0; r < TILE; r++) w.log_total[r] = w.dot[r] = 0;
  for (i64 r = 0; r < count; r++) {
    const i64 at = ((b * p.length + i0 + r) * p.heads + h) * p.width;
    const T *o = gradients.out + at, *g = gradients.d_out + at;
    const i64 later = (p.ahead(i0 + r, TILE) - i0 - r) * p.heads * p.width;
    prefetch(o + later, p.width);
    prefetch(g + later, p.width);
    W dot = 0;
#pragma omp simd reduction(+ : dot)
    for (i64 d = 0; d < p.width; d++) dot += wide(o[d]) * (x[r * w.width + d] = wide(g[d]));
    w.dot[r] = dot;
    w.log_total[r] = gradients.log_total[(b * p.heads + h) * p.length + i0 + r];
  }
  w.pack_along(x, w.g_along.of(0));
  pack_across(x, w.width, TILE, w.width, w.g_across.of(0), w.width);
  W* d_query = w.query_sums.of(0);
  std::memset(d_query, 0, TILE * w.width * sizeof(W));

  for (i64 t = p.first_tile(i0); t * TILE <= i0; t++) {
    const i64 j0 = t * TILE;
    for (i64 r = 0; r < count; r += SUB) {
      i64 from, to;
      p.columns(i0 + r, j0, from, to);
      if (from >= to) continue;
      w.score(p, b, i0, r, j0, from, to);
      product(SUB, to - from, p.width / IN, w.g_along.of(0) + r * w.cells, w.cells, i64(1),
              w.values_turned.of(0) + t * w.tile + from, TILE, w.d_weights + from, TILE, false);
      for (i64 k = 0; k < SUB; k++) {
        W *s = w.scores + k * TILE, *d = w.d_weights + k * TILE;
        const W log_total = w.log_total[r + k], dot = w.dot[r + k];
        for (i64 c = from; c < to; c += SUB)
#pragma omp simd
          for (i64 l = c; l < c + SUB; l++) {
            s[l] = exp2_of<C>(s[l] - log_total);
            d[l] = s[l] * (d[l] - dot);
          }
        pack_row(d + from, w.weights_along + (k * TILE + from) / IN, to - from);
      }
      pack_across(w.scores + from, TILE, SUB, to - from, w.weights_across + r / IN * TILE + from, TILE);
      pack_across(w.d_weights + from, TILE, SUB, to - from, w.d_scores_across + r / IN * TILE + from, TILE);
      product(SUB, w.width, (to - from) / IN, w.weights_along + from / IN, TILE / IN, i64(1),
              w.keys_across.of(0) + t * w.tile + from / IN * w.width, w.width, d_query + r * w.width, w.width, true);
    }
    for (i64 c = 0; c < TILE; c += SUB) {
      i64 from, to;
      p.rows(j0 + c, i0, from, to);
      if (from >= to) continue;
      const i64 at = from / IN * TILE + c, sum = (j0 + c) * w.width;
      product(SUB, w.width, (to - from) / IN, w.weights_across + at, i64(1), TILE,
              w.g_across.of(0) + from / IN * w.width, w.width, w.d_values.of(0) + sum, w.width, true);
      product(SUB, w.width, (to - from) / IN, w.d_scores_across + at, i64(1), TILE,
              w.q_across.of(0) + from / IN * w.width, w.width, w.d_keys.of(0) + sum, w.width, true);
    }
  }
  const W root = W(1 / std::sqrt(double(p.width)));
  W d_gain = 0;
  BY_WIDTH(p.width, for (i64 r = 0; r < count; r++) {
    const T* x = p.at(b, i0 + r, h);
    T* dx = gradients.d_packed + (x - p.packed);
    d_gain += turn_back(p, K, x, i0 + r, p.gain[h] * root, d_query + r * w.width, dx);
  });
  gradients.d_gain[b * p.heads + h] += d_gain * root;
}

template <typename T> void backward(const Problem<T>& p, const Gradients<T>& gradients) {
  using W = Wide<T>;
  each_group(p, true, [&](Workspace<T>& w, i64 b, i64 g) {
    W *d_keys = w.d_keys.of(0), *d_values = w.d_values.of(0);
    std::memset(d_keys, 0, p.tiles() * TILE * w.width * sizeof(W));
    std::memset(d_values, 0, p.tiles() * TILE * w.width * sizeof(W));
    for (i64 h = 0; h < p.shared(); h++) gradients.d_gain[b * p.heads + g * p.shared() + h] = 0;
    for (i64 i0 = 0; i0 < p.length; i0 += TILE)
      for (i64 h = g * p.shared(); h < (g + 1) * p.shared(); h++) backward_tile(p, w, gradients, b, h, i0);
    for (i64 j = 0; j < p.length; j++) {
      const T* key = p.at(b, j, p.heads + g);
      T *d_key = gradients.d_packed + (key - p.packed), *d_value = d_key + p.groups * p.width;
      // the queries that made d_keys were in log 2
      BY_WIDTH(p.width, turn_back(p, K, key, j, W(LN_2), d_keys + j * w.width, d_key));
#pragma omp simd
      for (i64 d = 0; d < p.width; d++) d_value[d] = narrow<T>(d_values[j * w.width + d]);
    }
  });
}

template <typename T>
Problem<T> problem(const void* packed, const void* cos, const void* sin, const void* gain, const void* ids, i64 batch,
                   i64 length, i64 heads, i64 groups, i64 width, i64 window, i64 turned, i64 normed, double eps) {
  using W = Wide<T>;
  return {(const T*)packed, (const W*)cos, (const W*)sin, (const W*)gain, (const int32_t*)ids, batch, length, heads,
          groups, width, window, turned, normed != 0, eps};
}

}  // namespace

extern "C" void attention_forward(i64 dtype, const void* packed, const void* cos, const void* sin, const void* gain,
                                  const void* ids, i64 batch, i64 length, i64 heads, i64 groups, i64 width, i64 window,
                                  i64 turned, i64 normed, double eps, void* out, void* log_total) {
  BY_DTYPE(dtype, forward<T>(problem<T>(packed, cos, sin, gain, ids, batch, length, heads, groups, width, window,
                                        turned, normed, eps),
                             (T*)out, (Wide<T>*)log_total));
}

extern "C" void attention_backward(i64 dtype, const void* packed, const void* cos, const void* sin, const void* gain,
                                   const void* ids, i64 batch, i64 length, i64 heads, i64 groups, i64 width,
                                   i64 window, i64 turned, i64 normed, double eps, const void* out, const void* d_out, const void* log_total,
                                   void* d_packed, void* d_gain) {
  BY_DTYPE(dtype,
           backward<T>(problem<T>(packed, cos, sin, gain, ids, batch, length, heads, groups, width, window, turned,
                                  normed, eps),
                       {(const T*)out, (const T*)d_out, (const Wide<T>*)log_total, (T*)d_packed, (Wide<T>*)d_gain}));
}
