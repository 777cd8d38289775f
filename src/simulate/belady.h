// What no policy can beat: Belady's choice of what to keep, with every demand known beforehand.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"

namespace drafthorse {

// One layer's demand, and the computing since the one before it.
struct Demand {
  LayerId layer{};
  std::vector<ExpertId> experts;  // distinct
  double before_s = 0;            // computed before it can be made: stages, drafting, the last layer's experts
  double experts_s = 0;           // computing its experts
  double one_expert_s = 0;        // of that, what is left to do when the last one arrives, at least
};

struct BeladyBound {
  int64_t misses = 0;
  double seconds = 0;  // until the last demand's experts are computed
};

// The fewest reads that serve the demands in this order with so many slots, whatever was in them before, and the
// least time: every read as early as the link allows. A lower bound for any policy: memory for what is read too early
// is not counted, nor is the slot that an expert needs which is computed once and not kept.
BeladyBound belady(std::span<const Demand> demands, int slots, double expert_load_s);

}  // namespace drafthorse
