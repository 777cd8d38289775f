#include "ops/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "ops/testing/graph_runner.h"
#include "ops/testing/random_weights.h"

namespace drafthorse::ops {
namespace {

class LinearTest : public ::testing::TestWithParam<ggml_type> {
 protected:
  // Odd where the type allows it.
  static int64_t columns(int64_t blocks) {
    const int64_t block = std::max(ggml_blck_size(GetParam()), ggml_blck_size(activation_type(GetParam())));
    return block == 1 ? 61 * blocks : block * blocks;
  }
  std::mt19937_64 random_{42};
};

std::vector<float> run_linear(Compute& compute, const RandomMatrix& w, const std::vector<float>& x) {
  const NodeContext nodes(compute.pool());
  GraphRunner graph(compute);
  const int64_t tokens = static_cast<int64_t>(x.size()) / w.matrix.columns;
  ggml_tensor* weights = graph.input(w.matrix.type, {w.matrix.columns, w.matrix.rows}, w.data.data());
  ggml_tensor* in = graph.input(GGML_TYPE_F32, {w.matrix.columns, tokens}, x.data());
  return graph.run(linear(graph.context(), nodes, weights, quantize(graph.context(), nodes, in, w.matrix.type)));
}

std::vector<float> run_gated(Compute& compute, const RandomMatrix& g, const RandomMatrix& u,
                             const std::vector<float>& x) {
  const NodeContext nodes(compute.pool());
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
  const ggml_type type = GetParam();
  ASSERT_TRUE(supports_weights(type));
  Compute compute(2);
  for (const int64_t rows : {1, 7, 33}) {
    for (const int64_t tokens : {1, 2, 17}) {
      const int64_t width = columns(rows == 7 ? 3 : 1);
      SCOPED_TRACE(::testing::Message() << width << " x " << rows << ", " << tokens << " tokens");
      const RandomMatrix w(type, width, rows, random_);
      const std::vector<float> x = random_floats(static_cast<size_t>(width * tokens), random_, 3);
      const std::vector<float> y = run_linear(compute, w, x);
      ASSERT_EQ(y.size(), static_cast<size_t>(rows * tokens));
      for (int64_t t = 0; t < tokens; ++t) {
        const float* in = x.data() + t * width;
        const std::vector<double> rounding = rounding_of(in, width, activation_type(type));
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
  const ggml_type type = GetParam();
  Compute compute(2);
  constexpr int64_t kRows = 13;
  constexpr int64_t kTokens = 5;
  const int64_t width = columns(2);
  // Small enough that the gate is neither shut nor wide open.
  const float scale = 1 / std::sqrt(static_cast<float>(width));
  const RandomMatrix g(type, width, kRows, random_, scale);
  const RandomMatrix u(type, width, kRows, random_, scale);
  const std::vector<float> x = random_floats(static_cast<size_t>(width * kTokens), random_);
  const std::vector<float> y = run_gated(compute, g, u, x);
  for (int64_t t = 0; t < kTokens; ++t) {
    const float* in = x.data() + t * width;
    const std::vector<double> rounding = rounding_of(in, width, activation_type(type));
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
  const ggml_type type = GetParam();
  constexpr size_t kTokens = 9;
  constexpr int64_t kRows = 301;
  const int64_t width = columns(2);
  const RandomMatrix w(type, width, kRows, random_);
  const RandomMatrix u(type, width, kRows, random_);
  const std::vector<float> x = random_floats(static_cast<size_t>(width) * kTokens, random_);
  Compute one(1);
  const std::vector<float> together = run_linear(one, w, x);
  const std::vector<float> gated = run_gated(one, w, u, x);
  for (size_t t = 0; t < kTokens; ++t) {
    EXPECT_TRUE(same_bits(run_linear(one, w, row(x, kTokens, t)), row(together, kTokens, t))) << "token " << t;
    EXPECT_TRUE(same_bits(run_gated(one, w, u, row(x, kTokens, t)), row(gated, kTokens, t))) << "token " << t;
  }
  for (const size_t fewer : {2, 3, 4, 5, 8}) {
    const std::vector<float> some(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(fewer) * width);
    const std::vector<float> expected(together.begin(), together.begin() + static_cast<std::ptrdiff_t>(fewer) * kRows);
    EXPECT_TRUE(same_bits(run_linear(one, w, some), expected)) << fewer << " tokens";
  }
  for (const int threads : {2, 3}) {
    Compute several(threads);
    for (int round = 0; round < 3; ++round) {
      EXPECT_TRUE(same_bits(run_linear(several, w, x), together)) << threads << " threads";
      EXPECT_TRUE(same_bits(run_gated(several, w, u, x), gated)) << threads << " threads";
    }
    EXPECT_TRUE(same_bits(run_linear(several, w, row(x, kTokens, 3)), row(together, kTokens, 3)));
  }
}

TEST_P(LinearTest, RowRangesComposeAndEmptyOnesTouchNothing) {
  const ggml_type type = GetParam();
  constexpr int64_t kRows = 29;
  constexpr int64_t kTokens = 3;
  constexpr int64_t kStride = kRows + 4;
  constexpr float kUntouched = -77;
  const int64_t width = columns(1);
  const RandomMatrix w(type, width, kRows, random_);
  const std::vector<float> x = random_floats(static_cast<size_t>(width * kTokens), random_);
  const ggml_type activation = activation_type(type);
  const std::vector<std::byte> xq = quantized_rows(x, width, activation);
  const ActivationRows rows{xq.data(), ggml_row_size(activation, width)};
  std::vector<float> whole(kTokens * kStride, kUntouched);
  linear_rows(w.matrix, rows, kTokens, whole.data(), kStride, 0, kRows);
  std::vector<float> parts(kTokens * kStride, kUntouched);
  const int64_t cuts[] = {0, 1, 9, 9, 17, 28, kRows};
  for (size_t i = 0; i + 1 < std::size(cuts); ++i) {
    linear_rows(w.matrix, rows, kTokens, parts.data(), kStride, cuts[i], cuts[i + 1]);
  }
  EXPECT_TRUE(same_bits(whole, parts));
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t r = kRows; r < kStride; ++r) EXPECT_EQ(whole[t * kStride + r], kUntouched);
  }
  std::vector<float> none(kTokens * kStride, kUntouched);
  linear_rows(w.matrix, rows, kTokens, none.data(), kStride, 5, 5);
  linear_rows(w.matrix, rows, 0, none.data(), kStride, 0, kRows);
  EXPECT_EQ(none, std::vector<float>(kTokens * kStride, kUntouched));
}

INSTANTIATE_TEST_SUITE_P(Types, LinearTest, ::testing::ValuesIn(kTestedTypes),
                         [](const auto& one) { return std::string(ggml_type_name(one.param)); });

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
