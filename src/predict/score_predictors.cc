// Predictors that believe one source of router scores: the experts ranked highest for each token.
#include <algorithm>

#include "base/check.h"
#include "predict/predictors.h"
#include "predict/ranking.h"

namespace drafthorse {
namespace {

// What one source said in this window, until the truth is known.
struct SaidOfToken {
  int32_t token = 0;
  std::vector<ExpertId> ranked;
};

class ScorePredictor : public Predictor {
 public:
  ScorePredictor(std::string_view name, ScoreSource source, const RoutingShapes& shapes)
      : name_(name), source_(source), shapes_(shapes), calibration_(shapes), said_(shapes.experts_by_layer.size()) {}

  std::string_view name() const override { return name_; }
  std::vector<ScoreSource> wants() const override { return {source_}; }

  void begin_window(Forecast& forecast) override {
    forecast.clear();
    for (auto& layer : said_) layer.clear();
  }

  void scored(const TokenScores& scores, Forecast& forecast) override {
    if (scores.source != source_) return;
    SaidOfToken said{scores.token, rank_experts(scores.logits, static_cast<size_t>(calibration_.ranks()))};
    expect(scores.layer, said.ranked, forecast);
    said_[index(scores.layer)].push_back(std::move(said));
  }

  void routed(LayerId layer, std::span<const ExpertId> used, Forecast&) override {
    const auto k = static_cast<size_t>(shapes_.n_expert_used);
    for (const SaidOfToken& said : said_[index(layer)]) {
      if (static_cast<size_t>(said.token + 1) * k > used.size()) continue;  // drafted and not verified
      const auto of_token = used.subspan(static_cast<size_t>(said.token) * k, k);
      for (size_t rank = 0; rank < said.ranked.size(); ++rank) {
        const bool hit = std::find(of_token.begin(), of_token.end(), said.ranked[rank]) != of_token.end();
        calibration_.observe(layer, static_cast<int>(rank), hit);
      }
    }
  }

 protected:
  virtual void expect(LayerId layer, std::span<const ExpertId> ranked, Forecast& forecast) {
    for (size_t rank = 0; rank < ranked.size(); ++rank) {
      forecast.add({layer, ranked[rank]}, calibration_.probability(layer, static_cast<int>(rank)));
      if (rank < static_cast<size_t>(shapes_.n_expert_used)) forecast.vote({layer, ranked[rank]});
    }
  }
  const RoutingShapes& shapes() const { return shapes_; }

 private:
  std::string name_;
  ScoreSource source_;
  RoutingShapes shapes_;
  RankCalibration calibration_;
  std::vector<std::vector<SaidOfToken>> said_;  // by layer
};

// An expert's need is the share of the draft's tokens that name it.
class FrequencyPredictor final : public ScorePredictor {
 public:
  explicit FrequencyPredictor(const RoutingShapes& shapes)
      : ScorePredictor("frequency", ScoreSource::kCrossModel, shapes), tokens_(shapes.experts_by_layer.size()) {}

  void begin_window(Forecast& forecast) override {
    ScorePredictor::begin_window(forecast);
    std::fill(tokens_.begin(), tokens_.end(), 0);
  }

 private:
  void expect(LayerId layer, std::span<const ExpertId> ranked, Forecast& forecast) override {
    const int tokens = ++tokens_[index(layer)];
    for (size_t rank = 0; rank < ranked.size() && rank < static_cast<size_t>(shapes().n_expert_used); ++rank) {
      forecast.vote({layer, ranked[rank]});
    }
    for (int e = 0; e < forecast.n_experts(layer); ++e) {
      const ExpertKey key{layer, ExpertId{e}};
      forecast.set(key, static_cast<double>(forecast.votes(key)) / tokens);
    }
  }

  std::vector<int> tokens_;  // by layer: that were scored
};

}  // namespace

std::unique_ptr<Predictor> make_score_predictor(std::string_view name, ScoreSource source,
                                                const RoutingShapes& shapes) {
  return std::make_unique<ScorePredictor>(name, source, shapes);
}

std::unique_ptr<Predictor> make_frequency_predictor(const RoutingShapes& shapes) {
  return std::make_unique<FrequencyPredictor>(shapes);
}

}  // namespace drafthorse
