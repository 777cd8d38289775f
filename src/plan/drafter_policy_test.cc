#include "plan/drafter_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "plan/testing/worlds.h"

namespace drafthorse {
namespace {

using namespace worlds;  // NOLINT: a test's vocabulary

// Verification costs the same whoever drafts.
constexpr World drafts(World drafter, World verification) {
  drafter.base = verification.base;
  drafter.slope = verification.slope;
  drafter.missing = verification.missing;
  drafter.missing_factor = verification.missing_factor;
  drafter.stall = verification.stall;
  return drafter;
}

const World kInMemory{};
const World kStreaming{.base = 0.4, .slope = 0.05, .missing = 20, .missing_factor = 0.8, .stall = 0.03};
const World kGoodModel{.acceptance = 0.9, .draft = 0.1};
const World kFairModel{.acceptance = 0.75, .draft = 0.15};
const World kItself{.acceptance = 0.7, .draft = 0.4};
const World kHopeless{.acceptance = 0.05, .draft = 0.8};
const World kRepeats{.acceptance = 0.95, .draft = 0, .speaks = 0.9};
const World kSeldomRepeats{.acceptance = 0.5, .draft = 0, .speaks = 0.1};

struct Regime {
  std::string name;
  World verification;
  std::vector<World> before;
  std::vector<World> after;
  double least_against_best = 0.95;  // of the best single drafter at its best depth, on average
  int change_at = kNever;
  int length = 400;
};

class DrafterPolicyRegimes : public ::testing::TestWithParam<Regime> {};

TEST_P(DrafterPolicyRegimes, FindsTheBestAndLosesLittle) {
  const Regime& regime = GetParam();
  std::vector<PolicyDrafter> drafters;
  std::vector<World> before;
  std::vector<World> after;
  for (size_t i = 0; i < regime.before.size(); ++i) {
    drafters.push_back({"drafter " + std::to_string(i)});
    before.push_back(drafts(regime.before[i], regime.verification));
    after.push_back(drafts((regime.after.empty() ? regime.before : regime.after)[i], regime.verification));
  }
  constexpr int kTexts = 40;
  double against_best = 0;
  double worst_against_none = 1e9;
  for (uint64_t seed = 1; seed <= kTexts; ++seed) {
    Text text(before, after, regime.change_at, regime.length, seed);
    DrafterPolicy policy(drafters, kMaxDepth);
    const double rate = text.rate(policy);
    double best = text.rate(0);
    for (int i = 0; i < static_cast<int>(before.size()); ++i) {
      best = std::max(best, text.rate(text.best_fixed_depth(i), i));
    }
    against_best += rate / best / kTexts;
    worst_against_none = std::min(worst_against_none, rate / text.rate(0));
  }
  RecordProperty("against_best", std::to_string(against_best));
  RecordProperty("worst_against_none", std::to_string(worst_against_none));
  EXPECT_GE(against_best, regime.least_against_best);
  EXPECT_GE(worst_against_none, 0.97);
}

INSTANTIATE_TEST_SUITE_P(
    Worlds, DrafterPolicyRegimes,
    ::testing::Values(
        Regime{"one_is_good", kInMemory, {kHopeless, kGoodModel}, {}},
        Regime{"the_first_is_good", kInMemory, {kGoodModel, kHopeless}, {}},
        Regime{"good_and_better", kStreaming, {kFairModel, kGoodModel, kItself}, {}, 0.93, kNever, 800},
        Regime{"none_is_good", kInMemory, {kHopeless, kHopeless}, {}},
        Regime{"three_are_useless", kInMemory, {kHopeless, kItself, kSeldomRepeats}, {}, 0.93},
        Regime{"useless_while_streaming", kStreaming, {kHopeless, kSeldomRepeats}, {}},
        Regime{"repeats_beside_itself", kStreaming, {kRepeats, kItself}, {}, 0.95, kNever, 800},
        // Who takes turns is better than either alone.
        Regime{
            "repeats_now_and_then", kStreaming, {kGoodModel, {.acceptance = 0.97, .draft = 0, .speaks = 0.4}}, {}, 1.0},
        Regime{"they_swap", kStreaming, {kGoodModel, kHopeless}, {kHopeless, kGoodModel}, 1.05, 300, 800},
        Regime{"the_text_begins_to_repeat", kStreaming, {kSeldomRepeats, kItself}, {kRepeats, kItself}, 1.0, 300, 800},
        Regime{"the_text_stops_repeating",
               kStreaming,
               {kRepeats, kHopeless},
               {kSeldomRepeats, kHopeless},
               0.97,
               300,
               800}),
    [](const auto& one) { return one.param.name; });

// However many there are, looking at useless ones costs at most 3 %.
TEST(DrafterPolicy, ManyUselessDraftersCostLittle) {
  constexpr int kDrafters = 5;
  constexpr int kLength = 3000;
  const std::vector<World> all(kDrafters, kHopeless);
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Text text(all, all, kNever, kLength, seed);
    DrafterPolicy policy(std::vector<PolicyDrafter>(kDrafters, {"hopeless"}), kMaxDepth);
    const double rate = text.rate(policy);
    // Each is looked at all the same.
    for (int i = 0; i < kDrafters; ++i) EXPECT_GE(text.drafted_by[i], 2) << seed << ", drafter " << i;
    EXPECT_GE(rate / text.rate(0), 0.97) << seed;
  }
}

TEST(DrafterPolicy, AsksNobodyBeyondTheirRoom) {
  std::mt19937_64 random(3);
  DrafterPolicy policy({{"a"}, {"b"}, {"c"}}, kMaxDepth);
  policy.prime(1, {20, 24, {}});
  for (int i = 0; i < 500; ++i) {
    std::vector<int> rooms;
    for (int drafter = 0; drafter < 3; ++drafter) rooms.push_back(static_cast<int>(random() % 20) - 5);
    for (int& room : rooms) room = std::max(room, 0);
    const DraftChoice choice = policy.next(rooms);
    ASSERT_GE(choice.depth, 0);
    ASSERT_LE(choice.depth, std::min(kMaxDepth, rooms[choice.drafter]));
    // It may say less than it was asked for.
    const int depth = static_cast<int>(random() % static_cast<uint64_t>(choice.depth + 1));
    policy.observe({depth, depth / 2, 0.01 * depth, 1.0, 0, {}});
    EXPECT_NE(policy.explain().find("depth "), std::string::npos);
  }
}

TEST(DrafterPolicy, TheFirstCycleIsPlainAndAPromptSavesTheFirstTry) {
  DrafterPolicy policy({{"a"}, {"b"}}, kMaxDepth);
  policy.prime(0, {0, 24, {}});
  EXPECT_EQ(policy.next(std::vector{8, 8}).depth, 0);
  policy.observe({0, 0, 0, 1, 0, {}});
  const DraftChoice second = policy.next(std::vector{8, 8});
  EXPECT_EQ(second.drafter, 1);
  EXPECT_EQ(second.depth, 2);
}

// A drafter whose words can be held against the text needs nobody to verify them.
TEST(DrafterPolicy, HindsightTeachesForNothing) {
  DrafterPolicy policy({{"a"}, {"b"}}, kMaxDepth);
  const std::vector<int> rooms = {8, 8};
  for (int i = 0; i < 20; ++i) {
    const DraftChoice choice = policy.next(rooms);
    ASSERT_NE(choice.drafter == 1 ? choice.depth : 0, 2) << "needed no first try";
    if (choice.depth == 0 || choice.drafter != 0) policy.hindsight(0, 1, 0);
    policy.hindsight(1, 1, 1);
    policy.observe({choice.depth, 0, 0.5 * choice.depth, 1.0 + 0.1 * choice.depth, 0, {}});
    if (choice.drafter == 1 && choice.depth > 0) break;
  }
  EXPECT_GT(policy.policy(1).expected_tokens(1), 1.73);
  EXPECT_LT(policy.policy(0).expected_tokens(1), 1.6);
}

// The target as its own drafter is not even tried where its tokens cannot pay.
TEST(DrafterPolicy, TheTargetItselfIsKnownToCostWhatATokenCosts) {
  for (const bool itself : {false, true}) {
    DrafterPolicy policy({{"a draft", itself}}, kMaxDepth);
    EXPECT_EQ(policy.next(std::vector{8}).depth, 0);
    policy.observe({0, 0, 0, 1, 0, {}});
    EXPECT_EQ(policy.next(std::vector{8}).depth, itself ? 1 : 2);  // but a look, and a first try
  }
}

}  // namespace
}  // namespace drafthorse
