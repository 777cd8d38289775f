// AVX2 with 8-bit dot products in one instruction. To be included where AVX-VNNI is among the targets.
#pragma once

#include "ops/simd/vector_avx2.h"

namespace drafthorse::ops::simd {
namespace {

struct AvxVnniVector : Avx2Vector {
  static constexpr int kSignedBias = 128;
  static constexpr bool kSumsWords = false;

  static I dot_u8(I acc, I w, I x) { return _mm256_dpbusd_avx_epi32(acc, w, x); }
  static I dot_s8(I acc, I w, I x) { return _mm256_dpbusd_avx_epi32(acc, w, x); }
  static I dot_s16(I acc, I w, I x) { return _mm256_dpwssd_avx_epi32(acc, w, x); }
};

}  // namespace
}  // namespace drafthorse::ops::simd
