// Mixing with experts and contexts of samples, and an arithmetic coder (mixing/samples.py).
#include "exact_samples.h"

// `count` bytes of the mixer's one stream: `bytes` are read, or filled in.
extern "C" void samples_code(i64, const void* fields, const void* sizes, const void* samples, i64 count, void* bytes,
                             void* numbers, void* buffer, i64 room) {
  const Mixer m(fields, sizes);
  const Samples s(samples);
  auto& coder = *static_cast<Coder*>(numbers);
  Frame& f = m.frames[0];
  for (i64 t = 0; t < count; t++) {
    u8& byte = static_cast<u8*>(bytes)[t];
    s.foresee();
    m.advance(0, false);
    m.look(0, f);
    for (i64 c = 0; c < m.context_count; c++) m.prefetch(f.hash[0][c]);
    m.ask(f, s.frequencies, 256, false);
    byte = coder.byte(m, f, byte, static_cast<u8*>(buffer), room);
    m.learn(0, byte);
    m.history[0].pending = byte;
    s.learn(byte);
  }
}

// What samples_code does beside mixing, for a mixer that is asked bit by bit.
extern "C" void samples_foresee(i64, const void* samples) { Samples(samples).foresee(); }
extern "C" void samples_learn(i64, const void* samples, i64 byte) { Samples(samples).learn(byte); }
