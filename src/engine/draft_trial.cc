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

// What is there is there for both; then what is used most, which a larger cache would have kept.
void seed(ShadowCache& shadow, const ExpertCache& cache) {
  std::vector<ExpertKey> absent;
  for (size_t i = 0; i < cache.layout().n_layers(); ++i) {
    const LayerId layer{static_cast<int32_t>(i)};
    for (int32_t e = 0; e < cache.layout().n_experts(layer); ++e) {
      const ExpertKey key{layer, ExpertId{e}};
      shadow.set_use_rate(key, cache.use_rate(key));
      if (cache.resident(key) || cache.on_its_way(key)) {
        shadow.seed(key);
      } else {
        absent.push_back(key);
      }
    }
  }
  std::stable_sort(absent.begin(), absent.end(),
                   [&](ExpertKey a, ExpertKey b) { return cache.use_rate(a) > cache.use_rate(b); });
  for (const ExpertKey key : absent) {
    if (!shadow.seed(key)) break;
  }
}

}  // namespace

DraftTrial::DraftTrial(const ExpertCache& cache, std::string_view eviction, int more_slots)
    : now_(experts_by_layer(cache.layout()), cache.slots(), make_eviction_policy(eviction)),
      without_(experts_by_layer(cache.layout()), more_slots, make_eviction_policy(eviction)) {
  CHECK(more_slots >= cache.slots());
  seed(now_, cache);
  seed(without_, cache);
}

double DraftTrial::misses(ShadowCache& shadow, const ForwardPass& pass, int32_t token) {
  const ExpertLayout& layout = pass.model().layout();
  std::vector<ExpertId> experts;
  int missing = 0;
  for (size_t i = 0; i < layout.n_layers(); ++i) {
    const LayerId layer{static_cast<int32_t>(i)};
    if (layout.n_experts(layer) == 0) continue;
    experts.clear();
    for (const RoutedExpert& one : pass.routed(layer, token)) experts.push_back(one.expert);
    missing += shadow.demand(layer, experts);
  }
  shadow.end_token();
  return missing;
}

void DraftTrial::note_step(const ForwardPass& pass, int32_t count, const DrafterPolicy& policy,
                           std::span<const int> rooms) {
  for (int32_t token = 0; token < count; ++token) {
    ++tokens_;
    // A mean at first, then a moving one.
    const double weight = std::max(kNewest, 1 / static_cast<double>(tokens_));
    missing_now_ += weight * (misses(now_, pass, token) - missing_now_);
    missing_without_ += weight * (misses(without_, pass, token) - missing_without_);
  }
  if (policy.cycles() < kFirstCycles) return;
  worth_.observe(policy.seconds_per_token(rooms), policy.seconds_per_token_without(0, rooms, missing_share()));
}

double DraftTrial::missing_share() const {
  return missing_now_ > 0 ? std::min(1.0, missing_without_ / missing_now_) : 1;
}

}  // namespace drafthorse
