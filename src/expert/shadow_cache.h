// What an expert cache of another size would have missed on the same text: its bookkeeping without its memory.
//
// Follows a text token by token, as a cache would that is asked for one token's experts at a time and reads nothing
// ahead: the same histories, the same eviction policy, no reads. One thread owns it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/ids.h"
#include "expert/eviction.h"
#include "expert/histories.h"

namespace drafthorse {

class ShadowCache {
 public:
  // slots: at least as many as a layer's demand has experts, or it counts too many misses.
  ShadowCache(std::span<const int> experts_by_layer, int slots, std::unique_ptr<EvictionPolicy> policy);

  // The expert is there from the beginning; false where no slot is free. Not counted.
  bool seed(ExpertKey key);
  bool holds(ExpertKey key) const { return slot_of_[index(key.layer)][index(key.expert)] != kNoSlot; }

  // Of the text's next token; layers in their order. `experts` are distinct. Returns how many were not there; they are
  // now.
  int demand(LayerId layer, std::span<const ExpertId> experts);
  // The token is done.
  void end_token();

  // The share of recent tokens that used the expert, as of now: what came before the text that is followed.
  void set_use_rate(ExpertKey key, double rate) { histories_.set_use_rate(key, rate); }

 private:
  static constexpr int32_t kNoSlot = -1;
  int32_t victim(LayerId layer, std::span<const ExpertId> kept) const;
  void put(int32_t slot, ExpertKey key);

  std::unique_ptr<EvictionPolicy> policy_;
  std::vector<ExpertKey> slots_;  // those in use
  size_t capacity_;
  double with_experts_ = 0;                    // layers
  std::vector<std::vector<int32_t>> slot_of_;  // [layer][expert]
  ExpertHistories histories_;
  std::vector<int> held_by_layer_;
  std::vector<double> shares_;
  std::vector<std::vector<int32_t>> used_;  // [layer][expert] of the token under way
};

}  // namespace drafthorse
