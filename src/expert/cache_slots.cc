// The cache's slots: who gets one, what its reads become, and what is brought ahead of any demand.
#include <algorithm>
#include <limits>

#include "expert/cache.h"

namespace drafthorse {
namespace {

constexpr double kReadAheadWorth = 1e15;  // above any policy's own worth
constexpr double kAboveWorth = -1e15;     // below any

FetchReason reason_of(ReadPriority priority) {
  switch (priority) {
    case ReadPriority::kDemand:
      return FetchReason::kDemand;
    case ReadPriority::kPrefetch:
      return FetchReason::kPrefetch;
    default:
      return FetchReason::kFill;
  }
}

}  // namespace

void ExpertCache::evict(int32_t index_of_slot) {
  Slot& slot = slots_[index_of_slot];
  CHECK(slot.state == SlotState::kResident && !slot.pinned && !slot.held);
  ++stats_[index(slot.key.layer)].evictions;
  slot_of(slot.key) = kNoSlot;
  --held_by_layer_[index(slot.key.layer)];
  slot.state = SlotState::kFree;
}

void ExpertCache::count_kept() {
  std::fill(kept_by_layer_.begin(), kept_by_layer_.end(), 0);
  int kept = 0;
  for (const Slot& slot : slots_) {
    const bool held = slot.state == SlotState::kLoading || slot.state == SlotState::kResident;
    if (!held || slot.awaits_turn) continue;
    ++kept_by_layer_[index(slot.key.layer)];
    ++kept;
  }
  mean_kept_ = static_cast<double>(kept) / std::max(1, layout_.moe_layers());
}

ExpertCache::Claim ExpertCache::claim_slot(ExpertKey key, ReadPriority priority, Admission admission) {
  const auto free =
      std::find_if(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.state == SlotState::kFree; });
  if (free != slots_.end()) return {static_cast<int32_t>(free - slots_.begin())};
  if (priority == ReadPriority::kFill) return {};
  int32_t victim = kNoSlot;
  double least = std::numeric_limits<double>::infinity();
  count_kept();
  const EvictionContext now = context(key.layer);
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (slot.pinned || slot.held || slot.state != SlotState::kResident) continue;
    // What was read ahead and has not been asked for goes last, and only for a demand: its turn is about to come.
    if (slot.read_ahead && priority != ReadPriority::kDemand) continue;
    const double worth = (slot.read_ahead ? kReadAheadWorth : 0) + (slot.above ? kAboveWorth : 0) +
                         policy_->worth(slot.key, histories_.of(slot.key), now);
    if (worth < least) {
      least = worth;
      victim = static_cast<int32_t>(i);
    }
  }
  if (victim == kNoSlot) return {};
  if (admission == Admission::kIfWorthMore && policy_->worth(key, histories_.of(key), now) <= least) {
    return {kNoSlot, true};
  }
  if (trace_ != nullptr) trace_->evicted(slots_[victim].key, least, reason_of(priority), clock_.now_ns());
  evict(victim);
  return {victim};
}

void ExpertCache::begin_load(int32_t index_of_slot, ExpertKey key, ReadPriority priority) {
  Slot& slot = slots_[index_of_slot];
  CHECK(slot.state == SlotState::kFree && slot_of(key) == kNoSlot);
  const ExpertLayer& layer = layout_.layers[index(key.layer)];
  const auto& extents = layer.experts[index(key.expert)];
  std::array<ExtentRead, kMaxExpertExtents> reads;
  std::byte* destination = slot_data(index_of_slot);
  uint64_t bytes = 0;
  for (int i = 0; i < layer.n_extents; ++i) {
    reads[i] = {extents[i], destination};
    destination += widen(extents[i]).bytes();
    bytes += widen(extents[i]).bytes();
  }
  slot.state = SlotState::kLoading;
  slot.key = key;
  slot.pinned = false;
  slot.above = false;
  slot.read_ahead = priority == ReadPriority::kPrefetch;
  slot.prefetched = slot.awaits_turn = slot.read_ahead;
  ++held_by_layer_[index(key.layer)];
  slot.priority = priority;
  slot.job = reader_.start({reads.data(), static_cast<size_t>(layer.n_extents)}, priority);
  slot_of_job_[slot.job] = index_of_slot;
  slot_of(key) = index_of_slot;
  histories_.touch(key);
  LayerCacheStats& stats = stats_[index(key.layer)];
  (priority == ReadPriority::kDemand ? stats.bytes_demanded : stats.bytes_prefetched) += bytes;
  if (priority == ReadPriority::kFill) ++fills_in_flight_;
  if (trace_ != nullptr) trace_->fetched(key, reason_of(priority), bytes, clock_.now_ns());
}

void ExpertCache::finish(const ExtentReader::Finished& finished) {
  const auto found = slot_of_job_.find(finished.job);
  CHECK(found != slot_of_job_.end());
  const int32_t index_of_slot = found->second;
  slot_of_job_.erase(found);
  Slot& slot = slots_[index_of_slot];
  if (slot.priority == ReadPriority::kFill) --fills_in_flight_;
  if (trace_ != nullptr) {
    const bool usable = slot.state == SlotState::kLoading && finished.status.ok() && !finished.cancelled;
    trace_->arrived(slot.key, usable, clock_.now_ns());
  }
  if (slot.state == SlotState::kDraining) {
    slot.state = SlotState::kFree;
    slot.pinned = false;
    return;
  }
  CHECK(slot.state == SlotState::kLoading);
  Demanded* demanded = slot.key.layer == demand_layer_ ? find_demanded(slot.key.expert) : nullptr;
  const bool wanted = demanded != nullptr && demanded->state == DemandState::kWaitingForRead;
  if (finished.status.ok() && !finished.cancelled) {
    slot.state = SlotState::kResident;
    if (wanted) demanded->state = DemandState::kReady;
    return;
  }
  slot.state = SlotState::kFree;
  slot.pinned = false;
  slot_of(slot.key) = kNoSlot;
  --held_by_layer_[index(slot.key.layer)];
  // A prefetch that fails is no error: the demand for it, if one comes, tries anew and reports.
  if (wanted && demand_error_.ok()) demand_error_ = finished.status;
}

void ExpertCache::give_up_read(Slot& slot) {
  slot.state = SlotState::kDraining;
  slot_of(slot.key) = kNoSlot;
  --held_by_layer_[index(slot.key.layer)];
  reader_.cancel(slot.job);
}

Prefetched ExpertCache::prefetch(ExpertKey key, Admission admission) {
  if (slot_of(key) != kNoSlot) {
    slots_[slot_of(key)].read_ahead = true;  // wanted soon: no other prefetch may evict it
    return Prefetched::kThere;
  }
  const bool demand_waits = std::any_of(demanded_.begin(), demanded_.end(), [](const Demanded& demanded) {
    return demanded.state == DemandState::kWaitingForSlot;
  });
  const Claim claim = demand_waits ? Claim{} : claim_slot(key, ReadPriority::kPrefetch, admission);
  if (claim.slot != kNoSlot) {
    begin_load(claim.slot, key, ReadPriority::kPrefetch);
    ++stats_[index(key.layer)].prefetched;
    return Prefetched::kStarted;
  }
  if (trace_ != nullptr) {
    trace_->dropped(key,
                    demand_waits      ? "a demand waits for a slot"
                    : claim.not_worth ? "all that could make room is worth more"
                                      : "every slot is in use or read ahead",
                    clock_.now_ns());
  }
  return claim.not_worth ? Prefetched::kNotWorth : Prefetched::kNoSlot;
}

void ExpertCache::wait_for_prefetches() {
  const auto under_way = [this] {
    return std::any_of(slots_.begin(), slots_.end(), [](const Slot& slot) {
      return slot.state == SlotState::kLoading && slot.priority == ReadPriority::kPrefetch;
    });
  };
  while (under_way()) poll(true);
}

void ExpertCache::fill() {
  filling_ = true;
  fill_next_ = {};
  continue_fill();
}

void ExpertCache::continue_fill() {
  // Two at a time keep the queue's background share full without holding slots that a demand could use.
  constexpr int kFillsInFlight = 2;
  while (filling_ && fills_in_flight_ < kFillsInFlight) {
    const int layer = index(fill_next_.layer);
    if (layer >= static_cast<int>(layout_.n_layers())) {
      filling_ = false;
      return;
    }
    if (index(fill_next_.expert) >= layout_.n_experts(fill_next_.layer)) {
      fill_next_ = {LayerId{layer + 1}, ExpertId{0}};
      continue;
    }
    if (slot_of(fill_next_) == kNoSlot) {
      const Claim claim = claim_slot(fill_next_, ReadPriority::kFill);
      if (claim.slot == kNoSlot) {
        filling_ = false;
        return;
      }
      begin_load(claim.slot, fill_next_, ReadPriority::kFill);
    }
    fill_next_.expert = ExpertId{index(fill_next_.expert) + 1};
  }
}

Status ExpertCache::fill_and_wait(const std::function<bool(int, int)>& progress) {
  fill();
  const auto resident_slots = [this] {
    return static_cast<int>(std::count_if(slots_.begin(), slots_.end(),
                                          [](const Slot& slot) { return slot.state == SlotState::kResident; }));
  };
  Status failure;
  while (filling_ || fills_in_flight_ > 0) {
    finished_.clear();
    reader_.poll(true, finished_);
    for (const ExtentReader::Finished& one : finished_) {
      if (failure.ok()) failure = one.status;
      finish(one);
    }
    if (!failure.ok()) {
      filling_ = false;
      return failure;
    }
    continue_fill();
    if (progress && !progress(resident_slots(), slots())) {
      filling_ = false;
      return interrupted_error();
    }
  }
  return {};
}

}  // namespace drafthorse
