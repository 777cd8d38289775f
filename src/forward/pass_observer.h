// Who wants to know how a pass over a window goes, while it goes: a seam. What it learns is what prediction and
// prefetching work with. Of long runs (prompts) only reached() tells.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"

namespace drafthorse {

class PassObserver {
 public:
  virtual ~PassObserver() = default;
  // A run of any length, part by part: the layer is computed up to its routed experts, its router logits and, where
  // they are tapped, FFN inputs are there, columns [0, count), which begin at position kv().length().
  virtual void reached(LayerId, int32_t /*count*/) {}
  // The same of a window, where beside them Model::probe_logits() of its probes, columns [0, count), are there.
  virtual void staged(LayerId, int32_t /*count*/) {}
  // Its tokens are routed, [count * n_expert_used]; the demand follows.
  virtual void routed(LayerId, std::span<const ExpertId> /*used*/) {}
  virtual void demanded(LayerId) {}
  // Experts were computed.
  virtual void worked() {}
  // `count` tokens became part of the text, a prompt's too; uses[layer][expert] of them used the expert.
  virtual void committed(std::span<const std::vector<int32_t>> /*uses*/, int32_t /*count*/) {}
};

}  // namespace drafthorse
