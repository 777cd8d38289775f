// Architecture "deepseek": DeepSeek-MoE. Llama with shared experts, and dense layers in front.
#include "model/decoder.h"
#include "model/rope_scaling.h"

namespace drafthorse {
namespace {

Status configure(const MetadataReader& reader, ModelConfig& config) {
  RETURN_IF_ERROR(read_heads(reader, config));
  ASSIGN_OR_RETURN(const float scale, reader.number_or("attention.scale", 0));
  if (scale != 0) config.attention_scale = scale;
  config.rope.pairs = RopePairs::kNeighbours;
  RETURN_IF_ERROR(read_rope(reader, {"none", "linear", "yarn"}, config));
  config.routing.normalised = false;
  return read_deepseek_experts(reader, config);
}

ModelWeights declare(WeightDeclarations& tensors, const ModelConfig& config) {
  ModelWeights weights;
  declare_ends(tensors, config, weights);
  for (int32_t i = 0; i < config.n_layer; ++i) {
    LayerWeights& layer = weights.layers.emplace_back();
    declare_heads(tensors, config, i, Presence::kOptional, layer);
    declare_feed_forward(tensors, config, i, layer);
    declare_shared_expert(tensors, config, i, layer);
  }
  return weights;
}

}  // namespace

const Family kDeepseekFamily = {configure, declare, build_decoder_layer};

}  // namespace drafthorse
