#include "ops/activation.h"

#include <ggml-cpu.h>

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "ops/simd/kernels.h"

namespace drafthorse::ops {

ActivationFormat activation_format(ggml_type weight_type) {
  using Kind = ActivationFormat::Kind;
  switch (weight_type) {
    case GGML_TYPE_F32:
      return {Kind::kF32, GGML_TYPE_F32};
    case GGML_TYPE_F16:
      return {Kind::kF16, GGML_TYPE_F16};
    case GGML_TYPE_BF16:
      return {Kind::kBf16, GGML_TYPE_BF16};
    case GGML_TYPE_Q4_0:
    case GGML_TYPE_Q8_0:
    case GGML_TYPE_IQ4_NL:
    case GGML_TYPE_MXFP4:
      return {Kind::kQ8_0, GGML_TYPE_Q8_0};
    case GGML_TYPE_Q2_K:
    case GGML_TYPE_Q4_K:
    case GGML_TYPE_Q5_K:
    case GGML_TYPE_Q6_K:
    case GGML_TYPE_IQ4_XS:
      return {Kind::kQ8_K, GGML_TYPE_Q8_K};
    default:
      return {Kind::kGgml, ggml_get_type_traits_cpu(weight_type)->vec_dot_type};
  }
}

size_t activation_row_bytes(ActivationFormat format, int64_t columns) {
  using Kind = ActivationFormat::Kind;
  switch (format.kind) {
    case Kind::kF32:
    case Kind::kF16:
      return static_cast<size_t>(padded_columns(columns)) * sizeof(float);
    case Kind::kBf16:
      return static_cast<size_t>(padded_columns(columns)) * (sizeof(float) + sizeof(uint16_t));
    case Kind::kQ8_0:
      return QuantizedLayout(columns, 32).bytes;
    case Kind::kQ8_K:
      return QuantizedLayout(columns, 256).bytes;
    case Kind::kGgml:
      return ggml_row_size(format.type, columns);
  }
  check_failed(__FILE__, __LINE__, "known format");
}

void write_activation_row(const simd::Kernels& kernels, const float* x, std::byte* out, int64_t columns,
                          ActivationFormat format) {
  using Kind = ActivationFormat::Kind;
  auto* floats = reinterpret_cast<float*>(out);
  switch (format.kind) {
    case Kind::kF32:
      std::copy_n(x, columns, floats);
      break;
    case Kind::kF16:
      kernels.round_to_f16(x, floats, columns);
      break;
    case Kind::kBf16:
      kernels.round_to_bf16(x, floats, columns);
      break;
    case Kind::kQ8_0:
      kernels.quantize_q8_0(x, out, columns);
      return;
    case Kind::kQ8_K:
      kernels.quantize_q8_k(x, out, columns);
      return;
    case Kind::kGgml:
      if (format.type == GGML_TYPE_F32) {
        std::copy_n(x, columns, floats);
      } else {
        ggml_get_type_traits_cpu(format.type)->from_float(x, out, columns);
      }
      return;
  }
  const int64_t padded = padded_columns(columns);
  std::fill(floats + columns, floats + padded, 0.0F);
  if (format.kind != Kind::kBf16) return;
  auto* halves = reinterpret_cast<uint16_t*>(out + bf16_offset(columns));
  for (int64_t c = 0; c < padded; ++c) halves[c] = static_cast<uint16_t>(std::bit_cast<uint32_t>(floats[c]) >> 16);
}

}  // namespace drafthorse::ops
