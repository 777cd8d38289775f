// The fastest memory that routed experts are kept in, as those see it who plan ahead (schedule/): the expert cache in
// RAM, or a device's slots above it.
//
// All calls are hints: a demand comes first but for what is in flight. One thread uses a tier.
#pragma once

#include <cstdint>
#include <vector>

#include "base/ids.h"
#include "io/expert_layout.h"
#include "predict/forecast.h"

namespace drafthorse {

// What becomes of a wish to have an expert ahead.
enum class Prefetched {
  kThere,     // it is resident, or on its way
  kStarted,   // it is on its way from now on
  kNoSlot,    // every slot is pinned, taken ahead, or wanted by a demand
  kNotWorth,  // whatever could make room is worth more
};
// Whether what comes ahead may evict only what the eviction policy holds worth less.
enum class Admission { kAlways, kIfWorthMore };

class FastTier {
 public:
  virtual ~FastTier() = default;
  virtual int slots() const = 0;
  virtual const ExpertLayout& layout() const = 0;
  virtual bool resident(ExpertKey key) const = 0;
  virtual bool on_its_way(ExpertKey key) const = 0;

  // Brings the expert if it is absent and a slot can be had without touching pinned ones.
  virtual Prefetched prefetch(ExpertKey key, Admission admission) = 0;
  Prefetched prefetch(ExpertKey key) { return prefetch(key, Admission::kAlways); }
  // Blocks until nothing that was prefetched is under way.
  virtual void wait_for_prefetches() = 0;
  // Prefetched, in flight or waiting to be.
  virtual uint64_t prefetch_bytes_pending() const = 0;
  // Bytes that may be in flight ahead: what a demand may have to wait behind.
  virtual void set_background_limit(uint64_t bytes) = 0;
  // Takes in what has arrived and starts what waits. Blocks for next to nothing. Call at every stage boundary.
  virtual void poll() = 0;

  // What the present window is expected to need, for the eviction policy. Must outlive the tier; nullptr: nothing.
  virtual void set_forecast(const Forecast* forecast) = 0;
  // Tokens that passes take nowadays.
  virtual void set_window(double tokens) = 0;
  // Slots that each layer should have, for policies that divide them. Default: the same for each layer with experts.
  virtual void set_shares(std::vector<double> shares) = 0;

  virtual double use_rate(ExpertKey key) const = 0;
  // At which experts come; 0 until seen.
  virtual double load_bytes_per_s() const = 0;
  virtual int64_t stall_ns() const = 0;  // that the engine waited for experts, of all layers
};

}  // namespace drafthorse
