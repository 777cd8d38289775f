// A layer's routed experts with a device: three tiers at once. What is in the device's slots is computed there; what is
// not comes from the expert cache in RAM, which reads it from the SSD where it has to, and is copied to the device or,
// where that ends sooner, computed on the host beside it.
//
// The device computes what it has while the rest is copied, and each wave of copies as one batch. The host waits for
// the device only where a layer needs more experts than there are slots. Every (token, expert) pair is computed alone
// and kept apart, and a token's experts are added in the order of their ids: what is where does not show in the sum
// where everything is computed on the device, which fixed placement sees to.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/trace.h"
#include "expert/cache.h"
#include "expert/device_slots.h"
#include "forward/device_tier.h"
#include "model/device_stages.h"
#include "model/expert_bank.h"
#include "model/model.h"
#include "model/routing.h"

namespace drafthorse {

// How a layer's tokens were routed.
struct LayerRouting {
  LayerId layer{};
  int32_t count = 0;                                // tokens
  std::span<const RoutedExpert> routes;             // [count * n_expert_used]
  std::span<const std::vector<int32_t>> tokens_of;  // by expert
  std::span<const ExpertId> experts;                // that have tokens, by id
};

enum class Placement {
  kAuto,   // missing experts go where they are computed sooner
  kFixed,  // all are computed on the device
};

// What decides between copying and computing on the host, measured at loading and while running.
struct MissCosts {
  double link_bytes_per_s = 0;
  double host_bytes_per_s = 0;      // of weights, for one token
  double host_row_bytes_per_s = 0;  // the same for each token more
};

class DeviceExperts {
 public:
  // The model computes on a device, the cache is its experts' in RAM, slots and bank are of one size. All but the slots
  // must outlive this.
  DeviceExperts(Model& model, ExpertCache& host, ExpertBank& bank, DeviceSlots slots, Placement placement,
                const Clock& clock, const std::atomic<bool>* interrupted);

  // Must outlive this; nullptr: none.
  void set_trace(Trace* trace) {
    trace_ = trace;
    tier_.set_trace(trace);
  }

  // Adds the experts' outputs to the residual, after Model::attention() of the layer. On an error abandon() must
  // follow.
  Status run(const LayerRouting& routing);
  // The same for one token that is routed to experts in slots, of which there may be fewer than it uses. Leaves no
  // trace in histories and statistics.
  void run_resident(LayerId layer, std::span<const RoutedExpert> routes);
  // Ends a pass: what it held in slots and in RAM may go.
  void settle();
  void abandon();

  // Copies experts, in the order of layers, as long as slots are free. progress(copied, slots) as in ExpertCache.
  Status fill(const std::function<bool(int, int)>& progress);
  // Times a copy and, for Placement::kAuto, a computation of one expert. Once, while the cache has nothing to do.
  Status measure();

  // What plans ahead plans for this, instead of for the cache.
  DeviceTier& tier() { return tier_; }
  const DeviceTier& tier() const { return tier_; }
  bool resident(ExpertKey key) const { return slots_.find(key).has_value(); }
  DeviceSlots& slots() { return slots_; }
  const DeviceSlots& slots() const { return slots_; }
  Placement placement() const { return placement_; }
  const MissCosts& costs() const { return costs_; }
  void set_costs(const MissCosts& costs) { costs_ = costs; }             // for tests
  const std::vector<DeviceLayerStats>& stats() const { return stats_; }  // by layer
  void reset_stats() { stats_.assign(stats_.size(), {}); }
  int64_t device_waits() const { return stages_.device().waits(); }

 private:
  std::vector<bool> place(const LayerRouting& routing, std::span<const ExpertId> missing) const;
  Status bring(const LayerRouting& routing, std::span<const ExpertId> missing);
  void copy(LayerId layer, ExpertId expert, int slot);
  void release_copied();
  void number_rows(const LayerRouting& routing, std::span<const ExpertId> experts);
  void launch(const LayerRouting& routing, std::span<const ExpertId> experts);
  void compute_work(std::span<const int32_t> token_of_row, size_t input_row_bytes);
  void run_on_host(const LayerRouting& routing, std::span<const ExpertId> experts);
  void add(const LayerRouting& routing);

  Model& model_;
  DeviceStages& stages_;
  ExpertCache& host_;
  ExpertBank& bank_;
  DeviceSlots slots_;
  Placement placement_;
  const Clock& clock_;
  const std::atomic<bool>* interrupted_;
  MissCosts costs_;
  Trace* trace_ = nullptr;
  DeviceTier tier_;
  std::vector<DeviceLayerStats>& stats_;
  int64_t launched_at_ = -1;           // of the device's waits: it was not waited for since what was launched last
  std::vector<ExpertId> held_in_ram_;  // handed out by the cache, being copied
  std::vector<int32_t> first_row_of_;  // by expert, of the present layer
  int32_t rows_ = 0;                   // numbered so far
  std::vector<ops::ExpertWork> work_;
};

}  // namespace drafthorse
