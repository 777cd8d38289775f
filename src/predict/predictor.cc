#include "predict/predictor.h"

#include "predict/predictors.h"

namespace drafthorse {
namespace {

class None final : public Predictor {
 public:
  std::string_view name() const override { return "none"; }
};

struct Scored {
  std::string_view name;
  ScoreSource source;
};
constexpr Scored kScored[] = {
    {"cross", ScoreSource::kCrossModel},         {"cross-norm", ScoreSource::kCrossModelNorm},
    {"draft-router", ScoreSource::kDraftRouter}, {"fitted", ScoreSource::kFitted},
    {"next-gate", ScoreSource::kNextGate},
};

}  // namespace

void Predictor::scored(const TokenScores&, Forecast&) {}
void Predictor::drafted(int32_t, Forecast&) {}
void Predictor::routed(LayerId, std::span<const ExpertId>, Forecast&) {}
void Predictor::committed(int32_t) {}

std::unique_ptr<Predictor> make_predictor(std::string_view name, const RoutingShapes& shapes) {
  if (name == "none") return std::make_unique<None>();
  for (const Scored& one : kScored) {
    if (name == one.name) return make_score_predictor(one.name, one.source, shapes);
  }
  if (name == "frequency") return make_frequency_predictor(shapes);
  if (name == "trace") return make_trace_predictor(shapes);
  if (name == "combined") return make_combined_predictor(shapes);
  return nullptr;
}

std::vector<std::string> predictor_names() {
  std::vector<std::string> names = {"none"};
  for (const Scored& one : kScored) names.emplace_back(one.name);
  names.insert(names.end(), {"frequency", "trace", "combined"});
  return names;
}

}  // namespace drafthorse
