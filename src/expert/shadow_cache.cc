#include "expert/shadow_cache.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"

namespace drafthorse {

ShadowCache::ShadowCache(std::span<const int> experts_by_layer, int slots, std::unique_ptr<EvictionPolicy> policy)
    : policy_(std::move(policy)),
      capacity_(static_cast<size_t>(slots)),
      histories_(experts_by_layer, policy_->reads_next_pass()),
      held_by_layer_(experts_by_layer.size()) {
  CHECK(slots > 0);
  with_experts_ = static_cast<double>(
      std::count_if(experts_by_layer.begin(), experts_by_layer.end(), [](int experts) { return experts > 0; }));
  CHECK(with_experts_ > 0);
  for (const int experts : experts_by_layer) {
    slot_of_.emplace_back(static_cast<size_t>(experts), kNoSlot);
    used_.emplace_back(static_cast<size_t>(experts));
    shares_.push_back(experts > 0 ? static_cast<double>(slots) / with_experts_ : 0);
  }
}

void ShadowCache::put(int32_t slot, ExpertKey key) {
  slots_[static_cast<size_t>(slot)] = key;
  slot_of_[index(key.layer)][index(key.expert)] = slot;
  ++held_by_layer_[index(key.layer)];
  histories_.touch(key);
}

bool ShadowCache::seed(ExpertKey key) {
  if (holds(key)) return true;
  if (slots_.size() == capacity_) return false;
  slots_.emplace_back();
  put(static_cast<int32_t>(slots_.size()) - 1, key);
  return true;
}

int32_t ShadowCache::victim(LayerId layer, std::span<const ExpertId> kept) const {
  const EvictionContext now{.layer = layer,
                            .n_layers = static_cast<int>(slot_of_.size()),
                            .tokens = histories_.tokens(),
                            .incoming = layer,
                            .held_by_layer = held_by_layer_,
                            .share_by_layer = shares_,
                            .kept_by_layer = held_by_layer_,
                            .mean_kept = static_cast<double>(slots_.size()) / with_experts_};
  int32_t victim = kNoSlot;
  double least = std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < slots_.size(); ++i) {
    const ExpertKey key = slots_[i];
    if (key.layer == layer && std::find(kept.begin(), kept.end(), key.expert) != kept.end()) continue;
    const double worth = policy_->worth(key, histories_.of(key), now);
    if (worth < least) {
      least = worth;
      victim = static_cast<int32_t>(i);
    }
  }
  return victim;
}

int ShadowCache::demand(LayerId layer, std::span<const ExpertId> experts) {
  for (const ExpertId expert : experts) {
    histories_.touch({layer, expert});
    ++used_[index(layer)][index(expert)];
  }
  int misses = 0;
  for (const ExpertId expert : experts) {
    if (holds({layer, expert})) continue;
    ++misses;
    int32_t slot = kNoSlot;
    if (slots_.size() < capacity_) {
      slot = static_cast<int32_t>(slots_.size());
      slots_.emplace_back();
    } else {
      slot = victim(layer, experts);
      if (slot == kNoSlot) continue;
      const ExpertKey gone = slots_[static_cast<size_t>(slot)];
      slot_of_[index(gone.layer)][index(gone.expert)] = kNoSlot;
      --held_by_layer_[index(gone.layer)];
    }
    put(slot, {layer, expert});
  }
  return misses;
}

void ShadowCache::end_token() {
  for (size_t layer = 0; layer < used_.size(); ++layer) {
    std::vector<int32_t>& used = used_[layer];
    if (used.empty()) continue;
    const std::vector<char> of_window(used.begin(), used.end());
    histories_.record(LayerId{static_cast<int32_t>(layer)}, used, 1, of_window);
    std::fill(used.begin(), used.end(), 0);
  }
  histories_.advance(1);
}

}  // namespace drafthorse
