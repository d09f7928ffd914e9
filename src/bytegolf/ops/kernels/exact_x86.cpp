// Jumps and calls of x86 code with absolute targets in place of relative ones, and back (infer/x86.py).
#include "common.h"

extern "C" void x86_absolute(i64, void* data, i64 size, i64 place, i64 back) {
  auto* x = static_cast<uint8_t*>(data);
  for (i64 n = 0; n + 5 <= size; n++) {
    const i64 i = back ? n : size - 5 - n;  // the other way round on the way back
    if ((x[i] & 0xFE) != 0xE8 || uint8_t(x[i + 4] + 1) > 1) continue;
    const uint32_t target = x[i + 1] | x[i + 2] << 8 | x[i + 3] << 16, at = uint32_t(place + i);
    const uint32_t changed = back ? target - at : target + at;
    x[i + 1] = uint8_t(changed), x[i + 2] = uint8_t(changed >> 8), x[i + 3] = uint8_t(changed >> 16);
  }
}
