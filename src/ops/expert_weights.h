// The three matrices of one expert, wherever they lie in memory.
#pragma once

#include "ops/linear.h"

namespace drafthorse::ops {

struct ExpertWeights {
  WeightMatrix gate;  // [n_embd, n_ff]
  WeightMatrix up;    // [n_embd, n_ff]
  WeightMatrix down;  // [n_ff, n_embd]
};

}  // namespace drafthorse::ops
