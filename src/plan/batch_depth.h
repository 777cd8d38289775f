// How many tokens to draft per sequence in the next iteration of a batch. Pure: what iterations took in, depth out.
//
// SpecMoEOff (2508.21706) chooses k anew as sequences grow. Here it is chosen at every iteration, to make
//     sum over sequences of E[accepted(k) + 1]  /  T(k)
// greatest, k = 0 included, where
//     T(k)       = draft(k) + max(compute(k), load(k)) + min(compute(k), load(k)) / layers + other
//     compute(k) = c_weights W + c_tokens V + c_attention A
//     load(k)    = bytes(k) / rate
// W, V and A are what a ModelCost says of such a pass: seconds that do not depend on tokens (reading weights), that do,
// and attention's. The factors c, the draft's and the loads' rate begin at 1 times the model's and are learnt from
// every iteration (least squares over decaying sums, held to their common mean while little is known), so that the
// policy works from the first iteration on and with costs that were only assumed. Acceptance is a table by position,
// given that the position is reached, over all sequences.
//
// Where drafting does not seem to pay but would if everything were accepted, it is tried at depth 1 after ever longer
// pauses.
//
// Cost: choose() some microseconds per depth and a pass over `rooms`. No clock, no randomness.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "plan/pipeline.h"
#include "plan/throughput_model.h"

namespace drafthorse {

struct BatchDepthOptions {
  ModelCost target;
  std::optional<ModelCost> draft;  // of one pass of the drafter; nullopt: it costs next to nothing (n-grams)
  double load_bytes_per_s = 1e9;   // of experts; a guess will do
  int max_depth = 0;               // 0: nothing drafts
  double acceptance = 0.7;         // of every position, before anything was seen
  double compute_slowdown_while_loading = 1;
};

// What the next iteration has before it.
struct BatchState {
  int sequences = 0;             // that generate
  int64_t cached_positions = 0;  // of these, all together
  // How many tokens may be drafted for each of them at most: a window has one more. Empty: plenty.
  std::span<const int32_t> rooms;
  int64_t prompt_tokens = 0;      // that ride along
  int64_t prompt_token_keys = 0;  // sum over these of the positions that each sees
  double resident_experts = 0;    // of each layer on average, in memory when the iteration begins
  int max_depth = 64;             // by memory for logits, KV rows or the user
};

struct BatchDepthChoice {
  int depth = 0;
  // Expected of the iteration at that depth:
  double tokens = 0;  // accepted and made, all sequences
  double seconds = 0;
  double draft_s = 0;
  double compute_s = 0;
  double load_s = 0;
  double loaded_bytes = 0;
  Component limit = Component::kOther;  // load, dense, attention, experts or draft, whichever holds it up most
  bool trial = false;                   // not believed best: to learn
};

// What an iteration was; field names as in engine's BatchIteration.
struct BatchObservation {
  int32_t depth = 0;
  int32_t sequences = 0;
  int64_t window_tokens = 0;     // verified: drafted + sequences
  int64_t drafted_tokens = 0;    // 0 where there was no draft
  int64_t cached_positions = 0;  // before it
  double resident_experts = 0;   // likewise, of each layer
  int64_t prompt_tokens = 0;
  int64_t prompt_token_keys = 0;
  // What the drafter had to read before it could draft, beside the last token of each sequence: prompts, and what was
  // generated while it did not draft.
  int64_t caught_up_tokens = 0;
  double draft_s = 0;
  double pass_s = 0;
  double stall_s = 0;  // of pass_s
  double other_s = 0;  // beside pass and draft: choices, if not in pass_s
  uint64_t bytes_read = 0;
  // By position: sequences that had a drafted token there whose predecessors were all accepted, and of those the
  // accepted. Both as long as the deepest draft, or empty.
  std::span<const int64_t> reached;
  std::span<const int64_t> accepted;
};

class BatchDepthPolicy {
 public:
  explicit BatchDepthPolicy(BatchDepthOptions options);

  BatchDepthChoice choose(const BatchState& state) const;
  void observe(const BatchObservation& iteration);

  // Predictions at the present state, for explanations, sweeps and tests.
  BatchDepthChoice expect(const BatchState& state, int depth) const;
  double acceptance(int position) const;    // from 0; given that it is reached
  double expected_tokens(int depth) const;  // accepted + 1, of one sequence with room
  std::string explain(const BatchState& state) const;

 private:
  struct Decayed {
    double value = 0;
    double weight = 0;
    void add(double sample, double sample_weight, double keep);
  };
  // The factors c, over features of the model's seconds.
  struct Factors {
    static constexpr size_t kParts = 3;
    double xx[kParts][kParts] = {};
    double xy[kParts] = {};
    double x_sum = 0, y_sum = 0, weight = 0;
    void add(const double (&x)[kParts], double y, double keep);
    void solve(double (&c)[kParts]) const;
  };
  // How many sequences draft at least so many tokens, by tokens - 1.
  using Drafting = std::vector<double>;
  void parts(const PassWork& work, double (&x)[Factors::kParts]) const;
  double draft_seconds(const Drafting& drafting, double mean_keys, double caught_up) const;  // as the model says
  double loaded_bytes(double tokens, double resident) const;                                 // likewise
  BatchDepthChoice expect(const BatchState& state, const Drafting& drafting, int depth) const;
  Drafting drafting(const BatchState& state, int depth) const;
  int reach(const BatchState& state) const;

  BatchDepthOptions options_;
  std::vector<Decayed> acceptance_;
  Factors compute_;
  Decayed draft_;  // measured over modelled
  Decayed rate_;   // bytes per second
  Decayed bytes_;  // measured over modelled
  Decayed other_;
  int deepest_ = 0;  // tried so far
  int64_t iterations_ = 0;
  int64_t next_trial_ = 1;
  int64_t pause_ = 1;
};

}  // namespace drafthorse
