// Architecture "llama": Llama and Mistral, and with routed experts Mixtral.
#include "model/decoder.h"
#include "model/rope_scaling.h"

namespace drafthorse {
namespace {

using Use = WeightDeclarations::Use;

Status configure(const MetadataReader& reader, ModelConfig& config) {
  RETURN_IF_ERROR(read_heads(reader, config));
  ASSIGN_OR_RETURN(const float scale, reader.number_or("attention.scale", 0));
  if (scale != 0) config.attention_scale = scale;
  config.rope.pairs = RopePairs::kNeighbours;
  RETURN_IF_ERROR(read_rope(reader, {"none", "linear", "yarn", "longrope"}, config));
  // One number for the rows of an FFN, be it dense or an expert's.
  config.n_ff_expert = config.n_ff;
  ASSIGN_OR_RETURN(config.routing.scale, reader.number_or("expert_weights_scale", 1));
  if (config.routing.scale == 0) config.routing.scale = 1;
  return {};
}

ModelWeights declare(WeightDeclarations& tensors, const ModelConfig& config) {
  ModelWeights weights;
  declare_ends(tensors, config, weights);
  weights.rope_factors = tensors.optional("rope_freqs.weight", Use::kVector, config.rope.dims / 2);
  if (weights.rope_factors == nullptr) declare_rope_factors(tensors, config, weights);
  for (int32_t i = 0; i < config.n_layer; ++i) {
    LayerWeights& layer = weights.layers.emplace_back();
    declare_heads(tensors, config, i, Presence::kOptional, layer);
    layer.attention_out_bias = tensors.optional(block_name(i, "attn_output.bias"), Use::kVector, config.n_embd);
    declare_feed_forward(tensors, config, i, layer);
  }
  return weights;
}

}  // namespace

const Family kLlamaFamily = {configure, declare, build_decoder_layer};

}  // namespace drafthorse
