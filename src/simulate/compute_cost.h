// What computing costs in a replay, in the number of tokens and of experts: lines, or tables of what was measured.
// Seconds.
#pragma once

#include <vector>

#include "schedule/routing_trace.h"

namespace drafthorse {

struct ComputeCost {
  double draft_token_s = 0;  // a pass of the draft over one token
  // Of a layer with experts, and of what is computed between it and the one before: base + token * tokens.
  double stage_s = 0;
  double stage_token_s = 0;
  // Of experts: expert * experts + row * (token, expert) pairs.
  double expert_s = 0;
  double expert_row_s = 0;
  // After the last layer: logits, choosing tokens.
  double head_s = 0;
  double head_token_s = 0;

  // In place of the lines where they are not empty: seconds for 1, 2, .. tokens, or rows of an expert; beyond the last
  // the last step goes on.
  std::vector<double> stage_table;
  std::vector<double> expert_table;
  std::vector<double> head_table;

  double slowdown_while_reading = 1;  // of all of it, while anything is being read

  double stage(int tokens) const;
  double experts(int experts, int rows) const;
  double head(int tokens) const;
};

// What the recording machine took, by least squares over all cycles. In all, the sums of each part are the recorded
// ones. Where windows hardly differed in size, half of a stage is taken to grow with it.
ComputeCost measured_cost(const RoutingTrace& trace);

}  // namespace drafthorse
