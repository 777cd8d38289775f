#include "engine/draft_trial.h"

#include <algorithm>
#include <vector>

namespace drafthorse {
namespace {

// Cycles after which the policy knows something of compute and stalls.
constexpr int64_t kFirstCycles = 3;
constexpr double kNewest = 0.1;  // weight of the newest token in what is missing

std::vector<int> experts_by_layer(const ExpertLayout& layout) {
  std::vector<int> experts;
  for (size_t i = 0; i < layout.n_layers(); ++i) experts.push_back(layout.n_experts(LayerId{static_cast<int32_t>(i)}));
  return experts;
}

}  // namespace

// What is there is there without the draft, too; then what is used most, which the larger cache would have kept.
DraftTrial::DraftTrial(const ExpertCache& cache, std::string_view eviction, int more_slots)
    : shadow_(experts_by_layer(cache.layout()), more_slots, make_eviction_policy(eviction)) {
  std::vector<ExpertKey> absent;
  for (size_t i = 0; i < cache.layout().n_layers(); ++i) {
    const LayerId layer{static_cast<int32_t>(i)};
    for (int32_t e = 0; e < cache.layout().n_experts(layer); ++e) {
      const ExpertKey key{layer, ExpertId{e}};
      shadow_.set_use_rate(key, cache.use_rate(key));
      if (cache.resident(key) || cache.on_its_way(key)) {
        shadow_.seed(key);
      } else {
        absent.push_back(key);
      }
    }
  }
  std::stable_sort(absent.begin(), absent.end(),
                   [&](ExpertKey a, ExpertKey b) { return cache.use_rate(a) > cache.use_rate(b); });
  for (const ExpertKey key : absent) {
    if (!shadow_.seed(key)) break;
  }
}

void DraftTrial::note_step(const ForwardPass& pass, int32_t count, const DrafterPolicy& policy) {
  const ExpertLayout& layout = pass.model().layout();
  std::vector<ExpertId> experts;
  for (int32_t token = 0; token < count; ++token) {
    int misses = 0;
    for (size_t i = 0; i < layout.n_layers(); ++i) {
      const LayerId layer{static_cast<int32_t>(i)};
      if (layout.n_experts(layer) == 0) continue;
      experts.clear();
      for (const RoutedExpert& one : pass.routed(layer, token)) experts.push_back(one.expert);
      misses += shadow_.demand(layer, experts);
    }
    shadow_.end_token();
    ++tokens_;
    // A mean at first, then a moving one.
    missing_ += std::max(kNewest, 1 / static_cast<double>(tokens_)) * (misses - missing_);
  }
  if (policy.cycles() < kFirstCycles) return;
  worth_.observe(policy.seconds_per_token(), policy.policy(0).plain_seconds(missing_));
}

}  // namespace drafthorse
