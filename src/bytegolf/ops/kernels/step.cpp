// One position of one sequence: at batch 1 a step is bound by reading the weights once, and by the cost of starting
// hundreds of small operations, which these kernels are instead of. A whole stage is one of them, and so are the
// embedding with its n-grams and the router's comparison.
//
// Each block of a stage, with u the stream and x0 the stage's normalised input:
//   u ← mix₀·u + mix₁·x0;  u += scale·Wₒ·attention(norm(u));  u += scale·W₂·relu(W₁·norm(u))²
// and before the blocks of the second half, what u was behind their mirror image is added (where skip is not null).
//
// Legend: D width, H query heads, G key/value heads, K head width, F hidden width, S slots of a cache, P packed width,
// M width of a router's vectors, N lengths of n-grams, E width of a row.
#include <algorithm>

#include "common.h"

namespace {

// Where a block's parameters and its sequence's caches are; parameters are fp32 whatever T is.
template <typename T> struct Parts {
  const float *qkv, *out, *gain, *in, *down, *attn_scale, *mlp_scale, *mix, *skip;
  T *keys, *values;  // (G, S, K)
};
constexpr i64 PARTS = 11;

struct Shape {
  i64 layers, width, heads, groups, hidden, slots, slot, used, at;
  double eps;
};

// y = W·x for the rows that fall to this thread of a team; all threads must call it. Weights are read in fp32 as they
// lie, once: at batch 1 each is used once, so a copy in another layout or dtype would cost more than it brings.
template <typename T> void product(const float* weight, const T* x, T* y, i64 rows, i64 columns) {
#pragma omp for schedule(static)
  for (i64 r = 0; r < rows; r++) {
    const float* w = weight + r * columns;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 c = 0; c < columns; c++) sum += T(w[c]) * x[c];
    y[r] = sum;
  }
}

template <typename T> T inverse_norm(const T* x, i64 width, double eps) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (i64 d = 0; d < width; d++) sum += x[d] * x[d];
  return T(1) / std::sqrt(sum / T(width) + T(eps));
}

template <typename T> void normalise(const T* x, T* y, i64 width, double eps) {
  const T scale = inverse_norm(x, width, eps);
  for (i64 d = 0; d < width; d++) y[d] = x[d] * scale;
}

// The norm of a head and its rotation, times a factor.
template <typename T> void turn(const T* x, T* y, const T* cos, const T* sin, i64 width, T factor, double eps) {
  const T scale = inverse_norm(x, width, eps) * factor;
  const i64 half = width / 2;
  for (i64 i = 0; i < half; i++) {
    const T u = x[i] * scale, v = x[half + i] * scale;
    y[i] = u * cos[i] + v * sin[i];
    y[half + i] = v * cos[i] - u * sin[i];
  }
}

template <typename T>
void attend(const T* q, const T* keys, const T* values, T* scores, T* out, i64 used, i64 width) {
  T top = -INFINITY, total = 0;
  for (i64 s = 0; s < used; s++) {
    T dot = 0;
#pragma omp simd reduction(+ : dot)
    for (i64 k = 0; k < width; k++) dot += q[k] * keys[s * width + k];
    scores[s] = dot;
    top = std::max(top, dot);
  }
  for (i64 s = 0; s < used; s++) {
    scores[s] = fast_exp(scores[s] - top);
    total += scores[s];
  }
  std::fill(out, out + width, T(0));
  for (i64 s = 0; s < used; s++) {
    const T share = scores[s] / total;
#pragma omp simd
    for (i64 k = 0; k < width; k++) out[k] += share * values[s * width + k];
  }
}

// cos and sin are those of position 0 and all that follow.
template <typename T>
void step(const i64* table, const T* x, const T* cos, const T* sin, T* result, const Shape s) {
  const i64 width = s.width, head = width / s.heads, packed = (s.heads + 2 * s.groups) * head;
  cos += s.at * (head / 2), sin += s.at * (head / 2);
  const i64 pushed = s.layers / 2, shared = s.heads / s.groups;
  std::vector<T> x0(width), u(width), normed(width), mixed(std::max(packed, s.hidden)), q(width), attended(width);
  std::vector<T> branch(width), skips(pushed * width), scores(s.heads * s.used);
  normalise(x, x0.data(), width, s.eps);
  u = x0;
  // a second thread is worth its waiting only where there is much to read
  const bool team = width * width * 4 >= (i64(1) << 20);
#pragma omp parallel if (team)
  for (i64 layer = 0; layer < s.layers; layer++) {
    const Parts<T>& b = reinterpret_cast<const Parts<T>*>(table)[layer];
#pragma omp single
    {
      // The pairs of layers are (pushed − 1, pushed), …, (0, 2·pushed − 1): what was pushed last is added first
      if (b.skip)
        for (i64 d = 0; d < width; d++) u[d] += T(b.skip[d]) * skips[(2 * pushed - 1 - layer) * width + d];
      for (i64 d = 0; d < width; d++) u[d] = T(b.mix[d]) * u[d] + T(b.mix[width + d]) * x0[d];
      normalise(u.data(), normed.data(), width, s.eps);
    }
    product(b.qkv, normed.data(), mixed.data(), packed, width);
#pragma omp for schedule(static)
    for (i64 g = 0; g < s.groups; g++) {
      T *keys = b.keys + g * s.slots * head, *values = b.values + g * s.slots * head;
      turn(&mixed[(s.heads + g) * head], keys + s.slot * head, cos, sin, head, T(1), s.eps);
      std::copy_n(&mixed[(s.heads + s.groups + g) * head], head, values + s.slot * head);
      for (i64 h = g * shared; h < (g + 1) * shared; h++) {
        const T factor = T(b.gain[h]) / std::sqrt(T(head));
        turn(&mixed[h * head], &q[h * head], cos, sin, head, factor, s.eps);
        attend(&q[h * head], keys, values, &scores[h * s.used], &attended[h * head], s.used, head);
      }
    }
    product(b.out, attended.data(), branch.data(), width, width);
#pragma omp single
    {
      for (i64 d = 0; d < width; d++) u[d] += T(b.attn_scale[d]) * branch[d];
      normalise(u.data(), normed.data(), width, s.eps);
    }
    product(b.in, normed.data(), mixed.data(), s.hidden, width);
#pragma omp single
    for (i64 i = 0; i < s.hidden; i++) {
      const T positive = std::max(mixed[i], T(0));
      mixed[i] = positive * positive;
    }
    product(b.down, mixed.data(), branch.data(), width, s.hidden);
#pragma omp single
    {
      for (i64 d = 0; d < width; d++) u[d] += T(b.mlp_scale[d]) * branch[d];
      if (layer < pushed) std::copy_n(u.data(), width, &skips[layer * width]);
    }
  }
  normalise(u.data(), result, width, s.eps);
}

// The norm of an id's embedding plus proj·(the rows of the N n-grams that end with it). ``nothing`` stands before the
// first id, and before a ``bos``. ``history`` holds the N ids before it, the oldest first, and takes it in.
template <typename T>
void embed(const float* weight, i64 id, i64* history, const float* table, const float* proj, i64 base, i64 mixer,
           i64 nothing, i64 bos, T* result, i64 width, i64 lengths, i64 bits, i64 dim, double eps) {
  const float* own = weight + id * width;
  std::vector<T> x(own, own + width), found(lengths * dim);
  normalise(x.data(), result, width, eps);
  // unsigned, since hashes wrap around; powers of the base are modulo 2⁶², as in embed.py
  uint64_t key = id + 1, power = 1;
  bool begun = id == bos;
  for (i64 n = 0; n < lengths; n++) {
    // Once a BOS has been met, whatever lies further back belongs to another document: nothing stands there.
    const i64 before = begun ? nothing : history[lengths - 1 - n];
    begun = begun || before == bos;
    power = (power * uint64_t(base)) & ((uint64_t(1) << 62) - 1);
    key += uint64_t(before + 1) * power;
    const uint64_t row = (uint64_t(n) << bits) + ((key * uint64_t(mixer)) >> (64 - bits));
    std::copy_n(table + row * dim, dim, &found[n * dim]);
  }
  if (!lengths) return;
  product(proj, found.data(), x.data(), width, lengths * dim);
  for (i64 d = 0; d < width; d++) result[d] += x[d];
  std::copy(history + 1, history + lengths, history);
  history[lengths - 1] = id;
}

// p = ½(1 − cos(query·x, memory)), and the key·x with which the next position is compared.
template <typename T>
void chance(const T* x, const float* query, const float* key, const T* memory, T* keys, T* p, i64 width, i64 inner,
            double eps) {
  std::vector<T> q(inner);
  product(query, x, q.data(), inner, width);
  product(key, x, keys, inner, width);
  T dot = 0, qq = 0, kk = 0;
#pragma omp simd reduction(+ : dot, qq, kk)
  for (i64 m = 0; m < inner; m++) {
    dot += q[m] * memory[m];
    qq += q[m] * q[m];
    kk += memory[m] * memory[m];
  }
  const T cosine = dot / (std::max(std::sqrt(qq), T(eps)) * std::max(std::sqrt(kk), T(eps)));
  *p = std::min(std::max(T(0.5) * (1 - cosine), T(0)), T(1));
}

}  // namespace

// table: PARTS addresses a block, in the order of Parts. fp32 and fp64 only: bf16 would round where PyTorch does not.
extern "C" void stage_step(i64 dtype, const i64* table, const void* x, const void* cos, const void* sin, void* result,
                           i64 layers, i64 width, i64 heads, i64 groups, i64 hidden, i64 slots, i64 slot, i64 used,
                           i64 at, double eps) {
  static_assert(sizeof(Parts<float>) == PARTS * sizeof(i64), "a table row is a Parts");
  const Shape shape{layers, width, heads, groups, hidden, slots, slot, used, at, eps};
  if (dtype == 1)
    step<float>(table, (const float*)x, (const float*)cos, (const float*)sin, (float*)result, shape);
  else
    step<double>(table, (const double*)x, (const double*)cos, (const double*)sin, (double*)result, shape);
}

extern "C" void embed_step(i64 dtype, const void* weight, i64 id, void* history, const void* table, const void* proj,
                           i64 base, i64 mixer, i64 nothing, i64 bos, void* result, i64 width, i64 lengths, i64 bits,
                           i64 dim, double eps) {
  const auto run = [&](auto* out) {
    embed(static_cast<const float*>(weight), id, static_cast<i64*>(history), static_cast<const float*>(table),
          static_cast<const float*>(proj), base, mixer, nothing, bos, out, width, lengths, bits, dim, eps);
  };
  dtype == 1 ? run(static_cast<float*>(result)) : run(static_cast<double*>(result));
}

extern "C" void router_step(i64 dtype, const void* x, const void* query, const void* key, const void* memory,
                            void* keys, void* p, i64 width, i64 inner, double eps) {
  const auto *wq = static_cast<const float*>(query), *wk = static_cast<const float*>(key);
  if (dtype == 1)
    chance((const float*)x, wq, wk, (const float*)memory, (float*)keys, (float*)p, width, inner, eps);
  else
    chance((const double*)x, wq, wk, (const double*)memory, (double*)keys, (double*)p, width, inner, eps);
}
