#include "simulate/prediction.h"

#include <gtest/gtest.h>

#include <cmath>

#include "simulate/what_helps.h"

namespace drafthorse {
namespace {

// 1 GB/s of disk, 10 GB/s of memory, kernels that are as fast for one token and slower for each further one.
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
  in.prompt_tokens = 40;
  in.generated_tokens = 64;
  in.prefill_tokens = 2048;
  in.max_window = 65;
  return in;
}

void set_kernels(PredictionInput& in, double seconds_per_weight) {
  in.machine.kernels[0].linear = in.machine.kernels[0].experts = {{1, seconds_per_weight}, {2, seconds_per_weight}};
}

Prediction predicted(const PredictionInput& in) {
  Result<Prediction> out = predict(in);
  EXPECT_TRUE(out.ok()) << out.status().message();
  return std::move(out).value();
}

TEST(Predict, ResidentModelIsArithmetic) {
  PredictionInput in = input(64);
  in.prompt_tokens = 2000;  // reads all experts
  const Prediction out = predicted(in);
  // Four layers of 10 M dense weights and two experts of 30 M, and a head of 10 M, at 0.1 ns each.
  EXPECT_NEAR(out.plain.cycle_s, (4 * (1e7 + 2 * 3e7) + 1e7) * 1e-10, 1e-6);
  EXPECT_EQ(out.plain.stall_s, 0);
  EXPECT_LT(out.plain.bytes_per_token, 1e6);  // what the prompt left out is read in the background
  EXPECT_EQ(out.hit_rate, 1);
  EXPECT_EQ(out.plain.bottleneck, Bottleneck::kMemory);
  EXPECT_EQ(out.best.tokens_per_s, out.plain.tokens_per_s);
}

TEST(Predict, NothingResidentWaitsForEveryByte) {
  PredictionInput in = input(2);
  in.machine.kernels[0].experts = {{1, 1e-14}, {2, 1e-14}};
  const Prediction out = predicted(in);
  // Eight experts a token, nearly all of them read.
  EXPECT_GT(out.plain.bytes_per_token, 7 * 30e6);
  EXPECT_GT(out.plain.stall_s, 7 * 30e6 / 1e9);
  EXPECT_LT(out.plain.stall_s, 9 * 30e6 / 0.5e9);
  EXPECT_EQ(out.plain.bottleneck, Bottleneck::kDisk);
}

TEST(Predict, MoreSlotsAreFaster) {
  double before = 0;
  for (int slots = 4; slots <= 64; slots += 12) {
    const Result<SpeedPrediction> out = predict_speed(input(slots));
    ASSERT_TRUE(out.ok());
    EXPECT_GT(out->tokens_per_s, before) << slots;
    before = out->tokens_per_s;
  }
}

TEST(Predict, TheSameAgain) {
  PredictionInput in = input(20);
  in.draft = model(1, 4, 1);
  in.text.acceptance = 0.9;
  EXPECT_EQ(predicted(in).best.tokens_per_s, predicted(in).best.tokens_per_s);
}

TEST(Predict, DraftPaysWhenItAgreesAndNotWhenItDoesNot) {
  PredictionInput in = input(8);
  in.draft = model(1, 4, 1);
  in.text.acceptance = 0.98;
  const Prediction good = predicted(in);
  EXPECT_FALSE(good.best.depth.has_value());
  EXPECT_GT(good.best.drafted_per_cycle, 2);
  EXPECT_GT(good.best.tokens_per_s, 1.2 * good.plain.tokens_per_s);
  ASSERT_EQ(good.by_depth.size(), 8U);
  EXPECT_EQ(good.by_depth.back().depth, 64);
  in.text.acceptance = 0.1;
  const Prediction bad = predicted(in);
  EXPECT_LT(bad.best.drafted_per_cycle, 0.5);
  in.depth = 4;
  const Prediction asked = predicted(in);
  EXPECT_EQ(asked.best.depth, 4);
  EXPECT_LT(asked.best.tokens_per_s, asked.plain.tokens_per_s);
}

TEST(Predict, AcceptanceMakesTheTokensOfACycle) {
  PredictionInput in = input(64);
  in.draft = model(1, 4, 1);
  in.generated_tokens = 256;
  in.text.acceptance = 0.5;
  in.depth = 4;
  EXPECT_NEAR(predicted(in).best.tokens_per_cycle, 1 + .5 + .25 + .125 + .0625, 0.1);
  in.text.acceptance = 1;
  EXPECT_NEAR(predicted(in).best.tokens_per_cycle, 5, 0.1);
}

// What a draft foresees is read while it drafts.
TEST(Predict, ADraftThatForeseesWaitsLess) {
  PredictionInput in = input(24);
  in.draft = model(4, 16, 2);
  in.text.acceptance = 0.95;
  in.depth = 2;
  const double blind = predicted(in).best.stall_s;
  in.foreseen = true;
  EXPECT_LT(predicted(in).best.stall_s, 0.8 * blind);
}

TEST(Predict, ReadingSlowsComputing) {
  PredictionInput in = input(16);
  const double alone = predicted(in).plain.compute_s;
  in.machine.compute_slowdown_while_reading = 2;
  const double beside = predicted(in).plain.compute_s;
  EXPECT_GT(beside, 1.05 * alone);
  EXPECT_LE(beside, 2 * alone);
}

TEST(Predict, PromptIsReadOnceWhateverItsLength) {
  PredictionInput in = input(8);
  in.prompt_tokens = 1000;
  set_kernels(in, 1e-14);
  const double once = predicted(in).ttft_s;
  in.prefill_tokens = 100;
  const double often = predicted(in).ttft_s;
  EXPECT_GE(once, 60 * 30e6 / 1e9);
  EXPECT_GT(often, 3 * once);
}

// A model of many layers is replayed in part, here by as many as the other one has: all of it is in the figures.
TEST(Predict, ManyLayersAreInThePredictionWhole) {
  PredictionInput in = input(8 * 32);
  in.target = model(8, 128, 8);
  in.target.head.weights = 0;
  in.generated_tokens = 32;
  const Prediction few = predicted(in);
  in.target = model(24, 128, 8);
  in.target.head.weights = 0;
  in.slots = 24 * 32;
  const Prediction many = predicted(in);
  EXPECT_NEAR(few.plain.demanded, 8 * 8, 1e-9);
  EXPECT_NEAR(many.plain.demanded, 24 * 8, 1e-9);
  EXPECT_NEAR(many.plain.cycle_s / few.plain.cycle_s, 3, 1e-6);
  EXPECT_NEAR(many.plain.bytes_per_token / few.plain.bytes_per_token, 3, 1e-6);
  EXPECT_NEAR(many.ttft_s / few.ttft_s, 3, 1e-6);
  EXPECT_EQ(many.hit_rate, few.hit_rate);
}

TEST(Predict, ADenseModelIsArithmeticAlone) {
  PredictionInput in = input(0);
  in.target = model(4, 0, 0);
  for (LayerWork& layer : in.target.layers) layer.expert.clear();
  in.draft = in.target;
  in.draft->layers.resize(1);
  in.text.acceptance = 0.9;
  in.depth = 3;
  const Prediction out = predicted(in);
  EXPECT_NEAR(out.plain.cycle_s, 5e7 * 1e-10, 1e-7);
  EXPECT_NEAR(out.best.tokens_per_cycle, 1 + .9 + .81 + .729, 1e-9);
  EXPECT_NEAR(out.best.cycle_s, 3 * 2e7 * 1e-10 + 5e7 * 2.5e-10, 1e-7);
  EXPECT_GT(out.ttft_s, 0);
  in.depth.reset();
  EXPECT_GE(predicted(in).best.tokens_per_s, out.best.tokens_per_s * 0.999);
}

TEST(Predict, SkewIsFoundFromTheHitRateItMakes) {
  PredictionInput in = input(20);
  for (const double skew : {0.3, 1.0, 3.0}) {
    in.text.skew = skew;
    const double rate = predicted(in).hit_rate;
    in.text.skew = kDefaultSkew;
    const Result<std::optional<double>> found = skew_from_hit_rate(in, rate, 20, 1);
    ASSERT_TRUE(found.ok() && found->has_value());
    EXPECT_NEAR(**found, skew, 0.1 * skew + 0.02);
  }
  const Result<std::optional<double>> all = skew_from_hit_rate(in, 1.0, 64, 1);
  ASSERT_TRUE(all.ok());
  EXPECT_FALSE(all->has_value());
}

TEST(Predict, RefusesTypesThatWereNotMeasured) {
  PredictionInput in = input(8);
  in.target.layers[2].expert[0].type = "iq1_s";
  const Result<Prediction> out = predict(in);
  ASSERT_FALSE(out.ok());
  EXPECT_NE(out.status().message().find("iq1_s"), std::string::npos);
}

TEST(WhatHelps, MemoryWhereItIsShortAndNothingWhereAllFits) {
  PredictionInput in = input(8);
  const Memory memory{64 + 8 * 30'000'000, 64, 30'000'000, 64};
  const Prediction now = predicted(in);
  const std::vector<Suggestion> helps = what_helps(in, memory, now.best);
  ASSERT_FALSE(helps.empty());
  for (size_t i = 0; i < helps.size(); ++i) {
    EXPECT_GT(helps[i].tokens_per_s, now.best.tokens_per_s);
    EXPECT_LE(helps[i].tokens_per_s, helps[i > 0 ? i - 1 : 0].tokens_per_s);
  }
  EXPECT_NE(helps.front().what.find("all experts"), std::string::npos);
}

}  // namespace
}  // namespace drafthorse
