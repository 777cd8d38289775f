// A model family: which numbers and tensors it has and how a layer is computed. One file per family implements it.
#pragma once

#include <ggml.h>

#include <string>
#include <vector>

#include "model/config.h"
#include "model/kv_cache.h"
#include "model/metadata_reader.h"
#include "model/stage_builder.h"
#include "model/weights.h"

namespace drafthorse {

// Everything up to the routed experts of one layer.
struct LayerStage {
  ggml_tensor* residual = nullptr;       // [n_embd, n] the stream after attention and all of the FFN but routed experts
  ggml_tensor* ffn_input = nullptr;      // [n_embd, n] what the experts, or the dense FFN, see
  ggml_tensor* router_logits = nullptr;  // [n_expert, n]; nullptr in a dense layer
};

struct LayerInputs {
  ggml_tensor* residual = nullptr;   // [n_embd, n]
  ggml_tensor* positions = nullptr;  // [n] I32
  ggml_tensor* kv_rows = nullptr;    // [n] I64
};

struct Family {
  // Reads what the family has beyond the common (config.cc), refusing what is not computed.
  Status (*configure)(const MetadataReader& reader, ModelConfig& config);
  ModelWeights (*declare)(WeightDeclarations& declarations, const ModelConfig& config);
  LayerStage (*build_layer)(StageBuilder& builder, const ModelWeights& weights, const KvCache& cache, int32_t layer,
                            const LayerInputs& inputs);
  size_t layer_tensors = 64;  // that a layer's graph has at most
};

// nullptr for an architecture nobody implements.
const Family* find_family(const std::string& architecture);
std::vector<std::string> supported_architectures();

extern const Family kLlamaFamily;      // llama: Llama, Mistral; with experts Mixtral
extern const Family kQwen2Family;      // qwen2, qwen2moe: with experts Qwen1.5-MoE, Qwen2-57B-A14B
extern const Family kQwen3Family;      // qwen3, qwen3moe
extern const Family kPhiMoeFamily;     // phimoe: Phi-3.5-MoE, Phi-mini-MoE
extern const Family kDeepseekFamily;   // deepseek: DeepSeek-MoE
extern const Family kDeepseek2Family;  // deepseek2: DeepSeek-V2 to V3.1

}  // namespace drafthorse
