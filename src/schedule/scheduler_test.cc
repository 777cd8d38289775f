#include "schedule/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <tuple>

#include "expert/testing/cache_setup.h"
#include "predict/ranking.h"
#include "schedule/policy.h"

namespace drafthorse {
namespace {

constexpr int kUsed = 2;
const RoutingShapes kShapes = {{0, 12, 12, 12, 12}, kUsed};
FakeExpertsOptions experts_of(int64_t n_ff) {
  return {.experts_per_layer = kShapes.experts_by_layer, .n_embd = 64, .n_ff = n_ff};
}
constexpr int64_t kDraftLayerNs = 200'000;
constexpr int64_t kVerifyLayerNs = 300'000;
constexpr int64_t kExpertNs = 100'000;

struct Parts {
  std::string predictor;
  std::string prefetch;
  std::string eviction;
};

// What an engine does in a cycle, over fake storage and a virtual clock, with routing that follows from hidden scores
// of which the draft shows a noisy copy.
class World {
 public:
  World(const Parts& parts, int slots, FakeStorageOptions storage, uint64_t seed, double noise = 0.3,
        int64_t n_ff = 512)
      : setup(experts_of(n_ff), slots, storage, parts.eviction), noise_(noise), random_(seed) {
    ExpertScheduler::Options options;
    options.shapes = kShapes;
    options.draft_layers = kDraftLayers;
    options.adaptive_shares = parts.eviction == "lru-layer";
    scheduler = std::make_unique<ExpertScheduler>(*setup.cache, make_predictor(parts.predictor, kShapes),
                                                  make_prefetch_policy(parts.prefetch), options, setup.clock);
    for (const int experts : kShapes.experts_by_layer) hidden_.emplace_back(static_cast<size_t>(experts));
  }

  // False where a read failed; the cycle is given up then, as the engine does.
  bool cycle(int depth) {
    const int tokens = depth + 1;
    std::vector<std::vector<std::vector<float>>> scores;
    for (int t = 0; t < tokens; ++t) {
      for (auto& layer : hidden_) {
        for (float& one : layer) one = 0.7F * one + 0.7F * normal_(random_);
      }
      scores.push_back(hidden_);
    }
    scheduler->begin_cycle(depth);
    for (int t = 0; t < depth; ++t) {
      for (int l = 0; l < kDraftLayers; ++l) {
        setup.clock.advance_by(kDraftLayerNs);
        if (l < n_layers() && kShapes.experts_by_layer[l] > 0) tell(ScoreSource::kCrossModel, t, l, scores[t][l]);
        scheduler->draft_worked();
        setup.cache->check_invariants();
      }
    }
    scheduler->begin_verify(tokens);
    for (int l = 0; l < n_layers(); ++l) {
      setup.clock.advance_by(kVerifyLayerNs);
      setup.cache->poll();
      if (kShapes.experts_by_layer[l] == 0) continue;
      for (int t = 0; t < tokens && l + 1 < n_layers(); ++t) tell(ScoreSource::kNextGate, t, l + 1, scores[t][l + 1]);
      if (!run_layer(LayerId{l}, scores)) {
        setup.cache->abandon();
        setup.cache->check_invariants();
        return false;
      }
    }
    const int committed = 1 + static_cast<int>(random_() % static_cast<uint64_t>(tokens));
    scheduler->end_cycle(committed);
    setup.cache->advance(committed);
    return true;
  }

  CacheSetup setup;
  std::unique_ptr<ExpertScheduler> scheduler;
  // Of the demands since the start: how long each took, and how long its own bytes need.
  struct Demand {
    int64_t waited_ns = 0;
    uint64_t missed_bytes = 0;
  };
  std::vector<Demand> demands;

 private:
  static constexpr int kDraftLayers = 5;
  int n_layers() const { return static_cast<int>(hidden_.size()); }

  void tell(ScoreSource source, int token, int layer, std::vector<float> scores) {
    for (float& one : scores) one += static_cast<float>(noise_) * normal_(random_);
    scheduler->scored({source, token, LayerId{layer}, scores});
  }

  bool run_layer(LayerId layer, const std::vector<std::vector<std::vector<float>>>& scores) {
    std::vector<ExpertId> used;
    std::vector<int32_t> uses(hidden_[index(layer)].size());
    for (const auto& token : scores) {
      for (const ExpertId e : rank_experts(token[index(layer)], kUsed)) {
        used.push_back(e);
        ++uses[static_cast<size_t>(index(e))];
      }
    }
    std::set<ExpertId> distinct(used.begin(), used.end());
    const std::vector<ExpertId> wanted(distinct.begin(), distinct.end());
    scheduler->routed(layer, used);
    Demand demand;
    for (const ExpertId e : wanted) {
      if (!setup.cache->resident({layer, e})) demand.missed_bytes += setup.cache->layout().expert_bytes(layer);
    }
    const int64_t start = setup.total_stats().stall_ns;
    setup.cache->demand(layer, wanted);
    scheduler->demanded(layer);
    while (true) {
      Result<std::vector<ExpertId>> ready = setup.cache->take_ready();
      if (!ready.ok()) return false;
      if (ready.value().empty()) break;
      for (const ExpertId e : ready.value()) {
        EXPECT_TRUE(setup.experts.matches({layer, e}, setup.cache->weights(e)));
        setup.clock.advance_by(kExpertNs);
        setup.cache->release(e);
      }
      scheduler->worked();
      setup.cache->check_invariants();
    }
    demand.waited_ns = setup.total_stats().stall_ns - start;
    demands.push_back(demand);
    setup.cache->record_uses(layer, uses, static_cast<int64_t>(scores.size()));
    return true;
  }

  double noise_;
  std::mt19937_64 random_;
  std::normal_distribution<float> normal_;
  std::vector<std::vector<float>> hidden_;
};

std::string test_name(const Parts& parts) {
  std::string name = parts.predictor + "_" + parts.prefetch + "_" + parts.eviction;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

// Every predictor, prefetch policy and eviction policy, each with the other parts of ours.
std::vector<Parts> all_parts() {
  std::vector<Parts> all;
  for (const SchedulePolicy& policy : schedule_policies()) {
    all.push_back({std::string(policy.predictor), std::string(policy.prefetch), std::string(policy.eviction)});
  }
  for (const std::string& one : predictor_names()) all.push_back({one, "deadline", "draft-guided"});
  for (const std::string& one : predictor_names()) all.push_back({one, "cutoff", "lru"});
  for (const std::string& one : prefetch_policy_names()) all.push_back({"combined", one, "draft-guided"});
  for (const std::string& one : eviction_policy_names()) all.push_back({"combined", "deadline", one});
  std::sort(all.begin(), all.end(), [](const Parts& a, const Parts& b) { return test_name(a) < test_name(b); });
  all.erase(
      std::unique(all.begin(), all.end(), [](const Parts& a, const Parts& b) { return test_name(a) == test_name(b); }),
      all.end());
  return all;
}

class ScheduleConformance : public ::testing::TestWithParam<Parts> {};

// Whatever is read ahead and evicted: every demand is served with the right bytes, no slot is lost, nothing stands
// still. Depths, slots and faults at random.
TEST_P(ScheduleConformance, ServesEveryDemand) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    FakeStorageOptions storage{.seed = seed, .latency_ns = 50'000, .bytes_per_s = 2e9};
    if (seed % 2 == 0) {
      storage.failure_probability = 0.02;
      storage.short_read_probability = 0.05;
    }
    World world(GetParam(), 2 + static_cast<int>(random() % 30), storage, seed);
    for (int i = 0; i < 25; ++i) {
      const bool served = world.cycle(static_cast<int>(random() % 6));
      if (seed % 2 == 1) {
        ASSERT_TRUE(served);
      }
    }
    world.setup.let_reads_finish();
    // Every slot that is not resident is free again.
    ASSERT_LE(world.setup.residents(), world.setup.cache->slots());
    world.setup.cache->check_invariants();
  }
}

TEST_P(ScheduleConformance, IsDeterministic) {
  const auto run = [&] {
    World world(GetParam(), 16, {.seed = 3, .latency_ns = 80'000, .bytes_per_s = 1.5e9}, 3);
    for (int i = 0; i < 20; ++i) world.cycle(i % 4);
    return std::tuple(world.setup.clock.now_ns(), world.setup.total_stats().misses, world.setup.residents());
  };
  EXPECT_EQ(run(), run());
}

INSTANTIATE_TEST_SUITE_P(Parts, ScheduleConformance, ::testing::ValuesIn(all_parts()),
                         [](const auto& one) { return test_name(one.param); });

// --- what they are for

double seconds_per_cycle(const Parts& parts, double noise, int depth) {
  World world(parts, 24, {.seed = 5, .latency_ns = 50'000, .bytes_per_s = 2e9}, 5, noise);
  for (int i = 0; i < 30; ++i) world.cycle(depth);
  const int64_t start = world.setup.clock.now_ns();
  constexpr int kCycles = 100;
  for (int i = 0; i < kCycles; ++i) world.cycle(depth);
  return seconds(world.setup.clock.now_ns() - start) / kCycles;
}

TEST(Scheduler, PrefetchingHidesLoading) {
  const double on_demand = seconds_per_cycle({"none", "none", "lru"}, 0.2, 3);
  const double sp_moe = seconds_per_cycle({"cross", "cutoff", "lru"}, 0.2, 3);
  const double synchronous = seconds_per_cycle({"cross", "cutoff-sync", "lru"}, 0.2, 3);
  const double ours = seconds_per_cycle({"combined", "deadline", "draft-guided"}, 0.2, 3);
  EXPECT_LT(sp_moe, on_demand);
  EXPECT_LT(sp_moe, synchronous);
  EXPECT_LT(ours, sp_moe);
}

// What is read ahead never holds up a demand by more than may be under way at a time: the background limit, the
// demand's tail, and what each read's latency adds.
void expect_bounded_waits(const Parts& parts) {
  SCOPED_TRACE(test_name(parts));
  constexpr double kBytesPerS = 1e9;
  constexpr int64_t kLatencyNs = 50'000;
  // Experts so large that all that could be read ahead is far above the bound.
  World world(parts, 30, {.seed = 7, .latency_ns = kLatencyNs, .bytes_per_s = kBytesPerS}, 7, 0.3, 2048);
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(world.cycle(i % 5));
  const double background = static_cast<double>(kBackgroundBytesInFlight + kReadPieceBytes + kDemandTail);
  for (const World::Demand& demand : world.demands) {
    if (demand.missed_bytes == 0) {
      ASSERT_EQ(demand.waited_ns, 0);
      continue;
    }
    // Extents are read in whole blocks: a little more than their bytes.
    const double own_s = static_cast<double>(demand.missed_bytes) * 1.1 / kBytesPerS;
    const double latencies_s = 4 * 1.5 * seconds(kLatencyNs);
    ASSERT_LE(seconds(demand.waited_ns), own_s + background / kBytesPerS + latencies_s);
  }
}

TEST(Scheduler, DemandsWaitNoLongerThanTheBound) {
  for (const SchedulePolicy& policy : schedule_policies()) {
    expect_bounded_waits({std::string(policy.predictor), std::string(policy.prefetch), std::string(policy.eviction)});
  }
}

TEST(Scheduler, GoodPredictionsAreCountedAsSuch) {
  for (const double noise : {0.0, 1.0}) {
    World world({"cross", "none", "lru"}, 24, {.seed = 5}, 5, noise);
    for (int i = 0; i < 50; ++i) world.cycle(2);
    LayerForecastStats total;
    for (const LayerForecastStats& layer : world.scheduler->stats()) {
      total.predicted += layer.predicted;
      total.used += layer.used;
      total.hits += layer.hits;
    }
    if (noise == 0) {
      EXPECT_EQ(total.precision(), 1);
      EXPECT_GT(total.recall(), 0.7);  // the window's last token has no scores
    } else {
      EXPECT_LT(total.precision(), 0.9);
    }
  }
}

TEST(Policies, NameTheirParts) {
  for (const SchedulePolicy& policy : schedule_policies()) {
    EXPECT_NE(make_predictor(policy.predictor, kShapes), nullptr) << policy.name;
    EXPECT_NE(make_prefetch_policy(policy.prefetch), nullptr) << policy.name;
    EXPECT_NE(make_eviction_policy(policy.eviction), nullptr) << policy.name;
    EXPECT_TRUE(find_schedule_policy(policy.name).has_value());
  }
  EXPECT_FALSE(find_schedule_policy("nobody").has_value());
  EXPECT_TRUE(find_schedule_policy(kDefaultPolicy).has_value());
  for (const std::string& name : prefetch_policy_names()) EXPECT_EQ(make_prefetch_policy(name)->name(), name);
  EXPECT_EQ(make_prefetch_policy("nobody"), nullptr);
}

}  // namespace
}  // namespace drafthorse
