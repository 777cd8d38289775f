#include "expert/pass_use.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "predict/log_odds.h"

namespace drafthorse {
namespace {

// Where the weights stood on average after 64 tokens of the demo's, the fine and the DeepSeek-like pair's, 18 texts.
constexpr PassUse::Weights kFirst = {0.8, -0.1, 0.3, 0.05, 0};
// Of the layer's mean gradient. In replays of these texts 0.05 to 0.3 changed what was read by 1 %.
constexpr double kLearning = 0.1;
// No text known has them above 1.5. Beyond, one surprise would turn everything around.
constexpr double kMostWeight = 4;

// Shares of what is newest in each memory.
constexpr double kQuickRateGain = 0.15;
constexpr double kLastPassesGain = 0.5;
constexpr double kMorePassesGain = 0.2;

// Log-odds are held to what is common: nothing is learned from how impossible something was.
constexpr double kLeast = 0.004;

double log_odds(double p) { return drafthorse::log_odds(p, kLeast); }

double probability(const PassUse::Weights& weights, const PassUse::Weights& inputs) {
  double z = 0;
  for (size_t i = 0; i < PassUse::kInputs; ++i) z += weights[i] * inputs[i];
  return 1 / (1 + std::exp(-z));
}

}  // namespace

PassUse::PassUse(std::span<const int> experts_by_layer) : weights_(kFirst) {
  for (const int experts : experts_by_layer) layers_.emplace_back().experts.resize(static_cast<size_t>(experts));
}

void PassUse::record(LayerId id, std::span<const int32_t> used, int64_t count, std::span<const char> of_window,
                     double window) {
  OfLayer& layer = layers_[index(id)];
  CHECK(count > 0 && used.size() == layer.experts.size());
  CHECK(of_window.empty() || of_window.size() == layer.experts.size());
  const auto tokens = static_cast<double>(count);
  const double quick_kept = std::pow(1 - kQuickRateGain, tokens);
  if (!of_window.empty() && layer.recorded) learn(layer, of_window);
  for (size_t e = 0; e < layer.experts.size(); ++e) {
    OfExpert& expert = layer.experts[e];
    const double share = used[e] / tokens;
    expert.quick_rate = quick_kept * expert.quick_rate + (1 - quick_kept) * share;
    if (of_window.empty()) {
      expert.last_passes = expert.more_passes = share;
      continue;
    }
    if (layer.of_tokens) {
      expert.last_passes = used_by_window(expert.last_passes, window);
      expert.more_passes = used_by_window(expert.more_passes, window);
    }
    const double was_used = of_window[e] != 0 ? 1 : 0;
    expert.last_passes += kLastPassesGain * (was_used - expert.last_passes);
    expert.more_passes += kMorePassesGain * (was_used - expert.more_passes);
  }
  layer.recorded = true;
  layer.of_tokens = of_window.empty();
}

void PassUse::learn(OfLayer& layer, std::span<const char> of_window) {
  Weights gradient{};
  for (size_t e = 0; e < layer.experts.size(); ++e) {
    const Weights& inputs = layer.experts[e].inputs;
    const double error = (of_window[e] != 0 ? 1 : 0) - probability(weights_, inputs);
    for (size_t i = 0; i < kInputs; ++i) gradient[i] += error * inputs[i];
  }
  const double step = kLearning / static_cast<double>(layer.experts.size());
  for (size_t i = 0; i < kInputs; ++i) {
    weights_[i] = std::clamp(weights_[i] + step * gradient[i], -kMostWeight, kMostWeight);
  }
}

void PassUse::expect(LayerId id, double window, std::span<ExpertHistory> histories) {
  OfLayer& layer = layers_[index(id)];
  CHECK(histories.size() == layer.experts.size());
  if (!layer.recorded) return;
  for (size_t e = 0; e < layer.experts.size(); ++e) {
    OfExpert& expert = layer.experts[e];
    const auto passes = [&](double share) { return log_odds(layer.of_tokens ? used_by_window(share, window) : share); };
    expert.inputs = {log_odds(used_by_window(histories[e].use_rate, window)),
                     log_odds(used_by_window(expert.quick_rate, window)), passes(expert.last_passes),
                     passes(expert.more_passes), 1};
    histories[e].next_pass = probability(weights_, expert.inputs);
  }
}

void PassUse::set_rate(ExpertKey key, double rate) {
  OfExpert& expert = layers_[index(key.layer)].experts[index(key.expert)];
  expert.quick_rate = expert.last_passes = expert.more_passes = rate;
}

}  // namespace drafthorse
