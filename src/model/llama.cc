// Architecture "llama": Llama and Mistral, and with routed experts Mixtral.
#include <fmt/format.h>

#include "model/family.h"

namespace drafthorse {
namespace {

using Use = WeightDeclarations::Use;

ModelWeights declare(WeightDeclarations& tensors, const ModelConfig& config) {
  const int64_t n_embd = config.n_embd;
  const int64_t n_q = int64_t{config.head_dim} * config.n_head;
  const int64_t n_kv = int64_t{config.head_dim} * config.n_head_kv;
  ModelWeights weights;
  weights.token_embedding = tensors.required("token_embd.weight", Use::kMatrix, n_embd, config.n_vocab);
  weights.output_norm = tensors.required("output_norm.weight", Use::kVector, n_embd);
  weights.output = tensors.optional("output.weight", Use::kMatrix, n_embd, config.n_vocab);
  if (weights.output == nullptr) weights.output = weights.token_embedding;
  weights.rope_factors = tensors.optional("rope_freqs.weight", Use::kVector, config.rope_dims / 2);
  for (int32_t i = 0; i < config.n_layer; ++i) {
    LayerWeights& layer = weights.layers.emplace_back();
    const auto blk = [i](std::string_view rest) { return fmt::format("blk.{}.{}", i, rest); };
    layer.attention_norm = tensors.required(blk("attn_norm.weight"), Use::kVector, n_embd);
    layer.q = tensors.required(blk("attn_q.weight"), Use::kMatrix, n_embd, n_q);
    layer.k = tensors.required(blk("attn_k.weight"), Use::kMatrix, n_embd, n_kv);
    layer.v = tensors.required(blk("attn_v.weight"), Use::kMatrix, n_embd, n_kv);
    layer.attention_out = tensors.required(blk("attn_output.weight"), Use::kMatrix, n_q, n_embd);
    layer.q_bias = tensors.optional(blk("attn_q.bias"), Use::kVector, n_q);
    layer.k_bias = tensors.optional(blk("attn_k.bias"), Use::kVector, n_kv);
    layer.v_bias = tensors.optional(blk("attn_v.bias"), Use::kVector, n_kv);
    layer.attention_out_bias = tensors.optional(blk("attn_output.bias"), Use::kVector, n_embd);
    layer.ffn_norm = tensors.required(blk("ffn_norm.weight"), Use::kVector, n_embd);
    if (config.is_moe()) {
      layer.router = tensors.required(blk("ffn_gate_inp.weight"), Use::kMatrix, n_embd, config.n_expert);
      tensors.experts(i, config);
    } else {
      layer.gate = tensors.required(blk("ffn_gate.weight"), Use::kMatrix, n_embd, config.n_ff);
      layer.up = tensors.required(blk("ffn_up.weight"), Use::kMatrix, n_embd, config.n_ff);
      layer.down = tensors.required(blk("ffn_down.weight"), Use::kMatrix, config.n_ff, n_embd);
      tensors.no_experts();
    }
  }
  return weights;
}

LayerStage build_layer(StageBuilder& b, const ModelWeights& weights, const KvCache& cache, int32_t index,
                       const LayerInputs& in) {
  const ModelConfig& config = b.config();
  const LayerWeights& layer = weights.layers[index];
  const int64_t n = in.residual->ne[1];
  const auto heads = [&](ggml_tensor* x, int64_t count) {
    return ggml_reshape_3d(b.context(), x, config.head_dim, count, n);
  };
  ggml_tensor* x = b.rms_norm(in.residual, layer.attention_norm);
  ggml_tensor* q = heads(b.linear(layer.q, x, layer.q_bias), config.n_head);
  ggml_tensor* k = heads(b.linear(layer.k, x, layer.k_bias), config.n_head_kv);
  ggml_tensor* v = heads(b.linear(layer.v, x, layer.v_bias), config.n_head_kv);
  q = b.rope_interleaved(q, in.positions, weights.rope_factors);
  k = b.rope_interleaved(k, in.positions, weights.rope_factors);
  ggml_tensor* attended = b.cached_attention(q, k, v, cache, index, in.positions, in.kv_rows);
  ggml_tensor* residual =
      ggml_add(b.context(), in.residual, b.linear(layer.attention_out, attended, layer.attention_out_bias));
  x = b.rms_norm(residual, layer.ffn_norm);
  if (layer.router == nullptr) {
    return {ggml_add(b.context(), residual, b.gated_ffn(x, layer.gate, layer.up, layer.down)), x, nullptr};
  }
  return {residual, x, b.linear(layer.router, x)};
}

}  // namespace

const Family kLlamaFamily = {declare, build_layer};

}  // namespace drafthorse
