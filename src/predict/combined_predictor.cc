// All evidence at once. For each (token, expert) a logistic regression over what is known: the log-odds that each
// source's rank means by itself (calibrated by layer and rank), how popular the expert is, and whether the text's last
// token used it. Which sources are there differs from token to token (the last drafted token has none of the draft's,
// the next gate speaks only while verifying), so each set of sources has weights of its own. They begin where they
// would stand if the sources were equally good and independent of popularity, and learn from every window.
#include <algorithm>
#include <array>
#include <cmath>

#include "base/check.h"
#include "predict/log_odds.h"
#include "predict/predictors.h"
#include "predict/ranking.h"

namespace drafthorse {
namespace {

constexpr int kFeatures = kScoreSources + 3;  // sources, then:
constexpr int kBias = kScoreSources;
constexpr int kPopularity = kScoreSources + 1;
constexpr int kRecent = kScoreSources + 2;
constexpr unsigned kSourceSets = 1U << kScoreSources;

constexpr double kRateGain = 0.04;  // of the newest token in popularity
constexpr double kLearning = 0.05;  // first step; later ones are smaller (AdaGrad)
constexpr double kMostLogOdds = 6;

double log_odds(double p) {
  constexpr double kLeast = 0.0025;
  return drafthorse::log_odds(p, kLeast);
}

using Features = std::array<double, kFeatures>;

double probability(const Features& weights, const Features& features) {
  double z = 0;
  for (int f = 0; f < kFeatures; ++f) z += weights[f] * features[f];
  return 1 / (1 + std::exp(-std::clamp(z, -kMostLogOdds, kMostLogOdds)));
}

class CombinedPredictor final : public Predictor {
 public:
  explicit CombinedPredictor(const RoutingShapes& shapes) : shapes_(shapes), layers_(shapes.experts_by_layer.size()) {
    for (int s = 0; s < kScoreSources; ++s) calibration_.emplace_back(shapes);
    for (size_t i = 0; i < layers_.size(); ++i) {
      const auto experts = static_cast<size_t>(shapes.experts_by_layer[i]);
      const double even = experts == 0 ? 0 : static_cast<double>(shapes.n_expert_used) / static_cast<double>(experts);
      layers_[i].rate.assign(experts, even);
      layers_[i].recent.assign(experts, 0);
    }
    for (unsigned set = 0; set < kSourceSets; ++set) begin_weights(set);
  }

  std::string_view name() const override { return "combined"; }
  std::vector<ScoreSource> wants() const override {
    return {ScoreSource::kCrossModel, ScoreSource::kDraftRouter, ScoreSource::kFitted, ScoreSource::kNextGate};
  }

  void begin_window(Forecast& forecast) override {
    forecast.clear();
    for (Layer& layer : layers_) layer.tokens.clear();
    // Until more is known the window is one token.
    expect_all(1, forecast);
  }

  void scored(const TokenScores& scores, Forecast& forecast) override {
    Layer& layer = layers_[index(scores.layer)];
    OfToken& token = of_token(layer, scores.token);
    const auto source = static_cast<size_t>(scores.source);
    token.ranked[source] = rank_experts(scores.logits, static_cast<size_t>(calibration_[source].ranks()));
    token.probability.clear();
    expect(scores.layer, static_cast<int32_t>(layer.tokens.size()), forecast);
    const auto& ranked = token.ranked[source];
    for (size_t r = 0; r < ranked.size() && r < static_cast<size_t>(shapes_.n_expert_used); ++r) {
      forecast.vote({scores.layer, ranked[r]});
    }
  }

  void drafted(int32_t tokens, Forecast& forecast) override { expect_all(tokens, forecast); }

  void routed(LayerId id, std::span<const ExpertId> used, Forecast&) override {
    Layer& layer = layers_[index(id)];
    const auto k = static_cast<size_t>(shapes_.n_expert_used);
    layer.used.assign(used.begin(), used.end());
    const auto tokens = static_cast<int32_t>(used.size() / k);
    std::vector<char> is_used(layer.rate.size());
    for (int32_t t = 0; t < tokens; ++t) {
      const auto truth = used.subspan(static_cast<size_t>(t) * k, k);
      std::fill(is_used.begin(), is_used.end(), 0);
      for (const ExpertId e : truth) is_used[static_cast<size_t>(index(e))] = 1;
      learn(id, of_token(layer, t), is_used);
    }
  }

  void committed(int32_t tokens) override {
    const auto k = static_cast<size_t>(shapes_.n_expert_used);
    for (Layer& layer : layers_) {
      if (layer.used.size() < static_cast<size_t>(tokens) * k) continue;  // an interrupted window
      for (int32_t t = 0; t < tokens; ++t) {
        for (double& rate : layer.rate) rate *= 1 - kRateGain;
        std::fill(layer.recent.begin(), layer.recent.end(), 0);
        for (size_t i = 0; i < k; ++i) {
          const int32_t e = index(layer.used[static_cast<size_t>(t) * k + i]);
          layer.rate[e] += kRateGain;
          layer.recent[e] = 1;
        }
      }
      layer.used.clear();
    }
  }

 private:
  struct OfToken {
    std::array<std::vector<ExpertId>, kScoreSources> ranked;
    std::vector<double> probability;  // by expert; empty: to be worked out from what is ranked now
  };
  struct Layer {
    std::vector<double> rate;     // share of recent tokens that used the expert
    std::vector<char> recent;     // used by the text's last token
    std::vector<OfToken> tokens;  // of the window, as far as spoken of
    std::vector<ExpertId> used;   // by the window's tokens, once routed
  };
  struct Weights {
    Features w{};
    Features squares{};  // of past gradients
  };

  void begin_weights(unsigned set) {
    Weights& weights = weights_[set];
    weights.squares.fill(1);
    int sources = 0;
    for (int s = 0; s < kScoreSources; ++s) sources += (set >> s) & 1U;
    for (int s = 0; s < kScoreSources; ++s) {
      if ((set >> s) & 1U) weights.w[s] = 0.9 / sources;
    }
    weights.w[kPopularity] = sources > 0 ? 0.15 : 0.9;
    weights.w[kRecent] = sources > 0 ? 0.2 : 1;
  }

  static OfToken& of_token(Layer& layer, int32_t token) {
    if (static_cast<size_t>(token) >= layer.tokens.size()) layer.tokens.resize(static_cast<size_t>(token) + 1);
    return layer.tokens[static_cast<size_t>(token)];
  }

  unsigned features(LayerId id, const OfToken& token, std::vector<Features>& out) const {
    const Layer& layer = layers_[index(id)];
    unsigned set = 0;
    out.assign(layer.rate.size(), {});
    for (size_t e = 0; e < out.size(); ++e) {
      out[e][kBias] = 1;
      out[e][kPopularity] = log_odds(layer.rate[e]);
      out[e][kRecent] = layer.recent[e];
    }
    for (size_t s = 0; s < kScoreSources; ++s) {
      if (token.ranked[s].empty()) continue;
      set |= 1U << s;
      for (Features& one : out) one[s] = log_odds(0);
      for (size_t r = 0; r < token.ranked[s].size(); ++r) {
        out[static_cast<size_t>(index(token.ranked[s][r]))][s] =
            log_odds(calibration_[s].probability(id, static_cast<int>(r)));
      }
    }
    return set;
  }

  void expect_all(int32_t tokens, Forecast& forecast) {
    for (int i = 0; i < forecast.n_layers(); ++i) {
      if (forecast.n_experts(LayerId{i}) > 0) expect(LayerId{i}, tokens, forecast);
    }
  }

  // The layer's forecast for a window of so many tokens, from what is known of each. Votes stay.
  void expect(LayerId id, int32_t tokens, Forecast& forecast) {
    Layer& layer = layers_[index(id)];
    absent_.assign(layer.rate.size(), 1.0);
    for (int32_t t = 0; t < tokens; ++t) {
      OfToken& token = of_token(layer, t);
      if (token.probability.empty()) {
        const Weights& weights = weights_[features(id, token, scratch_)];
        for (const Features& one : scratch_) token.probability.push_back(probability(weights.w, one));
      }
      for (size_t e = 0; e < absent_.size(); ++e) absent_[e] *= 1 - token.probability[e];
    }
    for (size_t e = 0; e < absent_.size(); ++e) {
      forecast.set({id, ExpertId{static_cast<int32_t>(e)}}, std::clamp(1 - absent_[e], 0.0, 1.0));
    }
  }

  void learn(LayerId id, const OfToken& token, const std::vector<char>& is_used) {
    const unsigned set = features(id, token, scratch_);
    Weights& weights = weights_[set];
    Features gradient{};
    for (size_t e = 0; e < is_used.size(); ++e) {
      const double error = is_used[e] - probability(weights.w, scratch_[e]);
      for (int f = 0; f < kFeatures; ++f) gradient[f] += error * scratch_[e][f];
    }
    for (int f = 0; f < kFeatures; ++f) {
      weights.squares[f] += gradient[f] * gradient[f];
      weights.w[f] += kLearning * gradient[f] / std::sqrt(weights.squares[f]);
    }
    for (size_t s = 0; s < kScoreSources; ++s) {
      for (size_t r = 0; r < token.ranked[s].size(); ++r) {
        calibration_[s].observe(id, static_cast<int>(r), is_used[static_cast<size_t>(index(token.ranked[s][r]))] != 0);
      }
    }
  }

  RoutingShapes shapes_;
  std::vector<Layer> layers_;
  std::vector<RankCalibration> calibration_;  // by source
  std::array<Weights, kSourceSets> weights_;
  std::vector<Features> scratch_;
  std::vector<double> absent_;
};

}  // namespace

std::unique_ptr<Predictor> make_combined_predictor(const RoutingShapes& shapes) {
  return std::make_unique<CombinedPredictor>(shapes);
}

}  // namespace drafthorse
