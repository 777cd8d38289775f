#include "ops/linear.h"

#include <ggml-cpu.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace drafthorse::ops {
namespace {

// Weight rows that stay in the cache while all tokens of the window pass over them.
constexpr int64_t kRowBlock = 8;
constexpr int64_t kTokenGrain = 8;      // tokens quantised per piece of work
constexpr int64_t kLeastWork = 262144;  // multiplications below which handing out a piece costs more than it saves
constexpr int64_t kPiecesPerThread = 8;

WeightMatrix matrix_of(const ggml_tensor* w) {
  return {static_cast<const std::byte*>(w->data), w->type, w->ne[0], w->ne[1], w->nb[1]};
}

ActivationRows rows_of(const ggml_tensor* xq) { return {static_cast<const std::byte*>(xq->data), xq->nb[1]}; }

void quantize_node(ggml_tensor* destination, int, int, void* userdata) {
  const auto& quantization = *static_cast<const NodeContext::Quantization*>(userdata);
  const ggml_tensor* x = destination->src[0];
  quantization.pool->run(x->ne[1], kTokenGrain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      quantize_row(reinterpret_cast<const float*>(static_cast<const std::byte*>(x->data) + t * x->nb[1]),
                   static_cast<std::byte*>(destination->data) + t * destination->nb[1], x->ne[0], quantization.type);
    }
  });
}

void linear_node(ggml_tensor* destination, int, int, void* userdata) {
  WorkerPool& pool = *static_cast<WorkerPool*>(userdata);
  const WeightMatrix weights = matrix_of(destination->src[0]);
  const ActivationRows x = rows_of(destination->src[1]);
  const int64_t tokens = destination->ne[1];
  pool.run(weights.rows, row_grain(weights.rows, weights.columns * tokens, pool.threads()),
           [&](int64_t begin, int64_t end) {
             linear_rows(weights, x, tokens, static_cast<float*>(destination->data), destination->ne[0], begin, end);
           });
}

void gated_linear_node(ggml_tensor* destination, int, int, void* userdata) {
  WorkerPool& pool = *static_cast<WorkerPool*>(userdata);
  const WeightMatrix gate = matrix_of(destination->src[0]);
  const WeightMatrix up = matrix_of(destination->src[1]);
  const ActivationRows x = rows_of(destination->src[2]);
  const int64_t tokens = destination->ne[1];
  auto* y = static_cast<float*>(destination->data);
  pool.run(gate.rows, row_grain(gate.rows, 2 * gate.columns * tokens, pool.threads()), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t t = 0; t < tokens; ++t) {
        const std::byte* activation = x.data + t * x.row_bytes;
        y[t * destination->ne[0] + r] = silu(dot(gate, r, activation)) * dot(up, r, activation);
      }
    }
  });
}

}  // namespace

ggml_type activation_type(ggml_type weight_type) { return ggml_get_type_traits_cpu(weight_type)->vec_dot_type; }

bool supports_weights(ggml_type weight_type) {
  if (weight_type < 0 || weight_type >= GGML_TYPE_COUNT || ggml_blck_size(weight_type) == 0) return false;
  const ggml_type_traits_cpu* traits = ggml_get_type_traits_cpu(weight_type);
  if (traits->vec_dot == nullptr) return false;
  return traits->vec_dot_type == GGML_TYPE_F32 || ggml_get_type_traits_cpu(traits->vec_dot_type)->from_float != nullptr;
}

void quantize_row(const float* x, std::byte* out, int64_t columns, ggml_type activation_type) {
  if (activation_type == GGML_TYPE_F32) {
    std::copy_n(x, columns, reinterpret_cast<float*>(out));
    return;
  }
  ggml_get_type_traits_cpu(activation_type)->from_float(x, out, columns);
}

float dot(const WeightMatrix& weights, int64_t row, const std::byte* activation) {
  float result = 0;
  ggml_get_type_traits_cpu(weights.type)
      ->vec_dot(static_cast<int>(weights.columns), &result, 0, weights.data + row * weights.row_bytes, 0, activation, 0,
                1);
  return result;
}

void linear_rows(const WeightMatrix& weights, const ActivationRows& x, int64_t tokens, float* y, int64_t y_stride,
                 int64_t row_begin, int64_t row_end) {
  const ggml_vec_dot_t vec_dot = ggml_get_type_traits_cpu(weights.type)->vec_dot;
  for (int64_t block = row_begin; block < row_end; block += kRowBlock) {
    const int64_t block_end = std::min(block + kRowBlock, row_end);
    for (int64_t t = 0; t < tokens; ++t) {
      const std::byte* activation = x.data + t * x.row_bytes;
      for (int64_t r = block; r < block_end; ++r) {
        vec_dot(static_cast<int>(weights.columns), &y[t * y_stride + r], 0, weights.data + r * weights.row_bytes, 0,
                activation, 0, 1);
      }
    }
  }
}

NodeContext::NodeContext(WorkerPool& pool) : pool_(pool) {
  for (int type = 0; type < GGML_TYPE_COUNT; ++type) quantizations_[type] = {&pool, static_cast<ggml_type>(type)};
}

int64_t row_grain(int64_t rows, int64_t row_cost, int threads) {
  const int64_t even = rows / (threads * kPiecesPerThread);
  const int64_t least = kLeastWork / std::max<int64_t>(1, row_cost) + 1;
  const int64_t grain = std::max(even, least);
  return (grain + kRowBlock - 1) / kRowBlock * kRowBlock;
}

ggml_tensor* quantize(ggml_context* context, const NodeContext& nodes, ggml_tensor* x, ggml_type weight_type) {
  const ggml_type type = activation_type(weight_type);
  CHECK(x->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float) && x->ne[2] == 1 && x->ne[3] == 1);
  ggml_tensor* args[] = {x};
  return ggml_custom_4d(context, GGML_TYPE_I8, static_cast<int64_t>(ggml_row_size(type, x->ne[0])), x->ne[1], 1, 1,
                        args, 1, quantize_node, 1, const_cast<NodeContext::Quantization*>(&nodes.quantization(type)));
}

ggml_tensor* linear(ggml_context* context, const NodeContext& nodes, ggml_tensor* w, ggml_tensor* xq) {
  CHECK(static_cast<size_t>(xq->ne[0]) == ggml_row_size(activation_type(w->type), w->ne[0]));
  ggml_tensor* args[] = {w, xq};
  return ggml_custom_4d(context, GGML_TYPE_F32, w->ne[1], xq->ne[1], 1, 1, args, 2, linear_node, 1, &nodes.pool());
}

ggml_tensor* gated_linear(ggml_context* context, const NodeContext& nodes, ggml_tensor* gate, ggml_tensor* up,
                          ggml_tensor* xq) {
  CHECK(gate->ne[0] == up->ne[0] && gate->ne[1] == up->ne[1]);
  CHECK(activation_type(gate->type) == activation_type(up->type));
  CHECK(static_cast<size_t>(xq->ne[0]) == ggml_row_size(activation_type(gate->type), gate->ne[0]));
  ggml_tensor* args[] = {gate, up, xq};
  return ggml_custom_4d(context, GGML_TYPE_F32, gate->ne[1], xq->ne[1], 1, 1, args, 3, gated_linear_node, 1,
                        &nodes.pool());
}

float silu(float x) { return x / (1.0F + std::exp(-x)); }

}  // namespace drafthorse::ops
