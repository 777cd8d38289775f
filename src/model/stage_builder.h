// What a family's file builds stage graphs from: the vocabulary of a transformer layer.
//
// On the CPU linears and attention are our ops inside the ggml graph, the rest is ggml's own, row by row and so
// independent of the window. A builder lives as long as one graph is being built.
#pragma once

#include <ggml.h>

#include <utility>
#include <vector>

#include "model/config.h"
#include "model/kv_cache.h"
#include "model/weights.h"
#include "ops/attention.h"
#include "ops/linear.h"

namespace drafthorse {

class StageBuilder {
 public:
  // `nodes` and `attention` must outlive the graph.
  StageBuilder(ggml_context* context, const ModelConfig& config, const ops::NodeContext& nodes,
               const ops::AttentionNode& attention)
      : context_(context), config_(config), nodes_(nodes), attention_(attention) {}

  ggml_context* context() const { return context_; }
  const ModelConfig& config() const { return config_; }

  // x: [width, ..], weight: [width], bias: [width] or nullptr -> x / rms(x) * weight + bias
  ggml_tensor* rms_norm(ggml_tensor* x, ggml_tensor* weight, ggml_tensor* bias = nullptr);

  // w: [columns, rows], x: [columns, n], bias: [rows] or nullptr -> [rows, n]
  ggml_tensor* linear(ggml_tensor* w, ggml_tensor* x, ggml_tensor* bias = nullptr);

  // A matrix per head. w: [columns, rows, heads], x: [columns, heads, n] -> [rows, heads, n]
  ggml_tensor* heads_linear(ggml_tensor* w, ggml_tensor* x);

  // x quantised for weights of this type; made once per (x, type).
  ggml_tensor* quantized(ggml_tensor* x, ggml_type weight_type);

  // x: [head_dim, heads, n], positions: [n], factors: [rope.dims / 2] or nullptr; as config().rope says
  ggml_tensor* rope(ggml_tensor* x, ggml_tensor* positions, ggml_tensor* factors);

  // Writes k, v ([head_dim, n_head_kv, n]) to the cache's rows and attends with q ([head_dim, n_head, n]). Without v,
  // values are the first value_dim elements of keys.
  // -> [value_dim * n_head, n]
  ggml_tensor* cached_attention(ggml_tensor* q, ggml_tensor* k, ggml_tensor* v, const KvCache& cache, int32_t layer,
                                ggml_tensor* positions, ggml_tensor* kv_rows);

  // down(silu(gate x) * (up x))
  ggml_tensor* gated_ffn(ggml_tensor* x, ggml_tensor* gate, ggml_tensor* up, ggml_tensor* down);

 private:
  ggml_context* context_;
  const ModelConfig& config_;
  const ops::NodeContext& nodes_;
  const ops::AttentionNode& attention_;
  struct Quantized {
    ggml_tensor* x;
    ops::ActivationFormat format;
    ggml_tensor* result;
  };
  std::vector<Quantized> quantized_;
};

}  // namespace drafthorse
