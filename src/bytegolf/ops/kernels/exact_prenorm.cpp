// A stack of pre-norm blocks over rows: what ``PreNormStack.extend`` computes (model/stack.py; S4).
//
// Each block, with r the stream: r += mixer(norm(r)·w); and where it has an MLP r += W₂(silu(g)·v), [v, g] = W₁·norm(r)·w.
#include "exact_model.h"

namespace exact {

namespace {

struct PreNormBlock {
  Floats gain, mlp_gain;
  std::unique_ptr<Mixer> mixer;
  i64 hidden;  // of the MLP; 0: there is none
  Matrix in, down;
};

struct PreNormStack : AnyStack {
  float eps;
  Floats gain;  // of the norm at the end; empty: there is none
  std::vector<PreNormBlock> blocks;

  explicit PreNormStack(Plan& plan) {
    const i64 layers = plan.number();
    width = plan.number(), eps = float(plan.real()), gain = plan.vector(width);
    for (i64 layer = 0; layer < layers; layer++) {
      PreNormBlock b;
      b.gain = plan.vector(width);
      b.mixer = plan.number() ? read_mamba(plan, width) : read_attention(plan, width);
      b.hidden = plan.number();
      if (b.hidden) {
        b.mlp_gain = plan.vector(width);
        b.in = plan.matrix(2 * b.hidden, width), b.down = plan.matrix(width, b.hidden);
      }
      blocks.push_back(std::move(b));
    }
  }

  void norm(const float* x, const Floats& by, i64 rows, float* y) const {
    const i64 n = round_up(width, PANEL);
    for (i64 r = 0; r < rows; r++) {
      normalise(x + r * n, y + r * n, width, n, eps);
      for (i64 i = 0; i < n; i += LANES) store(y + r * n + i, mul(load(y + r * n + i), load(by.data() + i)));
    }
  }

  void run(float* x, i64 rows, const std::vector<Span>& spans, const std::vector<StackState*>& states) const override {
    const i64 n = round_up(width, PANEL);
    Floats normed(rows * n), branch(rows * n);
    std::vector<i64> before;
    std::vector<Memory*> memories(states.size());
    for (StackState* state : states) state->expect(blocks.size()), before.push_back(state->length);
    const auto take = [&] {
      for (i64 i = 0; i < rows * n; i += LANES) store(x + i, add(load(x + i), load(branch.data() + i)));
    };
    for (size_t layer = 0; layer < blocks.size(); layer++) {
      const PreNormBlock& b = blocks[layer];
      for (size_t s = 0; s < states.size(); s++) memories[s] = states[s]->blocks[layer].get();
      norm(x, b.gain, rows, normed.data());
      b.mixer->run(normed.data(), rows, spans, memories, before, branch.data());
      take();
      if (!b.hidden) continue;
      norm(x, b.mlp_gain, rows, normed.data());
      const i64 packed = round_up(2 * b.hidden, PANEL), wide = round_up(b.hidden, PANEL);
      Floats both(rows * packed), gated(rows * wide);
      product(b.in, normed.data(), n, rows, both.data(), packed);
      for (i64 r = 0; r < rows; r++) {
        const float *v = both.data() + r * packed, *g = v + b.hidden;
        float* to = gated.data() + r * wide;
        for (i64 i = 0; i < b.hidden; i++) to[i] = g[i] * sigmoid(g[i]) * v[i];
      }
      product(b.down, gated.data(), wide, rows, branch.data(), n);
      take();
    }
    if (gain.size()) norm(x, gain, rows, x);
    for (size_t s = 0; s < spans.size(); s++) states[s]->length += spans[s].count;
  }
};

// Causal attention without norms and gains of q and k, of whose heads a part is rotated (model/mixers/attention.py).
struct Attention : Mixer {
  i64 width, heads, groups, head, rotated, window;
  float direction;     // of the rotation: 1 clockwise (S0), −1 the other way (S4)
  Floats frequencies;  // of the rotation, half of the rotated dimensions
  Matrix qkv, out;

  // cos, then sin, of the angles at a position.
  void angles(i64 position, float* found) const {
    const i64 half = rotated / 2;
    for (i64 i = 0; i < half; i++) {
      const float angle = float(position) * frequencies.data()[i];
      found[i] = float(std::cos(double(angle))), found[half + i] = direction * float(std::sin(double(angle)));
    }
  }

  void turn(const float* x, const float* angles, float factor, float* y) const {
    const i64 half = rotated / 2;
    for (i64 i = 0; i < half; i++) {
      const float cos = angles[i], sin = angles[half + i];
      y[i] = factor * std::fma(x[i], cos, x[half + i] * sin);
      y[half + i] = factor * std::fma(x[half + i], cos, -(x[i] * sin));
    }
    for (i64 i = rotated; i < head; i++) y[i] = factor * x[i];
  }

  void run(const float* x, i64 rows, const std::vector<Span>& spans, const std::vector<Memory*>& memories,
           const std::vector<i64>& before, float* result) const override {
    const i64 n = round_up(width, PANEL), packed = round_up((heads + 2 * groups) * head, PANEL);
    const i64 padded = round_up(head, LANES);
    Floats mixed(rows * packed), attended(rows * n), turns(rows * rotated), q(head), scores;
    product(qkv, x, n, rows, mixed.data(), packed);
    i64 row = 0;
    for (size_t s = 0; s < spans.size(); s++) {
      Memory& memory = *memories[s];
      const i64 first = before[s], end = first + spans[s].count, have = memory.values.size() / (groups * padded);
      i64 slots = window ? round_up(window + PIECE, LANES) : round_up(end, LANES);
      memory.grows = !window;
      if (slots > have) {
        slots = window ? slots : std::max(slots, 2 * have);
        memory.keys.resize(slots * groups * head), memory.values.resize(slots * groups * padded);
      } else {
        slots = have;
      }
      if (scores.size() < end + 2 * LANES) scores = Floats(end + 2 * LANES);
      for (i64 t = first; t < end; t++, row++) {  // all keys and values, then all queries
        const float* one = mixed.data() + row * packed;
        const i64 slot = t % slots;
        angles(t, turns.data() + row * rotated);
        for (i64 g = 0; g < groups; g++) {
          turn(one + (heads + g) * head, turns.data() + row * rotated, 1.0f, q.data());
          float* keys = memory.keys.data() + (slot / LANES * groups + g) * head * LANES + slot % LANES;
          for (i64 k = 0; k < head; k++) keys[k * LANES] = q.data()[k];
          std::copy_n(one + (heads + groups + g) * head, head, memory.values.data() + (slot * groups + g) * padded);
        }
      }
      row -= spans[s].count;
      for (i64 t = first; t < end; t++, row++) {
        const float* one = mixed.data() + row * packed;
        const i64 from = window ? std::max<i64>(0, t - window + 1) : 0;
        for (i64 h = 0; h < heads; h++) {
          turn(one + h * head, turns.data() + row * rotated, 1.0f / std::sqrt(float(head)), q.data());
          attend(q.data(), memory, h / (heads / groups), groups, head, slots, from, t, scores.data(),
                 attended.data() + row * n + h * head);
        }
      }
    }
    product(out, attended.data(), n, rows, result, n);
  }
};

}  // namespace

std::unique_ptr<Mixer> read_attention(Plan& plan, i64 width) {
  auto found = std::make_unique<Attention>();
  found->width = width, found->heads = plan.number(), found->groups = plan.number();
  found->head = width / found->heads, found->window = plan.number();
  found->rotated = plan.number(), found->direction = plan.number() ? 1.0f : -1.0f;
  found->frequencies = plan.vector(found->rotated / 2);
  found->qkv = plan.matrix((found->heads + 2 * found->groups) * found->head, width);
  found->out = plan.matrix(width, width);
  return found;
}

std::unique_ptr<AnyStack> AnyStack::read(Plan& plan) {
  if (plan.number()) return std::make_unique<PreNormStack>(plan);
  return std::make_unique<Stack>(plan);
}

StackState StackState::fork() const {
  StackState found;
  found.length = length;
  for (const auto& block : blocks) found.blocks.push_back(block->grows ? block : std::make_shared<Memory>(*block));
  return found;
}

void StackState::expect(size_t layers) {
  while (blocks.size() < layers) blocks.push_back(std::make_shared<Memory>());
}

}  // namespace exact
