// From router logits to the experts of each token, as libllama computes it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "model/config.h"

namespace drafthorse {

// The experts of one token, in the order of their ids: the order in which their outputs are added.
struct RoutedExpert {
  ExpertId expert{};
  float weight = 0;
};

// logits: [n_expert] of one token; bias: [n_expert] or empty. Writes n_expert_used entries. An expert's weight is its
// probability: the softmax over all logits, or each one's sigmoid. Those with the largest probability plus bias are
// chosen, the lower id of equals, and those with a logit of minus infinity last; with groups only from those whose best
// two experts together are largest. Then the weights are normalised to sum 1, where the family does, and scaled.
void route_token(std::span<const float> logits, std::span<const float> bias, const ModelConfig& config,
                 std::span<RoutedExpert> out);

// What route_token() ranks the experts by, from the same logits and bias: [n_expert], minus infinity for those that
// cannot be chosen. To rank more of them than a token uses.
void ranking_scores(std::span<const float> logits, std::span<const float> bias, const RoutingConfig& routing,
                    std::vector<float>& out);

}  // namespace drafthorse
