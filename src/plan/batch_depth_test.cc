#include "plan/batch_depth.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <utility>

namespace drafthorse {
namespace {

constexpr int kLayers = 12;
constexpr int kExperts = 16;
constexpr int kMaxDepth = 10;

ModelCost target_model() {
  ModelCost cost;
  for (int i = 0; i < kLayers; ++i) {
    cost.layers.push_back({CostCurve::line(1e-3, 1e-5), CostCurve::line(5e-4, 2e-5), kExperts});
  }
  cost.attention = {2e-8, 1e-8};
  cost.head = CostCurve::line(1e-3, 1e-5);
  cost.popularity = expert_shares(kExperts, 2, 2);
  cost.expert_bytes = 1e7;
  return cost;
}

ModelCost draft_model() {
  ModelCost cost;
  cost.layers.assign(2, {CostCurve::line(1e-3, 1e-5), {}, 0});
  cost.attention = {1e-8, 1e-8};
  return cost;
}

// What iterations really take: the model's parts times factors of its own, and a link.
struct World {
  double weights = 1, tokens = 1, attention = 1, draft = 1;
  double bytes_per_s = 1e9;
  double resident = 0;
  double acceptance = 0.8;
  double fading = 0.97;  // of each further position
  double noise = 0.03;
  bool tells_parts = true;
  bool draft_reads = false;  // the drafter has a KV cache of its own, into which it must read texts first
  int sequences = 32;
  int prompt = 100;
  int output = 150;
  int64_t requests = 128;
};

struct Sequence {
  int64_t length = 0;
  int left = 0;
  int64_t behind = 0;  // tokens that the drafter has not read
};

// A batch of requests of mixed lengths that run until none is left.
class Runner {
 public:
  Runner(const World& world, uint64_t seed) : world_(world), seed_(seed) {}

  using Choose = std::function<BatchDepthChoice(const BatchState&)>;
  using Observe = std::function<void(const BatchObservation&)>;

  // Tokens per second over the whole job. Whether a position is accepted is the text's, not the depth's.
  double rate(const Choose& choose, const Observe& observe) {
    std::mt19937_64 random(seed_);
    std::vector<Sequence> active;
    int64_t waiting = world_.requests;
    double seconds = 0;
    int64_t made = 0;
    const ModelCost target = target_model();
    const ModelCost draft = draft_model();
    while (waiting > 0 || !active.empty()) {
      int64_t prompts = 0;
      while (waiting > 0 && static_cast<int>(active.size()) < world_.sequences) {
        --waiting;
        active.push_back({world_.prompt, 1 + static_cast<int>(random() % (2 * static_cast<uint64_t>(world_.output))),
                          world_.draft_reads ? world_.prompt : 0});
        prompts += world_.prompt;
      }
      BatchState state;
      state.sequences = static_cast<int>(active.size());
      std::vector<int32_t> rooms;
      std::vector<int64_t> left, behind;
      for (const Sequence& one : active) {
        state.cached_positions += one.length;
        rooms.push_back(one.left - 1);
        left.push_back(one.left);
        behind.push_back(one.behind);
      }
      state.rooms = rooms;
      state.left = left;
      state.behind = behind;
      state.prompt_tokens = prompts;
      state.prompt_token_keys = prompts * world_.prompt / 2;
      state.resident_experts = world_.resident;
      const BatchDepthChoice choice = choose(state);
      const int depth = choice.depth;
      EXPECT_GE(depth, 0);
      EXPECT_LE(depth, kMaxDepth);

      BatchObservation seen;
      seen.depth = depth;
      seen.sequences = state.sequences;
      seen.cached_positions = state.cached_positions;
      seen.resident_experts = world_.resident;
      seen.prompt_tokens = prompts;
      seen.prompt_token_keys = state.prompt_token_keys;
      std::vector<int64_t> reached(static_cast<size_t>(depth), 0);
      std::vector<int64_t> accepted(static_cast<size_t>(depth), 0);
      std::vector<Sequence> next;
      size_t place = 0;
      for (Sequence& one : active) {
        const int drafts = choice.drafts_for(place++) ? std::min(depth, one.left - 1) : 0;
        seen.drafted_tokens += drafts;
        if (drafts > 0) seen.caught_up_tokens += std::exchange(one.behind, 0);
        int right = 0;
        double p = world_.acceptance;
        bool going = true;
        for (int i = 0; i < kMaxDepth; ++i, p *= world_.fading) {
          const bool agrees = std::uniform_real_distribution<double>()(random) < p;
          if (!going || i >= drafts) continue;
          ++reached[i];
          if (agrees) {
            ++accepted[i];
            ++right;
          } else {
            going = false;
          }
        }
        made += right + 1;
        one.length += right + 1;
        one.left -= right + 1;
        // The last drafted token was not read.
        if (world_.draft_reads && (drafts == 0 || right == drafts)) ++one.behind;
        if (one.left > 0) next.push_back(one);
      }
      seen.window_tokens = seen.drafted_tokens + seen.sequences;
      seen.reached = reached;
      seen.accepted = accepted;

      const double sequences = seen.sequences;
      const double keys = static_cast<double>(state.cached_positions) / sequences;
      const PassWork work = window_work(sequences, static_cast<double>(seen.window_tokens) / sequences, keys) +
                            PassWork{static_cast<double>(prompts), static_cast<double>(state.prompt_token_keys),
                                     static_cast<double>(prompts), 0};
      const PassSeconds full = pass_seconds(target, work);
      const PassSeconds weights = weight_seconds(target, work);
      const double stages = world_.weights * weights.dense + world_.tokens * (full.dense - weights.dense) +
                            world_.attention * full.attention;
      const double experts = world_.weights * weights.experts + world_.tokens * (full.experts - weights.experts);
      const double compute = stages + experts;
      const double bytes =
          kLayers * target.expert_bytes * experts_loaded(target.popularity, work.tokens, world_.resident);
      const double load = bytes / world_.bytes_per_s;
      const double pass = std::max(compute, load) + std::min(compute, load) / kLayers;
      double drafting = 0;
      for (int i = 0; i < depth; ++i) {
        drafting += world_.draft *
                    pass_seconds(draft, window_work(static_cast<double>(seen.drafted_tokens) / depth, 1, keys)).total();
      }
      if (seen.caught_up_tokens > 0) {
        const auto caught_up = static_cast<double>(seen.caught_up_tokens);
        drafting += world_.draft * pass_seconds(draft, {caught_up, caught_up * keys / 2, caught_up, 0}).total();
      }
      const double head = world_.tokens * full.head;
      seconds += pass + drafting + head;
      const double factor = std::exp(std::normal_distribution<double>(0, world_.noise)(noise_));
      seen.pass_s = pass * factor;
      seen.stall_s = (pass - compute) * factor;
      seen.draft_s = drafting * std::exp(std::normal_distribution<double>(0, world_.noise)(noise_));
      seen.head_s = head * factor;
      if (world_.tells_parts) {
        seen.stages_s = stages * factor;
        seen.experts_s = experts * factor;
        seen.link_busy_s = load * factor;
      }
      seen.bytes_read = static_cast<uint64_t>(bytes);
      observe(seen);
      active = std::move(next);
    }
    return static_cast<double>(made) / seconds;
  }
  double rate(BatchDepthPolicy& policy) {
    return rate([&](const BatchState& state) { return policy.choose(state); },
                [&](const BatchObservation& seen) { policy.observe(seen); });
  }
  double rate(int depth) {
    return rate([&](const BatchState&) { return BatchDepthChoice{.depth = depth}; }, [](const BatchObservation&) {});
  }
  double best_fixed() {
    double best = 0;
    for (int depth = 0; depth <= kMaxDepth; ++depth) best = std::max(best, rate(depth));
    return best;
  }

 private:
  World world_;
  uint64_t seed_;
  std::mt19937_64 noise_{7};
};

BatchDepthOptions options() {
  BatchDepthOptions out;
  out.costs = {target_model(), draft_model(), 2e9};
  out.max_depth = kMaxDepth;
  return out;
}

struct Regime {
  std::string name;
  World world;
};

class BatchDepthRegimes : public ::testing::TestWithParam<Regime> {};

TEST_P(BatchDepthRegimes, ComesCloseToTheBestFixedDepth) {
  double against_best = 0;
  double worst_against_none = 1e9;
  constexpr uint64_t kJobs = 6;
  for (uint64_t seed = 1; seed <= kJobs; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    Runner runner(GetParam().world, seed);
    BatchDepthPolicy policy(options());
    const double rate = runner.rate(policy);
    against_best += rate / runner.best_fixed() / kJobs;
    worst_against_none = std::min(worst_against_none, rate / runner.rate(0));
  }
  RecordProperty("against_best", std::to_string(against_best));
  RecordProperty("worst_against_none", std::to_string(worst_against_none));
  EXPECT_GE(against_best, 0.95);
  EXPECT_GE(worst_against_none, 0.97);
}

INSTANTIATE_TEST_SUITE_P(
    Worlds, BatchDepthRegimes,
    ::testing::Values(
        Regime{"as_profiled", {}}, Regime{"slow_link", {.bytes_per_s = 1e8}},
        Regime{"fast_link", {.bytes_per_s = 1e11}}, Regime{"all_resident", {.bytes_per_s = 1e9, .resident = kExperts}},
        Regime{"three_times_slower", {.weights = 3, .tokens = 3, .attention = 3, .draft = 3, .bytes_per_s = 3e8}},
        Regime{"tokens_cost_more", {.tokens = 4, .bytes_per_s = 4e9}},
        Regime{"tokens_cost_less", {.weights = 2, .tokens = 0.3}},
        Regime{"attention_costs_more", {.attention = 20, .bytes_per_s = 1e10, .prompt = 1000}},
        Regime{"draft_costs_more", {.draft = 30, .bytes_per_s = 1e10}}, Regime{"useless_draft", {.acceptance = 0.1}},
        Regime{"useless_draft_fast_link", {.draft = 5, .bytes_per_s = 1e11, .acceptance = 0.1}},
        Regime{"perfect_draft_slow_link", {.bytes_per_s = 1e8, .acceptance = 0.99, .fading = 1}},
        Regime{"nothing_told_apart", {.weights = 2, .attention = 5, .bytes_per_s = 3e9, .tells_parts = false}},
        Regime{"few_sequences", {.bytes_per_s = 3e8, .sequences = 3, .requests = 16}},
        Regime{"short_answers_to_prompts_it_reads",
               {.draft = 5, .bytes_per_s = 3e9, .draft_reads = true, .prompt = 1000, .output = 8}},
        Regime{"prompts_it_reads", {.draft_reads = true, .prompt = 300}},
        Regime{"useless_draft_that_reads",
               {.draft = 5, .bytes_per_s = 1e10, .acceptance = 0.1, .draft_reads = true, .prompt = 300}},
        Regime{"many_sequences", {.bytes_per_s = 1e9, .sequences = 200}}, Regime{"noisy", {.noise = 0.2}}),
    [](const auto& one) { return one.param.name; });

TEST(BatchDepth, PredictsWhatItHasSeen) {
  const World world{
      .weights = 2, .tokens = 0.5, .attention = 3, .draft = 2, .bytes_per_s = 5e8, .noise = 0.02, .requests = 400};
  Runner runner(world, 11);
  BatchDepthPolicy policy(options());
  std::mt19937_64 random(3);
  double error = 0;
  int count = 0;
  int64_t iterations = 0;
  double expected = 0;
  runner.rate(
      [&](const BatchState& state) {
        const int depth = static_cast<int>(random() % (kMaxDepth + 1));
        expected = policy.expect(state, depth).seconds;
        return BatchDepthChoice{.depth = depth};
      },
      [&](const BatchObservation& seen) {
        if (++iterations > 30) {
          error += std::abs(expected / (seen.pass_s + seen.draft_s + seen.head_s) - 1);
          ++count;
        }
        policy.observe(seen);
      });
  ASSERT_GT(count, 50);
  EXPECT_LT(error / count, 0.05);
}

TEST(BatchDepth, TokensAreThoseOfEachSequence) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const BatchDepthPolicy policy(options());
    std::vector<int32_t> rooms;
    for (uint64_t i = 0; i < 1 + random() % 20; ++i) rooms.push_back(static_cast<int32_t>(random() % 15) - 1);
    BatchState state;
    state.sequences = static_cast<int>(rooms.size());
    state.cached_positions = 1000;
    state.rooms = rooms;
    for (int depth = 0; depth <= kMaxDepth; ++depth) {
      double tokens = 0;
      for (const int32_t room : rooms) tokens += policy.expected_tokens(std::max(0, std::min<int>(room, depth)));
      EXPECT_NEAR(policy.expect(state, depth).tokens, tokens, 1e-9) << depth;
    }
    // The choice is the best that is allowed, or nothing.
    state.max_depth = static_cast<int>(random() % 5);
    const BatchDepthChoice choice = policy.choose(state);
    EXPECT_LE(choice.depth, state.max_depth);
    for (int depth = 0; depth <= std::min(state.max_depth, 4); ++depth) {
      const BatchDepthChoice other = policy.expect(state, depth);
      if (choice.depth == 0) {
        EXPECT_LE(other.tokens / other.seconds, 1.02 * choice.tokens / choice.seconds * (1 + 1e-9));
      } else {
        EXPECT_LE(other.tokens / other.seconds, choice.tokens / choice.seconds * (1 + 1e-9));
      }
    }
  }
}

// A drafter that has something to say for a quarter of the texts brings a quarter of its tokens.
TEST(BatchDepth, KnowsWhoHasNothingToSay) {
  BatchDepthPolicy policy(options());
  BatchState state;
  state.sequences = 40;
  state.cached_positions = 4000;
  const std::vector<int64_t> reached = {10, 10};
  for (int i = 0; i < 200; ++i) {
    BatchObservation seen;
    seen.depth = 2;
    seen.sequences = 40;
    seen.asked_tokens = 80;
    seen.drafted_tokens = 20;
    seen.window_tokens = 60;
    seen.cached_positions = 4000;
    seen.draft_s = 1e-4;
    seen.pass_s = 0.1;
    seen.reached = reached;
    seen.accepted = reached;
    policy.observe(seen);
  }
  EXPECT_NEAR(policy.expect(state, 2).tokens, 40 + 10 * 2, 1);
}

TEST(BatchDepth, NobodyWithRoomDraftsNothing) {
  BatchDepthPolicy policy(options());
  const std::vector<int32_t> rooms = {0, 0, 0};
  BatchState state;
  state.sequences = 3;
  state.rooms = rooms;
  EXPECT_EQ(policy.choose(state).depth, 0);
  EXPECT_EQ(BatchDepthPolicy({.costs = {.target = target_model()}}).choose({.sequences = 5}).depth, 0);
  // Prompts alone.
  const BatchDepthChoice none = policy.choose({.prompt_tokens = 500, .prompt_token_keys = 50000});
  EXPECT_EQ(none.depth, 0);
  EXPECT_GT(none.seconds, 0);
  EXPECT_EQ(none.tokens, 0);
}

TEST(BatchDepth, SurvivesZeroTimesAndStrangeIterations) {
  BatchDepthPolicy policy(options());
  const std::vector<int64_t> reached = {4, 0};
  const std::vector<int64_t> accepted = {0, 0};
  BatchState state;
  state.sequences = 4;
  state.cached_positions = 400;
  for (int i = 0; i < 100; ++i) {
    BatchObservation seen;
    seen.depth = i % 3;
    seen.sequences = i % 5;
    seen.window_tokens = seen.sequences * (seen.depth + 1);
    seen.drafted_tokens = seen.sequences * seen.depth;
    if (i % 3 > 0 && i % 5 > 0) {
      seen.reached = std::span(reached).first(static_cast<size_t>(i % 3));
      seen.accepted = std::span(accepted).first(static_cast<size_t>(i % 3));
    }
    policy.observe(seen);
    const BatchDepthChoice choice = policy.choose(state);
    EXPECT_TRUE(std::isfinite(choice.seconds));
    EXPECT_GE(choice.seconds, 0);
    EXPECT_FALSE(policy.explain(state).empty());
  }
}

TEST(BatchDepth, IsDeterministic) {
  for (int round = 0; round < 2; ++round) {
    static std::vector<int> first;
    std::vector<int> depths;
    Runner runner({.bytes_per_s = 5e8}, 5);
    BatchDepthPolicy policy(options());
    runner.rate(
        [&](const BatchState& state) {
          const BatchDepthChoice choice = policy.choose(state);
          depths.push_back(choice.depth);
          return choice;
        },
        [&](const BatchObservation& seen) { policy.observe(seen); });
    if (round == 0) first = depths;
    EXPECT_EQ(depths, first);
  }
}

// As texts grow attention takes over, and each drafted token costs more of it.
TEST(BatchDepth, LongTextsWantNoDeeperDraftsWhereAttentionBinds) {
  const BatchDepthPolicy policy(options());
  int before = kMaxDepth;
  for (const int64_t length : {100, 1000, 4000, 16000, 64000}) {
    BatchState state;
    state.sequences = 64;
    state.cached_positions = 64 * length;
    const int depth = policy.choose(state).depth;
    EXPECT_LE(depth, before) << length;
    before = depth;
  }
  EXPECT_EQ(policy.choose({.sequences = 64, .cached_positions = 64 * 64000}).limit, Component::kAttention);
  EXPECT_EQ(policy.choose({.sequences = 4, .cached_positions = 40}).limit, Component::kLoad);
}

}  // namespace
}  // namespace drafthorse
