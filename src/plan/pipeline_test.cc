#include "plan/pipeline.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

namespace drafthorse {
namespace {

// Dense layers take what one says whatever the tokens; so do attention and experts.
ModelCost model(int layers, int experts, double dense_s, double attention_s, double expert_s, double head_s = 0) {
  ModelCost cost;
  for (int i = 0; i < layers; ++i) {
    cost.layers.push_back({CostCurve::line(dense_s, 0), CostCurve::line(expert_s, 0), experts});
  }
  cost.attention = {attention_s, 0};
  cost.head = CostCurve::line(head_s, 0);
  cost.popularity.assign(static_cast<size_t>(experts), 1.0);  // every token uses all
  cost.expert_bytes = 1;
  return cost;
}

Platform one_unit(double bytes_per_s) { return {.link_bytes_per_s = bytes_per_s}; }

Iteration iteration_of(Pipeline pipeline, double buffer) {
  Iteration out;
  out.pipeline = pipeline;
  out.pass = {.tokens = 8, .token_keys = 1, .keys = 1, .heads = 8};
  out.buffer_experts = buffer;
  return out;
}

double sum(const SecondsByComponent& seconds) { return std::accumulate(seconds.begin(), seconds.end(), 0.0); }
double of(const SecondsByComponent& seconds, Component component) { return seconds[static_cast<size_t>(component)]; }

// kStreamed as two loops with indices, for as many iterations as the real one makes.
double streamed_by_hand(int layers, int experts, double dense, double attention, double expert, double load, int buffer,
                        double draft, double other, double head) {
  std::vector<double> computed;
  double link = 0;
  double now = 0;
  double before = 0;
  for (int iteration = 0; iteration < 4; ++iteration) {
    before = now;
    now += draft;
    for (int layer = 0; layer < layers; ++layer) {
      now += attention + dense;
      for (int e = 0; e < experts; ++e) {
        const size_t room_from = computed.size();
        const double room =
            room_from >= static_cast<size_t>(buffer) ? computed[room_from - static_cast<size_t>(buffer)] : 0;
        link = std::max(link, room) + load;
        now = std::max(now, link) + expert;
        computed.push_back(now);
      }
    }
    now += head + other;
  }
  return now - before;
}

TEST(Pipeline, StreamedIsWhatTwoLoopsSay) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const auto seconds = [&] { return static_cast<double>(random() % 9); };
    const int layers = 1 + static_cast<int>(random() % 5);
    const int experts = 1 + static_cast<int>(random() % 8);
    const int buffer = 1 + static_cast<int>(random() % static_cast<uint64_t>(3 * experts));
    const double dense = seconds(), attention = seconds(), expert = seconds(), load = 1 + seconds();
    const double draft = seconds(), other = seconds(), head = seconds();
    Iteration iteration = iteration_of(Pipeline::kStreamed, buffer);
    iteration.draft.device_s = draft;
    iteration.other_s = other;
    const IterationPrediction out =
        simulate_iteration(model(layers, experts, dense, attention, expert, head), one_unit(1 / load), iteration, true);
    const double by_hand =
        streamed_by_hand(layers, experts, dense, attention, expert, load, buffer, draft, other, head);
    EXPECT_NEAR(out.seconds, by_hand, 1e-9 * (1 + by_hand));
    EXPECT_NEAR(sum(out.critical), out.seconds, 1e-9 * (1 + out.seconds));
    EXPECT_EQ(out.loaded_bytes, layers * experts);
    // Never faster than its slower unit, never slower than one after the other.
    const double compute = draft + other + head + layers * (dense + attention + experts * expert);
    const double loads = layers * experts * load;
    EXPECT_GE(out.seconds, std::max(compute, loads) * (1 - 1e-9));
    EXPECT_LE(out.seconds, (compute + loads) * (1 + 1e-9));
    EXPECT_NEAR(of(out.busy, Component::kExperts), layers * experts * expert, 1e-9 * (1 + loads));
    for (const TimelineEvent& event : out.timeline) {
      EXPECT_GE(event.start_s, 0);
      EXPECT_LE(event.end_s, out.seconds * (1 + 1e-9));
    }
  }
}

// What a pass seldom uses is loaded once the router has spoken: attention hides none of it.
TEST(Pipeline, OnlyWhatIsForeseenIsLoadedBeforeItsRouting) {
  constexpr double kAttention = 5, kLoad = 4;
  for (const double popularity : {0.5, 0.2}) {  // used by eight tokens with probability .996 and .83
    ModelCost cost = model(3, 1, 0, kAttention, 0);
    cost.popularity = {popularity};
    const double loaded = experts_loaded(cost.popularity, 8, 0);
    const double seconds = simulate_iteration(cost, one_unit(1 / kLoad), iteration_of(Pipeline::kStreamed, 8)).seconds;
    const bool foreseen = popularity == 0.5;
    EXPECT_NEAR(seconds, 3 * (kAttention + (foreseen ? 0 : loaded * kLoad)), 1e-9) << popularity;
  }
}

// Few are missing, some in one layer and none in another: a layer that waits for two loses more than one that waits for
// none gains.
TEST(Pipeline, FewMissingExpertsAreWholeOnesHereAndThere) {
  constexpr int kLayers = 24, kSure = 6, kSeldom = 3, kTokens = 8;
  constexpr double kAttention = 2, kExpert = 1, kLoad = 6;
  for (const double used : {0.1, 0.3, 0.6}) {
    ModelCost cost = model(kLayers, kSure + kSeldom, 0, kAttention, kExpert);
    for (int e = kSure; e < kSure + kSeldom; ++e) cost.popularity[e] = 1 - std::pow(1 - used, 1.0 / kTokens);
    Iteration iteration = iteration_of(Pipeline::kStreamed, 4);
    iteration.resident_experts = kSure;
    const IterationPrediction out = simulate_iteration(cost, one_unit(1 / kLoad), iteration);
    // The same, drawn: those seldom used are the ones that are absent.
    std::mt19937_64 random(7);
    std::bernoulli_distribution is_used(used);
    constexpr int kDraws = 20000;
    double seconds = 0, loads = 0;
    for (int draw = 0; draw < kDraws; ++draw) {
      int missing = 0;
      for (int e = 0; e < kSeldom; ++e) missing += is_used(random) ? 1 : 0;
      loads += missing;
      double now = kSure * kExpert;
      for (int i = 1; i <= missing; ++i) now = std::max(now, i * kLoad) + kExpert;
      seconds += kAttention + now;
    }
    EXPECT_NEAR(out.loaded_bytes / kLayers, loads / kDraws, 0.05 * loads / kDraws) << used;
    EXPECT_NEAR(out.seconds / kLayers, seconds / kDraws, 0.04 * seconds / kDraws) << used;
  }
}

TEST(Pipeline, OnDemandIsTheSum) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const auto seconds = [&] { return static_cast<double>(1 + random() % 9); };
    const int layers = 1 + static_cast<int>(random() % 5);
    const int experts = 1 + static_cast<int>(random() % 40);
    const double dense = seconds(), attention = seconds(), expert = seconds(), load = seconds(), draft = seconds();
    Iteration iteration = iteration_of(Pipeline::kOnDemand, experts);
    iteration.draft.device_s = draft;
    ModelCost cost = model(layers, experts, dense, attention, expert);
    const auto without = static_cast<int>(random() % 3);  // leading layers without experts
    cost.layers.insert(cost.layers.begin(), static_cast<size_t>(without), {CostCurve::line(dense, 0), {}, 0});
    const double out = simulate_iteration(cost, one_unit(1 / load), iteration).seconds;
    EXPECT_NEAR(out, draft + (without + layers) * (dense + attention) + layers * experts * (expert + load), 1e-9 * out);
  }
}

TEST(Pipeline, ResidentExpertsAreNotLoaded) {
  const ModelCost cost = model(4, 8, 1, 1, 1);
  Iteration iteration = iteration_of(Pipeline::kStreamed, 16);
  double before = 1e18;
  for (int resident = 0; resident <= 8; ++resident) {
    iteration.resident_experts = resident;
    const IterationPrediction out = simulate_iteration(cost, one_unit(0.2), iteration);
    EXPECT_NEAR(out.loaded_bytes, 4 * (8 - resident), 1e-9);
    EXPECT_LE(out.seconds, before);
    before = out.seconds;
    // Loads and computing take the same with 6.
    if (resident != 6) {
      EXPECT_EQ(out.limit, resident > 6 ? Component::kExperts : Component::kLoad) << resident;
    }
  }
  EXPECT_DOUBLE_EQ(before, 4 * (1 + 1 + 8));
}

TEST(Pipeline, MoreBufferIsNeverSlower) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    std::uniform_real_distribution<double> uniform(0.1, 3);
    const ModelCost cost = model(6, 8, 4 * uniform(random), 4 * uniform(random), uniform(random));
    const Platform platform = one_unit(1 / uniform(random));
    double before = 1e18;
    for (const double buffer : {1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0}) {
      const double now = simulate_iteration(cost, platform, iteration_of(Pipeline::kStreamed, buffer)).seconds;
      EXPECT_LE(now, before * (1 + 1e-9)) << buffer;
      before = now;
    }
  }
}

TEST(Pipeline, LimitsAreNamed) {
  const auto limit = [](double dense, double attention, double expert, double load, double draft) {
    Iteration iteration = iteration_of(Pipeline::kStreamed, 16);
    iteration.draft.device_s = draft;
    return simulate_iteration(model(4, 8, dense, attention, expert), one_unit(1 / load), iteration).limit;
  };
  EXPECT_EQ(limit(1, 1, 0.1, 5, 1), Component::kLoad);
  EXPECT_EQ(limit(9, 1, 0.1, 0.1, 1), Component::kDense);
  EXPECT_EQ(limit(1, 9, 0.1, 0.1, 1), Component::kAttention);
  EXPECT_EQ(limit(1, 1, 2, 1, 1), Component::kExperts);
  EXPECT_EQ(limit(1, 1, 0.1, 0.1, 90), Component::kDraft);
}

TEST(Pipeline, ReadsSlowComputingDownWhereTheProcessorServesThem) {
  const ModelCost cost = model(8, 4, 2, 2, 1);
  Platform platform = one_unit(1);
  const Iteration iteration = iteration_of(Pipeline::kStreamed, 8);
  const double alone = simulate_iteration(cost, platform, iteration).seconds;
  platform.compute_slowdown_while_loading = 1.5;
  // Half of the computing is beside loads: 32 of 64 seconds.
  EXPECT_NEAR(simulate_iteration(cost, platform, iteration).seconds / alone, 1.25, 0.02);
}

// --- a device

Platform device(double bytes_per_s) {
  Platform out = one_unit(bytes_per_s);
  out.device = true;
  out.pre_attention_share = 0.5;
  return out;
}

TEST(TwoMicroBatches, AttentionAndDeviceWorkSideBySide) {
  // Per layer and micro-batch 10 s of attention on the processor, 2 + 8 on the device.
  const ModelCost cost = model(20, 8, 2, 20, 1);
  Iteration iteration = iteration_of(Pipeline::kTwoMicroBatches, 16);
  iteration.micro_batches = 2;
  const IterationPrediction both = simulate_iteration(cost, device(1e6), iteration);
  EXPECT_LT(both.seconds, 20 * 2 * 10 * 1.1);
  EXPECT_GE(both.seconds, 20 * 2 * 10);
  iteration.micro_batches = 1;
  // 20 + 2 + 8.
  EXPECT_NEAR(simulate_iteration(cost, device(1e6), iteration).seconds, 20 * 30, 0.01);
}

TEST(TwoMicroBatches, NoUnitWorksMoreThanTheTimeThereIs) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    std::uniform_real_distribution<double> uniform(0.1, 3);
    const ModelCost cost = model(2 + static_cast<int>(random() % 8), 8, 5 * uniform(random), 8 * uniform(random),
                                 uniform(random), uniform(random));
    Platform platform = device(1 / uniform(random));
    platform.activation_bytes_in = 0.1 * uniform(random);
    platform.activation_bytes_out = 0.1 * uniform(random);
    Iteration iteration = iteration_of(Pipeline::kTwoMicroBatches, 16);
    iteration.micro_batches = 1 + static_cast<int>(random() % 4);
    iteration.draft = {uniform(random), uniform(random)};
    const IterationPrediction out = simulate_iteration(cost, platform, iteration, true);
    EXPECT_NEAR(sum(out.critical), out.seconds, 1e-9 * out.seconds);
    std::vector<std::pair<std::string, double>> busy;
    for (const TimelineEvent& event : out.timeline) {
      auto at = std::find_if(busy.begin(), busy.end(), [&](const auto& one) { return one.first == event.unit; });
      if (at == busy.end()) at = busy.insert(busy.end(), {event.unit, 0});
      at->second += event.end_s - event.start_s;
    }
    EXPECT_EQ(busy.size(), 4U);
    for (const auto& [unit, seconds] : busy) EXPECT_LE(seconds, out.seconds * (1 + 1e-9)) << unit;
    EXPECT_GE(out.seconds, out.target_s);
    // A faster link never hurts, in the long run.
    platform.link_bytes_per_s *= 4;
    EXPECT_LE(simulate_iteration(cost, platform, iteration).seconds, out.seconds * 1.05);
  }
}

}  // namespace
}  // namespace drafthorse
