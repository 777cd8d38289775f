#include "plan/depth_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "plan/drafter_policy.h"
#include "plan/testing/worlds.h"

namespace drafthorse {
namespace {

using namespace worlds;  // NOLINT: a test's vocabulary

DrafterPolicy only_one() { return DrafterPolicy({{"draft"}}, kMaxDepth); }

const World kUseless{.acceptance = 0.2, .draft = 0.3, .base = 0.3, .slope = 0.7};
const World kUselessButCheap{.acceptance = 0.2, .draft = 0.15};
const World kUselessStreaming{
    .acceptance = 0.3, .draft = 0.2, .base = 0.2, .missing = 20, .missing_factor = 0.95, .stall = 0.04};
const World kGreatStreaming{
    .acceptance = 0.97, .draft = 0.05, .base = 0.3, .slope = 0.05, .missing = 20, .missing_factor = 0.7, .stall = 0.03};
const World kCheapDraft{.acceptance = 0.8, .draft = 0.02};
const World kMiddling{.acceptance = 0.7, .draft = 0.15, .base = 0.8, .slope = 0.2};
const World kFading{.acceptance = 0.85, .acceptance_factor = 0.93, .draft = 0.1, .base = 0.75, .slope = 0.25};
const World kMarginal{.acceptance = 0.5, .draft = 0.2, .base = 0.75, .slope = 0.25};
const World kWorthIt{.acceptance = 0.8, .draft = 0.2};
const World kNotWorthIt{.acceptance = 0.1, .draft = 0.2};

struct Regime {
  std::string name;
  World before;
  World after;
  int change_at = kNever;
  int length = 400;
};

class DepthPolicyRegimes : public ::testing::TestWithParam<Regime> {};

TEST_P(DepthPolicyRegimes, ComesCloseToTheBestFixedDepth) {
  const Regime& regime = GetParam();
  constexpr int kTexts = 40;
  double against_best = 0;
  double against_none = 0;
  double worst_against_none = 1e9;
  uint64_t worst_seed = 0;
  for (uint64_t seed = 1; seed <= kTexts; ++seed) {
    Text text(regime.before, regime.after, regime.change_at, regime.length, seed);
    DrafterPolicy policy = only_one();
    const double rate = text.rate(policy);
    against_best += rate / text.rate(text.best_fixed_depth()) / kTexts;
    const double ratio = rate / text.rate(0);
    against_none += ratio / kTexts;
    if (ratio < worst_against_none) {
      worst_against_none = ratio;
      worst_seed = seed;
    }
  }
  const Text text(regime.before, regime.after, regime.change_at, regime.length, 1);
  RecordProperty("against_best", std::to_string(against_best));
  SCOPED_TRACE(::testing::Message() << "best depth " << text.best_fixed_depth() << ", against depth 0 " << against_none
                                    << ", worst with seed " << worst_seed);
  EXPECT_GE(against_best, 0.95);
  EXPECT_GE(worst_against_none, 0.97);
}

INSTANTIATE_TEST_SUITE_P(Worlds, DepthPolicyRegimes,
                         ::testing::Values(Regime{"useless", kUseless, kUseless},
                                           Regime{"useless_but_cheap", kUselessButCheap, kUselessButCheap},
                                           Regime{"useless_streaming", kUselessStreaming, kUselessStreaming},
                                           Regime{"great_streaming", kGreatStreaming, kGreatStreaming},
                                           Regime{"cheap_draft", kCheapDraft, kCheapDraft},
                                           Regime{"middling", kMiddling, kMiddling}, Regime{"fading", kFading, kFading},
                                           Regime{"marginal", kMarginal, kMarginal},
                                           Regime{"acceptance_drops", kWorthIt, kNotWorthIt, 300, 800},
                                           Regime{"acceptance_rises", kNotWorthIt, kWorthIt, 300, 800},
                                           Regime{"streaming_drops", kGreatStreaming, kUselessStreaming, 300, 800}),
                         [](const auto& one) { return one.param.name; });

// What a prompt of 24 scored positions shows of a world.
PromptObservation prompt_of(const World& world, uint64_t seed) {
  std::mt19937_64 random(seed);
  PromptObservation prompt;
  prompt.positions = 24;
  prompt.agreed = std::binomial_distribution<int>(prompt.positions, world.acceptance)(random);
  for (int n = 1; n <= kMaxDepth + 1; ++n) prompt.distinct_by_window.push_back(1.5 * world.missing_of(n));
  return prompt;
}

// On short texts the opening decides: knowing the prompt must help where drafting pays and cost little where not.
TEST(DepthPolicy, ThePromptShortensTheOpening) {
  constexpr int kTexts = 200;
  constexpr int kLength = 64;
  const auto mean_ratio = [&](const World& world, bool primed, bool to_best) {
    double sum = 0;
    for (uint64_t seed = 1; seed <= kTexts; ++seed) {
      Text text(world, world, kNever, kLength, seed);
      DrafterPolicy policy = only_one();
      if (primed) policy.prime(0, prompt_of(world, seed));
      const double rate = text.rate(policy);
      sum += rate / text.rate(to_best ? text.best_fixed_depth() : 0);
    }
    return sum / kTexts;
  };
  EXPECT_GE(mean_ratio(kGreatStreaming, true, true), 0.8);
  EXPECT_GE(mean_ratio(kGreatStreaming, true, true), mean_ratio(kGreatStreaming, false, true) + 0.03);
  EXPECT_GE(mean_ratio(kCheapDraft, true, true), 0.9);
  EXPECT_GE(mean_ratio(kUseless, true, false), 0.95);
  EXPECT_GE(mean_ratio(kUselessStreaming, true, false), 0.95);
}

// A cache that is empty when the text begins and fills up: what longer windows cost at first says little of what they
// cost later, when only single tokens have been looked at.
TEST(DepthPolicy, WhatWasSeenWithAnEmptyCacheDoesNotKeepItFromDrafting) {
  const World warm{
      .acceptance = 0.8, .draft = 0.12, .base = 0.5, .slope = 0.1, .missing = 1, .missing_factor = 0.95, .stall = 0.1};
  World cold = warm;
  cold.missing = 12;
  constexpr int kTexts = 200;
  constexpr int kLength = 96;
  double against_best = 0;
  double worst_against_none = 1e9;
  for (uint64_t seed = 1; seed <= kTexts; ++seed) {
    Text text(cold, warm, 12, kLength, seed);
    DrafterPolicy policy = only_one();
    policy.prime(0, prompt_of(cold, seed));
    const double rate = text.rate(policy);
    against_best += rate / text.rate(text.best_fixed_depth()) / kTexts;
    worst_against_none = std::min(worst_against_none, rate / text.rate(0));
  }
  EXPECT_GE(against_best, 0.915);
  EXPECT_GE(worst_against_none, 0.91);
}

// Windows that were seen lately need no comparing with single tokens of long ago: one cycle without a draft, after many
// with one in which the cache has changed, does not turn what is known of them over.
TEST(DepthPolicy, OneUndraftedCycleAfterManyDraftedOnesChangesLittle) {
  constexpr double kStall = 0.1;
  for (const auto& [first, last] : {std::pair(12, 1), std::pair(1, 10)}) {
    SCOPED_TRACE(::testing::Message() << first << " to " << last);
    DepthPolicy policy(8);
    const auto observe = [&](int depth, int missing) {
      std::vector<int64_t> by_prefix;
      for (int n = 1; n <= depth + 1; ++n) by_prefix.push_back(int64_t{missing} * n);
      const double stall = kStall * static_cast<double>(by_prefix.back());
      policy.observe({depth, depth, 0.1 * depth, 0.5 + 0.1 * depth + stall, stall, by_prefix});
    };
    observe(0, first);
    for (int i = 0; i < 60; ++i) observe(i % 2 == 0 ? 3 : 6, last);
    const double before = policy.expected_seconds(4);
    EXPECT_NEAR(before, 0.4 + 0.9 + kStall * 5 * last, 0.15 * before);
    observe(0, last);
    EXPECT_NEAR(policy.expected_seconds(4), before, 0.1 * before);
  }
}

// After a change it must do better than any depth that never changes, and find back when it changes again.
TEST(DepthPolicy, FollowsChanges) {
  for (const bool rises : {false, true}) {
    SCOPED_TRACE(rises ? "rises" : "drops");
    double gain = 0;
    constexpr int kTexts = 20;
    for (uint64_t seed = 1; seed <= kTexts; ++seed) {
      Text text(rises ? kNotWorthIt : kWorthIt, rises ? kWorthIt : kNotWorthIt, 300, 800, seed);
      DrafterPolicy policy = only_one();
      gain += text.rate(policy) / text.rate(text.best_fixed_depth()) / kTexts;
    }
    EXPECT_GE(gain, 1.03);
  }
}

TEST(DepthPolicy, PredictsWhatItHasSeen) {
  const World world = kGreatStreaming;
  DepthPolicy policy(8);
  Text text(world, world, kNever, 3000, 7);
  std::mt19937_64 random(7);
  text.rate(
      [&](const std::vector<int>&) {
        return DraftChoice{0, static_cast<int>(random() % 9)};
      },
      [&](const CycleObservation& cycle) { policy.observe(cycle); });
  for (int depth = 0; depth <= 8; ++depth) {
    EXPECT_NEAR(policy.expected_seconds(depth) / world.seconds(depth), 1, 0.15) << depth;
    EXPECT_NEAR(policy.expected_tokens(depth) / world.tokens(depth), 1, 0.2) << depth;
  }
}

TEST(DepthPolicy, StaysWithinRoomAndMaximum) {
  for (const int max_depth : {0, 1, 3, kMaxDepth}) {
    DrafterPolicy policy({{"draft"}}, max_depth);
    std::mt19937_64 random(3);
    for (int i = 0; i < 300; ++i) {
      const int room = static_cast<int>(random() % 20);
      const int depth = policy.next(std::vector{room}).depth;
      ASSERT_GE(depth, 0);
      ASSERT_LE(depth, std::min(room, max_depth));
      // Every other cycle as a dense model reports it.
      const std::vector<int64_t> missing(i % 2 == 0 ? static_cast<size_t>(depth) + 1 : 0, 3);
      policy.observe({depth, depth, 0.01 * depth, 1.0, 0.2, missing});
      EXPECT_FALSE(policy.explain().empty());
      EXPECT_TRUE(std::isfinite(policy.policy(0).expected_seconds(max_depth)));
    }
  }
}

// A draft in vain costs the target that drafts as much as its text would: it feels its way. Another model is cheap to
// try.
TEST(DepthPolicy, TheTargetItselfGoesDeeperByTwos) {
  for (const bool itself : {true, false}) {
    DepthPolicy policy(kMaxDepth, itself);
    for (const int depth : {2, 4}) {
      for (int i = 0; i < 8; ++i) policy.observe({depth, depth, 0.01 * depth, 1.0, 0, {}});
      EXPECT_EQ(policy.best_depth(), std::min(kMaxDepth, (itself ? 2 : 4) * depth)) << itself << " after " << depth;
    }
  }
}

// Clocks may show nothing for very small models.
TEST(DepthPolicy, SurvivesZeroTimes) {
  DrafterPolicy policy({{"draft"}}, 4);
  for (int i = 0; i < 50; ++i) {
    const int depth = policy.next(std::vector{4}).depth;
    policy.observe({depth, 0, 0, 0, 0, {}});
    ASSERT_TRUE(std::isfinite(policy.policy(0).expected_seconds(4)));
  }
}

}  // namespace
}  // namespace drafthorse
