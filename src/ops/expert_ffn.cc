#include "ops/expert_ffn.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace drafthorse::ops {
namespace {

constexpr int64_t kQuantizeGrain = 4;  // rows

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

void run_experts(const ExpertBatch& batch, const Processor& processor) {
  if (batch.work.empty()) return;
  WorkerPool& pool = processor.pool;
  const ExpertWeights& shape = batch.work.front().weights;
  const int64_t n_ff = shape.gate.rows;
  const int64_t n_embd = shape.down.rows;
  const ActivationFormat hidden_format = activation_format(shape.down.type);
  const size_t hidden_row_bytes = activation_row_bytes(hidden_format, n_ff);
  std::vector<const std::byte*> inputs(batch.token_of_row.size());
  std::vector<const std::byte*> hidden(batch.token_of_row.size());
  for (size_t row = 0; row < inputs.size(); ++row) {
    inputs[row] = batch.input.data + static_cast<size_t>(batch.token_of_row[row]) * batch.input.row_bytes;
    hidden[row] = batch.hidden_quantized + row * hidden_row_bytes;
  }
  const auto rows_of = [](const std::vector<const std::byte*>& rows, const ExpertWork& work) {
    return std::span(rows).subspan(work.row_begin, work.row_end - work.row_begin);
  };

  for_each_part(batch, n_ff, grain_for(batch, shape.gate, pool.threads()), pool,
                [&](const ExpertWork& work, int64_t begin, int64_t end) {
                  gated_linear_rows(processor.kernels, work.weights.gate, work.weights.up, rows_of(inputs, work),
                                    batch.hidden + work.row_begin * n_ff, n_ff, begin, end);
                });
  std::vector<int32_t> rows;
  for (const ExpertWork& work : batch.work) {
    for (int32_t row = work.row_begin; row < work.row_end; ++row) rows.push_back(row);
  }
  pool.run(static_cast<int64_t>(rows.size()), kQuantizeGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      write_activation_row(processor.kernels, batch.hidden + rows[i] * n_ff,
                           batch.hidden_quantized + static_cast<size_t>(rows[i]) * hidden_row_bytes, n_ff,
                           hidden_format);
    }
  });
  for_each_part(batch, n_embd, grain_for(batch, shape.down, pool.threads()), pool,
                [&](const ExpertWork& work, int64_t begin, int64_t end) {
                  linear_rows(processor.kernels, work.weights.down, rows_of(hidden, work),
                              batch.output + work.row_begin * n_embd, n_embd, begin, end);
                });
}

void accumulate(float* y, const float* x, float weight, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = std::fma(weight, x[i], y[i]);
}

}  // namespace drafthorse::ops
