// The binary arithmetic coder of mixing/coding.py.
//
// It keeps the range low … high of 32-bit numbers that begin as the code does. A bit takes the lower part of it
// if it is 1, in proportion to its probability; leading bytes that both ends share are written and shifted out.
// For instance, low = 0x12345678, high = 0x12fedcba: 0x12 is written, and the range is 0x34567800 … 0xfedcbaff.
#pragma once

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

  // A byte of a stream that was begun, bit by bit; a decoder finds it.
  u8 byte(const Mixer& m, Frame& f, u8 given, u8* buffer, i64 room) {
    i64 node = 1;
    for (i64 k = 0; k < 8; k++) {
      node = 2 * node + code(given >> (7 - k) & 1, m.predict(f, node), buffer, room);
      if (k == 3) {
        m.hash_second(f, node);
        for (i64 c = 0; c < m.context_count; c++) m.prefetch(f.hash[1][c]);
      }
    }
    return u8(node);
  }
};

}  // namespace
