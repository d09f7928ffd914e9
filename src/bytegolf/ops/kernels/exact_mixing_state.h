// Context mixing of byte distributions (mixing/__init__.py has the method, mixing/reference.py the same in plain NumPy).
//
// Both work on the same arrays and agree bit for bit, on any machine and number of threads: counters are integers, and
// what is in fp32 is added up in one written order (this file is compiled without contraction and reassociation), with
// logarithms and exponentials from tables that Python makes.
//
// A byte is coded as 8 bits from the highest on. `node` is 1 and the bits so far, 1 … 255: before the third bit of
// 'a' = 0b01100001 it is 0b101. All predictions of a byte are made from the state before it; what is learned from it
// comes after.
#pragma once

#include <algorithm>

#include "common.h"

namespace {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
typedef float Lanes __attribute__((vector_size(32)));  // 8 fp32: sums run over whole ones, then within one

constexpr i64 MOST_CONTEXTS = 32, MOST_INPUTS = 80, MOST_SETS = 8, MOST_EXPERTS = 6, ALONE_SETS = 3;
constexpr i64 GIVEN = 64, GIVEN_SET = 8, MOST_GIVEN = 16;  // kinds of contexts and selectors; sets lie behind contexts
constexpr float FAR = 11.99f;  // the largest |ln(p/(1−p))|

// Where a stream is: what contexts are made of. 16 numbers; mixing/state.py names them too.
struct History {
  u64 last8, before8, before16, word, word_before, chunk, chunk_before;
  i64 chunk_bytes, match_at, match_bytes, length, pending, unused[4];
};
static_assert(sizeof(History) == 16 * 8, "mixing/state.py has 16 numbers per stream");

// What the predictions of one byte of a stream are made of, and what they were.
struct Frame {
  alignas(64) float x[8][MOST_INPUTS];
  u32 kept[MOST_EXPERTS][256];
  const u32* frequencies[MOST_EXPERTS];  // of the 256 bytes: `kept`, or the caller's
  alignas(64) u64 hash[2][MOST_CONTEXTS];    // of each half of the byte; the second one's when the first is known
  alignas(64) u32 bucket[2][MOST_CONTEXTS];  // where in the table
  u32 present[2];                            // which contexts have one
  float out[8][MOST_SETS], p[8], corrected[8], alone_out[8][ALONE_SETS];
  i64 alone_set[8][ALONE_SETS];
  i64 set[8][MOST_SETS], final_set[8], cell[8][2];
  u32 shares[8][2];  // what a 1 was given by all and by contexts alone
  u64 dice;
  i64 last, before, order2, expected, match_bytes, matched, chunk_bytes, unsure;
};
static_assert(sizeof(Frame) <= 16384, "mixing/state.py keeps 16 KiB per stream");

// What mixing knows, and where streams are: numbers, contexts and their buckets, histories.
struct Knowledge {
  u32 *table, *maps, *match_maps;
  float *weights, *final_weights;
  u16* apm;
  u32* positions;
  u8* text;
  History* history;
  Frame* frames;
  i64* counts;  // generation of the table, bytes learned, bytes that contexts alone predicted
  const float *squash_table, *stretch_table, *log_table, *boost, *rates;
  const int32_t *slot_rate, *map_rate;
  const i64 *contexts, *selectors, *set_offsets;
  const u64* given;       // contexts and sets that come from outside (mixing/samples.py), for the kinds from these on
  i64 context_count, selector_count, experts, inputs, bits, ring, position_bits, shortest, alone_inputs;
  bool chained;  // contexts alone predict as well
  float *alone, *trust;
  const int32_t *bins, *level_gaps;

  explicit Knowledge(const void* fields, const void* sizes) {
    const i64* f = (const i64*)fields;
    const i64* s = (const i64*)sizes;
    table = (u32*)f[0], maps = (u32*)f[1], match_maps = (u32*)f[2], weights = (float*)f[3];
    final_weights = (float*)f[4], apm = (u16*)f[5], positions = (u32*)f[6], text = (u8*)f[7];
    history = (History*)f[8], frames = (Frame*)f[9], counts = (i64*)f[10];
    squash_table = (const float*)f[11], stretch_table = (const float*)f[12], log_table = (const float*)f[13];
    boost = (const float*)f[14], rates = (const float*)f[15];
    slot_rate = (const int32_t*)f[16], map_rate = (const int32_t*)f[17];
    contexts = (const i64*)f[18], selectors = (const i64*)f[19], set_offsets = (const i64*)f[20];
    given = (const u64*)f[21];
    context_count = s[0], selector_count = s[1], experts = s[2], inputs = s[3], bits = s[4], ring = s[5];
    alone = (float*)f[22], bins = (const int32_t*)f[23], level_gaps = (const int32_t*)f[24], trust = (float*)f[25];
    position_bits = s[6], shortest = s[7], alone_inputs = s[8], chained = s[9];
  }

  // --- numbers

  static float clip(float x, float most = FAR) { return x < -most ? -most : (x > most ? most : x); }

  // 1/(1+e^−x), |x| < 12, by linear interpolation of a table with 64 entries per 1.
  float squash(float x) const {
    const float at = (x + 12.0f) * 64.0f;
    const int i = (int)at;
    return squash_table[i] + (squash_table[i + 1] - squash_table[i]) * (at - (float)i);
  }

  // ln of an integer above 0 from its highest bit and the 12 bits behind it.
  float log(u32 value) const {
    const int high = 31 - __builtin_clz(value);
    return log_table[((value << (31 - high)) >> 19) & 4095] + (float)high * 0.6931472f;
  }

  // --- contexts

  static u64 mixed(u64 h) {
    h = (h ^ (h >> 31)) * 0x9E3779B97F4A7C15ull;
    return (h ^ (h >> 29)) * 0xBF58476D1CE4E5B9ull;
  }

  // The hash of a context; the kinds are those of mixing/state.py.
  static u64 context(const History& h, i64 kind) {
    const u64 K = 0x9E3779B97F4A7C15ull;
    switch (kind) {
      case 0: case 1: case 2: case 3: case 4: case 5: case 6: case 7:
        return h.last8 & (((u64)1 << (8 * kind)) - 1);
      case 8: return h.last8;
      case 12: return h.last8 * K + (h.before8 & 0xffffffffull);
      case 16: return h.last8 * K + h.before8;
      case 24: return (h.last8 * K + h.before8) * K + h.before16;
      case 32: return h.word;
      case 33: return h.word * K + h.word_before;
      case 34: return h.word_before * K + (h.last8 & 0xff);
      case 40: return h.chunk;
      case 41: return h.chunk * K + h.chunk_before;
      case 42: return h.chunk_before * K + (u64)h.chunk_bytes;
      case 48: return (h.last8 >> 8) & 0xffff;
      case 49: return (h.last8 >> 8) & 0xffffff;
      case 50: return (h.last8 >> 16) & 0xffff;
      case 51: return h.last8 & 0xf0f0f0f0f0ull;
      case 52: return (h.last8 >> 24) & 0xff;
      case 53: return ((h.last8 >> 24) & 0xff) | ((h.last8 >> 48) & 0xff00);
      default:
        return (2 * ((h.last8 >> 24) & 0xffff) - ((h.last8 >> 56) | ((h.before8 << 8) & 0xff00))) & 0xffff;
    }
  }

  static i64 rough_length(i64 bytes) {  // 0 … 7
    return bytes == 0 ? 0 : bytes < 8 ? 1 : bytes < 12 ? 2 : bytes < 16 ? 3 : bytes < 20 ? 4 : bytes < 24 ? 5
         : bytes < 32 ? 6 : 7;
  }

  u32 head(u64 hash) const { return (u32)(hash & 0xffff) | (u32)counts[0] << 16; }
  // Where a bucket lies, in slots; there are less than 2³¹. Its neighbour is 16 further or 16 back.
  i64 place(u64 hash) const { return (i64)(hash >> (64 - bits)) * 16; }
  void prefetch(u64 hash) const {
    __builtin_prefetch(table + place(hash), 1);
    __builtin_prefetch(table + (place(hash) ^ 16), 1);
  }

  // The bucket of a hash: 15 slots, one per node of half a byte; −1 where there is none.
  i64 find(u64 hash) const {
    const i64 one = place(hash);
    return table[one] == head(hash) ? one : table[one ^ 16] == head(hash) ? one ^ 16 : -1;
  }

  // The same, made where there is none: in place of one of an older generation, or else of the less visited of two.
  u32 claim(u64 hash) const {
    const i64 found = find(hash), one = place(hash), other = one ^ 16;
    if (found >= 0) return (u32)found;
    const u32 now = (u32)counts[0];
    const bool stale = table[one] >> 16 != now, other_stale = table[other] >> 16 != now;
    const bool fewer = (table[one + 1] & 15) <= (table[other + 1] & 15);
    const i64 taken = stale || (!other_stale && fewer) ? one : other;
    std::memset(table + taken, 0, 64);
    table[taken] = head(hash);
    return (u32)taken;
  }

  // --- a stream moves on

  static i64 letter(u64 byte) {
    const i64 c = byte >= 'A' && byte <= 'Z' ? byte + 32 : byte;
    return (c >= 'a' && c <= 'z') || c >= 128 ? c : 0;
  }

  // Take the pending byte into the history; `opens`: it began a chunk.
  void advance(i64 row, bool opens) const {
    History& h = history[row];
    if (h.pending < 0) return;
    const u64 byte = (u64)h.pending;
    h.pending = -1;
    h.before16 = h.before16 << 8 | h.before8 >> 56;
    h.before8 = h.before8 << 8 | h.last8 >> 56;
    h.last8 = h.last8 << 8 | byte;
    if (const i64 c = letter(byte)) h.word = mixed(h.word + (u64)c + 1);
    else if (h.word) h.word_before = h.word, h.word = 0;
    if (opens) h.chunk_before = h.chunk, h.chunk = 0, h.chunk_bytes = 0;
    h.chunk = mixed(h.chunk + byte + 1);
    h.chunk_bytes++;
    u8* own = text + row * ring;
    const i64 mask = ring - 1;
    // the match goes on if it foretold this byte, and ends where another stream has read no further
    if (expected(h) == (i64)byte) {
      const i64 stream = h.match_at / ring, next = (h.match_at + 1) & mask;
      h.match_at = stream * ring + next;
      h.match_bytes = stream != row && next == (history[stream].length & mask) ? 0 : h.match_bytes + 1;
    } else {
      h.match_bytes = 0;
    }
    own[h.length & mask] = (u8)byte;
    h.length++;
    if (h.length < shortest) return;
    // positions count over all streams, so that one finds what another has had: stream · ring + place, plus 1
    u32& latest = positions[mixed(h.last8 << (64 - 8 * shortest)) >> (64 - position_bits)];
    if (!h.match_bytes && latest) {
      const i64 stream = (latest - 1) / ring, at = (latest - 1) & mask;
      const u8* theirs = text + stream * ring;
      const i64 most = std::min<i64>({32, h.length, history[stream].length > ring ? 32 : at});
      i64 same = 0;
      while (same < most && theirs[(at - 1 - same) & mask] == own[(h.length - 1 - same) & mask]) same++;
      if (same >= shortest) h.match_bytes = same, h.match_at = stream * ring + at;
    }
    latest = (u32)(row * ring + (h.length & mask) + 1);
  }

  i64 expected(const History& h) const {
    if (!h.match_bytes) return -1;
    const i64 stream = h.match_at / ring;
    return text[stream * ring + (h.match_at & (ring - 1))];
  }

  // The hashes of a byte's second half, whose first node is 16 … 31.
  void hash_second(Frame& f, i64 node) const {
    for (i64 c = 0; c < context_count; c++) f.hash[1][c] = mixed(f.hash[0][c] + (u64)node);
  }

  // The hash of a stream's c-th context.
  u64 hashed(const History& h, i64 c) const {
    const u64 own = contexts[c] >= GIVEN ? given[contexts[c] - GIVEN] : context(h, contexts[c]);
    return mixed(own + (u64)(c + 1) * 0xD6E8FEB86659FD93ull);
  }

  // What the next byte's predictions depend on, but for the experts.
  void look(i64 row, Frame& f) const {
    const History& h = history[row];
    for (i64 c = 0; c < context_count; c++) f.hash[0][c] = hashed(h, c);
    f.dice = mixed((u64)h.length + 1);
    f.last = h.last8 & 0xff, f.before = (h.last8 >> 8) & 0xff;
    f.order2 = (i64)(mixed(h.last8 & 0xffff) >> 32);
    f.expected = expected(h), f.match_bytes = h.match_bytes, f.matched = rough_length(h.match_bytes), f.chunk_bytes = h.chunk_bytes;
  }
};

}  // namespace
