// Which routed experts are in a device's slots: bookkeeping alone, no memory and no device.
//
// Slots are of kinds (model/expert_bank.h), and a layer's experts fit those of its kind. A slot is free, or holds an
// expert, which may be pinned: then work on the device uses it, or may yet. What is claimed is pinned. An expert that
// is evicted is forgotten: the tier below has it, or reads it again. One thread owns them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/ids.h"
#include "expert/eviction.h"
#include "io/expert_layout.h"
#include "predict/forecast.h"

namespace drafthorse {

class DeviceSlots {
 public:
  // kind_of: by layer, -1 for dense ones; slots: by kind. `layout` must outlive this.
  DeviceSlots(const ExpertLayout& layout, std::span<const int> kind_of, std::span<const int> slots,
              std::unique_ptr<EvictionPolicy> policy);

  int slots() const;
  int held() const;
  bool full(LayerId layer) const;  // every slot of its kind holds an expert

  // The slot that holds the expert, of its layer's kind; nothing where it is absent.
  std::optional<int> find(ExpertKey key) const;
  // Pins an expert that is there, and counts it as used now.
  int use(ExpertKey key);
  // A slot for an absent expert, which holds and pins it from now on: a free one, or the one of least worth. Nothing
  // where all are pinned, or, if asked so, where what would go is worth more.
  std::optional<int> claim(ExpertKey key, bool only_if_worth_more = false);
  // The device is done with everything.
  void unpin_all();

  void set_layer(LayerId layer) { layer_ = layer; }  // that is computed now
  void set_forecast(const Forecast* forecast) { forecast_ = forecast; }
  void set_window(double tokens) { window_ = tokens; }
  void record_uses(LayerId layer, std::span<const int32_t> used, int64_t count);
  void advance(int64_t tokens) { tokens_ += tokens; }
  int64_t evictions() const { return evictions_; }

  // Aborts if the bookkeeping contradicts itself. For tests.
  void check_invariants() const;

 private:
  struct Slot {
    bool held = false;
    bool pinned = false;
    ExpertKey key;
  };
  EvictionContext context(LayerId incoming) const;

  const ExpertLayout& layout_;
  std::unique_ptr<EvictionPolicy> policy_;
  std::vector<int> kind_of_;
  std::vector<std::vector<Slot>> slots_;               // by kind
  std::vector<std::vector<int>> slot_of_;              // [layer][expert], -1 where absent
  std::vector<std::vector<ExpertHistory>> histories_;  // [layer][expert]
  std::vector<int> held_by_layer_;
  std::vector<double> shares_;
  const Forecast* forecast_ = nullptr;
  LayerId layer_{};
  double window_ = 1;
  int64_t tokens_ = 0;
  int64_t tick_ = 0;
  int64_t evictions_ = 0;
};

}  // namespace drafthorse
