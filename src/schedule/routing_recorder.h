// Hears what the scheduler hears, and hands a sink each cycle when it is over. Changes nothing.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/clock.h"
#include "expert/cache.h"
#include "schedule/routing_trace.h"

namespace drafthorse {

class RoutingRecorder {
 public:
  // All must outlive the recorder.
  RoutingRecorder(const ExpertCache& cache, const RoutingShapes& shapes, RoutingSink& sink, const Clock& clock);

  // uses[layer][expert] of `tokens` tokens of a prompt.
  void prompt(std::span<const std::vector<int32_t>> uses, int tokens);
  void agreement(const TracedAgreement& agreement) { sink_.agreement(agreement); }

  // A cycle, as ExpertScheduler has it; one that ends with 0 committed tokens is forgotten, and
  // end_cycle(0) outside of a cycle ends a text.
  void begin_cycle(int depth);
  void scored(const TokenScores& scores, LayerId at);
  void begin_verify(int tokens);
  void routed(LayerId layer, std::span<const ExpertId> used);
  void worked();
  void end_cycle(int committed);

 private:
  LayerCacheStats cache_total() const;

  const ExpertCache& cache_;
  RoutingShapes shapes_;
  RoutingSink& sink_;
  const Clock& clock_;
  TracedCycle cycle_;
  bool in_cycle_ = false;
  LayerCacheStats before_;      // of all layers, when the cycle before ended: what is read in between counts
  int64_t last_ns_ = 0;         // up to here all time is accounted for
  int64_t layer_stall_ns_ = 0;  // of the present layer, when it was routed
  int64_t routed_ns_ = 0;
  LayerId layer_{};
};

}  // namespace drafthorse
