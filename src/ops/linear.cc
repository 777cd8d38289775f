#include "ops/linear.h"

#include <ggml-cpu.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/check.h"

namespace drafthorse::ops {
namespace {

using simd::kMaxLanes;
using simd::kTokenBlock;

constexpr int64_t kTokenGrain = 8;      // tokens quantised per piece of work
constexpr int64_t kLeastWork = 262144;  // multiplications below which handing out a piece costs more than it saves
constexpr int64_t kPiecesPerThread = 8;
// Weights that stay in a core's cache while block after block of tokens passes over them.
constexpr size_t kCachedWeightBytes = 256 * 1024;

WeightMatrix matrix_of(const ggml_tensor* w) {
  return {static_cast<const std::byte*>(w->data), w->type, w->ne[0], w->ne[1], w->nb[1]};
}

std::vector<const std::byte*> row_pointers(const ggml_tensor* xq) {
  std::vector<const std::byte*> rows(static_cast<size_t>(xq->ne[1]));
  for (size_t t = 0; t < rows.size(); ++t) rows[t] = static_cast<const std::byte*>(xq->data) + t * xq->nb[1];
  return rows;
}

// A tile's result on its way to y.
struct TileResult {
  alignas(64) float values[kTokenBlock * kMaxLanes];
};

void store(const TileResult& tile, int64_t lanes, int64_t rows, int64_t tokens, float* y, int64_t y_stride) {
  for (int64_t t = 0; t < tokens; ++t) {
    std::memcpy(y + t * y_stride, tile.values + t * lanes, static_cast<size_t>(rows) * sizeof(float));
  }
}

// Rows [row, row + rows) times x, `rows` at most a tile. `next`: what will be read after them.
void multiply(const simd::Kernels& kernels, const WeightMatrix& weights, std::span<const std::byte* const> x,
              int64_t row, int64_t rows, const std::byte* next, TileResult& out) {
  const std::byte* data = weights.data + static_cast<size_t>(row) * weights.row_bytes;
  const auto tokens = static_cast<int64_t>(x.size());
  if (const simd::TileKernel tile = kernels.tile[weights.type]; tile != nullptr) {
    tile({data, weights.row_bytes, rows, weights.columns, x.data(), tokens, out.values, next});
    return;
  }
  const ggml_vec_dot_t vec_dot = ggml_get_type_traits_cpu(weights.type)->vec_dot;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t r = 0; r < rows; ++r) {
      vec_dot(static_cast<int>(weights.columns), &out.values[t * kernels.lanes + r], 0,
              data + static_cast<size_t>(r) * weights.row_bytes, 0, x[t], 0, 1);
    }
  }
}

// function(first row, rows, first token, tokens) for tiles of rows and blocks of tokens: as many rows as a cache holds
// stay in it for all tokens.
template <typename Function>
void for_each_tile(int64_t lanes, size_t row_bytes, int64_t tokens, int64_t row_begin, int64_t row_end,
                   const Function& function) {
  const auto cached_rows = static_cast<int64_t>(kCachedWeightBytes / row_bytes) / lanes * lanes;
  const int64_t group = tokens <= kTokenBlock ? row_end - row_begin : std::max(lanes, cached_rows);
  for (int64_t begin = row_begin; begin < row_end; begin += group) {
    const int64_t end = std::min(begin + group, row_end);
    for (int64_t t = 0; t < tokens; t += kTokenBlock) {
      for (int64_t r = begin; r < end; r += lanes) {
        function(r, std::min(lanes, end - r), t, std::min(kTokenBlock, tokens - t));
      }
    }
  }
}

void quantize_node(ggml_tensor* destination, int, int, void* userdata) {
  const auto& quantization = *static_cast<const NodeContext::Quantization*>(userdata);
  const ggml_tensor* x = destination->src[0];
  quantization.processor->pool.run(x->ne[1], kTokenGrain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      write_activation_row(quantization.processor->kernels,
                           reinterpret_cast<const float*>(static_cast<const std::byte*>(x->data) + t * x->nb[1]),
                           static_cast<std::byte*>(destination->data) + t * destination->nb[1], x->ne[0],
                           quantization.format);
    }
  });
}

void linear_node(ggml_tensor* destination, int, int, void* userdata) {
  const auto& processor = *static_cast<const Processor*>(userdata);
  const WeightMatrix weights = matrix_of(destination->src[0]);
  const std::vector<const std::byte*> x = row_pointers(destination->src[1]);
  auto* y = static_cast<float*>(destination->data);
  processor.pool.run(weights.rows,
                     row_grain(weights.rows, weights.columns * destination->ne[1], processor.pool.threads()),
                     [&](int64_t begin, int64_t end) {
                       linear_rows(processor.kernels, weights, x, y, destination->ne[0], begin, end);
                     });
}

// Heads and their rows as one range of work, as few large and many small heads alike keep every thread busy.
void heads_linear_node(ggml_tensor* destination, int, int, void* userdata) {
  const auto& processor = *static_cast<const Processor*>(userdata);
  const ggml_tensor* w = destination->src[0];
  const WeightMatrix first = matrix_of(w);
  const int64_t heads = w->ne[2];
  const int64_t tokens = destination->ne[2];
  const std::vector<const std::byte*> rows = row_pointers(destination->src[1]);
  // By head, then token.
  std::vector<const std::byte*> x(rows.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = rows[i % tokens * heads + i / tokens];
  auto* y = static_cast<float*>(destination->data);
  const int64_t grain =
      std::min(first.rows, row_grain(first.rows * heads, first.columns * tokens, processor.pool.threads()));
  const int64_t pieces = (first.rows + grain - 1) / grain;
  processor.pool.run(pieces * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t head = piece / pieces;
      WeightMatrix weights = first;
      weights.data += static_cast<size_t>(head) * w->nb[2];
      const int64_t row = piece % pieces * grain;
      linear_rows(processor.kernels, weights, std::span(x).subspan(head * tokens, tokens), y + head * first.rows,
                  heads * first.rows, row, std::min(row + grain, first.rows));
    }
  });
}

void gated_linear_node(ggml_tensor* destination, int, int, void* userdata) {
  const auto& processor = *static_cast<const Processor*>(userdata);
  const WeightMatrix gate = matrix_of(destination->src[0]);
  const WeightMatrix up = matrix_of(destination->src[1]);
  const std::vector<const std::byte*> x = row_pointers(destination->src[2]);
  auto* y = static_cast<float*>(destination->data);
  processor.pool.run(gate.rows, row_grain(gate.rows, 2 * gate.columns * destination->ne[1], processor.pool.threads()),
                     [&](int64_t begin, int64_t end) {
                       gated_linear_rows(processor.kernels, gate, up, x, y, destination->ne[0], begin, end);
                     });
}

}  // namespace

bool supports_weights(ggml_type weight_type) {
  if (weight_type < 0 || weight_type >= GGML_TYPE_COUNT || ggml_blck_size(weight_type) == 0) return false;
  const ggml_type_traits_cpu* traits = ggml_get_type_traits_cpu(weight_type);
  if (traits->vec_dot == nullptr) return false;
  return traits->vec_dot_type == GGML_TYPE_F32 || ggml_get_type_traits_cpu(traits->vec_dot_type)->from_float != nullptr;
}

void linear_rows(const simd::Kernels& kernels, const WeightMatrix& weights, std::span<const std::byte* const> x,
                 float* y, int64_t y_stride, int64_t row_begin, int64_t row_end) {
  TileResult result;
  for_each_tile(kernels.lanes, weights.row_bytes, static_cast<int64_t>(x.size()), row_begin, row_end,
                [&](int64_t row, int64_t rows, int64_t token, int64_t tokens) {
                  const std::byte* next = row + rows < weights.rows
                                              ? weights.data + static_cast<size_t>(row + rows) * weights.row_bytes
                                              : nullptr;
                  multiply(kernels, weights, x.subspan(token, tokens), row, rows, next, result);
                  store(result, kernels.lanes, rows, tokens, y + token * y_stride + row, y_stride);
                });
}

void gated_linear_rows(const simd::Kernels& kernels, const WeightMatrix& gate, const WeightMatrix& up,
                       std::span<const std::byte* const> x, float* y, int64_t y_stride, int64_t row_begin,
                       int64_t row_end) {
  TileResult gates;
  TileResult ups;
  for_each_tile(kernels.lanes, gate.row_bytes + up.row_bytes, static_cast<int64_t>(x.size()), row_begin, row_end,
                [&](int64_t row, int64_t rows, int64_t token, int64_t tokens) {
                  const std::byte* next_up = up.data + static_cast<size_t>(row) * up.row_bytes;
                  const std::byte* next_gate =
                      row + rows < gate.rows ? gate.data + static_cast<size_t>(row + rows) * gate.row_bytes : nullptr;
                  multiply(kernels, gate, x.subspan(token, tokens), row, rows, next_up, gates);
                  multiply(kernels, up, x.subspan(token, tokens), row, rows, next_gate, ups);
                  kernels.gate(gates.values, ups.values, gates.values, tokens * kernels.lanes);
                  store(gates, kernels.lanes, rows, tokens, y + token * y_stride + row, y_stride);
                });
}

NodeContext::NodeContext(const Processor& processor) : processor_(processor) {
  for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
    const auto weight_type = static_cast<ggml_type>(type);
    if (supports_weights(weight_type)) quantizations_[type] = {&processor_, activation_format(weight_type)};
  }
}

int64_t row_grain(int64_t rows, int64_t row_cost, int threads) {
  const int64_t even = rows / (threads * kPiecesPerThread);
  const int64_t least = kLeastWork / std::max<int64_t>(1, row_cost) + 1;
  const int64_t grain = std::max(even, least);
  return (grain + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
}

ggml_tensor* quantize(ggml_context* context, const NodeContext& nodes, ggml_tensor* x, ggml_type weight_type) {
  const NodeContext::Quantization& quantization = nodes.quantization(weight_type);
  CHECK(quantization.processor != nullptr);
  CHECK(x->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float) && x->ne[2] == 1 && x->ne[3] == 1);
  ggml_tensor* args[] = {x};
  return ggml_custom_4d(context, GGML_TYPE_I8,
                        static_cast<int64_t>(activation_row_bytes(quantization.format, x->ne[0])), x->ne[1], 1, 1, args,
                        1, quantize_node, 1, const_cast<NodeContext::Quantization*>(&quantization));
}

ggml_tensor* linear(ggml_context* context, const NodeContext& nodes, ggml_tensor* w, ggml_tensor* xq) {
  CHECK(static_cast<size_t>(xq->ne[0]) == activation_row_bytes(activation_format(w->type), w->ne[0]));
  ggml_tensor* args[] = {w, xq};
  return ggml_custom_4d(context, GGML_TYPE_F32, w->ne[1], xq->ne[1], 1, 1, args, 2, linear_node, 1,
                        const_cast<Processor*>(&nodes.processor()));
}

ggml_tensor* heads_linear(ggml_context* context, const NodeContext& nodes, ggml_tensor* w, ggml_tensor* xq) {
  CHECK(static_cast<size_t>(xq->ne[0]) == activation_row_bytes(activation_format(w->type), w->ne[0]));
  CHECK(xq->ne[1] % w->ne[2] == 0);
  ggml_tensor* args[] = {w, xq};
  return ggml_custom_4d(context, GGML_TYPE_F32, w->ne[1], w->ne[2], xq->ne[1] / w->ne[2], 1, args, 2, heads_linear_node,
                        1, const_cast<Processor*>(&nodes.processor()));
}

ggml_tensor* gated_linear(ggml_context* context, const NodeContext& nodes, ggml_tensor* gate, ggml_tensor* up,
                          ggml_tensor* xq) {
  CHECK(gate->ne[0] == up->ne[0] && gate->ne[1] == up->ne[1]);
  CHECK(activation_format(gate->type) == activation_format(up->type));
  CHECK(static_cast<size_t>(xq->ne[0]) == activation_row_bytes(activation_format(gate->type), gate->ne[0]));
  ggml_tensor* args[] = {gate, up, xq};
  return ggml_custom_4d(context, GGML_TYPE_F32, gate->ne[1], xq->ne[1], 1, 1, args, 3, gated_linear_node, 1,
                        const_cast<Processor*>(&nodes.processor()));
}

}  // namespace drafthorse::ops
