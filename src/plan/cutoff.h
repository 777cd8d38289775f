// SP-MoE's cutoff layer (2510.10302, section on the cutoff policy): how many layers to prefetch while drafting. Pure.
//
// The largest L with
//     slots(N) experts fit beside what is held,                        N = k_0 + .. + k_(L-1)
//     max((L - 1) * t_comp + k_(L-1) * t_io, N * t_io)  <=  n * D * t_comp
// t_comp: seconds of a draft layer, t_io: seconds to load an expert, D: layers of the draft, n: tokens drafted (the
// paper drafts one), k_i: experts of layer i that are fetched, residents not counted.
#pragma once

#include <vector>

namespace drafthorse {

struct CutoffInput {
  std::vector<double> fetched_by_layer;  // k_i, for the target's layers that have experts, in order
  int draft_layers = 0;
  int draft_tokens = 1;
  double draft_s_per_layer = 0;
  double load_s_per_expert = 0;
  double slots_to_spare = 0;  // that may hold what is prefetched
};

struct Cutoff {
  int layers = 0;             // 0 .. layers - 1 are prefetched
  double load_s = 0;          // the left side at that L
  double drafting_s = 0;      // the right side
  bool memory_binds = false;  // one layer more would not fit, though there is time for it
};

Cutoff choose_cutoff(const CutoffInput& input);

}  // namespace drafthorse
