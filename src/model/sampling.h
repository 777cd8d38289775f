// From logits to the next token.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

namespace drafthorse {

// The most likely token; of equals the lowest id.
inline int32_t greedy_token(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace drafthorse
