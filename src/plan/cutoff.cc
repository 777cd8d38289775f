#include "plan/cutoff.h"

#include <algorithm>

namespace drafthorse {

Cutoff choose_cutoff(const CutoffInput& input) {
  Cutoff cutoff;
  cutoff.drafting_s = input.draft_tokens * input.draft_layers * input.draft_s_per_layer;
  double fetched = 0;
  for (size_t i = 0; i < input.fetched_by_layer.size(); ++i) {
    const double k = input.fetched_by_layer[i];
    fetched += k;
    const double last_scored = static_cast<double>(i) * input.draft_s_per_layer;
    const double load_s = std::max(last_scored + k * input.load_s_per_expert, fetched * input.load_s_per_expert);
    if (fetched > input.slots_to_spare) {
      cutoff.memory_binds = load_s <= cutoff.drafting_s;
      break;
    }
    // A layer that needs many may fail where one beyond it, which needs none, holds again.
    if (load_s > cutoff.drafting_s) continue;
    cutoff.layers = static_cast<int>(i) + 1;
    cutoff.load_s = load_s;
  }
  return cutoff;
}

}  // namespace drafthorse
