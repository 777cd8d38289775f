#include "expert/pass_use.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace drafthorse {
namespace {

// Where the weights stood on average after 64 tokens of the demo's, the fine and the DeepSeek-like pair's, 18 texts.
// From there most texts need no learning at all; beginning with popularity alone is worth .2 % less.
constexpr PassUse::Weights kFirst = {0.8, -0.1, 0.3, 0.05, 0};
// Of the layer's mean gradient. In replays of these texts 0.05 to 0.3 changed what was read by 1 %.
constexpr double kLearning = 0.1;
// More tokens at once are no decoding of one text.
constexpr int64_t kMostLearned = 16;

// Shares of what is newest in each memory.
constexpr double kQuickRateGain = 0.15;
constexpr double kLastPassGain = 0.5;
constexpr double kMorePassesGain = 0.2;

// Log-odds are held to what is common: nothing is learned from how impossible something was.
constexpr double kLeast = 0.004;

double log_odds(double p) {
  p = std::clamp(p, kLeast, 1 - kLeast);
  return std::log(p / (1 - p));
}

double probability(const PassUse::Weights& weights, const PassUse::Weights& inputs) {
  double z = 0;
  for (size_t i = 0; i < PassUse::kInputs; ++i) z += weights[i] * inputs[i];
  return 1 / (1 + std::exp(-z));
}

}  // namespace

PassUse::PassUse(std::span<const int> experts_by_layer) : weights_(kFirst) {
  for (const int experts : experts_by_layer) experts_.emplace_back(static_cast<size_t>(experts));
}

void PassUse::record(LayerId layer, std::span<const int32_t> used, int64_t count, double window,
                     std::span<ExpertHistory> histories) {
  std::vector<OfExpert>& experts = experts_[index(layer)];
  CHECK(count > 0 && used.size() == experts.size() && histories.size() == experts.size());
  const auto tokens = static_cast<double>(count);
  const bool learns = count <= kMostLearned;
  const auto in_pass = [window](double rate) { return 1 - std::pow(1 - std::min(rate, 1.0), window); };
  const double quick_kept = std::pow(1 - kQuickRateGain, tokens);

  Weights gradient{};
  for (size_t e = 0; e < experts.size(); ++e) {
    OfExpert& expert = experts[e];
    const double share = used[e] / tokens;
    if (learns) {
      const double was_used = expert.demanded ? 1 : 0;
      // Before the first pass the inputs are 0.
      const double error = was_used - probability(weights_, expert.inputs);
      for (size_t i = 0; i < kInputs; ++i) gradient[i] += error * expert.inputs[i];
      expert.last_passes += kLastPassGain * (was_used - expert.last_passes);
      expert.more_passes += kMorePassesGain * (was_used - expert.more_passes);
    } else {
      expert.last_passes = expert.more_passes = in_pass(share);
    }
    expert.quick_rate = quick_kept * expert.quick_rate + (1 - quick_kept) * share;
    expert.demanded = false;
  }
  for (size_t i = 0; i < kInputs; ++i) weights_[i] += kLearning * gradient[i] / static_cast<double>(experts.size());

  for (size_t e = 0; e < experts.size(); ++e) {
    OfExpert& expert = experts[e];
    expert.inputs = {log_odds(in_pass(histories[e].use_rate)), log_odds(in_pass(expert.quick_rate)),
                     log_odds(expert.last_passes), log_odds(expert.more_passes), 1};
    histories[e].next_pass = probability(weights_, expert.inputs);
  }
}

}  // namespace drafthorse
