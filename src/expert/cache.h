// The routed experts in fast memory: a fixed number of slots, filled from the model's files as layers demand them.
//
// A slot holds one expert, its matrices where the O_DIRECT reads put them (no copy, no conversion). States:
//
//   free -> loading             a demand, a prefetch or a fill claims the slot and its reads begin
//   loading -> resident         all of its bytes are there
//   loading -> draining         the read is given up, or failed; the slot is useless until every read is back
//   draining -> free
//   resident -> free            evicted (and claimed for something else in the same step)
//   resident <-> pinned         pinned while a demand has not been released, or held for a copy: never evicted
//
// How a layer uses it, always in this order:
//   demand(layer, experts)      residents are pinned, loading ones waited for, misses read ahead of all else
//   take_ready() or wait_for()  hands out experts as they arrive
//   release(expert)             when its outputs are computed; its slot may now be evicted
// A demand for more experts than there are slots streams through them: misses claim slots as experts are released,
// so one free slot is enough to make progress and there is no deadlock to fall into.
//
// prefetch() and fill() have less priority than any demand: prefetch takes a free slot or evicts what is neither pinned
// nor read ahead itself, fill takes free slots only. A read ahead whose layer's turn has come without a
// demand for it is given up where that saves reading. One thread owns the cache.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/arena.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/trace.h"
#include "expert/eviction.h"
#include "expert/fast_tier.h"
#include "expert/histories.h"
#include "io/expert_layout.h"
#include "io/extent_reader.h"
#include "io/metered_queue.h"
#include "ops/expert_weights.h"

namespace drafthorse {

// Of one layer, since the last reset_stats().
struct LayerCacheStats {
  int64_t hits = 0;            // demanded and resident
  int64_t in_flight_hits = 0;  // demanded while its read was under way
  int64_t misses = 0;          // demanded and not there
  int64_t evictions = 0;
  uint64_t bytes_demanded = 0;    // read for misses
  uint64_t bytes_prefetched = 0;  // read ahead: prefetch and fill
  int64_t prefetched = 0;         // experts that prefetch began to read
  int64_t prefetched_used = 0;    // of them, demanded before they were evicted
  int64_t stall_ns = 0;           // the engine waited for this layer's experts and had nothing to compute
};

LayerCacheStats sum(const std::vector<LayerCacheStats>& layers);

class ExpertCache final : public FastTier {
 public:
  // Bytes of one slot: the largest expert of any layer, each of its extents on block boundaries of its own. Looks at
  // every expert.
  static uint64_t slot_bytes(const ExpertLayout& layout);
  // Fewest slots it works with: one computing, one loading.
  static constexpr int kLeastSlots = 2;

  // Where the slots lie: so many bytes, page-aligned. Empty: in an arena of the cache's own.
  using Memory = std::function<Result<Arena>(uint64_t bytes)>;

  // layout, files, queue and clock must outlive the cache. `slots` is at least kLeastSlots (or all experts there are).
  // most_slots: that grow() may make of them, if more; address space is reserved for so many.
  static Result<std::unique_ptr<ExpertCache>> create(const ExpertLayout& layout, int slots,
                                                     std::unique_ptr<EvictionPolicy> policy, const FileSet& files,
                                                     ReadQueue& queue, const Clock& clock, Memory memory = {},
                                                     int most_slots = 0);
  ~ExpertCache() override;
  ExpertCache(const ExpertCache&) = delete;
  ExpertCache& operator=(const ExpertCache&) = delete;

  int slots() const override { return static_cast<int>(slots_.size()); }
  // From now on there are `slots`, at least as many as before and at most as many as create() was told of: memory has
  // come free elsewhere. What a share of the slots was stays that share.
  void grow(int slots);
  uint64_t bytes() const { return slot_bytes_ * slots_.size(); }

  void set_trace(Trace* trace) { trace_ = trace; }  // must outlive the cache; nullptr: none

  // --- demands. `experts` are distinct; misses are read in this order. The previous demand must be released or
  // abandoned.
  void demand(LayerId layer, std::span<const ExpertId> experts);
  // The same in portions, so that slots are claimed as they are needed: the layer's turn has come, and these are the
  // experts it will demand. What was read ahead for it and is not among them was read in vain; what is stays until it
  // is demanded.
  void begin_turn(LayerId layer, std::span<const ExpertId> experts);
  void demand_portion(std::span<const ExpertId> experts);
  // Blocks until at least one demanded expert that was not handed out is resident; hands out all that are. Empty when
  // all have been handed out. An error when one cannot be read: abandon() the demand then.
  Result<std::vector<ExpertId>> take_ready();
  // Blocks until this demanded expert is resident and hands it out.
  Status wait_for(ExpertId expert);
  // Where a handed-out expert's matrices lie. Valid until its release.
  ops::ExpertWeights weights(ExpertId expert) const { return weights({demand_layer_, expert}); }
  // The same of a pinned one, handed out, borrowed or held.
  ops::ExpertWeights weights(ExpertKey key) const;
  void release(ExpertId expert);
  // Ends the demand after an error or an interruption: everything unpinned, reads that nobody wants drained.
  void abandon();

  // --- a pass over what is there and nothing else: no demand, no statistics, no histories, nothing read or evicted.
  // Pins resident experts of one layer until give_back(). Not during a demand.
  void borrow(LayerId layer, std::span<const ExpertId> experts);
  void give_back();

  // --- hints (fast_tier.h)
  using FastTier::prefetch;
  Prefetched prefetch(ExpertKey key, Admission admission) override;
  void wait_for_prefetches() override;
  void set_forecast(const Forecast* forecast) override { forecast_ = forecast; }
  void set_window(double tokens) override { histories_.set_window(tokens); }
  void set_shares(std::vector<double> shares) override { shares_ = std::move(shares); }
  // false: reads one expert after the other.
  void set_batched(bool batched) { reader_.set_batched(batched); }
  // For prefetch and fill. A prefill, whose next demand is known to be far off, allows more than decoding.
  void set_background_limit(uint64_t bytes) override { reader_.set_background_limit(bytes); }
  // Reads all experts, in order of layers, into slots that are free, as long as nothing better is to be read.
  void fill();
  // fill(), waiting for it. progress(experts resident, slots); where it returns false filling ends: kInterrupted.
  Status fill_and_wait(const std::function<bool(int, int)>& progress);

  void poll() override;  // never blocks

  // --- a faster tier above
  // A resident expert stays, whatever is demanded, until let_go(): it is being copied. Its weights(key) are valid.
  void hold(ExpertKey key);
  void let_go(ExpertKey key);
  // Whether the tier above has the expert: then its slot here is the first to go.
  void set_above(ExpertKey key, bool above);

  // See ExpertHistories::record().
  void record_uses(LayerId layer, std::span<const int32_t> used, int64_t count, std::span<const char> of_window = {}) {
    histories_.record(layer, used, count, of_window);
  }
  void advance(int64_t count) { histories_.advance(count); }

  bool resident(ExpertKey key) const override;
  bool on_its_way(ExpertKey key) const override;  // being read
  int residents() const;                          // experts, of all layers
  bool awaits_turn(ExpertKey key) const;          // on its way or there by prefetch() for a turn that is still to come
  // Read ahead, in flight or waiting to be.
  uint64_t prefetch_bytes_pending() const override {
    return reader_.background_bytes_in_flight() + reader_.waiting_bytes(ReadPriority::kPrefetch);
  }
  // Of storage that is kept busy, as seen so far; 0 until it has been.
  double load_bytes_per_s() const override { return queue_.bytes_per_s(); }
  int64_t stall_ns() const override;
  double use_rate(ExpertKey key) const override { return histories_.use_rate(key); }
  const ExpertLayout& layout() const override { return layout_; }
  const std::vector<LayerCacheStats>& stats() const { return stats_; }  // by layer
  void reset_stats();
  uint64_t read_retries() const { return reader_.retries(); }

  // Aborts if the bookkeeping contradicts itself. For tests.
  void check_invariants() const;

 private:
  enum class SlotState { kFree, kLoading, kDraining, kResident };
  struct Slot {
    SlotState state = SlotState::kFree;
    ExpertKey key;
    bool pinned = false;
    bool held = false;         // by the tier above
    bool above = false;        // the tier above has it, too
    bool read_ahead = false;   // asked for by prefetch() for a layer whose turn has not come yet
    bool prefetched = false;   // read by prefetch() and not demanded since
    bool awaits_turn = false;  // read by prefetch() for a turn that is still to come, or a demand in it
    ExtentReader::JobId job = 0;
    ReadPriority priority = ReadPriority::kDemand;
  };
  // One demanded expert's way through demand -> handed out -> released.
  enum class DemandState { kWaitingForSlot, kWaitingForRead, kReady, kHandedOut, kReleased };
  struct Demanded {
    ExpertId expert{};
    DemandState state = DemandState::kWaitingForSlot;
  };
  static constexpr int32_t kNoSlot = -1;

  ExpertCache(const ExpertLayout& layout, std::unique_ptr<EvictionPolicy> policy, const FileSet& files,
              ReadQueue& queue, const Clock& clock);

  int32_t& slot_of(ExpertKey key) { return slot_of_[index(key.layer)][index(key.expert)]; }
  int32_t slot_of(ExpertKey key) const { return slot_of_[index(key.layer)][index(key.expert)]; }
  std::byte* slot_data(int32_t slot) const { return arena_.data() + static_cast<uint64_t>(slot) * slot_bytes_; }
  EvictionContext context(LayerId incoming) const {
    return {demand_layer_,       static_cast<int>(layout_.n_layers()),
            histories_.tokens(), forecast_,
            histories_.window(), incoming,
            held_by_layer_,      shares_,
            kept_by_layer_,      mean_kept_};
  }

  // --- demands (cache.cc)
  void start_waiting_demands();
  void read_demanded(int32_t slot, Demanded& demanded);
  void make_room_for(Demanded& wanted_first);
  void cancel_unwanted();
  Demanded* find_demanded(ExpertId expert);
  Status wait_until(const std::function<bool()>& done);
  void poll(bool wait);

  // --- slots and what is read into them (cache_slots.cc)
  struct Claim {
    int32_t slot = kNoSlot;
    bool not_worth = false;  // there was one, and it is worth more
  };
  Claim claim_slot(ExpertKey key, ReadPriority priority, Admission admission = Admission::kAlways);
  void count_kept();
  void evict(int32_t slot);
  void begin_load(int32_t slot, ExpertKey key, ReadPriority priority);
  void give_up_read(Slot& slot);
  void finish(const ExtentReader::Finished& finished);
  void continue_fill();

  const ExpertLayout& layout_;
  std::unique_ptr<EvictionPolicy> policy_;
  const Clock& clock_;
  MeteredQueue queue_;
  ExtentReader reader_;
  uint64_t slot_bytes_ = 0;
  Arena arena_;
  std::vector<Slot> slots_;
  std::vector<std::vector<int32_t>> slot_of_;  // [layer][expert], kNoSlot where absent
  ExpertHistories histories_;
  std::unordered_map<ExtentReader::JobId, int32_t> slot_of_job_;
  std::vector<ExtentReader::Finished> finished_;
  const Forecast* forecast_ = nullptr;
  std::vector<int> held_by_layer_;  // slots with an expert of the layer, on its way or there
  std::vector<int> kept_by_layer_;  // of these, those that do not await a turn; as of the last choice of a victim
  double mean_kept_ = 0;
  std::vector<double> shares_;

  LayerId demand_layer_{};
  std::vector<Demanded> demanded_;  // in the order asked for
  std::vector<ExpertKey> borrowed_;
  Status demand_error_;

  Trace* trace_ = nullptr;
  bool filling_ = false;
  ExpertKey fill_next_{};
  int fills_in_flight_ = 0;
  std::vector<LayerCacheStats> stats_;
};

}  // namespace drafthorse
