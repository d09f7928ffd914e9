// A level of an H-Net over rows: what ``HNet.run(Extension)`` computes (model/hnet.py has a worked example).
#include "exact_model.h"

namespace exact {

namespace {

constexpr uint64_t BASE = 1'000'003, MIXER = 0x9E3779B97F4A7C15;  // of hashes, as in model/embed.py
constexpr float COSINE_EPS = 1e-8f, P_FLOOR = 1e-4f, THRESHOLD = 0.5f;
constexpr double ODDS_FLOOR = 1e-6;

std::vector<StackState*> stacks(const std::vector<NetworkState*>& states, StackState NetworkState::*which) {
  std::vector<StackState*> found;
  for (NetworkState* state : states) found.push_back(&(state->*which));
  return found;
}

}  // namespace

HNet::HNet(Plan& plan) {
  width = plan.number(), inner = plan.number(), compared = plan.number();
  strict = plan.number() != 0, from_zero = plan.number() != 0;
  shaped = plan.number() != 0, sharpness = plan.real(), offset = plan.real();
  query = plan.matrix(compared, width), key = plan.matrix(compared, width);
  residual = plan.matrix(width, width), residual_bias = plan.vector(width);
  pad = plan.vector(inner - width);
  hash_bits = plan.number(), hash_dim = plan.number(), hash_table = plan.address();
  if (hash_dim)
    hash_proj = plan.matrix(inner, hash_dim);
  encoder = AnyStack::read(plan);
  main = std::make_unique<Network>(plan);
  decoder = AnyStack::read(plan);
}

// p of a position, from its own vector and the key of the one before it (routers/cosine.py).
float HNet::boundary(const float* q, const float* memory) const {
  const i64 n = round_up(compared, PANEL);
  const float qq = std::max(std::sqrt(dot(q, q, n)), COSINE_EPS);
  const float kk = std::max(std::sqrt(dot(memory, memory, n)), COSINE_EPS);
  const float cosine = dot(q, memory, n) / (qq * kk);
  const float p = std::min(std::max(0.5f * (1.0f - cosine), 0.0f), 1.0f);
  if (!shaped || p >= 1) return p;
  const double clamped = std::min(std::max(double(p), ODDS_FLOOR), 1 - ODDS_FLOOR);
  const double odds = sharpness * std::log(clamped / (1 - clamped)) + offset;
  return float(1 / (1 + std::exp(-odds)));
}

void HNet::run(float* x, i64 rows, const std::vector<Span>& spans, const std::vector<NetworkState*>& states,
                const i64* tokens) const {
  const i64 n = round_up(width, PANEL), m = round_up(compared, PANEL), wide = round_up(inner, PANEL);
  std::vector<char> first(spans.size());  // whether nothing came before the span
  for (size_t s = 0; s < spans.size(); s++) first[s] = states[s]->encoder.length == 0;
  encoder->run(x, rows, spans, stacks(states, &NetworkState::encoder));

  // Where chunks begin. Rows that open one are gathered, and become the rows of the main network.
  Floats q(rows * m), k(rows * m), z(rows * wide), found(rows * round_up(hash_dim, PANEL)), hashed;
  std::vector<float> p(rows);
  std::vector<char> opens(rows), begins(rows);  // begins: the sequence itself starts here
  std::vector<Span> inner_spans;
  std::vector<NetworkState*> inner_states;
  product(query, x, n, rows, q.data(), m);
  product(key, x, n, rows, k.data(), m);
  i64 row = 0, chunks = 0;
  for (size_t s = 0; s < spans.size(); s++) {
    NetworkState& state = *states[s];
    const i64 before = chunks;
    for (i64 at = 0; at < spans[s].count; at++, row++) {
      begins[row] = at == 0 && first[s];
      p[row] = begins[row] ? 1.0f : boundary(q.data() + row * m, at ? k.data() + (row - 1) * m : state.memory.data());
      opens[row] = strict ? p[row] > THRESHOLD : p[row] >= THRESHOLD;
      const uint64_t ended = begins[row] ? 0 : state.hash;
      if (hash_dim) state.hash = uint64_t(tokens[row] + 1) + (opens[row] ? 0 : ended * BASE);
      opens[row] = opens[row] && !state.drafting;
      if (!opens[row]) continue;
      float* start = z.data() + chunks * wide;
      std::copy_n(x + row * n, width, start);
      if (pad.size()) std::copy_n(pad.data(), inner - width, start + width);
      if (hash_dim) {
        const float* from = hash_table + ((ended * MIXER) >> (64 - hash_bits)) * hash_dim;
        std::copy_n(from, hash_dim, found.data() + chunks * round_up(hash_dim, PANEL));
      }
      chunks++;
    }
    if (spans[s].count) std::copy_n(k.data() + (row - 1) * m, m, state.memory.data());
    if (chunks == before) continue;
    inner_spans.push_back({spans[s].sequence, chunks - before});
    inner_states.push_back(state.main.get());
  }
  if (chunks) {
    if (hash_dim) {
      hashed = Floats(chunks * wide);
      product(hash_proj, found.data(), round_up(hash_dim, PANEL), chunks, hashed.data(), wide);
      for (i64 i = 0; i < chunks * wide; i += LANES) store(z.data() + i, add(load(z.data() + i), load(hashed.data() + i)));
    }
    main->run(z.data(), chunks, inner_spans, inner_states, nullptr);
  }

  // z̄ = P·z + (1 − P)·z̄ of the chunk before; each position takes its chunk's, plus the residual map of its own vector
  Floats y(rows * n);
  product(residual, x, n, rows, y.data(), n);
  const float kept = from_zero ? 1 - P_FLOOR : 1.0f;  // of a sequence's first chunk, where z̄ before it is 0 (S4)
  row = 0, chunks = 0;
  for (size_t s = 0; s < spans.size(); s++) {
    float* smoothed = states[s]->smoothed.data();
    for (i64 at = 0; at < spans[s].count; at++, row++) {
      if (opens[row]) {
        const float weight = std::min(std::max(p[row], P_FLOOR), 1 - P_FLOOR);
        const float* fresh = z.data() + wide * chunks++;
        for (i64 i = 0; i < width; i++)
          smoothed[i] = begins[row] ? kept * fresh[i] : std::fma(weight, fresh[i], (1 - weight) * smoothed[i]);
      }
      float* around = y.data() + row * n;
      if (residual_bias.size())
        for (i64 i = 0; i < n; i += LANES) store(around + i, add(load(around + i), load(residual_bias.data() + i)));
      for (i64 i = 0; i < n; i += LANES) store(x + row * n + i, add(load(smoothed + i), load(around + i)));
    }
  }
  decoder->run(x, rows, spans, stacks(states, &NetworkState::decoder));
}

Network::Network(Plan& plan) {
  if (plan.number())
    level = std::make_unique<HNet>(plan);
  else
    stack = AnyStack::read(plan);
}

void Network::run(float* x, i64 rows, const std::vector<Span>& spans, const std::vector<NetworkState*>& states,
                  const i64* tokens) const {
  if (level)
    level->run(x, rows, spans, states, tokens);
  else
    stack->run(x, rows, spans, stacks(states, &NetworkState::encoder));
}

NetworkState::NetworkState(const Network& network) {
  if (!network.level) return;
  const HNet& level = *network.level;
  memory.resize(round_up(level.compared, PANEL));
  smoothed.resize(round_up(level.width, PANEL));
  main = std::make_unique<NetworkState>(*level.main);
}

NetworkState NetworkState::fork(bool draft) const {
  NetworkState found;
  found.encoder = encoder.fork(), found.decoder = decoder.fork();
  found.memory = memory, found.smoothed = smoothed, found.hash = hash, found.drafting = draft;
  if (main && !draft) found.main = std::make_unique<NetworkState>(main->fork(false));
  return found;
}

void NetworkState::forget() {
  encoder.length = decoder.length = 0;
  if (main) main->forget();
}

}  // namespace exact
