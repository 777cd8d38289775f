#include "expert/device_slots.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace drafthorse {
namespace {

constexpr double kAheadWorth = 1e15;  // above any policy's own worth

}  // namespace

DeviceSlots::DeviceSlots(const ExpertLayout& layout, std::span<const int> kind_of, std::span<const int> slots,
                         std::unique_ptr<EvictionPolicy> policy)
    : layout_(layout),
      policy_(std::move(policy)),
      kind_of_(kind_of.begin(), kind_of.end()),
      histories_(layout.experts_by_layer(), false) {
  CHECK(policy_ != nullptr && kind_of_.size() == layout.n_layers());
  std::vector<double> layers_of(slots.size());
  for (const int kind : kind_of_) {
    if (kind >= 0) ++layers_of[static_cast<size_t>(kind)];
  }
  for (const int count : slots) slots_.emplace_back(static_cast<size_t>(count));
  held_by_layer_.resize(layout.n_layers());
  for (size_t i = 0; i < layout.n_layers(); ++i) {
    slot_of_.emplace_back(layout.layers[i].experts.size(), -1);
    const int kind = kind_of_[i];
    shares_.push_back(kind < 0 ? 0 : slots[static_cast<size_t>(kind)] / layers_of[static_cast<size_t>(kind)]);
  }
}

int DeviceSlots::slots() const {
  size_t count = 0;
  for (const auto& kind : slots_) count += kind.size();
  return static_cast<int>(count);
}

int DeviceSlots::held() const {
  int count = 0;
  for (const int of_layer : held_by_layer_) count += of_layer;
  return count;
}

bool DeviceSlots::full(LayerId layer) const {
  const std::vector<Slot>& slots = slots_[kind_of_[index(layer)]];
  return std::all_of(slots.begin(), slots.end(), [](const Slot& slot) { return slot.held; });
}

EvictionContext DeviceSlots::context(LayerId incoming) const {
  return {layer_,
          static_cast<int>(layout_.n_layers()),
          histories_.tokens(),
          forecast_,
          histories_.window(),
          incoming,
          held_by_layer_,
          shares_};
}

std::optional<int> DeviceSlots::find(ExpertKey key) const {
  const int slot = slot_of_[index(key.layer)][index(key.expert)];
  return slot < 0 ? std::nullopt : std::optional(slot);
}

int DeviceSlots::pin(ExpertKey key) {
  const std::optional<int> slot = find(key);
  CHECK(slot.has_value());
  slots_[kind_of_[index(key.layer)]][*slot].pinned = true;
  return *slot;
}

int DeviceSlots::use(ExpertKey key) {
  const int slot = pin(key);
  Slot& used = slots_[kind_of_[index(key.layer)]][slot];
  used.ahead = used.unused = false;
  histories_.touch(key);
  return slot;
}

DeviceSlots::Choice DeviceSlots::choose(ExpertKey key, bool ahead, Admission admission) const {
  const std::vector<Slot>& slots = slots_[kind_of_[index(key.layer)]];
  const EvictionContext now = context(key.layer);
  const auto worth_of = [&](ExpertKey one) { return policy_->worth(one, histories_.of(one), now); };
  int chosen = -1;
  double least = std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < slots.size(); ++i) {
    const Slot& slot = slots[i];
    if (slot.pinned || (slot.ahead && ahead)) continue;
    if (!slot.held) return {static_cast<int>(i)};
    // What came ahead goes last: its turn is about to come.
    const double worth = (slot.ahead ? kAheadWorth : 0) + worth_of(slot.key);
    if (worth < least) {
      least = worth;
      chosen = static_cast<int>(i);
    }
  }
  if (chosen >= 0 && admission == Admission::kIfWorthMore && worth_of(key) <= least) return {-1, true};
  return {chosen};
}

int DeviceSlots::take(int index_of_slot, ExpertKey key, bool ahead) {
  Slot& slot = slots_[kind_of_[index(key.layer)]][index_of_slot];
  if (slot.held) {
    slot_of_[index(slot.key.layer)][index(slot.key.expert)] = -1;
    --held_by_layer_[index(slot.key.layer)];
    ++evictions_;
    if (evicted_) evicted_(slot.key);
  }
  slot = {.held = true, .pinned = !ahead, .ahead = ahead, .unused = ahead, .key = key};
  slot_of_[index(key.layer)][index(key.expert)] = index_of_slot;
  ++held_by_layer_[index(key.layer)];
  histories_.touch(key);
  return index_of_slot;
}

std::optional<int> DeviceSlots::claim(ExpertKey key) {
  CHECK(!find(key));
  const Choice choice = choose(key, false, Admission::kAlways);
  return choice.slot < 0 ? std::nullopt : std::optional(take(choice.slot, key, false));
}

std::optional<int> DeviceSlots::claim_ahead(ExpertKey key, Admission admission) {
  CHECK(!find(key));
  const Choice choice = choose(key, true, admission);
  return choice.slot < 0 ? std::nullopt : std::optional(take(choice.slot, key, true));
}

Prefetched DeviceSlots::admits(ExpertKey key, Admission admission) const {
  if (find(key)) return Prefetched::kThere;
  const Choice choice = choose(key, true, admission);
  return choice.slot >= 0 ? Prefetched::kStarted : choice.not_worth ? Prefetched::kNotWorth : Prefetched::kNoSlot;
}

bool DeviceSlots::came_ahead(ExpertKey key) const {
  const std::optional<int> slot = find(key);
  return slot && slots_[kind_of_[index(key.layer)]][*slot].unused;
}

void DeviceSlots::begin_turn(LayerId layer) {
  layer_ = layer;
  for (const int slot : slot_of_[index(layer)]) {
    if (slot >= 0) slots_[kind_of_[index(layer)]][slot].ahead = false;
  }
}

void DeviceSlots::unpin_all() {
  for (auto& kind : slots_) {
    for (Slot& slot : kind) slot.pinned = false;
  }
}

void DeviceSlots::check_invariants() const {
  std::vector<int> held(held_by_layer_.size());
  for (size_t kind = 0; kind < slots_.size(); ++kind) {
    for (size_t i = 0; i < slots_[kind].size(); ++i) {
      const Slot& slot = slots_[kind][i];
      CHECK(slot.held || !(slot.pinned || slot.ahead || slot.unused));
      if (!slot.held) continue;
      CHECK(kind_of_[index(slot.key.layer)] == static_cast<int>(kind));
      CHECK(slot_of_[index(slot.key.layer)][index(slot.key.expert)] == static_cast<int>(i));
      ++held[index(slot.key.layer)];
    }
  }
  CHECK(held == held_by_layer_);
  for (size_t layer = 0; layer < slot_of_.size(); ++layer) {
    int mapped = 0;
    for (const int slot : slot_of_[layer]) mapped += slot >= 0 ? 1 : 0;
    CHECK(mapped == held[layer]);
  }
}

}  // namespace drafthorse
