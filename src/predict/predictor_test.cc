#include "predict/predictor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "predict/ranking.h"

namespace drafthorse {
namespace {

// A world whose routing follows from hidden scores: each token has a score per expert that drifts from token to token,
// a source shows it with noise, and the router takes the best.
class World {
 public:
  World(uint64_t seed, RoutingShapes shapes, double noise) : random_(seed), shapes_(std::move(shapes)), noise_(noise) {
    for (const int experts : shapes_.experts_by_layer) hidden_.emplace_back(static_cast<size_t>(experts));
  }

  // One cycle of a window with `tokens` tokens, of which the source scores the first `scored`. Returns the mean share
  // of the truly used experts among as many experts of highest need.
  double cycle(Predictor& predictor, Forecast& forecast, ScoreSource source, int tokens, int scored) {
    std::vector<std::vector<std::vector<float>>> scores;
    for (int t = 0; t < tokens; ++t) {
      drift();
      scores.push_back(hidden_);
    }
    predictor.begin_window(forecast);
    for (int t = 0; t < scored; ++t) {
      for (int l = 0; l < layers(); ++l) {
        std::vector<float> shown = scores[t][l];
        for (float& one : shown) one += static_cast<float>(noise_) * normal_(random_);
        if (!shown.empty()) predictor.scored({source, t, LayerId{l}, shown}, forecast);
      }
    }
    predictor.drafted(tokens, forecast);
    double found = 0;
    int counted = 0;
    for (int l = 0; l < layers(); ++l) {
      const int experts = shapes_.experts_by_layer[l];
      if (experts == 0) continue;
      std::vector<ExpertId> used;
      std::vector<char> in_union(static_cast<size_t>(experts));
      for (int t = 0; t < tokens; ++t) {
        for (const ExpertId e : rank_experts(scores[t][l], static_cast<size_t>(shapes_.n_expert_used))) {
          used.push_back(e);
          in_union[static_cast<size_t>(index(e))] = 1;
        }
      }
      std::vector<float> need;
      for (int e = 0; e < experts; ++e) {
        const double p = forecast.need({LayerId{l}, ExpertId{e}});
        EXPECT_GE(p, 0);
        EXPECT_LE(p, 1);
        need.push_back(static_cast<float>(p));
      }
      const auto size = static_cast<size_t>(std::count(in_union.begin(), in_union.end(), 1));
      double hits = 0;
      for (const ExpertId e : rank_experts(need, size)) hits += in_union[static_cast<size_t>(index(e))];
      found += hits / static_cast<double>(size);
      ++counted;
      predictor.routed(LayerId{l}, used, forecast);
      forecast.forget(LayerId{l});
    }
    predictor.committed(std::max(1, tokens / 2));
    return counted == 0 ? 0 : found / counted;
  }

 private:
  int layers() const { return static_cast<int>(hidden_.size()); }
  void drift() {
    for (auto& layer : hidden_) {
      for (float& one : layer) one = 0.6F * one + 0.8F * normal_(random_);
    }
  }

  std::mt19937_64 random_;
  std::normal_distribution<float> normal_;
  RoutingShapes shapes_;
  double noise_;
  std::vector<std::vector<float>> hidden_;
};

const RoutingShapes kShapes = {{0, 16, 16, 16}, 2};

// --- what every predictor must hold to

class PredictorConformance : public ::testing::TestWithParam<std::string> {};

TEST_P(PredictorConformance, HasItsName) {
  const auto predictor = make_predictor(GetParam(), kShapes);
  ASSERT_NE(predictor, nullptr);
  EXPECT_EQ(predictor->name(), GetParam());
}

TEST_P(PredictorConformance, NeedsAreProbabilitiesWhateverComes) {
  constexpr uint64_t kSeed = 5;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  std::mt19937_64 random(kSeed);
  for (int round = 0; round < 30; ++round) {
    RoutingShapes shapes;
    shapes.n_expert_used = 1 + static_cast<int>(random() % 4);
    const int layers = 1 + static_cast<int>(random() % 5);
    for (int l = 0; l < layers; ++l) {
      shapes.experts_by_layer.push_back(random() % 4 == 0 ? 0 : shapes.n_expert_used + static_cast<int>(random() % 9));
    }
    const auto predictor = make_predictor(GetParam(), shapes);
    Forecast forecast(shapes.experts_by_layer);
    World world(random(), shapes, 0.5);
    for (int cycle = 0; cycle < 20; ++cycle) {
      const int tokens = 1 + static_cast<int>(random() % 6);
      const auto source = static_cast<ScoreSource>(random() % kScoreSources);
      world.cycle(*predictor, forecast, source, tokens, static_cast<int>(random() % 7) % (tokens + 1));
    }
  }
}

TEST_P(PredictorConformance, TakesNumbersThatAreNone) {
  const auto predictor = make_predictor(GetParam(), kShapes);
  Forecast forecast(kShapes.experts_by_layer);
  std::vector<float> logits(16, std::numeric_limits<float>::quiet_NaN());
  predictor->begin_window(forecast);
  for (int s = 0; s < kScoreSources; ++s) predictor->scored({ScoreSource{s}, 0, LayerId{1}, logits}, forecast);
  predictor->drafted(1, forecast);
  for (int e = 0; e < 16; ++e) EXPECT_TRUE(std::isfinite(forecast.need({LayerId{1}, ExpertId{e}})));
}

INSTANTIATE_TEST_SUITE_P(Predictors, PredictorConformance, ::testing::ValuesIn(predictor_names()), [](const auto& one) {
  std::string name = one.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

// --- what each is good for

double quality(std::string_view name, ScoreSource source, double noise, int tokens, int scored) {
  const auto predictor = make_predictor(name, kShapes);
  Forecast forecast(kShapes.experts_by_layer);
  World world(9, kShapes, noise);
  for (int i = 0; i < 500; ++i) world.cycle(*predictor, forecast, source, tokens, scored);
  constexpr int kCycles = 500;
  double sum = 0;
  for (int i = 0; i < kCycles; ++i) sum += world.cycle(*predictor, forecast, source, tokens, scored);
  return sum / kCycles;
}

TEST(Predictor, ExactScoresFindEverything) {
  EXPECT_EQ(quality("cross", ScoreSource::kCrossModel, 0, 1, 1), 1);
  EXPECT_EQ(quality("cross", ScoreSource::kCrossModel, 0, 4, 4), 1);
  EXPECT_GT(quality("combined", ScoreSource::kCrossModel, 0, 4, 4), 0.97);
}

TEST(Predictor, ListensToItsOwnSourceOnly) {
  EXPECT_LT(quality("cross", ScoreSource::kNextGate, 0, 1, 1), 0.3);
  EXPECT_EQ(quality("next-gate", ScoreSource::kNextGate, 0, 1, 1), 1);
}

TEST(Predictor, CombinedIsNoWorseThanItsParts) {
  for (const double noise : {0.3, 1.0}) {
    const double cross = quality("cross", ScoreSource::kCrossModel, noise, 4, 3);
    EXPECT_GT(quality("combined", ScoreSource::kCrossModel, noise, 4, 3), cross - 0.005) << noise;
  }
  // Of a window without a draft it knows what the last token used.
  EXPECT_GT(quality("combined", ScoreSource::kCrossModel, 0, 1, 0), 0.3);
}

TEST(Predictor, CalibratesItsProbabilities) {
  const auto predictor = make_predictor("combined", kShapes);
  Forecast forecast(kShapes.experts_by_layer);
  World world(3, kShapes, 0.7);
  for (int i = 0; i < 500; ++i) world.cycle(*predictor, forecast, ScoreSource::kCrossModel, 1, 1);
  // The needs of a layer add up to what a token uses.
  double sum = 0;
  constexpr int kCycles = 50;
  std::vector<float> logits(16);
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  for (int i = 0; i < kCycles; ++i) {
    for (float& one : logits) one = normal(random);
    predictor->begin_window(forecast);
    predictor->scored({ScoreSource::kCrossModel, 0, LayerId{2}, logits}, forecast);
    for (int e = 0; e < 16; ++e) sum += forecast.need({LayerId{2}, ExpertId{e}});
  }
  EXPECT_NEAR(sum / kCycles, 2, 0.3);
}

TEST(Predictor, FrequencyCountsTokens) {
  const auto predictor = make_predictor("frequency", kShapes);
  Forecast forecast(kShapes.experts_by_layer);
  predictor->begin_window(forecast);
  std::vector<float> logits(16);
  logits[3] = 2;
  logits[5] = 1;
  predictor->scored({ScoreSource::kCrossModel, 0, LayerId{1}, logits}, forecast);
  logits[5] = 0;
  logits[6] = 1;
  predictor->scored({ScoreSource::kCrossModel, 1, LayerId{1}, logits}, forecast);
  EXPECT_EQ(forecast.votes({LayerId{1}, ExpertId{3}}), 2);
  EXPECT_EQ(forecast.need({LayerId{1}, ExpertId{3}}), 1);
  EXPECT_EQ(forecast.need({LayerId{1}, ExpertId{5}}), 0.5);
  EXPECT_EQ(forecast.need({LayerId{1}, ExpertId{6}}), 0.5);
  EXPECT_FALSE(forecast.covers(LayerId{2}));
}

TEST(Predictor, TraceFollowsThePastThatBeganAlike) {
  const auto predictor = make_predictor("trace", kShapes);
  Forecast forecast(kShapes.experts_by_layer);
  const auto window = [&](int first, int then) {
    predictor->begin_window(forecast);
    for (int l = 1; l < 4; ++l) {
      const int e = l == 1 ? first : then;
      const ExpertId used[] = {ExpertId{e}, ExpertId{e + 1}};
      predictor->routed(LayerId{l}, used, forecast);
    }
    predictor->committed(1);
  };
  window(0, 4);
  window(8, 12);
  predictor->begin_window(forecast);
  const ExpertId used[] = {ExpertId{0}, ExpertId{1}};
  predictor->routed(LayerId{1}, used, forecast);
  EXPECT_EQ(forecast.need({LayerId{3}, ExpertId{4}}), 1);
  EXPECT_EQ(forecast.need({LayerId{3}, ExpertId{12}}), 0);
}

TEST(Forecast, NeedsOfTokensAreIndependent) {
  const int experts[] = {4};
  Forecast forecast(experts);
  EXPECT_FALSE(forecast.covers(LayerId{0}));
  forecast.add({LayerId{0}, ExpertId{1}}, 0.5);
  forecast.add({LayerId{0}, ExpertId{1}}, 0.5);
  EXPECT_TRUE(forecast.covers(LayerId{0}));
  EXPECT_DOUBLE_EQ(forecast.need({LayerId{0}, ExpertId{1}}), 0.75);
  forecast.forget(LayerId{0});
  EXPECT_FALSE(forecast.covers(LayerId{0}));
  EXPECT_EQ(forecast.need({LayerId{0}, ExpertId{1}}), 0);
}

}  // namespace
}  // namespace drafthorse
