#include "engine/draft_trial.h"

#include <algorithm>
#include <cmath>

namespace drafthorse {
namespace {

// Cycles after which the policy knows something of compute and stalls, and of them those that the draft drafted for.
constexpr int64_t kFirstCycles = 3;
constexpr int kDraftedCycles = 3;
constexpr double kNewest = 0.1;  // weight of the newest token in what is missing
constexpr int kMostLayers = 12;  // followed

std::vector<LayerId> layers_to_follow(const ExpertLayout& layout) {
  std::vector<LayerId> all;
  for (size_t i = 0; i < layout.n_layers(); ++i) {
    const LayerId layer{static_cast<int32_t>(i)};
    if (layout.n_experts(layer) > 0) all.push_back(layer);
  }
  const int count = std::min(kMostLayers, static_cast<int>(all.size()));
  std::vector<LayerId> followed;
  for (int i = 0; i < count; ++i) followed.push_back(all[all.size() * static_cast<size_t>(i) / count]);
  return followed;
}

// Of the layers followed; none in the others.
std::vector<int> experts_by_layer(const ExpertLayout& layout, std::span<const LayerId> followed) {
  std::vector<int> experts(layout.n_layers());
  for (const LayerId layer : followed) experts[static_cast<size_t>(index(layer))] = layout.n_experts(layer);
  return experts;
}

int part_of(int slots, const ExpertLayout& layout, std::span<const LayerId> followed) {
  int experts = 0;
  for (const LayerId layer : followed) experts += layout.n_experts(layer);
  return std::max(1, static_cast<int>(std::lround(static_cast<double>(slots) * experts / layout.total_experts())));
}

// What is there is there for both; then what is used most, which a larger cache would have kept.
void seed(ShadowCache& shadow, const ExpertCache& cache, std::span<const LayerId> followed) {
  std::vector<ExpertKey> absent;
  for (const LayerId layer : followed) {
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

DraftTrial::DraftTrial(const ExpertCache& cache, std::string_view eviction, int more_slots, const DraftWorth& worth)
    : followed_(layers_to_follow(cache.layout())),
      now_(experts_by_layer(cache.layout(), followed_), part_of(cache.slots(), cache.layout(), followed_),
           make_eviction_policy(eviction)),
      without_(experts_by_layer(cache.layout(), followed_), part_of(more_slots, cache.layout(), followed_),
               make_eviction_policy(eviction)),
      worth_(worth) {
  CHECK(more_slots >= cache.slots());
  seed(now_, cache, followed_);
  seed(without_, cache, followed_);
}

bool DraftTrial::wants_look(const DrafterPolicy& policy) const {
  return policy.cycles() > 0 && drafted_cycles_ < kDraftedCycles;
}

int DraftTrial::misses(ShadowCache& shadow, const ForwardPass& pass, int32_t token) const {
  std::vector<ExpertId> experts;
  int missing = 0;
  for (const LayerId layer : followed_) {
    experts.clear();
    for (const RoutedExpert& one : pass.routed(layer, token)) experts.push_back(one.expert);
    missing += shadow.demand(layer, experts);
  }
  shadow.end_token();
  return missing;
}

void DraftTrial::note_step(const ForwardPass& pass, int32_t count, const DrafterPolicy& policy,
                           std::span<const int> rooms, const DraftChoice& choice) {
  if (choice.drafter == 0 && choice.depth > 0) ++drafted_cycles_;
  for (int32_t token = 0; token < count; ++token) {
    ++tokens_;
    // A mean at first, then a moving one.
    const double weight = std::max(kNewest, 1 / static_cast<double>(tokens_));
    missing_now_ += weight * (misses(now_, pass, token) - missing_now_);
    missing_without_ += weight * (misses(without_, pass, token) - missing_without_);
  }
  if (policy.cycles() < kFirstCycles || drafted_cycles_ < kDraftedCycles) return;
  const double with_s = policy.seconds_per_token(rooms);
  const double without_s = policy.seconds_per_token_without(0, rooms, missing_share());
  saved_s_ = with_s - without_s;
  worth_.observe(with_s, without_s);
}

double DraftTrial::missing_share() const {
  return missing_now_ > 0 ? std::min(1.0, missing_without_ / missing_now_) : 1;
}

}  // namespace drafthorse
