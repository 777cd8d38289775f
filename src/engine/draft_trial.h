// Whether a loaded draft model earns the memory it takes from experts, on the text at hand.
//
// Along with the text goes the bookkeeping of the cache there would be without the draft (expert/shadow_cache.h): what
// that misses per token, at the price of a miss as measured, is held against what the best depth makes of the time
// (plan/draft_worth.h). One thread owns it.
#pragma once

#include <cstdint>

#include "expert/shadow_cache.h"
#include "forward/forward_pass.h"
#include "plan/draft_worth.h"
#include "plan/drafter_policy.h"

namespace drafthorse {

class DraftTrial {
 public:
  // The text goes on from what the cache holds now. more_slots: that the target would have without the draft, in all.
  DraftTrial(const ExpertCache& cache, std::string_view eviction, int more_slots);

  // The first `count` tokens of the pass's last window became part of the text; the policy knows of the cycle.
  void note_step(const ForwardPass& pass, int32_t count, const DrafterPolicy& policy);

  bool should_go() const { return worth_.should_go(); }
  double gain() const { return worth_.gain(); }  // of going without the draft, in speed
  double missing() const { return missing_; }    // experts per token, without it

 private:
  ShadowCache shadow_;
  DraftWorth worth_;
  double missing_ = 0;
  int64_t tokens_ = 0;
};

}  // namespace drafthorse
