#include "ops/expert_ffn.h"

#include <algorithm>
#include <cmath>

namespace drafthorse::ops {
namespace {

// All rows of all experts' matrices as one range of work, so that few large and many small experts alike keep every
// thread busy. function(work, first row, end row, rows of the batch), for parts that lie within one expert.
template <typename Function>
void for_each_part(const ExpertBatch& batch, int64_t weight_rows, int64_t grain, WorkerPool& pool,
                   const Function& function) {
  const int64_t pieces_per_expert = (weight_rows + grain - 1) / grain;
  const auto experts = static_cast<int64_t>(batch.work.size());
  pool.run(pieces_per_expert * experts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const ExpertWork& work = batch.work[piece / pieces_per_expert];
      const int64_t first = piece % pieces_per_expert * grain;
      function(work, first, std::min(first + grain, weight_rows));
    }
  });
}

int64_t grain_for(const ExpertBatch& batch, const WeightMatrix& matrix, int threads) {
  int64_t rows = 0;
  for (const ExpertWork& work : batch.work) rows += work.row_end - work.row_begin;
  const auto experts = static_cast<int64_t>(batch.work.size());
  return std::min(matrix.rows, row_grain(matrix.rows * experts, matrix.columns * rows / experts, threads));
}

}  // namespace

void run_experts(const ExpertBatch& batch, WorkerPool& pool) {
  if (batch.work.empty()) return;
  const ExpertWeights& shape = batch.work.front().weights;
  const int64_t n_ff = shape.gate.rows;
  const int64_t n_embd = shape.down.rows;
  for_each_part(batch, n_ff, grain_for(batch, shape.gate, pool.threads()), pool,
                [&](const ExpertWork& work, int64_t begin, int64_t end) {
                  for (int64_t r = begin; r < end; ++r) {
                    for (int32_t row = work.row_begin; row < work.row_end; ++row) {
                      const std::byte* x = batch.input.data + batch.token_of_row[row] * batch.input.row_bytes;
                      batch.hidden[row * n_ff + r] = silu(dot(work.weights.gate, r, x)) * dot(work.weights.up, r, x);
                    }
                  }
                });
  const ggml_type type = activation_type(shape.down.type);
  const size_t row_bytes = ggml_row_size(type, n_ff);
  pool.run(static_cast<int64_t>(batch.work.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t row = batch.work[i].row_begin; row < batch.work[i].row_end; ++row) {
        quantize_row(batch.hidden + row * n_ff, batch.hidden_quantized + row * row_bytes, n_ff, type);
      }
    }
  });
  for_each_part(batch, n_embd, grain_for(batch, shape.down, pool.threads()), pool,
                [&](const ExpertWork& work, int64_t begin, int64_t end) {
                  linear_rows(work.weights.down, {batch.hidden_quantized + work.row_begin * row_bytes, row_bytes},
                              work.row_end - work.row_begin, batch.output + work.row_begin * n_embd, n_embd, begin,
                              end);
                });
}

void accumulate(float* y, const float* x, float weight, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = std::fma(weight, x[i], y[i]);
}

}  // namespace drafthorse::ops
