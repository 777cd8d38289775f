#include "simulate/replay.h"

#include <gtest/gtest.h>

#include "simulate/testing/traces.h"

namespace drafthorse {
namespace {

constexpr double kReadS = 0x1p20 * 1e-9;  // an expert of a small model over 1 GB/s

ReplayOptions plain_options(int slots) {
  ReplayOptions options;
  options.predictor = "none";
  options.prefetch = "none";
  options.eviction = "lru";
  options.slots = slots;
  options.link = {1e9, 0};
  options.cost.stage_s = 1e-3;
  options.cost.expert_s = 1e-3;
  return options;
}

// The prompt leaves expert 0 of both layers in the two slots; then 0 1, 0 0, 1 0.
RoutingTrace by_hand() {
  RoutingTrace trace;
  trace.model = small_model(2, 4, 1, 2, false);
  TracedText& text = trace.texts.emplace_back();
  text.prompt.push_back({1, {{1, 0, 0, 0}, {1, 0, 0, 0}}});
  text.cycles = {cycle_of({{0}, {1}}, 1), cycle_of({{0}, {0}}, 1), cycle_of({{1}, {0}}, 1)};
  return trace;
}

ReplayResult replayed(const RoutingTrace& trace, const ReplayOptions& options) {
  Result<ReplayResult> result = replay(trace, options);
  EXPECT_TRUE(result.ok()) << result.status().message();
  return std::move(result).value();
}

TEST(Replay, CountsAsByHand) {
  const ReplayResult result = replayed(by_hand(), plain_options(2));
  EXPECT_EQ(result.tokens, 3);
  EXPECT_EQ(result.cache.hits, 3);
  EXPECT_EQ(result.cache.misses, 3);
  EXPECT_EQ(result.bytes(), 3U << 20);
  EXPECT_NEAR(result.stall_s, 3 * kReadS, 1e-12);
  // Three cycles of two stages and two experts.
  EXPECT_NEAR(result.seconds, 12e-3 + 3 * kReadS, 1e-12);
  // Layer 1's expert 0 is not there when it is wanted, layer 0's expert 1 neither; both are read in time.
  EXPECT_EQ(result.bound.misses, 2);
  EXPECT_EQ(result.bound_bytes, 2U << 20);
  EXPECT_NEAR(result.bound.seconds, 12e-3, 1e-12);
}

TEST(Replay, TablesStandForLines) {
  ReplayOptions options = plain_options(2);
  options.cost = {};
  options.cost.stage_table = {1e-3, 5e-3};
  options.cost.expert_table = {2e-3, 5e-3};
  options.cost.head_table = {3e-3, 5e-3};
  const ReplayResult result = replayed(by_hand(), options);
  EXPECT_NEAR(result.seconds, 3 * (2 * 1e-3 + 2 * 2e-3 + 3e-3) + 3 * kReadS, 1e-12);
  // Between its points and beyond them a table is a line, by the rows of each expert.
  EXPECT_NEAR(options.cost.experts(2, 3), 2 * 3.5e-3, 1e-12);
  EXPECT_NEAR(options.cost.stage(4), 13e-3, 1e-12);
}

TEST(Replay, MemoryTakesTimeWhenItIsUsedForTheFirstTime) {
  ReplayOptions options = plain_options(2);
  const ReplayResult before = replayed(by_hand(), options);
  options.link.first_touch_s_per_byte = 1e-6;
  const ReplayResult after = replayed(by_hand(), options);
  // The prompt reads into both slots, and what follows into the same ones.
  EXPECT_NEAR(after.prompt_s - before.prompt_s, 2 * 0x1p20 * 1e-6, 0.1 * 0x1p20 * 1e-6);
  EXPECT_NEAR(after.seconds, before.seconds, 1e-9);
  EXPECT_GT(before.prompt_s, 0);
  EXPECT_NEAR(before.first_cycle_s, 4e-3 + kReadS, 1e-9);
}

TEST(Replay, LatencyAndMoreSlots) {
  ReplayOptions options = plain_options(2);
  options.link.latency_ns = 1'000'000;
  EXPECT_NEAR(replayed(by_hand(), options).seconds, 12e-3 + 3 * (kReadS + 1e-3), 1e-12);
  // Eight slots hold all: what the prompt left free is filled beside the computing, three stages' worth of it.
  options = plain_options(8);
  const ReplayResult all = replayed(by_hand(), options);
  EXPECT_EQ(all.bound.misses, 0);
  EXPECT_LE(all.cache.misses, 1);
  EXPECT_LT(all.seconds, 12e-3 + 2 * kReadS);
}

TEST(Replay, ReadingAheadHidesReads) {
  RoutingTrace trace;
  trace.model = small_model(4, 8, 2, 12, true);
  trace.texts.push_back(RandomText(trace.model, 60, 1, 1, 3).at_depth(3));
  ReplayOptions options = plain_options(12);
  options.cost.draft_token_s = 20e-3;
  options.eviction = "draft-guided";
  const ReplayResult on_demand = replayed(trace, options);
  options.predictor = "cross";
  options.prefetch = "deadline";
  const ReplayResult ahead = replayed(trace, options);
  EXPECT_EQ(ahead.tokens, on_demand.tokens);
  EXPECT_LT(ahead.stall_s, 0.7 * on_demand.stall_s);
  EXPECT_GT(ahead.hit_rate(), on_demand.hit_rate());
}

TEST(Replay, TheSameAgain) {
  RoutingTrace trace;
  trace.model = small_model(3, 8, 2, 9, true);
  trace.texts.push_back(RandomText(trace.model, 40, 0.8, 0.8, 5).at_depth(2));
  for (const SchedulePolicy& policy : schedule_policies()) {
    ReplayOptions options = plain_options(9);
    options.take(policy);
    options.cost.draft_token_s = 2e-3;
    options.depth = ReplayDepth::kAuto;
    const ReplayResult first = replayed(trace, options);
    const ReplayResult again = replayed(trace, options);
    EXPECT_EQ(first.seconds, again.seconds) << policy.name;
    EXPECT_EQ(first.bytes(), again.bytes()) << policy.name;
    EXPECT_EQ(first.cycles, again.cycles) << policy.name;
  }
}

TEST(Replay, NoPolicyBeatsTheBound) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    const int slots = 4 + static_cast<int>(seed) * 3;
    RoutingTrace trace;
    trace.model = small_model(3, 8, 2, slots, true);
    for (const int depth : {0, 4}) {
      trace.texts = {RandomText(trace.model, 60, 0.7, 0.8, seed).at_depth(depth),
                     RandomText(trace.model, 20, 0.7, 0.8, seed + 100).at_depth(depth)};
      for (const SchedulePolicy& policy : schedule_policies()) {
        for (const double expert_s : {0.1e-3, 3e-3}) {
          ReplayOptions options = plain_options(slots);
          options.take(policy);
          options.cost.expert_s = expert_s;
          options.cost.draft_token_s = 4e-3;
          options.link.latency_ns = 50'000;
          const ReplayResult result = replayed(trace, options);
          EXPECT_LE(result.bound_bytes, result.bytes()) << policy.name << " " << seed << " " << depth;
          EXPECT_LE(result.bound.seconds, result.seconds + 1e-8) << policy.name << " " << seed << " " << depth;
        }
      }
    }
  }
}

TEST(Replay, FindsTheLinkThatWasRecorded) {
  RoutingTrace trace;
  trace.model = small_model(3, 8, 2, 9, false);
  trace.texts.push_back(RandomText(trace.model, 40, 0.8, 0.8, 5).at_depth(0));
  ReplayOptions options = plain_options(9);
  options.link.bytes_per_s = 700e6;
  const ReplayResult result = replayed(trace, options);
  // The times that this replay would have recorded.
  for (TracedCycle& cycle : trace.texts.front().cycles) {
    for (TracedLayerTimes& times : cycle.times) {
      times.stage_s = 1e-3;
      times.experts_s = 2e-3;
      times.stall_s = result.stall_s / static_cast<double>(3 * trace.texts.front().cycles.size());
    }
  }
  const ComputeCost cost = measured_cost(trace);
  EXPECT_NEAR(cost.stage(1), 1e-3, 1e-9);
  EXPECT_NEAR(cost.experts(2, 2), 2e-3, 1e-9);
  EXPECT_NEAR(measured_link(trace, 0), 700e6, 7e6);
}

TEST(Replay, UnknownPartsAreRefused) {
  ReplayOptions options = plain_options(2);
  options.eviction = "best";
  EXPECT_EQ(replay(by_hand(), options).status().kind(), StatusKind::kUsage);
}

}  // namespace
}  // namespace drafthorse
