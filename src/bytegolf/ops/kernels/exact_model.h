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
  // How it is kept (as ``Matrix::Kept`` has it), its address, and of codes that of their scales.
  Matrix matrix(i64 outputs, i64 inputs) {
    const auto kept = Matrix::Kept(number());
    const float* from = address();
    if (kept == Matrix::PACKED) return Matrix(from, outputs, inputs);
    return Matrix::at(kept, from, kept == Matrix::CODES ? address() : nullptr, outputs, inputs);
  }
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

// What a block remembers of a sequence.
//
// Attention: keys of 16 positions lie side by side, so that 16 scores are one chain of multiply-adds: (slots / 16, G, K,
// 16). Values are (slots, G, K padded). Position t has slot t modulo the slots; without a window there are always more
// slots than positions. Mamba-2: the convolution's last inputs, (taps − 1, channels), and the state, (heads, N, P padded).
struct Memory {
  Floats keys, values, inputs, state;
  bool grows = false;  // it has a slot for every position
};

struct StackState {
  i64 length = 0;
  std::vector<std::shared_ptr<Memory>> blocks;

  // A copy that goes on by itself. What grows is shared: each of the two writes behind its own length before it reads
  // there, so they may go on one after the other, as drafts do, and not in turns.
  StackState fork() const;
  void expect(size_t layers);
};

// The blocks of a stack. Rows have `round_up(width, PANEL)` numbers, changed in place; `states` are those of the spans.
struct AnyStack {
  i64 width = 0;
  virtual ~AnyStack() = default;
  virtual void run(float* x, i64 rows, const std::vector<Span>& spans, const std::vector<StackState*>& states) const = 0;
  static std::unique_ptr<AnyStack> read(Plan& plan);
};

struct Block {
  Matrix qkv, out, in, down;
  Floats gain, mixer_scale, mlp_scale, mix0, mix1, skip;
};

// S0's (exact_stack.cpp).
struct Stack : AnyStack {
  i64 heads, groups, head, hidden, window;
  bool norms_input;
  Floats frequencies;  // of the rotation, K/2
  std::vector<Block> blocks;

  explicit Stack(Plan& plan);
  void run(float* x, i64 rows, const std::vector<Span>& spans, const std::vector<StackState*>& states) const override;
};

// A mixer of a pre-norm block: rows of `round_up(width, PANEL)` numbers in and out; `memories` are those of the spans,
// whose sequences have had `before` positions.
struct Mixer {
  virtual ~Mixer() = default;
  virtual void run(const float* x, i64 rows, const std::vector<Span>& spans, const std::vector<Memory*>& memories,
                   const std::vector<i64>& before, float* out) const = 0;
};
std::unique_ptr<Mixer> read_attention(Plan& plan, i64 width);
std::unique_ptr<Mixer> read_mamba(Plan& plan, i64 width);

// Scores, softmax and sum of one head over the positions from ... to (exact_stack.cpp).
void attend(const float* q, const Memory& memory, i64 group, i64 groups, i64 head, i64 slots, i64 from, i64 to,
            float* scores, float* out);

struct Network;

struct NetworkState;

struct HNet {
  i64 width, inner, compared, hash_bits, hash_dim;
  double sharpness, offset;
  bool shaped, strict, from_zero;
  Matrix query, key, residual, hash_proj;
  Floats residual_bias, pad;
  const float* hash_table;
  std::unique_ptr<AnyStack> encoder, decoder;
  std::unique_ptr<Network> main;

  explicit HNet(Plan& plan);
  void run(float* x, i64 rows, const std::vector<Span>& spans, const std::vector<NetworkState*>& states,
           const i64* tokens) const;
  float boundary(const float* q, const float* memory) const;
};

// One of the two.
struct Network {
  std::unique_ptr<AnyStack> stack;
  std::unique_ptr<HNet> level;

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
  bool drafting = false;        // the main network is left out, and its state is not here
  std::unique_ptr<NetworkState> main;

  NetworkState() = default;
  explicit NetworkState(const Network& network);
  NetworkState fork(bool draft) const;
  void forget();
};

struct Sequence {
  NetworkState network;
  std::vector<i64> history;  // the ids that n-grams reach back to, the oldest first
};

struct Model {
  i64 alphabet, width, lengths, bits, dim, bos;
  double softcap;
  Floats embedding;  // each id's row, normalised if it is to be
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
