#include "model/routing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

namespace drafthorse {
namespace {

ModelConfig config_of(int32_t experts, int32_t used, const RoutingConfig& routing) {
  ModelConfig config;
  config.n_expert = experts;
  config.n_expert_used = used;
  config.routing = routing;
  return config;
}

std::vector<RoutedExpert> route(const ModelConfig& config, const std::vector<float>& logits,
                                const std::vector<float>& bias = {}) {
  std::vector<RoutedExpert> out(static_cast<size_t>(config.n_expert_used));
  route_token(logits, bias, config, out);
  return out;
}

std::vector<int> ids(const std::vector<RoutedExpert>& routed) {
  std::vector<int> out;
  for (const RoutedExpert& one : routed) out.push_back(index(one.expert));
  return out;
}

TEST(Routing, NormalisedWeightsSumToTheScale) {
  const ModelConfig config = config_of(4, 2, {.normalised = true, .scale = 2.5F});
  const auto routed = route(config, {1, 3, 2, 0});
  EXPECT_EQ(ids(routed), (std::vector<int>{1, 2}));
  EXPECT_NEAR(routed[0].weight + routed[1].weight, 2.5, 1e-6);
  EXPECT_NEAR(routed[0].weight / routed[1].weight, std::exp(1.0), 1e-5);
}

TEST(Routing, OtherwiseWeightsAreTheProbabilitiesOfAll) {
  const ModelConfig config = config_of(4, 2, {.normalised = false});
  const auto routed = route(config, {1, 3, 2, 0});
  const double all = std::exp(1.0) + std::exp(3.0) + std::exp(2.0) + 1;
  EXPECT_NEAR(routed[0].weight, std::exp(3.0) / all, 1e-6);
  EXPECT_NEAR(routed[1].weight, std::exp(2.0) / all, 1e-6);
}

TEST(Routing, TheBiasChoosesAndDoesNotWeigh) {
  const ModelConfig config = config_of(3, 1, {.gating = ExpertGating::kSigmoid, .normalised = false});
  const auto routed = route(config, {2, 1, 0}, {0, 0, 1});
  EXPECT_EQ(ids(routed), std::vector<int>{2});
  EXPECT_FLOAT_EQ(routed[0].weight, 0.5F);
}

TEST(Routing, OnlyExpertsOfTheBestGroups) {
  // The largest is 0, but groups are judged by their best two: group 1 has 0.9 + 0.8.
  const ModelConfig config =
      config_of(6, 2, {.gating = ExpertGating::kSigmoid, .normalised = false, .n_group = 3, .n_group_used = 1});
  const auto logit = [](double p) { return static_cast<float>(std::log(p / (1 - p))); };
  const auto routed = route(config, {logit(0.95), logit(0.1), logit(0.9), logit(0.8), logit(0.5), logit(0.6)});
  EXPECT_EQ(ids(routed), (std::vector<int>{2, 3}));
}

TEST(Routing, EqualsGoToTheLowerId) {
  EXPECT_EQ(ids(route(config_of(5, 2, {}), {1, 1, 1, 1, 1})), (std::vector<int>{0, 1}));
  EXPECT_EQ(ids(route(config_of(4, 1, {.n_group = 2, .n_group_used = 1}), {1, 1, 1, 1})), std::vector<int>{0});
}

TEST(Routing, NoNumberComesLast) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const RoutingConfig& routing :
       {RoutingConfig{}, RoutingConfig{.gating = ExpertGating::kSigmoid},
        RoutingConfig{.gating = ExpertGating::kSigmoid, .n_group = 2, .n_group_used = 2}}) {
    EXPECT_EQ(ids(route(config_of(4, 2, routing), {nan, 1, nan, 2})), (std::vector<int>{1, 3}));
    EXPECT_EQ(route(config_of(4, 2, routing), {nan, nan, nan, nan}).size(), 2U);
  }
}

TEST(Routing, MinusInfinityIsOutWhateverItsBias) {
  const float out = -std::numeric_limits<float>::infinity();
  const ModelConfig config = config_of(4, 2, {.gating = ExpertGating::kSigmoid, .normalised = true});
  const auto routed = route(config, {out, -3, 1, out}, {5, 0, 0, 5});
  EXPECT_EQ(ids(routed), (std::vector<int>{1, 2}));
  EXPECT_NEAR(routed[0].weight + routed[1].weight, 1, 1e-6);
}

TEST(Routing, IdsAscendAndAreDistinct) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (int i = 0; i < 200; ++i) {
    const ModelConfig config = config_of(32, 6, {.n_group = i % 2 == 0 ? 1 : 4, .n_group_used = 2});
    std::vector<float> logits(32);
    for (float& logit : logits) logit = normal(random);
    const std::vector<int> chosen = ids(route(config, logits));
    EXPECT_TRUE(std::is_sorted(chosen.begin(), chosen.end(), std::less_equal<>()));
  }
}

}  // namespace
}  // namespace drafthorse
