// A stack of attention blocks over rows: what ``Stack.extend`` computes (model/stack.py).
//
// Each block, with u the stream and x0 the stack's normalised input:
//   u ← mix₀·u + mix₁·x0;  u += scale·Wₒ·attention(norm(u));  u += scale·W₂·relu(W₁·norm(u))²
// and before the blocks of the second half, what u was behind their mirror image is added (where there is a skip).
#include "exact_model.h"

namespace exact {

namespace {

// u += scale·y
inline void add_scaled(float* u, const float* y, const float* scale, i64 n) {
  for (i64 i = 0; i < n; i += LANES) store(u + i, fma(load(scale + i), load(y + i), load(u + i)));
}

// The norm of a head and its rotation by the angles of a position, times a factor.
void turn(const float* x, float* y, const float* cos, const float* sin, i64 head, float factor) {
  float padded[4 * PANEL] = {};
  const i64 n = round_up(head, LANES), half = head / 2;
  if (n <= 4 * PANEL) std::copy_n(x, head, padded);
  float squares = 0;
  if (n <= 4 * PANEL)
    squares = dot(padded, padded, n);
  else
    for (i64 i = 0; i < head; i++) squares = std::fma(x[i], x[i], squares);
  const float scale = factor / std::sqrt(squares / float(head) + EPS);
  for (i64 i = 0; i < half; i++) {
    const float u = x[i] * scale, v = x[half + i] * scale;
    y[i] = std::fma(u, cos[i], v * sin[i]);
    y[half + i] = std::fma(v, cos[i], -(u * sin[i]));
  }
}

}  // namespace

// Σ softmax(q·k)·v over the positions from ... to (included). `scores` has room for all blocks of 16 that these touch.
void attend(const float* q, const Memory& cache, i64 group, i64 groups, i64 head, i64 slots, i64 from, i64 to,
            float* scores, float* out) {
  const i64 start = from / LANES * LANES, padded = round_up(head, LANES);
  float top = -INFINITY;
  for (i64 p = start; p <= to; p += LANES) {
    const float* keys = cache.keys.data() + ((p % slots) / LANES * groups + group) * head * LANES;
    Lanes sum = all(0);
    for (i64 k = 0; k < head; k++) sum = fma(all(q[k]), load(keys + k * LANES), sum);
    store(scores + p - start, sum);
  }
  for (i64 p = from; p <= to; p++) top = std::max(top, scores[p - start]);
  // Lanes outside of from … to get no share
  const i64 end = round_up(to + 1, LANES);
  for (i64 p = start; p < end; p++) scores[p - start] = fast_exp(scores[p - start] - top);
  for (i64 p = start; p < from; p++) scores[p - start] = 0;
  for (i64 p = to + 1; p < end; p++) scores[p - start] = 0;
  Lanes sum = all(0);
  for (i64 p = start; p < end; p += LANES) sum = add(sum, load(scores + p - start));
  const float scale = 1.0f / total(sum);
  for (i64 k = 0; k < padded; k += 4 * LANES) {
    const int vectors = int(std::min<i64>(4, (padded - k) / LANES));
    Lanes sums[4] = {all(0), all(0), all(0), all(0)};
    for (i64 p = from; p <= to; p++) {
      const float* value = cache.values.data() + ((p % slots) * groups + group) * padded + k;
      const Lanes share = all(scores[p - start]);
      for (int v = 0; v < vectors; v++) sums[v] = fma(share, load(value + v * LANES), sums[v]);
    }
    float found[4 * LANES];
    for (int v = 0; v < vectors; v++) store(found + v * LANES, mul(sums[v], all(scale)));
    std::copy_n(found, std::min<i64>(head - k, 4 * LANES), out + k);
  }
}

Stack::Stack(Plan& plan) {
  const i64 layers = plan.number();
  width = plan.number(), heads = plan.number(), groups = plan.number(), hidden = plan.number();
  window = plan.number(), norms_input = plan.number() != 0;
  head = layers ? width / heads : 0;
  frequencies = plan.vector(head / 2);
  for (i64 layer = 0; layer < layers; layer++) {
    Block b;
    b.qkv = plan.matrix((heads + 2 * groups) * head, width);
    b.out = plan.matrix(width, width);
    b.gain = plan.vector(heads);
    b.in = plan.matrix(hidden, width);
    b.down = plan.matrix(width, hidden);
    b.mixer_scale = plan.vector(width), b.mlp_scale = plan.vector(width);
    b.mix0 = plan.vector(width), b.mix1 = plan.vector(width), b.skip = plan.vector(width);
    blocks.push_back(std::move(b));
  }
}

void Stack::run(float* x, i64 rows, const std::vector<Span>& spans, const std::vector<StackState*>& states) const {
  const i64 n = round_up(width, PANEL), packed = round_up((heads + 2 * groups) * head, PANEL);
  const i64 wide = round_up(hidden, PANEL), half = head / 2, padded = round_up(head, LANES), layers = blocks.size();
  const i64 pushed = layers / 2;
  Floats x0(rows * n), u(rows * n), normed(rows * n), mixed(rows * std::max(packed, wide)), branch(rows * n);
  Floats skips(pushed * rows * n), angles(rows * 2 * half), q(head), attended(rows * n);
  for (i64 r = 0; r < rows; r++) {
    if (norms_input)
      normalise(x + r * n, x0.data() + r * n, width, n, EPS);
    else
      std::copy_n(x + r * n, n, x0.data() + r * n);
  }
  std::copy_n(x0.data(), rows * n, u.data());

  // Room in the caches, and the angles of each row's position
  i64 row = 0, longest = 0;
  for (size_t s = 0; s < spans.size() && layers; s++) {
    const i64 end = states[s]->length + spans[s].count;
    longest = std::max(longest, end);
    const i64 slots = window ? round_up(window + PIECE, LANES) : round_up(end, LANES);
    states[s]->expect(layers);
    for (const auto& memory : states[s]->blocks) {
      Memory& cache = *memory;
      cache.grows = !window;
      const i64 have = cache.values.size() / std::max<i64>(groups * padded, 1);
      if (slots <= have) continue;
      const i64 room = window ? slots : std::max(slots, 2 * have);
      cache.keys.resize(room * groups * head), cache.values.resize(room * groups * padded);
    }
    for (i64 t = states[s]->length; t < end; t++, row++)
      for (i64 i = 0; i < half; i++) {
        const float angle = float(t) * frequencies.data()[i];
        angles.data()[row * 2 * half + i] = float(std::cos(double(angle)));
        angles.data()[(row * 2 + 1) * half + i] = float(std::sin(double(angle)));
      }
  }
  Floats scores(round_up(longest, LANES) + LANES);

  for (i64 layer = 0; layer < layers; layer++) {
    const Block& b = blocks[layer];
    for (i64 r = 0; r < rows; r++) {
      float* stream = u.data() + r * n;
      // The pairs of layers are (pushed − 1, pushed), …, (0, 2·pushed − 1): what was pushed last is added first
      if (b.skip.size()) add_scaled(stream, skips.data() + ((2 * pushed - 1 - layer) * rows + r) * n, b.skip.data(), n);
      for (i64 i = 0; i < n; i += LANES)
        store(stream + i, fma(load(b.mix1.data() + i), load(x0.data() + r * n + i),
                              mul(load(b.mix0.data() + i), load(stream + i))));
      normalise(stream, normed.data() + r * n, width, n, EPS);
    }
    product(b.qkv, normed.data(), n, rows, mixed.data(), packed);
    row = 0;
    for (size_t s = 0; s < spans.size(); s++) {
      Memory& cache = *states[s]->blocks[layer];
      const i64 slots = cache.values.size() / (groups * padded), first = states[s]->length;
      for (i64 t = first; t < first + spans[s].count; t++, row++) {  // all keys and values, then all queries
        const float *one = mixed.data() + row * packed, *cos = angles.data() + row * 2 * half, *sin = cos + half;
        const i64 slot = t % slots;
        for (i64 g = 0; g < groups; g++) {
          turn(one + (heads + g) * head, q.data(), cos, sin, head, 1.0f);
          float* keys = cache.keys.data() + (slot / LANES * groups + g) * head * LANES + slot % LANES;
          for (i64 k = 0; k < head; k++) keys[k * LANES] = q.data()[k];
          std::copy_n(one + (heads + groups + g) * head, head, cache.values.data() + (slot * groups + g) * padded);
        }
      }
      row -= spans[s].count;
      for (i64 t = first; t < first + spans[s].count; t++, row++) {
        const float *one = mixed.data() + row * packed, *cos = angles.data() + row * 2 * half, *sin = cos + half;
        const i64 from = window ? std::max<i64>(0, t - window + 1) : 0;
        for (i64 h = 0; h < heads; h++) {
          turn(one + h * head, q.data(), cos, sin, head, b.gain.data()[h] / std::sqrt(float(head)));
          attend(q.data(), cache, h / (heads / groups), groups, head, slots, from, t, scores.data(),
                 attended.data() + row * n + h * head);
        }
      }
    }
    product(b.out, attended.data(), n, rows, branch.data(), n);
    for (i64 r = 0; r < rows; r++) {
      add_scaled(u.data() + r * n, branch.data() + r * n, b.mixer_scale.data(), n);
      normalise(u.data() + r * n, normed.data() + r * n, width, n, EPS);
    }
    product(b.in, normed.data(), n, rows, mixed.data(), wide);
    for (i64 i = 0; i < rows * wide; i++) {
      const float positive = std::max(mixed.data()[i], 0.0f);
      mixed.data()[i] = positive * positive;
    }
    product(b.down, mixed.data(), wide, rows, branch.data(), n);
    for (i64 r = 0; r < rows; r++) add_scaled(u.data() + r * n, branch.data() + r * n, b.mlp_scale.data(), n);
    if (layer < pushed) std::copy_n(u.data(), rows * n, skips.data() + layer * rows * n);
  }
  for (i64 r = 0; r < rows; r++) normalise(u.data() + r * n, x + r * n, width, n, EPS);
  for (size_t s = 0; s < spans.size(); s++) states[s]->length += spans[s].count;
}

}  // namespace exact
