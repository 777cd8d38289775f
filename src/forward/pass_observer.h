// Who wants to know how a pass over a window goes, while it goes: a seam. What it learns is what prediction and
// prefetching work with. Long runs (prompts) are not told of.
#pragma once

#include <span>

#include "base/ids.h"

namespace drafthorse {

class PassObserver {
 public:
  virtual ~PassObserver() = default;
  // The layer is computed up to its routed experts: Model::probe_logits() of its probes, columns [0, count), are there.
  virtual void staged(LayerId, int32_t /*count*/) {}
  // Its tokens are routed, [count * n_expert_used]; the demand follows.
  virtual void routed(LayerId, std::span<const ExpertId> /*used*/) {}
  virtual void demanded(LayerId) {}
  // Experts were computed.
  virtual void worked() {}
};

}  // namespace drafthorse
