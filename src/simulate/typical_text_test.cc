#include "simulate/typical_text.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "simulate/testing/traces.h"

namespace drafthorse {
namespace {

constexpr int kTokens = 128;

RoutingTrace written(const TracedModel& model, const TextStatistics& statistics, TypicalText text = {}) {
  text.generated_tokens = kTokens;
  if (text.prompt_tokens == 0) text.prompt_tokens = 30;
  text.prefill_tokens = 4096;
  text.drafted = model.draft_layers > 0;
  return typical_text(model, statistics, text);
}

int committed(const TracedText& text) {
  int total = 0;
  for (const TracedCycle& cycle : text.cycles) total += cycle.committed;
  return total;
}

// Distinct experts of windows of so many tokens, mean over texts without a draft.
double distinct(const TracedModel& model, double skew, int window) {
  double total = 0;
  int count = 0;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    TypicalText text;
    text.seed = seed;
    const RoutingTrace trace = written(model, {.skew = skew}, text);
    const std::vector<TracedCycle>& cycles = trace.texts[0].cycles;
    for (size_t first = 0; first + static_cast<size_t>(window) <= cycles.size(); first += 4) {
      for (size_t layer = 0; layer < model.layers.size(); ++layer) {
        std::set<int32_t> seen;
        for (size_t t = first; t < first + static_cast<size_t>(window); ++t) {
          for (const ExpertId expert : cycles[t].used[layer]) seen.insert(index(expert));
        }
        total += static_cast<double>(seen.size());
        ++count;
      }
    }
  }
  return total / count;
}

TEST(TypicalText, UnionsGrowAsThoseOfTheDemoPairDo) {
  // Medians of 17 texts: 16 experts, two per token.
  const TracedModel model = small_model(4, 16, 2, 64, false);
  EXPECT_NEAR(distinct(model, kDefaultSkew, 2), 3.4, 0.2);
  EXPECT_NEAR(distinct(model, kDefaultSkew, 4), 5.3, 0.4);
  EXPECT_NEAR(distinct(model, kDefaultSkew, 8), 7.6, 0.6);
  EXPECT_NEAR(distinct(model, kDefaultSkew, 16), 9.5, 0.6);
}

TEST(TypicalText, LessSkewSpreadsWider) {
  const TracedModel model = small_model(4, 16, 2, 64, false);
  EXPECT_GT(distinct(model, 0, 8), distinct(model, 1, 8));
  EXPECT_GT(distinct(model, 1, 8), distinct(model, 3, 8));
  // Evenly: 16 (1 - (7/8)^8).
  EXPECT_NEAR(distinct(model, 0, 8), 10.5, 0.3);
}

TEST(TypicalText, EveryTokenUsesSoManyDistinctExperts) {
  TracedModel model = small_model(3, 40, 5, 64, true);
  model.layers[1].experts = 0;  // a dense layer
  const RoutingTrace trace = written(model, {.acceptance = 0.8});
  EXPECT_EQ(committed(trace.texts[0]), kTokens);
  for (const TracedCycle& cycle : trace.texts[0].cycles) {
    ASSERT_EQ(cycle.used.size(), 3U);
    EXPECT_TRUE(cycle.used[1].empty());
    ASSERT_EQ(cycle.used[0].size(), static_cast<size_t>(cycle.tokens) * 5);
    for (int t = 0; t < cycle.tokens; ++t) {
      std::set<int32_t> seen;
      for (int k = 0; k < 5; ++k) seen.insert(index(cycle.used[2][static_cast<size_t>(t * 5 + k)]));
      EXPECT_EQ(seen.size(), 5U);
      EXPECT_LT(*seen.rbegin(), 40);
    }
  }
}

TEST(TypicalText, GatesAreRightAsOftenAsTheirNoiseLets) {
  const TracedModel model = small_model(4, 16, 2, 64, false);
  const RoutingTrace trace = written(model, {});
  double right[2] = {};
  double seen = 0;
  for (const TracedCycle& cycle : trace.texts[0].cycles) {
    for (const TracedScore& score : cycle.scores) {
      ASSERT_EQ(score.source, ScoreSource::kNextGate);
      ASSERT_EQ(index(score.at), index(score.layer) - 1);
      const std::vector<ExpertId>& used = cycle.used[static_cast<size_t>(index(score.layer))];
      for (size_t rank = 0; rank < 2; ++rank) {
        right[rank] += std::count(used.begin(), used.end(), score.ranked[rank]) > 0 ? 1 : 0;
      }
      ++seen;
    }
  }
  EXPECT_EQ(seen, 3 * kTokens);
  EXPECT_NEAR(right[0] / seen, 0.62, 0.06);
  EXPECT_NEAR(right[1] / seen, 0.41, 0.06);
}

TEST(TypicalText, ADraftIsRightAsOftenAsSaidAndForesees) {
  const TracedModel model = small_model(4, 16, 2, 64, true);
  int cycles = 0;
  int tokens = 0;
  int named = 0;
  int right = 0;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    TypicalText text;
    text.foreseen = true;
    text.seed = seed;
    const RoutingTrace trace = written(model, {.acceptance = 0.8}, text);
    ASSERT_TRUE(trace.texts[0].agreement.has_value());
    EXPECT_EQ(trace.texts[0].agreement->positions, 24);
    EXPECT_EQ(trace.texts[0].agreement->agreed, 19);
    cycles += static_cast<int>(trace.texts[0].cycles.size());
    tokens += committed(trace.texts[0]);
    for (const TracedCycle& cycle : trace.texts[0].cycles) {
      for (const TracedScore& score : cycle.scores) {
        if (score.source != ScoreSource::kDraftRouter) continue;
        const auto used = cycle.used[static_cast<size_t>(index(score.layer))].begin() + score.token * 2;
        ++named;
        right += std::count(used, used + 2, score.ranked[0]) > 0 ? 1 : 0;
      }
    }
  }
  EXPECT_NEAR(static_cast<double>(tokens) / cycles, 5, 1);
  EXPECT_GT(right, 0.98 * named);
}

TEST(TypicalText, ALongPromptIsDrawnFromAPartOfIt) {
  const TracedModel model = small_model(2, 16, 2, 64, false);
  TypicalText text;
  text.prompt_tokens = 100'001;
  const RoutingTrace trace = written(model, {}, text);
  int tokens = 0;
  int64_t uses = 0;
  for (const TracedPrompt& part : trace.texts[0].prompt) {
    tokens += part.tokens;
    for (const int32_t use : part.uses[0]) uses += use;
  }
  EXPECT_EQ(tokens, 100'000);
  EXPECT_NEAR(static_cast<double>(uses), 200'000, 1000);
}

}  // namespace
}  // namespace drafthorse
