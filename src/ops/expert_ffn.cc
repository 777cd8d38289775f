#include "ops/expert_ffn.h"

#include <cmath>

#include "base/check.h"

namespace drafthorse::ops {
namespace {

constexpr int64_t kRowGranule = 8;

void gate_up_node(ggml_tensor*, int ith, int nth, void* userdata) {
  const auto& batch = *static_cast<const ExpertBatch*>(userdata);
  for (const ExpertWork& work : batch.work) {
    const int64_t n_ff = work.weights.gate.rows;
    const Range range = thread_range(n_ff, ith, nth, kRowGranule);
    for (int64_t r = range.begin; r < range.end; ++r) {
      for (int32_t row = work.row_begin; row < work.row_end; ++row) {
        const std::byte* x = batch.input.data + batch.token_of_row[row] * batch.input.row_bytes;
        batch.hidden[row * n_ff + r] = silu(dot(work.weights.gate, r, x)) * dot(work.weights.up, r, x);
      }
    }
  }
}

void quantize_hidden_node(ggml_tensor*, int ith, int nth, void* userdata) {
  const auto& batch = *static_cast<const ExpertBatch*>(userdata);
  for (const ExpertWork& work : batch.work) {
    const ggml_type type = activation_type(work.weights.down.type);
    const size_t row_bytes = ggml_row_size(type, work.weights.down.columns);
    const Range range = thread_range(work.row_end - work.row_begin, ith, nth);
    for (int64_t row = work.row_begin + range.begin; row < work.row_begin + range.end; ++row) {
      quantize_row(batch.hidden + row * work.weights.down.columns, batch.hidden_quantized + row * row_bytes, work.weights.down.columns,
                   type);
    }
  }
}

void down_node(ggml_tensor*, int ith, int nth, void* userdata) {
  const auto& batch = *static_cast<const ExpertBatch*>(userdata);
  for (const ExpertWork& work : batch.work) {
    const size_t row_bytes = ggml_row_size(activation_type(work.weights.down.type), work.weights.down.columns);
    const int64_t n_embd = work.weights.down.rows;
    const Range range = thread_range(n_embd, ith, nth, kRowGranule);
    linear_rows(work.weights.down, {batch.hidden_quantized + work.row_begin * row_bytes, row_bytes},
                work.row_end - work.row_begin, batch.output + work.row_begin * n_embd, n_embd, range.begin, range.end);
  }
}

}  // namespace

void build_expert_graph(ggml_context* context, ggml_cgraph* graph, ExpertBatch* batch) {
  // The nodes' tensors are one byte each: the data flows through the batch, ggml only orders the three steps.
  ggml_tensor* previous = ggml_new_tensor_1d(context, GGML_TYPE_I8, 1);
  for (const ggml_custom_op_t step : {gate_up_node, quantize_hidden_node, down_node}) {
    ggml_tensor* args[] = {previous};
    previous = ggml_custom_4d(context, GGML_TYPE_I8, 1, 1, 1, 1, args, 1, step, GGML_N_TASKS_MAX, batch);
  }
  ggml_build_forward_expand(graph, previous);
}

void accumulate(float* y, const float* x, float weight, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = std::fma(weight, x[i], y[i]);
}

}  // namespace drafthorse::ops
