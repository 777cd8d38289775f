// Linear layers with the same bits for any number of tokens.
//
// Each output element is one dot product of a weight row and a token's quantised activation row, taken with ggml's
// dot product for the weight's type. It depends on nothing else: not on how many tokens share the call, not on
// threads, not on their order. That is what makes verification of a window bit-equal to decoding token by token.
//
// Activations are quantised first (rows of the type ggml's dot product wants), as a node of its own, so that several
// linears share it.
#pragma once

#include <ggml.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/worker_pool.h"

namespace drafthorse::ops {

// The activation type that weights of `type` are multiplied with.
ggml_type activation_type(ggml_type weight_type);

// Whether linear() can multiply with weights of this type.
bool supports_weights(ggml_type weight_type);

// A matrix of `rows` weight rows, each of `columns` elements stored in `row_bytes` bytes.
struct WeightMatrix {
  const std::byte* data = nullptr;
  ggml_type type = GGML_TYPE_F32;
  int64_t columns = 0;
  int64_t rows = 0;
  size_t row_bytes = 0;
};

// Quantised activation rows: row t starts at data + t * row_bytes.
struct ActivationRows {
  const std::byte* data = nullptr;
  size_t row_bytes = 0;
};

// One row of `columns` floats into the activation type.
void quantize_row(const float* x, std::byte* out, int64_t columns, ggml_type activation_type);

// Dot product of weight row `row` with one activation row.
float dot(const WeightMatrix& weights, int64_t row, const std::byte* activation);

// y[t * y_stride + r] = weights[r] . x[t] for r in [row_begin, row_end), t in [0, tokens).
void linear_rows(const WeightMatrix& weights, const ActivationRows& x, int64_t tokens, float* y, int64_t y_stride,
                 int64_t row_begin, int64_t row_end);

// --- graph nodes
//
// ggml runs the nodes one after the other on the calling thread; each spreads its own work over a WorkerPool.

// What nodes need when they run. Must outlive every graph built with it.
class NodeContext {
 public:
  explicit NodeContext(WorkerPool& pool);
  NodeContext(const NodeContext&) = delete;
  NodeContext& operator=(const NodeContext&) = delete;

  WorkerPool& pool() const { return pool_; }

  struct Quantization {
    WorkerPool* pool = nullptr;
    ggml_type type = GGML_TYPE_F32;
  };
  // Stable addresses: a node keeps a pointer to its entry.
  const Quantization& quantization(ggml_type activation_type) const { return quantizations_[activation_type]; }

 private:
  WorkerPool& pool_;
  std::array<Quantization, GGML_TYPE_COUNT> quantizations_;
};

// Rows per piece of work: enough pieces for all threads to end together, none too small to be worth handing out.
int64_t row_grain(int64_t rows, int64_t row_cost, int threads);

// x: [columns, n] F32 -> rows of activation_type(weight_type), as an I8 tensor [row bytes, n].
ggml_tensor* quantize(ggml_context* context, const NodeContext& nodes, ggml_tensor* x, ggml_type weight_type);

// w: [columns, rows], xq: quantize()d x of n tokens -> [rows, n] F32.
ggml_tensor* linear(ggml_context* context, const NodeContext& nodes, ggml_tensor* w, ggml_tensor* xq);

// silu(gate . x) * (up . x): gate, up: [columns, rows] -> [rows, n] F32. Both weights share one activation type.
ggml_tensor* gated_linear(ggml_context* context, const NodeContext& nodes, ggml_tensor* gate, ggml_tensor* up,
                          ggml_tensor* xq);

// The multiplication in gated_linear and in the experts; one definition, so that all use the same bits.
float silu(float x);

}  // namespace drafthorse::ops
