// Replays a recorded run: the engine's own cache, reader, scheduler and policies, in virtual time, over a link that
// moves no data and computing that only takes time. The same trace and options give the same result, to the bit.
//
// What a pass over a window asks of the cache, and in which order, stands in src/forward/forward_pass.cc
// (experts_by_arrival, experts_in_order); what a session does around it in src/engine/session.cc. Kept in step with
// both by tests that compare replays with real runs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/status.h"
#include "expert/cache.h"
#include "schedule/policy.h"
#include "schedule/routing_trace.h"
#include "simulate/belady.h"
#include "simulate/compute_cost.h"
#include "simulate/link_queue.h"
#include "simulate/recorded_windows.h"

namespace drafthorse {

enum class ReplayDepth { kRecorded, kFixed, kAuto };

struct ReplayOptions {
  std::string predictor;
  std::string prefetch;
  std::string eviction;
  bool adaptive_shares = false;
  int slots = 0;
  LinkOptions link;
  ComputeCost cost;
  ReplayDepth depth = ReplayDepth::kRecorded;
  int fixed_depth = 0;
  bool batched_reads = true;

  void take(const SchedulePolicy& policy);
};

struct ReplayResult {
  int64_t tokens = 0;
  int64_t cycles = 0;
  int64_t drafted = 0;
  int64_t accepted = 0;
  double seconds = 0;  // of all cycles
  double draft_s = 0;  // of it
  double stall_s = 0;
  double prompt_s = 0;       // of all texts, the target alone
  double first_cycle_s = 0;  // of each text's first cycle, together
  LayerCacheStats cache;     // of all layers
  WindowGuesses guesses;
  BeladyBound bound;  // for the same windows
  uint64_t bound_bytes = 0;
  bool without_scores = false;  // the predictor wants scores, and the trace has none of them

  uint64_t bytes() const { return cache.bytes_demanded + cache.bytes_prefetched; }
  double per_token(double value) const { return tokens > 0 ? value / static_cast<double>(tokens) : 0; }
  double hit_rate() const;  // in-flight hits included
  void add(const ReplayResult& other);
};

// kUsage where the policy's parts have no such names; kMemory where the slots' address space cannot be had.
Result<ReplayResult> replay(const RoutingTrace& trace, const ReplayOptions& options);

// The parts that the run was recorded with.
ReplayOptions recorded_options(const RoutingTrace& trace);

// Bytes per second of a link over which a replay of the recorded policy waits as long as the recorded run did: what the
// recording machine's storage delivers, beside its computing. 0 where that run never waited, or its parts are unknown.
double measured_link(const RoutingTrace& trace, int64_t latency_ns);

// What the recording itself counted, in the same terms; without a bound.
ReplayResult recorded_result(const RoutingTrace& trace);

}  // namespace drafthorse
