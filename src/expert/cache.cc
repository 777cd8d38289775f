#include "expert/cache.h"

#include <algorithm>

#include "base/units.h"

namespace drafthorse {

LayerCacheStats sum(const std::vector<LayerCacheStats>& layers) {
  LayerCacheStats total;
  for (const LayerCacheStats& layer : layers) {
    total.hits += layer.hits;
    total.in_flight_hits += layer.in_flight_hits;
    total.misses += layer.misses;
    total.evictions += layer.evictions;
    total.prefetched += layer.prefetched;
    total.prefetched_used += layer.prefetched_used;
    total.bytes_demanded += layer.bytes_demanded;
    total.bytes_prefetched += layer.bytes_prefetched;
    total.stall_ns += layer.stall_ns;
  }
  return total;
}

uint64_t ExpertCache::slot_bytes(const ExpertLayout& layout) {
  uint64_t largest = 0;
  for (const ExpertLayer& layer : layout.layers) {
    for (const auto& extents : layer.experts) {
      uint64_t bytes = 0;
      for (int i = 0; i < layer.n_extents; ++i) bytes += widen(extents[i]).bytes();
      largest = std::max(largest, bytes);
    }
  }
  return largest;
}

Result<std::unique_ptr<ExpertCache>> ExpertCache::create(const ExpertLayout& layout, int slots,
                                                         std::unique_ptr<EvictionPolicy> policy, const FileSet& files,
                                                         ReadQueue& queue, const Clock& clock, Memory memory,
                                                         int most_slots) {
  CHECK(policy != nullptr);
  CHECK(slots >= std::min(kLeastSlots, layout.total_experts()));
  std::unique_ptr<ExpertCache> cache(new ExpertCache(layout, std::move(policy), files, queue, clock));
  cache->slot_bytes_ = slot_bytes(layout);
  const uint64_t bytes = cache->slot_bytes_ * static_cast<uint64_t>(std::max(slots, most_slots));
  ASSIGN_OR_RETURN(cache->arena_, memory ? memory(bytes) : Arena::reserve(bytes));
  cache->slots_.resize(static_cast<size_t>(slots));
  const int with_experts = layout.moe_layers();
  for (const ExpertLayer& layer : layout.layers) {
    cache->shares_.push_back(layer.experts.empty() ? 0
                                                   : static_cast<double>(slots) / static_cast<double>(with_experts));
  }
  return cache;
}

ExpertCache::ExpertCache(const ExpertLayout& layout, std::unique_ptr<EvictionPolicy> policy, const FileSet& files,
                         ReadQueue& queue, const Clock& clock)
    : layout_(layout),
      policy_(std::move(policy)),
      clock_(clock),
      queue_(queue, clock),
      reader_(files, queue_),
      histories_(layout.experts_by_layer(), policy_->reads_next_pass()),
      stats_(layout.n_layers()) {
  held_by_layer_.resize(layout.n_layers());
  kept_by_layer_.resize(layout.n_layers());
  for (const ExpertLayer& layer : layout.layers) {
    slot_of_.emplace_back(layer.experts.size(), kNoSlot);
  }
}

ExpertCache::~ExpertCache() {
  // The reads' destinations are ours: they must come back before the memory goes.
  filling_ = false;
  for (const Slot& slot : slots_) {
    if (slot.state == SlotState::kLoading) reader_.cancel(slot.job);
  }
  while (!reader_.idle()) {
    finished_.clear();
    reader_.poll(true, finished_);
  }
}

void ExpertCache::grow(int slots) {
  CHECK(slots >= this->slots() && slot_bytes_ * static_cast<uint64_t>(slots) <= arena_.bytes());
  const double growth = static_cast<double>(slots) / static_cast<double>(this->slots());
  slots_.resize(static_cast<size_t>(slots));
  for (double& share : shares_) share *= growth;
  start_waiting_demands();
}

void ExpertCache::demand(LayerId layer, std::span<const ExpertId> experts) {
  begin_turn(layer, experts);
  demand_portion(experts);
}

void ExpertCache::begin_turn(LayerId layer, std::span<const ExpertId> experts) {
  CHECK(demanded_.empty() && borrowed_.empty());
  demand_layer_ = layer;
  demand_error_ = {};
  for (Slot& slot : slots_) {
    if (slot.key.layer == layer) slot.read_ahead = false;
  }
  for (const ExpertId expert : experts) {
    if (const int32_t slot = slot_of({layer, expert}); slot != kNoSlot) slots_[slot].read_ahead = true;
  }
  for (Slot& slot : slots_) {
    if (slot.key.layer == layer && !slot.read_ahead) slot.awaits_turn = false;  // it was read in vain
  }
  cancel_unwanted();
}

void ExpertCache::demand_portion(std::span<const ExpertId> experts) {
  CHECK(demanded_.empty());
  const LayerId layer = demand_layer_;
  poll(false);
  for (const ExpertId expert : experts) {
    const ExpertKey key{layer, expert};
    LayerCacheStats& stats = stats_[index(layer)];
    histories_.touch(key);
    if (slot_of(key) != kNoSlot && slots_[slot_of(key)].prefetched) {
      slots_[slot_of(key)].prefetched = false;
      ++stats.prefetched_used;
    }
    DemandState state = DemandState::kWaitingForSlot;
    const int32_t slot = slot_of(key);
    if (slot != kNoSlot) slots_[slot].read_ahead = slots_[slot].awaits_turn = false;
    if (slot == kNoSlot) {
      ++stats.misses;
    } else if (slots_[slot].state == SlotState::kResident) {
      ++stats.hits;
      slots_[slot].pinned = true;
      state = DemandState::kReady;
    } else {
      ++stats.in_flight_hits;
      slots_[slot].pinned = true;
      reader_.promote(slots_[slot].job, ReadPriority::kDemand);
      state = DemandState::kWaitingForRead;
    }
    demanded_.push_back({expert, state});
  }
  start_waiting_demands();
}

// What was read ahead for the layer whose turn has come, and is not demanded, is of no use for as long as can be
// foreseen. Where part of it has not been asked for yet, the disk is better used for something else.
void ExpertCache::cancel_unwanted() {
  for (Slot& slot : slots_) {
    const bool ahead = slot.state == SlotState::kLoading && slot.priority == ReadPriority::kPrefetch;
    if (ahead && slot.key.layer == demand_layer_ && !slot.pinned && !slot.read_ahead && reader_.waits(slot.job)) {
      give_up_read(slot);
    }
  }
}

void ExpertCache::start_waiting_demands() {
  for (Demanded& demanded : demanded_) {
    if (demanded.state != DemandState::kWaitingForSlot) continue;
    const Claim claim = claim_slot({demand_layer_, demanded.expert}, ReadPriority::kDemand);
    if (claim.slot == kNoSlot) return;
    read_demanded(claim.slot, demanded);
  }
}

void ExpertCache::read_demanded(int32_t slot, Demanded& demanded) {
  begin_load(slot, {demand_layer_, demanded.expert}, ReadPriority::kDemand);
  slots_[slot].pinned = true;
  demanded.state = DemandState::kWaitingForRead;
}

// Residents of the same demand that are wanted later may fill all slots; the one wanted last makes room then.
void ExpertCache::make_room_for(Demanded& wanted_first) {
  const auto last = std::find_if(demanded_.rbegin(), demanded_.rend(), [this](const Demanded& demanded) {
    return demanded.state == DemandState::kReady && !slots_[slot_of({demand_layer_, demanded.expert})].held;
  });
  if (last == demanded_.rend()) return;
  const int32_t slot = slot_of({demand_layer_, last->expert});
  last->state = DemandState::kWaitingForSlot;
  slots_[slot].pinned = false;
  evict(slot);
  read_demanded(slot, wanted_first);
}

void ExpertCache::poll(bool wait) {
  finished_.clear();
  reader_.poll(wait, finished_);
  for (const ExtentReader::Finished& one : finished_) finish(one);
  start_waiting_demands();
  continue_fill();
}

void ExpertCache::poll() { poll(false); }

ExpertCache::Demanded* ExpertCache::find_demanded(ExpertId expert) {
  for (Demanded& demanded : demanded_) {
    if (demanded.expert == expert) return &demanded;
  }
  return nullptr;
}

Status ExpertCache::wait_until(const std::function<bool()>& done) {
  poll(false);
  if (demand_error_.ok() && !done()) {
    const int64_t start = clock_.now_ns();
    while (demand_error_.ok() && !done()) {
      CHECK(!reader_.idle());  // else nothing would ever wake us: a demand that never got a slot
      poll(true);
    }
    const int64_t end = clock_.now_ns();
    stats_[index(demand_layer_)].stall_ns += end - start;
    if (trace_ != nullptr) trace_->span(Span::kStall, index(demand_layer_), start, end);
  }
  return demand_error_;
}

Result<std::vector<ExpertId>> ExpertCache::take_ready() {
  std::vector<ExpertId> ready;
  const bool all_out = std::all_of(demanded_.begin(), demanded_.end(),
                                   [](const Demanded& demanded) { return demanded.state >= DemandState::kHandedOut; });
  if (all_out) return ready;
  RETURN_IF_ERROR(wait_until([this] {
    return std::any_of(demanded_.begin(), demanded_.end(),
                       [](const Demanded& demanded) { return demanded.state == DemandState::kReady; });
  }));
  for (Demanded& demanded : demanded_) {
    if (demanded.state != DemandState::kReady) continue;
    demanded.state = DemandState::kHandedOut;
    ready.push_back(demanded.expert);
  }
  return ready;
}

Status ExpertCache::wait_for(ExpertId expert) {
  Demanded* demanded = find_demanded(expert);
  CHECK(demanded != nullptr && demanded->state < DemandState::kHandedOut);
  RETURN_IF_ERROR(wait_until([this, demanded] {
    // With nothing under way no slot will come free by itself.
    if (demanded->state == DemandState::kWaitingForSlot && reader_.idle()) make_room_for(*demanded);
    return demanded->state == DemandState::kReady;
  }));
  demanded->state = DemandState::kHandedOut;
  return {};
}

ops::ExpertWeights ExpertCache::weights(ExpertKey key) const {
  const int32_t index_of_slot = slot_of(key);
  CHECK(index_of_slot != kNoSlot && (slots_[index_of_slot].pinned || slots_[index_of_slot].held));
  const ExpertLayer& layer = layout_.layers[index(key.layer)];
  const auto& extents = layer.experts[index(key.expert)];
  std::array<const std::byte*, kMaxExpertExtents> payload{};
  const std::byte* region = slot_data(index_of_slot);
  for (int i = 0; i < layer.n_extents; ++i) {
    const AlignedExtent aligned = widen(extents[i]);
    payload[i] = region + aligned.payload;
    region += aligned.bytes();
  }
  const auto matrix = [&](const ExpertMatrix& m) -> ops::WeightMatrix {
    return {payload[m.extent] + m.offset, m.type, m.columns, m.rows, ggml_row_size(m.type, m.columns)};
  };
  return {matrix(layer.gate), matrix(layer.up), matrix(layer.down)};
}

void ExpertCache::release(ExpertId expert) {
  Demanded* demanded = find_demanded(expert);
  CHECK(demanded != nullptr && demanded->state == DemandState::kHandedOut);
  demanded->state = DemandState::kReleased;
  slots_[slot_of({demand_layer_, expert})].pinned = false;
  const bool all = std::all_of(demanded_.begin(), demanded_.end(),
                               [](const Demanded& one) { return one.state == DemandState::kReleased; });
  if (all)
    demanded_.clear();
  else
    start_waiting_demands();
}

void ExpertCache::abandon() {
  for (const Demanded& demanded : demanded_) {
    const int32_t index_of_slot = slot_of({demand_layer_, demanded.expert});
    if (index_of_slot == kNoSlot) continue;
    Slot& slot = slots_[index_of_slot];
    slot.pinned = false;
    if (slot.state == SlotState::kLoading) give_up_read(slot);
  }
  for (Slot& slot : slots_) slot.read_ahead = false;
  demanded_.clear();
  demand_error_ = {};
}

void ExpertCache::borrow(LayerId layer, std::span<const ExpertId> experts) {
  CHECK(demanded_.empty() && borrowed_.empty());
  for (const ExpertId expert : experts) {
    CHECK(resident({layer, expert}));
    slots_[slot_of({layer, expert})].pinned = true;
    borrowed_.push_back({layer, expert});
  }
}

void ExpertCache::give_back() {
  for (const ExpertKey key : borrowed_) slots_[slot_of(key)].pinned = false;
  borrowed_.clear();
}

void ExpertCache::hold(ExpertKey key) {
  CHECK(resident(key));
  slots_[slot_of(key)].held = true;
}

void ExpertCache::let_go(ExpertKey key) {
  Slot& slot = slots_[slot_of(key)];
  CHECK(slot.held);
  slot.held = false;
  slot.read_ahead = false;
  start_waiting_demands();
}

void ExpertCache::set_above(ExpertKey key, bool above) {
  if (slot_of(key) != kNoSlot) slots_[slot_of(key)].above = above;
}

int64_t ExpertCache::stall_ns() const {
  int64_t total = 0;
  for (const LayerCacheStats& layer : stats_) total += layer.stall_ns;
  return total;
}

int ExpertCache::residents() const {
  return static_cast<int>(
      std::count_if(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.state == SlotState::kResident; }));
}

bool ExpertCache::awaits_turn(ExpertKey key) const {
  const int32_t slot = slot_of(key);
  return slot != kNoSlot && slots_[slot].awaits_turn;
}

bool ExpertCache::on_its_way(ExpertKey key) const {
  const int32_t slot = slot_of(key);
  return slot != kNoSlot && slots_[slot].state == SlotState::kLoading;
}

bool ExpertCache::resident(ExpertKey key) const {
  const int32_t slot = slot_of(key);
  return slot != kNoSlot && slots_[slot].state == SlotState::kResident;
}

void ExpertCache::reset_stats() { stats_.assign(stats_.size(), {}); }

void ExpertCache::check_invariants() const {
  size_t held = 0;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    const bool mapped = slot.state == SlotState::kLoading || slot.state == SlotState::kResident;
    if (mapped) {
      ++held;
      CHECK(slot_of(slot.key) == static_cast<int32_t>(i));
    }
    CHECK(!slot.pinned || mapped);
    CHECK(!slot.held || slot.state == SlotState::kResident);
    const bool reading = slot.state == SlotState::kLoading || slot.state == SlotState::kDraining;
    const auto job = slot_of_job_.find(slot.job);
    CHECK(reading == (job != slot_of_job_.end() && job->second == static_cast<int32_t>(i)));
  }
  size_t mapped = 0;
  for (const auto& layer : slot_of_) {
    mapped += layer.size() - static_cast<size_t>(std::count(layer.begin(), layer.end(), kNoSlot));
  }
  CHECK(mapped == held);
  for (size_t layer = 0; layer < slot_of_.size(); ++layer) {
    CHECK(held_by_layer_[layer] ==
          static_cast<int>(slot_of_[layer].size()) -
              static_cast<int>(std::count(slot_of_[layer].begin(), slot_of_[layer].end(), kNoSlot)));
  }
}

}  // namespace drafthorse
