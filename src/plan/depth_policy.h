// How many tokens to draft: the depth k that makes the most tokens per second, 0 included. Pure: data in, depth out.
//
// One cycle drafts k tokens and verifies k + 1. The policy maximises
//     E[accepted(k) + 1] / T(k),     T(k) = k * draft + compute(k + 1) + stall * missing(k + 1)
// from what earlier cycles showed: acceptance by position (given that the position was reached), draft time per
// token, compute time as a line in the window's size, and, since a window's routing tells what each of its prefixes
// would have needed, missing experts for every shorter window at once. A depth that was really run recently is
// judged mostly by its measured time.
//
// When k = 0 is best it looks again after a pause that doubles each time speculation still loses.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace drafthorse {

struct CycleObservation {
  int depth = 0;         // tokens drafted
  int accepted = 0;      // of them
  double draft_s = 0;    // all of drafting, catching up included
  double verify_s = 0;   // all of verification
  double stall_s = 0;    // of verify_s, waiting for experts
  std::span<const int64_t> missing_by_prefix;  // [depth + 1]; empty for a dense model
};

class DepthPolicy {
 public:
  explicit DepthPolicy(int max_depth);

  // The depth for the next cycle, at most `room`.
  int next_depth(int room);
  void observe(const CycleObservation& cycle);

  // Predictions at the present state, for explanations and tests.
  double expected_tokens(int depth) const;   // accepted + 1
  double expected_seconds(int depth) const;  // T(depth)
  int best_depth() const;
  // One line: the chosen depth, its tokens per cycle and speed against depth 0.
  std::string explain() const;

 private:
  struct Average {
    double value = 0;
    double weight = 0;
    void add(double sample, double keep);
  };
  // compute(n) = base + slope * n, by least squares over decaying sums.
  struct Line {
    double weight = 0, n = 0, nn = 0, y = 0, ny = 0;
    void add(double window, double seconds, double keep);
    double at(double window) const;
  };
  double missing(int window) const;

  int max_depth_;
  std::vector<Average> acceptance_;   // by position
  std::vector<Average> measured_;     // seconds of whole cycles, by depth
  std::vector<Average> missing_;      // by window size - 1
  Average draft_per_token_;
  Average stall_per_missing_;
  Line compute_;
  int64_t cycles_ = 0;
  int current_ = 0;
  int pause_ = 0;         // cycles at depth 0 before the next look
  int next_pause_ = 0;
};

}  // namespace drafthorse
