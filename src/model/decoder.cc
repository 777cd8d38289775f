#include "model/decoder.h"

#include <algorithm>
#include <cmath>

namespace drafthorse {
namespace {

using Use = WeightDeclarations::Use;

// [rope.dims / 2] or nullptr
ggml_tensor* rope_factors(const ModelConfig& config, const ModelWeights& weights, const KvCache& cache) {
  const bool is_long = weights.rope_factors_long != nullptr && cache.context() > config.rope.original_context;
  return is_long ? weights.rope_factors_long : weights.rope_factors;
}

// The stream after attention.
ggml_tensor* build_heads(StageBuilder& b, const LayerWeights& layer, const KvCache& cache, int32_t index,
                         const LayerInputs& in, ggml_tensor* rope_factors) {
  const ModelConfig& config = b.config();
  const auto heads = [&](ggml_tensor* x, int64_t count) {
    return ggml_reshape_3d(b.context(), x, config.head_dim, count, in.residual->ne[1]);
  };
  ggml_tensor* x = b.rms_norm(in.residual, layer.attention_norm, layer.attention_norm_bias);
  ggml_tensor* q = heads(b.linear(layer.q, x, layer.q_bias), config.n_head);
  ggml_tensor* k = heads(b.linear(layer.k, x, layer.k_bias), config.n_head_kv);
  ggml_tensor* v = heads(b.linear(layer.v, x, layer.v_bias), config.n_head_kv);
  if (layer.q_norm != nullptr) q = b.rms_norm(q, layer.q_norm);
  if (layer.k_norm != nullptr) k = b.rms_norm(k, layer.k_norm);
  q = b.rope(q, in.positions, rope_factors);
  k = b.rope(k, in.positions, rope_factors);
  ggml_tensor* attended = b.cached_attention(q, k, v, cache, index, in.positions, in.kv_rows);
  return ggml_add(b.context(), in.residual, b.linear(layer.attention_out, attended, layer.attention_out_bias));
}

}  // namespace

Status read_heads(const MetadataReader& reader, ModelConfig& config) {
  ASSIGN_OR_RETURN(config.head_dim, reader.dimension_or("attention.key_length", config.n_embd / config.n_head));
  ASSIGN_OR_RETURN(config.value_dim, reader.dimension_or("attention.value_length", config.head_dim));
  if (config.head_dim < 1 || config.value_dim != config.head_dim) {
    return reader.error(
        fmt::format("keys of {} and values of {} elements are not supported", config.head_dim, config.value_dim));
  }
  config.attention_scale = 1.0F / std::sqrt(static_cast<float>(config.head_dim));
  config.rope.dims = config.head_dim;
  return {};
}

Status read_expert_rows(const MetadataReader& reader, ModelConfig& config) {
  if (!config.is_moe()) return {};
  const int32_t shared_out = config.n_ff / std::max(1, config.n_expert_used);
  ASSIGN_OR_RETURN(config.n_ff_expert, reader.dimension_or("expert_feed_forward_length", shared_out));
  if (config.n_ff_expert == 0) config.n_ff_expert = shared_out;
  return {};
}

Status read_deepseek_experts(const MetadataReader& reader, ModelConfig& config) {
  ASSIGN_OR_RETURN(config.n_dense_lead, reader.dimension_or("leading_dense_block_count", 0));
  if (config.n_dense_lead >= config.n_layer) config.n_expert = config.n_expert_used = 0;
  if (!config.is_moe()) return {};
  ASSIGN_OR_RETURN(config.n_ff_expert, reader.dimension("expert_feed_forward_length"));
  ASSIGN_OR_RETURN(const int32_t n_shared, reader.dimension_or("expert_shared_count", 0));
  const int64_t rows = int64_t{config.n_ff_expert} * n_shared;
  if (rows > static_cast<int64_t>(MetadataReader::kMaxDimension)) {
    return reader.error(fmt::format("{} shared experts of {} rows make no sense", n_shared, config.n_ff_expert));
  }
  config.n_ff_shared = static_cast<int32_t>(rows);
  ASSIGN_OR_RETURN(config.routing.scale, reader.number_or("expert_weights_scale", 1));
  if (config.routing.scale == 0) config.routing.scale = 1;
  return {};
}

void declare_ends(WeightDeclarations& tensors, const ModelConfig& config, ModelWeights& weights) {
  weights.token_embedding = tensors.required("token_embd.weight", Use::kMatrix, config.n_embd, config.n_vocab);
  weights.output_norm = tensors.required("output_norm.weight", Use::kVector, config.n_embd);
  weights.output = tensors.optional("output.weight", Use::kMatrix, config.n_embd, config.n_vocab);
  if (weights.output == nullptr) weights.output = weights.token_embedding;
}

void declare_heads(WeightDeclarations& tensors, const ModelConfig& config, int32_t index, Presence bias,
                   LayerWeights& layer) {
  const int64_t n_embd = config.n_embd;
  const int64_t n_q = int64_t{config.head_dim} * config.n_head;
  const int64_t n_kv = int64_t{config.head_dim} * config.n_head_kv;
  layer.attention_norm = tensors.required(block_name(index, "attn_norm.weight"), Use::kVector, n_embd);
  layer.q = tensors.required(block_name(index, "attn_q.weight"), Use::kMatrix, n_embd, n_q);
  layer.k = tensors.required(block_name(index, "attn_k.weight"), Use::kMatrix, n_embd, n_kv);
  layer.v = tensors.required(block_name(index, "attn_v.weight"), Use::kMatrix, n_embd, n_kv);
  layer.attention_out = tensors.required(block_name(index, "attn_output.weight"), Use::kMatrix, n_q, n_embd);
  if (bias == Presence::kNone) return;
  const auto declare = [&](std::string_view name, int64_t size) {
    return bias == Presence::kRequired ? tensors.required(block_name(index, name), Use::kVector, size)
                                       : tensors.optional(block_name(index, name), Use::kVector, size);
  };
  layer.q_bias = declare("attn_q.bias", n_q);
  layer.k_bias = declare("attn_k.bias", n_kv);
  layer.v_bias = declare("attn_v.bias", n_kv);
}

void declare_feed_forward(WeightDeclarations& tensors, const ModelConfig& config, int32_t index, LayerWeights& layer) {
  const int64_t n_embd = config.n_embd;
  layer.ffn_norm = tensors.required(block_name(index, "ffn_norm.weight"), Use::kVector, n_embd);
  if (config.has_experts(index)) {
    layer.router = tensors.required(block_name(index, "ffn_gate_inp.weight"), Use::kMatrix, n_embd, config.n_expert);
    tensors.experts(index, config);
    return;
  }
  layer.gate = tensors.required(block_name(index, "ffn_gate.weight"), Use::kMatrix, n_embd, config.n_ff);
  layer.up = tensors.required(block_name(index, "ffn_up.weight"), Use::kMatrix, n_embd, config.n_ff);
  layer.down = tensors.required(block_name(index, "ffn_down.weight"), Use::kMatrix, config.n_ff, n_embd);
  tensors.no_experts();
}

void declare_shared_expert(WeightDeclarations& tensors, const ModelConfig& config, int32_t index, LayerWeights& layer) {
  if (config.n_ff_shared == 0 || !config.has_experts(index)) return;
  const int64_t n_embd = config.n_embd;
  const int64_t rows = config.n_ff_shared;
  layer.shared_gate = tensors.required(block_name(index, "ffn_gate_shexp.weight"), Use::kMatrix, n_embd, rows);
  layer.shared_up = tensors.required(block_name(index, "ffn_up_shexp.weight"), Use::kMatrix, n_embd, rows);
  layer.shared_down = tensors.required(block_name(index, "ffn_down_shexp.weight"), Use::kMatrix, rows, n_embd);
}

void declare_rope_factors(WeightDeclarations& tensors, const ModelConfig& config, ModelWeights& weights) {
  const int64_t pairs = config.rope.dims / 2;
  ggml_tensor* of_short = tensors.optional("rope_factors_short.weight", Use::kVector, pairs);
  if (of_short == nullptr) return;
  weights.rope_factors = of_short;
  weights.rope_factors_long = tensors.required("rope_factors_long.weight", Use::kVector, pairs);
}

LayerStage build_feed_forward(StageBuilder& b, const LayerWeights& layer, ggml_tensor* residual) {
  ggml_tensor* x = b.rms_norm(residual, layer.ffn_norm, layer.ffn_norm_bias);
  if (layer.router == nullptr) {
    return {ggml_add(b.context(), residual, b.gated_ffn(x, layer.gate, layer.up, layer.down)), x, nullptr};
  }
  const LayerStage stage = {residual, x, b.linear(layer.router, x)};
  if (layer.shared_down == nullptr) return stage;
  ggml_tensor* shared = b.gated_ffn(x, layer.shared_gate, layer.shared_up, layer.shared_down);
  if (layer.shared_router != nullptr) {
    shared = ggml_mul(b.context(), shared, ggml_sigmoid(b.context(), b.linear(layer.shared_router, x)));
  }
  return {ggml_add(b.context(), residual, shared), stage.ffn_input, stage.router_logits};
}

LayerStage build_decoder_layer(StageBuilder& b, const ModelWeights& weights, const KvCache& cache, int32_t index,
                               const LayerInputs& in) {
  const LayerWeights& layer = weights.layers[index];
  ggml_tensor* factors = rope_factors(b.config(), weights, cache);
  return build_feed_forward(b, layer, build_heads(b, layer, cache, index, in, factors));
}

}  // namespace drafthorse
