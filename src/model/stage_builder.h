// What a family's file builds stage graphs from: the vocabulary of a transformer layer. A seam between families and
// what computes: on the host (host_stage_builder.h) linears and attention are our ops inside the ggml graph, on a
// device (device_stage_builder.h) all nodes are ggml's own. A builder lives as long as one graph is being built.
#pragma once

#include <ggml.h>

#include "model/config.h"
#include "model/kv_cache.h"
#include "model/weights.h"

namespace drafthorse {

class StageBuilder {
 public:
  virtual ~StageBuilder() = default;

  ggml_context* context() const { return context_; }
  const ModelConfig& config() const { return config_; }

  // x: [width, ..], weight: [width], bias: [width] or nullptr -> x / rms(x) * weight + bias
  ggml_tensor* rms_norm(ggml_tensor* x, ggml_tensor* weight, ggml_tensor* bias = nullptr);

  // x: [head_dim, heads, n], positions: [n], factors: [rope.dims / 2] or nullptr; as config().rope says
  ggml_tensor* rope(ggml_tensor* x, ggml_tensor* positions, ggml_tensor* factors);

  // w: [columns, rows], x: [columns, n], bias: [rows] or nullptr -> [rows, n]
  virtual ggml_tensor* linear(ggml_tensor* w, ggml_tensor* x, ggml_tensor* bias = nullptr) = 0;

  // A matrix per head. w: [columns, rows, heads], x: [columns, heads, n] -> [rows, heads, n]
  virtual ggml_tensor* heads_linear(ggml_tensor* w, ggml_tensor* x) = 0;

  // Writes k, v ([head_dim, n_head_kv, n]) to the cache's rows and attends with q ([head_dim, n_head, n]). Without v,
  // values are the first value_dim elements of keys.
  // -> [value_dim * n_head, n]
  virtual ggml_tensor* cached_attention(ggml_tensor* q, ggml_tensor* k, ggml_tensor* v, const KvCache& cache,
                                        int32_t layer, ggml_tensor* positions, ggml_tensor* kv_rows) = 0;

  // down(silu(gate x) * (up x))
  virtual ggml_tensor* gated_ffn(ggml_tensor* x, ggml_tensor* gate, ggml_tensor* up, ggml_tensor* down) = 0;

 protected:
  StageBuilder(ggml_context* context, const ModelConfig& config) : context_(context), config_(config) {}

  struct CacheRows {
    ggml_tensor* keys = nullptr;    // [head_dim * n_head_kv, rows], with the window's own
    ggml_tensor* values = nullptr;  // [value_dim * n_head_kv, rows], likewise
  };
  CacheRows write_cache(ggml_tensor* k, ggml_tensor* v, const KvCache& cache, int32_t layer, ggml_tensor* kv_rows);

 private:
  ggml_context* context_;
  const ModelConfig& config_;
};

}  // namespace drafthorse
