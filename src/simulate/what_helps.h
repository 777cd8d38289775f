// What would make a model faster here, tried out in the prediction. Pure.
#pragma once

#include <string>
#include <vector>

#include "simulate/prediction.h"

namespace drafthorse {

struct Memory {
  uint64_t budget_bytes = 0;
  uint64_t fixed_bytes = 0;  // booked for all but the target's expert slots
  uint64_t slot_bytes = 0;   // 0: a dense model
  int total_experts = 0;
};

struct Suggestion {
  std::string what;         // in words, with its figures
  double tokens_per_s = 0;  // predicted with it
};

// Those that promise a gain worth having, the greatest first. `now`: as predicted without any.
std::vector<Suggestion> what_helps(const PredictionInput& input, const Memory& memory, const SpeedPrediction& now);

}  // namespace drafthorse
