// Which routed experts are in a device's slots: bookkeeping alone, no memory and no device.
//
// Slots are of kinds (model/expert_bank.h), and a layer's experts fit those of its kind. A slot is free, or holds an
// expert, which may be pinned: then work on the device uses it, or may yet. What is claimed is pinned, unless it comes
// ahead: then nothing else that comes ahead takes its slot until its layer's turn has come. An expert that is evicted
// is forgotten: the tier below has it, or reads it again. One thread owns them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/ids.h"
#include "expert/eviction.h"
#include "expert/fast_tier.h"
#include "expert/histories.h"
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
  // Pins an expert that is there.
  int pin(ExpertKey key);
  // The same, and counts it as used now.
  int use(ExpertKey key);
  // A slot for an absent expert, which holds and pins it from now on: a free one, or the one of least worth. Nothing
  // where all are pinned.
  std::optional<int> claim(ExpertKey key);
  // The same for one that comes ahead, unpinned.
  std::optional<int> claim_ahead(ExpertKey key, Admission admission);
  // What would become of it: kStarted where a slot is to be had.
  Prefetched admits(ExpertKey key, Admission admission) const;
  bool came_ahead(ExpertKey key) const;  // by claim_ahead(), and not used since
  // The device is done with everything.
  void unpin_all();
  // Is told of each expert that goes.
  void set_evicted(std::function<void(ExpertKey)> evicted) { evicted_ = std::move(evicted); }

  // A layer's turn: it is computed now, what came ahead for it is like any other.
  void begin_turn(LayerId layer);
  void set_forecast(const Forecast* forecast) { forecast_ = forecast; }
  void set_window(double tokens) { histories_.set_window(tokens); }
  void set_shares(std::vector<double> shares) { shares_ = std::move(shares); }
  double use_rate(ExpertKey key) const { return histories_.use_rate(key); }
  // See ExpertHistories::record(). Nothing is learned of passes: what that is worth on a device nobody has measured.
  void record_uses(LayerId layer, std::span<const int32_t> used, int64_t count) {
    histories_.record(layer, used, count);
  }
  void advance(int64_t tokens) { histories_.advance(tokens); }
  int64_t evictions() const { return evictions_; }

  // Aborts if the bookkeeping contradicts itself. For tests.
  void check_invariants() const;

 private:
  struct Slot {
    bool held = false;
    bool pinned = false;
    bool ahead = false;   // came ahead, and its layer's turn has not come
    bool unused = false;  // came ahead, and was not used
    ExpertKey key;
  };
  struct Choice {
    int slot = -1;
    bool not_worth = false;  // there was one, and it is worth more
  };
  Choice choose(ExpertKey key, bool ahead, Admission admission) const;
  int take(int slot, ExpertKey key, bool ahead);
  EvictionContext context(LayerId incoming) const;

  const ExpertLayout& layout_;
  std::unique_ptr<EvictionPolicy> policy_;
  std::vector<int> kind_of_;
  std::vector<std::vector<Slot>> slots_;   // by kind
  std::vector<std::vector<int>> slot_of_;  // [layer][expert], -1 where absent
  ExpertHistories histories_;
  std::vector<int> held_by_layer_;
  std::vector<double> shares_;
  const Forecast* forecast_ = nullptr;
  LayerId layer_{};
  int64_t evictions_ = 0;
  std::function<void(ExpertKey)> evicted_;
};

}  // namespace drafthorse
