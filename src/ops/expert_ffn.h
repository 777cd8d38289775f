// The routed experts' feed-forward: down(silu(gate x) * (up x)) for each (token, expert) pair of a batch.
//
// A batch lists work per expert: weights wherever they lie (an expert is usable the moment its bytes are there) and
// the rows it is to compute. A row is one (token, expert) pair; its activation and result have a place of their own,
// so experts may be computed in any grouping and order without changing a bit.
#pragma once

#include <ggml.h>

#include <cstdint>
#include <span>
#include <vector>

#include "ops/expert_weights.h"

namespace drafthorse::ops {

// Rows [row_begin, row_end) of the batch belong to this expert.
struct ExpertWork {
  ExpertWeights weights;
  int32_t row_begin = 0;
  int32_t row_end = 0;
};

// What one run of the experts computes. Filled by the caller before each run; the memory is the caller's.
struct ExpertBatch {
  ActivationRows input;                   // the layer's quantised FFN input, one row per token
  std::span<const int32_t> token_of_row;  // which token each row reads
  std::span<const ExpertWork> work;
  float* hidden = nullptr;                // [rows, n_ff] floats
  std::byte* hidden_quantized = nullptr;  // [rows, activation_row_bytes of n_ff for the down weights]
  float* output = nullptr;                // [rows, n_embd] floats
};

void run_experts(const ExpertBatch& batch, const Processor& processor);

// y[i] += weight * x[i] for i in [0, count): how an expert's output joins its token's sum. Both prefill and decode
// add a token's experts in the order of their ids through this function.
void accumulate(float* y, const float* x, float weight, int64_t count);

}  // namespace drafthorse::ops
