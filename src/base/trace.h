// What happened when, for whoever wants to know: a seam. The engine tells a Trace; where there is none (nullptr) the
// telling costs a comparison. All calls come from the engine's thread, times from the engine's clock.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/ids.h"

namespace drafthorse {

// kStages: of a layer, what comes before its experts. kHead: of a batch, logits and choices.
enum class Span { kPrompt, kDraft, kVerify, kLayer, kStages, kStall, kHead };

// Why an expert is read.
enum class FetchReason { kDemand, kPrefetch, kFill };

class Trace {
 public:
  virtual ~Trace() = default;

  // number: tokens of a prompt, a draft, a verification or a head; else the layer.
  virtual void span(Span what, int64_t number, int64_t start_ns, int64_t end_ns) = 0;

  // A read begins, and ends: every fetched() is followed by one arrived() unless the engine ends before.
  virtual void fetched(ExpertKey key, FetchReason why, uint64_t bytes, int64_t now_ns) = 0;
  virtual void arrived(ExpertKey key, bool usable, int64_t now_ns) = 0;
  // A resident expert made room. worth: by the eviction policy, the least of all that could have gone.
  virtual void evicted(ExpertKey key, double worth, FetchReason for_what, int64_t now_ns) = 0;
  // A hint was not followed.
  virtual void dropped(ExpertKey key, std::string_view why, int64_t now_ns) = 0;
  // An expert that the device lacks is copied to it, or computed on the host. copy_s, host_s: what either would take,
  // by what was measured; 0 where it was not asked.
  virtual void placed(ExpertKey, bool /*on_host*/, double /*copy_s*/, double /*host_s*/, int64_t /*now_ns*/) {}
  // An expert's copy to the device, needed now or ahead of time. Nobody sees a copy end: times are reckoned from the
  // link's rate, one copy after the other.
  virtual void copied(ExpertKey, bool /*ahead*/, uint64_t /*bytes*/, int64_t /*start_ns*/, int64_t /*end_ns*/) {}
  // How many tokens are drafted next, and why.
  virtual void depth(int32_t depth, std::string_view why, int64_t now_ns) = 0;
};

}  // namespace drafthorse
