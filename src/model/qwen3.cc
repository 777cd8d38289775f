// Architectures "qwen3" and "qwen3moe": queries and keys are normed head by head before they are rotated.
#include "model/decoder.h"
#include "model/rope_scaling.h"

namespace drafthorse {
namespace {

using Use = WeightDeclarations::Use;

Status configure(const MetadataReader& reader, ModelConfig& config) {
  RETURN_IF_ERROR(read_heads(reader, config));
  config.rope.pairs = RopePairs::kHalves;
  RETURN_IF_ERROR(read_rope(reader, {"none", "linear", "yarn"}, config));
  if (config.architecture == "qwen3") config.n_expert = config.n_expert_used = 0;
  if (config.architecture == "qwen3moe" && !config.is_moe()) return reader.error("a qwen3moe model without experts");
  return read_expert_rows(reader, config);
}

ModelWeights declare(WeightDeclarations& tensors, const ModelConfig& config) {
  ModelWeights weights;
  declare_ends(tensors, config, weights);
  for (int32_t i = 0; i < config.n_layer; ++i) {
    LayerWeights& layer = weights.layers.emplace_back();
    declare_heads(tensors, config, i, Presence::kOptional, layer);
    layer.q_norm = tensors.required(block_name(i, "attn_q_norm.weight"), Use::kVector, config.head_dim);
    layer.k_norm = tensors.required(block_name(i, "attn_k_norm.weight"), Use::kVector, config.head_dim);
    declare_feed_forward(tensors, config, i, layer);
  }
  return weights;
}

}  // namespace

const Family kQwen3Family = {configure, declare, build_decoder_layer};

}  // namespace drafthorse
