// What computing costs in a replay, as lines in the number of tokens and of experts. Seconds.
#pragma once

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

  double stage(int tokens) const { return stage_s + stage_token_s * tokens; }
  double experts(int experts, int rows) const { return expert_s * experts + expert_row_s * rows; }
  double head(int tokens) const { return head_s + head_token_s * tokens; }
};

// What the recording machine took, by least squares over all cycles. In all, the sums of each part are the recorded
// ones. Where windows hardly differed in size, half of a stage is taken to grow with it.
ComputeCost measured_cost(const RoutingTrace& trace);

}  // namespace drafthorse
