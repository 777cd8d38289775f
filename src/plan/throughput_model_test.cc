#include "plan/throughput_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "plan/compute_time.h"

namespace drafthorse {
namespace {

MachineProfile machine() {
  MachineProfile profile;
  profile.ram_bytes_per_s = 10e9;
  profile.attention_s_per_key_float = 1e-10;
  profile.kernels = {{"q8_0", 1.0, {{1, 1e-10}, {4, 2e-10}, {64, 32e-10}}, {{1, 1e-10}, {4, 1.5e-10}, {64, 30e-10}}}};
  return profile;
}

ModelWork work(int layers, int experts, int used) {
  ModelWork out;
  for (int i = 0; i < layers; ++i) out.layers.push_back({{{"q8_0", 1e7}}, {{"q8_0", 3e7}}, experts});
  out.head = {"q8_0", 1e7};
  out.n_expert_used = used;
  out.n_embd = 1024;
  out.attention_width = 1024;
  out.expert_bytes = 30'000'000;
  return out;
}

TEST(ModelCost, IsTheProfilesArithmetic) {
  const Result<ModelCost> cost = model_cost(machine(), work(4, 16, 16), {.skew = 0, .kv_bytes_per_key = 4 * 8192});
  ASSERT_TRUE(cost.ok());
  EXPECT_EQ(cost->moe_layers(), 4);
  // 64 tokens, all experts used by each.
  const PassSeconds seconds = pass_seconds(*cost, {.tokens = 64, .token_keys = 6400, .keys = 100, .heads = 4});
  EXPECT_NEAR(seconds.dense, 4 * 1e7 * 32e-10, 1e-9);
  EXPECT_NEAR(seconds.experts, 4 * 16 * 3e7 * 30e-10, 1e-9);
  EXPECT_NEAR(seconds.head, 1e7 * 2e-10, 1e-12);
  EXPECT_NEAR(seconds.attention, 4 * 6400 * 1024 * 1e-10, 1e-9);
  // Few tokens over much KV: what reading takes.
  EXPECT_NEAR(pass_seconds(*cost, {.tokens = 1, .token_keys = 10, .keys = 1e6, .heads = 1}).attention,
              4 * 1e6 * 8192 / 10e9, 1e-9);
  EXPECT_EQ(pass_seconds(*cost, {}).total(), 0);
}

TEST(ModelCost, RefusesTypesThatWereNotMeasured) {
  ModelWork model = work(2, 4, 1);
  model.layers[1].expert[0].type = "iq1_s";
  const Result<ModelCost> cost = model_cost(machine(), model, {});
  ASSERT_FALSE(cost.ok());
  EXPECT_NE(cost.status().message().find("iq1_s"), std::string::npos);
}

TEST(ModelCost, AssumedOnesHaveTheRightShape) {
  const ModelCost cost = assumed_model_cost(work(4, 16, 2), {.kv_bytes_per_key = 16384});
  double before = 0;
  double each = 1e18;
  for (const double sequences : {1, 2, 8, 32, 128, 512}) {
    const double seconds = pass_seconds(cost, window_work(sequences, 1, 100)).total();
    EXPECT_GT(seconds, before);
    EXPECT_LT(seconds / sequences, each);  // together cheaper than apart
    before = seconds;
    each = seconds / sequences;
  }
}

TEST(ExpertShares, AddUpAndFallFasterWithMoreSkew) {
  for (const auto& [experts, used] : {std::pair(16, 2), std::pair(128, 8), std::pair(4, 4), std::pair(8, 7)}) {
    for (const double skew : {0.0, 1.0, 4.0, 12.0}) {
      const std::vector<double> p = expert_shares(experts, used, skew);
      EXPECT_NEAR(std::accumulate(p.begin(), p.end(), 0.0), used, 1e-9);
      for (size_t i = 1; i < p.size(); ++i) EXPECT_LE(p[i], p[i - 1]);
      EXPECT_LE(p[0], 1.0);
    }
  }
}

// Against drawing tokens: the mean of distinct experts, and their cost, where every expert is drawn on its own.
TEST(ModelCost, ExpertsAreExpectations) {
  constexpr int kDraws = 20000;
  // Weights are read for the first rows, and then multiplied long enough to hide it.
  const CostCurve expert({{1, 3}, {4, 3.5}, {8, 8}});
  const std::vector<double> popularity = expert_shares(8, 2, 3);
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const int tokens = 1 + static_cast<int>(random() % 24);
    double used = 0;
    double seconds = 0;
    for (int draw = 0; draw < kDraws; ++draw) {
      for (size_t i = 0; i < popularity.size(); ++i) {
        const int rows = std::binomial_distribution<int>(tokens, popularity[i])(random);
        if (rows == 0) continue;
        used += 1.0 / kDraws;
        seconds += expert.at(rows) / kDraws;
      }
    }
    EXPECT_NEAR(experts_used(popularity, tokens), used, 0.05);
    EXPECT_NEAR(ExpertRows(popularity, tokens).seconds(expert) / seconds, 1, 0.02);
  }
}

// Against passes of which each keeps the experts used last.
TEST(ModelCost, WhatWasUsedLastIsNotLoaded) {
  constexpr int kPasses = 20000;
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const int experts = 8 << (random() % 3);
    const double tokens = static_cast<double>(1 + random() % 30);
    const int resident = static_cast<int>(random() % static_cast<uint64_t>(experts));
    const std::vector<double> popularity = expert_shares(experts, experts / 8, std::array{0.0, 2.2, 3.8}[seed % 3]);
    std::vector<std::pair<int, double>> last(static_cast<size_t>(experts));  // pass, and who comes first of one
    std::vector<bool> kept(last.size(), false);
    double loaded = 0;
    for (int pass = 1; pass <= kPasses; ++pass) {
      for (size_t i = 0; i < last.size(); ++i) {
        std::uniform_real_distribution<> uniform;
        if (uniform(random) > 1 - std::pow(1 - popularity[i], tokens)) continue;
        if (!kept[i]) loaded += 1.0 / kPasses;
        last[i] = {pass, uniform(random)};
      }
      auto order = last;
      std::sort(order.rbegin(), order.rend());
      for (size_t i = 0; i < last.size(); ++i) {
        kept[i] = resident > 0 && last[i] >= order[static_cast<size_t>(resident) - 1];
      }
    }
    // What is approximated: how far back residents go is taken to be the same at all times.
    EXPECT_NEAR(experts_loaded(popularity, tokens, resident), loaded, 0.1 * loaded + 0.05);
  }
}

TEST(ModelCost, WhereAllAreUsedAnyMayStay) {
  const std::vector<double> popularity = expert_shares(64, 8, 2.2);
  for (const double resident : {0.0, 1.5, 20.0, 63.0, 64.0, 70.0}) {
    EXPECT_NEAR(experts_loaded(popularity, 1e5, resident), std::max(0.0, 64 - resident), 1e-6);
  }
  // Some always used, others never: these are not loaded however many there is room for.
  const std::vector<double> some = {1, 1, 1, 0, 0};
  EXPECT_NEAR(experts_loaded(some, 1, 1), 2, 1e-6);
  EXPECT_EQ(experts_loaded(some, 1, 3), 0);
  EXPECT_EQ(experts_loaded(some, 0, 1), 0);
}

TEST(ModelCost, MoreResidentsNeverLoadMore) {
  const std::vector<double> popularity = expert_shares(128, 8, 3.8);
  for (const double tokens : {0.1, 1.0, 16.0, 1000.0}) {
    double before = experts_used(popularity, tokens);
    EXPECT_NEAR(experts_loaded(popularity, tokens, 0), before, 1e-9);
    for (double resident = 0.5; resident < 129; resident += 0.5) {
      const double loaded = experts_loaded(popularity, tokens, resident);
      EXPECT_LE(loaded, before + 1e-9);
      EXPECT_GE(loaded, 0);
      before = loaded;
    }
    EXPECT_EQ(before, 0);
  }
}

TEST(PassWork, CountsWhatEachTokenSees) {
  for (const int window : {1, 3, 7}) {
    for (const int keys : {0, 5, 100}) {
      double sees = 0;
      for (int i = 0; i < window; ++i) sees += keys + i + 1;
      const PassWork out = window_work(4, window, keys);
      EXPECT_DOUBLE_EQ(out.token_keys, 4 * sees);
      EXPECT_DOUBLE_EQ(out.tokens, 4 * window);
    }
  }
  EXPECT_DOUBLE_EQ(prompt_work(10, 10).token_keys, 55);
  const PassWork both = window_work(1, 1, 1) + prompt_work(10, 10);
  EXPECT_DOUBLE_EQ(both.tokens, 11);
  EXPECT_DOUBLE_EQ(both.heads, 1);
}

TEST(Regime, TurnsWhereTheRuleSays) {
  // n_exp / (n_act * miss rate) = 8 / (2 * 0.5) = 8.
  EXPECT_FALSE(streaming_pays(7, 1, 8, 2, 0.5));
  EXPECT_TRUE(streaming_pays(8, 1, 8, 2, 0.5));
  EXPECT_TRUE(streaming_pays(2, 4, 8, 2, 0.5));
  EXPECT_FALSE(streaming_pays(1000, 8, 8, 2, 0));
}

}  // namespace
}  // namespace drafthorse
