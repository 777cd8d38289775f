#include "ops/linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "ops/testing/graph_runner.h"
#include "ops/testing/random_weights.h"

namespace drafthorse::ops {
namespace {

struct Case {
  ggml_type type = GGML_TYPE_F32;
  Isa isa = Isa::kPortable;
};

class LinearTest : public ::testing::TestWithParam<Case> {
 protected:
  // Odd where the type allows it.
  static int64_t columns(int64_t blocks) {
    const ggml_type type = GetParam().type;
    const int64_t block = std::max(ggml_blck_size(type), ggml_blck_size(activation_format(type).type));
    return block == 1 ? 61 * blocks : block * blocks;
  }
  std::mt19937_64 random_{42};
};

std::vector<float> run_linear(Compute& compute, Isa isa, const RandomMatrix& w, const std::vector<float>& x) {
  const NodeContext nodes({compute.pool(), simd::kernels(isa)});
  GraphRunner graph(compute);
  const int64_t tokens = static_cast<int64_t>(x.size()) / w.matrix.columns;
  ggml_tensor* weights = graph.input(w.matrix.type, {w.matrix.columns, w.matrix.rows}, w.data.data());
  ggml_tensor* in = graph.input(GGML_TYPE_F32, {w.matrix.columns, tokens}, x.data());
  return graph.run(linear(graph.context(), nodes, weights, quantize(graph.context(), nodes, in, w.matrix.type)));
}

std::vector<float> run_gated(Compute& compute, Isa isa, const RandomMatrix& g, const RandomMatrix& u,
                             const std::vector<float>& x) {
  const NodeContext nodes({compute.pool(), simd::kernels(isa)});
  GraphRunner graph(compute);
  const int64_t tokens = static_cast<int64_t>(x.size()) / g.matrix.columns;
  ggml_tensor* gate = graph.input(g.matrix.type, {g.matrix.columns, g.matrix.rows}, g.data.data());
  ggml_tensor* up = graph.input(u.matrix.type, {u.matrix.columns, u.matrix.rows}, u.data.data());
  ggml_tensor* in = graph.input(GGML_TYPE_F32, {g.matrix.columns, tokens}, x.data());
  ggml_tensor* quantised = quantize(graph.context(), nodes, in, g.matrix.type);
  return graph.run(gated_linear(graph.context(), nodes, gate, up, quantised));
}

// Row `t` of x or of a result.
std::vector<float> row(const std::vector<float>& all, size_t rows, size_t t) {
  const auto width = static_cast<std::ptrdiff_t>(all.size() / rows);
  const auto begin = all.begin() + static_cast<std::ptrdiff_t>(t) * width;
  return {begin, begin + width};
}

TEST_P(LinearTest, MatchesTheReference) {
  const auto [type, isa] = GetParam();
  ASSERT_TRUE(supports_weights(type));
  Compute compute(2);
  for (const int64_t rows : {1, 7, 33}) {
    for (const int64_t tokens : {1, 2, 17}) {
      const int64_t width = columns(rows == 7 ? 3 : 1);
      SCOPED_TRACE(::testing::Message() << width << " x " << rows << ", " << tokens << " tokens");
      const RandomMatrix w(type, width, rows, random_);
      const std::vector<float> x = random_floats(static_cast<size_t>(width * tokens), random_, 3);
      const std::vector<float> y = run_linear(compute, isa, w, x);
      ASSERT_EQ(y.size(), static_cast<size_t>(rows * tokens));
      for (int64_t t = 0; t < tokens; ++t) {
        const float* in = x.data() + t * width;
        const std::vector<double> rounding = rounding_of(in, width, type);
        for (int64_t r = 0; r < rows; ++r) {
          const ReferenceDot expected = reference_dot(w.row(r), in, rounding);
          ASSERT_NEAR(y[t * rows + r], expected.value, kDeviations * expected.deviation)
              << "row " << r << " token " << t;
        }
      }
    }
  }
}

TEST_P(LinearTest, GatedMatchesTheReference) {
  const auto [type, isa] = GetParam();
  Compute compute(2);
  constexpr int64_t kRows = 13;
  constexpr int64_t kTokens = 5;
  const int64_t width = columns(2);
  // Small enough that the gate is neither shut nor wide open.
  const float scale = 1 / std::sqrt(static_cast<float>(width));
  const RandomMatrix g(type, width, kRows, random_, scale);
  const RandomMatrix u(type, width, kRows, random_, scale);
  const std::vector<float> x = random_floats(static_cast<size_t>(width * kTokens), random_);
  const std::vector<float> y = run_gated(compute, isa, g, u, x);
  for (int64_t t = 0; t < kTokens; ++t) {
    const float* in = x.data() + t * width;
    const std::vector<double> rounding = rounding_of(in, width, type);
    for (int64_t r = 0; r < kRows; ++r) {
      const ReferenceDot gate = reference_dot(g.row(r), in, rounding);
      const ReferenceDot up = reference_dot(u.row(r), in, rounding);
      const double open = gate.value / (1 + std::exp(-gate.value));
      // The slope of silu is at most 1.1.
      const double deviation = 1.1 * gate.deviation * (std::abs(up.value) + kDeviations * up.deviation) +
                               std::abs(open) * up.deviation + 1e-6 * std::abs(open * up.value);
      ASSERT_NEAR(y[t * kRows + r], open * up.value, kDeviations * deviation);
    }
  }
}

// The promise the engine is built on: a token's bits do not depend on who shares the pass, nor on threads.
TEST_P(LinearTest, SameBitsAloneAndTogetherOnAnyThreads) {
  const auto [type, isa] = GetParam();
  constexpr size_t kTokens = 9;
  constexpr int64_t kRows = 301;
  const int64_t width = columns(2);
  const RandomMatrix w(type, width, kRows, random_);
  const RandomMatrix u(type, width, kRows, random_);
  const std::vector<float> x = random_floats(static_cast<size_t>(width) * kTokens, random_);
  Compute one(1);
  const std::vector<float> together = run_linear(one, isa, w, x);
  const std::vector<float> gated = run_gated(one, isa, w, u, x);
  for (size_t t = 0; t < kTokens; ++t) {
    EXPECT_TRUE(same_bits(run_linear(one, isa, w, row(x, kTokens, t)), row(together, kTokens, t))) << "token " << t;
    EXPECT_TRUE(same_bits(run_gated(one, isa, w, u, row(x, kTokens, t)), row(gated, kTokens, t))) << "token " << t;
  }
  for (const size_t fewer : {2, 3, 4, 5, 6, 7, 8}) {
    const std::vector<float> some(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(fewer) * width);
    const std::vector<float> expected(together.begin(), together.begin() + static_cast<std::ptrdiff_t>(fewer) * kRows);
    EXPECT_TRUE(same_bits(run_linear(one, isa, w, some), expected)) << fewer << " tokens";
  }
  for (const int threads : {2, 3}) {
    Compute several(threads);
    for (int round = 0; round < 3; ++round) {
      EXPECT_TRUE(same_bits(run_linear(several, isa, w, x), together)) << threads << " threads";
      EXPECT_TRUE(same_bits(run_gated(several, isa, w, u, x), gated)) << threads << " threads";
    }
    EXPECT_TRUE(same_bits(run_linear(several, isa, w, row(x, kTokens, 3)), row(together, kTokens, 3)));
  }
}

TEST_P(LinearTest, RowRangesComposeAndEmptyOnesTouchNothing) {
  const auto [type, isa] = GetParam();
  constexpr int64_t kRows = 29;
  constexpr int64_t kTokens = 3;
  constexpr int64_t kStride = kRows + 4;
  constexpr float kUntouched = -77;
  const int64_t width = columns(1);
  const RandomMatrix w(type, width, kRows, random_);
  const std::vector<float> x = random_floats(static_cast<size_t>(width * kTokens), random_);
  const RandomActivations in(x, width, type, isa);
  const simd::Kernels& kernels = simd::kernels(isa);
  std::vector<float> whole(kTokens * kStride, kUntouched);
  linear_rows(kernels, w.matrix, in.rows, whole.data(), kStride, 0, kRows);
  std::vector<float> parts(kTokens * kStride, kUntouched);
  const int64_t cuts[] = {0, 1, 9, 9, 17, 28, kRows};
  for (size_t i = 0; i + 1 < std::size(cuts); ++i) {
    linear_rows(kernels, w.matrix, in.rows, parts.data(), kStride, cuts[i], cuts[i + 1]);
  }
  EXPECT_TRUE(same_bits(whole, parts));
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t r = kRows; r < kStride; ++r) EXPECT_EQ(whole[t * kStride + r], kUntouched);
  }
  std::vector<float> none(kTokens * kStride, kUntouched);
  linear_rows(kernels, w.matrix, in.rows, none.data(), kStride, 5, 5);
  linear_rows(kernels, w.matrix, {}, none.data(), kStride, 0, kRows);
  EXPECT_EQ(none, std::vector<float>(kTokens * kStride, kUntouched));
}

// More tokens than a block, more weights than are kept in a cache, rows that end inside a tile.
TEST_P(LinearTest, SameBitsForAThousandTokens) {
  const auto [type, isa] = GetParam();
  constexpr int64_t kTokens = 1000;
  constexpr int64_t kRows = 37;
  const int64_t width = columns(1);
  const RandomMatrix w(type, width, kRows, random_);
  const std::vector<float> x = random_floats(static_cast<size_t>(width * kTokens), random_);
  const RandomActivations in(x, width, type, isa);
  const simd::Kernels& kernels = simd::kernels(isa);
  std::vector<float> together(kTokens * kRows);
  linear_rows(kernels, w.matrix, in.rows, together.data(), kRows, 0, kRows);
  std::vector<float> alone(kTokens * kRows);
  for (int64_t t = 0; t < kTokens; ++t) {
    linear_rows(kernels, w.matrix, {in.rows.data() + t, 1}, alone.data() + t * kRows, kRows, 0, kRows);
  }
  EXPECT_TRUE(same_bits(together, alone));
}

// Apart from the order of its sums a kernel rounds nothing but the activations: against exact sums over what the
// weights and the rounded activations stand for.
TEST_P(LinearTest, SumsAreExactButForTheirRounding) {
  const auto [type, isa] = GetParam();
  if (activation_format(type).kind == ActivationFormat::Kind::kGgml) return;  // ggml rounds and sums these
  constexpr int64_t kTokens = 3;
  constexpr int64_t kRows = 21;
  const int64_t width = columns(5);
  const RandomMatrix w(type, width, kRows, random_);
  const std::vector<float> x = random_floats(static_cast<size_t>(width * kTokens), random_);
  const RandomActivations in(x, width, type, isa);
  std::vector<float> y(kTokens * kRows);
  linear_rows(simd::kernels(isa), w.matrix, in.rows, y.data(), kRows, 0, kRows);
  for (int64_t t = 0; t < kTokens; ++t) {
    const std::vector<float> values = activation_values(in.rows[t], width, activation_format(type));
    for (int64_t r = 0; r < kRows; ++r) {
      const ExactDot exact = exact_dot(w.row(r), values.data(), width);
      ASSERT_NEAR(y[t * kRows + r], exact.value, exact.magnitude * 0x1p-20) << "row " << r << " token " << t;
    }
  }
}

// One text whatever the processor: every instruction set gives the portable code's bits, but for BF16 pairs.
TEST_P(LinearTest, SameBitsAsPortableCode) {
  const auto [type, isa] = GetParam();
  if (type == GGML_TYPE_BF16 && isa == Isa::kAvx512Bf16) return;  // an instruction that rounds in its own way
  constexpr int64_t kTokens = 7;
  constexpr int64_t kRows = 45;
  const int64_t width = columns(3);
  const RandomMatrix w(type, width, kRows, random_, 0.1F);
  const RandomMatrix u(type, width, kRows, random_, 0.1F);
  const std::vector<float> x = random_floats(static_cast<size_t>(width * kTokens), random_, 2);
  Compute compute(1);
  EXPECT_TRUE(same_bits(run_linear(compute, isa, w, x), run_linear(compute, Isa::kPortable, w, x)));
  EXPECT_TRUE(same_bits(run_gated(compute, isa, w, u, x), run_gated(compute, Isa::kPortable, w, u, x)));
}

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const ggml_type type : kTestedTypes) {
    for (const Isa isa : supported_isas()) cases.push_back({type, isa});
  }
  return cases;
}

std::string case_name(const ::testing::TestParamInfo<Case>& one) {
  std::string text = std::string(ggml_type_name(one.param.type)) + "_" + std::string(name(one.param.isa));
  std::replace(text.begin(), text.end(), '-', '_');
  return text;
}

// Floats go through the columns in pieces, and for many tokens are converted first.
TEST(Linear, ManyColumnsOfFloatsGiveTheSameBits) {
  constexpr int64_t kColumns = 1024 + 512 + 37;
  constexpr int64_t kRows = 37;
  constexpr size_t kTokens = 64;
  std::mt19937_64 random(21);
  for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16}) {
    const RandomMatrix w(type, kColumns, kRows, random);
    const std::vector<float> x = random_floats(kColumns * kTokens, random);
    for (const Isa isa : supported_isas()) {
      SCOPED_TRACE(::testing::Message() << ggml_type_name(type) << " " << name(isa));
      const RandomActivations in(x, kColumns, type, isa);
      const auto product = [&](size_t first, size_t tokens) {
        std::vector<float> y(tokens * kRows);
        linear_rows(simd::kernels(isa), w.matrix, std::span(in.rows).subspan(first, tokens), y.data(), kRows, 0, kRows);
        return y;
      };
      std::vector<float> alone;
      for (size_t t = 0; t < kTokens; ++t) {
        const std::vector<float> y = product(t, 1);
        const std::vector<float> rounded = activation_values(in.rows[t], kColumns, activation_format(type));
        for (int64_t r = 0; r < kRows && t < 3; ++r) {
          const ExactDot exact = exact_dot(w.row(r), rounded.data(), kColumns);
          ASSERT_NEAR(y[r], exact.value, exact.magnitude * 0x1p-18) << "row " << r << " token " << t;
        }
        alone.insert(alone.end(), y.begin(), y.end());
      }
      for (const size_t tokens : {2, 3, 4, 6, 7, 12, 13, 64}) {
        const std::vector<float> expected(alone.begin(), alone.begin() + static_cast<std::ptrdiff_t>(tokens * kRows));
        EXPECT_TRUE(same_bits(product(0, tokens), expected)) << tokens << " tokens";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, LinearTest, ::testing::ValuesIn(all_cases()), case_name);

// Scales and quants as they may stand in a file, not only as a quantiser writes them: every byte random, the F16
// scales finite.
TEST(Linear, AnyBytesGiveTheSameBitsOnAllInstructionSets) {
  std::mt19937_64 random(7);
  struct Scales {
    ggml_type type;
    std::vector<size_t> at;  // of F16 numbers in a block
  };
  const Scales all[] = {{GGML_TYPE_Q4_0, {0}},    {GGML_TYPE_Q8_0, {0}},      {GGML_TYPE_IQ4_NL, {0}},
                        {GGML_TYPE_MXFP4, {}},    {GGML_TYPE_Q2_K, {80, 82}}, {GGML_TYPE_Q4_K, {0, 2}},
                        {GGML_TYPE_Q5_K, {0, 2}}, {GGML_TYPE_Q6_K, {208}},    {GGML_TYPE_IQ4_XS, {0}}};
  for (const auto& [type, at] : all) {
    SCOPED_TRACE(ggml_type_name(type));
    constexpr int64_t kColumns = 1024;
    constexpr int64_t kRows = 33;
    constexpr size_t kTokens = 5;
    const size_t row_bytes = ggml_row_size(type, kColumns);
    std::vector<std::byte> data(row_bytes * kRows);
    for (std::byte& byte : data) byte = static_cast<std::byte>(random());
    // The greatest weights there are: of MXFP4 other bits than of the others.
    std::fill_n(data.begin(), 8 * row_bytes, std::byte{0xFF});
    std::fill_n(data.begin() + static_cast<std::ptrdiff_t>(8 * row_bytes), 8 * row_bytes, std::byte{0x77});
    const size_t block = ggml_type_size(type);
    for (size_t b = 0; b < data.size(); b += block) {
      for (const size_t offset : at) data[b + offset + 1] &= std::byte{0xBB};  // no exponent of all ones
      // Powers of two far enough from the largest float that no sum overflows; the smallest two included.
      if (type == GGML_TYPE_MXFP4) data[b] &= std::byte{0x7F};
    }
    const WeightMatrix w{data.data(), type, kColumns, kRows, row_bytes};
    std::vector<float> x = random_floats(kColumns * kTokens, random);
    std::fill_n(x.begin() + kColumns, kColumns, 0.0F);      // a token of zeros
    std::fill_n(x.begin() + 2 * kColumns, kColumns, 1.0F);  // and ones of largest values only
    std::fill_n(x.begin() + 3 * kColumns, kColumns, -1.0F);
    std::vector<float> expected;
    for (const Isa isa : supported_isas()) {
      const RandomActivations in(x, kColumns, type, isa);
      std::vector<float> y(kTokens * kRows);
      linear_rows(simd::kernels(isa), w, in.rows, y.data(), kRows, 0, kRows);
      if (expected.empty()) expected = y;
      EXPECT_TRUE(same_bits(y, expected)) << name(isa);
      for (const float value : y) ASSERT_TRUE(std::isfinite(value));
    }
    // What the bytes stand for, as ggml reads them.
    std::vector<float> values(kColumns * kRows);
    ggml_get_type_traits(type)->to_float(data.data(), values.data(), kColumns * kRows);
    const RandomActivations in(x, kColumns, type);
    for (size_t t = 0; t < kTokens; ++t) {
      const std::vector<float> rounded = activation_values(in.rows[t], kColumns, activation_format(type));
      for (int64_t r = 0; r < kRows; ++r) {
        const ExactDot exact = exact_dot(values.data() + r * kColumns, rounded.data(), kColumns);
        ASSERT_NEAR(expected[t * kRows + r], exact.value, exact.magnitude * 0x1p-18 + 1e-30)
            << "row " << r << " token " << t;
      }
    }
  }
}

// Powers of two at both ends of what MXFP4 can say, of which the smallest are no normal floats.
TEST(Linear, ReadsTheOutermostScalesOfMxfp4) {
  constexpr int64_t kRows = 8;
  const uint8_t exponents[kRows] = {0, 1, 2, 3, 127, 253, 254, 255};
  const size_t row_bytes = ggml_row_size(GGML_TYPE_MXFP4, 32);
  std::vector<std::byte> data(row_bytes * kRows);
  std::mt19937_64 random(12);
  for (std::byte& byte : data) byte = static_cast<std::byte>(random());
  for (int64_t r = 0; r < kRows; ++r) data[r * row_bytes] = std::byte{127};
  std::vector<float> values(32 * kRows);  // but for the power of two: the largest are no floats
  ggml_get_type_traits(GGML_TYPE_MXFP4)->to_float(data.data(), values.data(), 32 * kRows);
  for (int64_t r = 0; r < kRows; ++r) data[r * row_bytes] = static_cast<std::byte>(exponents[r]);
  const WeightMatrix w{data.data(), GGML_TYPE_MXFP4, 32, kRows, row_bytes};
  const std::vector<float> x = random_floats(32, random, 1e-4F);
  for (const Isa isa : supported_isas()) {
    const RandomActivations in(x, 32, GGML_TYPE_MXFP4, isa);
    const std::vector<float> rounded = activation_values(in.rows[0], 32, activation_format(GGML_TYPE_MXFP4));
    // A second row, of which products with the smallest weights stay normal.
    std::vector<float> large(32);
    for (int64_t c = 0; c < 32; ++c) large[c] = x[c] * 0x1p30F;
    const RandomActivations large_in(large, 32, GGML_TYPE_MXFP4, isa);
    const std::vector<float> large_rounded =
        activation_values(large_in.rows[0], 32, activation_format(GGML_TYPE_MXFP4));
    std::vector<float> y(2 * kRows);
    linear_rows(simd::kernels(isa), w, std::vector{in.rows[0], large_in.rows[0]}, y.data(), kRows, 0, kRows);
    for (int64_t r = 0; r < kRows; ++r) {
      const bool small = exponents[r] < 127;
      const std::vector<float>& token = small ? large_rounded : rounded;
      double sum = 0;
      double magnitude = 0;
      for (int64_t c = 0; c < 32; ++c) {
        const double product = std::ldexp(static_cast<double>(values[r * 32 + c]), exponents[r] - 127) * token[c];
        sum += product;
        magnitude += std::abs(product);
      }
      EXPECT_NEAR(y[(small ? kRows : 0) + r], sum, magnitude * 0x1p-18)
          << name(isa) << " exponent " << int{exponents[r]};
    }
  }
}

// The oracle rounds activations as ggml does; so must we, or the two differ for no reason.
TEST(Activation, RoundsToTheNumbersOfGgml) {
  std::mt19937_64 random(9);
  constexpr int64_t kColumns = 512;
  for (const ggml_type weights : {GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_F16, GGML_TYPE_BF16}) {
    SCOPED_TRACE(ggml_type_name(weights));
    const ActivationFormat format = activation_format(weights);
    for (int round = 0; round < 20; ++round) {
      std::vector<float> x = random_floats(kColumns, random, std::pow(10.0F, static_cast<float>(round % 7 - 3)));
      if (round == 5) std::fill_n(x.begin(), 300, 0.0F);
      const std::vector<float> expected = ggml_activation_values(x, format.type);
      for (const Isa isa : supported_isas()) {
        const RandomActivations in(x, kColumns, weights, isa);
        EXPECT_EQ(activation_values(in.rows[0], kColumns, format), expected) << name(isa);
      }
    }
  }
}

TEST(Gate, IsSiluTimesUp) {
  std::vector<float> gates;
  for (int i = -3500; i <= 3500; ++i) gates.push_back(static_cast<float>(i) * 0.025F + 0.001F);
  const std::vector<float> ups(gates.size(), 3.0F);
  std::vector<float> expected(gates.size());
  simd::kernels(Isa::kPortable).gate(gates.data(), ups.data(), expected.data(), static_cast<int64_t>(gates.size()));
  for (size_t i = 0; i < gates.size(); ++i) {
    const double x = gates[i];
    const double exact = 3 * x / (1 + std::exp(-x));
    EXPECT_NEAR(expected[i], exact, 6e-7 * std::abs(exact)) << x;
  }
  for (const Isa isa : supported_isas()) {
    std::vector<float> y(gates.size());
    simd::kernels(isa).gate(gates.data(), ups.data(), y.data(), static_cast<int64_t>(gates.size()));
    EXPECT_TRUE(same_bits(y, expected)) << name(isa);
  }
}

// What went wrong before must neither become a number here nor depend on the processor.
TEST(Activation, KeepsWhatIsNoNumber) {
  std::vector<float> x(64, 1.0F);
  const uint32_t odd_ones[] = {0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF80FFFF, 0x7FC00000, 0x7FFF8000,
                               0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x80000001, 0x80000000};
  for (size_t i = 0; i < std::size(odd_ones); ++i) x[3 * i] = std::bit_cast<float>(odd_ones[i]);
  for (const Isa isa : supported_isas()) {
    SCOPED_TRACE(name(isa));
    const RandomActivations in(x, 64, GGML_TYPE_BF16, isa);
    const auto* halves = reinterpret_cast<const uint16_t*>(in.rows[0] + bf16_offset(64));
    const std::vector<float> floats = activation_values(in.rows[0], 64, activation_format(GGML_TYPE_BF16));
    for (size_t i = 0; i < x.size(); ++i) {
      EXPECT_EQ(halves[i], ggml_fp32_to_bf16(x[i]).bits) << i;
      EXPECT_EQ(std::bit_cast<uint32_t>(floats[i]), uint32_t{halves[i]} << 16) << i;
    }
  }
}

TEST(Activation, RoundsAnythingToTheSameBytesOnAllInstructionSets) {
  constexpr int64_t kColumns = 512;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNoNumber = std::numeric_limits<float>::quiet_NaN();
  std::mt19937_64 random(11);
  for (const float odd_one : {kNoNumber, kInfinity, -kInfinity, 3e38F, 1e-42F}) {
    SCOPED_TRACE(odd_one);
    std::vector<float> x = random_floats(kColumns, random);
    x[5] = odd_one;
    x[300] = -odd_one;
    std::fill_n(x.begin() + 64, 32, odd_one);  // a block with nothing else
    for (const ggml_type weights : {GGML_TYPE_Q8_0, GGML_TYPE_Q4_K}) {
      const RandomActivations expected(x, kColumns, weights, Isa::kPortable);
      for (const Isa isa : supported_isas()) {
        const RandomActivations in(x, kColumns, weights, isa);
        EXPECT_TRUE(in.data == expected.data) << ggml_type_name(weights) << ' ' << name(isa);
      }
    }
  }
}

// Sums kept beside the bytes are theirs.
TEST(Activation, KeepsTheSumsOfItsBytes) {
  std::mt19937_64 random(10);
  constexpr int64_t kColumns = 768;
  const std::vector<float> x = random_floats(kColumns, random);
  for (const Isa isa : supported_isas()) {
    for (const ggml_type weights : {GGML_TYPE_Q8_0, GGML_TYPE_Q6_K}) {
      const RandomActivations in(x, kColumns, weights, isa);
      const QuantizedLayout layout(kColumns, weights == GGML_TYPE_Q8_0 ? 32 : 256);
      ASSERT_EQ(layout.bytes, in.row_bytes);
      const auto* bytes = reinterpret_cast<const int8_t*>(in.rows[0]);
      for (int64_t b = 0; b < kColumns / 32; ++b) {
        const int32_t first = std::accumulate(bytes + 32 * b, bytes + 32 * b + 16, 0);
        const int32_t second = std::accumulate(bytes + 32 * b + 16, bytes + 32 * b + 32, 0);
        EXPECT_EQ(reinterpret_cast<const int32_t*>(in.rows[0] + layout.negated_sum)[b], -(first + second));
        if (weights == GGML_TYPE_Q8_0) continue;
        EXPECT_EQ(reinterpret_cast<const int16_t*>(in.rows[0] + layout.sum_32)[b], first + second);
        EXPECT_EQ(reinterpret_cast<const int16_t*>(in.rows[0] + layout.sum_16)[2 * b], first);
        EXPECT_EQ(reinterpret_cast<const int16_t*>(in.rows[0] + layout.sum_16)[2 * b + 1], second);
      }
    }
  }
}

TEST(Isa, NamesAreUniqueAndFound) {
  for (const Isa isa : supported_isas()) EXPECT_EQ(isa_named(name(isa)), isa);
  EXPECT_EQ(isa_named("avx1024"), std::nullopt);
  EXPECT_EQ(supported_isas().front(), Isa::kPortable);
}

TEST(Linear, RefusesTypesThatAreNoWeights) {
  EXPECT_FALSE(supports_weights(GGML_TYPE_I32));
  EXPECT_FALSE(supports_weights(GGML_TYPE_I8));
  EXPECT_FALSE(supports_weights(GGML_TYPE_COUNT));
}

TEST(Linear, RowGrainCoversAndIsNeverEmpty) {
  for (const int64_t rows : {1, 8, 100, 100'000}) {
    for (const int64_t cost : {0, 1, 4096, 1 << 30}) {
      for (const int threads : {1, 2, 64}) EXPECT_GT(row_grain(rows, cost, threads), 0);
    }
  }
}

}  // namespace
}  // namespace drafthorse::ops
