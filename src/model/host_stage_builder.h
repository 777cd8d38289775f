// Stages on the host: linears and attention are our ops inside the ggml graph, the rest is ggml's own, row by row and
// so independent of the window.
#pragma once

#include <vector>

#include "model/stage_builder.h"
#include "ops/attention.h"
#include "ops/linear.h"

namespace drafthorse {

class HostStageBuilder final : public StageBuilder {
 public:
  // `nodes` and `attention` must outlive the graph.
  HostStageBuilder(ggml_context* context, const ModelConfig& config, const ops::NodeContext& nodes,
                   const ops::AttentionNode& attention)
      : StageBuilder(context, config), nodes_(nodes), attention_(attention) {}

  ggml_tensor* linear(ggml_tensor* w, ggml_tensor* x, ggml_tensor* bias = nullptr) override;
  ggml_tensor* heads_linear(ggml_tensor* w, ggml_tensor* x) override;
  ggml_tensor* cached_attention(ggml_tensor* q, ggml_tensor* k, ggml_tensor* v, const KvCache& cache, int32_t layer,
                                ggml_tensor* positions, ggml_tensor* kv_rows) override;
  ggml_tensor* gated_ffn(ggml_tensor* x, ggml_tensor* gate, ggml_tensor* up, ggml_tensor* down) override;

  // x quantised for weights of this type; made once per (x, type).
  ggml_tensor* quantized(ggml_tensor* x, ggml_type weight_type);

 private:
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
