#include "plan/prediction.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

namespace drafthorse {
namespace {

// 1 GB/s of disk, kernels that take 1 ns per weight and row beyond the first, 10 GB/s of memory.
MachineProfile machine() {
  MachineProfile profile;
  profile.disk = {{1 << 20, 1, 0.5e9}, {1 << 20, 64, 1e9}, {1 << 16, 64, 0.2e9}};
  profile.disk_latency_s = 1e-4;
  profile.ram_bytes_per_s = 10e9;
  profile.kernels = {{"q8_0", 1.0, {{1, 1e-10}, {2, 1.5e-10}, {4, 2.5e-10}}, {{1, 1e-10}, {2, 1.5e-10}, {4, 2.5e-10}}}};
  return profile;
}

ModelWork model(int layers, int experts, int used) {
  ModelWork work;
  for (int i = 0; i < layers; ++i) work.layers.push_back({{{"q8_0", 1e7}}, {{"q8_0", 3e7}}, experts});
  work.head = {"q8_0", 1e7};
  work.n_expert_used = used;
  work.n_embd = 1024;
  work.expert_bytes = 30'000'000;
  work.dense_bytes = 50'000'000;
  return work;
}

PredictionInput input(int slots) {
  PredictionInput in;
  in.machine = machine();
  in.target = model(4, 16, 2);
  in.slots = slots;
  in.prompt_tokens = 100;
  in.generated_tokens = 100;
  in.prefill_tokens = 2048;
  return in;
}

TEST(Popularity, AddsUpAndFallsFasterWithMoreSkew) {
  for (const auto& [experts, used] : {std::pair(16, 2), std::pair(128, 8), std::pair(4, 4), std::pair(8, 1)}) {
    for (const double skew : {0.0, 1.0, 4.0, 12.0}) {
      const std::vector<double> p = expert_popularity(experts, used, skew);
      EXPECT_NEAR(std::accumulate(p.begin(), p.end(), 0.0), used, 1e-6);
      for (size_t i = 1; i < p.size(); ++i) EXPECT_LE(p[i], p[i - 1]);
      EXPECT_LE(p[0], 1.0);
    }
  }
  EXPECT_NEAR(expert_popularity(16, 2, 0)[15], 0.125, 1e-9);
}

TEST(Popularity, UnionsGrowAsThoseOfTheDemoPairDo) {
  // Measured on text of the first trained pair: 16 experts, top-2, windows of 1, 2, 3, 5 and 9 tokens.
  const std::vector<double> p = expert_popularity(16, 2, kDefaultSkew);
  EXPECT_NEAR(distinct_experts(p, 1), 2.0, 0.05);
  EXPECT_NEAR(distinct_experts(p, 2), 3.4, 0.2);
  EXPECT_NEAR(distinct_experts(p, 3), 4.6, 0.2);
  EXPECT_NEAR(distinct_experts(p, 5), 6.4, 0.2);
  EXPECT_NEAR(distinct_experts(p, 9), 8.6, 0.2);
}

TEST(Profile, IsReadBetweenItsPoints) {
  const std::vector<KernelRate> rates = {{1, 1.0}, {2, 2.0}, {4, 3.0}};
  EXPECT_DOUBLE_EQ(interpolate(rates, 1), 1.0);
  EXPECT_DOUBLE_EQ(interpolate(rates, 1.5), 1.5);
  EXPECT_DOUBLE_EQ(interpolate(rates, 3), 2.5);
  EXPECT_DOUBLE_EQ(interpolate(rates, 8), 5.0);
  EXPECT_DOUBLE_EQ(disk_rate(machine(), 1), 0.5e9);
  EXPECT_DOUBLE_EQ(disk_rate(machine(), 64), 1e9);
  EXPECT_NEAR(disk_rate(machine(), 32.5), 0.75e9, 1);
  EXPECT_DOUBLE_EQ(disk_rate(machine(), 1000), 1e9);
}

TEST(Predict, ResidentModelIsArithmetic) {
  const Result<Prediction> out = predict(input(64));
  ASSERT_TRUE(out.ok());
  // Four layers of 10 M dense weights and two experts of 30 M, and a head of 10 M, at 0.1 ns each.
  EXPECT_NEAR(out->plain.cycle_s, (4 * (1e7 + 2 * 3e7) + 1e7) * 1e-10, 1e-6);
  EXPECT_EQ(out->plain.verify.stall_s, 0);
  EXPECT_EQ(out->plain.bytes_per_token, 0);
  EXPECT_EQ(out->hit_rate, 1);
  EXPECT_EQ(out->plain.bottleneck, Bottleneck::kMemory);
}

TEST(Predict, NothingResidentWaitsForEveryByte) {
  PredictionInput in = input(2);
  in.machine.kernels[0].experts = {{1, 1e-14}, {2, 1e-14}};
  const Result<Prediction> out = predict(in);
  ASSERT_TRUE(out.ok());
  // Eight experts a token, nearly all of them read.
  EXPECT_GT(out->plain.bytes_per_token, 7.5 * 30e6);
  EXPECT_GT(out->plain.verify.stall_s, 7.5 * 30e6 / 1e9);
  EXPECT_LT(out->plain.verify.stall_s, 8 * 30e6 / 0.5e9);
  EXPECT_EQ(out->plain.bottleneck, Bottleneck::kDisk);
}

TEST(Predict, MoreSlotsAreNeverSlower) {
  double before = 0;
  double bytes = 1e18;
  for (int slots = 2; slots <= 64; ++slots) {
    const Result<Prediction> out = predict(input(slots));
    ASSERT_TRUE(out.ok());
    EXPECT_GE(out->plain.tokens_per_s, before * (1 - 1e-9)) << slots;
    EXPECT_LE(out->plain.bytes_per_token, bytes * (1 + 1e-9)) << slots;
    before = out->plain.tokens_per_s;
    bytes = out->plain.bytes_per_token;
  }
}

TEST(Predict, DraftPaysWhenItAgreesAndNotWhenItDoesNot) {
  PredictionInput in = input(8);
  in.draft = model(1, 4, 1);
  in.acceptance = 0.98;
  const Result<Prediction> good = predict(in);
  ASSERT_TRUE(good.ok());
  EXPECT_GT(good->best.depth, 2);
  EXPECT_GT(good->best.tokens_per_s, 1.2 * good->plain.tokens_per_s);
  in.acceptance = 0.1;
  const Result<Prediction> bad = predict(in);
  ASSERT_TRUE(bad.ok());
  EXPECT_EQ(bad->best.depth, 0);
  in.depth = 4;
  const Result<Prediction> asked = predict(in);
  ASSERT_TRUE(asked.ok());
  EXPECT_EQ(asked->best.depth, 4);
  EXPECT_LT(asked->best.tokens_per_s, asked->plain.tokens_per_s);
  EXPECT_NEAR(asked->best.tokens_per_cycle, 1 + .1 + .01 + .001 + .0001, 1e-12);
}

TEST(Predict, PromptIsReadOnceWhateverItsLength) {
  PredictionInput in = input(8);
  in.prompt_tokens = 1000;
  in.machine.kernels[0].linear = in.machine.kernels[0].experts = {{1, 1e-14}, {2, 1e-14}};
  const Result<Prediction> once = predict(in);
  in.prefill_tokens = 100;
  const Result<Prediction> often = predict(in);
  ASSERT_TRUE(once.ok() && often.ok());
  EXPECT_GE(once->ttft_s, 64 * 30e6 / 1e9);
  EXPECT_GT(often->ttft_s, 3 * once->ttft_s);
}

TEST(Routing, SkewIsFoundFromTheHitRateItMakes) {
  for (const double skew : {0.5, 2.0, 3.8, 8.0}) {
    for (const double window : {1.0, 5.0}) {
      const RoutingShape shape{4, 16, 2, 20, window};
      const std::optional<double> found = skew_from_hit_rate(shape, expected_hit_rate(shape, skew));
      ASSERT_TRUE(found.has_value());
      EXPECT_NEAR(*found, skew, 0.01) << window;
    }
  }
  EXPECT_FALSE(skew_from_hit_rate({4, 16, 2, 64, 1}, 1.0).has_value());
  EXPECT_GT(expected_hit_rate({4, 16, 2, 20, 1}, 4), expected_hit_rate({4, 16, 2, 20, 1}, 1));
}

TEST(Predict, RefusesTypesThatWereNotMeasured) {
  PredictionInput in = input(8);
  in.target.layers[2].expert[0].type = "iq1_s";
  const Result<Prediction> out = predict(in);
  ASSERT_FALSE(out.ok());
  EXPECT_NE(out.status().message().find("iq1_s"), std::string::npos);
}

}  // namespace
}  // namespace drafthorse
