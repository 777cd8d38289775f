// Fills the table of one instruction set.
#pragma once

#include "ops/simd/attention_tile.h"
#include "ops/simd/kernels.h"
#include "ops/simd/linear_amx.h"
#include "ops/simd/linear_tile.h"
#include "ops/simd/peak.h"
#include "ops/simd/quantize.h"

namespace drafthorse::ops::simd {

template <typename V>
void fill_kernels(Isa isa, Kernels& kernels) {
  static_assert(V::kLanes <= kMaxLanes);
  kernels.isa = isa;
  kernels.lanes = V::kLanes;
  kernels.tile[GGML_TYPE_F32] = tile_of_floats<V, F32Weights<V>>;
  kernels.tile[GGML_TYPE_F16] = tile_of_floats<V, F16Weights<V>>;
  if constexpr (HasTiles<V>) {
    kernels.tile[GGML_TYPE_BF16] = tile_of_bf16_pairs<V>;
  } else if constexpr (V::kBf16Pairs) {
    kernels.tile[GGML_TYPE_BF16] = tile_of_floats<V, Bf16Pairs<V>>;
  } else {
    kernels.tile[GGML_TYPE_BF16] = tile_of_floats<V, Bf16Weights<V>>;
  }
  kernels.tile[GGML_TYPE_Q4_0] = tile_of_32<V, Q4_0<V>>;
  kernels.tile[GGML_TYPE_Q8_0] = tile_of_32<V, Q8_0<V>>;
  kernels.tile[GGML_TYPE_IQ4_NL] = tile_of_32<V, Iq4Nl<V>>;
  kernels.tile[GGML_TYPE_MXFP4] = tile_of_32<V, Mxfp4<V>>;
  kernels.tile[GGML_TYPE_Q2_K] = tile_of_256<V, Q2_K<V>>;
  kernels.tile[GGML_TYPE_Q4_K] = tile_of_256<V, Q4_K<V>>;
  kernels.tile[GGML_TYPE_Q5_K] = tile_of_256<V, Q5_K<V>>;
  kernels.tile[GGML_TYPE_Q6_K] = tile_of_256<V, Q6_K<V>>;
  kernels.tile[GGML_TYPE_IQ4_XS] = tile_of_256<V, Iq4Xs<V>>;
  kernels.quantize_q8_0 = quantize_q8_0<V>;
  kernels.quantize_q8_k = quantize_q8_k<V>;
  kernels.round_to_f16 = round_to_f16<V>;
  kernels.round_to_bf16 = round_to_bf16<V>;
  kernels.gate = gate<V>;
  kernels.peak_of_bytes = peak_of_bytes<V>;
  kernels.peak_of_floats = peak_of_floats<V>;
  kernels.read_memory = read_memory<V>;
  kernels.attend[GGML_TYPE_F16] = attend<V, F16Cache<V>>;
  kernels.attend[GGML_TYPE_BF16] = attend<V, Bf16Cache<V>>;
  kernels.attend[GGML_TYPE_Q8_0] = attend<V, Q8Cache<V>>;
  kernels.merge_attention = merge_attention<V>;
  kernels.finish_attention = finish_attention<V>;
}

}  // namespace drafthorse::ops::simd
