// Stages on a device: every node is ggml's own.
//
// Attention (device_attention.h) looks at the cache's first `extent` rows.
#pragma once

#include "model/stage_builder.h"

namespace drafthorse {

class DeviceStageBuilder : public StageBuilder {
 public:
  // mask: [extent, n] F16, what is added to the scores of n tokens.
  DeviceStageBuilder(ggml_context* context, const ModelConfig& config, ggml_tensor* mask)
      : StageBuilder(context, config), mask_(mask) {}

  ggml_tensor* linear(ggml_tensor* w, ggml_tensor* x, ggml_tensor* bias = nullptr) override;
  ggml_tensor* heads_linear(ggml_tensor* w, ggml_tensor* x) override;
  ggml_tensor* cached_attention(ggml_tensor* q, ggml_tensor* k, ggml_tensor* v, const KvCache& cache, int32_t layer,
                                ggml_tensor* positions, ggml_tensor* kv_rows) override;
  ggml_tensor* gated_ffn(ggml_tensor* x, ggml_tensor* gate, ggml_tensor* up, ggml_tensor* down) override;

 private:
  ggml_tensor* mask_;
};

// The same with attention left out: that is the host's, between two graphs of a layer.
class SplitStageBuilder final : public DeviceStageBuilder {
 public:
  // attended: [value_dim * n_head, n], which the host writes.
  SplitStageBuilder(ggml_context* context, const ModelConfig& config, ggml_tensor* attended)
      : DeviceStageBuilder(context, config, nullptr), attended_(attended) {}

  ggml_tensor* cached_attention(ggml_tensor* q, ggml_tensor* k, ggml_tensor* v, const KvCache& cache, int32_t layer,
                                ggml_tensor* positions, ggml_tensor* kv_rows) override;

  // What the host is to attend with, once the layer is built: as cached_attention() has them, side by side.
  ggml_tensor* q() const { return q_; }
  ggml_tensor* k() const { return k_; }
  ggml_tensor* v() const { return v_; }  // nullptr: values are the keys' beginnings

 private:
  ggml_tensor* attended_;
  ggml_tensor* q_ = nullptr;
  ggml_tensor* k_ = nullptr;
  ggml_tensor* v_ = nullptr;
};

}  // namespace drafthorse
