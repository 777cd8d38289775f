// Activations as the kernels read them.
//
// Weights decide how precisely activations are kept, as ggml's dot products do: 8-bit weights and below meet
// activations rounded to 8 bits, F16 and BF16 weights activations rounded to theirs. The numbers are ggml's; the
// layout is ours: what belongs together lies together.
#pragma once

#include <ggml.h>

#include <cstddef>
#include <cstdint>

namespace drafthorse::ops {

namespace simd {
struct Kernels;
}

struct ActivationFormat {
  enum class Kind {
    kF32,   // floats, as they are
    kF16,   // floats, rounded to F16
    kBf16,  // floats, rounded to BF16, and the same once more in 16 bits each
    kQ8_0,  // 8 bits, a scale per 32 columns (rounded to F16)
    kQ8_K,  // 8 bits, a scale per 256 columns
    kGgml,  // rows of `type`, for ggml's own dot product
  };
  Kind kind = Kind::kF32;
  ggml_type type = GGML_TYPE_F32;  // the ggml type whose numbers they are

  bool operator==(const ActivationFormat&) const = default;
};

// What weights of this type are multiplied with.
ActivationFormat activation_format(ggml_type weight_type);

// Bytes of one activation row.
size_t activation_row_bytes(ActivationFormat format, int64_t columns);

// x: `columns` floats -> one row at `out`, activation_row_bytes() long.
void write_activation_row(const simd::Kernels& kernels, const float* x, std::byte* out, int64_t columns,
                          ActivationFormat format);

// Float rows: `columns` floats, then zeros up to a multiple of this many.
inline constexpr int64_t kFloatPadding = 32;

constexpr int64_t padded_columns(int64_t columns) {
  return (columns + kFloatPadding - 1) / kFloatPadding * kFloatPadding;
}
// Where the 16-bit part of a kBf16 row begins; padded with zeros as the floats are.
constexpr size_t bf16_offset(int64_t columns) { return static_cast<size_t>(padded_columns(columns)) * sizeof(float); }

// Where the parts of an 8-bit row begin; columns is a multiple of 32, for kQ8_K of 256.
//   int8  x[columns]              -127 to 127
//   float scale[columns / block]  block: 32 or 256
//   int32 negated_sum[columns / 32]            minus the sum of 32 x
//   int16 sum_16[columns / 16], sum_32[columns / 32]   kQ8_K only: sums of 16 and of 32 x
struct QuantizedLayout {
  constexpr QuantizedLayout(int64_t columns, int64_t block)
      : scale(static_cast<size_t>(columns)),
        negated_sum(scale + static_cast<size_t>(columns / block) * sizeof(float)),
        sum_16(negated_sum + static_cast<size_t>(columns / 32) * sizeof(int32_t)),
        sum_32(sum_16 + (block == 256 ? static_cast<size_t>(columns / 16) * sizeof(int16_t) : 0)),
        bytes(sum_32 + (block == 256 ? static_cast<size_t>(columns / 32) * sizeof(int16_t) : 0)) {}
  size_t scale;
  size_t negated_sum;
  size_t sum_16;
  size_t sum_32;
  size_t bytes;
};

}  // namespace drafthorse::ops
