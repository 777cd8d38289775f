// A model family: which tensors it has and how a layer is computed. One file per family implements it.
#pragma once

#include <ggml.h>

#include "model/config.h"
#include "model/kv_cache.h"
#include "model/stage_builder.h"
#include "model/weights.h"

namespace drafthorse {

// Everything up to the routed experts of one layer.
struct LayerStage {
  ggml_tensor* residual = nullptr;       // [n_embd, n] the stream after attention, and after the FFN if it is dense
  ggml_tensor* ffn_input = nullptr;      // [n_embd, n] what the experts, or the dense FFN, see
  ggml_tensor* router_logits = nullptr;  // [n_expert, n]; nullptr in a dense layer
};

struct LayerInputs {
  ggml_tensor* residual = nullptr;   // [n_embd, n]
  ggml_tensor* positions = nullptr;  // [n] I32
  ggml_tensor* kv_rows = nullptr;    // [n] I64
};

struct Family {
  ModelWeights (*declare)(WeightDeclarations& declarations, const ModelConfig& config);
  LayerStage (*build_layer)(StageBuilder& builder, const ModelWeights& weights, const KvCache& cache, int32_t layer,
                            const LayerInputs& inputs);
};

// nullptr for an architecture nobody implements.
const Family* find_family(const std::string& architecture);

extern const Family kLlamaFamily;  // Llama, Mistral; with experts Mixtral

}  // namespace drafthorse
