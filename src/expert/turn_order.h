// In which order a batch's pass computes a layer's experts one by one while some of them are read.
//
// What has arrived goes first: its slot is wanted for the next one. What was there from the beginning fills the time
// until then, so that something is left to compute while the last ones are read.
#pragma once

#include <span>
#include <vector>

#include "expert/cache.h"

namespace drafthorse {

class TurnOrder {
 public:
  // Nothing to compute until begin().
  void begin(const ExpertCache& cache, LayerId layer, std::span<const ExpertId> experts);
  // The order of ids instead, whatever is there: where outputs cannot be kept.
  void begin_by_id(std::span<const ExpertId> experts);

  bool done() const { return there_.empty() && awaited_.empty(); }
  // The one to demand now. Not done().
  ExpertId take(const ExpertCache& cache, LayerId layer);
  // Those that are to be read ahead, in this order.
  std::span<const ExpertId> awaited() const { return awaited_; }

 private:
  std::vector<ExpertId> there_;    // in memory from the beginning
  std::vector<ExpertId> awaited_;  // the others, those on their way first
};

}  // namespace drafthorse
