#include "expert/eviction.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace drafthorse {
namespace {

// --- what every policy must hold to

class EvictionConformance : public ::testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<EvictionPolicy> policy_ = make_eviction_policy(GetParam());
};

TEST_P(EvictionConformance, HasItsName) {
  ASSERT_NE(policy_, nullptr);
  EXPECT_EQ(policy_->name(), GetParam());
}

// The cache takes the least worth below infinity, so a worth that is not a finite number would lose a slot for good.
TEST_P(EvictionConformance, WorthIsPureAndFinite) {
  constexpr uint64_t kSeed = 21;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  std::mt19937_64 random(kSeed);
  const std::unique_ptr<EvictionPolicy> other = make_eviction_policy(GetParam());
  const int64_t tokens[] = {0, 1, 17, 100'000, 1'000'000'000'000};
  for (int i = 0; i < 5'000; ++i) {
    const int n_layers = 1 + static_cast<int>(random() % 100);
    const auto layer = [&] { return LayerId{static_cast<int>(random() % static_cast<uint64_t>(n_layers))}; };
    const ExpertKey key{layer(), ExpertId{static_cast<int>(random() % 512)}};
    const ExpertHistory history{static_cast<int64_t>(random() % 1'000'000) - 1,
                                i % 5 == 0 ? static_cast<double>(i % 2) : static_cast<double>(random() % 1001) / 1000,
                                tokens[random() % 5]};
    Forecast forecast(std::vector<int>(static_cast<size_t>(n_layers), 512));
    forecast.set({layer(), ExpertId{static_cast<int>(random() % 512)}}, static_cast<double>(random() % 1001) / 1000);
    const std::vector<int> held(static_cast<size_t>(n_layers), static_cast<int>(random() % 9));
    const std::vector<double> shares(static_cast<size_t>(n_layers), static_cast<double>(random() % 90) / 10);
    const EvictionContext context{layer(),
                                  n_layers,
                                  tokens[random() % 5],
                                  i % 2 == 0 ? &forecast : nullptr,
                                  1.0 + static_cast<double>(random() % 64),
                                  layer(),
                                  held,
                                  shares};
    const double worth = policy_->worth(key, history, context);
    ASSERT_TRUE(std::isfinite(worth));
    ASSERT_EQ(policy_->worth(key, history, context), worth);
    ASSERT_EQ(other->worth(key, history, context), worth);
  }
}

TEST_P(EvictionConformance, KnowsANewExpert) {
  for (const int64_t tokens : {int64_t{0}, int64_t{1000}}) {
    EXPECT_TRUE(std::isfinite(policy_->worth({LayerId{0}, ExpertId{0}}, {}, {LayerId{0}, 1, tokens})));
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, EvictionConformance, ::testing::ValuesIn(eviction_policy_names()),
                         [](const auto& one) {
                           std::string name = one.param;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

TEST(Eviction, UnknownNamesGiveNothing) {
  EXPECT_EQ(make_eviction_policy("belady"), nullptr);
  EXPECT_EQ(make_eviction_policy(""), nullptr);
  EXPECT_NE(make_eviction_policy(kDefaultEviction), nullptr);
}

// --- each policy's own

double worth(std::string_view policy, int layer, const ExpertHistory& history, const EvictionContext& context) {
  return make_eviction_policy(policy)->worth({LayerId{layer}, ExpertId{3}}, history, context);
}

TEST(Lru, TheLeastRecentlyTouchedGoes) {
  const EvictionContext context{LayerId{2}, 8, 50};
  double last = -std::numeric_limits<double>::infinity();
  for (const int64_t touch : {-1, 0, 1, 5, 1000}) {
    // Neither layer nor rate matters.
    const double now = worth("lru", static_cast<int>(touch + 1) % 8, {touch, touch > 3 ? 0.0 : 0.9, 10}, context);
    EXPECT_GT(now, last);
    last = now;
  }
}

TEST(Lfu, TheLeastUsedGoesAndUseIsForgotten) {
  const EvictionContext now{LayerId{2}, 8, 100};
  EXPECT_GT(worth("lfu", 0, {0, 0.5, 100}, now), worth("lfu", 5, {99, 0.3, 100}, now));
  // About 17 tokens halve it.
  const EvictionContext later{LayerId{2}, 8, 117};
  const double fresh = worth("lfu", 0, {0, 0.5, 117}, later);
  EXPECT_NEAR(worth("lfu", 0, {0, 0.5, 100}, later), fresh / 2, 0.01 * fresh);
  EXPECT_GT(worth("lfu", 0, {0, 0.3, 117}, later), worth("lfu", 0, {0, 0.5, 100}, later));
}

TEST(NextUse, TheLayerJustPassedGoesBeforeTheNextOne) {
  constexpr int kLayers = 8;
  const ExpertHistory history{10, 0.2, 50};
  for (int current = 0; current < kLayers; ++current) {
    const EvictionContext context{LayerId{current}, kLayers, 50};
    // In the order in which layers come up: each is worth less than the one before, the present layer least.
    double last = std::numeric_limits<double>::infinity();
    for (int ahead = 1; ahead <= kLayers; ++ahead) {
      const double now = worth("next-use", (current + ahead) % kLayers, history, context);
      EXPECT_LT(now, last) << "layer " << current << " + " << ahead;
      last = now;
    }
  }
}

TEST(NextUse, RateOutweighsDistance) {
  const EvictionContext context{LayerId{4}, 8, 50};
  // Used by every token, a layer behind; or by one in ten, in the next layer.
  EXPECT_GT(worth("next-use", 3, {0, 1.0, 50}, context), worth("next-use", 5, {0, 0.1, 50}, context));
  // Within a layer the rate decides, and a rate fades.
  EXPECT_GT(worth("next-use", 5, {0, 0.4, 50}, context), worth("next-use", 5, {0, 0.3, 50}, context));
  EXPECT_LT(worth("next-use", 5, {0, 0.4, 10}, context), worth("next-use", 5, {0, 0.3, 50}, context));
}

TEST(LruLayer, EachLayerLivesWithinItsShare) {
  const int held[] = {4, 2, 3};
  const double shares[] = {3, 3, 3};
  const auto of = [&](int layer, int64_t touch, int incoming) {
    return worth("lru-layer", layer, {touch, 0, 0},
                 {.layer = LayerId{0},
                  .n_layers = 3,
                  .incoming = LayerId{incoming},
                  .held_by_layer = held,
                  .share_by_layer = shares});
  };
  // A layer with its share gives up its own oldest, whatever is older elsewhere.
  EXPECT_LT(of(2, 100, 2), of(0, 1, 2));
  EXPECT_LT(of(2, 50, 2), of(2, 100, 2));
  // One with less than its share takes from one with more, never from one without.
  EXPECT_LT(of(0, 100, 1), of(1, 1, 1));
  EXPECT_LT(of(0, 100, 1), of(2, 1, 1));
}

TEST(StaleFirst, WhatIsAheadStays) {
  const EvictionContext context{LayerId{4}, 8, 50};
  EXPECT_LT(worth("stale-first", 2, {90, 1, 50}, context), worth("stale-first", 6, {1, 0, 50}, context));
  EXPECT_LT(worth("stale-first", 2, {10, 1, 50}, context), worth("stale-first", 1, {20, 0, 50}, context));
  EXPECT_LT(worth("stale-first", 6, {10, 1, 50}, context), worth("stale-first", 5, {20, 0, 50}, context));
}

TEST(Activation, UsedAndEarlyStay) {
  const EvictionContext context{LayerId{4}, 8, 50};
  EXPECT_GT(worth("activation", 3, {0, 0.5, 50}, context), worth("activation", 3, {9, 0.2, 50}, context));
  EXPECT_GT(worth("activation", 1, {0, 0.5, 50}, context), worth("activation", 6, {9, 0.5, 50}, context));
}

TEST(Circle, TheOneJustUsedGoes) {
  const EvictionContext context{LayerId{4}, 8, 50};
  EXPECT_LT(worth("circle", 4, {20, 0.9, 50}, context), worth("circle", 4, {10, 0.1, 50}, context));
  EXPECT_LT(worth("circle", 4, {10, 0.9, 50}, context), worth("circle", 3, {9, 0.1, 50}, context));
  EXPECT_LT(worth("circle", 3, {1 << 30, 0.9, 50}, context), worth("circle", 2, {1, 0.1, 50}, context));
  EXPECT_LT(worth("circle", 0, {1, 0.9, 50}, context), worth("circle", 5, {1 << 30, 0.1, 50}, context));
}

TEST(Spread, LayersKeepAlikeAndWithinALayerTheLikelyStay) {
  const int kept[] = {5, 7, 4, 4, 4, 6};
  EvictionContext context{.layer = LayerId{4}, .n_layers = 6, .tokens = 50, .window = 16, .kept_by_layer = kept};
  context.mean_kept = 5;
  const ExpertHistory rare{1, 0.01, 50};
  const ExpertHistory common{1 << 30, 0.9, 50};
  // Who keeps more gives, however likely its experts are to be used.
  EXPECT_LT(worth("spread", 1, common, context), worth("spread", 5, rare, context));
  EXPECT_LT(worth("spread", 5, common, context), worth("spread", 4, rare, context));
  // No more than the mean is no more than any other: the layer that comes up last gives, the least likely of it.
  EXPECT_LT(worth("spread", 4, common, context), worth("spread", 3, rare, context));
  EXPECT_LT(worth("spread", 2, common, context), worth("spread", 0, rare, context));
  EXPECT_LT(worth("spread", 4, rare, context), worth("spread", 4, common, context));
  // Half an expert more or less is none.
  context.mean_kept = 5.5;
  EXPECT_LT(worth("spread", 4, common, context), worth("spread", 5, rare, context));
}

// Of a layer that is used as a whole those that stay are not neighbours.
TEST(Spread, TheOnesThatStayAreFarApart) {
  constexpr int kExperts = 32;
  const EvictionContext context{.layer = LayerId{4}, .n_layers = 6, .tokens = 50, .window = 500};
  const auto policy = make_eviction_policy("spread");
  std::vector<std::pair<double, int>> by_worth;
  for (int e = 0; e < kExperts; ++e) {
    by_worth.emplace_back(policy->worth({LayerId{4}, ExpertId{e}}, {e, 0.5, 50}, context), e);
  }
  std::sort(by_worth.rbegin(), by_worth.rend());
  for (const int stay : {4, 8, 16, 24}) {
    std::vector<int> ids;
    for (int i = 0; i < stay; ++i) ids.push_back(by_worth[static_cast<size_t>(i)].second);
    std::sort(ids.begin(), ids.end());
    int widest = ids.front() + kExperts - ids.back();
    for (size_t i = 1; i < ids.size(); ++i) widest = std::max(widest, ids[i] - ids[i - 1]);
    EXPECT_LE(widest, 3 * kExperts / stay) << stay << " stay";
  }
}

TEST(DraftGuided, WhatTheWindowNeedsStays) {
  Forecast forecast(std::vector<int>(8, 8));
  EvictionContext context{LayerId{2}, 8, 50};
  const ExpertHistory rare{0, 0.02, 50};
  const ExpertHistory common{0, 0.4, 50};
  // Where nothing is forecast for the layer, popularity decides, and then who comes up first.
  const double unknown = worth("draft-guided", 5, rare, context);
  EXPECT_LT(unknown, worth("draft-guided", 6, common, context));
  EXPECT_GT(worth("draft-guided", 5, common, context), worth("draft-guided", 6, common, context));
  const double common_unknown = worth("draft-guided", 5, common, context);
  context.forecast = &forecast;
  EXPECT_EQ(worth("draft-guided", 5, rare, context), unknown);
  forecast.set({LayerId{5}, ExpertId{3}}, 0.95);
  EXPECT_GT(worth("draft-guided", 5, rare, context), worth("draft-guided", 6, common, context));
  // The more tokens a pass takes, the more it is worth to keep what is rare.
  EvictionContext deep = context;
  deep.window = 16;
  EXPECT_GT(worth("draft-guided", 7, rare, deep) / worth("draft-guided", 7, common, deep),
            worth("draft-guided", 7, rare, context) / worth("draft-guided", 7, common, context));
  // What is known of the next pass says more than popularity.
  const ExpertHistory again{.use_rate = 0.02, .rate_token = 50, .next_pass = 0.8};
  EXPECT_GT(worth("draft-guided", 7, again, context), worth("draft-guided", 7, common, context));
  // Known not to be needed now, even what is common can go.
  forecast.set({LayerId{5}, ExpertId{3}}, 0);
  EXPECT_LT(worth("draft-guided", 5, common, context), common_unknown);
}

// --- histories

TEST(UseRate, ConvergesToTheShareOfTokens) {
  for (const int64_t per_call : {1, 5, 20}) {
    for (const double share : {0.0, 0.2, 1.0}) {
      ExpertHistory history{.use_rate = 0.7};
      int64_t tokens = 0;
      int64_t used = 0;
      for (int i = 0; i < 2000; ++i) {
        const auto target = static_cast<int64_t>(share * static_cast<double>(tokens + per_call));
        record_uses(history, tokens, per_call, target - used);
        tokens += per_call;
        used = target;
      }
      EXPECT_NEAR(use_rate_at(history, tokens), share, 0.07) << per_call << " tokens per call";
      EXPECT_EQ(history.rate_token, tokens);
    }
  }
}

TEST(UseRate, CountsWhatPassedInBetween) {
  ExpertHistory history{.use_rate = 0.4, .rate_token = 10};
  record_uses(history, 20, 2, 1);
  const double kept = 1 - kUseRateGain;
  EXPECT_NEAR(history.use_rate, 0.4 * std::pow(kept, 12) + 0.5 * (1 - kept * kept), 1e-12);
  EXPECT_EQ(history.rate_token, 22);
}

TEST(UseRate, ManyTokensAtOnceAreAsOneByOne) {
  ExpertHistory at_once{.use_rate = 0.1, .rate_token = 40};
  ExpertHistory one_by_one = at_once;
  record_uses(at_once, 50, 6, 6);
  for (int64_t i = 0; i < 6; ++i) record_uses(one_by_one, 50 + i, 1, 1);
  EXPECT_NEAR(at_once.use_rate, one_by_one.use_rate, 1e-12);
  EXPECT_EQ(at_once.rate_token, one_by_one.rate_token);
}

// Not being told of tokens that did not use the expert must come to the same as being told.
TEST(UseRate, SilenceDecaysLikeNoUse) {
  ExpertHistory told{.use_rate = 0.6, .rate_token = 10};
  const ExpertHistory silent = told;
  record_uses(told, 10, 4, 0);
  record_uses(told, 14, 3, 0);
  EXPECT_NEAR(use_rate_at(told, 17), use_rate_at(silent, 17), 1e-12);
  EXPECT_NEAR(use_rate_at(silent, 17), 0.6 * std::pow(1 - kUseRateGain, 7), 1e-12);
  EXPECT_EQ(use_rate_at(silent, 10), 0.6);
  EXPECT_EQ(use_rate_at(silent, 5), 0.6);  // never grows, whatever it is asked
}

TEST(UseRate, StaysWithinZeroAndOne) {
  ExpertHistory history;
  std::mt19937_64 random(5);
  int64_t tokens = 0;
  for (int i = 0; i < 5000; ++i) {
    const auto count = static_cast<int64_t>(1 + random() % 9);
    record_uses(history, tokens, count, static_cast<int64_t>(random() % static_cast<uint64_t>(count + 1)));
    tokens += count;
    ASSERT_GE(history.use_rate, 0);
    ASSERT_LE(history.use_rate, 1);
  }
}

}  // namespace
}  // namespace drafthorse
