// Mixing and a binary arithmetic coder together: the bytes of streams, coded bit by bit (mixing/coding.py).
#include "exact_coding.h"

// `steps` bytes of each of `count` streams in turn: `bytes` (steps, count) are read, or filled in. `frequencies` (count,
// experts, 256) every `stride` and `opens` (count) are those of one step: more steps than one have no experts.
extern "C" void mixing_code(i64, const void* fields, const void* sizes, const void* rows, i64 count, i64 steps,
                            const void* frequencies, i64 stride, const void* opens, void* bytes, void* numbers,
                            void* buffer, i64 room) {
  const Mixer m(fields, sizes);
  auto& coder = *static_cast<Coder*>(numbers);
  for (i64 t = 0; t < steps; t++) {
    u8* data = static_cast<u8*>(bytes) + t * count;
    for (i64 i = 0; i < count; i++) {
      const i64 row = ((const i64*)rows)[i];
      m.advance(row, ((const u8*)opens)[i]);
      m.look(row, m.frames[row]);
      for (i64 c = 0; c < m.context_count; c++) m.prefetch(m.frames[row].hash[0][c]);
      m.ask(m.frames[row], (const u32*)frequencies + i * m.experts * stride, stride);
    }
    for (i64 i = 0; i < count; i++) {
      data[i] = coder.byte(m, m.frames[((const i64*)rows)[i]], data[i], static_cast<u8*>(buffer), room);
    }
    for (i64 i = 0; i < count; i++) {
      const i64 row = ((const i64*)rows)[i];
      m.learn(row, data[i]);
      m.history[row].pending = data[i];
    }
  }
}
