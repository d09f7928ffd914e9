// A whole model's step: its weights as packed for it, what it remembers of a sequence, and the parts' functions.
//
// The computation is that of ``LanguageModel.extend`` (embedding with n-grams → H-Net or stack → tied head), for rows:
// a row is one position of one sequence. The rows of a call are those of one sequence after the other, in order (a
// Span each). A part works out all rows before the next part does, so weights are read once for all of them; a row
// sees no later row, and its numbers are the same bit for bit whatever other rows there are (exact_lanes.h).
//
// Legend: D width, H query heads, G key/value heads, K head width, M width of a router's vectors, N lengths of n-grams,
// E width of a table's row, W window.
#pragma once

#include <memory>
#include <vector>

#include "exact_lanes.h"

namespace exact {

// Positions of one sequence in a call, at most. A ring has room for them besides its window, so that all can be
// written before any is read.
constexpr i64 PIECE = 64;

// The model's description from Python (infer/native_step.py): numbers, fp64 as their bits, addresses of fp32 weights.
struct Plan {
  const i64* word;
  i64 number() { return *word++; }
  double real() { return __builtin_bit_cast(double, *word++); }
  const float* address() { return reinterpret_cast<const float*>(*word++); }
  Matrix matrix(i64 outputs, i64 inputs) { return Matrix(address(), outputs, inputs); }
  // `size` numbers padded with zeros; nothing for a null address.
  Floats vector(i64 size) {
    const float* from = address();
    Floats found(from ? round_up(size, PANEL) : 0);
    if (from) std::copy_n(from, size, found.data());
    return found;
  }
};

struct Span {
  i64 sequence, count;
};

struct Block {
  Matrix qkv, out, in, down;
  Floats gain, mixer_scale, mlp_scale, mix0, mix1, skip;
};

// Keys of 16 positions lie side by side, so that 16 scores are one chain of multiply-adds: (slots / 16, G, K, 16).
// Values are (slots, G, K padded). Position t has slot t modulo the slots; without a window there are always more slots
// than positions.
struct Cache {
  Floats keys, values;
};

struct StackState {
  i64 length = 0;
  std::vector<Cache> blocks;
};

struct Stack {
  i64 width, heads, groups, head, hidden, window;
  bool norms_input;
  Floats frequencies;  // of the rotation, K/2
  std::vector<Block> blocks;

  explicit Stack(Plan& plan);
  // Rows of `round_up(width, PANEL)` numbers, changed in place; `states` are those of the spans.
  void run(float* x, i64 rows, const std::vector<Span>& spans, const std::vector<StackState*>& states) const;
};

struct Network;

struct NetworkState;

struct Level {
  i64 width, inner, compared, hash_bits, hash_dim;
  double sharpness, offset;
  bool shaped;
  Matrix query, key, residual, hash_proj;
  Floats pad;
  const float* hash_table;
  std::unique_ptr<Stack> encoder, decoder;
  std::unique_ptr<Network> main;

  explicit Level(Plan& plan);
  void run(float* x, i64 rows, const std::vector<Span>& spans, const std::vector<NetworkState*>& states,
           const i64* tokens) const;
  float boundary(const float* q, const float* memory) const;
};

// One of the two.
struct Network {
  std::unique_ptr<Stack> stack;
  std::unique_ptr<Level> level;

  explicit Network(Plan& plan);
  i64 width() const { return stack ? stack->width : level->width; }
  // `tokens` are the ids of the rows, null at an inner level.
  void run(float* x, i64 rows, const std::vector<Span>& spans, const std::vector<NetworkState*>& states,
           const i64* tokens) const;
};

struct NetworkState {
  StackState encoder, decoder;  // a stack alone has the first
  Floats memory, smoothed;      // the router's key of the position before; z̄ of the current chunk
  uint64_t hash = 0;            // of the chunk so far
  std::unique_ptr<NetworkState> main;

  explicit NetworkState(const Network& network);
  void forget();
};

struct Sequence {
  NetworkState network;
  std::vector<i64> history;  // the ids that n-grams reach back to, the oldest first
};

struct Model {
  i64 alphabet, width, lengths, bits, dim, bos;
  double softcap;
  Floats embedding;  // each id's row, normalised
  Matrix head, proj;
  const float* table;
  std::unique_ptr<Network> network;

  explicit Model(Plan& plan);
  void embed(i64 id, std::vector<i64>& history, float* found) const;
  // `ids` and `logits` are of the spans' rows, each span with its sequence's state.
  void run(const std::vector<Span>& spans, const std::vector<Sequence*>& sequences, const i64* ids,
           float* const* logits) const;
};

constexpr float EPS = 1.1920929e-07f;  // of norms, as ops/rms_norm.py

}  // namespace exact
