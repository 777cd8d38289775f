#include "plan/depth_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <vector>

namespace drafthorse {
namespace {

constexpr int kMaxDepth = 16;

// What a cycle costs and brings, as it really is. Seconds; one token without drafting takes about 1.
struct World {
  double acceptance = 0.8;       // of the first drafted token
  double acceptance_factor = 1;  // of each further one over the one before
  double draft = 0.1;            // per token
  double base = 0.9;             // compute of a window of n: base + slope * n
  double slope = 0.1;
  double missing = 0;           // experts the first token of a window misses
  double missing_factor = 0.9;  // of each further one over the one before
  double stall = 0;             // per missing expert

  double position_acceptance(int i) const { return acceptance * std::pow(acceptance_factor, i); }
  double added_missing(int i) const { return missing * std::pow(missing_factor, i); }
  double missing_of(int window) const {
    double total = 0;
    for (int i = 0; i < window; ++i) total += added_missing(i);
    return total;
  }
  double seconds(int depth) const { return depth * draft + base + slope * (depth + 1) + stall * missing_of(depth + 1); }
  double tokens(int depth) const {
    double total = 1;
    double reached = 1;
    for (int i = 0; i < depth; ++i) total += reached *= position_acceptance(i);
    return total;
  }
};

// One text: whether the draft gets a position right is the text's, so that all depths are compared on the same luck.
class Text {
 public:
  Text(World before, World after, int change_at, int length, uint64_t seed)
      : before_(before), after_(after), change_at_(change_at), length_(length), random_(seed) {
    std::uniform_real_distribution<double> uniform;
    for (int i = 0; i < length + kMaxDepth + 1; ++i) luck_.push_back(uniform(random_));
  }

  // Tokens per second of going through all of it. Times are the world's; what `observe` sees of them is noisy.
  double rate(const std::function<int()>& next_depth, const std::function<void(const CycleObservation&)>& observe) {
    double seconds = 0;
    int done = 0;
    while (done < length_) {
      const World& world = done < change_at_ ? before_ : after_;
      const int depth = next_depth();
      int accepted = 0;
      while (accepted < depth && luck_[done + accepted] < world.position_acceptance(accepted)) ++accepted;
      seconds += world.seconds(depth);
      done += accepted + 1;
      std::vector<int64_t> missing;
      int64_t total = 0;
      for (int i = 0; i <= depth && world.missing > 0; ++i) {
        total += std::poisson_distribution<int64_t>(world.added_missing(i))(random_);
        missing.push_back(total);
      }
      const double stall = noisy(world.stall * static_cast<double>(total));
      observe({depth, accepted, noisy(depth * world.draft), noisy(world.base + world.slope * (depth + 1)) + stall,
               stall, missing});
    }
    return done / seconds;
  }
  double rate(int fixed_depth) {
    return rate([&] { return fixed_depth; }, [](const CycleObservation&) {});
  }
  double rate(DepthPolicy& policy) {
    return rate([&] { return policy.next_depth(kMaxDepth); }, [&](const CycleObservation& o) { policy.observe(o); });
  }
  // The depth one would fix knowing both worlds.
  int best_fixed_depth() const {
    const double share = std::min(1.0, static_cast<double>(change_at_) / length_);
    const auto seconds_per_token = [&](int depth) {
      return share * before_.seconds(depth) / before_.tokens(depth) +
             (1 - share) * after_.seconds(depth) / after_.tokens(depth);
    };
    int best = 0;
    for (int depth = 1; depth <= kMaxDepth; ++depth) {
      if (seconds_per_token(depth) < seconds_per_token(best)) best = depth;
    }
    return best;
  }

 private:
  double noisy(double seconds) { return seconds * std::exp(std::normal_distribution<double>(0, 0.05)(random_)); }

  World before_;
  World after_;
  int change_at_;
  int length_;
  std::mt19937_64 random_;
  std::vector<double> luck_;
};

constexpr int kNever = 1 << 30;
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
    DepthPolicy policy(kMaxDepth);
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
      DepthPolicy policy(kMaxDepth);
      if (primed) policy.prime(prompt_of(world, seed));
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

// After a change it must do better than any depth that never changes, and find back when it changes again.
TEST(DepthPolicy, FollowsChanges) {
  for (const bool rises : {false, true}) {
    SCOPED_TRACE(rises ? "rises" : "drops");
    double gain = 0;
    constexpr int kTexts = 20;
    for (uint64_t seed = 1; seed <= kTexts; ++seed) {
      Text text(rises ? kNotWorthIt : kWorthIt, rises ? kWorthIt : kNotWorthIt, 300, 800, seed);
      DepthPolicy policy(kMaxDepth);
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
  text.rate([&] { return static_cast<int>(random() % 9); }, [&](const CycleObservation& o) { policy.observe(o); });
  for (int depth = 0; depth <= 8; ++depth) {
    EXPECT_NEAR(policy.expected_seconds(depth) / world.seconds(depth), 1, 0.15) << depth;
    EXPECT_NEAR(policy.expected_tokens(depth) / world.tokens(depth), 1, 0.2) << depth;
  }
}

TEST(DepthPolicy, StaysWithinRoomAndMaximum) {
  for (const int max_depth : {0, 1, 3, kMaxDepth}) {
    DepthPolicy policy(max_depth);
    std::mt19937_64 random(3);
    for (int i = 0; i < 300; ++i) {
      const int room = static_cast<int>(random() % 20);
      const int depth = policy.next_depth(room);
      ASSERT_GE(depth, 0);
      ASSERT_LE(depth, std::min(room, max_depth));
      // Every other cycle as a dense model reports it.
      const std::vector<int64_t> missing(i % 2 == 0 ? static_cast<size_t>(depth) + 1 : 0, 3);
      policy.observe({depth, depth, 0.01 * depth, 1.0, 0.2, missing});
      EXPECT_FALSE(policy.explain().empty());
      EXPECT_TRUE(std::isfinite(policy.expected_seconds(max_depth)));
    }
  }
}

// Clocks may show nothing for very small models.
TEST(DepthPolicy, SurvivesZeroTimes) {
  DepthPolicy policy(4);
  for (int i = 0; i < 50; ++i) {
    const int depth = policy.next_depth(4);
    policy.observe({depth, 0, 0, 0, 0, {}});
    ASSERT_TRUE(std::isfinite(policy.expected_seconds(4)));
  }
}

}  // namespace
}  // namespace drafthorse
