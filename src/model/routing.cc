#include "model/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/check.h"

namespace drafthorse {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr float kLeastWeightSum = 6.103515625e-5F;  // libllama's: the smallest normal half-precision number

// A damaged weight can make a score NaN, which no order holds: it ranks last.
float ranked(float score) { return std::isnan(score) ? kNever : score; }

void probabilities(std::span<const float> logits, ExpertGating gating, std::vector<float>& out) {
  out.resize(logits.size());
  if (gating == ExpertGating::kSigmoid) {
    for (size_t i = 0; i < logits.size(); ++i) out[i] = 1 / (1 + std::exp(-logits[i]));
    return;
  }
  float maximum = kNever;
  for (const float logit : logits) maximum = std::max(maximum, ranked(logit));
  float all = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    out[i] = std::exp(logits[i] - maximum);
    all += out[i];
  }
  for (float& one : out) one /= all;
}

// Experts of all groups but the best become kNever.
void leave_best_groups(const RoutingConfig& routing, std::vector<float>& scores) {
  const size_t per_group = scores.size() / static_cast<size_t>(routing.n_group);
  std::vector<float> best_two;
  for (size_t first = 0; first < scores.size(); first += per_group) {
    float best = kNever;
    float second = kNever;
    for (size_t e = first; e < first + per_group; ++e) {
      second = std::max(second, std::min(best, scores[e]));
      best = std::max(best, scores[e]);
    }
    best_two.push_back(best + second);
  }
  std::vector<size_t> order(best_two.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return best_two[a] > best_two[b]; });
  for (size_t i = static_cast<size_t>(routing.n_group_used); i < order.size(); ++i) {
    std::fill_n(scores.begin() + static_cast<std::ptrdiff_t>(order[i] * per_group), per_group, kNever);
  }
}

// Without a bias logits rank as their probabilities do, and are not rounded to equals.
bool ranks_by_probability(std::span<const float> bias, const RoutingConfig& routing) {
  return !bias.empty() || routing.n_group > 1;
}

// weights: the experts' probabilities, looked at only where they are what ranks.
void rank(std::span<const float> logits, std::span<const float> weights, std::span<const float> bias,
          const RoutingConfig& routing, std::vector<float>& scores) {
  scores.resize(logits.size());
  const bool by_probability = ranks_by_probability(bias, routing);
  for (size_t e = 0; e < scores.size(); ++e) {
    const bool is_out = logits[e] == kNever;  // no bias makes up for that
    scores[e] = ranked(by_probability && !is_out ? weights[e] + (bias.empty() ? 0.0F : bias[e]) : logits[e]);
  }
  if (routing.n_group > 1) leave_best_groups(routing, scores);
}

}  // namespace

void ranking_scores(std::span<const float> logits, std::span<const float> bias, const RoutingConfig& routing,
                    std::vector<float>& out) {
  CHECK(bias.empty() || bias.size() == logits.size());
  std::vector<float> weights;
  if (ranks_by_probability(bias, routing)) probabilities(logits, routing.gating, weights);
  rank(logits, weights, bias, routing, out);
}

void route_token(std::span<const float> logits, std::span<const float> bias, const ModelConfig& config,
                 std::span<RoutedExpert> out) {
  CHECK(logits.size() == static_cast<size_t>(config.n_expert));
  CHECK(bias.empty() || bias.size() == logits.size());
  CHECK(out.size() == static_cast<size_t>(config.n_expert_used));
  const RoutingConfig& routing = config.routing;
  std::vector<float> weights;
  probabilities(logits, routing.gating, weights);
  std::vector<float> scores;
  rank(logits, weights, bias, routing, scores);

  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  const auto larger = [&](int32_t a, int32_t b) { return scores[a] != scores[b] ? scores[a] > scores[b] : a < b; };
  std::partial_sort(order.begin(), order.begin() + config.n_expert_used, order.end(), larger);
  float chosen = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = {ExpertId{order[i]}, weights[order[i]]};
    chosen += out[i].weight;
  }
  if (!routing.normalised) chosen = 1;
  chosen = std::max(chosen, kLeastWeightSum);
  for (RoutedExpert& one : out) one.weight = one.weight / chosen * routing.scale;
  std::sort(out.begin(), out.end(), [](const RoutedExpert& a, const RoutedExpert& b) { return a.expert < b.expert; });
}

}  // namespace drafthorse
