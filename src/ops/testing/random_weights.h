// Random matrices of any type with their exact values, and how far a kernel's dot product may be from the exact one.
#pragma once

#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <ostream>
#include <random>
#include <vector>

#include "base/check.h"
#include "ops/linear.h"

namespace drafthorse::ops {

// All weight types a test should cover: those with kernels of ours, and three that go through ggml's dot product.
inline constexpr ggml_type kTestedTypes[] = {GGML_TYPE_F32,  GGML_TYPE_F16,    GGML_TYPE_BF16,  GGML_TYPE_Q8_0,
                                             GGML_TYPE_Q4_0, GGML_TYPE_Q4_K,   GGML_TYPE_Q6_K,  GGML_TYPE_Q2_K,
                                             GGML_TYPE_Q5_K, GGML_TYPE_IQ4_NL, GGML_TYPE_MXFP4, GGML_TYPE_IQ4_XS,
                                             GGML_TYPE_Q3_K, GGML_TYPE_Q5_0,   GGML_TYPE_Q4_1};

inline std::vector<float> random_floats(size_t count, std::mt19937_64& random, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

struct RandomMatrix {
  RandomMatrix(ggml_type type, int64_t columns, int64_t rows, std::mt19937_64& random, float scale = 1)
      : values(random_floats(static_cast<size_t>(columns * rows), random, scale)) {
    matrix = {nullptr, type, columns, rows, ggml_row_size(type, columns)};
    data.resize(matrix.row_bytes * static_cast<size_t>(rows));
    const size_t written = ggml_quantize_chunk(type, values.data(), data.data(), 0, rows, columns, nullptr);
    CHECK(written == data.size());
    if (type != GGML_TYPE_F32) ggml_get_type_traits(type)->to_float(data.data(), values.data(), columns * rows);
    matrix.data = data.data();
  }
  RandomMatrix(RandomMatrix&&) = default;

  const float* row(int64_t r) const { return values.data() + r * matrix.columns; }

  std::vector<float> values;  // as the type represents them
  std::vector<std::byte> data;
  WeightMatrix matrix;
};

// For each element the largest error that rounding to the activation type makes.
inline std::vector<double> rounding_of(const float* x, int64_t columns, ggml_type weight_type) {
  const ggml_type activation = activation_format(weight_type).type;
  std::vector<double> error(static_cast<size_t>(columns));
  const int64_t block = ggml_blck_size(activation);
  for (int64_t begin = 0; begin < columns; begin += block) {
    double largest = 0;
    for (int64_t i = begin; i < begin + block; ++i) largest = std::max(largest, std::abs(static_cast<double>(x[i])));
    for (int64_t i = begin; i < begin + block; ++i) {
      const double value = std::abs(static_cast<double>(x[i]));
      switch (activation) {
        case GGML_TYPE_F32:
          break;
        case GGML_TYPE_F16:
          error[i] = value * 0x1p-11;
          break;
        case GGML_TYPE_BF16:
          error[i] = value * 0x1p-8;
          break;
        // 8-bit steps of the block's largest value, half of one off at most; the step itself rounded to F16.
        default:
          error[i] = largest / 127 / 2 + value * 0x1p-11;
      }
    }
  }
  return error;
}

// A dot product in double precision, and the standard deviation of what a kernel makes of it: rounding errors of the
// activations, uniform and independent, and F32 sums.
struct ReferenceDot {
  double value = 0;
  double deviation = 0;
};
struct ExactDot {
  double value = 0;
  double magnitude = 0;  // sum of the products' magnitudes
};
inline ExactDot exact_dot(const float* w, const float* x, int64_t columns) {
  ExactDot result;
  for (int64_t c = 0; c < columns; ++c) {
    const double product = static_cast<double>(w[c]) * static_cast<double>(x[c]);
    result.value += product;
    result.magnitude += std::abs(product);
  }
  return result;
}
inline ReferenceDot reference_dot(const float* w, const float* x, const std::vector<double>& rounding) {
  double variance = 0;
  for (size_t i = 0; i < rounding.size(); ++i) {
    variance += static_cast<double>(w[i]) * w[i] * rounding[i] * rounding[i] / 3;
  }
  const ExactDot exact = exact_dot(w, x, static_cast<int64_t>(rounding.size()));
  return {exact.value, std::sqrt(variance) + exact.magnitude * 0x1p-22};
}
inline constexpr double kDeviations = 6;  // allowed; one element in 500 million is farther off by chance

// Activation rows for weights of a type, and pointers to them.
struct RandomActivations {
  RandomActivations(const std::vector<float>& x, int64_t columns, ggml_type weight_type, Isa isa = best_isa()) {
    const ActivationFormat format = activation_format(weight_type);
    row_bytes = activation_row_bytes(format, columns);
    const size_t count = x.size() / static_cast<size_t>(columns);
    data.resize(row_bytes * count);
    for (size_t r = 0; r < count; ++r) {
      std::byte* row = data.data() + r * row_bytes;
      write_activation_row(simd::kernels(isa), x.data() + r * static_cast<size_t>(columns), row, columns, format);
      rows.push_back(row);
    }
  }
  RandomActivations(RandomActivations&&) = default;
  std::vector<std::byte> data;
  size_t row_bytes = 0;
  std::vector<const std::byte*> rows;
};

// What an activation row stands for.
inline std::vector<float> activation_values(const std::byte* row, int64_t columns, ActivationFormat format) {
  using Kind = ActivationFormat::Kind;
  std::vector<float> values(static_cast<size_t>(columns));
  if (format.kind == Kind::kF32 || format.kind == Kind::kF16 || format.kind == Kind::kBf16) {
    std::memcpy(values.data(), row, values.size() * sizeof(float));
    return values;
  }
  const int64_t block = format.kind == Kind::kQ8_0 ? 32 : 256;
  const QuantizedLayout layout(columns, block);
  const auto* scales = reinterpret_cast<const float*>(row + layout.scale);
  for (int64_t c = 0; c < columns; ++c) {
    values[c] = scales[c / block] * static_cast<float>(static_cast<int8_t>(row[c]));
  }
  return values;
}

// The same after ggml's own rounding.
inline std::vector<float> ggml_activation_values(const std::vector<float>& x, ggml_type type) {
  const auto columns = static_cast<int64_t>(x.size());
  std::vector<std::byte> row(ggml_row_size(type, columns));
  ggml_get_type_traits_cpu(type)->from_float(x.data(), row.data(), columns);
  std::vector<float> values(x.size());
  if (type != GGML_TYPE_Q8_K) {
    ggml_get_type_traits(type)->to_float(row.data(), values.data(), columns);
    return values;
  }
  // ggml cannot unpack this one: a float scale, 256 bytes, 16 sums of 16 bits.
  const size_t block_bytes = ggml_type_size(type);
  for (size_t c = 0; c < values.size(); ++c) {
    const std::byte* block = row.data() + c / 256 * block_bytes;
    float scale = 0;
    std::memcpy(&scale, block, sizeof scale);
    values[c] = scale * static_cast<float>(static_cast<int8_t>(block[sizeof scale + c % 256]));
  }
  return values;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

}  // namespace drafthorse::ops
