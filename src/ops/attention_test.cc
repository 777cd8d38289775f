#include "ops/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "ops/testing/graph_runner.h"
#include "ops/testing/random_weights.h"

namespace drafthorse::ops {
namespace {

constexpr int64_t kTile = 64;

struct Shape {
  int64_t head_dim = 0;
  int64_t n_head = 0;
  int64_t n_head_kv = 0;
};
constexpr Shape kShapes[] = {{64, 4, 4}, {128, 6, 2}, {32, 5, 1}, {80, 2, 2}};

// The values F16 can hold, so that nothing but sums is rounded in the kernel.
std::vector<float> f16_floats(size_t count, std::mt19937_64& random) {
  std::vector<float> values = random_floats(count, random);
  for (float& value : values) value = ggml_fp16_to_fp32(ggml_fp32_to_fp16(value));
  return values;
}

std::vector<ggml_fp16_t> to_f16(const std::vector<float>& values) {
  std::vector<ggml_fp16_t> result(values.size());
  ggml_fp32_to_fp16_row(values.data(), result.data(), static_cast<int64_t>(values.size()));
  return result;
}

struct Inputs {
  Inputs(const Shape& of, int64_t cache_rows, int64_t n_tokens, uint64_t seed)
      : shape(of),
        context(cache_rows),
        tokens(n_tokens),
        random(seed),
        q(f16_floats(static_cast<size_t>(of.head_dim * of.n_head * n_tokens), random)),
        k(f16_floats(static_cast<size_t>(of.head_dim * of.n_head_kv * cache_rows), random)),
        v(f16_floats(k.size(), random)),
        k16(to_f16(k)),
        v16(to_f16(v)) {}

  int64_t kv_width() const { return shape.head_dim * shape.n_head_kv; }
  int64_t width() const { return shape.head_dim * shape.n_head; }
  AttentionShape attention_shape() const {
    return {.key_dim = shape.head_dim,
            .value_dim = shape.head_dim,
            .n_head = shape.n_head,
            .n_head_kv = shape.n_head_kv,
            .scale = 1 / std::sqrt(static_cast<float>(shape.head_dim))};
  }
  const float* query(int64_t token) const { return q.data() + token * width(); }

  // Tokens [first, first + positions.size()) at these positions.
  std::vector<float> run(Compute& compute, const std::vector<int32_t>& positions, int64_t first = 0) const {
    return run(compute, positions, {positions.begin(), positions.end()}, first);
  }
  // The same with keys and values of their own positions in these rows.
  std::vector<float> run(Compute& compute, const std::vector<int32_t>& positions, const std::vector<int64_t>& rows,
                         int64_t first) const {
    const AttentionNode node({compute.pool(), simd::kernels(best_isa())}, attention_shape());
    GraphRunner graph(compute);
    const auto n = static_cast<int64_t>(positions.size());
    ggml_tensor* args[] = {graph.input(GGML_TYPE_F32, {shape.head_dim, shape.n_head, n}, query(first)),
                           graph.input(GGML_TYPE_F16, {kv_width(), context}, k16.data()),
                           graph.input(GGML_TYPE_F16, {kv_width(), context}, v16.data()),
                           graph.input(GGML_TYPE_I32, {n}, positions.data()),
                           graph.input(GGML_TYPE_I64, {n}, rows.data())};
    return graph.run(attention(graph.context(), args[0], args[1], args[2], args[3], args[4], node));
  }

  // One head of one token by the definition of softmax.
  std::vector<double> reference(int64_t token, int64_t head, int64_t n_keys) const {
    const int64_t offset = head / (shape.n_head / shape.n_head_kv) * shape.head_dim;
    const float* one = query(token) + head * shape.head_dim;
    std::vector<double> scores(static_cast<size_t>(n_keys));
    double maximum = -std::numeric_limits<double>::infinity();
    for (int64_t i = 0; i < n_keys; ++i) {
      for (int64_t d = 0; d < shape.head_dim; ++d) {
        scores[i] += static_cast<double>(one[d]) * k[i * kv_width() + offset + d];
      }
      scores[i] *= attention_shape().scale;
      maximum = std::max(maximum, scores[i]);
    }
    double sum = 0;
    std::vector<double> out(static_cast<size_t>(shape.head_dim));
    for (int64_t i = 0; i < n_keys; ++i) {
      const double weight = std::exp(scores[i] - maximum);
      sum += weight;
      for (int64_t d = 0; d < shape.head_dim; ++d) out[d] += weight * v[i * kv_width() + offset + d];
    }
    for (double& value : out) value /= sum;
    return out;
  }

  Shape shape;
  int64_t context;
  int64_t tokens;
  std::mt19937_64 random;
  std::vector<float> q, k, v;
  std::vector<ggml_fp16_t> k16, v16;
};

// A key more or less in a hundred changes the result by about 1 %; F32 sums by a hundred times less.
constexpr double kTolerance = 5e-5;

TEST(Attention, MatchesTheReferenceAroundTileBorders) {
  Compute compute(2);
  for (const Shape& shape : kShapes) {
    const Inputs inputs(shape, 4 * kTile, 1, 3);
    for (const int32_t n_keys : {1, 2, 3, 63, 64, 65, 127, 128, 129, 200, 256}) {
      SCOPED_TRACE(::testing::Message() << shape.n_head << " heads of " << shape.head_dim << ", " << n_keys << " keys");
      const std::vector<float> y = inputs.run(compute, {n_keys - 1});
      for (int64_t head = 0; head < shape.n_head; ++head) {
        const std::vector<double> expected = inputs.reference(0, head, n_keys);
        for (int64_t d = 0; d < shape.head_dim; ++d) {
          ASSERT_NEAR(y[head * shape.head_dim + d], expected[d], kTolerance) << "head " << head << " element " << d;
        }
      }
    }
  }
}

TEST(Attention, AWindowMatchesTheReference) {
  Compute compute(3);
  const Inputs inputs({64, 6, 3}, 200, 7, 4);
  const std::vector<int32_t> positions{60, 61, 62, 63, 64, 65, 66};
  const std::vector<float> y = inputs.run(compute, positions);
  for (size_t t = 0; t < positions.size(); ++t) {
    for (int64_t head = 0; head < 6; ++head) {
      const std::vector<double> expected = inputs.reference(static_cast<int64_t>(t), head, positions[t] + 1);
      for (int64_t d = 0; d < 64; ++d) {
        ASSERT_NEAR(y[static_cast<int64_t>(t) * inputs.width() + head * 64 + d], expected[d], kTolerance);
      }
    }
  }
}

TEST(Attention, OneKeyGivesItsValue) {
  Compute compute(1);
  const Inputs inputs({64, 2, 1}, 8, 1, 5);
  const std::vector<float> y = inputs.run(compute, {0});
  for (int64_t head = 0; head < 2; ++head) {
    for (int64_t d = 0; d < 64; ++d) EXPECT_EQ(y[head * 64 + d], inputs.v[d]);
  }
}

TEST(Attention, LargeScoresDoNotOverflow) {
  Compute compute(1);
  Inputs inputs({64, 2, 2}, 150, 1, 6);
  for (float& value : inputs.q) value *= 512;
  const std::vector<float> y = inputs.run(compute, {149});
  for (int64_t head = 0; head < 2; ++head) {
    const std::vector<double> expected = inputs.reference(0, head, 150);
    for (int64_t d = 0; d < 64; ++d) EXPECT_NEAR(y[head * 64 + d], expected[d], 5e-3);
  }
}

TEST(Attention, SameBitsAloneAndTogetherOnAnyThreads) {
  for (const Shape& shape : kShapes) {
    for (const int32_t start : {0, 30, 60, 123, 500}) {
      SCOPED_TRACE(::testing::Message() << shape.n_head << " heads of " << shape.head_dim << " from " << start);
      constexpr int32_t kTokens = 9;
      const Inputs inputs(shape, start + kTokens + 5, kTokens, 7);
      std::vector<int32_t> positions;
      for (int32_t t = 0; t < kTokens; ++t) positions.push_back(start + t);
      Compute one(1);
      const std::vector<float> together = inputs.run(one, positions);
      for (int32_t t = 0; t < kTokens; ++t) {
        const auto begin = together.begin() + t * inputs.width();
        EXPECT_TRUE(same_bits(inputs.run(one, {positions[t]}, t), {begin, begin + inputs.width()})) << "token " << t;
      }
      // As prefill and decoding would cut it.
      const std::vector<float> head = inputs.run(one, {positions.begin(), positions.begin() + 4}, 0);
      const std::vector<float> tail = inputs.run(one, {positions.begin() + 4, positions.end()}, 4);
      std::vector<float> both = head;
      both.insert(both.end(), tail.begin(), tail.end());
      EXPECT_TRUE(same_bits(both, together));
      for (const int threads : {2, 3}) {
        Compute several(threads);
        for (int round = 0; round < 3; ++round) {
          EXPECT_TRUE(same_bits(inputs.run(several, positions), together)) << threads << " threads";
        }
      }
    }
  }
}

// Sequences of one cache, in any order and of any number of tokens, see what they would see alone.
TEST(Attention, SequencesShareACache) {
  constexpr int64_t kRows = 160;  // of each
  const Inputs together({64, 4, 2}, 3 * kRows, 7, 9);
  Compute compute(2);
  const std::vector<int32_t> positions{70, 71, 72, 12, 12, 13, 159};
  const std::vector<int64_t> sequence_of{2, 2, 2, 0, 1, 1, 0};
  std::vector<int64_t> rows;
  for (size_t t = 0; t < positions.size(); ++t) rows.push_back(sequence_of[t] * kRows + positions[t]);
  const std::vector<float> all = together.run(compute, positions, rows, 0);
  for (size_t t = 0; t < positions.size(); ++t) {
    Inputs alone({64, 4, 2}, kRows, 7, 9);
    const int64_t first = sequence_of[t] * kRows * alone.kv_width();
    alone.q = together.q;
    alone.k16.assign(together.k16.begin() + first, together.k16.begin() + first + kRows * alone.kv_width());
    alone.v16.assign(together.v16.begin() + first, together.v16.begin() + first + kRows * alone.kv_width());
    const std::vector<float> one = alone.run(compute, {positions[t]}, static_cast<int64_t>(t));
    const auto begin = all.begin() + static_cast<int64_t>(t) * together.width();
    EXPECT_TRUE(same_bits(one, {begin, begin + together.width()})) << "token " << t;
  }
}

// What lies behind a row's limit, rejected draft tokens or memory never written, must not reach it.
TEST(Attention, RowsBehindTheLimitAreNotRead) {
  const ggml_fp16_t poison = ggml_fp32_to_fp16(std::numeric_limits<float>::quiet_NaN());
  for (const int threads : {1, 3}) {
    Compute compute(threads);
    for (const int32_t n_keys : {1, 5, 63, 64, 65, 128}) {
      SCOPED_TRACE(::testing::Message() << n_keys << " keys, " << threads << " threads");
      Inputs inputs({64, 4, 2}, 192, 1, 8);
      const std::vector<float> clean = inputs.run(compute, {n_keys - 1});
      for (size_t i = static_cast<size_t>(n_keys * inputs.kv_width()); i < inputs.k16.size(); ++i) {
        inputs.k16[i] = poison;
        inputs.v16[i] = poison;
      }
      EXPECT_TRUE(same_bits(inputs.run(compute, {n_keys - 1}), clean));
      // And it is the limit that keeps it out.
      EXPECT_TRUE(std::isnan(inputs.run(compute, {n_keys})[0]));
    }
  }
  // A window: each row has a limit of its own.
  Compute compute(2);
  Inputs inputs({64, 4, 2}, 80, 3, 9);
  const std::vector<float> clean = inputs.run(compute, {62, 63, 64});
  for (int64_t i = 64 * inputs.kv_width(); i < 65 * inputs.kv_width(); ++i) inputs.v16[i] = poison;
  const std::vector<float> y = inputs.run(compute, {62, 63, 64});
  const auto limit = 2 * inputs.width();
  EXPECT_TRUE(same_bits({y.begin(), y.begin() + limit}, {clean.begin(), clean.begin() + limit}));
  EXPECT_TRUE(std::isnan(y[limit]));
}

}  // namespace
}  // namespace drafthorse::ops
