// AVX-512 with products of BF16 pairs. To be included where AVX512-BF16 is among the targets.
#pragma once

#include "ops/simd/vector_avx512.h"

namespace drafthorse::ops::simd {
namespace {  // code of one instruction set must never stand in for another's: internal on purpose

struct Avx512Bf16Vector : Avx512Vector {
  static constexpr bool kBf16Pairs = true;

  // sum + the two products of each lane, rounded as VDPBF16PS does: to nearest, subnormal numbers taken for zero
  static F dot_bf16(F sum, F w, F x) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
  }
};

}  // namespace
}  // namespace drafthorse::ops::simd
