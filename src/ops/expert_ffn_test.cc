#include "ops/expert_ffn.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "base/worker_pool.h"
#include "ops/testing/random_weights.h"

namespace drafthorse::ops {
namespace {

struct Types {
  ggml_type gate_up = GGML_TYPE_F32;
  ggml_type down = GGML_TYPE_F32;
};

// Experts with random weights, tokens with random routes, and the memory a batch needs.
struct Experts {
  Experts(Types types, int64_t embd, int64_t ff, int count, int32_t n_tokens, uint64_t seed)
      : n_embd(embd),
        n_ff(ff),
        random(seed),
        x(random_floats(static_cast<size_t>(embd * n_tokens), random)),
        xq(x, embd, types.gate_up) {
    const float in_scale = 1 / std::sqrt(static_cast<float>(embd));
    const float out_scale = 1 / std::sqrt(static_cast<float>(ff));
    for (int e = 0; e < count; ++e) {
      gate.emplace_back(types.gate_up, embd, ff, random, in_scale);
      up.emplace_back(types.gate_up, embd, ff, random, in_scale);
      down.emplace_back(types.down, ff, embd, random, out_scale);
      const auto first = static_cast<int32_t>(token_of_row.size());
      for (int32_t t = 0; t < n_tokens; ++t) {
        if (random() % 3 != 0) token_of_row.push_back(t);
      }
      work.push_back({{gate.back().matrix, up.back().matrix, down.back().matrix},
                      first,
                      static_cast<int32_t>(token_of_row.size())});
    }
    input = {xq.data.data(), xq.row_bytes};
  }

  // Runs the work in these groups, one after the other.
  std::vector<float> run(const std::vector<std::vector<ExpertWork>>& groups, int threads, Isa isa = best_isa()) {
    WorkerPool pool(threads);
    const size_t rows = token_of_row.size();
    std::vector<float> hidden(rows * static_cast<size_t>(n_ff));
    std::vector<std::byte> hidden_quantized(rows * activation_row_bytes(activation_format(down[0].matrix.type), n_ff));
    std::vector<float> output(rows * static_cast<size_t>(n_embd), kUntouched);
    for (const std::vector<ExpertWork>& group : groups) {
      run_experts({input, token_of_row, group, hidden.data(), hidden_quantized.data(), output.data()},
                  {pool, simd::kernels(isa)});
    }
    return output;
  }

  static constexpr float kUntouched = -77;
  int64_t n_embd;
  int64_t n_ff;
  std::mt19937_64 random;
  std::vector<float> x;
  RandomActivations xq;
  ActivationRows input;
  std::vector<RandomMatrix> gate, up, down;
  std::vector<ExpertWork> work;
  std::vector<int32_t> token_of_row;
};

class ExpertFfnTest : public ::testing::TestWithParam<Types> {};

TEST_P(ExpertFfnTest, MatchesTheReference) {
  const Types types = GetParam();
  for (const int32_t tokens : {1, 2, 11}) {
    SCOPED_TRACE(::testing::Message() << tokens << " tokens");
    Experts experts(types, 256, 512, 3, tokens, 5);
    const std::vector<float> y = experts.run({experts.work}, 2);
    for (size_t e = 0; e < experts.work.size(); ++e) {
      for (int32_t i = experts.work[e].row_begin; i < experts.work[e].row_end; ++i) {
        const float* in = experts.x.data() + experts.token_of_row[i] * experts.n_embd;
        const std::vector<double> rounding = rounding_of(in, experts.n_embd, types.gate_up);
        std::vector<float> hidden(static_cast<size_t>(experts.n_ff));
        std::vector<double> deviation(hidden.size());
        for (int64_t r = 0; r < experts.n_ff; ++r) {
          const ReferenceDot gate = reference_dot(experts.gate[e].row(r), in, rounding);
          const ReferenceDot up = reference_dot(experts.up[e].row(r), in, rounding);
          const double open = gate.value / (1 + std::exp(-gate.value));
          hidden[r] = static_cast<float>(open * up.value);
          deviation[r] = std::hypot(1.1 * gate.deviation * std::abs(up.value), open * up.deviation);
        }
        const std::vector<double> hidden_rounding = rounding_of(hidden.data(), experts.n_ff, types.down);
        for (int64_t r = 0; r < experts.n_embd; ++r) {
          const ReferenceDot expected = reference_dot(experts.down[e].row(r), hidden.data(), hidden_rounding);
          // The errors of the hidden values come on top of their rounding.
          double variance = expected.deviation * expected.deviation;
          for (int64_t c = 0; c < experts.n_ff; ++c) variance += std::pow(experts.down[e].row(r)[c] * deviation[c], 2);
          ASSERT_NEAR(y[i * experts.n_embd + r], expected.value, kDeviations * std::sqrt(variance))
              << "expert " << e << " row " << i << " element " << r;
        }
      }
    }
  }
}

// Experts may come in any order and grouping, their rows in any number, on any threads.
TEST_P(ExpertFfnTest, SameBitsInAnyGroupingOnAnyThreads) {
  Experts experts(GetParam(), 256, 512, 5, 7, 6);
  const std::vector<float> all = experts.run({experts.work}, 1);
  std::vector<std::vector<ExpertWork>> one_by_one;
  std::vector<std::vector<ExpertWork>> row_by_row;
  std::vector<ExpertWork> rows_at_once;
  for (const ExpertWork& work : experts.work) {
    one_by_one.insert(one_by_one.begin(), {work});
    for (int32_t row = work.row_begin; row < work.row_end; ++row) {
      row_by_row.push_back({{work.weights, row, row + 1}});
      rows_at_once.insert(rows_at_once.begin(), {work.weights, row, row + 1});
    }
  }
  const std::vector<ExpertWork> front{experts.work[3], experts.work[0]};
  const std::vector<ExpertWork> back{experts.work[4], experts.work[2], experts.work[1]};
  for (const int threads : {1, 2, 3}) {
    SCOPED_TRACE(::testing::Message() << threads << " threads");
    EXPECT_TRUE(same_bits(experts.run({experts.work}, threads), all));
    EXPECT_TRUE(same_bits(experts.run(one_by_one, threads), all));
    EXPECT_TRUE(same_bits(experts.run(row_by_row, threads), all));
    EXPECT_TRUE(same_bits(experts.run({rows_at_once}, threads), all));
    EXPECT_TRUE(same_bits(experts.run({front, back}, threads), all));
  }
}

TEST_P(ExpertFfnTest, EmptyWorkTouchesNothing) {
  Experts experts(GetParam(), 256, 256, 2, 3, 7);
  const std::vector<float> untouched(experts.token_of_row.size() * 256, Experts::kUntouched);
  EXPECT_EQ(experts.run({}, 2), untouched);
  EXPECT_EQ(experts.run({{}}, 2), untouched);
  ExpertWork none = experts.work[0];
  none.row_end = none.row_begin;
  EXPECT_EQ(experts.run({{none}}, 2), untouched);
  // Beside real work it makes no difference.
  EXPECT_TRUE(same_bits(experts.run({{none, experts.work[1]}}, 2), experts.run({{experts.work[1]}}, 1)));
}

std::vector<Types> tested_types() {
  std::vector<Types> all;
  for (const ggml_type type : kTestedTypes) all.push_back({type, type});
  all.push_back({GGML_TYPE_Q4_K, GGML_TYPE_Q6_K});
  all.push_back({GGML_TYPE_Q2_K, GGML_TYPE_Q8_0});
  all.push_back({GGML_TYPE_Q8_0, GGML_TYPE_BF16});
  return all;
}

INSTANTIATE_TEST_SUITE_P(Types, ExpertFfnTest, ::testing::ValuesIn(tested_types()), [](const auto& one) {
  return std::string(ggml_type_name(one.param.gate_up)) + "_" + ggml_type_name(one.param.down);
});

TEST(ExpertFfn, AccumulateAddsWithOneRounding) {
  std::mt19937_64 random(8);
  const std::vector<float> x = random_floats(37, random);
  std::vector<float> y = random_floats(37, random);
  std::vector<float> expected = y;
  for (size_t i = 0; i < x.size(); ++i) expected[i] = std::fma(0.3F, x[i], expected[i]);
  accumulate(y.data(), x.data(), 0.3F, static_cast<int64_t>(x.size()));
  EXPECT_TRUE(same_bits(y, expected));
}

}  // namespace
}  // namespace drafthorse::ops
