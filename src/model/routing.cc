#include "model/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/check.h"

namespace drafthorse {

void route_token(std::span<const float> logits, const ModelConfig& config, std::span<RoutedExpert> out) {
  CHECK(logits.size() == static_cast<size_t>(config.n_expert));
  CHECK(out.size() == static_cast<size_t>(config.n_expert_used));
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  // A damaged weight can make a logit NaN, which no order holds: it ranks last.
  const auto rank = [&](int32_t e) {
    return std::isnan(logits[e]) ? -std::numeric_limits<float>::infinity() : logits[e];
  };
  const auto larger = [&](int32_t a, int32_t b) { return rank(a) != rank(b) ? rank(a) > rank(b) : a < b; };
  std::partial_sort(order.begin(), order.begin() + config.n_expert_used, order.end(), larger);

  const float maximum = logits[order[0]];
  float all = 0;
  for (const float logit : logits) all += std::exp(logit - maximum);
  float chosen = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = {ExpertId{order[i]}, std::exp(logits[order[i]] - maximum) / all};
    chosen += out[i].weight;
  }
  // libllama clamps the sum to the smallest normal half-precision number.
  chosen = std::max(chosen, 6.103515625e-5F);
  for (RoutedExpert& one : out) one.weight = one.weight / chosen * config.expert_weights_scale;
  std::sort(out.begin(), out.end(), [](const RoutedExpert& a, const RoutedExpert& b) { return a.expert < b.expert; });
}

}  // namespace drafthorse
