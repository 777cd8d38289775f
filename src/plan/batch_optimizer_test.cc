#include "plan/batch_optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace drafthorse {
namespace {

double between(std::mt19937_64& random, double low, double high) {
  return std::uniform_real_distribution<double>(low, high)(random);
}

// A machine and a model of which anything may be what limits.
BatchPlanInput random_input(std::mt19937_64& random) {
  BatchPlanInput in;
  const int layers = 2 + static_cast<int>(random() % 6);
  const int experts = 4 << (random() % 3);
  for (uint64_t dense = random() % 3; dense > 0; --dense) {
    in.target.layers.push_back({CostCurve::line(between(random, 0, 2e-3), between(random, 1e-5, 1e-3)), {}, 0});
  }
  for (int i = 0; i < layers; ++i) {
    in.target.layers.push_back({CostCurve::line(between(random, 0, 2e-3), between(random, 1e-5, 1e-3)),
                                CostCurve::line(between(random, 0, 2e-3), between(random, 1e-5, 1e-3)), experts});
  }
  in.target.attention = {between(random, 1e-8, 3e-6), between(random, 1e-8, 1e-6)};
  in.target.head = CostCurve::line(1e-3, 1e-5);
  in.target.popularity = expert_shares(experts, 2, between(random, 0, 4));
  in.target.expert_bytes = 1e6;
  DraftCost draft;
  draft.model.layers.push_back({CostCurve::line(between(random, 0, 2e-3), between(random, 1e-6, 1e-3)), {}, 0});
  draft.model.attention = {between(random, 1e-8, 1e-6), 0};
  in.draft = draft;
  in.platform.link_bytes_per_s = between(random, 1e8, 1e10);
  in.memory.fixed_bytes = 10'000'000;
  in.memory.slot_bytes = 1'000'000;
  in.memory.total_experts = layers * experts;
  in.memory.least_slots = std::min(2 * experts, in.memory.total_experts);
  in.memory.kv_bytes_per_token = 2000 + random() % 4000;
  in.memory.draft_kv_bytes_per_token = random() % 1000;
  in.memory.sequence_bytes = 1000;
  in.memory.token_bytes = 5000;
  in.job = {50 + static_cast<int>(random() % 200), 20 + static_cast<int>(random() % 200), 0};
  in.memory.budget_bytes = in.memory.fixed_bytes + static_cast<uint64_t>(in.memory.least_slots) * in.memory.slot_bytes +
                           (1 + random() % 40) * request_bytes(in.memory, in.job, 1);
  double p = between(random, 0.3, 1);
  for (int i = 0; i < 4; ++i) in.acceptance.push_back(p *= between(random, 0.9, 1));
  return in;
}

TEST(BatchMemory, ClosedFormIsTheMostThatFits) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    BatchPlanInput in = random_input(random);
    const BatchMemory& memory = in.memory;
    const int window = 1 + static_cast<int>(random() % 8);
    const auto taken = [&](int64_t sequences, int slots) {
      uint64_t bytes = memory.fixed_bytes + static_cast<uint64_t>(slots) * memory.slot_bytes;
      for (int64_t i = 0; i < sequences; ++i) {
        bytes += static_cast<uint64_t>(in.job.prompt_tokens + in.job.output_tokens) *
                     (memory.kv_bytes_per_token + memory.draft_kv_bytes_per_token) +
                 memory.sequence_bytes + static_cast<uint64_t>(window) * memory.token_bytes;
      }
      return bytes;
    };
    const int64_t most = sequences_that_fit(memory, in.job, window);
    if (most > 0) {
      EXPECT_LE(taken(most, memory.least_slots), memory.budget_bytes);
    }
    EXPECT_GT(taken(most + 1, memory.least_slots), memory.budget_bytes);
    for (int64_t sequences = 0; sequences <= most; ++sequences) {
      const int slots = slots_beside(memory, in.job, window, sequences);
      EXPECT_GE(slots, memory.least_slots);
      EXPECT_LE(taken(sequences, slots), memory.budget_bytes);
      if (slots < memory.total_experts) {
        EXPECT_GT(taken(sequences, slots + 1), memory.budget_bytes);
      }
    }
    in.job.requests = 3;
    EXPECT_EQ(sequences_that_fit(memory, in.job, window), std::min<int64_t>(3, most));
  }
}

TEST(BatchPlan, IsWithinAHairOfAnExhaustiveSweep) {
  double worst = 1;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    BatchPlanInput in = random_input(random);
    in.max_depth = 5;
    const Result<BatchPlan> plan = plan_batch(in);
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    BatchCandidate best;
    for (int depth = 0; depth <= in.max_depth; ++depth) {
      for (int64_t b = 1; b <= sequences_that_fit(in.memory, in.job, depth + 1); ++b) {
        const BatchCandidate one = evaluate(in, Pipeline::kStreamed, b, depth);
        EXPECT_LE(one.memory_bytes, in.memory.budget_bytes);
        if (one.tokens_per_s > best.tokens_per_s) best = one;
      }
    }
    worst = std::min(worst, plan->best.tokens_per_s / best.tokens_per_s);
    EXPECT_GE(plan->best.tokens_per_s, 0.98 * best.tokens_per_s)
        << plan->best.sequences << " x " << plan->best.depth << ", best " << best.sequences << " x " << best.depth;
    EXPECT_LE(plan->plain.tokens_per_s, plan->best.tokens_per_s);
    EXPECT_LE(plan->on_demand.tokens_per_s, plan->plain.tokens_per_s * 1.001);
    EXPECT_EQ(plan->plain.depth, 0);
    for (const BatchCandidate& one : plan->candidates) EXPECT_LE(one.memory_bytes, in.memory.budget_bytes);
  }
  RecordProperty("worst", std::to_string(worst));
}

TEST(BatchPlan, BetterMachinesAndDraftsAreNeverSlower) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const BatchPlanInput in = random_input(random);
    const auto speed = [](const BatchPlanInput& input) { return plan_batch(input)->best.tokens_per_s; };
    const double now = speed(in);
    BatchPlanInput other = in;
    other.memory.budget_bytes *= 2;
    EXPECT_GE(speed(other), now * 0.995) << "RAM";
    other = in;
    other.platform.link_bytes_per_s *= 2;
    EXPECT_GE(speed(other), now * 0.999) << "link";
    other = in;
    for (double& p : other.acceptance) p = std::sqrt(p);
    EXPECT_GE(speed(other), now * 0.999) << "acceptance";
    other = in;
    for (LayerCost& layer : other.target.layers) layer.expert = layer.expert.scaled(0.5);
    EXPECT_GE(speed(other), now * 0.999) << "experts";
    other = in;
    other.draft.reset();
    EXPECT_LE(speed(other), now * 1.02) << "no draft";
  }
}

TEST(BatchPlan, DraftsWhereTheLinkBindsAndNotWhereComputingDoes) {
  std::mt19937_64 random(5);
  BatchPlanInput in = random_input(random);
  in.acceptance = {0.8};
  in.platform.link_bytes_per_s = 1e6;
  const Result<BatchPlan> link = plan_batch(in);
  EXPECT_GE(link->best.depth, 4);
  EXPECT_EQ(link->best.decode.limit, Component::kLoad);
  EXPECT_GT(link->best.tokens_per_s, 2 * link->plain.tokens_per_s);
  in.platform.link_bytes_per_s = 1e15;
  in.target.attention = {};
  for (LayerCost& layer : in.target.layers) layer = {CostCurve::line(0, 1e-5), CostCurve::line(0, 1e-2), layer.experts};
  in.draft->model.layers[0].dense = CostCurve::line(1e-2, 1e-3);
  in.acceptance = {0.5};
  const Result<BatchPlan> compute = plan_batch(in);
  EXPECT_EQ(compute->best.depth, 0);
  EXPECT_EQ(compute->best.decode.limit, Component::kExperts);
  in.depth = 3;
  EXPECT_EQ(plan_batch(in)->best.depth, 3);
  in.sequences = 2;
  EXPECT_EQ(plan_batch(in)->best.sequences, 2);
  EXPECT_EQ(plan_batch(in)->plain.sequences, 2);
}

TEST(BatchPlan, ExpertsReadOneByOneLeaveMoreInMemory) {
  std::mt19937_64 random(12);
  BatchPlanInput in = random_input(random);
  const int layers = in.target.moe_layers();
  const auto experts = static_cast<double>(in.target.popularity.size());
  in.target.popularity.assign(in.target.popularity.size(), 1.0);
  const BatchCandidate layered = evaluate(in, Pipeline::kStreamed, 1, 0);
  ASSERT_LT(layered.slots, in.memory.total_experts - 4 * layers);  // enough is loaded for the window to be full
  in.memory.stream_slots = 2;
  const BatchCandidate streamed = evaluate(in, Pipeline::kStreamed, 1, 0);
  const double kept = layered.slots >= in.memory.total_experts ? experts * layers : layered.slots - 2;
  EXPECT_NEAR(streamed.decode.loaded_bytes, (experts * layers - kept) * in.target.expert_bytes, 1);
  EXPECT_LE(streamed.decode.loaded_bytes, layered.decode.loaded_bytes);
}

// Where a layer loads little, the slots that loads may pass through hold residents most of the time.
TEST(BatchPlan, FewLoadsHoldFewSlots) {
  std::mt19937_64 random(9);
  BatchPlanInput in = random_input(random);
  in.target.popularity.assign(in.target.popularity.size(), 1.0);
  in.memory.stream_slots = 4;
  in.memory.fixed_bytes = 0;
  const int layers = in.target.moe_layers();
  for (int missing = 1; missing <= in.memory.total_experts - 4; ++missing) {
    const auto slots = static_cast<uint64_t>(in.memory.total_experts - missing);
    in.memory.budget_bytes = slots * in.memory.slot_bytes + request_bytes(in.memory, in.job, 1) + 1;
    const BatchCandidate one = evaluate(in, Pipeline::kStreamed, 1, 0);
    ASSERT_EQ(one.slots, static_cast<int>(slots));
    const double loaded = one.decode.loaded_bytes / in.target.expert_bytes;
    EXPECT_NEAR(loaded, missing + std::min(4.0, loaded / layers / 2), 0.01 * loaded);
  }
}

TEST(BatchPlan, NamesTheLeastBudget) {
  std::mt19937_64 random(3);
  BatchPlanInput in = random_input(random);
  in.memory.fixed_bytes = uint64_t{1} << 30;
  in.memory.budget_bytes = 1000;
  const Result<BatchPlan> refused = plan_batch(in);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().kind(), StatusKind::kMemory);
  const std::string& message = refused.status().message();
  const size_t at = message.find("--ram ");
  ASSERT_NE(at, std::string::npos) << message;
  in.memory.budget_bytes = std::stoull(message.substr(at + 6)) << 20;
  EXPECT_TRUE(plan_batch(in).ok());
}

TEST(ExpectedTokens, AreTheChanceOfEachPrefix) {
  const std::vector<double> table = {0.9, 0.8, 0.5};
  EXPECT_DOUBLE_EQ(expected_tokens(table, 0), 1);
  EXPECT_DOUBLE_EQ(expected_tokens(table, 3), 1 + .9 + .9 * .8 + .9 * .8 * .5);
  EXPECT_DOUBLE_EQ(expected_tokens(table, 4), 1 + .9 + .9 * .8 + .9 * .8 * .5 + .9 * .8 * .5 * .5);
  EXPECT_DOUBLE_EQ(expected_tokens({}, 4), 1);
}

// --- the split of the draft's attention

struct Split {
  std::vector<int64_t> lengths;
  double room, device_s, processor_s, base_s;
  double seconds(const std::vector<bool>& on_device) const {
    double device = base_s;
    double processor = 0;
    for (size_t i = 0; i < lengths.size(); ++i) {
      if (on_device[i])
        device += device_s * static_cast<double>(lengths[i]);
      else
        processor += processor_s * static_cast<double>(lengths[i]);
    }
    return std::max(device, processor);
  }
  double positions(const std::vector<bool>& on_device) const {
    double total = 0;
    for (size_t i = 0; i < lengths.size(); ++i) total += on_device[i] ? static_cast<double>(lengths[i]) : 0;
    return total;
  }
  std::vector<bool> choose(const std::vector<bool>& before = {}) const {
    return split_draft_attention(lengths, before, room, device_s, processor_s, base_s);
  }
};

Split random_split(std::mt19937_64& random, size_t most) {
  Split split;
  double total = 0;
  for (size_t i = 0; i < 1 + random() % most; ++i) {
    split.lengths.push_back(1 + static_cast<int64_t>(random() % 1000));
    total += static_cast<double>(split.lengths.back());
  }
  split.room = between(random, 0, 1.3) * total;
  split.device_s = between(random, 0, 1);
  split.processor_s = between(random, 0.1, 5);
  split.base_s = random() % 3 == 0 ? 0 : between(random, 0, 1) * total;
  return split;
}

TEST(DraftSplit, IsOneRequestFromTheBest) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const Split split = random_split(random, 10);
    const size_t count = split.lengths.size();
    double best = 1e18;
    for (uint64_t subset = 0; subset < uint64_t{1} << count; ++subset) {
      std::vector<bool> on_device(count);
      for (size_t i = 0; i < count; ++i) on_device[i] = (subset >> i & 1) != 0;
      if (split.positions(on_device) <= split.room) best = std::min(best, split.seconds(on_device));
    }
    const std::vector<bool> chosen = split.choose();
    EXPECT_LE(split.positions(chosen), split.room);
    const auto longest = static_cast<double>(*std::max_element(split.lengths.begin(), split.lengths.end()));
    EXPECT_LE(split.seconds(chosen), best + longest * split.processor_s);
  }
}

TEST(DraftSplit, MovesNoMoreThanItMust) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    Split split = random_split(random, 30);
    const std::vector<bool> before = split.choose();
    EXPECT_EQ(split.choose(before), before);
    // All grow: none that was on the processor comes unless one that was on the device has gone.
    for (int64_t& length : split.lengths) length += 20;
    const std::vector<bool> after = split.choose(before);
    EXPECT_LE(split.positions(after), split.room);
    int64_t longest_left = 0;
    int64_t longest_stays = 0;
    for (size_t i = 0; i < after.size(); ++i) {
      if (before[i] && !after[i]) longest_left = std::max(longest_left, split.lengths[i]);
      if (before[i] && after[i]) longest_stays = std::max(longest_stays, split.lengths[i]);
    }
    if (longest_left > 0) {
      EXPECT_GE(longest_left, longest_stays);
    }
  }
}

TEST(DraftSplit, ShareIsTheBalance) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const double sequences = 1 + static_cast<double>(random() % 100);
    const double length = 1 + static_cast<double>(random() % 1000);
    const double total = sequences * length;
    const double room = between(random, 0, 1.5) * total;
    const double device_s = between(random, 0, 1);
    const double processor_s = between(random, 0.01, 5);
    const double base = between(random, 0, 0.5) * total;
    const double share = draft_share_on_device(sequences, length, room, device_s, processor_s, base);
    EXPECT_LE(share * total, room * (1 + 1e-12));
    const auto seconds = [&](double part) {
      return std::max(base + part * total * device_s, (1 - part) * total * processor_s);
    };
    for (double part = 0; part <= std::min(1.0, room / total); part += 0.01) {
      EXPECT_LE(seconds(share), seconds(part) * (1 + 1e-9)) << part;
    }
    // Longer texts, the same room: never more of them on the device.
    EXPECT_LE(draft_share_on_device(sequences, 2 * length, room, device_s, processor_s, 0),
              draft_share_on_device(sequences, length, room, device_s, processor_s, 0) + 1e-12);
  }
}

}  // namespace
}  // namespace drafthorse
