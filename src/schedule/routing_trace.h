// What a run's routing was, recorded cycle by cycle: enough to replay it under another policy, budget, link or depth.
//
// A run is prompts and cycles in the order in which they happened. Which experts a token uses and what the routers
// predicted depend on the text alone, so they hold for any machine; times and counts are those of the machine that
// recorded, and are what a replay is compared with.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "predict/predictor.h"

namespace drafthorse {

struct TracedLayer {
  int experts = 0;                     // 0: a dense layer
  std::vector<uint64_t> extent_bytes;  // of one expert: its matrices as they are read, whole blocks
  uint64_t expert_bytes() const {
    uint64_t bytes = 0;
    for (const uint64_t extent : extent_bytes) bytes += extent;
    return bytes;
  }
};

// The model and how it was run.
struct TracedModel {
  std::string target;  // file names
  std::string draft;   // empty: none
  std::vector<TracedLayer> layers;
  int n_expert_used = 0;
  int draft_layers = 0;
  int max_window = 1;  // tokens that a verification may have; longer prompts take another way
  int slots = 0;
  uint64_t other_bytes = 0;        // of memory, beside the slots
  uint64_t dense_bytes = 0;        // of the target: weights read for every token
  uint64_t draft_token_bytes = 0;  // of the draft: weights read for a token
  std::string policy;
  std::string predictor;
  std::string prefetch;
  std::string eviction;
  bool batched_reads = true;
  std::optional<int> depth;     // nothing: chosen while running
  double load_bytes_per_s = 0;  // what loading showed

  RoutingShapes shapes() const;
  int total_experts() const;
  uint64_t slot_bytes() const;  // the largest expert
};

// A part of a prompt, read in one go.
struct TracedPrompt {
  int tokens = 0;
  std::vector<std::vector<int32_t>> uses;  // [layer][expert]: of its tokens, how many used the expert
};

// What the prompt told the depth policy.
struct TracedAgreement {
  int agreed = 0;
  int positions = 0;
  std::vector<double> distinct_by_window;
};

// A router's opinion of one token.
struct TracedScore {
  ScoreSource source{};
  int32_t token = 0;             // of the window
  LayerId layer{};               // of the target, that is spoken of
  LayerId at{};                  // the layer after which it was known: of the draft, or of the target for kNextGate
  std::vector<ExpertId> ranked;  // by falling score: as many as predictors look at
};

struct TracedLayerTimes {
  double stage_s = 0;    // from the layer with experts before it to the demand
  double experts_s = 0;  // computing experts
  double stall_s = 0;    // waiting for them
};

struct TracedCycle {
  int depth = 0;      // that the draft model was asked for; 0 where another drafter drafted, or none
  int tokens = 0;     // of the window
  int committed = 0;  // of the window's tokens: became part of the text
  double draft_s = 0;
  double head_s = 0;            // after the last layer's experts
  double link_bytes_per_s = 0;  // as seen so far while waiting; 0: not yet
  // What the cache counted, while drafting too.
  int64_t hits = 0;
  int64_t in_flight_hits = 0;
  int64_t misses = 0;
  uint64_t bytes_read = 0;
  std::vector<std::vector<ExpertId>> used;  // [layer][tokens * n_expert_used], empty for a dense layer
  std::vector<TracedLayerTimes> times;      // by layer
  std::vector<TracedScore> scores;          // in the order in which they came

  double seconds() const;
};

// Prompts and cycles of one text: a prompt, the cycles after it.
struct TracedText {
  std::vector<TracedPrompt> prompt;  // its parts; none where all of it was known already
  std::optional<TracedAgreement> agreement;
  std::vector<TracedCycle> cycles;
};

struct RoutingTrace {
  TracedModel model;
  std::vector<TracedText> texts;
};

// Who keeps what is recorded.
class RoutingSink {
 public:
  virtual ~RoutingSink() = default;
  // What follows does not go on from the cycle before. May come twice, or before anything else.
  virtual void begin_text() = 0;
  virtual void prompt(const TracedPrompt& prompt) = 0;
  virtual void agreement(const TracedAgreement& agreement) = 0;
  virtual void cycle(const TracedCycle& cycle) = 0;
};

}  // namespace drafthorse
