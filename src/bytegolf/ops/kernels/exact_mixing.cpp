// Context mixing of byte distributions (mixing/__init__.py has the method, mixing/reference.py the same in plain NumPy).
//
// Both work on the same arrays and agree bit for bit, on any machine and number of threads: counters are integers, and
// what is in fp32 is added up in one written order (this file is compiled without contraction and reassociation), with
// logarithms and exponentials from tables that Python makes.
//
// A byte is coded as 8 bits from the highest on. `node` is 1 and the bits so far, 1 … 255: before the third bit of
// 'a' = 0b01100001 it is 0b101. All predictions of a byte are made from the state before it; what is learned from it
// comes after.
#include <algorithm>

#include "common.h"

namespace {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
typedef float Lanes __attribute__((vector_size(32)));  // 8 fp32: sums run over whole ones, then within one

constexpr i64 MOST_CONTEXTS = 32, MOST_INPUTS = 40, MOST_SETS = 8, MOST_EXPERTS = 3;
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
  u32 tree[MOST_EXPERTS][512];  // [node] the mass below it, of which leaves are 256 + byte
  u64 hash[MOST_CONTEXTS];
  u32* bucket[2][MOST_CONTEXTS];
  float out[8][MOST_SETS], p[8], corrected[8];
  i64 set[8][MOST_SETS], final_set[8], cell[8][2];
  i64 last, before, order2, expected, match_bytes, chunk_bytes, unsure;
};
static_assert(sizeof(Frame) <= 16384, "mixing/state.py keeps 16 KiB per stream");

struct Mixer {
  u32 *table, *maps, *match_maps;
  float *weights, *final_weights;
  u16* apm;
  u32* positions;
  u8* text;
  History* history;
  Frame* frames;
  i64* counts;  // generation of the table, bytes learned
  const float *squash_table, *stretch_table, *log_table, *boost, *rates;
  const int32_t *slot_rate, *map_rate;
  const i64 *contexts, *selectors, *set_offsets;
  i64 context_count, selector_count, experts, inputs, bits, ring, position_bits, shortest;

  explicit Mixer(const void* fields, const void* sizes) {
    const i64* f = (const i64*)fields;
    const i64* s = (const i64*)sizes;
    table = (u32*)f[0], maps = (u32*)f[1], match_maps = (u32*)f[2], weights = (float*)f[3];
    final_weights = (float*)f[4], apm = (u16*)f[5], positions = (u32*)f[6], text = (u8*)f[7];
    history = (History*)f[8], frames = (Frame*)f[9], counts = (i64*)f[10];
    squash_table = (const float*)f[11], stretch_table = (const float*)f[12], log_table = (const float*)f[13];
    boost = (const float*)f[14], rates = (const float*)f[15];
    slot_rate = (const int32_t*)f[16], map_rate = (const int32_t*)f[17];
    contexts = (const i64*)f[18], selectors = (const i64*)f[19], set_offsets = (const i64*)f[20];
    context_count = s[0], selector_count = s[1], experts = s[2], inputs = s[3], bits = s[4], ring = s[5];
    position_bits = s[6], shortest = s[7];
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
      default: return (h.last8 >> 24) & 0xff;
    }
  }

  static u64 second(u64 hash, i64 node) { return mixed(hash + (u64)node); }

  u32 head(u64 hash) const { return (u32)(hash & 0xffff) | (u32)counts[0] << 16; }
  u32* place(u64 hash) const { return table + (hash >> (64 - bits)) * 16; }
  u32* neighbour(u64 hash) const { return table + ((hash >> (64 - bits)) ^ 1) * 16; }

  // The bucket of a hash: 15 slots, one per node of half a byte; null where there is none.
  u32* find(u64 hash) const {
    const u32 wanted = head(hash);
    u32* one = place(hash);
    if (*one == wanted) return one;
    u32* other = neighbour(hash);
    return *other == wanted ? other : nullptr;
  }

  // The same, made where there is none: in place of one of an older generation, or else of the less visited of two.
  u32* claim(u64 hash) const {
    if (u32* found = find(hash)) return found;
    u32 *one = place(hash), *other = neighbour(hash);
    const u32 now = (u32)counts[0];
    const bool stale = *one >> 16 != now, other_stale = *other >> 16 != now;
    u32* taken = stale || (!other_stale && (one[1] & 15) <= (other[1] & 15)) ? one : other;
    std::memset(taken, 0, 64);
    *taken = head(hash);
    return taken;
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

  // What the next byte's predictions depend on, but for the experts.
  void look(i64 row, Frame& f) const {
    const History& h = history[row];
    for (i64 c = 0; c < context_count; c++) {
      f.hash[c] = mixed(context(h, contexts[c]) + (u64)(c + 1) * 0xD6E8FEB86659FD93ull);
    }
    f.last = h.last8 & 0xff, f.before = (h.last8 >> 8) & 0xff;
    f.order2 = (i64)(mixed(h.last8 & 0xffff) >> 32);
    f.expected = expected(h), f.match_bytes = h.match_bytes, f.chunk_bytes = h.chunk_bytes;
  }

  void ask(Frame& f, const u32* frequencies, i64 stride) const {
    f.unsure = 0;
    for (i64 e = 0; e < experts; e++) {
      u32* tree = f.tree[e];
      std::memcpy(tree + 256, frequencies + e * stride, 256 * sizeof(u32));
      for (i64 i = 255; i >= 1; i--) tree[i] = tree[2 * i] + tree[2 * i + 1];
    }
    if (!experts) return;
    u32 most = 1;
    for (i64 i = 256; i < 512; i++) most = std::max(most, f.tree[0][i]);
    f.unsure = std::min<i64>(15, (i64)((log(f.tree[0][1]) - log(most)) * 5.770780f));
  }

  // --- prediction

  static i64 length_class(i64 bytes) {  // 0 … 31
    return bytes < 16 ? bytes : bytes < 32 ? 16 + (bytes - 16) / 4 : bytes < 64 ? 20 + (bytes - 32) / 8
         : bytes < 512 ? 24 + (bytes - 64) / 64 : 31;
  }

  static i64 rough_length(i64 bytes) {  // 0 … 7
    return bytes == 0 ? 0 : bytes < 8 ? 1 : bytes < 12 ? 2 : bytes < 16 ? 3 : bytes < 20 ? 4 : bytes < 24 ? 5
         : bytes < 32 ? 6 : 7;
  }

  static i64 confidence(float x) {  // 0 … 7
    const float size = x < 0 ? -x : x;
    return size < 0.5f ? 0 : size < 1 ? 1 : size < 2 ? 2 : size < 3 ? 3 : size < 4 ? 4 : size < 5 ? 5 : size < 7 ? 6 : 7;
  }

  i64 selected(const Frame& f, i64 kind, i64 k, i64 node, i64 hits, i64 bit, i64 sure) const {
    const i64 matched = bit < 0 ? 0 : rough_length(f.match_bytes);
    switch (kind) {
      case 0: return node;
      case 1: return f.last;
      case 2: return f.before;
      case 3: return ((matched + 8 * (bit == 1)) * 8 + sure) * 8 + k;
      case 4: return (k * 16 + std::min<i64>(hits, 15)) * 8 + rough_length(f.match_bytes);
      case 5: return (k * 16 + f.unsure) * 16 + std::min<i64>(hits, 15);
      default: return (std::min<i64>(f.chunk_bytes, 15) * 8 + k) * 16 + f.unsure;
    }
  }

  // The probability of a 1 at `node` in units of 2⁻¹⁶, 1 … 65535.
  u32 predict(Frame& f, i64 node) const {
    const i64 k = 31 - __builtin_clz((u32)node), half = k >= 4;
    const i64 own = half ? (node & ((1 << (k - 4)) - 1)) | 1 << (k - 4) : node;  // within half a byte
    if (k == 0 || k == 4) {
      for (i64 c = 0; c < context_count; c++) f.bucket[half][c] = find(half ? second(f.hash[c], node) : f.hash[c]);
    }
    float* x = f.x[k];
    i64 hits = 0, correction = 0;
    for (i64 c = 0; c < context_count; c++) {
      x[c] = 0;
      const u32* bucket = f.bucket[half][c];
      if (!bucket) continue;
      hits++;
      const u32 slot = bucket[own];
      if (!(slot & 15)) continue;
      x[c] = stretch_table[maps[c * 1024 + (slot & 15) * 64 + ((slot >> 10) & 63)] >> 20];
      correction += (int16_t)(slot >> 16);
    }
    i64 at = context_count, bit = -1;
    const float corrected = clip((float)correction * 0x1p-12f);
    x[at++] = corrected;
    x[at] = x[at + 1] = 0;
    if (f.expected >= 0 && (f.expected | 256) >> (8 - k) == node) {
      bit = f.expected >> (7 - k) & 1;
      const float s = stretch_table[match_maps[length_class(f.match_bytes)] >> 20];
      const float l = (float)std::min<i64>(f.match_bytes, 32) * 0.0625f;
      x[at] = bit ? s : -s, x[at + 1] = bit ? l : -l;
    }
    at += 2;
    x[at++] = 0.3f;
    const float* expert = x + at;
    for (i64 e = 0; e < experts; e++) x[at++] = clip(log(f.tree[e][2 * node + 1]) - log(f.tree[e][2 * node]));
    while (at < inputs) x[at++] = 0;
    const i64 sure = experts ? confidence(*expert) : rough_length(f.match_bytes);
    f.corrected[k] = squash(clip((experts ? *expert : 0.0f) + corrected));

    f.final_set[k] = k * 8 + sure;
    const float* last = final_weights + f.final_set[k] * MOST_SETS;
    float sum = 0;
    for (i64 s = 0; s < selector_count; s++) {
      f.set[k][s] = (set_offsets[s] + selected(f, selectors[s], k, node, hits, bit, sure)) * inputs;
      const Lanes* w = (const Lanes*)(weights + f.set[k][s]);
      const Lanes* in = (const Lanes*)x;
      Lanes a = {0, 0, 0, 0, 0, 0, 0, 0};
      for (i64 r = 0; r < inputs / 8; r++) a = a + in[r] * w[r];
      f.out[k][s] = clip(((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7])));
      sum = sum + f.out[k][s] * last[s];
    }
    sum = clip(sum);
    const float p = squash(sum);
    f.p[k] = p;

    const float z = (clip(sum, 7.99f) + 8.0f) * 2.0f;  // 33 supporting points over −8 … 8
    const i64 j = (i64)z;
    const float share = z - (float)j;
    const i64 rows[2] = {node | f.last << 8, 65536 + (i64)((u32)(f.order2 + node) * 0x9E3779B1u >> 16)};
    float refined[2];
    for (i64 a = 0; a < 2; a++) {
      const u16* line = apm + rows[a] * 33;
      refined[a] = ((float)line[j] * (1.0f - share) + (float)line[j + 1] * share) * 0x1p-16f;
      f.cell[k][a] = rows[a] * 33 + j + (share > 0.5f);
    }
    const i64 found = (i64)((p * rates[5] + (refined[0] + refined[1]) * rates[6]) * 65536.0f);
    return (u32)std::min<i64>(65535, std::max<i64>(1, found));
  }

  // --- learning

  // An adaptive probability of 22 bits above a count of 10: its rate is 1/(count + 1.5), down to 1/1024.
  void learn_map(u32& map, i64 bit) const {
    const i64 count = map & 1023, p = map >> 10;
    const i64 next = p + (((bit ? 4194303 : 0) - p) * map_rate[count] >> 16);
    map = (u32)next << 10 | (u32)std::min<i64>(count + 1, 1023);
  }

  // The byte at whose nodes `predict` was last asked, from the highest bit on.
  void learn(i64 row, i64 byte) const {
    Frame& f = frames[row];
    const float rate = rates[1] + rates[0] / (1.0f + (float)counts[1] * rates[2]);
    i64 node = 1;
    for (i64 k = 0; k < 8; k++) {
      const i64 bit = byte >> (7 - k) & 1;
      float* last = final_weights + f.final_set[k] * MOST_SETS;
      const float whole = ((float)bit - f.p[k]) * rates[3];
      for (i64 s = 0; s < selector_count; s++) {
        last[s] = last[s] + whole * f.out[k][s];
        const float e = ((float)bit - squash(f.out[k][s])) * rate;
        Lanes* w = (Lanes*)(weights + f.set[k][s]);
        const Lanes* in = (const Lanes*)f.x[k];
        for (i64 r = 0; r < inputs / 8; r++) w[r] = w[r] + in[r] * e;
      }
      for (i64 a = 0; a < 2; a++) {
        u16& cell = apm[f.cell[k][a]];
        cell = (u16)(cell + (((bit ? 65535 : 0) - (i64)cell) >> 6));
      }
      if (f.expected >= 0 && (f.expected | 256) >> (8 - k) == node) {
        learn_map(match_maps[length_class(f.match_bytes)], (f.expected >> (7 - k) & 1) == bit);
      }
      node = 2 * node + bit;
    }
    for (i64 c = 0; c < context_count; c++) {
      for (i64 half = 0; half < 2; half++) {
        const u64 hash = half ? second(f.hash[c], 16 | byte >> 4) : f.hash[c];
        u32* bucket = f.bucket[half][c];  // another context may have taken it since
        if (!bucket || *bucket != head(hash)) bucket = claim(hash);
        for (i64 k = 0, own = 1; k < 4; k++) {
          const i64 bit = byte >> (7 - 4 * half - k) & 1;
          const u32 slot = bucket[own];
          i64 seen = slot & 15, p = seen ? slot >> 4 & 4095 : 2048, w = (int16_t)(slot >> 16);
          if (seen) learn_map(maps[c * 1024 + seen * 64 + (p >> 6)], bit);
          p += ((bit ? 4095 : 0) - p) * slot_rate[seen] >> 16;
          seen = std::min<i64>(seen + 1, 15);
          w += (i64)std::nearbyint(((float)bit - f.corrected[4 * half + k]) * boost[seen]);
          w = std::min<i64>(32767, std::max<i64>(-32768, w));
          bucket[own] = (u32)(u16)w << 16 | (u32)p << 4 | (u32)seen;
          own = 2 * own + bit;
        }
      }
    }
    counts[1]++;
  }

  void walk(Frame& f, i64 byte, u16* out) const {
    for (i64 k = 0; k < 8; k++) {
      const u32 p = predict(f, (byte | 256) >> (8 - k));
      out[k] = (u16)(byte >> (7 - k) & 1 ? p : 65536 - p);
    }
  }
};

}  // namespace

// Begin the next byte of `count` streams: `frequencies` (count, experts, 256) every `stride`, whether their last byte
// began a chunk in `opens`.
extern "C" void mixing_begin(i64, const void* fields, const void* sizes, const void* rows, i64 count,
                             const void* frequencies, i64 stride, const void* opens) {
  const Mixer m(fields, sizes);
  for (i64 i = 0; i < count; i++) {
    const i64 row = ((const i64*)rows)[i];
    m.advance(row, ((const u8*)opens)[i]);
    m.look(row, m.frames[row]);
    m.ask(m.frames[row], (const u32*)frequencies + i * m.experts * stride, stride);
  }
}

// The probability of a 1 at a node of each stream, which has been led there from 1 on.
extern "C" void mixing_predict(i64, const void* fields, const void* sizes, const void* rows, i64 count,
                               const void* nodes, void* out) {
  const Mixer m(fields, sizes);
  for (i64 i = 0; i < count; i++) {
    ((int32_t*)out)[i] = (int32_t)m.predict(m.frames[((const i64*)rows)[i]], ((const i64*)nodes)[i]);
  }
}

// The probability of a 1 at all nodes, (count, 256), of which the first column is not used.
extern "C" void mixing_nodes(i64, const void* fields, const void* sizes, const void* rows, i64 count, void* out) {
  const Mixer m(fields, sizes);
  for (i64 i = 0; i < count; i++) {
    Frame& f = m.frames[((const i64*)rows)[i]];
    int32_t* own = (int32_t*)out + i * 256;
    for (i64 node = 1; node < 16; node++) own[node] = (int32_t)m.predict(f, node);
    for (i64 high = 16; high < 32; high++) {  // each half by itself: predict looks for buckets at its first node
      for (i64 deep = 0; deep < 4; deep++) {
        for (i64 low = 0; low < (1 << deep); low++) {
          const i64 node = high << deep | low;
          own[node] = (int32_t)m.predict(f, node);
        }
      }
    }
  }
}

// Learn the bytes that came.
extern "C" void mixing_learn(i64, const void* fields, const void* sizes, const void* rows, i64 count,
                             const void* bytes) {
  const Mixer m(fields, sizes);
  u16 unused[8];
  for (i64 i = 0; i < count; i++) m.walk(m.frames[((const i64*)rows)[i]], ((const u8*)bytes)[i], unused);
  for (i64 i = 0; i < count; i++) {
    const i64 row = ((const i64*)rows)[i];
    m.learn(row, ((const u8*)bytes)[i]);
    m.history[row].pending = ((const u8*)bytes)[i];
  }
}

// Begin, predict and learn `count` bytes of one stream; `out` (count, 8) is what the bits that came were given.
extern "C" void mixing_run(i64, const void* fields, const void* sizes, i64 row, i64 count, const void* frequencies,
                           i64 stride, const void* opens, const void* bytes, void* out) {
  const Mixer m(fields, sizes);
  const u8 *text = (const u8*)bytes, *begun = (const u8*)opens;
  alignas(64) static thread_local Frame next;  // the byte after: what it needs is fetched while this one is worked on
  if (!count) return;
  m.advance(row, begun[0]);
  m.look(row, m.frames[row]);
  for (i64 t = 0; t < count; t++) {
    Frame& f = m.frames[row];
    m.history[row].pending = text[t];
    if (t + 1 < count) {
      m.advance(row, begun[t + 1]);
      m.look(row, next);
      for (i64 c = 0; c < m.context_count; c++) {
        __builtin_prefetch(m.place(next.hash[c]));
        __builtin_prefetch(m.place(Mixer::second(next.hash[c], 16 | text[t + 1] >> 4)));
      }
    }
    m.ask(f, (const u32*)frequencies + t * m.experts * stride, stride);
    m.walk(f, text[t], (u16*)out + t * 8);
    m.learn(row, text[t]);
    if (t + 1 < count) {
      std::copy(next.hash, next.hash + m.context_count, f.hash);
      f.last = next.last, f.before = next.before, f.order2 = next.order2, f.expected = next.expected;
      f.match_bytes = next.match_bytes, f.chunk_bytes = next.chunk_bytes;
    }
  }
}
