// The whole model over rows, and what Python calls (infer/native_step.py).
#include "exact_model.h"

namespace exact {

namespace {

constexpr uint64_t BASE = 1'000'003, MIXER = 0x9E3779B97F4A7C15;  // of hashes, as in model/embed.py
constexpr i64 NOTHING = -1;

}  // namespace

Model::Model(Plan& plan) {
  alphabet = plan.number(), width = plan.number(), bos = plan.number(), softcap = plan.real();
  const float* weight = plan.address();
  const bool normed = plan.number() != 0;
  head = plan.matrix(alphabet, width);
  const i64 n = round_up(width, PANEL);
  embedding.resize(alphabet * n);
  for (i64 id = 0; id < alphabet; id++) {
    std::copy_n(weight + id * width, width, embedding.data() + id * n);
    if (normed) normalise(embedding.data() + id * n, embedding.data() + id * n, width, n, EPS);
  }
  lengths = plan.number(), bits = plan.number(), dim = plan.number(), table = plan.address();
  if (lengths)
    proj = plan.matrix(width, lengths * dim);
  network = std::make_unique<Network>(plan);
}

// The table's rows of the N n-grams that end with `id`, side by side; `history` takes the id in.
void Model::embed(i64 id, std::vector<i64>& history, float* found) const {
  // unsigned, since hashes wrap around; powers of the base are modulo 2⁶², as in embed.py
  uint64_t key = uint64_t(id + 1), power = 1;
  bool begun = id == bos;
  for (i64 n = 0; n < lengths; n++) {
    // Once a BOS has been met, whatever lies further back belongs to another document: nothing stands there.
    const i64 before = begun ? NOTHING : history[lengths - 1 - n];
    begun = begun || before == bos;
    power = (power * BASE) & ((uint64_t(1) << 62) - 1);
    key += uint64_t(before + 1) * power;
    const uint64_t row = (uint64_t(n) << bits) + ((key * MIXER) >> (64 - bits));
    std::copy_n(table + row * dim, dim, found + n * dim);
  }
  if (!lengths) return;
  std::copy(history.begin() + 1, history.end(), history.begin());
  history.back() = id;
}

void Model::run(const std::vector<Span>& spans, const std::vector<Sequence*>& sequences, const i64* ids,
                float* const* logits) const {
  i64 rows = 0;
  for (const Span& span : spans) rows += span.count;
  const i64 n = round_up(width, PANEL), g = round_up(lengths * dim, PANEL), a = round_up(alphabet, PANEL);
  Floats x(rows * n), grams(rows * g), added(rows * n), out(rows * a);
  std::vector<NetworkState*> states;
  i64 row = 0;
  for (size_t s = 0; s < spans.size(); s++) {
    states.push_back(&sequences[s]->network);
    for (i64 at = 0; at < spans[s].count; at++, row++) {
      std::copy_n(embedding.data() + ids[row] * n, n, x.data() + row * n);
      embed(ids[row], sequences[s]->history, grams.data() + row * g);
    }
  }
  if (lengths) {
    product(proj, grams.data(), g, rows, added.data(), n);
    for (i64 i = 0; i < rows * n; i += LANES) store(x.data() + i, add(load(x.data() + i), load(added.data() + i)));
  }
  network->run(x.data(), rows, spans, states, ids);
  product(head, x.data(), n, rows, out.data(), a);
  const float cap = float(softcap);
  for (i64 r = 0; r < rows; r++) {
    float* z = out.data() + r * a;
    if (cap > 0)
      for (i64 i = 0; i < a; i++) {  // cap·tanh(z/cap), by e^(−2|z/cap|)
        const float t = fast_exp(-2.0f * std::fabs(z[i] / cap));
        z[i] = std::copysign(cap * (1.0f - t) / (1.0f + t), z[i]);
      }
    std::copy_n(z, alphabet, logits[r]);
  }
}

namespace {

// Rows that run together at most: enough for full tiles, few enough for their vectors to stay in the cache.
constexpr i64 MOST_ROWS = 96;

// The tokens of some sequences, piece by piece: in each round every sequence with tokens left gives up to PIECE of
// them, up to the next document's beginning.
void extend(const Model& model, const std::vector<Sequence*>& sequences, const i64* ids, const i64* counts, i64 length,
            bool reset, float* logits) {
  std::vector<i64> done(sequences.size());
  for (bool more = true; more;) {
    more = false;
    size_t s = 0;
    while (s < sequences.size()) {
      std::vector<Span> spans;
      std::vector<Sequence*> chosen;
      std::vector<i64> tokens;
      std::vector<float*> to;
      for (; s < sequences.size() && i64(tokens.size()) < MOST_ROWS; s++) {
        const i64 start = done[s], most = std::min<i64>(PIECE, MOST_ROWS - i64(tokens.size()));
        i64 end = start;
        while (end < counts[s] && end < start + most) {
          const bool begins = reset && ids[s * length + end] == model.bos;
          if (begins && end > start) break;
          if (begins) sequences[s]->network.forget();
          tokens.push_back(ids[s * length + end]);
          to.push_back(logits + (s * length + end) * model.alphabet);
          end++;
        }
        done[s] = end;
        more = more || end < counts[s];
        if (end == start) continue;
        spans.push_back({i64(s), end - start});
        chosen.push_back(sequences[s]);
      }
      if (!spans.empty()) model.run(spans, chosen, tokens.data(), to.data());
    }
  }
}

}  // namespace

}  // namespace exact

// The packed model of a plan, whose number goes to `handle`.
extern "C" void exact_open(i64, const i64* plan, i64* handle) {
  exact::Plan words{plan};
  *handle = reinterpret_cast<i64>(new exact::Model(words));
}

extern "C" void exact_close(i64, i64 handle) { delete reinterpret_cast<exact::Model*>(handle); }

// Empty states of `count` sequences.
extern "C" void exact_start(i64, i64 handle, i64 count, i64* states) {
  const auto& model = *reinterpret_cast<exact::Model*>(handle);
  for (i64 s = 0; s < count; s++)
    states[s] = reinterpret_cast<i64>(new exact::Sequence{exact::NetworkState(*model.network),
                                                          std::vector<i64>(model.lengths, exact::NOTHING)});
}

// How many positions of each level (bytes, chunks, …) each of `count` sequences has had, (count, levels).
extern "C" void exact_positions(i64, const i64* states, i64 count, i64 levels, i64* found) {
  for (i64 s = 0; s < count; s++) {
    const auto* state = &reinterpret_cast<const exact::Sequence*>(states[s])->network;
    for (i64 level = 0; level < levels; level++, state = state->main.get())
      found[s * levels + level] = state ? state->encoder.length : 0;
  }
}

// Copies of the states of `count` sequences; drafts leave the main network out, and its state where it is.
extern "C" void exact_fork(i64, const i64* states, i64 count, i64 draft, i64* forks) {
  for (i64 s = 0; s < count; s++) {
    const auto& from = *reinterpret_cast<const exact::Sequence*>(states[s]);
    forks[s] = reinterpret_cast<i64>(new exact::Sequence{from.network.fork(draft != 0), from.history});
  }
}

extern "C" void exact_forget(i64, const i64* states, i64 count) {
  for (i64 s = 0; s < count; s++) delete reinterpret_cast<exact::Sequence*>(states[s]);
}

// The next tokens of `rows` sequences: ids (rows, length), of which counts[r] are there; logits (rows, length, V).
// Sequences are shared out to `threads`, which do not wait for each other before the end.
extern "C" void exact_extend(i64, i64 handle, const i64* states, const i64* ids, const i64* counts, i64 rows,
                             i64 length, i64 reset, i64 threads, void* logits) {
  const auto& model = *reinterpret_cast<exact::Model*>(handle);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (i64 part = 0; part < threads; part++) {
    const i64 from = rows * part / threads, to = rows * (part + 1) / threads;
    std::vector<exact::Sequence*> sequences;
    for (i64 r = from; r < to; r++) sequences.push_back(reinterpret_cast<exact::Sequence*>(states[r]));
    if (from < to)
      exact::extend(model, sequences, ids + from * length, counts + from, length, reset != 0,
                    static_cast<float*>(logits) + from * length * model.alphabet);
  }
}
