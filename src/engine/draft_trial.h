// Whether a loaded draft model earns the memory it takes from experts, on the text at hand.
//
// Along with the text goes the bookkeeping of two caches (expert/shadow_cache.h) that are asked for one token's experts
// at a time: one as large as the cache is, one as large as it would be without the draft. Of the waiting that was
// measured the second leaves the share that it misses of what the first does; what the best depth and the other
// drafters make of that is held against the best there is now (plan/draft_worth.h). Of models with many layers some are
// followed, with their part of the slots: a share needs no more. One thread owns it.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "expert/shadow_cache.h"
#include "forward/forward_pass.h"
#include "plan/draft_worth.h"
#include "plan/drafter_policy.h"

namespace drafthorse {

class DraftTrial {
 public:
  // The text goes on from what the cache holds now. more_slots: that the target would have without the draft, in all.
  // worth: what was seen of the draft before.
  DraftTrial(const ExpertCache& cache, std::string_view eviction, int more_slots, const DraftWorth& worth = {});

  // The draft, the policy's first drafter, should draft now: it has done so too seldom to be judged.
  bool wants_look(const DrafterPolicy& policy) const;

  // The first `count` tokens of the pass's last window became part of the text; the policy knows of the cycle.
  // rooms: what its drafters could draft; choice: what was done.
  void note_step(const ForwardPass& pass, int32_t count, const DrafterPolicy& policy, std::span<const int> rooms,
                 const DraftChoice& choice);

  bool should_go() const { return worth_.should_go(); }
  double gain() const { return worth_.gain(); }  // of going without the draft, in speed
  double saved_s() const { return saved_s_; }    // by that, per token, as of now
  const DraftWorth& worth() const { return worth_; }
  // Of the experts that are missing now, the share that would be without the draft. 0 to 1.
  double missing_share() const;

 private:
  int misses(ShadowCache& shadow, const ForwardPass& pass, int32_t token) const;

  std::vector<LayerId> followed_;
  ShadowCache now_;
  ShadowCache without_;
  DraftWorth worth_;
  double missing_now_ = 0;  // per token, lately, in the layers followed
  double missing_without_ = 0;
  double saved_s_ = 0;
  int64_t tokens_ = 0;
  int drafted_cycles_ = 0;
};

}  // namespace drafthorse
