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

// logits: [n_expert] of one token. Writes n_expert_used entries: softmax over all experts, the largest n_expert_used
// (the lower id of equals), their weights normalised to sum 1 and scaled.
void route_token(std::span<const float> logits, const ModelConfig& config, std::span<RoutedExpert> out);

}  // namespace drafthorse
