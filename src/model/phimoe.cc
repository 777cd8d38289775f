// Architecture "phimoe": Phi-3.5-MoE and Phi-mini-MoE, as libllama computes them. Biases nearly everywhere, and factors
// that stretch rotations, one set for contexts that the model was trained for first and one for longer ones.
#include "model/decoder.h"
#include "model/rope_scaling.h"

namespace drafthorse {
namespace {

using Use = WeightDeclarations::Use;

Status configure(const MetadataReader& reader, ModelConfig& config) {
  RETURN_IF_ERROR(read_heads(reader, config));
  config.rope.pairs = RopePairs::kHalves;
  RETURN_IF_ERROR(read_rope(reader, {"none", "linear", "longrope", "yarn"}, config));
  if (!config.is_moe()) return reader.error("a phimoe model without experts");
  config.n_ff_expert = config.n_ff;
  ASSIGN_OR_RETURN(config.attention_window, reader.dimension_or("attention.sliding_window", 0));
  return {};
}

ModelWeights declare(WeightDeclarations& tensors, const ModelConfig& config) {
  const int64_t n_embd = config.n_embd;
  ModelWeights weights;
  declare_ends(tensors, config, weights);
  weights.output_norm_bias = tensors.required("output_norm.bias", Use::kVector, n_embd);
  weights.output_bias = tensors.required("output.bias", Use::kVector, config.n_vocab);
  declare_rope_factors(tensors, config, weights);
  for (int32_t i = 0; i < config.n_layer; ++i) {
    LayerWeights& layer = weights.layers.emplace_back();
    declare_heads(tensors, config, i, Presence::kOptional, layer);
    layer.attention_norm_bias = tensors.required(block_name(i, "attn_norm.bias"), Use::kVector, n_embd);
    layer.attention_out_bias = tensors.required(block_name(i, "attn_output.bias"), Use::kVector, n_embd);
    declare_feed_forward(tensors, config, i, layer);
    layer.ffn_norm_bias = tensors.required(block_name(i, "ffn_norm.bias"), Use::kVector, n_embd);
  }
  return weights;
}

}  // namespace

const Family kPhiMoeFamily = {configure, declare, build_decoder_layer};

}  // namespace drafthorse
