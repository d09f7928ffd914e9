// The Mamba-2 mixer over rows: what ``Mamba2.extend`` computes (model/mixers/mamba2.py has the equations).
//
// Legend: H heads of P channels, I = H·P, N state, X = I + 2N channels of the convolution, K taps.
#include "exact_model.h"

namespace exact {

namespace {

struct Mamba : Mixer {
  i64 width, heads, head, size, taps;
  Matrix in, out;
  Floats conv, bias, dt_bias, rate, skip, gain;  // (K, X), (X), (H): dt's, log a of dt = 1, D; (I)

  i64 inner() const { return heads * head; }
  i64 channels() const { return inner() + 2 * size; }

  // The convolution of one position's input x (X), which `kept`, the K − 1 before it, takes in.
  void convolve(const float* x, float* kept, float* y) const {
    const i64 X = channels(), before = taps - 1;
    std::copy_n(bias.data(), X, y);
    for (i64 k = 0; k < taps; k++) {
      const float *from = k < before ? kept + k * X : x, *w = conv.data() + k * X;
      for (i64 c = 0; c < X; c++) y[c] = std::fma(w[c], from[c], y[c]);
    }
    for (i64 c = 0; c < X; c++) y[c] = y[c] * sigmoid(y[c]);
    if (!before) return;
    std::copy(kept + X, kept + before * X, kept);
    std::copy_n(x, X, kept + (before - 1) * X);
  }

  // S ← a·S + dt·x⊗B and y = S·C + D·x of one head; S is (N, P padded), and x and y have as much room.
  void advance(float* state, const float* x, const float* b, const float* c, float a, float dt, float d,
               float* y) const {
    const i64 padded = round_up(head, LANES);
    for (i64 i = 0; i < padded; i += LANES) {
      const Lanes input = load(x + i), decay = all(a);
      Lanes sum = mul(all(d), input);
      for (i64 n = 0; n < size; n++) {
        float* at = state + n * padded + i;
        const Lanes s = fma(all(dt * b[n]), input, mul(decay, load(at)));
        store(at, s);
        sum = fma(all(c[n]), s, sum);
      }
      store(y + i, sum);
    }
  }

  void run(const float* x, i64 rows, const std::vector<Span>& spans, const std::vector<Memory*>& memories,
           const std::vector<i64>& before, float* result) const override {
    const i64 n = round_up(width, PANEL), I = inner(), X = channels(), wide = round_up(I, PANEL);
    const i64 packed = round_up(2 * I + 2 * size + heads, PANEL), padded = round_up(head, LANES);
    Floats mixed(rows * packed), convolved(rows * X), gated(rows * wide), own(padded), found(padded);
    product(in, x, n, rows, mixed.data(), packed);
    i64 row = 0;
    for (size_t s = 0; s < spans.size(); s++) {
      Memory& memory = *memories[s];
      if (before[s] == 0 || !memory.state.size()) {  // a document's start
        memory.inputs = Floats((taps - 1) * X);
        memory.state = Floats(heads * size * padded);
      }
      const i64 end = row + spans[s].count;
      for (i64 r = row; r < end; r++)
        convolve(mixed.data() + r * packed + I, memory.inputs.data(), convolved.data() + r * X);
      for (i64 h = 0; h < heads; h++)  // a head's state stays in the cache over all rows
        for (i64 r = row; r < end; r++) {
          const float *from = convolved.data() + r * X, *b = from + I;
          const double raw = double(mixed.data()[r * packed + I + X + h]) + double(dt_bias.data()[h]);
          const float dt = float(raw > 20 ? raw : std::log1p(std::exp(raw)));
          std::copy_n(from + h * head, head, own.data());
          advance(memory.state.data() + h * size * padded, own.data(), b, b + size,
                  float(std::exp(double(rate.data()[h] * dt))), dt, skip.data()[h], found.data());
          std::copy_n(found.data(), head, gated.data() + r * wide + h * head);
        }
      row = end;
    }
    for (i64 r = 0; r < rows; r++) {
      const float* z = mixed.data() + r * packed;
      float* u = gated.data() + r * wide;
      for (i64 i = 0; i < I; i++) u[i] = u[i] * (z[i] * sigmoid(z[i]));
      normalise(u, u, I, wide, 1e-5f);
      for (i64 i = 0; i < I; i++) u[i] = u[i] * gain.data()[i];
    }
    product(out, gated.data(), wide, rows, result, n);
  }
};

}  // namespace

std::unique_ptr<Mixer> read_mamba(Plan& plan, i64 width) {
  auto found = std::make_unique<Mamba>();
  found->width = width, found->heads = plan.number(), found->head = plan.number();
  found->size = plan.number(), found->taps = plan.number();
  const i64 inner = found->inner(), channels = found->channels();
  found->in = plan.matrix(2 * inner + 2 * found->size + found->heads, width);
  found->conv = plan.vector(found->taps * channels), found->bias = plan.vector(channels);
  found->dt_bias = plan.vector(found->heads), found->rate = plan.vector(found->heads);
  found->skip = plan.vector(found->heads), found->gain = plan.vector(inner);
  found->out = plan.matrix(width, inner);
  return found;
}

}  // namespace exact
