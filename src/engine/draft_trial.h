// Whether a loaded draft model earns the memory it takes from experts, on the text at hand.
//
// Along with the text goes the bookkeeping of two caches (expert/shadow_cache.h) that are asked for one token's experts
// at a time: one as large as the cache is, one as large as it would be without the draft. Of the waiting that was
// measured the second leaves the share that it misses of what the first does; what the best depth and the other
// drafters make of that is held against the best there is now (plan/draft_worth.h). One thread owns it.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "expert/shadow_cache.h"
#include "forward/forward_pass.h"
#include "plan/draft_worth.h"
#include "plan/drafter_policy.h"

namespace drafthorse {

class DraftTrial {
 public:
  // The text goes on from what the cache holds now. more_slots: that the target would have without the draft, in all.
  DraftTrial(const ExpertCache& cache, std::string_view eviction, int more_slots);

  // The first `count` tokens of the pass's last window became part of the text; the policy, whose first drafter is the
  // draft model, knows of the cycle. rooms: what its drafters could draft.
  void note_step(const ForwardPass& pass, int32_t count, const DrafterPolicy& policy, std::span<const int> rooms);

  bool should_go() const { return worth_.should_go(); }
  double gain() const { return worth_.gain(); }  // of going without the draft, in speed
  // Of the experts that are missing now, the share that would be without the draft. 0 to 1.
  double missing_share() const;

 private:
  static double misses(ShadowCache& shadow, const ForwardPass& pass, int32_t token);

  ShadowCache now_;
  ShadowCache without_;
  DraftWorth worth_;
  double missing_now_ = 0;  // per token, lately
  double missing_without_ = 0;
  int64_t tokens_ = 0;
};

}  // namespace drafthorse
