// How many tokens to draft per sequence in the next iteration of a batch. Pure: what iterations took in, depth out.
//
// SpecMoEOff (2508.21706) chooses k anew as sequences grow. Here it is chosen at every iteration: the k, 0 included,
// that spends the least time on all tokens still to be made,
//     greatest  N(k) s - T(k),     N(k) = sum over sequences of E[accepted(k) + 1],     s = least T'(k) / N(k)
// where T is the iteration's time and T' the same without prompts: a token made now need not be made later, which takes
// s. Without prompts that is the greatest N(k) / T(k); a long prompt's time is no reason to draft deeper.
//     T(k)       = draft(k) + max(compute(k), load(k)) + min(compute(k), load(k)) / layers + head(k) + other
//     compute(k) = stages(k) + experts(k)
//     stages(k)  = c1 dense weights + c2 dense tokens + c3 attention
//     experts(k) = c4 expert weights + c5 expert rows
//     load(k)    = bytes(k) / rate
// The parts are what a ModelCost says of such a pass, in seconds: what does not depend on tokens (reading weights),
// what does, and attention. The factors c, the draft's, the head's and the loads' rate begin at 1 times the model's and
// are learnt from every iteration (least squares over decaying sums, held to their common mean while little is known),
// so that the policy works from the first iteration on and with costs that were only assumed. Acceptance is a table by
// position, given that the position is reached, over all sequences.
//
// A drafter that must first read a text (its prompt, and what was made while it did not draft) does so once, for all
// that it drafts there: a sequence is drafted for only if what it has left to make, at the best depth's gain per token,
// is worth that reading. As long as next to nothing is known of the drafter, or not any more, it reads
// a few texts only.
//
// Where drafting does not seem to pay but would if everything were accepted, it is tried at depth 1 after ever longer
// pauses.
//
// Cost: choose() some tens of microseconds per depth, twice where prompts ride along or texts are skipped. No clock, no
// randomness.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "plan/pipeline.h"
#include "plan/throughput_model.h"

namespace drafthorse {

// What passes and reads take, in seconds, as far as that is known before anything has run.
struct BatchCosts {
  ModelCost target;
  std::optional<ModelCost> draft{};  // of one pass of the drafter; nullopt: it costs next to nothing (n-grams)
  double load_bytes_per_s = 2e9;     // of experts, above zero; until measured, a disk's in many machines
};

struct BatchDepthOptions {
  BatchCosts costs;         // the loads' rate is learnt where they hold up or link_busy_s is told
  int max_depth = 0;        // 0: nothing drafts
  double acceptance = 0.7;  // of every position, before anything was seen
};

// What the next iteration has before it.
struct BatchState {
  int sequences = 0;             // that generate
  int64_t cached_positions = 0;  // of these, all together
  // How many tokens may be drafted for each of them at most: a window has one more. Empty: plenty.
  std::span<const int32_t> rooms{};
  // Each one's tokens still to be made, at most, and those that the drafter must read before it can draft for it. Both
  // as long as `rooms`, or both empty: nothing is to be read.
  std::span<const int64_t> left{};
  std::span<const int64_t> behind{};
  int64_t prompt_tokens = 0;      // that ride along
  int64_t prompt_token_keys = 0;  // sum over these of the positions that each sees
  double resident_experts = 0;    // of each layer on average, in memory when the iteration begins
  int max_depth = 64;             // by memory for logits, KV rows or the user
};

struct BatchDepthChoice {
  int depth = 0;
  // Expected of the iteration at that depth, without what the drafter must read first:
  double tokens = 0;  // accepted and made, all sequences
  double seconds = 0;
  double draft_s = 0;
  double compute_s = 0;
  double load_s = 0;
  double loaded_bytes = 0;
  Component limit = Component::kOther;  // load, dense, attention, experts or draft, whichever holds it up most
  bool trial = false;                   // not believed best: to learn
  std::vector<bool> skipped{};          // as long as `rooms`: not worth drafting for; empty: nobody is skipped

  bool drafts_for(size_t place) const { return skipped.empty() || !skipped[place]; }
};

// What an iteration was; field names as in engine's BatchIteration.
struct BatchObservation {
  int32_t depth = 0;
  int32_t sequences = 0;
  int64_t window_tokens = 0;   // verified: drafted + sequences
  int64_t drafted_tokens = 0;  // 0 where there was no draft
  // What was asked for, where a drafter may have nothing to say (n-grams); 0: it always has.
  int64_t asked_tokens = 0;
  int64_t cached_positions = 0;  // before it
  double resident_experts = 0;   // likewise, of each layer
  int64_t prompt_tokens = 0;
  int64_t prompt_token_keys = 0;
  // What the drafter had to read before it could draft, beside the last token of each sequence: prompts, and what was
  // generated while it did not draft.
  int64_t caught_up_tokens = 0;
  double draft_s = 0;
  double pass_s = 0;
  double stages_s = 0;     // of pass_s: stages up to the routers, attention included
  double experts_s = 0;    // of pass_s: computing experts. Both 0 where they are not told apart
  double stall_s = 0;      // of pass_s: waiting for experts
  double head_s = 0;       // beside the pass: logits and choices
  double other_s = 0;      // beside all these
  double link_busy_s = 0;  // some read was under way; 0: not known
  uint64_t bytes_read = 0;
  // By position: sequences that had a drafted token there whose predecessors were all accepted, and of those the
  // accepted. Both as long as the deepest draft, or empty.
  std::span<const int64_t> reached{};
  std::span<const int64_t> accepted{};
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
  // The factors c of a sum of parts.
  struct Factors {
    static constexpr size_t kParts = 3;
    double xx[kParts][kParts] = {};
    double xy[kParts] = {};
    double x_sum = 0, weight = 0;
    void add(const double (&x)[kParts], double y, double keep);
    void solve(double (&c)[kParts]) const;
  };
  // How many sequences draft at least so many tokens, by tokens - 1.
  using Drafting = std::vector<double>;
  // The model's seconds: two sums of parts, and the head.
  struct Parts {
    double stages[Factors::kParts] = {};
    double experts[Factors::kParts] = {};
    double head = 0;
  };
  Parts parts(const PassWork& work) const;
  struct Compute {
    double stages = 0;
    double experts = 0;
    double attention = 0;  // of stages
  };
  Compute compute(const Parts& parts) const;
  double draft_seconds(const Drafting& drafting, double mean_keys, double caught_up) const;  // as the model says
  double loaded_bytes(double tokens, double resident) const;                                 // likewise
  BatchDepthChoice expect(const BatchState& state, const Drafting& drafting, int depth) const;
  // Of those sequences that are not skipped.
  Drafting drafting(const BatchState& state, int depth, const std::vector<bool>& skipped = {}) const;
  // Who is not worth the reading, if drafting gains so many seconds per token; at most `most_s` of it.
  std::vector<bool> skipped(const BatchState& state, double gain_s, double most_s) const;
  bool unknown() const;  // how good the drafter is, and what it takes

  BatchDepthOptions options_;
  std::vector<Decayed> acceptance_;
  Factors stages_;
  Factors experts_;
  Decayed speaks_;  // drafted over asked for
  Decayed draft_;   // measured over modelled
  Decayed rate_;    // bytes per second
  Decayed bytes_;   // measured over modelled
  Decayed head_;    // measured over modelled
  Decayed other_;
  int64_t iterations_ = 0;
  int64_t next_trial_ = 1;
  int64_t pause_ = 1;
};

}  // namespace drafthorse
