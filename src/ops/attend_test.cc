// attend(): every type of cache, shape and instruction set against the definition, and the same bits however the work
// is cut.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "base/worker_pool.h"
#include "ops/testing/attention_case.h"

namespace drafthorse::ops {
namespace {

struct Dims {
  int64_t key = 0;
  int64_t value = 0;
  int64_t n_head = 0;
  int64_t n_head_kv = 0;
  bool shared = false;  // values are part of the keys
};
constexpr ggml_type kCacheTypes[] = {GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0};

AttentionShape shape_of(const Dims& dims, ggml_type type) {
  return {.key_dim = dims.key,
          .value_dim = dims.value,
          .n_head = dims.n_head,
          .n_head_kv = dims.n_head_kv,
          .kv_type = type,
          .scale = 1 / std::sqrt(static_cast<float>(dims.key))};
}

std::vector<int32_t> window(int32_t first, int32_t count) {
  std::vector<int32_t> positions(static_cast<size_t>(count));
  std::iota(positions.begin(), positions.end(), first);
  return positions;
}

// A key more or less in a thousand changes the result by about 1e-3; F32 sums by a hundred times less.
constexpr double kTolerance = 2e-5;

class Attend : public ::testing::TestWithParam<Isa> {
 protected:
  Processor processor() { return {pool_, simd::kernels(GetParam())}; }
  WorkerPool pool_{2};
};
INSTANTIATE_TEST_SUITE_P(, Attend, ::testing::ValuesIn(supported_isas()), [](const auto& one) {
  std::string text(name(one.param));
  std::erase(text, '-');
  return text;
});

TEST_P(Attend, MatchesTheReference) {
  constexpr Dims kDims[] = {{64, 64, 4, 4},   {128, 128, 8, 1}, {96, 96, 6, 2},         {256, 256, 2, 1},
                            {192, 128, 3, 3}, {32, 160, 5, 1},  {576, 512, 16, 1, true}};
  uint64_t seed = 1;
  for (const ggml_type type : kCacheTypes) {
    for (const Dims& dims : kDims) {
      for (const auto& [first, count] : {std::pair{0, 1}, {0, 5}, {61, 7}, {1023, 3}, {2050, 1}}) {
        SCOPED_TRACE(::testing::Message()
                     << ggml_type_name(type) << " " << dims.key << "/" << dims.value << " heads " << dims.n_head << "/"
                     << dims.n_head_kv << " from " << first << ", " << count);
        const SequenceCase one(shape_of(dims, type), window(first, count), first + count, ++seed, dims.shared);
        EXPECT_LT(one.largest_error(one.run(processor())), kTolerance);
      }
    }
  }
}

// Where elements are not in blocks any size will do.
TEST_P(Attend, OddSizes) {
  std::mt19937_64 random(2);
  for (int round = 0; round < 40; ++round) {
    const int64_t group = 1 + random() % 5;
    const Dims dims{static_cast<int64_t>(1 + random() % 200), static_cast<int64_t>(1 + random() % 200), 2 * group, 2};
    const auto type = round % 2 == 0 ? GGML_TYPE_F16 : GGML_TYPE_BF16;
    const auto first = static_cast<int32_t>(random() % 300);
    const auto count = static_cast<int32_t>(1 + random() % 20);
    SCOPED_TRACE(::testing::Message() << ggml_type_name(type) << " " << dims.key << "/" << dims.value << " group "
                                      << group << " from " << first << ", " << count);
    const SequenceCase one(shape_of(dims, type), window(first, count), first + count, random());
    EXPECT_LT(one.largest_error(one.run(processor())), kTolerance);
  }
}

TEST_P(Attend, WindowSoftcapAndSinks) {
  std::mt19937_64 random(3);
  const std::vector<float> sinks{-3, 0, 2.5F, 30};
  for (const int32_t sliding : {0, 1, 7, 64, 100, 1500}) {
    for (const float softcap : {0.0F, 2.0F}) {
      for (const bool with_sinks : {false, true}) {
        for (const auto& [first, count] : {std::pair{0, 3}, {90, 20}, {2040, 9}}) {
          SCOPED_TRACE(::testing::Message() << "window " << sliding << " softcap " << softcap << " sinks " << with_sinks
                                            << " from " << first);
          AttentionShape shape = shape_of({64, 64, 4, 2}, GGML_TYPE_F16);
          shape.window = sliding;
          shape.softcap = softcap;
          shape.sinks = with_sinks ? sinks.data() : nullptr;
          const SequenceCase one(shape, window(first, count), first + count, random());
          EXPECT_LT(one.largest_error(one.run(processor())), kTolerance);
        }
      }
    }
  }
}

TEST_P(Attend, AllKernelsGiveTheBitsOfThePortableOnes) {
  uint64_t seed = 4;
  for (const ggml_type type : kCacheTypes) {
    for (const Dims& dims : {Dims{64, 64, 4, 4}, {96, 160, 6, 2}, {576, 512, 5, 1, true}}) {
      for (const float softcap : {0.0F, 5.0F}) {
        AttentionShape shape = shape_of(dims, type);
        const std::vector<float> sinks{1, 2, 3, 4, 5, 6};
        shape.softcap = softcap;
        shape.sinks = softcap > 0 ? sinks.data() : nullptr;
        const SequenceCase one(shape, window(1000, 40), 1040, ++seed, dims.shared);
        EXPECT_TRUE(same_bits(one.run(processor()), one.run({pool_, simd::kernels(Isa::kPortable)})));
      }
    }
  }
}

// A token's bits in any window, at any place in it, on any threads.
TEST_P(Attend, SameBitsAloneAndTogether) {
  uint64_t seed = 5;
  for (const ggml_type type : kCacheTypes) {
    for (const Dims& dims : {Dims{64, 64, 4, 1}, {128, 64, 3, 3}, {576, 512, 5, 1, true}}) {
      for (const int32_t sliding : {0, 70}) {
        for (const int32_t first : {0, 50, 1010}) {
          SCOPED_TRACE(::testing::Message()
                       << ggml_type_name(type) << " " << dims.key << " window " << sliding << " from " << first);
          constexpr int32_t kTokens = 30;
          AttentionShape shape = shape_of(dims, type);
          shape.window = sliding;
          const SequenceCase one(shape, window(first, kTokens), first + kTokens, ++seed, dims.shared);
          const std::vector<float> together = one.run(processor());
          for (const int threads : {1, 3}) {
            WorkerPool pool(threads);
            const Processor other{pool, simd::kernels(GetParam())};
            EXPECT_TRUE(same_bits(one.run(other), together)) << threads << " threads";
            for (const size_t count : {1, 4, 7}) {
              for (size_t t = 0; t + count <= kTokens; t += count) {
                const auto begin = together.begin() + static_cast<int64_t>(t) * one.width();
                EXPECT_TRUE(
                    same_bits(one.run(other, t, count), {begin, begin + static_cast<int64_t>(count) * one.width()}))
                    << count << " from " << t;
              }
            }
          }
        }
      }
    }
  }
}

TEST_P(Attend, SameBitsInAThousandTokensAsAlone) {
  constexpr int32_t kTokens = 1000;
  const SequenceCase one(shape_of({64, 64, 2, 1}, GGML_TYPE_F16), window(100, kTokens), 100 + kTokens, 6);
  const std::vector<float> together = one.run(processor());
  for (size_t t = 0; t < kTokens; t += 37) {
    const auto begin = together.begin() + static_cast<int64_t>(t) * one.width();
    EXPECT_TRUE(same_bits(one.run(processor(), t, 1), {begin, begin + one.width()})) << "token " << t;
  }
}

// Sequences of very different lengths, one with no token at all; long ones are cut into spans, short ones are not.
TEST_P(Attend, SameBitsBesideOtherSequences) {
  for (const ggml_type type : kCacheTypes) {
    const AttentionShape shape = shape_of({64, 64, 4, 2}, type);
    std::vector<SequenceCase> cases;
    for (const auto& [first, count] : {std::pair{0, 1}, {5000, 2}, {63, 9}, {12, 0}, {1020, 17}, {3, 70}}) {
      cases.emplace_back(shape, window(first, count), first + count, static_cast<uint64_t>(7 + first));
    }
    AttentionWorkspace workspace;
    for (const int threads : {1, 2, 4}) {
      WorkerPool pool(threads);
      std::vector<std::vector<float>> results;
      std::vector<AttentionSequence> sequences;
      for (const SequenceCase& one : cases) {
        results.emplace_back(one.positions.size() * static_cast<size_t>(one.width()));
        sequences.push_back(one.part(0, one.positions.size(), results.back().data()));
      }
      attend({pool, simd::kernels(GetParam())}, shape, sequences, workspace);
      for (size_t i = 0; i < cases.size(); ++i) {
        EXPECT_TRUE(same_bits(results[i], cases[i].run(processor()))) << "sequence " << i << ", " << threads;
        EXPECT_LT(cases[i].largest_error(results[i]), kTolerance);
      }
    }
  }
}

// A head's bits do not depend on the heads that share its keys.
TEST_P(Attend, SameBitsInAnyGroup) {
  const AttentionShape shape = shape_of({64, 64, 8, 1}, GGML_TYPE_F16);
  const SequenceCase one(shape, window(2000, 3), 2003, 8);
  const std::vector<float> together = one.run(processor());
  for (int64_t head = 0; head < shape.n_head; ++head) {
    AttentionShape alone = shape;
    alone.n_head = 1;
    std::vector<float> out(static_cast<size_t>(3 * shape.value_dim));
    AttentionSequence sequence = one.part(0, 3, out.data());
    sequence.q += head * sequence.q_head_stride;
    sequence.out_stride = shape.value_dim;
    AttentionWorkspace workspace;
    attend(processor(), alone, {&sequence, 1}, workspace);
    for (int64_t t = 0; t < 3; ++t) {
      const auto begin = together.begin() + t * one.width() + head * shape.value_dim;
      EXPECT_TRUE(same_bits({out.begin() + t * shape.value_dim, out.begin() + (t + 1) * shape.value_dim},
                            {begin, begin + shape.value_dim}))
          << "head " << head << " token " << t;
    }
  }
}

// What a token does not see, later drafts or memory never written, does not reach it, even from within its own tile
// and beside a token that does see it.
TEST_P(Attend, WhatIsNotSeenMayBeAnything) {
  for (const ggml_type type : kCacheTypes) {
    for (const int32_t sliding : {0, 20}) {
      SCOPED_TRACE(::testing::Message() << ggml_type_name(type) << " window " << sliding);
      constexpr int32_t kFirst = 90;
      constexpr int32_t kTokens = 8;
      AttentionShape shape = shape_of({64, 64, 2, 1}, type);
      shape.window = sliding;
      SequenceCase one(shape, window(kFirst, kTokens), 128, 9);
      const std::vector<float> clean = one.run(processor());
      constexpr int32_t kPoisoned = kFirst + 4;
      for (int32_t row = kPoisoned; row < 128; ++row) {
        one.keys.poison(row);
        one.values.poison(row);
      }
      if (sliding > 0) {
        one.keys.poison(kFirst - sliding);
        one.values.poison(kFirst - sliding);
      }
      const std::vector<float> y = one.run(processor());
      const int64_t limit = 4 * one.width();
      EXPECT_TRUE(same_bits({y.begin(), y.begin() + limit}, {clean.begin(), clean.begin() + limit}));
      for (int64_t i = limit; i < static_cast<int64_t>(y.size()); ++i) ASSERT_TRUE(std::isnan(y[i])) << i;
    }
  }
}

// No byte beyond the last row seen is read: the cache ends there. (What the address sanitizer is for.)
TEST_P(Attend, ReadsNothingBeyondTheCache) {
  for (const ggml_type type : kCacheTypes) {
    for (const int64_t dim : {32, 40, 64, 136}) {
      if (dim % ggml_blck_size(type) != 0) continue;
      for (const int32_t last : {0, 1, 62, 63, 64}) {
        const SequenceCase one(shape_of({dim, dim, 2, 1}, type), {last}, last + 1, 10);
        EXPECT_LT(one.largest_error(one.run(processor())), kTolerance);
      }
    }
  }
}

TEST_P(Attend, OneKeyGivesItsValue) {
  const SequenceCase one(shape_of({128, 64, 2, 1}, GGML_TYPE_BF16), {0}, 1, 11);
  const std::vector<float> y = one.run(processor());
  for (int64_t d = 0; d < 128; ++d) EXPECT_EQ(y[d], one.values.values[d % 64]);
}

TEST_P(Attend, LargeScoresDoNotOverflow) {
  SequenceCase one(shape_of({64, 64, 2, 2}, GGML_TYPE_F16), window(1500, 3), 1503, 12);
  for (float& value : one.q) value *= 4096;
  EXPECT_LT(one.largest_error(one.run(processor())), 5e-3);
}

// Memory is booked before anything runs.
TEST_P(Attend, WorkspaceStaysWithinWhatIsForeseen) {
  const AttentionShape shape = shape_of({64, 64, 8, 2}, GGML_TYPE_F16);
  AttentionWorkspace workspace;
  for (const int32_t context : {600, 3000, 5000}) {
    for (const int32_t tokens : {1, 9, 40}) {
      const SequenceCase one(shape, window(context - tokens, tokens), context, 13);
      std::vector<float> out(static_cast<size_t>(tokens * shape.n_head * shape.value_dim));
      const AttentionSequence sequence = one.part(0, static_cast<size_t>(tokens), out.data());
      attend(processor(), shape, {&sequence, 1}, workspace);
      EXPECT_LE(workspace.bytes(), attention_workspace_bytes(shape, 40, context));
    }
  }
  EXPECT_GT(workspace.bytes(), 0U);
}

TEST(AttentionShape, SaysWhatIsSupported) {
  AttentionShape shape = shape_of({80, 80, 4, 2}, GGML_TYPE_F16);
  EXPECT_TRUE(supports_attention(shape));
  shape.kv_type = GGML_TYPE_Q8_0;
  EXPECT_FALSE(supports_attention(shape));  // 80 is no multiple of 32
  shape.key_dim = shape.value_dim = 96;
  EXPECT_TRUE(supports_attention(shape));
  shape.kv_type = GGML_TYPE_Q4_0;
  EXPECT_FALSE(supports_attention(shape));
  shape.kv_type = GGML_TYPE_F16;
  shape.key_dim = kMaxHeadDim + 1;
  EXPECT_FALSE(supports_attention(shape));
  shape.key_dim = 96;
  shape.n_head = 5;
  EXPECT_FALSE(supports_attention(shape));
}

}  // namespace
}  // namespace drafthorse::ops
