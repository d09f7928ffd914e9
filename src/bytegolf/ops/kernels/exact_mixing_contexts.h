// The counters of all contexts at once: looking their buckets up, predicting and learning a bit.
//
// Each function has two forms with the same results: 16 contexts at a time where there is AVX-512, and one by one.
// A bit is learned in all contexts before the next one is; within a bit all slots are read before any is written.
#pragma once

#include "exact_mixing_state.h"

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define MIXING_BY_16 1
#include <immintrin.h>
#endif

namespace {

struct Counters : Knowledge {
  using Knowledge::Knowledge;

  // An adaptive probability of 22 bits above a count of 10: its rate is 1/(count + 1.5), down to 1/1024.
  void learn_map(u32& map, i64 bit) const {
    const i64 count = map & 1023, p = map >> 10;
    const i64 next = p + (((bit ? 4194303 : 0) - p) * map_rate[count] >> 16);
    map = (u32)next << 10 | (u32)std::min<i64>(count + 1, 1023);
  }

  // By what chance a slot of many visits counts one more: 29 bits or more, others for each bit of a byte.
  static u32 dice_of(const Frame& f, i64 half, i64 own) {
    return (u32)(f.dice >> (5 * (4 * half + 31 - __builtin_clz((u32)own))));
  }

  // The buckets that all contexts have for half a byte, as `f.bucket` and, a bit each, `f.present`.
  void find_all(Frame& f, i64 half) const;
  // New ones for those that had none. Those found before another context takes them stay theirs, too.
  void claim_rest(Frame& f, i64 half) const {
    const u32 all = (u32)(((u64)1 << context_count) - 1);
    for (u32 missing = all & ~f.present[half]; missing; missing &= missing - 1) {
      const i64 c = __builtin_ctz(missing);
      f.bucket[half][c] = claim(f.hash[half][c]);
    }
    f.present[half] = all;
  }
  // The inputs that contexts give a bit's mixers, and the sum of their corrections: first each one's logit, then each
  // one's 2p − 1, which says less of a p near 0 or 1. `own`: the bit's node within half a byte, 1 … 15.
  i64 predict_all(const Frame& f, i64 half, i64 own, float* x) const;
  // A bit in all contexts; its correction learns by `corrected`, null while priming, where nothing was predicted.
  void learn_all(const Frame& f, i64 half, i64 own, i64 bit, const float* corrected) const;
};

#ifdef MIXING_BY_16

void Counters::find_all(Frame& f, i64 half) const {
  f.present[half] = 0;
  const __m512i low = _mm512_set1_epi64(0xffff), generation = _mm512_set1_epi64((i64)(u32)counts[0] << 16);
  for (i64 c = 0; c < context_count; c += 8) {
    const __mmask8 some = context_count - c < 8 ? (1 << (context_count - c)) - 1 : 255;
    const __m512i hash = _mm512_load_si512(f.hash[half] + c);
    const __m512i place = _mm512_slli_epi64(_mm512_srl_epi64(hash, _mm_cvtsi64_si128(64 - bits)), 4);
    const __m256i wanted = _mm512_cvtepi64_epi32(_mm512_or_si512(_mm512_and_si512(hash, low), generation));
    const __m256i one = _mm512_cvtepi64_epi32(place), other = _mm256_xor_si256(one, _mm256_set1_epi32(16));
    const __m256i none = _mm256_setzero_si256();
    const __mmask8 here =
        _mm256_mask_cmpeq_epi32_mask(some, _mm256_mmask_i32gather_epi32(none, some, one, table, 4), wanted);
    const __mmask8 left = some & ~here;
    const __mmask8 there =
        _mm256_mask_cmpeq_epi32_mask(left, _mm256_mmask_i32gather_epi32(none, left, other, table, 4), wanted);
    _mm256_store_si256((__m256i*)(f.bucket[half] + c), _mm256_mask_blend_epi32(there, one, other));
    f.present[half] |= (u32)(here | there) << c;
  }
}

i64 Counters::predict_all(const Frame& f, i64 half, i64 own, float* x) const {
  i64 correction = 0;
  const __m512i context = _mm512_slli_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 10);
  const __m512i none = _mm512_setzero_si512();
  __m512 linear[2];
  for (i64 c = 0; c < context_count; c += 16) {
    const __mmask16 present = (__mmask16)(f.present[half] >> c);
    const __m512i at = _mm512_add_epi32(_mm512_load_si512(f.bucket[half] + c), _mm512_set1_epi32((int)own));
    const __m512i slot = _mm512_mask_i32gather_epi32(none, present, at, table, 4);
    const __m512i seen = _mm512_and_si512(slot, _mm512_set1_epi32(15));
    const __mmask16 visited = _mm512_test_epi32_mask(seen, seen);
    const __m512i p = _mm512_i32gather_epi32(
        _mm512_and_si512(_mm512_srli_epi32(slot, 8), _mm512_set1_epi32(4095)), bins, 4);
    const __m512i which = _mm512_add_epi32(_mm512_add_epi32(context, _mm512_slli_epi32(seen, 6)), p);
    const __m512i map = _mm512_mask_i32gather_epi32(none, visited, which, maps + c * 1024, 4);
    const __m512 found =
        _mm512_mask_i32gather_ps(_mm512_setzero_ps(), visited, _mm512_srli_epi32(map, 20), stretch_table, 4);
    _mm512_storeu_ps(x + c, found);
    const __m512 q = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(map, 10)), _mm512_set1_ps(0x1p-21f));
    linear[c / 16] = _mm512_maskz_sub_ps(visited, q, _mm512_set1_ps(1.0f));
    correction += _mm512_reduce_add_epi32(_mm512_maskz_srai_epi32(visited, slot, 20));
  }
  // behind all logits, as each vector is stored beyond the last context
  for (i64 c = 0; c < context_count; c += 16) _mm512_storeu_ps(x + context_count + c, linear[c / 16]);
  return correction;
}

void Counters::learn_all(const Frame& f, i64 half, i64 own, i64 bit, const float* corrected) const {
  const __m512i context = _mm512_slli_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 10);
  const __m512i none = _mm512_setzero_si512(), rates_of_16 = _mm512_loadu_si512(slot_rate);
  const __m512i gaps = _mm512_loadu_si512(level_gaps), thrown = _mm512_set1_epi32((int)dice_of(f, half, own));
  const __m512 boosts = _mm512_loadu_ps(boost);
  __m512i at[2], slot[2];
  for (i64 c = 0, g = 0; c < context_count; c += 16, g++) {
    at[g] = _mm512_add_epi32(_mm512_load_si512(f.bucket[half] + c), _mm512_set1_epi32((int)own));
    slot[g] = _mm512_mask_i32gather_epi32(none, (__mmask16)(f.present[half] >> c), at[g], table, 4);
  }
  for (i64 c = 0, g = 0; c < context_count; c += 16, g++) {
    __m512i seen = _mm512_and_si512(slot[g], _mm512_set1_epi32(15));
    const __mmask16 visited = _mm512_test_epi32_mask(seen, seen);
    __m512i p = _mm512_mask_blend_epi32(
        visited, _mm512_set1_epi32(32768), _mm512_and_si512(_mm512_srli_epi32(slot[g], 4), _mm512_set1_epi32(65535)));
    // what visits and probability stand for: contexts have maps of their own, so no two lanes write the same
    const __m512i which =
        _mm512_add_epi32(_mm512_add_epi32(context, _mm512_slli_epi32(seen, 6)),
                         _mm512_i32gather_epi32(_mm512_srli_epi32(p, 4), bins, 4));
    const __m512i map = _mm512_mask_i32gather_epi32(none, visited, which, maps + c * 1024, 4);
    const __m512i count = _mm512_and_si512(map, _mm512_set1_epi32(1023)), q = _mm512_srli_epi32(map, 10);
    const __m512i rate = _mm512_i32gather_epi32(count, map_rate, 4);
    const __m512i far = _mm512_sub_epi32(_mm512_set1_epi32(bit ? 4194303 : 0), q);
    // bits 16 … 47 of the 64-bit products of even and of odd lanes
    const __m512i even = _mm512_srli_epi64(_mm512_mul_epi32(far, rate), 16);
    const __m512i odd =
        _mm512_slli_epi64(_mm512_mul_epi32(_mm512_srli_epi64(far, 32), _mm512_srli_epi64(rate, 32)), 16);
    const __m512i next = _mm512_add_epi32(q, _mm512_mask_blend_epi32(0xAAAA, even, odd));
    const __m512i counted = _mm512_min_epi32(_mm512_add_epi32(count, _mm512_set1_epi32(1)), _mm512_set1_epi32(1023));
    _mm512_mask_i32scatter_epi32(maps + c * 1024, visited, which,
                                 _mm512_or_si512(_mm512_slli_epi32(next, 10), counted), 4);
    p = _mm512_add_epi32(p, _mm512_srai_epi32(_mm512_mullo_epi32(_mm512_sub_epi32(_mm512_set1_epi32(bit ? 65535 : 0), p),
                                                                 _mm512_permutexvar_epi32(seen, rates_of_16)),
                                              15));
    const __mmask16 grows = _mm512_testn_epi32_mask(_mm512_permutexvar_epi32(seen, gaps), thrown);
    seen = _mm512_min_epi32(_mm512_mask_add_epi32(seen, grows, seen, _mm512_set1_epi32(1)), _mm512_set1_epi32(15));
    __m512i w = _mm512_srai_epi32(slot[g], 20);
    if (corrected) {
      const __m512 step = _mm512_mul_ps(_mm512_set1_ps((float)bit - *corrected), _mm512_permutexvar_ps(seen, boosts));
      w = _mm512_add_epi32(w, _mm512_cvtps_epi32(step));
      w = _mm512_min_epi32(_mm512_set1_epi32(2047), _mm512_max_epi32(_mm512_set1_epi32(-2048), w));
    }
    slot[g] = _mm512_or_si512(_mm512_or_si512(_mm512_slli_epi32(w, 20), _mm512_slli_epi32(p, 4)), seen);
    _mm512_mask_i32scatter_epi32(table, (__mmask16)(f.present[half] >> c), at[g], slot[g], 4);
  }
}

#else

void Counters::find_all(Frame& f, i64 half) const {
  f.present[half] = 0;
  for (i64 c = 0; c < context_count; c++) {
    const i64 found = find(f.hash[half][c]);
    f.bucket[half][c] = (u32)found;
    f.present[half] |= (u32)(found >= 0) << c;
  }
}

i64 Counters::predict_all(const Frame& f, i64 half, i64 own, float* x) const {
  i64 correction = 0;
  for (i64 c = 0; c < context_count; c++) {
    const u32 slot = f.present[half] >> c & 1 ? table[f.bucket[half][c] + own] : 0;
    x[c] = x[context_count + c] = 0;
    if (!(slot & 15)) continue;
    const u32 map = maps[c * 1024 + (slot & 15) * 64 + bins[slot >> 8 & 4095]];
    x[c] = stretch_table[map >> 20];
    x[context_count + c] = (float)(map >> 10) * 0x1p-21f - 1.0f;
    correction += (int32_t)slot >> 20;
  }
  return correction;
}

void Counters::learn_all(const Frame& f, i64 half, i64 own, i64 bit, const float* corrected) const {
  u32 slots[MOST_CONTEXTS];
  for (i64 c = 0; c < context_count; c++) slots[c] = table[f.bucket[half][c] + own];
  for (i64 c = 0; c < context_count; c++) {
    const u32 slot = slots[c];
    i64 seen = slot & 15, p = seen ? slot >> 4 & 65535 : 32768, w = (int32_t)slot >> 20;
    if (seen) learn_map(maps[c * 1024 + seen * 64 + bins[p >> 4]], bit);
    p += ((bit ? 65535 : 0) - p) * slot_rate[seen] >> 15;
    seen = std::min<i64>(seen + !(level_gaps[seen] & (int32_t)dice_of(f, half, own)), 15);
    if (corrected) {
      w += (i64)std::nearbyint(((float)bit - *corrected) * boost[seen]);
      w = std::min<i64>(2047, std::max<i64>(-2048, w));
    }
    table[f.bucket[half][c] + own] = (u32)w << 20 | (u32)p << 4 | (u32)seen;
  }
}

#endif

}  // namespace
