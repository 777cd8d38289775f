// Linear layers with the same bits for any number of tokens, and nearly the same time for one as for a few.
//
// Weights are read in GGUF's own block layout, each block unpacked once for all tokens of the call. An output element
// is a sum in an order that only the weight type decides (ops/simd/linear_tile.h): it does not depend on how many
// tokens share the call, on threads, on their order, nor on the instruction set. That is what makes verification of a
// window bit-equal to decoding token by token. Types without a kernel of ours go through ggml's dot product, row by
// row: the same promise, without the speed.
//
// Activations are written first in the form that the weights want (ops/activation.h), as a node of its own, so that
// several linears share it.
#pragma once

#include <ggml.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "ops/activation.h"
#include "ops/processor.h"

namespace drafthorse::ops {

// Whether weights of this type can be multiplied with.
bool supports_weights(ggml_type weight_type);

// A matrix of `rows` weight rows, each of `columns` elements stored in `row_bytes` bytes.
struct WeightMatrix {
  const std::byte* data = nullptr;
  ggml_type type = GGML_TYPE_F32;
  int64_t columns = 0;
  int64_t rows = 0;
  size_t row_bytes = 0;
};

// Activation rows: row t starts at data + t * row_bytes.
struct ActivationRows {
  const std::byte* data = nullptr;
  size_t row_bytes = 0;
};

// y[t * y_stride + r] = weights[r] . x[t] for r in [row_begin, row_end), t in [0, x.size()).
// x: pointers to rows of activation_format(weights.type).
void linear_rows(const simd::Kernels& kernels, const WeightMatrix& weights, std::span<const std::byte* const> x,
                 float* y, int64_t y_stride, int64_t row_begin, int64_t row_end);

// y[t * y_stride + r] = silu(gate[r] . x[t]) * (up[r] . x[t]); gate and up are of the same shape and activation format.
void gated_linear_rows(const simd::Kernels& kernels, const WeightMatrix& gate, const WeightMatrix& up,
                       std::span<const std::byte* const> x, float* y, int64_t y_stride, int64_t row_begin,
                       int64_t row_end);

// Rows per piece of work: enough pieces for all threads to end together, none too small to be worth handing out.
// row_cost: multiplications per row.
int64_t row_grain(int64_t rows, int64_t row_cost, int threads);

// --- graph nodes
//
// ggml runs the nodes one after the other on the calling thread; each spreads its own work over a WorkerPool.

// What nodes need when they run. Must outlive every graph built with it.
class NodeContext {
 public:
  explicit NodeContext(const Processor& processor);
  NodeContext(const NodeContext&) = delete;
  NodeContext& operator=(const NodeContext&) = delete;

  const Processor& processor() const { return processor_; }

  struct Quantization {
    const Processor* processor = nullptr;
    ActivationFormat format;
  };
  // Stable addresses: a node keeps a pointer to its entry.
  const Quantization& quantization(ggml_type weight_type) const { return quantizations_[weight_type]; }

 private:
  Processor processor_;
  std::array<Quantization, GGML_TYPE_COUNT> quantizations_;  // by weight type
};

// x: [columns, n] F32 -> rows of activation_format(weight_type), as an I8 tensor [row bytes, n].
ggml_tensor* quantize(ggml_context* context, const NodeContext& nodes, ggml_tensor* x, ggml_type weight_type);

// w: [columns, rows], xq: quantize()d x of n tokens -> [rows, n] F32.
ggml_tensor* linear(ggml_context* context, const NodeContext& nodes, ggml_tensor* w, ggml_tensor* xq);

// A matrix per head. w: [columns, rows, heads], any stride between heads; xq: quantize()d x of n tokens, the heads of a
// token side by side: [row bytes, heads * n] -> [rows, heads, n] F32.
ggml_tensor* heads_linear(ggml_context* context, const NodeContext& nodes, ggml_tensor* w, ggml_tensor* xq);

// silu(gate . x) * (up . x): gate, up: [columns, rows] -> [rows, n] F32. Both weights share one activation format.
ggml_tensor* gated_linear(ggml_context* context, const NodeContext& nodes, ggml_tensor* gate, ggml_tensor* up,
                          ggml_tensor* xq);

}  // namespace drafthorse::ops
