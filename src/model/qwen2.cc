// Architectures "qwen2" and "qwen2moe": biases on queries, keys and values. The latter has a shared expert, weighted by
// a sigmoid of its own, and its experts' weights are the plain probabilities.
#include "model/decoder.h"
#include "model/rope_scaling.h"

namespace drafthorse {
namespace {

using Use = WeightDeclarations::Use;

Status configure(const MetadataReader& reader, ModelConfig& config) {
  RETURN_IF_ERROR(read_heads(reader, config));
  config.rope.pairs = RopePairs::kHalves;
  RETURN_IF_ERROR(read_rope(reader, {"none", "linear", "yarn"}, config));
  if (config.architecture == "qwen2") {
    config.n_expert = config.n_expert_used = 0;
    return {};
  }
  if (!config.is_moe()) return reader.error("a qwen2moe model without experts");
  config.routing.normalised = false;
  ASSIGN_OR_RETURN(config.n_ff_shared, reader.dimension_or("expert_shared_feed_forward_length", config.n_ff));
  if (config.n_ff_shared == 0) config.n_ff_shared = config.n_ff;
  return read_expert_rows(reader, config);
}

ModelWeights declare(WeightDeclarations& tensors, const ModelConfig& config) {
  ModelWeights weights;
  declare_ends(tensors, config, weights);
  weights.output_bias = tensors.optional("output.bias", Use::kVector, config.n_vocab);
  for (int32_t i = 0; i < config.n_layer; ++i) {
    LayerWeights& layer = weights.layers.emplace_back();
    declare_heads(tensors, config, i, Presence::kRequired, layer);
    declare_feed_forward(tensors, config, i, layer);
    declare_shared_expert(tensors, config, i, layer);
    if (layer.shared_down != nullptr) {
      layer.shared_router = tensors.required(block_name(i, "ffn_gate_inp_shexp.weight"), Use::kMatrix, config.n_embd);
    }
  }
  return weights;
}

}  // namespace

const Family kQwen2Family = {configure, declare, build_decoder_layer};

}  // namespace drafthorse
