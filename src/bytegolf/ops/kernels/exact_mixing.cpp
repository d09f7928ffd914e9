// What Python calls of context mixing (mixing/mixer.py).
#include "exact_mixing.h"

#include <vector>

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
  Frame next;  // the byte after: what it needs is fetched while this one is worked on
  if (!count) return;
  m.advance(row, begun[0]);
  m.look(row, m.frames[row]);
  for (i64 t = 0; t < count; t++) {
    Frame& f = m.frames[row];
    m.history[row].pending = text[t];
    if (t + 1 < count) {
      m.advance(row, begun[t + 1]);
      m.look(row, next);
      m.hash_second(next, 16 | text[t + 1] >> 4);
    }
    m.ask(f, (const u32*)frequencies + t * m.experts * stride, stride, false);
    const bool more = t + 1 < count;
    m.walk(f, text[t], (u16*)out + t * 8, more ? &next : nullptr, more ? text[t + 1] : 0);
    m.learn(row, text[t]);
    if (t + 1 < count) {
      std::copy(next.hash[0], next.hash[0] + m.context_count, f.hash[0]);
      f.dice = next.dice, f.last = next.last, f.before = next.before, f.order2 = next.order2, f.expected = next.expected;
      f.match_bytes = next.match_bytes, f.matched = next.matched, f.chunk_bytes = next.chunk_bytes;
    }
  }
}

// Learn `count` bytes of one stream without predicting them: counters and what they mean, matches and the history, but
// no weights or corrections. The text is known, so a block of it is hashed first, and buckets are fetched far ahead.
extern "C" void mixing_prime(i64, const void* fields, const void* sizes, i64 row, i64 count, const void* bytes) {
  const Mixer m(fields, sizes);
  const u8* text = (const u8*)bytes;
  constexpr i64 BLOCK = 32, AHEAD = 1;
  std::vector<Frame> frames(BLOCK);
  for (i64 begin = 0; begin < count; begin += BLOCK) {
    const i64 size = std::min(count - begin, BLOCK);
    for (i64 t = 0; t < size; t++) {
      History& h = m.history[row];
      const i64 byte = text[begin + t];
      m.advance(row, false);
      m.look(row, frames[t]);
      m.hash_second(frames[t], 16 | byte >> 4);
      h.pending = byte;
    }
    for (i64 t = 0; t < size; t++) {
      for (i64 c = 0; t + AHEAD < size && c < m.context_count; c++) {
        m.prefetch(frames[t + AHEAD].hash[0][c]), m.prefetch(frames[t + AHEAD].hash[1][c]);
      }
      Frame& f = frames[t];
      m.count(f, text[begin + t], nullptr);
      if (f.expected >= 0) m.learn_match(f.expected, f.match_bytes, text[begin + t]);
    }
  }
}
