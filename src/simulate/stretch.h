// A recorded run made to look like another model: as many layers, experts and experts per token as that has.
//
//   layers:   each stands in for several of the other model, in its own order (0 0 0 1 1 1 ..); a copy of a layer
//             routes as the original does and has experts of its own.
//   fewer experts: expert e becomes e modulo their number; where two of a token's experts become one, the second is the
//             next free one.
//   more experts: several recorded layers make one, each a bank of its experts beside the others; the experts a token
//             uses are taken from the banks in equal parts, as far as they can be.
// Acceptance, how long a text keeps to its experts and how well they are predicted stay those of the recorded model.
// Times become meaningless and are set to 0.
#pragma once

#include <string>

#include "base/status.h"
#include "schedule/routing_trace.h"

namespace drafthorse {

struct ModelShape {
  std::string name;
  int layers = 0;  // with experts
  int experts = 0;
  int n_expert_used = 0;
  uint64_t expert_bytes = 0;
  uint64_t dense_bytes = 0;  // of the target, without its routed experts
  int draft_layers = 0;
  uint64_t draft_bytes = 0;        // all of it
  uint64_t draft_token_bytes = 0;  // of it, read for a token
};

// kUsage where the trace cannot be stretched so far.
Result<RoutingTrace> stretch(const RoutingTrace& trace, const ModelShape& shape);

}  // namespace drafthorse
