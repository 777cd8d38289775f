// A device's expert slots as the tier that policies plan for: an expert that is wanted ahead is copied from RAM, or
// read from the SSD into RAM first and copied when it is there.
//
// Copies go by the device's second queue, one after the other, so a demand's copy waits behind those that were begun
// before: no more of them are begun than the background limit allows. Nobody is told when a copy is done; what is on
// the link is reckoned from its rate. What a copy reads stays in RAM until copies have been waited for: when the link
// should be idle, where that takes next to nothing, and where too much of RAM is held.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "backend/device.h"
#include "base/clock.h"
#include "base/trace.h"
#include "expert/cache.h"
#include "expert/device_slots.h"
#include "expert/fast_tier.h"
#include "model/expert_bank.h"

namespace drafthorse {

// Of one layer, since the last reset_stats().
struct DeviceLayerStats {
  int64_t hits = 0;             // needed, and in a slot
  int64_t copied = 0;           // needed, copied and computed on the device
  int64_t on_host = 0;          // needed, computed on the host
  int64_t extra_waits = 0;      // the host waited for slots to come free
  int64_t prefetched = 0;       // copied ahead
  int64_t prefetched_used = 0;  // of them, needed before they were evicted
  uint64_t bytes_copied = 0;    // when needed
  uint64_t bytes_prefetched = 0;
};
DeviceLayerStats total_of(const std::vector<DeviceLayerStats>& layers);

class DeviceTier final : public FastTier {
 public:
  // All must outlive the tier; `ram` is the tier below.
  DeviceTier(Device& device, ExpertCache& ram, ExpertBank& bank, DeviceSlots& slots, const Clock& clock);
  ~DeviceTier() override;
  DeviceTier(const DeviceTier&) = delete;
  DeviceTier& operator=(const DeviceTier&) = delete;

  int slots() const override { return slots_.slots(); }
  const ExpertLayout& layout() const override { return ram_.layout(); }
  bool resident(ExpertKey key) const override { return slots_.find(key).has_value(); }
  bool on_its_way(ExpertKey key) const override;
  using FastTier::prefetch;
  Prefetched prefetch(ExpertKey key, Admission admission) override;
  void wait_for_prefetches() override;
  uint64_t prefetch_bytes_pending() const override;
  void set_background_limit(uint64_t bytes) override;
  void poll() override;
  void set_forecast(const Forecast* forecast) override;
  void set_window(double tokens) override;
  void set_shares(std::vector<double> shares) override { slots_.set_shares(std::move(shares)); }
  double use_rate(ExpertKey key) const override { return slots_.use_rate(key); }
  double load_bytes_per_s() const override;
  int64_t stall_ns() const override { return ram_.stall_ns(); }

  double link_bytes_per_s() const { return link_bytes_per_s_; }  // 0: not measured
  void set_link_bytes_per_s(double rate) { link_bytes_per_s_ = rate; }
  void set_trace(Trace* trace) { trace_ = trace; }  // must outlive this; nullptr: none
  // The layer is computed now: what has not come ahead for it by now is brought by its demand.
  void begin_turn(LayerId layer);
  // Queues the copy of an expert that RAM has pinned or held into its slot.
  void copy(ExpertKey key, int slot, bool ahead = false);
  // Waits for all copies; RAM may evict what they came from.
  void settle();
  // After an error: nothing more comes.
  void abandon();

  std::vector<DeviceLayerStats>& stats() { return stats_; }  // by layer

 private:
  struct Ahead {
    ExpertKey key;
    Admission admission{};
  };
  bool copy_ahead(const Ahead& ahead);
  size_t most_held() const;
  bool link_has_room() const;
  double link_busy_s() const;  // from now on, as reckoned
  uint64_t bytes_of(ExpertKey key) const { return bank_.slot_bytes(bank_.kind_of(key.layer)); }

  Device& device_;
  ExpertCache& ram_;
  ExpertBank& bank_;
  DeviceSlots& slots_;
  const Clock& clock_;
  Trace* trace_ = nullptr;
  const bool ram_has_all_;         // nothing is ever evicted there
  double link_bytes_per_s_ = 0;    // 0: not known
  uint64_t background_limit_ = 0;  // of bytes, as the tier below has it
  int64_t link_busy_until_ns_ = 0;
  std::deque<Ahead> ahead_;      // wanted, and not being copied yet: in the order asked for
  std::vector<ExpertKey> held_;  // in RAM, for copies that were begun
  std::vector<DeviceLayerStats> stats_;
};

}  // namespace drafthorse
