// Prediction and learning of context mixing, on the state of exact_mixing_state.h.
#pragma once

#include "exact_mixing_contexts.h"

namespace {

struct Mixer : Counters {
  using Counters::Counters;

  // The experts' distributions of the next byte; `keep` a copy where the caller's memory may be gone at `predict`.
  void ask(Frame& f, const u32* frequencies, i64 stride, bool keep = true) const {
    f.unsure = 0;
    for (i64 e = 0; e < experts; e++) {
      f.frequencies[e] = frequencies + e * stride;
      if (!keep) continue;
      std::memcpy(f.kept[e], f.frequencies[e], sizeof(f.kept[e]));
      f.frequencies[e] = f.kept[e];
    }
    if (!experts) return;
    const u32* first = f.frequencies[0];
    u32 most = 1, all = 0;
    for (i64 i = 0; i < 256; i++) most = std::max(most, first[i]), all += first[i];
    f.unsure = std::min<i64>(15, (i64)((log(all) - log(most)) * 5.770780f));
  }

  // The logit of a 1 at a node: ln of the mass of the bytes behind a 1 over that behind a 0.
  float logit(const u32* frequencies, i64 k, i64 node) const {
    const i64 size = 128 >> k;
    const u32* zero = frequencies + ((node << (8 - k)) & 255);
    u32 below = 0, above = 0;
    for (i64 i = 0; i < size; i++) below += zero[i], above += zero[size + i];
    return clip(log(above) - log(below));
  }

  // --- prediction

  // The sum of 8 lanes: ((a0 + a4) + (a2 + a6)) + ((a1 + a5) + (a3 + a7)).
  static float total(Lanes a) {
    typedef float Half __attribute__((vector_size(16)));
    const Half four = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
    return (four[0] + four[2]) + (four[1] + four[3]);
  }

  static i64 length_class(i64 bytes) {  // 0 … 31
    return bytes < 16 ? bytes : bytes < 32 ? 16 + (bytes - 16) / 4 : bytes < 64 ? 20 + (bytes - 32) / 8
         : bytes < 512 ? 24 + (bytes - 64) / 64 : 31;
  }

  static i64 confidence(float x) {  // 0 … 7
    const float size = x < 0 ? -x : x;
    return (size >= 0.5f) + (size >= 1) + (size >= 2) + (size >= 3) + (size >= 4) + (size >= 5) + (size >= 7);
  }

  i64 selected(const Frame& f, i64 kind, i64 k, i64 node, i64 hits, i64 bit, i64 sure) const {
    const i64 matched = bit < 0 ? 0 : f.matched;
    switch (kind) {
      case 0: return node;
      case 1: return f.last;
      case 2: return f.before;
      case 3: return ((matched + 8 * (bit == 1)) * 8 + sure) * 8 + k;
      case 4: return (k * 16 + std::min<i64>(hits, 15)) * 8 + f.matched;
      case 5: return (k * 16 + f.unsure) * 16 + std::min<i64>(hits, 15);
      case GIVEN_SET: case GIVEN_SET + 1: return (i64)given[MOST_GIVEN + kind - GIVEN_SET] * 8 + k;
      default: return (std::min<i64>(f.chunk_bytes, 15) * 8 + k) * 16 + f.unsure;
    }
  }

  static i64 refined_row(const Frame& f, i64 node) {
    return 65536 + (i64)((u32)(f.order2 + node) * 0x9E3779B1u >> 16);
  }

  // Have an eighth of what the predictions of a byte read brought into the cache: all at once are too many requests.
  void fetch(const Frame& f, i64 byte, i64 k) const {
    for (i64 c = k; c < context_count; c += 8) prefetch(f.hash[0][c]), prefetch(f.hash[1][c]);
    const u16* line = apm + refined_row(f, (byte | 256) >> (8 - k)) * 33;
    __builtin_prefetch(line);
    __builtin_prefetch(line + 32);
  }

  // A mixer's x·w.
  float weighed(const float* x, const float* w, i64 size) const {
    const Lanes *in = (const Lanes*)x, *by = (const Lanes*)w;
    Lanes a = {0, 0, 0, 0, 0, 0, 0, 0};
    for (i64 r = 0; r < size / 8; r++) a = a + in[r] * by[r];
    return clip(total(a));
  }

  // A step against a mixer's error.
  static void correct(const float* x, float* w, i64 size, float step) {
    const Lanes* in = (const Lanes*)x;
    Lanes* by = (Lanes*)w;
    for (i64 r = 0; r < size / 8; r++) by[r] = by[r] + in[r] * step;
  }

  // Inputs that come from no expert, behind those of contexts: the match and a 1. Returns the bit that the match
  // expects; −1 if none.
  i64 match_inputs(const Frame& f, i64 k, i64 node, float* x) const {
    i64 at = 2 * context_count, bit = -1;
    x[at] = x[at + 1] = 0;
    if (f.expected >= 0 && (f.expected | 256) >> (8 - k) == node) {
      bit = f.expected >> (7 - k) & 1;
      const float s = stretch_table[match_maps[length_class(f.match_bytes)] >> 20];
      const float l = (float)std::min<i64>(f.match_bytes, 32) * 0.0625f;
      x[at] = bit ? s : -s, x[at + 1] = bit ? l : -l;
    }
    at += 2;
    x[at++] = 0.3f;
    while (at < alone_inputs) x[at++] = 0;
    return bit;
  }

  // The logit of a 1 by contexts alone.
  float predict_alone(Frame& f, i64 k, i64 node, i64 hits, i64 bit) const {
    const i64 matched = bit < 0 ? 0 : f.matched;
    const i64 sets[ALONE_SETS] = {node, 256 + f.last, 512 + (k * 16 + std::min<i64>(hits, 15)) * 8 + matched};
    float sum = 0;
    for (i64 s = 0; s < ALONE_SETS; s++) {
      f.alone_set[k][s] = sets[s] * alone_inputs;
      f.alone_out[k][s] = weighed(f.x[k], alone + f.alone_set[k][s], alone_inputs);
      sum = sum + f.alone_out[k][s];
    }
    return sum * 0.33333334f;
  }

  void learn_alone(const Frame& f, i64 byte) const {
    const float rate = rates[7] + rates[0] / (1.0f + (float)counts[2] * rates[2]);
    for (i64 k = 0; k < 8; k++) {
      const i64 bit = byte >> (7 - k) & 1;
      for (i64 s = 0; s < ALONE_SETS; s++) {
        correct(f.x[k], alone + f.alone_set[k][s], alone_inputs, ((float)bit - squash(f.alone_out[k][s])) * rate);
      }
    }
    counts[2]++;
  }

  // How much less contexts alone would have cost of late: the share of all in the result follows it.
  void learn_trust(const Frame& f, i64 byte) const {
    float gain = 0;
    for (i64 k = 0; k < 8; k++) {
      const i64 one = byte >> (7 - k) & 1;
      const u32 all = one ? f.shares[k][0] : 65536 - f.shares[k][0];
      gain = gain + (log(all) - log(one ? f.shares[k][1] : 65536 - f.shares[k][1]));
    }
    trust[0] = clip(trust[0] * rates[8] + gain * rates[9]);
    trust[1] = squash(clip(trust[0] + rates[10]));
  }

  static u32 whole(float p) {  // in units of 2⁻¹⁶, 1 … 65535
    return (u32)std::min<i64>(65535, std::max<i64>(1, (i64)(p * 65536.0f)));
  }

  // The probability of a 1 at `node` in units of 2⁻¹⁶, 1 … 65535.
  u32 predict(Frame& f, i64 node) const {
    const i64 k = 31 - __builtin_clz((u32)node), half = k >= 4;
    const i64 own = half ? (node & ((1 << (k - 4)) - 1)) | 1 << (k - 4) : node;  // within half a byte
    if (k == 4) hash_second(f, node);
    if (k == 0 || k == 4) find_all(f, half);
    float* x = f.x[k];
    const i64 hits = __builtin_popcount(f.present[half]), correction = predict_all(f, half, own, x);
    const i64 bit = match_inputs(f, k, node, x);
    i64 at = alone_inputs;
    const float corrected = clip((float)correction * 0x1p-8f);
    x[at++] = corrected;
    const float* expert = x + at;
    for (i64 e = 0; e < experts; e++) x[at++] = logit(f.frequencies[e], k, node);
    float by_alone = 0;
    if (chained) by_alone = x[at++] = predict_alone(f, k, node, hits, bit);
    while (at < inputs) x[at++] = 0;
    const i64 sure = experts ? confidence(*expert) : f.matched;
    f.corrected[k] = squash(clip((experts ? *expert : 0.0f) + corrected));

    f.final_set[k] = k * 8 + sure;
    const float* last = final_weights + f.final_set[k] * MOST_SETS;
    float sum = 0;
    for (i64 s = 0; s < selector_count; s++) {
      f.set[k][s] = (set_offsets[s] + selected(f, selectors[s], k, node, hits, bit, sure)) * inputs;
      f.out[k][s] = weighed(x, weights + f.set[k][s], inputs);
      sum = sum + f.out[k][s] * last[s];
    }
    sum = clip(sum);
    const float p = squash(sum);
    f.p[k] = p;

    const float z = (clip(sum, 7.99f) + 8.0f) * 2.0f;  // 33 supporting points over −8 … 8
    const i64 j = (i64)z;
    const float share = z - (float)j;
    const i64 rows[2] = {node | f.last << 8, refined_row(f, node)};
    float refined[2];
    for (i64 a = 0; a < 2; a++) {
      const u16* line = apm + rows[a] * 33;
      refined[a] = ((float)line[j] * (1.0f - share) + (float)line[j + 1] * share) * 0x1p-16f;
      f.cell[k][a] = rows[a] * 33 + j + (share > 0.5f);
    }
    f.shares[k][0] = whole(p * rates[5] + (refined[0] + refined[1]) * rates[6]);
    if (!chained) return f.shares[k][0];
    f.shares[k][1] = whole(squash(clip(by_alone)));
    // a mean of two is between them, so a probability as they are
    return (u32)((float)f.shares[k][0] * trust[1] + (float)f.shares[k][1] * (1.0f - trust[1]) + 0.5f);
  }

  // --- learning

  // Whether the bits of a byte were those of the one that a match of so many bytes expected, up to the first other one.
  void learn_match(i64 expected, i64 bytes, i64 byte) const {
    for (i64 k = 0; k < 8 && (expected | 256) >> (8 - k) == (byte | 256) >> (8 - k); k++) {
      learn_map(match_maps[length_class(bytes)], (expected >> (7 - k) & 1) == (byte >> (7 - k) & 1));
    }
  }

  // A byte's counters, whose contexts' hashes are known; `corrected` is null while priming. Contexts alone predict
  // there, too, and learn what each of them is worth.
  void count(Frame& f, i64 byte, const float* corrected) const {
    const bool predicts = chained && !corrected;
    for (i64 half = 0; half < 2; half++) {
      find_all(f, half);
      const i64 hits = __builtin_popcount(f.present[half]);
      for (i64 k = 4 * half, own = 1; predicts && k < 4 * half + 4; k++) {
        const i64 node = (byte | 256) >> (8 - k);
        predict_all(f, half, own, f.x[k]);
        predict_alone(f, k, node, hits, match_inputs(f, k, node, f.x[k]));
        own = 2 * own + (byte >> (7 - k) & 1);
      }
      claim_rest(f, half);
      for (i64 k = 4 * half, own = 1; k < 4 * half + 4; k++) {
        const i64 bit = byte >> (7 - k) & 1;
        learn_all(f, half, own, bit, corrected ? corrected + k : nullptr);
        own = 2 * own + bit;
      }
    }
    if (predicts) learn_alone(f, byte);
  }

  // The byte at whose nodes `predict` was last asked, from the highest bit on.
  void learn(i64 row, i64 byte) const {
    Frame& f = frames[row];
    const float rate = rates[1] + rates[0] / (1.0f + (float)counts[1] * rates[2]);
    for (i64 k = 0; k < 8; k++) {
      const i64 bit = byte >> (7 - k) & 1;
      float* last = final_weights + f.final_set[k] * MOST_SETS;
      const float whole = ((float)bit - f.p[k]) * rates[3];
      for (i64 s = 0; s < selector_count; s++) {
        last[s] = last[s] + whole * f.out[k][s];
        correct(f.x[k], weights + f.set[k][s], inputs, ((float)bit - squash(f.out[k][s])) * rate);
      }
      for (i64 a = 0; a < 2; a++) {
        u16& cell = apm[f.cell[k][a]];
        cell = (u16)(cell + (((bit ? 65535 : 0) - (i64)cell) >> 6));
      }
    }
    if (chained) learn_alone(f, byte), learn_trust(f, byte);
    if (f.expected >= 0) learn_match(f.expected, f.match_bytes, byte);
    count(f, byte, f.corrected);
    counts[1]++;
  }

  // What each bit of a byte is given; meanwhile what the next one needs is fetched.
  void walk(Frame& f, i64 byte, u16* out, const Frame* next = nullptr, i64 next_byte = 0) const {
    for (i64 k = 0; k < 8; k++) {
      if (next) fetch(*next, next_byte, k);
      const u32 p = predict(f, (byte | 256) >> (8 - k));
      out[k] = (u16)(byte >> (7 - k) & 1 ? p : 65536 - p);
    }
  }
};

}  // namespace
