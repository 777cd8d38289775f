// How many tokens to draft with one drafter: the depth k that makes the most tokens per second, 0 included. Pure: data
// in, depth out. Which drafter, and when to look at what does not seem best, is DrafterPolicy's (drafter_policy.h).
//
// One cycle drafts k tokens and verifies k + 1. The policy maximises
//     E[accepted(k) + 1] / T(k),     T(k) = k * draft + compute(k + 1) + stall * missing(k + 1)
// from what earlier cycles showed: acceptance by position (given that the position was reached), draft time per
// token, compute time as a line in the window's size, and, since a window's routing tells what each of its prefixes
// would have needed, the missing experts that each further token adds. Of a token that nobody drafted for more is missing
// than of a window's first one, whose experts were fetched meanwhile: the two are counted apart. What was seen of windows
// when more was missing (a cache fills up as the text goes on) is scaled by what single tokens miss now. A depth that was
// really run recently is judged mostly by its measured time, taken as a share of what the model said then.
//
// It believes little of depths far beyond the deepest that was tried, and so goes deeper step by step.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace drafthorse {

struct CycleObservation {
  int depth = 0;                               // tokens drafted
  int accepted = 0;                            // of them
  double draft_s = 0;                          // all of drafting, catching up included
  double verify_s = 0;                         // all of verification
  double stall_s = 0;                          // of verify_s, waiting for experts
  std::span<const int64_t> missing_by_prefix;  // [depth + 1]; empty for a dense model
};

// What reading the prompt showed, before the first cycle.
struct PromptObservation {
  int agreed = 0;  // of `positions` prompt positions, how often draft and target chose the same next token
  int positions = 0;
  std::vector<double> distinct_by_window;  // distinct experts of windows of 1, 2, .. tokens; may be short or empty
};

class DepthPolicy {
 public:
  // itself: the target drafts, and a drafted token takes about what computing one takes.
  explicit DepthPolicy(int max_depth, bool itself = false);

  // Call before the first cycle, if at all: with it the policy dares to go deep at once.
  void prime(PromptObservation prompt);

  // The depth that seems best, at most `room`. It changes only where another promises more by a margin.
  int settle(int room);
  // A depth to try, to see whether things have changed: deeper than what seems best, 1 where that is 0.
  int look_depth(int room) const;

  // A cycle that this drafter drafted for.
  void observe(const CycleObservation& cycle);
  // What it would have drafted, held against the text: the first `reached` tokens can be judged, the first `agreed` of
  // them were right.
  void observe_agreement(int reached, int agreed);
  // A cycle without its draft: what verification takes holds for all.
  void observe_verification(const CycleObservation& cycle);

  // Predictions at the present state, for explanations and tests.
  double expected_tokens(int depth) const;   // accepted + 1
  double expected_seconds(int depth) const;  // T(depth)
  double rate(int depth) const;              // expected tokens per second
  // Seconds per token at the best depth up to `room`, if only this share of the experts that are missing were.
  double seconds_per_token(int room, double missing_share) const;
  int best_depth(int room) const;
  int best_depth() const { return best_depth(max_depth_); }
  // In words: the best depth, its tokens per cycle and speed against depth 0.
  std::string explain() const;

  bool primed() const { return primed_; }
  int max_depth() const { return max_depth_; }

 private:
  struct Average {
    double value = 0;
    double weight = 0;
    void add(double sample, double keep, double share = 1);  // share: of a sample's weight
  };
  // compute(n) = base + slope * n, by least squares over decaying sums.
  struct Line {
    double weight = 0, n = 0, nn = 0, y = 0, ny = 0;
    double slope = -1;  // kept while all recent windows are of one size; below 0: not known yet
    void add(double window, double seconds, double keep);
    double at(double window) const;
  };
  double model_seconds(int depth) const;
  void measure(const CycleObservation& cycle);  // after the model knows of it
  double missing(int window) const;
  double added(int n) const;  // by a drafted window's token n, from 0, at the present level
  double distinct(int window) const;  // by the prompt; 0 where it does not tell

  double draft_seconds() const;  // per token

  int max_depth_;
  bool itself_;
  std::vector<Average> acceptance_;  // by position
  std::vector<Average> measured_;    // seconds of whole cycles over the model's, by depth
  Average single_;                   // missing experts of a cycle without drafting
  std::vector<Average> added_;       // those that a drafted window's n-th token adds to the ones before it
  std::vector<Average> level_;       // single_ at the same times, weighed by how fresh it was
  Average draft_per_token_;
  Average stall_per_missing_;
  Line compute_;
  bool primed_ = false;
  std::vector<double> distinct_;  // by window size - 1
  int64_t cycles_ = 0;
  int current_ = 0;  // what seems best
  int deepest_ = 0;  // tried so far
};

}  // namespace drafthorse
