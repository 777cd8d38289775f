// PortableVector's operations with AVX2, FMA and F16C. To be included where those are the target.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace drafthorse::ops::simd {
namespace {  // code of one instruction set must never stand in for another's: internal on purpose

struct Avx2Vector {
  static constexpr int kLanes = 8;
  static constexpr int kIntTokens = 4;
  static constexpr int kFloatTokens = 6;
  static constexpr int kUnconvertedTokens = 12;
  static constexpr int kFewTokens = 3;
  static constexpr int kFloatRows = 2;
  static constexpr int kMostFloatVectors = 12;
  static constexpr bool kBf16Pairs = false;
  static constexpr int kAttentionRows = 6;
  static constexpr int kAttentionVectors = 2;
  static constexpr int kSignedBias = 0;
  static constexpr bool kSumsWords = true;

  using I = __m256i;
  using F = __m256;

  static F zero() { return _mm256_setzero_ps(); }
  static F set(float x) { return _mm256_set1_ps(x); }
  static F broadcast(const float* x) { return _mm256_broadcast_ss(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static void keep(F& x) { asm("" : "+x"(x)); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F negated_fma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), a); }
  static float fold(F a, F b) {
    const F eight = _mm256_add_ps(a, b);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static F zero_if_less(F x, F a, F b) { return _mm256_andnot_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ), x); }
  static float reduce_max(F a) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
  }

  static F as_float(I a) { return _mm256_castsi256_ps(a); }
  static I as_int(F a) { return _mm256_castps_si256(a); }
  static F to_float(I a) { return _mm256_cvtepi32_ps(a); }
  static I round(F a) { return _mm256_cvtps_epi32(a); }
  static F low_half(I a) {
    // Words of the two halves' lanes gathered into the lower 128 bits.
    const I words = _mm256_packus_epi32(_mm256_and_si256(a, _mm256_set1_epi32(0xFFFF)), _mm256_setzero_si256());
    return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(words, 0x08)));
  }
  static F high_half(I a) { return low_half(_mm256_srli_epi32(a, 16)); }
  static F load_f16(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
  static F load_bf16(const void* p) {
    const I wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static F load_i8(const void* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
  }
  static F round_to_f16(F a) { return _mm256_cvtph_ps(_mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT)); }

  static I zero_int() { return _mm256_setzero_si256(); }
  static I set_int(int32_t x) { return _mm256_set1_epi32(x); }
  static I broadcast_int(const void* p) {
    int32_t x;
    std::memcpy(&x, p, sizeof x);
    return _mm256_set1_epi32(x);
  }
  static I load_int(const void* p) { return _mm256_loadu_si256(static_cast<const I*>(p)); }
  static void store_int(void* p, I x) { _mm256_storeu_si256(static_cast<I*>(p), x); }
  static void store_i8(void* p, I x) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64(static_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  static I bit_and(I a, I b) { return _mm256_and_si256(a, b); }
  static I bit_or(I a, I b) { return _mm256_or_si256(a, b); }
  static I bit_xor(I a, I b) { return _mm256_xor_si256(a, b); }
  static I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
  static I sub_int(I a, I b) { return _mm256_sub_epi32(a, b); }
  template <int kBits>
  static I shift_left(I a) {
    return _mm256_slli_epi32(a, kBits);
  }
  template <int kBits>
  static I shift_right(I a) {
    return _mm256_srli_epi32(a, kBits);
  }
  template <int kBits>
  static I shift_right_signed(I a) {
    return _mm256_srai_epi32(a, kBits);
  }
  static I lookup(const int8_t (&table)[16], I bytes) {
    const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), bytes);
  }

  static I pairs_u8(I w, I x) { return _mm256_maddubs_epi16(w, x); }
  static I add_words(I a, I b) { return _mm256_add_epi16(a, b); }
  static I add_pairs(I acc, I words) { return _mm256_add_epi32(acc, _mm256_madd_epi16(words, _mm256_set1_epi16(1))); }
  static I dot_u8(I acc, I w, I x) { return add_pairs(acc, pairs_u8(w, x)); }
  static I dot_s8(I acc, I w, I x) { return dot_u8(acc, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w)); }
  static I dot_s16(I acc, I w, I x) { return _mm256_add_epi32(acc, _mm256_madd_epi16(w, x)); }

  template <typename Rows>
  static void load_columns(const Rows& rows, size_t offset, I (&out)[4]) {
    I z[4];
    for (int j = 0; j < 4; ++j) {
      z[j] = _mm256_inserti128_si256(_mm256_castsi128_si256(load_128(rows.row(j) + offset)),
                                     load_128(rows.row(j + 4) + offset), 1);
    }
    const I t0 = _mm256_unpacklo_epi32(z[0], z[1]);
    const I t1 = _mm256_unpackhi_epi32(z[0], z[1]);
    const I t2 = _mm256_unpacklo_epi32(z[2], z[3]);
    const I t3 = _mm256_unpackhi_epi32(z[2], z[3]);
    out[0] = _mm256_unpacklo_epi64(t0, t2);
    out[1] = _mm256_unpackhi_epi64(t0, t2);
    out[2] = _mm256_unpacklo_epi64(t1, t3);
    out[3] = _mm256_unpackhi_epi64(t1, t3);
  }
  template <typename Rows>
  static I load_u8(const Rows& rows, size_t offset) {
    __m128i bytes = _mm_setzero_si128();
    bytes = _mm_insert_epi8(bytes, static_cast<int>(rows.row(0)[offset]), 0);
    bytes = _mm_insert_epi8(bytes, static_cast<int>(rows.row(1)[offset]), 1);
    bytes = _mm_insert_epi8(bytes, static_cast<int>(rows.row(2)[offset]), 2);
    bytes = _mm_insert_epi8(bytes, static_cast<int>(rows.row(3)[offset]), 3);
    bytes = _mm_insert_epi8(bytes, static_cast<int>(rows.row(4)[offset]), 4);
    bytes = _mm_insert_epi8(bytes, static_cast<int>(rows.row(5)[offset]), 5);
    bytes = _mm_insert_epi8(bytes, static_cast<int>(rows.row(6)[offset]), 6);
    bytes = _mm_insert_epi8(bytes, static_cast<int>(rows.row(7)[offset]), 7);
    return _mm256_cvtepu8_epi32(bytes);
  }
  template <typename Rows>
  static __m128i load_words(const Rows& rows, size_t offset) {
    __m128i words = _mm_cvtsi32_si128(word(rows.row(0) + offset));
    words = _mm_insert_epi16(words, word(rows.row(1) + offset), 1);
    words = _mm_insert_epi16(words, word(rows.row(2) + offset), 2);
    words = _mm_insert_epi16(words, word(rows.row(3) + offset), 3);
    words = _mm_insert_epi16(words, word(rows.row(4) + offset), 4);
    words = _mm_insert_epi16(words, word(rows.row(5) + offset), 5);
    words = _mm_insert_epi16(words, word(rows.row(6) + offset), 6);
    return _mm_insert_epi16(words, word(rows.row(7) + offset), 7);
  }
  template <typename Rows>
  static I load_u16(const Rows& rows, size_t offset) {
    return _mm256_cvtepu16_epi32(load_words(rows, offset));
  }
  template <typename Rows>
  static I load_u32(const Rows& rows, size_t offset) {
    int32_t x[kLanes];
    for (int r = 0; r < kLanes; ++r) std::memcpy(&x[r], rows.row(r) + offset, sizeof x[r]);
    return load_int(x);
  }
  static void prefetch(const std::byte* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

 private:
  static __m128i load_128(const std::byte* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static int word(const std::byte* p) {
    uint16_t x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
};

}  // namespace
}  // namespace drafthorse::ops::simd
