// Pictures, sounds and tables as contexts and experts for mixing (mixing/samples.py has the same in plain Python).
//
// A *sample* is a number of `width` bytes, the highest first, of one of `channels`; `row` samples are a row of a picture
// or of a table (0: a sound). Predictors say what the next one will be: least squares over samples near by, which
// forget what is far back, and for pictures the median of west, north and their plane. Each is worth a distribution
// over the next byte around its prediction, as wide as predictions in such a place have been off.
//
// fp64 is worked out in one written order, so results are the same on every machine, as in exact_mixing_state.h.
#pragma once

#include "exact_coding.h"

namespace {

constexpr i64 MOST_NEAR = 32, PREDICTORS = 3, MOST_CHANNELS = 8, CLASSES = 48, UNIT = 64;
constexpr i64 PICTURE = 1, TABLE = 3;  // and 2: a sound

struct Samples {
  enum { KIND, CHANNELS, WIDTH, ROW, MASK, EXPERTS, POSITION, PARTIAL, CLASS, NUMBERS };
  i64* numbers;
  int32_t* values;        // the samples so far, around 0, in a ring
  const i64 *near, *nears;  // (channel, predictor, MOST_NEAR) how far back; and how many of them
  const double* rules;    // (predictor, 3): rate, ridge, samples between two solutions
  double *products, *sums, *weights;  // (channel, predictor, MOST_NEAR, MOST_NEAR), and one number less
  i64* traces;            // (channel, 4): the last error, fast and slow averages of its size, samples so far
  i64* scales;            // (channel, predictor, class, 2): the mean size of an error in 2⁻⁸ units; how many were seen
  const int32_t* rate;    // of a scale by how many were seen
  const i64* shapes;      // (expert, 2): its predictor, and how wide it is in parts of 64
  const int32_t* spread;  // a cumulative distribution over −12 … 12, 64 a unit
  i64* predicted;         // (predictor): in UNITs of a sample
  u32* frequencies;       // (expert, 256)
  u64* given;             // contexts, and behind them sets

  explicit Samples(const void* fields) {
    const i64* f = (const i64*)fields;
    numbers = (i64*)f[0], values = (int32_t*)f[1], near = (const i64*)f[2], nears = (const i64*)f[3];
    rules = (const double*)f[4], products = (double*)f[5], sums = (double*)f[6], weights = (double*)f[7];
    traces = (i64*)f[8], scales = (i64*)f[9], rate = (const int32_t*)f[10], shapes = (const i64*)f[11];
    spread = (const int32_t*)f[12], predicted = (i64*)f[13], frequencies = (u32*)f[14], given = (u64*)f[15];
  }

  i64 back(i64 at, i64 distance) const { return values[(at - distance) & numbers[MASK]]; }
  i64 channel(i64 at) const { return (numbers[ROW] ? at % numbers[ROW] : at) % numbers[CHANNELS]; }
  i64 middle() const { return (i64)1 << (8 * numbers[WIDTH] - 1); }

  // A number's size as one of two classes per doubling: 0, 1, 2, 3, 4 (4 and 5), 5 (6 and 7), 6 (8 … 11), …
  static i64 grade(i64 n) {
    if (n < 2) return n;
    const i64 high = 63 - __builtin_clzll((u64)n);
    return 2 * high + (n >> (high - 1) & 1);
  }

  static i64 median(i64 a, i64 b, i64 c) { return std::max(std::min(a, b), std::min(std::max(a, b), c)); }

  // --- prediction

  // What lies west of a sample (or of the one `d` before it), north, north-west and north-east.
  i64 west(i64 at, i64 d = 0) const { return back(at, numbers[CHANNELS] + d); }
  i64 north(i64 at, i64 d = 0) const { return back(at, numbers[ROW] + d); }
  i64 north_west(i64 at, i64 d = 0) const { return back(at, numbers[ROW] + numbers[CHANNELS] + d); }
  i64 north_east(i64 at, i64 d = 0) const { return back(at, numbers[ROW] - numbers[CHANNELS] + d); }

  // The median of west, north and the plane through both; of the difference to the channel before where there is one.
  i64 plane(i64 at, i64 c) const {
    if (!c) return median(west(at), north(at), west(at) + north(at) - north_west(at));
    const i64 w = west(at) - west(at, 1), n = north(at) - north(at, 1), nw = north_west(at) - north_west(at, 1);
    return back(at, 1) + median(w, n, w + n - nw);
  }

  void predict(i64 at, i64 c) const {
    const i64 most = middle() * UNIT;
    for (i64 p = 0; p < PREDICTORS; p++) {
      const i64 which = c * PREDICTORS + p;
      if (!nears[which]) {
        predicted[p] = plane(at, c) * UNIT;
      } else {
        double sum = 0;
        for (i64 i = 0; i < nears[which]; i++) {
          sum = sum + (double)back(at, near[which * MOST_NEAR + i]) * weights[which * MOST_NEAR + i];
        }
        sum = sum * (double)UNIT;
        predicted[p] = sum < -(double)most ? -most : sum > (double)most ? most : (i64)std::nearbyint(sum);
      }
      predicted[p] = std::min(std::max(predicted[p], -most), most - UNIT);
    }
    const i64* trace = traces + 4 * c;
    i64 size = (trace[1] + trace[2]) >> 2;
    if (numbers[KIND] == PICTURE) {
      size = std::abs(west(at) - north_west(at)) + std::abs(north(at) - north_west(at));
      size += std::abs(north(at) - north_east(at)) + 2 * std::abs(trace[0]);
      if (c) size += 2 * std::abs(trace[-4]);
    }
    numbers[CLASS] = std::min(grade(size), CLASSES - 1);
  }

  // Each expert's distribution of the next byte: the mass of the 256 intervals that it tells apart.
  void distribute(i64 c) const {
    const i64 step = (i64)1 << 8 * (numbers[WIDTH] - 1 - numbers[POSITION] % numbers[WIDTH]);
    const i64 first = (numbers[PARTIAL] * 256 * step - middle()) * UNIT - UNIT / 2;
    for (i64 e = 0; e < numbers[EXPERTS]; e++) {
      const i64 p = shapes[2 * e], scale = scales[((c * PREDICTORS + p) * CLASSES + numbers[CLASS]) * 2];
      const i64 inverse = ((i64)1 << 32) / std::max<i64>(2, (scale >> 8) * shapes[2 * e + 1] >> 6);
      // edges in 2⁻¹⁶ of the distribution's unit from its middle: from −12 to 12 its table tells them apart
      const i64 from = (first - predicted[p]) * inverse, apart = step * UNIT * inverse;
      int32_t edge[257];
      for (i64 v = 0; v < 257; v++) {
        edge[v] = (int32_t)std::min<i64>(std::max<i64>((from + v * apart >> 16) + (12 << 16), 0), (24 << 16) - 1);
      }
      for (i64 v = 0; v < 257; v++) {
        const int32_t low = spread[edge[v] >> 10], high = spread[(edge[v] >> 10) + 1];
        edge[v] = low + ((high - low) * (edge[v] & 1023) >> 10);
      }
      u32* own = frequencies + 256 * e;
      for (i64 v = 0; v < 256; v++) own[v] = (u32)(edge[v + 1] - edge[v]) + 1;
    }
  }

  // --- contexts

  static u64 join(u64 a, i64 b) { return Mixer::mixed(a + (u64)b); }

  void look(i64 at, i64 c) const {
    const u64 part = (u64)(numbers[PARTIAL] << 4 | numbers[POSITION] % numbers[WIDTH]) << 4 | (u64)c;
    const i64 first = predicted[0] >> 6, other = predicted[1] >> 6;
    u64* g = given;
    if (numbers[KIND] == PICTURE) {
      const i64 C = numbers[CHANNELS], w = west(at), n = north(at), nw = north_west(at), ne = north_east(at);
      const i64 near1 = C > 1 ? back(at, 1) : west(at, C), near2 = C > 2 ? back(at, 2) : north(at, numbers[ROW]);
      u64 before = part, above = part;
      for (i64 i = 0; i < C; i++) before = join(before, back(at, i + 1)), above = join(above, north(at, c - i));
      g[0] = join(part, predicted[0] >> 5);
      g[1] = join(join(part, first), traces[4 * c] >> 1);
      g[2] = join(join(part, w), n);
      g[3] = join(join(part, n), ne);
      g[4] = join(join(part, w), near1);
      g[5] = join(join(part, near1), near2);
      g[6] = join(join(part, w + n - nw), near1 - near2);
      g[7] = join(join(part, first >> 1), other >> 1);
      g[8] = join(before, n);
      g[9] = join(join(join(before, n), nw), ne);
      g[10] = join(above, w);
      if (C == 1) {  // a pixel is its one channel: others in place of those that say the same
        const i64 ww = near1, nn = near2;
        g[4] = join(join(join(part, w), n), nw);
        g[5] = join(part, n);
        g[7] = join(join(join(join(join(join(part, w), n), nw), ne), nn), ww);
        g[8] = join(join(join(part, w), n), ne);
        g[10] = join(join(join(join(part, w), ww), n), nn);
      }
    } else if (numbers[KIND] == TABLE) {
      const i64 column = at % numbers[ROW], a = north(at), aa = north(at, numbers[ROW]), w = back(at, 1), nw = north(at, 1);
      g[0] = join(join(part, a), column);
      g[1] = join(join(part, a), w);
      g[2] = join(join(part, w), column);
      g[3] = join(join(part, a), aa);
      g[4] = join(part, column);
      g[5] = join(join(part, (2 * a - aa) & 255), column);
      g[6] = join(join(part, (a + w - nw) & 255), column);
      g[7] = join(join(join(part, a), w), back(at, 2));
      g[MOST_GIVEN] = (u64)(column * 256 / numbers[ROW]), g[MOST_GIVEN + 1] = (u64)(a + middle());
      return;
    } else {
      const i64 C = numbers[CHANNELS], w = west(at), ww = west(at, C), near1 = back(at, 1);
      g[0] = join(part, first);
      g[1] = join(part, predicted[0] >> 9);
      g[2] = join(part, other >> 2);
      g[3] = join(part, w);
      g[4] = join(join(part, w >> 4), ww >> 4);
      g[5] = join(join(part, near1 >> 4), first >> 4);
      g[6] = join(join(part, w >> 8), ww >> 8);
      g[7] = join(join(part, predicted[2] >> 8), first >> 2);
    }
    const i64 place = (numbers[POSITION] % numbers[WIDTH]) * 4 + std::min<i64>(c, 3);
    g[MOST_GIVEN] = (u64)(place * 16 + std::min<i64>(numbers[CLASS] / (numbers[WIDTH] > 1 ? 2 : 1), 15));
    i64 apart = predicted[0] - predicted[PREDICTORS - 1];
    apart = std::min<i64>(grade(std::abs(apart) >> 3), 15) * 2 + (apart < 0);
    g[MOST_GIVEN + 1] = (u64)(place * 32 + apart);
  }

  // --- a byte

  void foresee() const {
    if (numbers[POSITION] < 0) {
      for (i64 i = 0; i < 256 * numbers[EXPERTS]; i++) frequencies[i] = 1;
      return;
    }
    const i64 at = numbers[POSITION] / numbers[WIDTH], c = channel(at);
    if (numbers[EXPERTS]) {
      if (numbers[POSITION] % numbers[WIDTH] == 0) predict(at, c);
      distribute(c);
    }
    look(at, c);
  }

  void learn(i64 byte) const {
    const i64 position = numbers[POSITION]++;
    if (position < 0) return;
    numbers[PARTIAL] = numbers[PARTIAL] << 8 | byte;
    if (numbers[POSITION] % numbers[WIDTH]) return;
    const i64 at = position / numbers[WIDTH], c = channel(at), value = numbers[PARTIAL] - middle();
    numbers[PARTIAL] = 0;
    for (i64 p = 0; numbers[EXPERTS] && p < PREDICTORS; p++) {
      i64* scale = scales + ((c * PREDICTORS + p) * CLASSES + numbers[CLASS]) * 2;
      const i64 off = std::abs(value * UNIT - predicted[p]) << 8;
      scale[0] += (off - scale[0]) * rate[scale[1]] >> 16;
      scale[1] = std::min<i64>(scale[1] + 1, 255);
      if (nears[c * PREDICTORS + p]) fit(at, c, p, (double)value);
    }
    i64* trace = traces + 4 * c;
    trace[0] = value - ((predicted[0] + UNIT / 2) >> 6);
    const i64 size = std::abs(value * UNIT - predicted[0]) >> 2;
    trace[1] += (size - trace[1]) >> 3;
    trace[2] += (size - trace[2]) >> 6;
    trace[3]++;
    values[at & numbers[MASK]] = (int32_t)value;
  }

  // Least squares: what products and sums are on average, with more weight on what is near; solved now and then.
  void fit(i64 at, i64 c, i64 p, double value) const {
    const i64 which = c * PREDICTORS + p, n = nears[which], N = MOST_NEAR;
    double x[MOST_NEAR];
    for (i64 i = 0; i < n; i++) x[i] = (double)back(at, near[which * N + i]);
    double *a = products + which * N * N, *b = sums + which * N, *w = weights + which * N;
    const double share = rules[3 * p], ridge = rules[3 * p + 1];
    for (i64 i = 0; i < n; i++) {
      double* own = a + i * N;
      for (i64 j = 0; j <= i; j++) own[j] = own[j] + (x[i] * x[j] - own[j]) * share;
      b[i] = b[i] + (x[i] * value - b[i]) * share;
    }
    if ((traces[4 * c + 3] + 1) % (i64)rules[3 * p + 2]) return;
    double m[MOST_NEAR][MOST_NEAR], y[MOST_NEAR], one[MOST_NEAR];  // m: its columns, so that sums run along rows
    for (i64 j = 0; j < n; j++) {
      for (i64 i = j; i < n; i++) m[j][i] = a[i * N + j];
      m[j][j] = m[j][j] + ridge;
      y[j] = b[j];
    }
    for (i64 j = 0; j < n; j++) {  // m = L·D·Lᵀ; L takes the place of m, one[j] = 1/D[j]
      if (!(m[j][j] > ridge * 0.5)) return;
      one[j] = 1.0 / m[j][j];
      for (i64 k = j + 1; k < n; k++) {
        const double l = m[j][k] * one[j];
        for (i64 i = k; i < n; i++) m[k][i] = m[k][i] - l * m[j][i];
      }
      for (i64 i = j + 1; i < n; i++) m[j][i] = m[j][i] * one[j];
    }
    for (i64 j = 0; j < n; j++) {
      for (i64 i = j + 1; i < n; i++) y[i] = y[i] - m[j][i] * y[j];
    }
    for (i64 j = n - 1; j >= 0; j--) {
      double sum = y[j] * one[j];
      for (i64 i = j + 1; i < n; i++) sum = sum - m[j][i] * w[i];
      w[j] = sum;
    }
  }
};

}  // namespace
