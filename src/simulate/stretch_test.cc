#include "simulate/stretch.h"

#include <gtest/gtest.h>

#include "simulate/hardware.h"
#include "simulate/replay.h"
#include "simulate/testing/traces.h"

namespace drafthorse {
namespace {

RoutingTrace recorded() {
  RoutingTrace trace;
  trace.model = small_model(4, 16, 2, 24, true);
  trace.texts.push_back(RandomText(trace.model, 30, 0.9, 0.8, 21).at_depth(4));
  return trace;
}

ModelShape shape(int layers, int experts, int used) {
  return {"other", layers, experts, used, 1 << 20, 1 << 20, layers, 1 << 20, 1 << 20};
}

void expect_valid(const RoutingTrace& trace, const ModelShape& shape) {
  ASSERT_EQ(trace.model.layers.size(), static_cast<size_t>(shape.layers));
  const auto k = static_cast<size_t>(shape.n_expert_used);
  for (const TracedCycle& cycle : trace.texts.front().cycles) {
    ASSERT_EQ(cycle.used.size(), static_cast<size_t>(shape.layers));
    for (const auto& used : cycle.used) {
      ASSERT_EQ(used.size(), static_cast<size_t>(cycle.tokens) * k);
      for (size_t t = 0; t < used.size(); t += k) {
        for (size_t i = 0; i < k; ++i) {
          ASSERT_GE(index(used[t + i]), 0);
          ASSERT_LT(index(used[t + i]), shape.experts);
          // In order, so distinct.
          if (i > 0) {
            ASSERT_LT(used[t + i - 1], used[t + i]);
          }
        }
      }
    }
    for (const TracedScore& score : cycle.scores) {
      ASSERT_LT(index(score.layer), shape.layers);
      ASSERT_LT(index(score.at), shape.draft_layers);
      for (const ExpertId expert : score.ranked) ASSERT_LT(index(expert), shape.experts);
    }
  }
}

TEST(Stretch, ToItsOwnShapeChangesNothing) {
  const RoutingTrace trace = recorded();
  const Result<RoutingTrace> out = stretch(trace, shape(4, 16, 2));
  ASSERT_TRUE(out.ok());
  for (size_t c = 0; c < trace.texts[0].cycles.size(); ++c) {
    const TracedCycle& before = trace.texts[0].cycles[c];
    const TracedCycle& after = out->texts[0].cycles[c];
    EXPECT_EQ(before.used, after.used);
    ASSERT_EQ(before.scores.size(), after.scores.size());
    for (size_t i = 0; i < before.scores.size(); ++i) {
      EXPECT_EQ(before.scores[i].ranked, after.scores[i].ranked);
      EXPECT_EQ(before.scores[i].at, after.scores[i].at);
    }
  }
}

TEST(Stretch, ToEveryKnownModelAndReplay) {
  const RoutingTrace trace = recorded();
  for (const ModelShape& shape : model_shapes()) {
    const Result<RoutingTrace> out = stretch(trace, shape);
    ASSERT_TRUE(out.ok()) << shape.name;
    expect_valid(*out, shape);
    const Hardware& gpu = *find_hardware("rtx4090");
    ReplayOptions options;
    options.take(*find_schedule_policy("auto"));
    options.slots = 40;
    options.link = {gpu.link_bytes_per_s, gpu.link_latency_ns};
    options.cost = roofline(gpu, out->model);
    const Result<ReplayResult> result = replay(*out, options);
    ASSERT_TRUE(result.ok());
    EXPECT_EQ(result->tokens, 30);
    EXPECT_FALSE(result->without_scores);
    EXPECT_LE(result->bound_bytes, result->bytes());
  }
}

// Predictions stay as good as they were: the best k of a token's scores name as many of its experts.
TEST(Stretch, KeepsPredictionsAsGood) {
  const auto named = [](const RoutingTrace& trace) {
    const auto k = static_cast<size_t>(trace.model.n_expert_used);
    double hits = 0;
    double all = 0;
    for (const TracedCycle& cycle : trace.texts[0].cycles) {
      for (const TracedScore& score : cycle.scores) {
        const auto& used = cycle.used[static_cast<size_t>(index(score.layer))];
        for (size_t i = 0; i < k; ++i) {
          const ExpertId expert = used[static_cast<size_t>(score.token) * k + i];
          const auto end = score.ranked.begin() + static_cast<std::ptrdiff_t>(k);
          hits += std::find(score.ranked.begin(), end, expert) != end ? 1 : 0;
          ++all;
        }
      }
    }
    return hits / all;
  };
  const RoutingTrace trace = recorded();
  const double before = named(trace);
  EXPECT_NEAR(named(*stretch(trace, shape(32, 16, 2))), before, 0.01);
  EXPECT_NEAR(named(*stretch(trace, shape(26, 64, 6))), before, 0.12);
  EXPECT_NEAR(named(*stretch(trace, shape(32, 8, 2))), before, 0.12);
}

TEST(Stretch, WhatCannotBeIsRefused) {
  EXPECT_EQ(stretch(recorded(), shape(4, 8, 9)).status().kind(), StatusKind::kUsage);
  RoutingTrace uneven = recorded();
  uneven.model.layers[1].experts = 8;
  EXPECT_EQ(stretch(uneven, shape(4, 8, 2)).status().kind(), StatusKind::kUsage);
}

TEST(Hardware, TimesAreThoseOfTheMemory) {
  TracedModel model = small_model(2, 4, 1, 2, true);
  model.dense_bytes = 2'000'000'000;
  model.draft_token_bytes = 1'008'000'000;
  const ComputeCost cost = roofline(*find_hardware("rtx4090"), model);
  EXPECT_NEAR(cost.draft_token_s, 1e-3, 1e-9);
  EXPECT_NEAR(cost.stage_s, 1e9 / 1008e9, 1e-9);
  EXPECT_EQ(find_hardware("rtx5090"), nullptr);
  EXPECT_DOUBLE_EQ(*paper_tpot("a100", "phi-3.5-moe", "sp-moe"), 0.21);
  EXPECT_FALSE(paper_tpot("a100", "phi-3.5-moe", "auto").has_value());
}

}  // namespace
}  // namespace drafthorse
