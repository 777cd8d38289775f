// Which experts the coming verification will need: predictors, side by side behind one seam.
//
// A predictor holds no model weights. In a cycle the engine tells it, in this order:
//   begin_window()    the text goes on; drafting may follow
//   scored()          a router's scores for one token of the window and one layer of the target: while drafting from
//                     what the draft computed, while verifying from the layer before
//   drafted()         how many tokens the window has; no scores of a draft come any more
//   routed()          the truth: which experts a layer's router took, layer by layer, for all tokens of the window
//   committed()       how many of the window's tokens became part of the text
// and it writes what it expects into a Forecast. It learns from routed(): probabilities are calibrated by what scores
// of that rank in that layer turned out to mean.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "predict/forecast.h"

namespace drafthorse {

// Whose scores.
enum class ScoreSource {
  kCrossModel,      // the target's router on the draft's FFN input of the corresponding layer (SP-MoE, 2510.10302)
  kCrossModelNorm,  // the same input, normalised with the target's weights instead of the draft's
  kDraftRouter,     // the draft's own router: for a draft that is the target at fewer bits
  kFitted,          // a linear map fitted on the user's own pair (`drafthorse calibrate`)
  kNextGate,        // the target's router of the next layer on this layer's FFN input (AdapMoE, 2408.10284)
};
inline constexpr int kScoreSources = 5;

struct TokenScores {
  ScoreSource source{};
  int32_t token = 0;              // of the window; 0 is the text's last token
  LayerId layer{};                // of the target: the layer that the scores speak of
  std::span<const float> logits;  // [experts of the layer], or whatever else its router ranks them by
};

struct RoutingShapes {
  std::vector<int> experts_by_layer;  // 0 for a dense layer
  int n_expert_used = 0;              // by a token
};

class Predictor {
 public:
  virtual ~Predictor() = default;
  virtual std::string_view name() const = 0;
  // The scores it can use. The engine may have fewer.
  virtual std::vector<ScoreSource> wants() const { return {}; }

  virtual void begin_window(Forecast& forecast) { forecast.clear(); }
  virtual void scored(const TokenScores& scores, Forecast& forecast);
  virtual void drafted(int32_t tokens, Forecast& forecast);
  // used: [tokens * n_expert_used]. The layer's own forecast is over and may be forgotten by the caller.
  virtual void routed(LayerId layer, std::span<const ExpertId> used, Forecast& forecast);
  virtual void committed(int32_t tokens);
};

// none:          expects nothing.
// cross, cross-norm, draft-router, fitted, next-gate: the experts with the highest scores of that source.
// frequency:     per layer the experts that most of the draft's tokens name (Specter-like).
// trace:         what followed in the past window that began most like this one (MoE-Infinity, 2401.14361).
// combined:      all of these that are there, with popularity and the last token's experts, weighed by logistic
//                regression that learns while it runs.
// nullptr for an unknown name.
std::unique_ptr<Predictor> make_predictor(std::string_view name, const RoutingShapes& shapes);
std::vector<std::string> predictor_names();

}  // namespace drafthorse
