// PortableVector's operations, sixteen lanes wide, with AVX-512 F, BW, DQ, VL and VNNI. To be included where those are
// the target.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ops/simd/vector_avx2.h"

namespace drafthorse::ops::simd {
namespace {  // code of one instruction set must never stand in for another's: internal on purpose

// Rows 8 to 15 of a tile, for what is done eight at a time.
template <typename Rows>
struct UpperRows {
  const Rows& rows;
  const std::byte* row(int r) const { return rows.row(r + 8); }
};

struct Avx512Vector {
  static constexpr int kLanes = 16;
  static constexpr int kIntTokens = 8;
  static constexpr int kFloatTokens = 5;
  static constexpr int kUnconvertedTokens = 5;
  static constexpr int kFewTokens = 5;
  static constexpr int kFloatRows = 4;
  static constexpr int kMostFloatVectors = 20;
  static constexpr bool kBf16Pairs = false;
  static constexpr int kAttentionRows = 6;
  static constexpr int kAttentionVectors = 4;
  static constexpr int kSignedBias = 128;
  static constexpr bool kSumsWords = false;

  using I = __m512i;
  using F = __m512;

  static F zero() { return _mm512_setzero_ps(); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F broadcast(const float* x) { return _mm512_set1_ps(*x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void keep(F& x) { asm("" : "+v"(x)); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F negated_fma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static float fold(F a) { return Avx2Vector::fold(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)); }
  static F zero_if_less(F x, F a, F b) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ), x); }
  static float reduce_max(F a) { return _mm512_reduce_max_ps(a); }

  static F as_float(I a) { return _mm512_castsi512_ps(a); }
  static I as_int(F a) { return _mm512_castps_si512(a); }
  static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  static I round(F a) { return _mm512_cvtps_epi32(a); }
  static F low_half(I a) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)); }
  static F high_half(I a) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(a, 16))); }
  static F load_f16(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
  static F load_bf16(const void* p) {
    const I wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static F load_i8(const void* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
  }
  static F round_to_f16(F a) { return _mm512_cvtph_ps(_mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT)); }

  static I zero_int() { return _mm512_setzero_si512(); }
  static I set_int(int32_t x) { return _mm512_set1_epi32(x); }
  static I broadcast_int(const void* p) {
    int32_t x;
    std::memcpy(&x, p, sizeof x);
    return _mm512_set1_epi32(x);
  }
  static I load_int(const void* p) { return _mm512_loadu_si512(p); }
  static void store_int(void* p, I x) { _mm512_storeu_si512(p, x); }
  static void store_i8(void* p, I x) { _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(x)); }
  static I bit_and(I a, I b) { return _mm512_and_si512(a, b); }
  static I bit_or(I a, I b) { return _mm512_or_si512(a, b); }
  static I bit_xor(I a, I b) { return _mm512_xor_si512(a, b); }
  static I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
  static I sub_int(I a, I b) { return _mm512_sub_epi32(a, b); }
  template <int kBits>
  static I shift_left(I a) {
    return _mm512_slli_epi32(a, kBits);
  }
  template <int kBits>
  static I shift_right(I a) {
    return _mm512_srli_epi32(a, kBits);
  }
  template <int kBits>
  static I shift_right_signed(I a) {
    return _mm512_srai_epi32(a, kBits);
  }
  static I lookup(const int8_t (&table)[16], I bytes) {
    const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(entries), bytes);
  }

  static I dot_u8(I acc, I w, I x) { return _mm512_dpbusd_epi32(acc, w, x); }
  static I dot_s8(I acc, I w, I x) { return _mm512_dpbusd_epi32(acc, w, x); }
  static I dot_s16(I acc, I w, I x) { return _mm512_dpwssd_epi32(acc, w, x); }

  // Row j + 4 q goes to the q-th 128 bits of z[j]: transposing those leaves the rows in order.
  template <typename Rows>
  static void load_columns(const Rows& rows, size_t offset, I (&out)[4]) {
    I z[4];
    for (int j = 0; j < 4; ++j) {
      z[j] = _mm512_castsi128_si512(load_128(rows.row(j) + offset));
      z[j] = _mm512_mask_broadcast_i32x4(z[j], 0x00F0, load_128(rows.row(j + 4) + offset));
      z[j] = _mm512_mask_broadcast_i32x4(z[j], 0x0F00, load_128(rows.row(j + 8) + offset));
      z[j] = _mm512_mask_broadcast_i32x4(z[j], 0xF000, load_128(rows.row(j + 12) + offset));
    }
    transpose(z, out);
  }
  template <typename Rows>
  static I load_u8(const Rows& rows, size_t offset) {
    return join(Avx2Vector::load_u8(rows, offset), Avx2Vector::load_u8(UpperRows<Rows>{rows}, offset));
  }
  template <typename Rows>
  static I load_u16(const Rows& rows, size_t offset) {
    const __m256i low = _mm256_castsi128_si256(Avx2Vector::load_words(rows, offset));
    return _mm512_cvtepu16_epi32(
        _mm256_inserti128_si256(low, Avx2Vector::load_words(UpperRows<Rows>{rows}, offset), 1));
  }
  template <typename Rows>
  static I load_u32(const Rows& rows, size_t offset) {
    return join(Avx2Vector::load_u32(rows, offset), Avx2Vector::load_u32(UpperRows<Rows>{rows}, offset));
  }
  // Into the second cache, which has more of them under way than the first. On Zen 4 one token takes 1.3 to 1.6 times
  // as long otherwise (BF16, F16, Q8_0, Q4_K, Q6_K); Q4_0 alone, which takes longer to decode, loses a tenth at 4
  // to 16.
  static void prefetch(const std::byte* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1); }

 private:
  // Within each 128 bits.
  static void transpose(const I (&z)[4], I* out) {
    const I t0 = _mm512_unpacklo_epi32(z[0], z[1]);
    const I t1 = _mm512_unpackhi_epi32(z[0], z[1]);
    const I t2 = _mm512_unpacklo_epi32(z[2], z[3]);
    const I t3 = _mm512_unpackhi_epi32(z[2], z[3]);
    out[0] = _mm512_unpacklo_epi64(t0, t2);
    out[1] = _mm512_unpackhi_epi64(t0, t2);
    out[2] = _mm512_unpacklo_epi64(t1, t3);
    out[3] = _mm512_unpackhi_epi64(t1, t3);
  }
  static __m128i load_128(const std::byte* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static I join(__m256i low, __m256i high) { return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1); }
};

}  // namespace
}  // namespace drafthorse::ops::simd
