// Mixing and a binary arithmetic coder together: the bytes of streams, coded bit by bit (mixing/coding.py).
//
// The coder keeps the range low … high of 32-bit numbers that begin as the code does. A bit takes the lower part of it
// if it is 1, in proportion to its probability; leading bytes that both ends share are written and shifted out.
// For instance, low = 0x12345678, high = 0x12fedcba: 0x12 is written, and the range is 0x34567800 … 0xfedcbaff.
#include "exact_mixing.h"

namespace {

struct Coder {
  i64 low, high, value, at, decodes;
  // `p`: the probability of a 1 in units of 2⁻¹⁶; `bit` counts if this is an encoder
  i64 code(i64 bit, u32 p, u8* buffer, i64 room) {
    const i64 middle = low + ((high - low) * i64(p) >> 16);
    if (decodes) bit = value <= middle;
    (bit ? high : low) = middle + !bit;
    while (!((low ^ high) >> 24)) {
      if (decodes) {
        value = (value << 8 & 0xffffffff) | (at < room ? buffer[at] : 0);
      } else if (at < room) {
        buffer[at] = u8(high >> 24);
      }
      at++;
      low = low << 8 & 0xffffffff, high = (high << 8 & 0xffffffff) | 255;
    }
    return bit;
  }
};

}  // namespace

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
      Frame& f = m.frames[((const i64*)rows)[i]];
      i64 node = 1;
      for (i64 k = 0; k < 8; k++) {
        const i64 bit = coder.code(data[i] >> (7 - k) & 1, m.predict(f, node), static_cast<u8*>(buffer), room);
        node = 2 * node + bit;
        if (k == 3) {
          m.hash_second(f, node);
          for (i64 c = 0; c < m.context_count; c++) m.prefetch(f.hash[1][c]);
        }
      }
      data[i] = u8(node);
    }
    for (i64 i = 0; i < count; i++) {
      const i64 row = ((const i64*)rows)[i];
      m.learn(row, data[i]);
      m.history[row].pending = data[i];
    }
  }
}
